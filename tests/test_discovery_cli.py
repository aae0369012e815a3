"""The command line in scratch environments where plugins are broken, and torch is not there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from distributions import GOOD, HEADER, Environment, Project, good_plugin, plugin
from toy_distribution import install

from ppap_framework.cli import doctor

TWO_CLAIMS = [plugin("one", GOOD), plugin("two", GOOD)]
SAME_ENTRY_POINT = [
    attrs.evolve(
        good_plugin(),
        name=f"acme-{name}",
        entry_points={"depth": f"acme_{name}.plugin"},
        files={
            path.replace("mirror", name): str(text)
            .replace("mirror", name)
            .replace("likeness", f"{name}-loss")
            for path, text in good_plugin().files.items()
        },
    )
    for name in ("one", "two")
]
HOOK = f"{HEADER}\n@hookimpl\ndef ppap_guiders(): "

CASES: dict[str, tuple[list[Project], str, int]] = {
    name: ([plugin("bad", source)], said, 3)
    for name, source, said in [
        ("import error", "raise ImportError('lib')", "ImportError: lib"),
        ("exit at import", "raise SystemExit(0)", "SystemExit: 0"),
        ("missing dependency", "import flux_capacitor", "pip install flux_capacitor"),
        ("older major", "PPAP_API = (0, 9)", "incompatible"),
        ("later minor", "PPAP_API = (1, 1)", "incompatible"),
        ("no version", "", "incompatible"),
        ("version no tuple", "PPAP_API = [1, 0]", "incompatible"),
        ("hook raises", f"{HOOK} 1 / 0", "ZeroDivisionError"),
        ("hook returns None", f"{HOOK} pass", "not None"),
        ("hook returns a generator", f"{HOOK} yield", "not generator"),
        ("hook returns other records", f"{HOOK} return [1]", "one item is int"),
        ("unknown hook", f"{GOOD}\n@hookimpl\ndef ppap_samplers(): return []", "ppap_samplers"),
    ]
} | {
    "damaged list of entry points": (
        [attrs.evolve(plugin("bad", GOOD), replaced={"entry_points.txt": b"[ppap]\nbad"})],
        "entry_points.txt cannot be read",
        3,
    ),
    "two claims on a name": (TWO_CLAIMS, "guider 'mirror'", 3),
    "two entry points of one name": (SAME_ENTRY_POINT, "acme-two:depth", 0),
}


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    environment = Environment.create(tmp_path / "environment")
    install_torch(environment, "")
    return environment


def install_torch(environment: Environment, start: str) -> None:
    """A torch that starts like this, and otherwise says just enough for the doctor."""
    package = environment.site / "torch"
    package.mkdir(exist_ok=True)
    (package / "__init__.py").write_text(
        start
        + """
class cuda:
    is_available = staticmethod(lambda: False)
class backends:
    mps = cuda
