"""The registry: records by name, and components made from them."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from ppap_framework.errors import (
    TRACEBACK,
    AssetError,
    PluginError,
    Problems,
    UsageError,
    calling,
    one_line,
)
from ppap_framework.origin import plain
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
from ppap_framework.registry import records, refusals
from ppap_framework.registry.options import fields_of, message_of, read_options
from ppap_framework.registry.records import Item, Offers, PluginRecord, split

if TYPE_CHECKING:
    from ppap_framework.checkpoints import Checkpoint


@attrs.frozen
class Registry:
    """Everything that discovery found; records are consulted, and only `make` imports components.

    A component, checkpoint or bundle of experts is asked for by its name, or as "distribution:name"
    if several distributions claim the name. Methods that take a name raise `PluginError` if several
    do, and for a component if none does; for a checkpoint or bundle that nobody supplies they raise
    `AssetError`. An error of a plugin's code is a `PluginError` that names the distribution.

    Plugins' `records` are by distribution and entry point; `unknown_names` are the environment
    variables that name no installed plugin, each with that name.
    """

    records: tuple[PluginRecord, ...]
    unknown_names: tuple[tuple[str, str], ...] = ()

    def offers(self, of: type[Item], name: str | None = None, **fields: Any) -> Offers[Item]:
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

    def provider(self, item: ComponentSpec | Asset) -> PluginRecord:
        """The plugin that a record came from; LookupError for a record of another registry."""
        for plugin, own in self.offers(type(item)):
            if item is own:
                return plugin
        raise LookupError(f"{item!r} is not of this registry")

    # Components

    def owners(self, kind: ComponentKind, name: str) -> set[str]:
        """The distributions that supply a component of that name."""
        return {plugin.distribution for plugin, _ in self.offers(ComponentSpec, name, kind=kind)}

    def specs(self, kind: ComponentKind) -> list[ComponentSpec]:
        """Every component of a kind, by name; each claim of a name counts."""
        return sorted((s for _, s in self.offers(ComponentSpec, kind=kind)), key=lambda s: s.name)

    def spec(self, kind: ComponentKind, name: str) -> Any:
        """The record of a component, of the type of its kind, such as `BackendSpec`."""
        if claims := self.offers(ComponentSpec, name, kind=kind):
            return refusals.only(claims, f"{kind} {split(name)[1]!r}", f"--{kind}", name)
        raise refusals.missing_component(self, kind, name)

    def default_loss(self, guider: GuiderSpec) -> TaskLossSpec:
        """The task loss of a guider, preferably of its own distribution."""
        own = f"{self.provider(guider).distribution}:{guider.default_loss}"
        name = own if self.owners("loss", own) else guider.default_loss
        found: TaskLossSpec = self.spec("loss", name)
        return found

    def default_adapters(self, latents: bool = False) -> list[tuple[str, dict[str, Any]]]:
        """Default adapters, or those that read `latents`, with options, reverse alphabetically."""
        every = [spec for _, spec in self.offers(AdapterSpec)]
        specs = [s for s in every if (s.reads_latents if latents else s.default is not None)]
        ordered = sorted(specs, key=lambda spec: spec.name, reverse=True)
        return [(spec.name, dict(spec.default or {})) for spec in ordered]

    def options_class(self, spec: ComponentSpec) -> type[attrs.AttrsInstance] | None:
        """The attrs class of a component's options, if any."""
        if spec.options is None:
            return None
        cls = self._imported(spec, spec.options)
        if isinstance(cls, type) and attrs.has(cls):
            return cls
        fault = f"names {spec.options} as its options, which is no attrs class"
        raise PluginError(f"{self._label(spec)} {fault}")

    def faults(self, spec: ComponentSpec) -> Iterator[str]:
        """What a component names that is not there, or is no use; imports it."""
        problems = Problems()
        problems.attempt(self.options_class, spec)
        factory, who = problems.attempt(self._imported, spec, spec.factory), self._label(spec)
        if factory is not None and not callable(factory):
            problems.add(f"{who} has the factory {spec.factory}, which is no callable")
        if isinstance(spec, AdapterSpec) and spec.default is not None:
            problems.attempt(self.options, spec, spec.default)
        if isinstance(spec, GuiderSpec):
            loss = problems.attempt(self.default_loss, spec)
            if loss and loss.task != spec.task:
                fault = f"has the default loss {loss.name!r}, which is for {loss.task}"
                problems.add(f"{who} does {spec.task} and {fault}")
        cards: Any = self.cards
        needs = getattr(spec, "needs_checkpoint", False)
        if opens := getattr(spec, "opens", None):
            needs = problems.attempt(self._imported, spec, opens) is None
        if needs and not cards(f"{self.provider(spec).distribution}:{spec.name}", spec.kind):
            problems.add(f"{who} needs a checkpoint, and no plugin supplies one")
        yield from (error.message for error in problems.errors)

    def options(self, spec: ComponentSpec, given: Mapping[str, Any]) -> Any:
        """An instance of `options_class`, or None; UsageError with all that is wrong."""
        cls = self.options_class(spec)
        values, problems = read_options(cls, given)
        with calling(self._label(spec), "its options"):
            try:
                if not problems:
                    return cls(**values) if cls else None
            except (TypeError, ValueError) as error:
                problems.append(message_of(error))
        known = ", ".join(fields_of(cls))
        hint = f"its options are {known}" if known else "it has no options"
        raise UsageError(f"{self._label(spec)}: {'; '.join(problems)}", hint=hint)

    def typed(self, spec: ComponentSpec, given: Mapping[str, Any]) -> dict[str, Any]:
        """Options with their values converted; `options` says what is wrong with them."""
        return read_options(self.options_class(spec), given)[0]

    def resolved(
        self, spec: ComponentSpec, given: Mapping[str, Any], *, compared: bool = False
    ) -> dict[str, Any]:
        """Options with defaults, as JSON; without `metadata={"compared": False}` if `compared`."""
        made = self.options(spec, given)
        return {
            name: plain(getattr(made, field.name))
            for name, field in fields_of(None if made is None else type(made)).items()
            if field.metadata.get("compared", True) or not compared
        }

    def make(
        self, spec: ComponentSpec, options: Mapping[str, Any], checkpoint: Checkpoint | None = None
    ) -> Any:
        """Import a component's factory and call it; nothing before this imports torch. PluginError
        if the factory cannot be imported, fails, or makes something else; UsageError for options
        that the component does not take; AssetError if it lacks a checkpoint.
        """
        built, who = self.options(spec, options), self._label(spec)
        takes = isinstance(spec, BackendSpec | GuiderSpec)
        if checkpoint is None and getattr(spec, "needs_checkpoint", False):
            hint = "`ppap plugins info` shows its checkpoints"
            raise AssetError(f"{who} needs a checkpoint", hint=hint)
        factory = self._imported(spec, spec.factory)
        with calling(who, ""):
            made = factory(built, checkpoint) if takes else factory(built)
        border = importlib.import_module("ppap_framework.border")  # imports torch: only now
        if not isinstance(made, getattr(border.components, spec.makes)):
            raise PluginError(f"{who} made a {type(made).__name__}, which is no {spec.makes}")
        with calling(who, ""):
            _ = made.network if spec.kind == "guider" else None
        return border.guarded(made, who)

    def opened(self, spec: BackendSpec, wanted: Any) -> Checkpoint:
        """The checkpoint that the user names, by the backend's own `opens`."""
        opens: Callable[[Any], Checkpoint] = self._imported(spec, spec.opens or "")
        with calling(self._label(spec), "opens"):
            return opens(wanted)

    def wrapper(self, source: object) -> BackendSpec | None:
        """The backend that takes an object of another library, if any."""
        kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(source).__mro__}
        return next((spec for _, spec in self.offers(BackendSpec) if spec.wraps in kinds), None)

    def _imported(self, spec: ComponentSpec, reference: str) -> Any:
        """What "package.module:attribute" names."""
        module, _, attribute = reference.partition(":")
        try:
            with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
                return getattr(importlib.import_module(module), attribute)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit too: no plugin may end the host
            reason, hint = f"cannot be imported from {reference}: {one_line(error)}", TRACEBACK
            if missing := records.missing_dependency(error, reference):
                reason, hint = missing
            raise PluginError(f"{self._label(spec)} {reason}", hint=hint) from error

    def _label(self, spec: ComponentSpec) -> str:
        return f"{records.label(spec)} of {self.provider(spec).distribution}"

    # Files

    def cards(self, component: str, kind: CardKind) -> list[Card]:
        """The checkpoints of a component: its own distribution's first, then by distribution.

        If several claim its name, "distribution:name" leaves out those for the others' components.
        """
        return [card for _, card in self.card_offers(component, kind)]

    def card_offers(self, component: str, kind: CardKind, name: str | None = None) -> Offers[Card]:
        """As `cards`, with this name, and the plugins that supply them."""
        offers = self.offers(Card, name, kind=kind, component=split(component)[1])
        return self._own_first(kind, component, offers)

    def card(self, component: str, kind: CardKind, name: str) -> Card:
        """A checkpoint of the component by name among `cards`, or any as "distribution:name"."""
        distribution, bare = split(name)
        subject = f"{kind} {split(component)[1]!r}"
        if distribution:
            component = split(component)[1]
        if claims := self.card_offers(component, kind, name):
            flag = refusals.CHECKPOINT_FLAGS[kind]
            return refusals.only(claims, f"checkpoint {bare!r} of {subject}", flag, name)
        hint = refusals.card_hint(self, kind, component, bare)
        raise AssetError(f"{subject} has no checkpoint {name!r}", hint=hint)

    def default_card(self, component: str, kind: CardKind) -> Card:
        """The default checkpoint of a component."""
        for card in self.cards(component, kind):
            if card.default:
                return card
        hint = refusals.card_hint(self, kind, component, "")
        raise AssetError(f"{kind} {split(component)[1]!r} has no default checkpoint", hint=hint)

    def every_card(self) -> list[Card]:
        """All checkpoints: by component, then as plugins list them."""
        cards = (card for _, card in self.offers(Card))
        return sorted(cards, key=lambda card: (card.kind, card.component))

    def card_named(self, name: str) -> Card:
        """The checkpoint of that name, of any component."""
        bare = split(name)[1]
        if claims := self.offers(Card, name):
            return refusals.only(claims, f"checkpoint {bare!r}", "", name)
        near = refusals.nearest(bare, [card.name for card in self.every_card()])
        hint = (f"did you mean {near!r}? " if near else "") + "`ppap checkpoints list` shows them"
        raise AssetError(f"no checkpoint is called {name!r}", hint=hint)

    def bundles(self, **of: str) -> list[ExpertBundle]:
        """The bundles of experts, by distribution; of a `backend` and a `guider`, if given."""
        return [bundle for _, bundle in self.offers(ExpertBundle, **of)]

    def bundle(self, name: str) -> ExpertBundle:
        bare = split(name)[1]
        if claims := self.offers(ExpertBundle, name):
            return refusals.only(claims, f"experts {bare!r}", "--experts", name)
        hint = refusals.one_of(bare, [bundle.name for bundle in self.bundles()], "--experts")
        raise AssetError(f"no experts are called {name!r}", hint=hint)

    def default_target(self, guider: str, checkpoint: str) -> DefaultTarget | None:
        """The default target of a guider with a checkpoint, if any."""
        return next((target for _, target in self.target_offers(guider, checkpoint)), None)

    def target_offers(self, guider: str, checkpoint: str) -> Offers[DefaultTarget]:
        of = {"guider": split(guider)[1], "checkpoint": split(checkpoint)[1]}
        return self._own_first("guider", guider, self.offers(DefaultTarget, **of))

    def _own_first(self, kind: CardKind, component: str, offers: Offers[Item]) -> Offers[Item]:
        """Offers for a component, its own distribution's first; suppliers of namesakes left out."""
        owners = self.owners(kind, component)
        rivals = self.owners(kind, split(component)[1]) - owners if owners else set()
        offers = [offer for offer in offers if offer[0].distribution not in rivals]
        return sorted(offers, key=lambda offer: offer[0].distribution not in owners)
