from __future__ import annotations

from collections.abc import Mapping
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, overload

import attrs

from ppap_framework.errors import AssetError
from ppap_framework.plugin import (
    AdapterSpec,
    Asset,
    BackendSpec,
    Card,
    CardKind,
    ComponentKind,
    ComponentSpec,
    DefaultTarget,
    ExpertBundle,
    GuiderSpec,
    TaskLossSpec,
)
from ppap_framework.registry import making, refusals
from ppap_framework.registry.records import Offers, PluginRecord, label, split

if TYPE_CHECKING:
    from ppap_framework import components
    from ppap_framework.checkpoints import Checkpoint


@attrs.frozen
class Registry:
    """Everything that discovery found; only records are consulted.

    A component, checkpoint or bundle of experts is asked for by its name, or as "distribution:name"
    if several distributions claim the name. Methods that take a name raise `PluginError` if several
    do, and for a component if none does; for a checkpoint or bundle that nobody supplies they raise
    `AssetError`. The hint says what to type.

    Attributes:
        records: One for each plugin, by distribution and entry point.
        unknown_names: Each environment variable that names a plugin which is not installed, with
            that name.
    """

    records: tuple[PluginRecord, ...]
    unknown_names: tuple[tuple[str, str], ...] = ()

    def offers(self, of: type | UnionType, name: str | None = None, **fields: Any) -> Offers:
        """The records of a type, with this name and these values of fields."""
        distribution, bare = split(name) if name is not None else (None, None)
        return [
            (plugin, item)
            for plugin in self.records
            for item in (*plugin.specs, *plugin.assets)
            if isinstance(item, of)
            and distribution in (None, plugin.distribution)
            and (bare is None or getattr(item, "name", None) == bare)
            and all(getattr(item, field) == value for field, value in fields.items())
        ]

    def owners(self, kind: ComponentKind, name: str) -> set[str]:
        """The distributions that supply a component of that name."""
        return {plugin.distribution for plugin, _ in self.offers(ComponentSpec, name, kind=kind)}

    def _own_first(self, kind: CardKind, component: str, offers: Offers) -> Offers:
        """Offers for a component, its own distribution's first; suppliers of namesakes left out."""
        owners = self.owners(kind, component)
        rivals = self.owners(kind, split(component)[1]) - owners if owners else set()
        return sorted(
            (offer for offer in offers if offer[0].distribution not in rivals),
            key=lambda offer: offer[0].distribution not in owners,
        )

    def specs(self, kind: ComponentKind) -> list[ComponentSpec]:
        """Every component of a kind, by name; each claim of a name counts."""
        own = (spec for _, spec in self.offers(ComponentSpec, kind=kind))
        return sorted(own, key=lambda spec: spec.name)

    @overload
    def spec(self, kind: Literal["backend"], name: str) -> BackendSpec: ...
    @overload
    def spec(self, kind: Literal["guider"], name: str) -> GuiderSpec: ...
    @overload
    def spec(self, kind: Literal["loss"], name: str) -> TaskLossSpec: ...
    @overload
    def spec(self, kind: Literal["adapter"], name: str) -> AdapterSpec: ...
    @overload
    def spec(self, kind: ComponentKind, name: str) -> ComponentSpec: ...
    def spec(self, kind: ComponentKind, name: str) -> ComponentSpec:
        if claims := self.offers(ComponentSpec, name, kind=kind):
            subject = f"{kind} {split(name)[1]!r}"
            found: ComponentSpec = refusals.only(claims, subject, f"--{kind}", name)
            return found
        known = [spec.name for spec in self.specs(kind)]
        raise refusals.missing_component(kind, name, known, self.records)

    def provider(self, item: ComponentSpec | Asset) -> PluginRecord:
        """The plugin that a record came from; LookupError for a record of another registry."""
        for plugin, own in self.offers(type(item)):
            if item is own:
                return plugin
        raise LookupError(f"{item!r} is not of this registry")

    def default_loss(self, guider: GuiderSpec) -> TaskLossSpec:
        """The task loss of a guider, preferably of its own distribution."""
        own = f"{self.provider(guider).distribution}:{guider.default_loss}"
        return self.spec("loss", own if self.owners("loss", own) else guider.default_loss)

    def default_adapters(self) -> list[tuple[str, dict[str, Any]]]:
        """The default adapters of an expert, with their options.

        They are attached, and stored in a bundle, in reverse alphabetical order.
        """
        specs = sorted((s for _, s in self.offers(AdapterSpec)), key=lambda s: s.name, reverse=True)
        return [(spec.name, dict(spec.default)) for spec in specs if spec.default is not None]

    def card_offers(self, component: str, kind: CardKind, name: str | None = None) -> Offers:
        """The checkpoints of a component: its own distribution's first, then by distribution.

        If several distributions claim the component's name, "distribution:name" leaves out those of
        the others, which are for components of their own.
        """
        offers = self.offers(Card, name, kind=kind, component=split(component)[1])
        return self._own_first(kind, component, offers)

    def cards(self, component: str, kind: CardKind) -> list[Card]:
        """As `card_offers`, without the plugins."""
        return [card for _, card in self.card_offers(component, kind)]

    def card(self, component: str, kind: CardKind, name: str) -> Card:
        """A checkpoint of the component by name among `cards`, or any as "distribution:name"."""
        distribution, bare = split(name)
        subject = f"{kind} {split(component)[1]!r}"
        if distribution:
            component = split(component)[1]
        if claims := self.card_offers(component, kind, name):
            flag = refusals.CHECKPOINT_FLAGS[kind]
            card: Card = refusals.only(claims, f"checkpoint {bare!r} of {subject}", flag, name)
            return card
        offers = self.card_offers(component, kind)
        hint = refusals.card_hint(kind, component, bare, offers, self.records)
        raise AssetError(f"{subject} has no checkpoint {name!r}", hint=hint)

    def default_card(self, component: str, kind: CardKind) -> Card:
        """The default checkpoint of a component."""
        offers = self.card_offers(component, kind)
        for _, card in offers:
            if card.default:
                return card
        hint = refusals.card_hint(kind, component, "", offers, self.records)
        subject = f"{kind} {split(component)[1]!r}"
        raise AssetError(f"{subject} has no default checkpoint", hint=hint)

    def every_card(self) -> list[Card]:
        """All checkpoints: by component, then as plugins list them."""
        cards = [card for _, card in self.offers(Card)]
        return sorted(cards, key=lambda card: (card.kind, card.component))

    def card_named(self, name: str) -> Card:
        """The checkpoint of that name, of any component."""
        bare = split(name)[1]
        if claims := self.offers(Card, name):
            card: Card = refusals.only(claims, f"checkpoint {bare!r}", "", name)
            return card
        near = refusals.nearest(bare, [card.name for card in self.every_card()])
        hint = (f"did you mean {near!r}? " if near else "") + "`ppap checkpoints list` shows them"
        raise AssetError(f"no checkpoint is called {name!r}", hint=hint)

    def bundles(self, backend: str | None = None, guider: str | None = None) -> list[ExpertBundle]:
        """The bundles of experts, by distribution; of a backend and a guider, if given."""
        return [
            bundle
            for _, bundle in self.offers(ExpertBundle)
            if backend in (None, bundle.backend) and guider in (None, bundle.guider)
        ]

    def bundle(self, name: str) -> ExpertBundle:
        bare = split(name)[1]
        if claims := self.offers(ExpertBundle, name):
            bundle: ExpertBundle = refusals.only(claims, f"experts {bare!r}", "--experts", name)
            return bundle
        hint = refusals.one_of(bare, [bundle.name for bundle in self.bundles()], "--experts")
        raise AssetError(f"no experts are called {name!r}", hint=hint)

    def target_offers(self, guider: str, checkpoint: str) -> Offers:
        """The default targets of a guider with a checkpoint; the first counts."""
        of = {"guider": split(guider)[1], "checkpoint": split(checkpoint)[1]}
        return self._own_first("guider", guider, self.offers(DefaultTarget, **of))

    def default_target(self, guider: str, checkpoint: str) -> DefaultTarget | None:
        """The default target of a guider with a checkpoint, if any."""
        return next((target for _, target in self.target_offers(guider, checkpoint)), None)

    def options_class(self, spec: ComponentSpec) -> type[attrs.AttrsInstance] | None:
        """The attrs class of a component's options, if any; PluginError if it is none."""
        return making.options_class(spec, self._label(spec))

    def options(self, spec: ComponentSpec, given: Mapping[str, Any]) -> Any:
        """An instance of `options_class`, or None; UsageError with all that is wrong."""
        return making.build_options(spec, given, self._label(spec))

    @overload
    def make(
        self, spec: BackendSpec, options: Mapping[str, Any], checkpoint: Checkpoint
    ) -> components.DiffusionBackend: ...
    @overload
    def make(
        self, spec: GuiderSpec, options: Mapping[str, Any], checkpoint: Checkpoint | None = None
    ) -> components.GuidanceModel: ...
    @overload
    def make(self, spec: TaskLossSpec, options: Mapping[str, Any]) -> components.TaskLoss: ...
    @overload
    def make(self, spec: AdapterSpec, options: Mapping[str, Any]) -> components.ExpertAdapter: ...
    def make(
        self, spec: ComponentSpec, options: Mapping[str, Any], checkpoint: Checkpoint | None = None
    ) -> Any:
        """Import a component's factory and call it; nothing before this imports torch.

        Args:
            spec: A component of this registry.
            options: Its options by name.
            checkpoint: Its weights, for a backend or a guider.

        Raises:
            PluginError: If the factory cannot be imported, fails, or makes something else; it names
                the distribution.
            UsageError: For options that the component does not take.
            AssetError: If it needs a checkpoint and gets none.
            PpapError: If the factory itself raises one.
        """
        return making.make(spec, options, checkpoint, self._label(spec))

    def _label(self, spec: ComponentSpec) -> str:
        return f"{label(spec)} of {self.provider(spec).distribution}"
