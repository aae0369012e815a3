"""Kept images: what they are, and what they are known by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from bench_toy import NAMES, write_experiments
from PIL import Image
from toy_experts import write_experts

import ppap_framework as ppap
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.experts import RangeScales, ScaleCurve, has_experts, write_curve
from ppap_framework.files import file_sha256
from ppap_framework.run import Plan, counts_of, drawing
from ppap_framework.runtime import Progress
from ppap_plugin_bench import Experiment, cost, read_experiment
from ppap_plugin_bench.images import draw_batch, draw_images, identity
from ppap_plugin_bench.row import Candidate
from ppap_plugin_bench.setup import Setup

EVERYWHERE = (0.0, 1.0)


def plan_of(setup: Setup, name: str, scale: Any, num: int = 16, **settings: Any) -> Plan:
    (row,) = setup.experiment.chosen([name])
    given = {"num": num, "seed": 3, "batch": 8, **settings}
    return setup.plan(row, Candidate(scale, given.pop("interval", EVERYWHERE)), **given)


def sampled(guides: Any, num: int, **given: Any) -> Any:
    """Pixels that sampling in one batch gives."""
    settings = {"steps": 5, "seed": 3, "batch": num, "device": "cpu", **given}
    images = ppap.sample("toy", guides, num=num, **settings).images
    return ((images + 1.0) * 127.5).permute(0, 2, 3, 1).numpy()


class TestOfClasses:
    @pytest.fixture
    def setup(self, experiment: Experiment) -> Setup:
        return Setup.load(experiment, NAMES, "cpu")

    @pytest.fixture
    def plan(self, setup: Setup) -> Plan:
        return plan_of(setup, "guided", 100.0, num=20)

    def test_are_what_sampling_gives(self, plan: Plan, tmp_path: Path) -> None:
        images, lost = draw_images(plan, tmp_path)
        guide = ppap.guide("colour", target=np.arange(20) % 4, scale=100.0)
        assert np.abs(images - sampled([guide], 20)).max() <= 1.0
        assert lost == {"skipped": 0, "broken": 0}
        with drawing(plan) as draw:
            draw_batch(draw, range(20))
        (guide_counts,) = draw.statistics.guides
        assert draw.statistics.denoiser_forwards == counts_of(plan).denoiser_forwards == 100
        assert counts_of(plan).guide_forwards == {"guided": 100}
        assert guide_counts.forwards == guide_counts.backwards == 100

    def test_outlive_a_kill_at_any_moment(self, plan: Plan, tmp_path: Path) -> None:
        images, lost = draw_images(plan, tmp_path / "whole")
        kept = tmp_path / "killed"

        def kill(now: Progress) -> None:
            if now.done == 16:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            draw_images(plan, kept, progress=kill)
        batches = sorted(kept.glob("*/*.npz"))
        assert len(batches) == 2
        batches[0].write_bytes(batches[0].read_bytes()[:100])  # not even a torn file matters
        untouched = batches[1].stat().st_mtime_ns
        again, total = draw_images(plan, kept)
        assert (again == images).all()
        assert total == lost
        assert batches[1].stat().st_mtime_ns == untouched

    def test_of_other_settings_lie_elsewhere(self, setup: Setup, tmp_path: Path) -> None:
        for scale in (0.001, 100.0, 0.002):
            draw_images(plan_of(setup, "guided", scale, num=4, batch=4), tmp_path)
        assert len(list(tmp_path.iterdir())) == 3
        draw_images(plan_of(setup, "guided", 0.001, num=8, batch=4), tmp_path)
        assert len(list(tmp_path.iterdir())) == 3  # more of the same are added

    def test_of_other_prompts_are_others(self, setup: Setup, tmp_path: Path) -> None:
        drawn = {}
        for prompt in ("brighter", "darker", None):
            told = attrs.evolve(setup.experiment.rows[0], prompt=prompt)
            plan = setup.plan(told, num=6, seed=3, batch=4)
            drawn[prompt], _ = draw_images(plan, tmp_path)
            again, _ = draw_images(plan, tmp_path)
            assert (again == drawn[prompt]).all()
        assert len(list(tmp_path.glob("*/*.npz"))) == 6
        assert np.abs(drawn["brighter"] - sampled((), 6, prompt="brighter")).max() <= 1.0
        means = [drawn[prompt].mean() for prompt in ("darker", None, "brighter")]
        assert means == sorted(set(means))

    def test_say_what_was_not_finite(
        self, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TOY_BROKEN", "1")
        setup = Setup.load(experiment, NAMES, "cpu")
        with drawing(setup.plan(experiment.rows[0], num=3, seed=0, batch=3)) as draw:
            images, lost = draw_batch(draw, range(3))
        assert lost["broken"] == 3
        assert (images == 128).all()


class TestOfScenes:
    @pytest.fixture
    def setup(self, scene_experiment: Experiment) -> Setup:
        return Setup.load(scene_experiment, NAMES, "cpu")

    def test_aim_at_the_picture(self, setup: Setup, home: Path, tmp_path: Path) -> None:
        drawn, _ = draw_images(plan_of(setup, "guided", 300.0, num=12, batch=6), tmp_path)
        for index in (1, 9):
            pixels = np.load(home / "scenes.npz")["images"][index % 8].transpose(1, 2, 0)
            guide = ppap.guide("grey", target=Image.fromarray(pixels), scale=300.0)
            assert np.abs(drawn[index] - sampled([guide], 12)[index]).max() <= 1.0

    def test_of_several_guides_follow_all_at_once(self, setup: Setup) -> None:
        plan = plan_of(setup, "together", 3.0, num=8, interval=(0.2, 0.9))
        assert [guide.name for guide in plan.guides] == ["together-grey", "together-colour"]
        assert [guide.scale for guide in plan.guides] == [300.0, 60.0]
        assert all(guide.interval == (0.2, 0.9) for guide in plan.guides)
        assert setup.targets.scenes is not None
        pictures = [Image.fromarray(image) for image in setup.targets.scenes.images[:8]]
        levels = np.stack([np.asarray(picture.convert("L")) for picture in pictures])
        grey, colour = (guide.target.value for guide in plan.guides if guide.target)
        assert torch.equal(grey, torch.from_numpy(levels) / 127.5 - 1.0)
        assert colour.tolist() == setup.targets.classes(8).tolist()
        with drawing(plan) as draw:
            draw_batch(draw, range(8))
        acting = sum(0.2 <= t / 100 < 0.9 for t in plan.process.timesteps)
        assert [guide.forwards for guide in draw.statistics.guides] == [8 * acting] * 2

    def test_are_known_by_scenes_guides_and_whether_they_tune(self, setup: Setup) -> None:
        plans = [
            plan_of(setup, name, scale, num=4, tuning=tuning)
            for name in ("guided", "together")
            for scale in (0.1, 3.0)
            for tuning in (False, True)
        ]
        assert len({json.dumps(identity(plan)) for plan in plans}) == 8

    def test_of_experts_are_all_as_they_were_calibrated(
        self, home: Path, scene_experiment: Experiment
    ) -> None:
        path = write_experts(home / "kept", scales=(20.0, 5.0, 0.005))
        (together,) = scene_experiment.chosen(["together"])
        colour = attrs.evolve(together.guides[1], experts=str(path))
        made = attrs.evolve(together, guides=(colour,), scales=("auto",), objective=("hit",))
        changed = attrs.evolve(scene_experiment, rows=(made,), baselines=())
        plan = Setup.load(changed, NAMES, "cpu").plan(
            made, made.candidates[0], num=2, seed=0, batch=2
        )
        assert isinstance(plan.guides[0].curve, RangeScales)
        assert plan.guides[0].curve.values == (20.0, 5.0, 0.005)
        assert identity(plan)["guides"][0]["curve"] == [20.0, 5.0, 0.005]
        curve = ScaleCurve((-1.0, 1.0), (0.5, 8.0), (0.1, 0.1))
        write_curve(path, curve)
        plan = Setup.load(changed, NAMES, "cpu").plan(
            made, made.candidates[0], num=2, seed=0, batch=2
        )
        assert identity(plan)["guides"][0]["curve"] == attrs.asdict(curve)

    def test_take_their_memory_in_a_process_that_reads_the_scenes(
        self, scene_experiment: Experiment
    ) -> None:
        (together,) = scene_experiment.chosen(["together"])
        threads, candidate = torch.get_num_threads(), together.candidates[0]
        peak = cost._draw_alone(threads, scene_experiment, together, candidate, NAMES, "cpu")
        assert peak is None or peak > 2**26


class TestOfExperts:
    @pytest.fixture
    def home(self, tmp_path: Path) -> Path:
        write_experts(tmp_path / "kept", scales=(20.0, 5.0, 0.005))
        return write_experiments(tmp_path)

    @pytest.fixture
    def bundle(self, home: Path) -> Path:
        return home / "kept" / "mine.experts.safetensors"

    @pytest.fixture
    def setup(self, home: Path) -> Setup:
        return Setup.load(read_experiment(home / "experts.toml"), NAMES, "cpu")

    def test_are_what_the_same_guide_draws_by_itself(
        self, setup: Setup, home: Path, bundle: Path
    ) -> None:
        plan = plan_of(setup, "experts", 10.0)
        drawn, _ = draw_images(plan, home / "images")
        target = torch.arange(16) % 4
        guide = ppap.guide("colour", target=target, scale=10.0, experts=bundle)
        assert abs(drawn.astype(int) - sampled([guide], 16).round()).max() <= 1
        assert counts_of(plan).guide_forwards == {"experts": 80}
        naive, _ = draw_images(plan_of(setup, "naive", 10.0), home / "images")
        assert (drawn != naive).any()
        assert not has_experts(plan.guides[0].model.network)

    def test_are_known_by_the_bundle_and_what_it_says_of_scales(
        self, setup: Setup, home: Path, bundle: Path
    ) -> None:
        def known(setup: Setup) -> list[str]:
            pairs = (("naive", 10.0), ("experts", 10.0), ("calibrated", "auto"))
            return [json.dumps(identity(plan_of(setup, *pair))) for pair in pairs]

        before = known(setup)
        assert len(set(before)) == 3
        assert file_sha256(bundle) in before[1]
        assert file_sha256(bundle) not in before[0]
        assert known(setup) == before
        write_experts(home / "kept", seed=1, scales=(20.0, 5.0, 0.005))
        naive, *others = known(Setup.load(setup.experiment, NAMES, "cpu"))
        assert naive == before[0]
        assert not {*others} & {*before}

    def test_of_a_bundle_that_was_replaced_are_read_and_not_drawn(
        self, setup: Setup, home: Path
    ) -> None:
        plan = plan_of(setup, "experts", 10.0)
        first, _ = draw_images(plan, home / "images")
        write_experts(home / "kept", seed=1)  # it has no calibrated scales
        again, _ = draw_images(plan, home / "images")
        assert (again == first).all()
        with pytest.raises(AssetError, match="replaced after they were chosen"):
            draw_images(plan, home / "others")
        assert not list((home / "others").glob("*/*.npz"))
        with pytest.raises(UsageError, match="'calibrated' has no calibrated scales"):
            plan_of(setup, "calibrated", "auto")

    def test_time_is_measured_with_experts_attached(self, setup: Setup) -> None:
        plans = [plan_of(setup, name, 1.0, num=2) for name in ("naive", "experts", "calibrated")]
        seconds = cost.seconds_in_turn(plans, 2)
        assert [len(taken) for taken in seconds] == [2, 2, 2]
        assert not any(has_experts(plan.guides[0].model.network) for plan in plans)
