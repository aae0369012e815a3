"""The toy plugin, and commands that are typed in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import commands
import pytest
from commands import Run
from toy_distribution import install, plugged

from ppap_framework.registry import registry


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PPAP_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def every_plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All plugins that are installed, whatever other tests of the module use."""
    monkeypatch.delenv("PPAP_PLUGINS", raising=False)
    registry.cache_clear()
    yield
    registry.cache_clear()


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
