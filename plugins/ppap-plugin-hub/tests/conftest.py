"""The toy plugin with experts and a set, and a Hub on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import commands
import hub_server
import pytest
import toy_distribution
from commands import Run
from hub_server import Hub

from ppap_framework.data import synthesize


@pytest.fixture(scope="session")
def toy_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy plugin, and this one's entry points, as an installation leaves them."""
    site = toy_distribution.install(tmp_path_factory.mktemp("hub-toy") / "site")
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    groups = project.split("[project.entry-points.")[1:]
    folder = site / "ppap_plugin_hub-0.1.0.dist-info"
    folder.mkdir()
    text = "".join("[" + group.split("[tool")[0].replace('"', "") for group in groups)
    (folder / "entry_points.txt").write_text(text)
    (folder / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: ppap-plugin-hub\nVersion: 0.1.0\n"
    )
    return site


@pytest.fixture(scope="module", autouse=True)
def site(toy_site: Path) -> Iterator[Path]:
    with toy_distribution.plugged(toy_site) as folder:
        yield folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for each test, and no token and no address of anybody."""
    for name in [n for n in os.environ if n.startswith(("HF_", "AWS_", "HUGGING_FACE"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PPAP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def bundle(toy_site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with toy_distribution.plugged(toy_site):
        return toy_distribution.write_experts(tmp_path_factory.mktemp("bundles"), "mine")


@pytest.fixture(scope="session")
def other(toy_site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other experts of the same name."""
    with toy_distribution.plugged(toy_site):
        return toy_distribution.write_experts(tmp_path_factory.mktemp("others"), "mine", seed=1)


@pytest.fixture(scope="session")
def drawn(toy_site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of ten images in three shards."""
    out = tmp_path_factory.mktemp("drawn") / "set"
    with toy_distribution.plugged(toy_site):
        synthesize("toy", out=out, num=10, steps=2, batch=2, shard=4, seed=5)
    return out


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Run:
    return commands.typed(capsys)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A Hub on this machine, as HF_ENDPOINT would name it, and a token that may write to it."""
    from huggingface_hub import constants

    with hub_server.serving() as served:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
        monkeypatch.setattr(constants, "ENDPOINT", served.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.address + template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", hub_server.WRITE)
        yield served
