"""Rows of an experiment whose guides have experts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_distribution
from toy_experts import write_experts

import ppap_framework as ppap
from ppap_framework.checkpoints import save_checkpoint
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.experts import has_experts, keep_bundle
from ppap_framework.files import file_sha256
from ppap_plugin_bench import Row, evaluate, read_experiment, report
from ppap_plugin_bench.blocks import draw, identity
from ppap_plugin_bench.cost import seconds_in_turn
from ppap_plugin_bench.experiment import Experiment
from ppap_plugin_bench.row import Candidate
from ppap_plugin_bench.stand import Stand, Subject

NAMES = ("dark red", "light red", "green", "blue")
SCALES = (20.0, 5.0, 0.005)

FILE = """
backend = "toy"
judge = "colour:judge.safetensors"
reference = "reference.npz"
num = 16
steps = 5
block = 8
[tuning]
num = 8
[timing]
num = 2
rounds = 1
[[rows]]
name = "naive"
guider = "colour"
scales = [0.1, 10.0]
[[rows]]
name = "experts"
guider = "colour"
experts = "kept/mine.experts.safetensors"
scales = [0.1, 10.0]
[[rows]]
name = "calibrated"
guider = "colour"
experts = "kept/mine.experts.safetensors"
scales = ["auto"]
"""


@pytest.fixture(scope="module", autouse=True)
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    site = toy_distribution.install(tmp_path_factory.mktemp("toy") / "site")
    with toy_distribution.plugged(site) as folder:
        yield folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with everything that the experiment names beside it."""
    monkeypatch.setenv("PPAP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    weight = torch.tensor([[0.5, -0.5, -0.5], [1.0, 0.1, 0.0], [-0.5, 1.0, -0.4], [-0.5, -0.5, 1]])
    save_checkpoint(tmp_path / "judge.safetensors", {"weight": weight}, {})
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 3, 8, 8), np.uint8), np.arange(20) % 4
    np.savez("reference.npz", images=images, labels=labels, class_names=np.array(NAMES))
    write_experts(tmp_path / "kept", scales=SCALES)
    (tmp_path / "toy.toml").write_text(FILE)
    return tmp_path


@pytest.fixture
def experiment(home: Path) -> Experiment:
    return read_experiment(home / "toy.toml")


def subject(stand: Stand, name: str, scale: Any) -> Subject:
    (row,) = stand.experiment.chosen([name])
    return Subject(row, stand.guides(row), Candidate(scale, (0.0, 1.0)))


def plan_of(stand: Stand, name: str, scale: Any, num: int = 16) -> Any:
    made = subject(stand, name, scale)
    return stand.run(made.row, made.guides, made.candidate, num=num, seed=0, batch=8)


@pytest.fixture
def stand(experiment: Experiment) -> Stand:
    return Stand.load(experiment, NAMES, "cpu")


class TestFiles:
    def test_take_bundles_from_their_own_folder(
        self, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: Any
    ) -> None:
        monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
        rows = read_experiment(home / "toy.toml").rows
        assert [row.experts for row in rows] == [
            "none",
            *[str(home / "kept" / "mine.experts.safetensors")] * 2,
        ]

    def test_leave_names_as_they_are(self, home: Path) -> None:
        text = FILE.replace("kept/mine.experts.safetensors", "mine")
        (home / "named.toml").write_text(text)
        assert read_experiment(home / "named.toml").rows[1].experts == "mine"

    @pytest.mark.parametrize(
        ("was", "becomes", "says"),
        [
            ('"kept/mine.experts.safetensors"', '"auto"', "a table says which"),
            ("scales = [0.1, 10.0]", 'scales = ["auto", 1]', 'the scale "auto", and no experts'),
            ('scales = ["auto"]', 'scales = ["best"]', "wants finite numbers, not 'best'"),
            ('scales = ["auto"]', 'scales = ["auto", 1, 2]', "calibrated 3"),
            ('experts = "k', 'through = "clean"\nexperts = "k', "nothing to read"),
            ('guider = "colour"\nexperts', "experts", "no guider"),
            ('experts = "k', "experts = 3 #", "experts"),
        ],
    )
    def test_that_are_wrong_are_refused_in_one_line(
        self, home: Path, was: str, becomes: str, says: str
    ) -> None:
        assert was in FILE
        (home / "wrong.toml").write_text(FILE.replace(was, becomes, 1))
        with pytest.raises(UsageError) as caught:
            read_experiment(home / "wrong.toml")
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_calibrated_scale_leaves_nothing_to_choose(self) -> None:
        known: dict[str, Any] = {"name": "a", "guider": "b", "experts": "c"}
        assert not Row(**known, scales=("auto",)).chooses
        assert Row(**known, scales=("auto", 1.0)).chooses
        assert Row(**known, scales=("auto",), intervals=((0, 0.5), (0, 1))).chooses
        assert Row(**known, scales=(1.0,)).chooses


