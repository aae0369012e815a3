"""Discovery of real distributions, most of them broken, in this process."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from distributions import GOOD, HEADER, Project, good_plugin, plugin
from hypothesis import given
from hypothesis import strategies as st

from ppap_framework import plugin as author_api
from ppap_framework.errors import PluginError
from ppap_framework.plugin import PPAP_API, BackendSpec, Card
from ppap_framework.registry import PluginRecord, Registry, discover, normal
from ppap_framework.registry.discovery import check_api, excluded_by, unknown_names

MAJOR, MINOR = PPAP_API


def guiders(body: str) -> str:
    """A plugin whose `ppap_guiders` does this."""
    return f"{HEADER}\n@hookimpl\ndef ppap_guiders():\n    {body}\n"


def api(line: str) -> str:
    """The good plugin, with this line for its PPAP_API."""
    return GOOD.replace("PPAP_API = (1, 0)", line)


BROKEN = {
    "import-error": ('raise ImportError("libmidas.so.3: cannot open")', "broken", "libmidas.so.3"),
    "syntax-error": ("def", "broken", "SyntaxError"),
    "exits": ("import sys; sys.exit(0)", "broken", "SystemExit: 0"),
    "base-exception": ("raise BaseException('bye')", "broken", "BaseException: bye"),
    "unprintable": (
        "class E(Exception):\n    def __str__(self): raise OSError\nraise E",
        "broken",
        "importing acme_unprintable.plugin: E",
    ),
    "two-lines": ("raise ValueError('one\\ntwo')", "broken", "ValueError: one two"),
    "dependency": ("import flux_capacitor", "missing-dependency", "module flux_capacitor"),
    "submodule": ("import email.nothing", "missing-dependency", "module email.nothing"),
    "own-module": ("import acme_own_module.nothing", "broken", "acme_own_module.nothing"),
    "core-module": ("import ppap_framework.nothing", "broken", "ppap_framework.nothing"),
    "older-major": (api(f"PPAP_API = ({MAJOR - 1}, 9)"), "incompatible", "PPAP_API is (0, 9)"),
    "later-major": (api(f"PPAP_API = ({MAJOR + 1}, 0)"), "incompatible", "PPAP_API is (2, 0)"),
    "later-minor": (api(f"PPAP_API = ({MAJOR}, {MINOR + 1})"), "incompatible", "is (1, 1)"),
    "no-api": (api("del PPAP_API"), "incompatible", "it states no PPAP_API"),
    "list-api": (api("PPAP_API = [1, 0]"), "incompatible", "two whole numbers, not [1, 0]"),
    "text-api": (api("PPAP_API = '1.0'"), "incompatible", "two whole numbers, not '1.0'"),
    "raises": (guiders("raise RuntimeError('no')"), "broken", "ppap_guiders(): RuntimeError: no"),
    "imports": (guiders("import flux_capacitor"), "missing-dependency", "flux_capacitor"),
    "none": (guiders("return None"), "broken", "a list of GuiderSpec, not None"),
    "number": (guiders("return 7"), "broken", "a list of GuiderSpec, not int"),
    "text": (guiders("return 'mirror'"), "broken", "a list of GuiderSpec, not str"),
    "generator": (guiders("yield 7"), "broken", "a list of GuiderSpec, not generator"),
    "dicts": (guiders("return [{'name': 'mirror'}]"), "broken", "one item is dict"),
    "other-kind": (
        guiders("return [AdapterSpec(name='a', summary='', factory='a:b')]"),
        "broken",
        "one item is AdapterSpec",
    ),
    "bad-record": (
        guiders("return [GuiderSpec(name='A b', summary='', factory='a:b', task='', "
                "default_loss='l')]"),
        "broken",
        "name must be lower-case words",
    ),
    "no-name": (
        guiders("return [GuiderSpec(name='none', summary='', factory='a:b', task='', "
                "default_loss='l')]"),
        "broken",
        'neither "none" nor "auto"',
    ),
    "twice": (GOOD.replace("return [Guider", "return 2 * [Guider"), "broken", "'mirror' twice"),
    "arguments": (
        guiders("return []").replace("ppap_guiders()", "ppap_guiders(registry)"),
        "broken",
        "registry",
    ),
    "unknown-hook": (GOOD.replace("ppap_guiders", "ppap_guider"), "broken", "mean 'ppap_guiders'?"),
    "undecorated": (GOOD.replace("@hookimpl", "", 1), "broken", "not decorated with @hookimpl"),
    "no-hooks": (HEADER, "broken", "implements none of"),
    "vision": (
        "raise ModuleNotFoundError(\"No module named 'cv2'\", name='cv2')",
        "missing-dependency",
        "module cv2",
    ),
}  # fmt: skip
HINTS = {
    "dependency": "pip install flux_capacitor",
    "submodule": "pip install --upgrade email",
    "older-major": "pip install --upgrade acme-older-major",
    "later-minor": "pip install --upgrade ppap-framework",
    "no-api": "`PPAP_API = (1, 0)`",
    "vision": "pip install opencv-python",  # modules may differ in name from their distributions
}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A site-packages folder on the path; what is imported from it is forgotten afterwards."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if name.startswith("acme"):
            del sys.modules[name]


def found(site: Path, *projects: Project, strict: bool = False, **environ: str) -> Registry:
    """Install distributions and discover them, and nothing else that is installed."""
    for project in projects:
        project.install(site)
    importlib.invalidate_caches()
    return discover(path=[str(site)], environ=environ, strict=strict or None)


@pytest.mark.parametrize("case", BROKEN)
def test_what_a_plugin_does_wrong_becomes_its_record(site: Path, case: str) -> None:
    source, status, reason = BROKEN[case]
    registry = found(site, plugin(case, source, version="2.5"), good_plugin())
    broken, good = sorted(registry.records, key=lambda record: record.status == "ok")
    assert (broken.name, broken.version) == (f"acme-{case}:{case}", "2.5")
    assert broken.status == status
    assert HINTS.get(case, "") in broken.hint
    assert reason in broken.reason
    assert "\n" not in broken.reason
    assert not broken.specs
    assert good.status == "ok"
    assert [spec.name for spec in good.specs] == ["mirror", "likeness"]


def test_tracebacks_start_in_the_plugin(site: Path) -> None:
    (record,) = found(site, plugin("bad", "import json\njson.loads('{')")).records
    first, second, *_ = [line for line in record.traceback.splitlines() if "File" in line]
    assert "acme_bad/plugin.py" in first
    assert "json" in second
    assert record.traceback.startswith("Traceback (most recent call last):\n")


def test_a_refusal_has_no_traceback(site: Path) -> None:
    (record,) = found(site, plugin("none", BROKEN["none"][0])).records
    assert (record.error, record.traceback) == (None, "")


def test_an_optional_hook_of_another_version_is_left_alone(site: Path) -> None:
    extra = "\n@hookimpl(optionalhook=True)\ndef ppap_samplers(): return [1]\n"
    (record,) = found(site, plugin("extra", GOOD + extra)).records
    assert (record.status, len(record.specs)) == ("ok", 2)


def test_a_keyboard_interrupt_is_nobodys_fault(site: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match=r"plugin .*:slow was being loaded"):
        found(site, plugin("slow", "raise KeyboardInterrupt"))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("acme_lost.nothing", "acme_lost.nothing"),
        ("acme_lost.plugin:nothing", "nothing"),
        ("acme_absent", "acme_absent"),
        ("?!", "importing ?!"),
    ],
)
def test_entry_points_that_lead_nowhere(site: Path, value: str, reason: str) -> None:
    (record,) = found(site, plugin("lost", GOOD, entry_points={"lost": value})).records
    assert record.status == "broken"
    assert reason in record.reason


@pytest.mark.parametrize("content", [b"[ppap]\nno equals sign here", b"[ppap]\n\xff\xfe = x"])
def test_an_unreadable_list_of_entry_points_harms_its_own_distribution_only(
    site: Path, content: bytes
) -> None:
    damaged = attrs.evolve(
        plugin("damaged", GOOD), name="ppap-plugin-damaged", replaced={"entry_points.txt": content}
    )
    good, bad = found(site, damaged, good_plugin()).records
    assert good.status == "ok"
    assert (bad.distribution, bad.status) == ("ppap-plugin-damaged", "broken")
    assert "entry_points.txt cannot be read" in bad.reason


@pytest.mark.parametrize("metadata", [b"", b"Metadata-Version: 2.1\n", b"\xff\xfe\x00", None])
def test_metadata_without_a_name_do_not_hide_a_plugin(site: Path, metadata: bytes | None) -> None:
    nameless = attrs.evolve(good_plugin(), replaced={"METADATA": metadata or b""})
    nameless.install(site)
    if metadata is None:
        (site / "acme_mirror-1.0.dist-info" / "METADATA").unlink()
    (record,) = found(site).records
    assert (record.name, record.version, record.status) == ("acme-mirror:mirror", None, "ok")


def test_the_first_of_one_distribution_on_the_path_counts(site: Path, tmp_path: Path) -> None:
    shadowed = tmp_path / "shadowed"
    shadowed.mkdir()
    good_plugin().install(site)
    plugin("mirror", "raise ImportError", version="0.1").install(shadowed)
    (record,) = discover(path=[str(site), str(shadowed)], environ={}).records
    assert (record.version, record.status) == ("1.0", "ok")


def test_entry_points_are_all_found_in_order(site: Path) -> None:
    one = plugin("one", GOOD, entry_points={"depth": "acme_one.plugin"})
    two = plugin("two", GOOD, entry_points={"depth": "acme_two.plugin"})
    points = {"z": "acme_b.plugin", "a": "acme_b.plugin"}
    registry = found(site, two, one, plugin("b", GOOD, entry_points=points), plugin("b-c", GOOD))
    names = ["acme-b:a", "acme-b:z", "acme-b-c:b-c", "acme-one:depth", "acme-two:depth"]
    assert [record.name for record in registry.records] == names
    assert {record.status for record in registry.records} == {"ok"}


def test_no_plugin_reaches_into_anothers_hooks(site: Path) -> None:
    hook = "\n@hookimpl(wrapper=True)\ndef ppap_guiders():\n    yield\n    return []\n"
    wrapper = HEADER + hook
    registry = found(site, plugin("a-wrapper", wrapper), good_plugin())
    assert [spec.name for spec in registry.specs("guider")] == ["mirror"]


def test_what_a_plugin_prints_stays_off_stdout(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (record,) = found(site, plugin("chatty", f"print('hello')\n{GOOD}")).records
    out, err = capsys.readouterr()
    assert (record.status, out, err) == ("ok", "", "hello\n")


def test_assets_and_backends_arrive(site: Path) -> None:
    source = f"""{HEADER}