get_num_threads = lambda: 2
__version__ = "2.99"
"""
    )


def together(
    environment: Environment, *commands: list[str]
) -> list[subprocess.CompletedProcess[str]]:
    """Run several commands side by side."""
    started = [environment.start(*command) for command in commands]
    outcomes = [process.communicate(timeout=600) for process in started]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *outcome)
        for process, outcome in zip(started, outcomes, strict=True)
    ]


@pytest.mark.parametrize("case", CASES)
def test_the_doctor_names_what_is_broken(environment: Environment, case: str) -> None:
    projects, said, exit_code = CASES[case]
    for project in [*projects, pond()]:
        project.install(environment.site)
    doctor, listing = together(environment, ["doctor", "--json"], ["plugins", "list", "--json"])
    assert doctor.returncode == exit_code, doctor.stderr
    assert said in doctor.stdout
    report = json.loads(doctor.stdout)
    statuses = {found["plugin"]: found["status"] for found in report["plugins"]}
    assert statuses.pop("acme-mirror:mirror") == "ok"
    assert len(statuses) == len(projects)
    assert bool(report["conflicts"]) == (projects is TWO_CLAIMS)
    assert (set(statuses.values()) == {"ok"}) == (len(projects) == 2)
    assert listing.returncode == 0, listing.stderr
    listed = json.loads(listing.stdout)
    assert "pond" in [component["name"] for component in listed["components"]]
    assert listed["plugins"] == report["plugins"]


def pond() -> Project:
    """The good plugin, with names that no other one has."""
    good = good_plugin()
    renamed = {
        path: source.replace('"mirror"', '"pond"').replace('"likeness"', '"ripple"')
        for path, source in good.files.items()
    }
    return attrs.evolve(good, files=renamed)


def everything_broken() -> list[Project]:
    """The broken plugins of all cases, under names that do not collide."""
    return [
        attrs.evolve(
            project,
            name=f"bad-{number}",
            entry_points={"bad": f"bad_{number}"},
            files={f"bad_{number}.py": project.files["acme_bad/plugin.py"]},
        )
        for number, ([project, *_], _, _) in enumerate(CASES.values())
        if "acme_bad/plugin.py" in project.files and not project.replaced
    ]


def test_every_command_works_with_everything_broken_at_once(
    environment: Environment, tmp_path: Path
) -> None:
    """Installed by pip itself: what the other tests unpack are true wheels."""
    pytest.importorskip("pip", reason="environments made by other installers have no pip")
    projects = [*everything_broken(), *TWO_CLAIMS, pond()]
    wheels = [project.build(tmp_path) for project in projects]
    options = ["--no-index", "--no-deps", "--quiet", "--target", str(environment.site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *wheels], check=True)
    doctor, listing, info, help_ = together(
        environment, ["doctor"], ["plugins", "list"], ["plugins", "info", "pond"], ["--help"]
    )
    assert doctor.returncode == 3
    for project in projects:
        assert project.name in doctor.stdout
    for raised in ("ImportError: lib", "SystemExit: 0", "ZeroDivisionError"):
        assert f"\n{raised}" in doctor.stdout
    assert "conflict: guider 'mirror' of acme-one:one, acme-two:two" in doctor.stdout
    for done in (listing, info, help_):
        assert (done.returncode, done.stderr) == (0, "")
    assert "acme-mirror:mirror" in listing.stdout
    assert "missing-dependency" in listing.stdout
    assert re.search(r"tint +str +'grey'", info.stdout)


def test_a_run_works_with_everything_broken_at_once(tmp_path: Path) -> None:
    import torch

    environment = Environment.create(tmp_path / "environment")
    libraries = Path(torch.__file__).parent.parent
    (environment.site / "torch.pth").write_text(f"{libraries}\n")
    install(environment.site)
    for project in [*everything_broken(), *TWO_CLAIMS]:
        project.install(environment.site)
    steered = ["--backend", "toy", "--guider", "colour", "--target", "green"]
    size = ["--steps", "2", "--num", "1", "--out", "out"]
    done = environment.ppap("run", *steered, *size, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert (environment.folder / "out" / "grid.png").is_file()
    assert "ppap-plugin-toy" in (environment.folder / "out" / "run.json").read_text()
    contested = environment.ppap("run", "--backend", "toy", "--guider", "mirror", "--out", "none")
    assert contested.returncode == 3
    assert "--guider acme-one:mirror or --guider acme-two:mirror" in contested.stderr
    assert not (environment.folder / "none").exists()


def test_a_sound_environment_is_sound(environment: Environment) -> None:
    good_plugin().install(environment.site)
    cache = environment.folder / "cache"
    cache.mkdir()
    (cache / "weights").write_bytes(bytes(2_500_000))
    (cache / "link").symlink_to("weights")
    done = environment.ppap("doctor", "--json", PPAP_CACHE_DIR=str(cache), HF_TOKEN="secret")
    assert done.returncode == 0, done.stderr
    assert "secret" not in done.stdout
    report = json.loads(done.stdout)
    assert report["torch"] == {"version": "2.99", "threads": 2, "device": "cpu"}
    assert report["python"]["executable"] == str(environment.python)
    assert report["caches"][0] == {"path": str(cache), "bytes": 2_500_000}
    assert report["environment"] == {"PPAP_CACHE_DIR": str(cache)}
    assert report["conflicts"] == []
    (plugin_report,) = report["plugins"]
    assert plugin_report["components"] == ["guider mirror", "loss likeness"]


def test_names_in_the_environment_that_mean_nothing_are_reported(environment: Environment) -> None:
    good_plugin().install(environment.site)
    done = environment.ppap("doctor", PPAP_DISABLE_PLUGINS="mirorr")
    assert done.returncode == 0
    assert "PPAP_DISABLE_PLUGINS names 'mirorr'" in done.stdout
    assert "PPAP_DISABLE_PLUGINS" in done.stdout


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ("raise ImportError('libcudart.so.99: no such file')", "libcudart.so.99"),
        ("import os; os.abort()", "exit code -6"),
        ("raise SystemExit(0)", "exit code 0: nothing was said"),
        (None, "No module named 'torch'"),
    ],
)
def test_the_doctor_outlives_torch(environment: Environment, start: str | None, said: str) -> None:
    if start is None:
        (environment.site / "torch" / "__init__.py").unlink()
        (environment.site / "torch").rmdir()
    else:
        install_torch(environment, start)
    good_plugin().install(environment.site)
    as_json, as_text = together(environment, ["doctor", "--json"], ["doctor"])
    assert (as_json.returncode, as_text.returncode) == (1, 1)
    assert said in json.loads(as_json.stdout)["torch"]["error"]
    assert said in as_text.stdout


def test_a_torch_py_in_the_current_folder_is_not_torch(environment: Environment) -> None:
    if sys.version_info < (3, 11):
        pytest.skip("Python 3.10 has no safe path")
    (environment.folder / "torch.py").write_text("raise ImportError('homework')")
    assert environment.ppap("doctor").returncode == 0


def test_the_doctor_reports_what_strict_mode_raises_and_leads_to_a_repair(
    environment: Environment,
) -> None:
    for project in (plugin("bad", "1 / 0"), good_plugin()):
        project.install(environment.site)
    doctor = environment.ppap("doctor", "--json", PPAP_STRICT_PLUGINS="1")
    assert doctor.returncode == 3
    assert json.loads(doctor.stdout)["plugins"][0]["status"] == "broken"
    listing = environment.ppap("--debug", "plugins", "list", PPAP_STRICT_PLUGINS="1")
    assert listing.returncode == 3
    assert not listing.stdout
    assert "\nppap: error: plugin acme-bad:bad is broken: " in listing.stderr
    assert "acme_bad/plugin.py" in listing.stderr
    assert "ZeroDivisionError" in listing.stderr
    assert environment.ppap("doctor", PPAP_DISABLE_PLUGINS="acme-bad").returncode == 0


def test_what_plugins_print_and_say_stays_as_it_is(environment: Environment) -> None:
    plugin("chatty", f"print('hello')\n{GOOD}").install(environment.site)
    plugin("bad", "raise OSError('[Errno 5] [bold]x[/] :smile:')").install(environment.site)
    as_json, as_text = together(environment, ["plugins", "list", "--json"], ["plugins", "list"])
    statuses = [found["status"] for found in json.loads(as_json.stdout)["plugins"]]
    assert statuses == ["broken", "ok"]
    assert as_json.stderr == "hello\n"
    assert "[Errno 5] [bold]x[/] :smile:" in as_text.stdout  # square brackets are not markup


def test_nothing_installed(environment: Environment) -> None:
    listing, info = together(environment, ["plugins", "list"], ["plugins", "info", "depth"])
    assert listing.returncode == 0
    assert "pip install ppap-framework[demo]" in listing.stdout
    assert info.returncode == 3
    assert info.stderr.splitlines() == [
        "ppap: error: no component and no plugin is called 'depth'",
        "hint: pip install ppap-plugin-midas",
    ]


@pytest.fixture
def info(environment: Environment) -> Callable[[str], dict[str, Any]]:
    """What `plugins info NAME --json` says."""

    def ask(name: str) -> dict[str, Any]:
        done = environment.ppap("plugins", "info", name, "--json")
        assert done.returncode == 0, done.stderr
        said: dict[str, Any] = json.loads(done.stdout)
        return said

    return ask


def test_info_by_every_name(
    environment: Environment, info: Callable[[str], dict[str, Any]]
) -> None:
    for project in TWO_CLAIMS:
        project.install(environment.site)
    plugins = [found["plugin"] for found in info("mirror")["components"]]
    assert plugins == ["acme-one:one", "acme-two:two"]
    (one,) = info("acme-two:mirror")["components"]
    assert (one["plugin"], one["task"], one["default_loss"], one["licence"]) == (
        "acme-two:two",
        "reflection",
        "likeness",
        None,
    )
    said = environment.ppap("plugins", "info", "acme-two:mirror").stdout
    assert re.search(r"licence +not stated", said)
    assert [found["plugin"] for found in info("Acme_Two")["plugins"]] == ["acme-two:two"]
    assert [found["plugin"] for found in info("two")["plugins"]] == ["acme-two:two"]


def test_info_on_options_checkpoints_targets_and_experts(
    environment: Environment, info: Callable[[str], dict[str, Any]]
) -> None:
    bundle = """ExpertBundle(name="{}", guider="{}", backend="{}", summary="In fog.", size=None,
                 uri="hf://acme/{}.experts.safetensors", sha256=None, licence="CC0-1.0")"""
    assets = (
        HEADER
        + f"""
