"""Wheels of all distributions: their members, their metadata, and the same bytes twice."""

from __future__ import annotations

import hashlib
import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from distributions import REPOSITORY
from packaging.requirements import Requirement

pytest.importorskip("hatchling", reason="in the extra dev")
pytest.importorskip("trove_classifiers", reason="hatchling needs it")

tomllib = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
PROJECTS = [
    REPOSITORY,
    *sorted(path.parent for path in REPOSITORY.glob("plugins/*/pyproject.toml")),
]
SECONDS = "1700000000"


def metadata_of(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]


def build(repository: Path, folder: Path, umask: int) -> dict[str, Path]:
    """The wheels of a copy of the repository, by distribution."""
    subprocess.run(
        [sys.executable, "release/wheels.py", str(folder)],
        cwd=repository,
        env={**os.environ, "SOURCE_DATE_EPOCH": SECONDS},
        check=True,
        capture_output=True,
        umask=umask,
    )
    return {path.name.split("-")[0].replace("_", "-"): path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build(REPOSITORY, tmp_path_factory.mktemp("wheels"), 0o022)


@pytest.mark.slow
def test_the_same_bytes_from_another_copy(wheels: dict[str, Path], tmp_path: Path) -> None:
    """In another folder, of other times and permissions, with what Python leaves behind."""
    copy = tmp_path / "copy"
    kept = ["LICENSE", "README.md", "pyproject.toml", ".gitignore", "ppap_framework", "release"]
    for path in [*(REPOSITORY / name for name in kept), *(REPOSITORY / "plugins").glob("*")]:
        target = copy / path.relative_to(REPOSITORY)
        if path.is_dir():
            shutil.copytree(path, target, copy_function=shutil.copyfile)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    for folder in ("ppap_framework", "plugins/ppap-plugin-adm/src/ppap_plugin_adm"):
        (copy / folder / "__pycache__").mkdir(exist_ok=True)
        (copy / folder / "__pycache__" / "left.cpython-310.pyc").write_bytes(b"left")
    again = build(copy, tmp_path / "wheels", 0o077)
    assert again.keys() == wheels.keys()
    for name, path in wheels.items():
        digests = [hashlib.sha256(p.read_bytes()).hexdigest() for p in (path, again[name])]
        assert digests[0] == digests[1], name


def test_every_distribution_has_a_wheel(wheels: dict[str, Path]) -> None:
    assert {*wheels} == {metadata_of(folder)["name"] for folder in PROJECTS}


@pytest.mark.parametrize("folder", PROJECTS, ids=lambda folder: folder.name)
def test_a_wheel_holds_its_own_package_and_its_licence(
    wheels: dict[str, Path], folder: Path
) -> None:
    project = metadata_of(folder)
    name, package = project["name"], project["name"].replace("-", "_")
    with zipfile.ZipFile(wheels[name]) as archive:
        members = archive.namelist()
        [info] = {m.split("/")[0] for m in members if ".dist-info/" in m}
        described = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        licence = archive.read(f"{info}/licenses/LICENSE")
    assert licence == (REPOSITORY / "LICENSE").read_bytes()
    assert {m.split("/")[0] for m in members} == {package, info}
    assert f"{package}/__init__.py" in members
    source = REPOSITORY if folder == REPOSITORY else folder / "src"
    own = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", package],
        cwd=source,
        capture_output=True,
        text=True,
        check=True,
    )
    assert sorted(m for m in members if m.startswith(f"{package}/")) == sorted(own.stdout.split())
    rest = {m.removeprefix(f"{info}/") for m in members if m.startswith(info)}
    assert rest - {"entry_points.txt"} == {"METADATA", "RECORD", "WHEEL", "licenses/LICENSE"}
    assert (described["Name"], described["Version"]) == (name, project["version"])
    assert described["License-Expression"] == "Apache-2.0"
    assert described.get_payload() == (folder / "README.md").read_text()


def test_all_have_one_version_and_one_python() -> None:
    found = [metadata_of(folder) for folder in PROJECTS]
    assert len({(project["version"], project["license"]) for project in found}) == 1
    # A release of Python that the core refuses is no use to a plugin.
    oldest = metadata_of(REPOSITORY)["requires-python"]
    assert all(project["requires-python"] >= oldest for project in found)


def test_lower_bounds_are_the_same_everywhere() -> None:
    """One set of oldest versions is tested, by `make oldest`, so a name has one lower bound."""
    bounds: dict[str, set[str]] = {}
    newer = runpy.run_path(str(REPOSITORY / "release" / "oldest.py"))["NEWER"]
    for folder in (folder for folder in PROJECTS if folder.name not in newer):
        for text in metadata_of(folder)["dependencies"]:
            requirement = Requirement(text)
            if not requirement.name.startswith("ppap-"):
                bounds.setdefault(requirement.name, set()).add(str(requirement.specifier))
    assert {name: found for name, found in bounds.items() if len(found) > 1 or found == {""}} == {}


def test_extras_bring_distributions_of_this_repository(wheels: dict[str, Path]) -> None:
    for extra, brought in metadata_of(REPOSITORY)["optional-dependencies"].items():
        ours = {r.name for r in map(Requirement, brought) if r.name.startswith("ppap-")}
        assert ours <= {*wheels}, extra


# What a host of repositories and those who cite read


def loaded(path: str) -> Any:
    return yaml.safe_load((REPOSITORY / path).read_text(encoding="utf-8"))


def test_the_citation_has_the_version_and_the_paper() -> None:
    cited = loaded("CITATION.cff")
    project = metadata_of(REPOSITORY)
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    [paper] = cited["references"]
    assert [author["family-names"] for author in paper["authors"]] == (
        ["Go", "Lee", "Kim", "Lee", "Jeong", "Lee", "Choi"]
    )
    assert paper["identifiers"][0]["value"] == "arXiv:2212.05973"


def test_workflows_run_targets_that_exist() -> None:
    jobs = loaded(".github/workflows/test.yml")["jobs"].values()
    steps = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    assert "make test" in steps  # the test command of the README
    targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    for step in steps:
        program, *asked = step.split()
        assert program == "make"
        assert {*asked} <= {*targets}
    oldest = metadata_of(REPOSITORY)["requires-python"].removeprefix(">=")
    matrix = next(job for job in jobs if "strategy" in job)["strategy"]["matrix"]["python"]
    assert matrix[0] == oldest


def test_bug_reports_ask_for_the_doctor() -> None:
    form = loaded(".github/ISSUE_TEMPLATE/bug.yml")
    asked = {entry["id"]: entry for entry in form["body"]}
    assert "ppap doctor --json" in asked["doctor"]["attributes"]["label"]
    assert all(entry["validations"]["required"] for entry in asked.values())
