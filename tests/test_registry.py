"""Questions to a registry, and what it answers to those that have no answer."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any, TypeVar

import attrs
import pytest
from distributions import requirements
from hypothesis import assume, given
from hypothesis import strategies as st

from ppap_framework.errors import AssetError, PluginError, PpapError, UsageError
from ppap_framework.plugin import (
    AdapterSpec,
    Asset,
    BackendSpec,
    Card,
    CardKind,
    ComponentKind,
    ComponentSpec,
    DefaultTarget,
    GuiderSpec,
    TaskLossSpec,
)
from ppap_framework.registry import (
    Conflict,
    PluginRecord,
    Registry,
    conflicts,
    discover,
    names,
    suppliers,
)
from ppap_framework.registry.records import Status

Spec = TypeVar("Spec", bound=ComponentSpec)


@pytest.fixture(scope="module", autouse=True)
def _extras() -> Iterator[None]:
    """The extras of pyproject.toml, whatever is installed."""
    with pytest.MonkeyPatch.context() as patch:
        extras = requirements()
        patch.setattr(metadata, "requires", lambda _: extras)
        yield


def made_by(kind: type[Spec], **defaults: Any) -> Callable[..., Spec]:
    """A maker of records of components."""
    fields = {"summary": "", "factory": "acme_parts:make", **defaults}
    return lambda name, **changes: kind(name=name, **(fields | changes))


guider = made_by(GuiderSpec, task="depth", default_loss="likeness")
loss = made_by(TaskLossSpec, task="depth")
backend, adapter = made_by(BackendSpec), made_by(AdapterSpec)


def card(name: str, **changes: Any) -> Card:
    fields = {"component": "depth", "kind": "guider", "summary": "", "licence": "CC0-1.0"}
    file = {"uri": "https://example.org/w", "sha256": None, "size": None, "image_size": 8}
    return Card(name=name, **(fields | file | changes))


def target(text: str, checkpoint: str = "small") -> DefaultTarget:
    return DefaultTarget(guider="depth", checkpoint=checkpoint, text=text)


def record(
    distribution: str,
    *offered: ComponentSpec | Asset,
    status: Status = "ok",
    entry_point: str = "main",
    **changes: Any,
) -> PluginRecord:
    return PluginRecord(
        distribution=distribution,
        version="1.0",
        entry_point=entry_point,
        module="m",
        status=status,
        specs=tuple(item for item in offered if isinstance(item, ComponentSpec)),
        assets=tuple(item for item in offered if not isinstance(item, ComponentSpec)),
        **changes,
    )


def registry_of(*records: PluginRecord) -> Registry:
    return Registry(records)


def refusal(
    ask: Callable[..., object], *arguments: Any, kind: type[PpapError] = PpapError
) -> PpapError:
    """What is said, in one line."""
    with pytest.raises(kind) as raised:
        ask(*arguments)
    assert "\n" not in str(raised.value)
    return raised.value


def refused(registry: Registry, kind: ComponentKind, name: str) -> PpapError:
    return refusal(registry.spec, kind, name, kind=PluginError)


# Names


def test_a_component_by_its_name_and_its_qualified_name() -> None:
    depth = guider("depth")
    registry = registry_of(record("acme", depth), record("beta", loss("depth"), backend("x")))
    for name in ("depth", "acme:depth", "Acme:depth"):
        assert registry.spec("guider", name) is depth
    assert isinstance(registry.spec("loss", "depth"), TaskLossSpec)
    assert registry.provider(depth).distribution == "acme"
    assert (registry.specs("guider"), registry.specs("adapter")) == ([depth], [])
    with pytest.raises(LookupError):
        registry.provider(guider("depth"))


def test_two_claims_are_an_error_only_when_the_name_is_asked_for() -> None:
    one, two, other = guider("depth"), guider("depth"), guider("other")
    registry = registry_of(record("acme", one, other), record("ppap-plugin-midas", two))
    assert registry.spec("guider", "other") is other
    error = refused(registry, "guider", "depth")
    assert error.exit_code == 3
    claims = ("acme:main", "ppap-plugin-midas:main")
    assert error.message == f"guider 'depth' is claimed by 2 plugins: {', '.join(claims)}"
    assert error.hint == "type --guider acme:depth or --guider ppap-plugin-midas:depth"
    assert registry.spec("guider", "acme:depth") is one
    assert registry.spec("guider", "ppap-plugin-midas:depth") is two
    assert conflicts(registry) == [Conflict("guider 'depth'", claims)]


TWICE = [record("acme", guider("depth"), entry_point=name) for name in ("a", "b")]
ACME = record("acme", guider("depth"), guider("zebra"), backend("dpeth"))
LONE = record("acme", guider("depth"))
ADM = record("ppap-plugin-adm", backend("adm"))
BROKEN = record("acme", status="broken", reason="r")
CLAIMED = "guider 'depth' is claimed by 2 plugins: acme:a, acme:b"
KEEP = "keep one: PPAP_DISABLE_PLUGINS=acme:b"
NEAR = "did you mean 'depth'? installed: depth"
NONE = "no guider is installed"
UPDATE = f"pip install --upgrade ppap-plugin-adm; {NONE}"
INSTALL = f"pip install ppap-plugin-segmentation; {NONE}"


@pytest.mark.parametrize(
    ("records", "name", "message", "hint"),
    [
        (TWICE, "depth", CLAIMED, KEEP),
        (TWICE, "acme:depth", CLAIMED, KEEP),
        *(([ACME], typed, "", f"{NEAR}, zebra") for typed in ("dpeth", "Depth", "de_pth", "depht")),
        ([LONE], "acme:dept", "acme supplies no guider called 'dept'", NEAR),
        ([LONE], "beta:depth", "beta supplies no guider called 'depth'", NEAR),
        ([BROKEN], "mine", "", f"{NONE}; `ppap doctor` shows the plugins that failed"),
        ([record("acme", status="disabled")], "mine", "", NONE),
        ([ADM], "adm-classifier", "", UPDATE),
        ([ADM], "adm-clasifier", "", f"did you mean 'adm-classifier'? {UPDATE}"),
        ([], "segmentaton", "", f"did you mean 'segmentation'? {INSTALL}"),
    ],
)
def test_names_that_mean_nothing(
    records: list[PluginRecord], name: str, message: str, hint: str
) -> None:
    error = refused(registry_of(*records), "guider", name)
    assert error.message == (message or f"no installed guider is called {name!r}")
    assert error.hint == hint


@given(name=st.text(max_size=30), kind=st.sampled_from(["backend", "guider", "loss", "adapter"]))
def test_any_unknown_name_is_an_error_with_a_hint(name: str, kind: ComponentKind) -> None:
    assume("mirror" not in name)
    assert refused(registry_of(record("acme", guider("mirror"))), kind, name).hint


def test_the_default_loss_is_rather_the_guiders_own() -> None:
    depth, own, others = guider("depth"), loss("likeness"), loss("likeness")
    acme = record("acme", others)
    assert registry_of(acme, record("midas", depth, own)).default_loss(depth) is own
    assert registry_of(acme, record("midas", depth)).default_loss(depth) is others
    tied = registry_of(record("a", own), record("b", others), record("midas", depth))
    assert "claimed by 2" in refusal(tied.default_loss, depth).message


def test_default_adapters_are_those_that_say_so() -> None:
    bias, lora = adapter("bias", default={}), adapter("lora", default={"rank": 2})
    registry = registry_of(record("a", bias, adapter("full")), record("b", lora))
    assert registry.default_adapters() == [("lora", {"rank": 2}), ("bias", {})]
    assert registry_of(record("a", adapter("full"))).default_adapters() == []


# Which distribution supplies a component that is not installed


def test_every_component_of_this_project_has_an_extra() -> None:
    found = [
        (spec, record.distribution)
        for record in discover().records
        for spec in record.specs
        if record.distribution.startswith("ppap-plugin-") and not isinstance(spec, TaskLossSpec)
    ]
    assert suppliers() == {spec.name: supplier for spec, supplier in found}
    assert suppliers()["depth"] == "ppap-plugin-midas"
    for spec, supplier in found:
        error = refused(registry_of(), spec.kind, spec.name)
        assert error.hint == f"pip install {supplier}; no {spec.kind} is installed"


@pytest.mark.parametrize("status", ["broken", "incompatible", "missing-dependency", "disabled"])
@pytest.mark.parametrize("name", ["depth", "ppap-plugin-midas:depth"])
def test_a_name_whose_plugin_is_not_loaded_gets_the_reason(name: str, status: Status) -> None:
    why = {"reason": "it needs the module timm", "hint": "pip install t"}
    error = refused(registry_of(record("ppap-plugin-midas", status=status, **why)), "guider", name)
    assert f"ppap-plugin-midas, which is {status}: it needs the module timm" in error.message
    assert error.hint == "pip install t"


def test_without_metadata_nothing_is_known_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    assert refused(registry_of(), "guider", "depth").hint == "no guider is installed"


# Cards and default targets


def test_the_own_distributions_cards_come_first() -> None:
    foreign, own, plain = card("foreign", default=True), card("own", default=True), card("plain")
    acme = record("acme", foreign)
    registry = registry_of(acme, record("midas", plain, guider("depth"), own))
    assert registry.cards("depth", "guider") == [plain, own, foreign]
    assert registry.default_card("depth", "guider") is own
    assert registry.cards("depth", "backend") == []
    assert not conflicts(registry)
    registry = registry_of(acme, record("midas", plain, guider("depth")))
    for name in ("depth", "midas:depth"):  # another distribution's default stands in
        assert registry.default_card(name, "guider") is foreign


def test_two_foreign_defaults_are_a_conflict_that_the_first_wins() -> None:
    one, two = card("one", default=True), card("two", default=True)
    registry = registry_of(record("acme", one), record("beta", two), record("m", guider("depth")))
    assert registry.default_card("depth", "guider") is one
    subject, claims = "default checkpoint of guider 'depth'", ("acme:main", "beta:main")
    assert conflicts(registry) == [Conflict(subject, claims, taken="acme:main")]


def test_rivals_for_a_name_keep_their_cards_apart() -> None:
    """Two claim a guider, each with a default card "small"; a third offers cards for either."""
    one, two = card("small", default=True), card("small", default=True)
    ours, theirs, shared = target("ours"), target("theirs"), card("shared")
    registry = registry_of(
        record("acme", guider("depth"), one, ours),
        record("beta", guider("depth"), two, theirs),
        record("cards", shared),
    )
    assert registry.cards("acme:depth", "guider") == [one, shared]
    assert registry.cards("beta:depth", "guider")[0] is two
    for name, own, aim in (("acme:depth", one, ours), ("beta:depth", two, theirs)):
        assert registry.default_card(name, "guider") is own
        assert registry.card(name, "guider", "small") is own
        assert registry.card(name, "guider", "shared") is shared
        assert registry.default_target(name, "small") is aim
    assert registry.card("acme:depth", "guider", "beta:small") is two
    assert [c.subject for c in conflicts(registry)] == ["guider 'depth'"]
    assert "claimed by 2" in refusal(registry.card, "depth", "guider", "small").message


def test_a_third_partys_card_may_still_be_in_conflict_with_a_rivals() -> None:
    registry = registry_of(
        record("acme", guider("depth"), card("small")),
        record("beta", guider("depth"), card("small")),
        record("cards", card("small")),
    )
    said = refusal(registry.card, "beta:depth", "guider", "small")
    assert said.hint == "type --guider-checkpoint beta:small or --guider-checkpoint cards:small"
    assert [c for c in conflicts(registry) if c.subject.startswith("checkpoint")] == [
        Conflict(f"checkpoint 'small' of guider '{name}:depth'", (f"{name}:main", "cards:main"))
        for name in ("acme", "beta")
    ]


def test_two_cards_of_one_name() -> None:
    one, two = card("small"), card("small")
    registry = registry_of(record("acme", one), record("beta", two))
    said = refusal(registry.card, "depth", "guider", "small")
    assert said.hint == "type --guider-checkpoint acme:small or --guider-checkpoint beta:small"
    assert registry.card("depth", "guider", "beta:small") is two
    (conflict,) = conflicts(registry)
    assert conflict.subject == "checkpoint 'small' of guider 'depth'"


def test_cards_by_name() -> None:
    small, large = card("small"), card("large")
    registry = registry_of(record("midas", small, large, guider("depth")))
    assert registry.card("depth", "guider", "large") is large
    assert registry.card("depth", "guider", "midas:large") is large
    said = refusal(registry.card, "depth", "guider", "lagre", kind=AssetError)
    assert said.message == "guider 'depth' has no checkpoint 'lagre'"
    assert said.hint.startswith("did you mean 'large'?")
    assert "small, large" in said.hint
    said = refusal(registry.default_card, "depth", "guider", kind=AssetError)
    assert said.message == "guider 'depth' has no default checkpoint"
    assert "small, large" in said.hint


def test_listings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "registry", lambda: registry)
    parts = [card(name, joined="base+upsampler") for name in ("base", "upsampler")]
    whole = card("whole", component="adm", kind="backend")
    acme = record("acme", guider("depth"), guider("other"), card("small"), *parts, loss("l"))
    beta = record("beta", guider("depth"), card("small"))
    registry = registry_of(acme, beta, record("cards", card("shared"), whole, backend("adm")))
    assert names.list_guiders() == ["acme:depth", "beta:depth", "other"]
    assert (names.list_losses(), names.list_adapters()) == (["l"], [])
    assert names.list_backends() == ["adm"]
    every = ["acme:small", "base+upsampler", "beta:small", "shared", "whole"]
    assert names.list_checkpoints() == every
    assert names.list_checkpoints("depth") == every[:-1]
    assert names.list_checkpoints("acme:depth") == ["base+upsampler", "shared", "small"]
    assert names.list_checkpoints("beta:depth") == ["shared", "small"]
    assert (names.list_checkpoints("adm"), names.list_checkpoints("zebra")) == (["whole"], [])


def test_listings_import_nothing_heavy() -> None:
    code = """if True:
        import sys, typing, ppap_framework as ppap
        from ppap_framework.plugin import ComponentKind
        listed = (ppap.list_backends, ppap.list_guiders, ppap.list_losses, ppap.list_adapters)
        assert [one() for one in (*listed, ppap.list_checkpoints)]
        names = ppap.registry.registry()
        specs = [spec for kind in typing.get_args(ComponentKind) for spec in names.specs(kind)]
        assert any(names.options_class(spec) for spec in specs)
        heavy = {"torch", "timm", "torchvision", "transformers", "diffusers"}
        assert not heavy & sys.modules.keys()"""
    subprocess.run([sys.executable, "-c", code], check=True)


A_FILE = "name a file with --checkpoint PATH"
GUIDERS_FILE = "name a file with --guider-checkpoint PATH"
DEMO = [name.partition(";")[0] for name in requirements() if "'demo'" in name]


ALL = [record(name) for name in DEMO]
OFF = record("ppap-plugin-shapes", status="disabled", hint="unset PPAP_PLUGINS")
MAY = "; ppap-plugin-shapes may have some, but is disabled: unset PPAP_PLUGINS"
SMALL = ", or pip install ppap-framework[demo] for small weights"


@pytest.mark.parametrize(
    ("kind", "component", "installed", "hint"),
    [
        ("backend", "adm", [], f"{A_FILE}{SMALL}"),
        ("backend", "adm", ALL, A_FILE),
        ("backend", "adm", [OFF], f"{A_FILE}{MAY}"),
        ("guider", "ppap-plugin-adm:adm-classifier", ALL, GUIDERS_FILE),
        ("guider", "somebodys-own", [], GUIDERS_FILE),
    ],
)
def test_what_is_installed_is_not_to_be_installed_for_its_weights(
    kind: CardKind, component: str, installed: list[PluginRecord], hint: str
) -> None:
    registry = registry_of(*installed)
    assert refusal(registry.default_card, component, kind).hint == hint
    assert refusal(registry.card, component, kind, "large", kind=AssetError).hint == hint


def test_experts_that_are_not_there() -> None:
    said = refusal(registry_of().bundle, "good", kind=AssetError)
    assert said.hint == "name a file with --experts PATH"


def test_default_targets_follow_the_same_rule() -> None:
    foreign, own, other = target("foreign"), target("own"), target("other", checkpoint="large")
    registry = registry_of(record("acme", foreign), record("midas", guider("depth"), own, other))
    assert registry.default_target("depth", "small") is own
    assert registry.default_target("midas:depth", "midas:large") is other
    assert registry.default_target("depth", "huge") is None
    assert not conflicts(registry)
    tied = registry_of(record("acme", foreign), record("beta", own))
    assert tied.default_target("depth", "small") is foreign
    assert [conflict.taken for conflict in conflicts(tied)] == ["acme:main"]


# Options


@attrs.frozen
class Options:
    rank: int = attrs.field(default=8, validator=[attrs.validators.instance_of(int),
                                                  attrs.validators.gt(0)])  # fmt: skip
    scale: float = attrs.field(default=1.0, converter=float)
    name: str = attrs.field(kw_only=True)
    top: int = attrs.field(default=1)
    _hidden: int = 0
    derived: int = attrs.field(init=False, default=3)

    @top.validator
    def _below_rank(self, attribute: object, value: int) -> None:
        if value > self.rank:
            raise ValueError(f"top must not exceed rank {self.rank}, not {value}")


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module in which factories and options are looked for."""
    module: Any = types.ModuleType("acme_parts")
    module.Options = Options
    monkeypatch.setitem(sys.modules, "acme_parts", module)
    return module


