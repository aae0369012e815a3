"""`ppap new` writes plugins whose tests are green before the first edit, and single files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Run, refused
from distributions import REPOSITORY

from ppap_framework.plugin import ComponentKind
from ppap_framework.registry import plugin_file, registry
from ppap_testing import isolated_registry, run_checks
from ppap_testing.checking import suite_of
from ppap_testing.packages import write_file, write_package

KINDS = ("guider", "backend", "loss", "adapter")
TOOL = "tomllib" if sys.version_info >= (3, 11) else "tomli"


def installed(package: Path, site: Path) -> None:
    """Install a package as pip does an editable one: a .pth file and a dist-info folder."""
    project = __import__(TOOL).loads((package / "pyproject.toml").read_text())["project"]
    site.mkdir(exist_ok=True)
    (site / f"{project['name']}.pth").write_text(str(package / "src"))
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    named = f"Name: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\n{named}")
    [(entry, module)] = project["entry-points"]["ppap"].items()
    (info / "entry_points.txt").write_text(f"[ppap]\n{entry} = {module}\n")


def test_new_packages_are_green(tmp_path: Path) -> None:
    site = tmp_path / "site"
    packages = [write_package(kind, f"acme-{kind}", tmp_path) for kind in KINDS]
    for package in packages:
        installed(package, site)
    sources = [*(str(package / "src") for package in packages), str(site)]
    plugins = [str(path) for path in (REPOSITORY / "plugins").glob("*/src")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"]
        + ["--import-mode=importlib", "--rootdir", str(tmp_path)]
        + [str(package / "tests") for package in packages],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*sources, str(REPOSITORY), *plugins]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PPAP_PLUGINS": ",".join(package.name for package in packages),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout
    assert "failed" not in done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_new_files_conform(kind: ComponentKind, tmp_path: Path) -> None:
    with plugin_file(str(write_file(kind, "acme-small", tmp_path))):
        assert registry().spec(kind, "acme-small")
        outcomes = list(run_checks(suite_of(kind, "acme-small", target="0.3")))
    assert [outcome for outcome in outcomes if outcome.status == "failed"] == []
    assert sum(outcome.status == "ok" for outcome in outcomes) > 10


def test_the_command_writes_completely_or_nothing(
    typed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = typed("new", "guider", "my-edges")
    assert (done.code, done.out) == (0, "ppap-plugin-my-edges\n")
    package = tmp_path / "ppap-plugin-my-edges"
    assert (package / ".github/workflows/test.yml").read_text().count("${{ matrix.python }}") == 1
    texts = [path.read_text() for path in package.rglob("*") if path.is_file()]
    assert len(texts) == 12
    assert (package / "LICENSE").read_bytes() == (REPOSITORY / "LICENSE").read_bytes()
    assert not [text for text in texts if "$name" in text or "$package" in text]
    other = tmp_path / "x"
    other.mkdir()
    assert package.stat().st_mode == other.stat().st_mode
    (package / "mine.txt").write_text("kept")
    refused(typed("new", "guider", "my-edges"), 2, "is there already")
    refused(typed("new", "guider", "My Edges"), 2, "lower-case words")
    refused(typed("new", "guider", "none", "--minimal"), 2, "cannot be called 'none'")
    assert (package / "mine.txt").read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ppap-plugin-my-edges", "x"]


@pytest.mark.slow
def test_a_new_guider_is_adapted_by_the_defaults(
    typed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Experts with the default adapters, which read noise better, and a calibrated curve."""
    monkeypatch.syspath_prepend(write_package("guider", "acme-rims", tmp_path) / "src")
    monkeypatch.setenv("PPAP_CACHE_DIR", str(tmp_path / "cache"))
    plugins = ("ppap_plugin_lora", "ppap_plugin_bias", "ppap_plugin_acme_rims")
    with isolated_registry("ppap_testing.fakes_plugin", *(f"{name}.plugin" for name in plugins)):
        made = ("--num", 16, "--workers", 1, "--num-experts", 2, "--iterations", 30)
        done = typed(
            "adapt", "--backend=fake", "--guider=acme-rims", *made, "--out", tmp_path / "o"
        )
        assert done.code == 0, done.err
        shown = json.loads(typed("experts", "inspect", "fake-acme-rims-2", "--json").out)
        run = ("--num", 1, "--steps", 3, "--target", 0.3, "--out", tmp_path / "run")
        assert typed("run", "--backend=fake", "--guider=acme-rims", *run).code == 0
    assert [adapter["name"] for adapter in shown["adapters"]] == ["lora", "bias"]
    assert all(expert["parameters"] > 0 for expert in shown["experts"])
    noisy = shown["metrics"]["experts"][1]
    assert noisy["held_out"] < 0.9 * noisy["untouched"]
    assert all(scale > 0 for scale in shown["curve"]["scales"])
    [guide] = json.loads((tmp_path / "run/run.json").read_text())["config"]["guides"]
    assert guide["experts"]["name"] == shown["name"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_new_packages_are_green_once_installed(kind: str, tmp_path: Path) -> None:
    """With pip, in an environment of their own that sees this one's libraries."""
    pytest.importorskip("hatchling", reason="builds the package; in the extra dev")
    package, environment = write_package(kind, "acme", tmp_path), tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    site = next(environment.glob("lib/python3*/site-packages"))
    # Editable installations are found by .pth files in there, which `addsitedir` reads.
    here = [path for path in sys.path if path.endswith("site-packages")]
    lines = [f"import site; site.addsitedir({path!r})" for path in here]
    (site / "borrowed.pth").write_text("\n".join(lines))
    python = environment / "bin" / "python"
    install = ["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", package]
    plain = {name: value for name, value in os.environ.items() if name != "PPAP_PLUGINS"}
    subprocess.run([python, *install], check=True, env=plain)
    done = subprocess.run([python, "-m", "pytest", "-q"], cwd=package, env=plain, check=False)
    assert done.returncode == 0
