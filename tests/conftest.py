"""Settings of all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import commands
import pytest
from commands import Run
from hypothesis import settings
from toy_distribution import install, plugged

import ppap_framework as ppap
from ppap_framework.run import LoadedBackend

# The first example pays for lazy imports, and machines differ: time is no property of ours.
settings.register_profile("ppap", deadline=None)
settings.load_profile("ppap")

os.environ.pop("COLUMNS", None)  # pytest-xdist's workers set it, and no terminal is here


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Run:
    """Types `ppap ...` in this process."""
    return commands.typed(capsys)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What whoever runs the tests has downloaded or trained is none of theirs."""
    before = os.environ.get("PPAP_CACHE_DIR")
    os.environ["PPAP_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("PPAP_CACHE_DIR")
    if before is not None:
        os.environ["PPAP_CACHE_DIR"] = before


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The toy plugin, and no other: the folder where it is installed."""
    with plugged(install(tmp_path_factory.mktemp("toy") / "site")) as folder:
        yield folder


@pytest.fixture
def run(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Types `ppap ...` in an empty folder, with the toy plugin."""
    monkeypatch.chdir(tmp_path)
    return commands.typed(capsys)


@pytest.fixture(scope="module")
def toy(site: Path) -> LoadedBackend:
    """The toy plugin's backend."""
    return ppap.backend("toy")