def one(spec: ComponentSpec) -> Registry:
    return registry_of(record("acme", spec))


WITH_OPTIONS = guider("depth", options="acme_parts:Options")
LIKENESS = loss("likeness")


@pytest.mark.usefixtures("parts")
def test_options_from_a_mapping() -> None:
    given = {"rank": "4", "scale": "2.5", "name": "n", "hidden": 2}
    built = one(WITH_OPTIONS).options(WITH_OPTIONS, given)
    assert built == Options(4, 2.5, hidden=2, name="n")
    assert one(WITH_OPTIONS).options_class(WITH_OPTIONS) is Options


WRONG = {"rnak": 4, "derived": 1, "scale": "wide", "rank": -1}


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize(
    ("given", "faults"),
    [
        (WRONG, ["unknown option 'rnak' (did you mean 'rank'?)", "unknown option 'derived'"]),
        (WRONG, ["option 'scale': could not convert string to float: 'wide'"]),
        (WRONG, ["option 'rank': 'rank' must be > 0: -1", "option 'name' is required"]),
        ({"name": "n", "rank": "4.5"}, ["option 'rank': '4.5' is not a whole number"]),
        ({"name": "n", "top": 9}, ["top must not exceed rank 8, not 9"]),
    ],
)
def test_everything_that_is_wrong_is_said_at_once(given: dict[str, Any], faults: list[str]) -> None:
    said = refusal(one(WITH_OPTIONS).options, WITH_OPTIONS, given, kind=UsageError)
    assert said.message.startswith("guider 'depth' of acme: ")
    assert all(fault in said.message for fault in faults)
    assert said.hint == "its options are rank, scale, name, top, hidden"