class TestBlocks:
    def test_are_what_the_same_guide_draws_by_itself(self, stand: Stand, home: Path) -> None:
        run = plan_of(stand, "experts", 10.0)
        drawn, counts = draw(run, home / "images")
        again = ppap.sample(
            stand.backend,
            [
                ppap.guide(
                    "colour",
                    target=torch.arange(16) % 4,
                    scale=10.0,
                    experts=home / "kept" / "mine.experts.safetensors",
                )
            ],
            num=16,
            steps=5,
        ).images
        pixels = ((again + 1.0) * 127.5).round().permute(0, 2, 3, 1).numpy()
        assert abs(drawn.astype(int) - pixels).max() <= 1
        assert counts.guide_forwards == 80
        naive, _ = draw(plan_of(stand, "naive", 10.0), home / "images")
        assert (drawn != naive).any()
        assert not has_experts(run.guides[0].guide.model.network)

    def test_are_known_by_the_bundle_and_what_it_says_of_scales(
        self, stand: Stand, home: Path
    ) -> None:
        def known() -> list[str]:
            pairs = (("naive", 10.0), ("experts", 10.0), ("calibrated", "auto"))
            return [json.dumps(identity(plan_of(stand, *pair))) for pair in pairs]

        before = known()
        assert len(set(before)) == 3
        assert "experts" not in before[0]  # as blocks were known that were drawn without
        assert file_sha256(home / "kept" / "mine.experts.safetensors") in before[1]
        assert known() == before
        write_experts(home / "kept", seed=1, scales=SCALES)
        naive, *others = known()
        assert naive == before[0]
        assert not {*others} & {*before}

    def test_of_a_bundle_that_was_replaced_meanwhile_are_not_drawn(
        self, stand: Stand, home: Path
    ) -> None:
        run = plan_of(stand, "experts", 10.0)
        write_experts(home / "kept", seed=1)
        with pytest.raises(AssetError, match="replaced after they were chosen"):
            draw(run, home / "images")
        assert not list((home / "images").glob("*/*.npz"))

    def test_are_read_without_attaching_anything(
        self, stand: Stand, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = plan_of(stand, "experts", 10.0)
        first, _ = draw(run, home / "images")
        (home / "kept" / "mine.experts.safetensors").unlink()
        again, _ = draw(run, home / "images")
        assert (again == first).all()

    def test_an_uncalibrated_bundle_has_no_scale_of_its_own(self, stand: Stand, home: Path) -> None:
        write_experts(home / "kept")
        with pytest.raises(UsageError, match="'calibrated' has no calibrated scales"):
            plan_of(stand, "calibrated", "auto")


def test_time_is_measured_with_experts_attached(stand: Stand) -> None:
    runs = {name: plan_of(stand, name, 1.0, num=2) for name in ("naive", "experts", "calibrated")}
    seconds = seconds_in_turn(runs, 2)
    assert {name: len(found) for name, found in seconds.items()} == dict.fromkeys(runs, 2)
    assert not any(has_experts(run.guides[0].guide.model.network) for run in runs.values())


def test_figures_say_which_experts_guided(experiment: Experiment, home: Path) -> None:
    keep_bundle(write_experts(home, seed=5))  # auto would take it
    (path,) = evaluate(experiment, home / "out", home / "images", rows=["calibrated"], device="cpu")
    row = json.loads(path.read_text())
    assert row["guide"]["experts"] == {
        "name": "mine",
        "sha256": file_sha256(home / "kept" / "mine.experts.safetensors"),
        "num_experts": 3,
        "boundaries": row["guide"]["experts"]["boundaries"],
        "scales": list(SCALES),
    }
    assert len(row["guide"]["experts"]["boundaries"]) == 2
    assert row["chosen"] == {"scale": "auto", "interval": [0.0, 1.0]}
    assert row["cost"]["peak_memory"] is None or row["cost"]["peak_memory"] > 2**26
    written = report(
        home / "out", home / "page.md"
    )  # with a plot over scales, of which it has none
    assert all(path.is_file() for path in written)
    page = (home / "page.md").read_text()
    assert "| calibrated | auto |" in page
    digest = row["guide"]["experts"]["sha256"][:12]
    assert f"calibrated: guided by 3 experts, mine ({digest})." in page
    assert "at the edge" not in page
