"""Questions about what plugins supply, answered from their records alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import attrs

from ppap_framework.errors import AssetError
from ppap_framework.plugin import (
    AdapterSpec,
    Asset,
    BackendSpec,
    Card,
    ComponentKind,
    ComponentSpec,
    DefaultTarget,
    ExpertBundle,
    GuiderSpec,
    TaskLossSpec,
)
from ppap_framework.registry import _refusals, _resolution
from ppap_framework.registry._records import SPEC_TYPES, Conflict, PluginRecord, kind_of, split
from ppap_framework.registry._refusals import CardKind

if TYPE_CHECKING:
    from ppap_framework import components
    from ppap_framework.checkpoints import Checkpoint

_A = TypeVar("_A", Card, ExpertBundle, DefaultTarget)


@attrs.frozen
class Registry:
    """Everything that discovery found.

    A component or checkpoint is asked for by its name, or as "distribution:name" where two
    distributions claim the name.

    Attributes:
        records: One for each plugin, by distribution and entry point.
        unknown_names: Each variable of the environment that names a plugin which is not installed,
            with that name.
    """

    records: tuple[PluginRecord, ...]
    unknown_names: tuple[tuple[str, str], ...] = ()

    def specs(self, kind: ComponentKind) -> list[ComponentSpec]:
        """Every component of a kind, by name; a name that is claimed twice is there twice."""
        own = (spec for record in self.records for spec in record.specs if kind_of(spec) == kind)
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
        """The component of that name.

        Args:
            kind: What it is.
            name: Its name, or "distribution:name".

        Raises:
            PluginError: Where nobody supplies it, or several do; the hint says what to type.
        """
        claims = self._claims(kind, name)
        if not claims:
            known = [spec.name for spec in self.specs(kind)]
            raise _refusals.missing_component(kind, name, known, self.records)
        if len(claims) > 1:
            providers = [record for record, _ in claims]
            raise _refusals.contested(f"{kind} {split(name)[1]!r}", f"--{kind}", name, providers)
        return claims[0][1]

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
        """The task loss of a guider; its own distribution's goes before another's of that name.

        Raises:
            PluginError: As `spec`.
        """
        own = f"{self.provider(guider).distribution}:{guider.default_loss}"
        return self.spec("loss", own if self._claims("loss", own) else guider.default_loss)

    def cards(self, component: str, kind: CardKind) -> list[Card]:
        """The checkpoints of a component: its own distribution's first, then by distribution.

        Where several distributions claim the component's name, "distribution:name" leaves out what
        the others bring: it is for components of their own.
        """
        return [card for _, card in self._cards(component, kind)]

    def card(self, component: str, kind: CardKind, name: str) -> Card:
        """The checkpoint of that name.

        Args:
            component: The component's name, or "distribution:name".
            kind: What the component is.
            name: The checkpoint's name, among `cards`; or "distribution:name", of any.

        Raises:
            AssetError: Where there is none.
            PluginError: Where several distributions claim the name.
        """
        what = f"{kind} {split(component)[1]!r}"
        distribution, bare = split(name)
        offers = self._cards(component if distribution is None else split(component)[1], kind)
        claims = [
            (record, card)
            for record, card in offers
            if card.name == bare and distribution in (None, record.distribution)
        ]
        if not claims:
            known = _refusals.of_use([card for _, card in offers])
            raise AssetError(
                f"{what} has no checkpoint {name!r}",
                hint=_refusals.card_hint(kind, component, bare, known, self.records),
            )
        if len(claims) > 1:
            flag = _refusals.CHECKPOINT_FLAGS[kind]
            subject = f"checkpoint {bare!r} of {what}"
            raise _refusals.contested(subject, flag, name, [record for record, _ in claims])
        return claims[0][1]

    def card_of_file(self, component: str, kind: CardKind, file: str) -> Card | None:
        """The checkpoint of a component that is published under a file name; None where it is not
        one of them, or of several.
        """
        named = [c for c in self.cards(component, kind) if c.uri.rpartition("/")[2] == file]
        return named[0] if len(named) == 1 else None

    def every_card(self) -> list[Card]:
        """All checkpoints: by their components, and then as plugins list them."""
        offers = [card for _, card in self._assets(Card)]
        return sorted(offers, key=lambda card: (card.kind, card.component))

    def card_named(self, name: str) -> Card:
        """The checkpoint of that name, whatever it is for.

        Args:
            name: Its name, or "distribution:name".

        Raises:
            AssetError: Where there is none.
            PluginError: Where several distributions claim the name.
        """
        distribution, bare = split(name)
        claims = [
            (record, card)
            for record, card in self._assets(Card)
            if card.name == bare and distribution in (None, record.distribution)
        ]
        if not claims:
            known = [card.name for card in self.every_card()]
            raise AssetError(
                f"no checkpoint is called {name!r}", hint=_refusals.checkpoints_hint(bare, known)
            )
        if len(claims) > 1:
            records = [record for record, _ in claims]
            raise _refusals.contested(f"checkpoint {bare!r}", "", name, records)
        return claims[0][1]

    def default_card(self, component: str, kind: CardKind) -> Card:
        """The checkpoint of a component that is taken when none is asked for.

        Raises:
            AssetError: Where none is the default.
        """
        cards = self.cards(component, kind)
        default = next((card for card in cards if card.default), None)
        if default is None:
            known = _refusals.of_use(cards)
            raise AssetError(
                f"{kind} {split(component)[1]!r} has no default checkpoint",
                hint=_refusals.card_hint(kind, component, "", known, self.records),
            )
        return default

    def bundles(self, backend: str | None = None, guider: str | None = None) -> list[ExpertBundle]:
        """The bundles of experts that distributions offer, by distribution.

        Args:
            backend: Only those that learned from this backend.
            guider: Only those of this guider.
        """
        return [
            bundle
            for _, bundle in self._assets(ExpertBundle)
            if backend in (None, bundle.backend) and guider in (None, bundle.guider)
        ]

    def bundle(self, name: str) -> ExpertBundle:
        """The bundle of experts of that name.

        Args:
            name: Its name, or "distribution:name".

        Raises:
            AssetError: Where there is none.
            PluginError: Where several distributions claim the name.
        """
        distribution, bare = split(name)
        offers = list(self._assets(ExpertBundle))
        claims = [
            (record, bundle)
            for record, bundle in offers
            if bundle.name == bare and distribution in (None, record.distribution)
        ]
        if not claims:
            known = [bundle.name for _, bundle in offers]
            raise AssetError(
                f"no experts are called {name!r}", hint=_refusals.experts_hint(bare, known)
            )
        if len(claims) > 1:
            providers = [record for record, _ in claims]
            raise _refusals.contested(f"experts {bare!r}", "--experts", name, providers)
        return claims[0][1]

    def default_target(self, guider: str, checkpoint: str) -> DefaultTarget | None:
        """What a guider aims at with a checkpoint when no target is named, if anybody says."""
        offers = self._default_targets(guider, checkpoint)
        return offers[0][1] if offers else None

    def options_class(self, spec: ComponentSpec) -> type[attrs.AttrsInstance] | None:
        """The attrs class of a component's options, or None if it has none.

        Raises:
            PluginError: Where it cannot be imported or is no attrs class.
        """
        return _resolution.options_class(spec, self._label(spec))

    def options(self, spec: ComponentSpec, given: Mapping[str, Any]) -> Any:
        """An instance of a component's options class, or None if it has none.

        Raises:
            UsageError: With everything that is wrong with `given` in one message.
            PluginError: As `options_class`.
        """
        return _resolution.build_options(spec, given, self._label(spec))

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
            spec: The component, of this registry.
            options: Its options by name.
            checkpoint: Its weights, for a backend or a guider.

        Raises:
            PluginError: Where the factory cannot be imported, fails, or makes something else; it
                names the distribution.
            UsageError: For options that the component does not take.
            AssetError: Where it needs a checkpoint and gets none.
            PpapError: What the factory itself raises of that family.
        """
        return _resolution.make(spec, options, checkpoint, self._label(spec))

    def conflicts(self) -> list[Conflict]:
        """Every name that several plugins claim, and every default that none of them owns."""
        return [
            *self._component_conflicts(),
            *self._card_conflicts(),
            *self._bundle_conflicts(),
            *self._target_conflicts(),
        ]

    def _component_conflicts(self) -> Iterator[Conflict]:
        for kind in SPEC_TYPES:
            for name in dict.fromkeys(spec.name for spec in self.specs(kind)):
                yield from _several(f"{kind} {name!r}", self._claims(kind, name))

    def _card_conflicts(self) -> Iterator[Conflict]:
        cards = [card for _, card in self._assets(Card)]
        for component, kind in dict.fromkeys((card.component, card.kind) for card in cards):
            for asked in self._forms(kind, component):
                offers = self._cards(asked, kind)
                of_it = f"of {kind} {asked!r}"
                for name in dict.fromkeys(card.name for _, card in offers):
                    claims = [offer for offer in offers if offer[1].name == name]
                    yield from _several(f"checkpoint {name!r} {of_it}", claims)
                defaults = [offer for offer in offers if offer[1].default]
                yield from self._ties(f"default checkpoint {of_it}", kind, asked, defaults)

    def _bundle_conflicts(self) -> Iterator[Conflict]:
        offers = list(self._assets(ExpertBundle))
        for name in dict.fromkeys(bundle.name for _, bundle in offers):
            claims = [offer for offer in offers if offer[1].name == name]
            yield from _several(f"experts {name!r}", claims)

    def _target_conflicts(self) -> Iterator[Conflict]:
        targets = [target for _, target in self._assets(DefaultTarget)]
        for guider, checkpoint in dict.fromkeys((t.guider, t.checkpoint) for t in targets):
            for asked in self._forms("guider", guider):
                subject = f"default target of guider {asked!r} with checkpoint {checkpoint!r}"
                offers = self._default_targets(asked, checkpoint)
                yield from self._ties(subject, "guider", asked, offers)

    def _ties(
        self,
        subject: str,
        kind: CardKind,
        component: str,
        offers: list[tuple[PluginRecord, _A]],
    ) -> Iterator[Conflict]:
        """A conflict where the first offer is so by the distribution's name alone."""
        owners = self._owners(kind, component)
        own = [offer for offer in offers if offer[0].distribution in owners]
        yield from _several(subject, own or offers, settled=True)

    def _claims(self, kind: ComponentKind, name: str) -> list[tuple[PluginRecord, ComponentSpec]]:
        distribution, bare = split(name)
        return [
            (record, spec)
            for record in self.records
            for spec in record.specs
            if (kind_of(spec), spec.name) == (kind, bare)
            and distribution in (None, record.distribution)
        ]

    def _owners(self, kind: CardKind, component: str) -> set[str]:
        return {record.distribution for record, _ in self._claims(kind, component)}

    def _forms(self, kind: CardKind, name: str) -> list[str]:
        """How a component of that name is asked for: where several claim it, by distribution."""
        owners = sorted(self._owners(kind, name))
        return [f"{owner}:{name}" for owner in owners] if len(owners) > 1 else [name]

    def _assets(self, of_type: type[_A]) -> Iterator[tuple[PluginRecord, _A]]:
        for record in self.records:
            for asset in record.assets:
                if isinstance(asset, of_type):
                    yield record, asset

    def _own_first(
        self, kind: CardKind, component: str, offers: Iterable[tuple[PluginRecord, _A]]
    ) -> list[tuple[PluginRecord, _A]]:
        """What is offered for a component: its own distribution's first, its rivals' not at all."""
        owners = self._owners(kind, component)
        rivals = self._owners(kind, split(component)[1]) - owners if owners else set()
        return sorted(
            (offer for offer in offers if offer[0].distribution not in rivals),
            key=lambda offer: offer[0].distribution not in owners,
        )

    def _cards(self, component: str, kind: CardKind) -> list[tuple[PluginRecord, Card]]:
        wanted = (kind, split(component)[1])
        offers = [o for o in self._assets(Card) if (o[1].kind, o[1].component) == wanted]
        return self._own_first(kind, component, offers)

    def _default_targets(
        self, guider: str, checkpoint: str
    ) -> list[tuple[PluginRecord, DefaultTarget]]:
        wanted = (split(guider)[1], split(checkpoint)[1])
        offers = [
            o for o in self._assets(DefaultTarget) if (o[1].guider, o[1].checkpoint) == wanted
        ]
        return self._own_first("guider", guider, offers)

    def _label(self, spec: ComponentSpec) -> str:
        return f"{kind_of(spec)} {spec.name!r} of {self.provider(spec).distribution}"


def _several(
    subject: str, claims: list[tuple[PluginRecord, Any]], settled: bool = False
) -> Iterator[Conflict]:
    if len(claims) > 1:
        names = tuple(record.name for record, _ in claims)
        yield Conflict(subject, names, taken=names[0] if settled else None)