def test_a_component_without_options() -> None:
    plain = guider("depth")
    assert one(plain).options(plain, {}) is None
    said = refusal(one(plain).options, plain, {"rank": 1}, kind=UsageError)
    assert "unknown option 'rank'" in said.message
    assert said.hint == "it has no options"


@pytest.mark.parametrize("reference", ["acme_parts:WITH", "acme_parts:int"])
def test_options_that_are_no_attrs_class(parts: Any, reference: str) -> None:
    parts.WITH, parts.int = object(), int
    spec = guider("depth", options=reference)
    with pytest.raises(PluginError, match="no attrs class"):
        one(spec).options(spec, {})


# Making components


def test_factories_get_what_their_kind_is_promised(parts: Any) -> None:
    from ppap_framework.components import ExpertAdapter, GuidanceModel

    calls = []

    def factory_of(base: type, **own: object) -> Callable[..., object]:
        concrete = type("Concrete", (base,), {**dict.fromkeys(base.__abstractmethods__), **own})

        def factory(*arguments: object) -> object:
            calls.append(arguments)
            return concrete()

        return factory

    parts.make = factory_of(GuidanceModel, network=Options)
    spec = attrs.evolve(WITH_OPTIONS, needs_checkpoint=False)
    registry = one(spec)
    assert isinstance(registry.make(spec, {"name": "n"}), GuidanceModel)
    checkpoint: Any = object()
    registry.make(spec, {"name": "n"}, checkpoint)
    parts.make = lambda *_: factory_of(GuidanceModel)()
    with pytest.raises(PluginError, match="'Concrete' object has no attribute 'network'"):
        registry.make(spec, {"name": "n"})
    calls.pop()
    parts.make = factory_of(ExpertAdapter)
    lora = adapter("lora")
    assert isinstance(one(lora).make(lora, {}), ExpertAdapter)
    assert calls == [(Options(name="n"), None), (Options(name="n"), checkpoint), (None,)]


