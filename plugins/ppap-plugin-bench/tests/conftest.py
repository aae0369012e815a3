"""The toy plugin, the toy experiments, and their figures, evaluated once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import toy_distribution
from bench_toy import write_experiments

from ppap_plugin_bench import cost, evaluate, read_experiment
from ppap_plugin_bench.experiment import Experiment


@pytest.fixture(scope="session")
def toy_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_distribution.install(tmp_path_factory.mktemp("toy") / "site")


@pytest.fixture(scope="module", autouse=True)
def site(toy_site: Path) -> Iterator[Path]:
    with toy_distribution.plugged(toy_site) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PPAP_CACHE_DIR", str(toy_site.parent / "cache"))
        yield folder


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the experiments and everything that they name."""
    return write_experiments(tmp_path_factory.mktemp("experiments"))


@pytest.fixture(scope="session")
def experiment(home: Path) -> Experiment:
    return read_experiment(home / "toy.toml")


@pytest.fixture(scope="session")
def scene_experiment(home: Path) -> Experiment:
    return read_experiment(home / "scenes.toml")


@pytest.fixture(scope="session")
def results(toy_site: Path, home: Path, experiment: Experiment) -> Path:
    """Figures of the classes; images are in "images" beside them."""
    with toy_distribution.plugged(toy_site):
        command = ["ppap", "evaluate"]
        evaluate(experiment, home / "out", home / "images", device="cpu", command=command)
    return home / "out"


@pytest.fixture(scope="session")
def scene_results(toy_site: Path, home: Path, scene_experiment: Experiment) -> Path:
    """Figures of the scenes; images are in "scene-images" beside them."""
    with toy_distribution.plugged(toy_site), pytest.MonkeyPatch.context() as patch:
        # It takes a new process for each row, and is tested with the other experiment.
        patch.setattr(cost, "peak_memory_of", lambda *given: None)
        evaluate(scene_experiment, home / "scene-out", home / "scene-images", device="cpu")
    return home / "scene-out"