@hookimpl
def ppap_backends():
    return [BackendSpec(name="haze", summary="Fog.", factory="acme_glass.parts:Haze")]

@hookimpl
def ppap_assets():
    return [Card(name="clear", component="mirror", kind="guider", summary="Flat glass.", size=7,
                 uri="package://acme_glass/w.safetensors", licence="CC0-1.0", image_size=8,
                 sha256=None, default=True, architecture={{"depth": 1}}),
            {bundle.format("foggy", "mirror", "haze", "fog")},
            {bundle.format("rainy", "window", "rain", "rain")},
            DefaultTarget(guider="mirror", checkpoint="clear", text="me")]
"""
    )
    for project in (plugin("glass", assets), good_plugin()):
        project.install(environment.site)
    (mirror,), (haze,) = (info(name)["components"] for name in ("mirror", "haze"))
    assert mirror["options"] == [{"name": "tint", "type": "str", "default": "'grey'", "help": ""}]
    (card,) = mirror["checkpoints"]
    assert (card["name"], card["plugin"]) == ("clear", "acme-glass:glass")
    assert card["default_target"] == "me"
    for component in (mirror, haze):
        (offered,) = component["experts"]
        assert (offered["name"], offered["plugin"]) == ("foggy", "acme-glass:glass")
        assert (offered["guider"], offered["backend"]) == ("mirror", "haze")
    (glass,) = info("glass")["plugins"]
    assert glass["experts"] == ["foggy", "rainy"]
    assert glass["default_targets"] == ["'me' for mirror with clear"]
    told, doctor = together(environment, ["plugins", "info", "mirror"], ["doctor"])
    for line in (
        *("Flat glass.", "package://acme_glass/w.safetensors"),
        *("foggy", "hf://acme/fog.experts.safetensors"),
    ):
        assert line in told.stdout
    assert "rainy" not in told.stdout
    supplied = " ".join(doctor.stdout.split())
    for what in ("checkpoint clear", "experts foggy", "experts rainy", "default target 'me' for"):
        assert what in supplied


def test_info_on_a_component_whose_options_cannot_be_imported(
    environment: Environment, info: Callable[[str], dict[str, Any]]
) -> None:
    lost = plugin("mirror", GOOD)  # without its acme_mirror.parts
    lost.install(environment.site)
    (mirror,) = info("mirror")["components"]
    assert "acme_mirror.parts" in mirror["options"]
    assert environment.ppap("plugins", "info", "mirror").returncode == 0


def test_colours_as_the_environment_wants(environment: Environment) -> None:
    commands = {
        "plain": environment.ppap("plugins", "info", "nothing"),
        "forced": environment.ppap("plugins", "info", "nothing", FORCE_COLOR="1"),
        "both": environment.ppap("plugins", "info", "nothing", FORCE_COLOR="1", NO_COLOR="1"),
    }
    coloured = {name for name, done in commands.items() if "\x1b[31m" in done.stderr}
    assert coloured == {"forced"}


def guiders(name: str, start: str, *more: str) -> Project:
    """A distribution of guiders, from fields of their records."""
    specs = ", ".join(f"GuiderSpec(**{{**common, **dict({fields})}})" for fields in more)
    return plugin(
        name,
        f"""{HEADER}