@pytest.mark.parametrize("error", [ImportError("libx.so"), SystemExit(1), ValueError("v")])
def test_a_factory_that_cannot_be_imported_names_the_distribution(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    class Finder:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "acme_absent":
                raise error

    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    spec = attrs.evolve(LIKENESS, factory="acme_absent:make")
    said = refused_to_make(spec)
    assert said.message.startswith("loss 'likeness' of acme cannot be imported from acme_")
    assert said.__cause__ is error


def refused_to_make(spec: TaskLossSpec = LIKENESS) -> PpapError:
    return refusal(one(spec).make, spec, {})


def test_a_factory_that_needs_another_library(parts: Any) -> None:
    parts.__getattr__ = lambda _: __import__("flux_capacitor")
    said = refused_to_make()
    assert isinstance(said, PluginError)
    assert "needs the module flux_capacitor, which is not installed" in said.message
    assert said.hint == "pip install flux_capacitor"


OWN = PpapError("no such architecture")


@pytest.mark.parametrize("error", [ValueError("one\ntwo"), OWN, None])
def test_a_factory_that_fails_or_makes_something_else(parts: Any, error: Exception | None) -> None:
    def make(options: object) -> int:
        if error:
            raise error
        return 7

    parts.make = make
    said = refused_to_make()
    if error is OWN:  # what a factory says to people passes
        assert said is OWN
        return
    assert isinstance(said, PluginError)
    fault = "failed: ValueError: one two" if error else "made a int, which is no TaskLoss"
    assert said.message == f"loss 'likeness' of acme {fault}"


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("spec", [backend("adm"), guider("depth")])
def test_what_needs_a_checkpoint_says_so(spec: BackendSpec) -> None:
    said = refusal(one(spec).make, spec, {}, None, kind=AssetError)
    assert "of acme needs a checkpoint" in said.message
