"""Questions about what plugins supply, answered from their records alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

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
from ppap_framework.registry.offers import (
    Offers,
    cards_of,
    claims_of,
    distinct,
    find_conflicts,
    named,
    supplied,
    targets_of,
)
from ppap_framework.registry.records import Conflict, PluginRecord, label, split

if TYPE_CHECKING:
    from ppap_framework import components
    from ppap_framework.checkpoints import Checkpoint

_N = TypeVar("_N", bound=ComponentSpec | Card | ExpertBundle)


@attrs.frozen
class Registry:
    """Everything that discovery found.

    A component, checkpoint or bundle of experts is asked for by its name, or as "distribution:name"
    if several distributions claim the name. Methods that take a name raise `PluginError` if several
    do; the hint says what to type.

    Attributes:
        records: One for each plugin, by distribution and entry point.
        unknown_names: Each variable of the environment that names a plugin which is not installed,
            with that name.
    """

    records: tuple[PluginRecord, ...]
    unknown_names: tuple[tuple[str, str], ...] = ()

    def specs(self, kind: ComponentKind) -> list[ComponentSpec]:
        """Every component of a kind, by name; a name that is claimed twice is there twice."""
        own = (spec for _, spec in supplied(self.records, ComponentSpec) if spec.kind == kind)
        return sorted(own, key=lambda spec: spec.name)

    def names(self, kind: ComponentKind) -> list[str]:
        """The names by which the components of a kind can be asked for, sorted."""
        offers = supplied(self.records, ComponentSpec)
        return distinct((r.distribution, spec.name) for r, spec in offers if spec.kind == kind)

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
        """The component of that name.

        Raises:
            PluginError: If nobody supplies it, or several do.
        """
        claims = claims_of(self.records, kind, name)
        if not claims:
            known = [spec.name for spec in self.specs(kind)]
            raise refusals.missing_component(kind, name, known, self.records)
        return _only(claims, f"{kind} {split(name)[1]!r}", f"--{kind}", name)

    def provider(self, item: ComponentSpec | Asset) -> PluginRecord:
        """The plugin that a component or asset of this registry came from.

        Raises:
            LookupError: For any other record.
        """
        for record in self.records:
            if any(item is own for own in (*record.specs, *record.assets)):
                return record
        raise LookupError(f"{item!r} is not of this registry")

    def default_loss(self, guider: GuiderSpec) -> TaskLossSpec:
        """The task loss of a guider; its own distribution's goes before another's of that name."""
        own = f"{self.provider(guider).distribution}:{guider.default_loss}"
        has_own = claims_of(self.records, "loss", own)
        return self.spec("loss", own if has_own else guider.default_loss)

    def default_adapters(self) -> list[tuple[str, dict[str, Any]]]:
        """The adapters, with their options, that an expert is made of if nobody names any.

        They are attached, and stored in a bundle, in reverse alphabetical order.
        """
        found = [spec for spec in self.specs("adapter") if isinstance(spec, AdapterSpec)]
        defaults = ((spec.name, spec.default) for spec in reversed(found))
        return [(name, dict(options)) for name, options in defaults if options is not None]

    def cards(self, component: str, kind: CardKind) -> list[Card]:
        """The checkpoints of a component: its own distribution's first, then by distribution.

        If several distributions claim the component's name, "distribution:name" leaves out what the
        others bring: it is for components of their own.
        """
        return [card for _, card in cards_of(self.records, component, kind)]

    def card(self, component: str, kind: CardKind, name: str) -> Card:
        """The checkpoint of that name.

        Args:
            component: The component's name.
            kind: The component's kind.
            name: The checkpoint's name, among `cards`; or "distribution:name", of any.

        Raises:
            AssetError: If there is none.
        """
        what = f"{kind} {split(component)[1]!r}"
        distribution, bare = split(name)
        asked = split(component)[1] if distribution else component
        offers = cards_of(self.records, asked, kind)
        claims = named(offers, name)
        if not claims:
            known = refusals.usable(card for _, card in offers)
            raise AssetError(
                f"{what} has no checkpoint {name!r}",
                hint=refusals.card_hint(kind, component, bare, known, self.records),
            )
        flag = refusals.CHECKPOINT_FLAGS[kind]
        return _only(claims, f"checkpoint {bare!r} of {what}", flag, name)

    def card_of_file(self, component: str, kind: CardKind, file: str) -> Card | None:
        """The only checkpoint of a component that is published under a file name, if any."""
        found = [c for c in self.cards(component, kind) if c.uri.rpartition("/")[2] == file]
        return found[0] if len(found) == 1 else None

    def every_card(self) -> list[Card]:
        """All checkpoints: by their components, and then as plugins list them."""
        offers = [card for _, card in supplied(self.records, Card)]
        return sorted(offers, key=lambda card: (card.kind, card.component))

    def card_names(self, component: str | None = None) -> list[str]:
        """The names by which the checkpoints of a component, or all, can be asked for, sorted.

        Those that are only of use together are joined by "+"; those of no use are left out.
        """
        offers = supplied(self.records, Card)
        if component is not None:
            offers = [
                *cards_of(self.records, component, "backend"),
                *cards_of(self.records, component, "guider"),
            ]
        usable = [(record, card) for record, card in offers if not card.refusal]
        return distinct([(record.distribution, c.joined or c.name) for record, c in usable])

    def card_named(self, name: str) -> Card:
        """The checkpoint of that name, whatever it is for.

        Raises:
            AssetError: If there is none.
        """
        bare = split(name)[1]
        claims = named(supplied(self.records, Card), name)
        if not claims:
            near = refusals.nearest(bare, [card.name for card in self.every_card()])
            hint = f"did you mean {near!r}? " if near else ""
            raise AssetError(
                f"no checkpoint is called {name!r}",
                hint=f"{hint}`ppap checkpoints list` shows them",
            )
        return _only(claims, f"checkpoint {bare!r}", "", name)

    def default_card(self, component: str, kind: CardKind) -> Card:
        """The checkpoint of a component that is used if nobody names one.

        Raises:
            AssetError: If there is none.
        """
        cards = self.cards(component, kind)
        for card in cards:
            if card.default:
                return card
        known = refusals.usable(cards)
        raise AssetError(
            f"{kind} {split(component)[1]!r} has no default checkpoint",
            hint=refusals.card_hint(kind, component, "", known, self.records),
        )

    def bundles(self, backend: str | None = None, guider: str | None = None) -> list[ExpertBundle]:
        """The bundles of experts that distributions offer, by distribution.

        Args:
            backend: Only those that learned from this backend.
            guider: Only those of this guider.
        """
        return [
            bundle
            for _, bundle in supplied(self.records, ExpertBundle)
            if backend in (None, bundle.backend) and guider in (None, bundle.guider)
        ]

    def bundle(self, name: str) -> ExpertBundle:
        """The bundle of experts of that name.

        Raises:
            AssetError: If there is none.
        """
        bare = split(name)[1]
        claims = named(supplied(self.records, ExpertBundle), name)
        if not claims:
            known = [bundle.name for bundle in self.bundles()]
            hint = refusals.one_of(bare, known) if known else "name a file with --experts PATH"
            raise AssetError(f"no experts are called {name!r}", hint=hint)
        return _only(claims, f"experts {bare!r}", "--experts", name)

    def default_target(self, guider: str, checkpoint: str) -> DefaultTarget | None:
        """The target of a guider with a checkpoint if nobody names one, if there is one."""
        offers = targets_of(self.records, guider, checkpoint)
        return offers[0][1] if offers else None

    def options_class(self, spec: ComponentSpec) -> type[attrs.AttrsInstance] | None:
        """The attrs class of a component's options, or None if it has none.

        Raises:
            PluginError: If it cannot be imported or is no attrs class.
        """
        return making.options_class(spec, self._label(spec))

    def options(self, spec: ComponentSpec, given: Mapping[str, Any]) -> Any:
        """An instance of a component's options class, or None if it has none.

        Raises:
            UsageError: With everything that is wrong with `given` in one message.
            PluginError: As `options_class`.
        """
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
            PpapError: Whatever the factory itself raises of that family.
        """
        return making.make(spec, options, checkpoint, self._label(spec))

    def conflicts(self) -> list[Conflict]:
        """Every name that several plugins claim, and every default that none of them owns."""
        return find_conflicts(self.records)

    def _label(self, spec: ComponentSpec) -> str:
        return f"{label(spec)} of {self.provider(spec).distribution}"


def _only(claims: Offers[_N], subject: str, flag: str, name: str) -> _N:
    """The one claim of a name.

    Raises:
        PluginError: If there are several.
    """
    if len(claims) > 1:
        raise refusals.contested(subject, flag, name, [record for record, _ in claims])
    return claims[0][1]