common = dict(summary="", task="reflection", default_loss="likeness", needs_checkpoint=False,
              factory="acme_mirror.parts:Mirror")
{start}
@hookimpl
def ppap_guiders():
    return [{specs}]
""",
    )


# fmt: off
FAULTS = {
    "factory": (guiders("odd", "", "name='x', factory='acme_odd.parts:None_'"),
        "guider 'x' of acme-odd cannot be imported from acme_odd.parts:None_"),
    "factory that is none": (guiders("odd", "", "name='x', factory='acme_mirror.parts:__name__'"),
        "guider 'x' of acme-odd has the factory acme_mirror.parts:__name__, which is no callable"),
    "missing options": (guiders("odd", "", "name='x', options='acme_mirror.parts:Opts'"),
        "guider 'x' of acme-odd cannot be imported from acme_mirror.parts:Opts"),
    "options": (guiders("odd", "", "name='x', options='acme_mirror.parts:Loss'"),
        "names acme_mirror.parts:Loss as its options, which is no attrs class"),
    "missing loss": (guiders("odd", "", "name='x', default_loss='z'"),
        "no installed loss is called 'z'"),
    "loss": (guiders("odd", "", "name='x', task='sleep'"),
        "guider 'x' of acme-odd does sleep and has the default loss 'likeness', which is for refl"),
    "checkpoint": (guiders("odd", "", "name='x', needs_checkpoint=True"),
        "guider 'x' of acme-odd needs a checkpoint, and no plugin supplies one"),
    "torch": (guiders("odd", "import torch", "name='x'"),
        "plugin acme-odd:odd imports torch when it is listed"),
    "slow module": (guiders("odd", "import time; time.sleep(1.1)", "name='x'"),
        "plugin acme-odd:odd takes 1.1 s to be listed"),
    "default options": (
        plugin(
            "odd",
            HEADER
            + """
