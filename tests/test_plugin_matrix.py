"""Each plugin in an environment of its own: only its wheel, the core's, and what they declare.

The wheels are built here and installed by pip from a folder, without an index. Packages of others
are borrowed: an environment sees links to those that the metadata of its wheels ask for, directly
and through each other, in the environment that runs the tests. This shows that wheels are complete,
that what they import is declared, that one plugin works without the others, and that the commands
of its README do what they say. It does not show that an index has those packages, that pip finds
versions that go together, nor that other versions than the borrowed ones work.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterable
from email.parser import Parser
from importlib import metadata
from pathlib import Path
from typing import Any

import attrs
import pytest
from distributions import REPOSITORY
from packaging.requirements import Requirement

pytest.importorskip("hatchling", reason="in the extra dev")
pytest.importorskip("trove_classifiers", reason="hatchling needs it")

PLUGINS = sorted(path.parent.name for path in REPOSITORY.glob("plugins/*/pyproject.toml"))
SHORT = {
    "RUN": {"STEPS": "2", "NUM": "1"},
    "ADAPT": {"STEPS": "1", "NUM": "8", "ITERATIONS": "20", "CALIBRATE": "0", "WORKERS": "1"},
}
"""Options of commands in READMEs, by which they take seconds."""

NEEDS_MORE = {
    "ppap-plugin-bench": "an experiment's file",
    "ppap-plugin-diagnose": "a backend and a guider",
    "ppap-plugin-diffusers": "a pipeline",
    "ppap-plugin-flow": "torchvision's weights and a picture",
    "ppap-plugin-hub": "a repository to share experts in",
    "ppap-plugin-likeness": "networks of the hub and pictures",
    "ppap-plugin-machines": "trainings of several machines",
    "ppap-plugin-released": "the released files",
}
"""What the commands of a README need that is not here."""

LACKING = {"ppap-plugin-adm", "ppap-plugin-glide"}
"""Those with the guider `adm-classifier`, whose loss comes with `ppap-plugin-classifier`."""


@attrs.frozen
class Environment:
    """A virtual environment without pip, in which the pip that runs the tests installs."""

    folder: Path
    index: Path

    @classmethod
    def create(cls, folder: Path, index: Path) -> Environment:
        venv.EnvBuilder(symlinks=True).create(folder)
        return cls(folder, index)

    @property
    def site(self) -> Path:
        return next(self.folder.glob("lib/python3*/site-packages"))

    def run(self, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a program of this environment, which sees no other."""
        path = os.pathsep.join([str(self.folder / "bin"), "/usr/bin", "/bin"])
        return subprocess.run(
            [*map(str, arguments)],
            cwd=self.folder,
            env={
                "PATH": path,
                "HOME": str(self.folder),
                "OMP_NUM_THREADS": "1",
                "PPAP_CACHE_DIR": str(self.folder / "cache"),
                **variables,
            },
            capture_output=True,
            text=True,
            check=False,
        )

    def pip(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        python = self.folder / "bin" / "python"
        return self.run(sys.executable, "-m", "pip", "--python", python, *arguments)

    def install(self, *names: str) -> None:
        """Install our wheels from the folder; links to others' packages are there before."""
        borrowed = self.folder / "borrowed"
        borrowed.mkdir(exist_ok=True)
        for distribution in _needed(names, self.index):
            for top in {file.parts[0] for file in distribution.files or ()}:
                source = Path(str(distribution.locate_file(top)))
                if top != ".." and not (borrowed / top).exists():
                    (borrowed / top).symlink_to(source)
        (self.site / "borrowed.pth").write_text(str(borrowed))
        done = self.pip("install", "-q", "--no-index", "--find-links", self.index, *names)
        assert done.returncode == 0, done.stderr

    def is_whole(self) -> None:
        checked = self.pip("check")
        assert checked.returncode == 0, checked.stdout

    def ppap(self, *arguments: object, **variables: str) -> str:
        """What `ppap` prints, which has to succeed."""
        done = self.run(self.folder / "bin" / "ppap", *arguments, **variables)
        assert done.returncode == 0, (arguments, done.stdout[-3000:], done.stderr[-3000:])
        return done.stdout

    def works(self, *expected: str, lacks: str = "") -> dict[str, Any]:
        """The doctor's report, after pip found nothing missing, and plugins are those expected.
        The doctor finds nothing wrong, except that components of others that are not here lack.
        """
        self.is_whole()
        done = self.run(self.folder / "bin" / "ppap", "doctor", "--json")
        report: dict[str, Any] = json.loads(done.stdout)
        assert (report["conflicts"], report["experts"]) == ([], [])
        assert all(lacks and lacks in fault for fault in report["faults"]), report["faults"]
        assert done.returncode == (3 if lacks else 0)
        listed = json.loads(self.ppap("plugins", "list", "--json"))
        assert {plugin["plugin"].split(":")[0] for plugin in listed["plugins"]} == {*expected}
        assert all(plugin["status"] == "ok" for plugin in listed["plugins"])
        return report


def _needed(names: Iterable[str], index: Path) -> list[metadata.Distribution]:
    """The installed distributions of others that our wheels need, directly or not."""
    todo, found, seen = [Requirement(name) for name in names], {}, set()
    while todo:
        wanted = todo.pop()
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        if (key := (name, *sorted(wanted.extras))) in seen:
            continue
        seen.add(key)
        if name.startswith("ppap-"):
            [wheel] = index.glob(f"{name.replace('-', '_')}-*.whl")
            requires = _requires(wheel)
        else:
            found[name] = metadata.distribution(name)
            requires = found[name].requires or []
        for text in requires:
            more = Requirement(text)
            extras = ["", *wanted.extras]
            if more.marker is None or any(more.marker.evaluate({"extra": e}) for e in extras):
                todo.append(more)
    return [*found.values()]


def _requires(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist", [])


def card(plugin: str) -> list[list[str]]:
    """The first commands of a README, beginning with `pip install`, as words."""
    text = (REPOSITORY / "plugins" / plugin / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^    pip install .*\n(?:    .*\n)*", text, re.MULTILINE)
    assert block is not None, f"the README of {plugin} does not say how to install it"
    return [shlex.split(line, comments=True) for line in block[0].replace("\\\n", "").splitlines()]


def plugins_among(environment: Environment) -> set[str]:
    """Installed distributions of ours that supply components."""
    infos = environment.site.glob("ppap_*.dist-info")
    supplying = (i for i in infos if "[ppap]" in _text(i / "entry_points.txt"))
    return {info.name.split("-")[0].replace("_", "-") for info in supplying}


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel of every distribution."""
    folder = tmp_path_factory.mktemp("index")
    command = [sys.executable, "release/wheels.py", str(folder)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    return folder


@pytest.mark.slow
def test_the_core_alone(index: Path, tmp_path: Path) -> None:
    environment = Environment.create(tmp_path / "environment", index)
    environment.install("ppap-framework")
    report = environment.works()
    assert report["commands"] == {}
    assert "demo" in environment.ppap("plugins", "list")
    done = environment.run(environment.folder / "bin" / "ppap", "run", "--backend", "adm")
    assert done.returncode == 3
    assert "pip install ppap-plugin-adm" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_plugin_alone(index: Path, tmp_path: Path, plugin: str) -> None:
    """It and the core, and of ours only what it requires."""
    environment = Environment.create(tmp_path / "environment", index)
    environment.install(plugin)
    supplying = plugins_among(environment)
    environment.works(*supplying, lacks="cross-entropy" if plugin in LACKING else "")
    for name in supplying & {plugin}:
        assert name in environment.ppap("plugins", "info", name)


@pytest.mark.slow
@pytest.mark.parametrize("plugin", PLUGINS)
def test_its_own_tests(index: Path, tmp_path: Path, plugin: str) -> None:
    """Beside it are what tests need, the extra `dev` of the core, and of ours what both require."""
    environment = Environment.create(tmp_path / "environment", index)
    environment.install("ppap-framework[dev]", plugin)
    configuration = ("-c", REPOSITORY / "pyproject.toml", "-p", "no:cacheprovider")
    tests = REPOSITORY / "plugins" / plugin / "tests"
    # The current folder is the environment's, so what is ours comes from its wheels.
    python = environment.folder / "bin" / "python"
    done = environment.run(python, "-m", "pytest", "-q", *configuration, tests)
    print(done.stdout[-9000:], done.stderr[-3000:])  # counts, and why tests were skipped
    assert done.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("plugin", PLUGINS)
def test_the_commands_of_its_readme(index: Path, tmp_path: Path, plugin: str) -> None:
    """In an environment with what its README installs, and nothing else."""
    (_, _, *names), *commands = card(plugin)
    assert plugin in [name.partition("[")[0] for name in names]
    environment = Environment.create(tmp_path / "environment", index)
    environment.install(*names)
    environment.is_whole()
    if plugin in NEEDS_MORE:
        return
    variables = {
        f"PPAP_{command}_{option}": value
        for command, options in SHORT.items()
        for option, value in options.items()
    }
    for program, *arguments in commands:
        done = environment.run(environment.folder / "bin" / program, *arguments, **variables)
        assert done.returncode == 0, (arguments, done.stdout[-3000:], done.stderr[-3000:])


@pytest.mark.slow
def test_all_together(index: Path, tmp_path: Path) -> None:
    environment = Environment.create(tmp_path / "environment", index)
    environment.install("ppap-framework[demo,eval]", *PLUGINS)
    report = environment.works(*plugins_among(environment))
    assert {"evaluate", "bench", "report", "new", "experts.import"} <= report["commands"].keys()


@pytest.mark.slow
def test_an_extra_brings_its_plugin(index: Path, tmp_path: Path) -> None:
    environment = Environment.create(tmp_path / "environment", index)
    environment.install("ppap-framework[depth]")
    assert "ppap-plugin-midas" in plugins_among(environment)