@hookimpl
def ppap_backends():
    return (BackendSpec(name="toy", summary="", factory="a:b"),)

@hookimpl
def ppap_assets():
    return [Card(name="toy-8", component="toy", kind="backend", summary="", sha256=None, size=None,
                 uri="package://acme_toy/w.safetensors", licence="CC0-1.0", image_size=8),
            DefaultTarget(guider="mirror", checkpoint="clear", text="me")]
"""
    (record,) = found(site, plugin("toy", source)).records
    assert record.status == "ok"
    assert [type(spec) for spec in record.specs] == [BackendSpec]
    assert [type(asset) for asset in record.assets] == [Card, author_api.DefaultTarget]


# The environment's say in it


@pytest.mark.parametrize(
    ("variable", "word"),
    [
        *(("PPAP_DISABLE_PLUGINS", f" {word} ,") for word in ("acme-exits", "Acme_Exits", "exits")),
        ("PPAP_DISABLE_PLUGINS", " acme.exits:exits ,"),
        ("PPAP_PLUGINS", "mirror"),
    ],
)
def test_a_plugin_that_is_not_wanted_is_not_imported(site: Path, variable: str, word: str) -> None:
    registry = found(site, plugin("exits", "1 / 0"), good_plugin(), **{variable: word})
    assert [record.status for record in registry.records] == ["disabled", "ok"]
    assert registry.records[0].reason == f"by {variable}"
    assert not registry.records[0].failed
    assert not registry.unknown_names
    assert "acme_exits" not in sys.modules


def test_disabling_goes_before_wanting(site: Path) -> None:
    chosen = {"PPAP_PLUGINS": "mirror", "PPAP_DISABLE_PLUGINS": "acme-mirror:mirror"}
    (record,) = found(site, good_plugin(), **chosen).records
    assert record.status == "disabled"


def test_names_that_mean_no_plugin_are_kept(site: Path) -> None:
    chosen = {"PPAP_PLUGINS": "mirror,miror", "PPAP_DISABLE_PLUGINS": "acme-mirror:lost"}
    registry = found(site, good_plugin(), **chosen)
    assert registry.unknown_names == (
        ("PPAP_PLUGINS", "miror"),
        ("PPAP_DISABLE_PLUGINS", "acme-mirror:lost"),
    )


@pytest.mark.parametrize("value", ["1", "true", "yes"])
@pytest.mark.parametrize("case", ["import-error", "older-major", "dependency", "exits"])
def test_strict_raises_the_first_failure(site: Path, case: str, value: str) -> None:
    source, status, reason = BROKEN[case]
    with pytest.raises(PluginError) as raised:
        found(site, plugin(case, source), good_plugin(), PPAP_STRICT_PLUGINS=value)
    assert f"acme-{case}:{case} is {status}" in raised.value.message
    assert reason in raised.value.message
    assert (raised.value.__cause__ is None) == (case == "older-major")


@pytest.mark.parametrize("value", ["", "0", "false", "No"])
def test_strict_can_be_off_and_does_not_mind_a_disabled_plugin(site: Path, value: str) -> None:
    exits = plugin("exits", "1 / 0")
    (record,) = found(site, exits, PPAP_STRICT_PLUGINS=value).records
    assert record.failed
    (record,) = found(site, strict=True, PPAP_DISABLE_PLUGINS="exits").records
    assert record.status == "disabled"


# Rules


WHOLE = st.integers(-1, 4)
NO_VERSIONS = st.one_of(
    *(st.none(), st.text(), st.floats(), st.lists(st.integers(), min_size=2, max_size=2)),
    *(st.tuples(WHOLE), st.tuples(WHOLE, WHOLE, WHOLE), st.tuples(st.floats(), st.floats())),
    *(st.tuples(st.booleans(), st.booleans()), st.tuples(st.text(), st.text())),
)


@given(stated=st.one_of(st.tuples(WHOLE, WHOLE), NO_VERSIONS))
def test_the_interface_is_compatible_backwards_within_a_major_version(stated: object) -> None:
    module = type("module", (), {"PPAP_API": stated})
    whole = isinstance(stated, tuple) and all(type(number) is int for number in stated)
    if whole and stated in [(MAJOR, minor) for minor in range(MINOR + 1)]:
        check_api(module, "acme")
        return
    with pytest.raises(PluginError, match="PPAP_API"):
        check_api(module, "acme")


NAME = st.lists(st.text("abz019", min_size=1, max_size=3), min_size=1, max_size=3)
SEPARATOR = st.sampled_from(["-", "_", ".", "--", "_."])


@given(words=NAME, separator=SEPARATOR, upper=st.booleans(), entry_point=st.sampled_from("xyz"))
def test_a_plugin_is_meant_by_any_spelling_of_its_distribution(
    words: list[str], separator: str, upper: bool, entry_point: str
) -> None:
    record = PluginRecord(
        distribution="-".join(words), version=None, entry_point=entry_point, module="m"
    )
    spelt = separator.join(words)
    spelt = spelt.upper() if upper else spelt
    assert normal(spelt) == record.distribution
    for word in (spelt, entry_point, f"{spelt}:{entry_point}"):
        chosen = {"PPAP_DISABLE_PLUGINS": word}
        assert excluded_by(record, chosen) == "PPAP_DISABLE_PLUGINS"
        assert unknown_names([record], chosen) == ()
    for word in (f"{spelt}-q", f"{spelt}:q", f"q:{entry_point}"):
        chosen = {"PPAP_DISABLE_PLUGINS": word}
        assert excluded_by(record, chosen) is None
        assert unknown_names([record], chosen) == (("PPAP_DISABLE_PLUGINS", word),)