@hookimpl
def ppap_expert_adapters():
    return [AdapterSpec(name="thin", summary="", factory="acme_mirror.parts:Mirror",
                        options="acme_mirror.parts:Options", default={"tnit": 3})]
""",
        ),
        "adapter 'thin' of acme-odd: unknown option 'tnit' (did you mean 'tint'?)",
    ),
}
# fmt: on


@pytest.mark.parametrize("case", FAULTS)
def test_the_doctor_finds_a_fault(environment: Environment, case: str) -> None:
    faulty, said = FAULTS[case]
    for project in (faulty, good_plugin()):
        project.install(environment.site)
    done = environment.ppap("doctor", "--json")
    assert done.returncode == 3, done.stderr
    [fault] = json.loads(done.stdout)["faults"]
    assert said in fault


def test_the_doctor_finds_every_plugin_that_imports_torch(environment: Environment) -> None:
    for name in ("one", "two"):
        guiders(name, "import torch", f"name='{name}'").install(environment.site)
    good_plugin().install(environment.site)
    faults = json.loads(environment.ppap("doctor", "--json").stdout)["faults"]
    assert [fault.split()[1] for fault in faults] == ["acme-one:one", "acme-two:two"]


ENDS = "import os; os._exit(7)"


def test_the_doctor_outlives_components(environment: Environment) -> None:
    odd = guiders("a", "", *(f"name='{x}', factory='acme_a.{x}:Mirror'" for x in ("x", "y", "z")))
    sources = {"x": ENDS, "y": "class Mirror: ...", "z": "1 / 0"}
    files = odd.files | {f"acme_a/{name}.py": text for name, text in sources.items()}
    attrs.evolve(odd, files=files).install(environment.site)
    good_plugin().install(environment.site)
    report = json.loads(environment.ppap("doctor", "--json").stdout)
    assert report["torch"]["version"] == "2.99"
    assert report["faults"] == [
        "importing guider x of acme-a:a ended with exit code 7: nothing was said",
        (
            "guider 'z' of acme-a cannot be imported from acme_a.z:Mirror: "
            "ZeroDivisionError: division by zero"
        ),
    ]


def test_the_doctor_outlives_a_listing(environment: Environment) -> None:
    for project in (plugin("a", ENDS), plugin("b", ENDS), good_plugin()):
        project.install(environment.site)
    as_json, as_text = together(environment, ["doctor", "--json"], ["doctor"])
    assert (as_json.returncode, as_text.returncode) == (3, 3)
    said = "listing it ended with exit code 7: nothing was said"
    found = {one["plugin"]: one for one in json.loads(as_json.stdout)["plugins"]}
    assert {name: (one["status"], one["reason"]) for name, one in found.items()} == {
        "acme-a:a": ("broken", said),
        "acme-b:b": ("broken", said),
        "acme-mirror:mirror": ("ok", ""),
    }
    assert said in " ".join(as_text.stdout.split())


def test_the_doctor_does_not_wait_for_ever(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    for project in (plugin("a", "import time; time.sleep(600)"), good_plugin()):
        project.install(environment.site)
    monkeypatch.setattr(doctor, "_SECONDS", 3)
    monkeypatch.setattr(doctor.sys, "executable", str(environment.python))
    names = ["acme-a:a", "acme-mirror:mirror"]
    answers = doctor._ask("list", names, {"HOME": str(environment.folder)})
    assert answers == {names[0]: "took more than 3 s", names[1]: []}


def test_what_plugins_print_is_no_answer(environment: Environment) -> None:
    chatty = guiders("a", 'import os; print("x"); os.write(1, b"y\\n")', "name='x'")
    for project in (chatty, good_plugin()):
        project.install(environment.site)
    done = environment.ppap("doctor", "--json")
    assert done.returncode == 0, done.stderr
