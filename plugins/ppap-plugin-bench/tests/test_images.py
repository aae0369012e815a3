"""Kept images: what they are, and what they are known by."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from bench_toy import NAMES, write_experiments
from PIL import Image
from toy_distribution import write_experts

import ppap_framework as ppap
from ppap_framework.diffusion import Process, timesteps_for
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.experts import ScaleCurve, has_experts, write_curve
from ppap_framework.files import file_sha256
from ppap_framework.learn import calibrate, kept_curve
from ppap_framework.noise import cosine_schedule
from ppap_framework.run import Compute, Plan, Sampling, counts_of, drawing
from ppap_framework.runtime import Progress
from ppap_plugin_bench import Experiment, cost, read_experiment
from ppap_plugin_bench.curves import elucd
from ppap_plugin_bench.images import draw_batch, draw_images, identity
from ppap_plugin_bench.setup import Setup


def plan_of(setup: Setup, name: str, scale: Any, num: int = 16, **settings: Any) -> Plan:
    (row,) = setup.experiment.chosen([name])
    return setup.plan(row, scale, **{"num": num, "batch": 8, **settings})


def sampled(guides: Any, num: int, **given: Any) -> Any:
    """Pixels that sampling in one batch gives."""
    settings = {"steps": 5, "sampler": "ddim", "batch": num, "device": "cpu", **given}
    images = ppap.sample("toy", guides, num=num, **settings).images
    return ((images + 1.0) * 127.5).permute(0, 2, 3, 1).numpy()


class TestOfClasses:
    @pytest.fixture
    def setup(self, experiment: Experiment) -> Setup:
        return Setup.load(experiment, NAMES, "cpu")

    @pytest.fixture
    def plan(self, setup: Setup) -> Plan:
        return plan_of(setup, "guided", "raw:100", num=20)

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
        for scale in ("raw:0.001", "raw:100", "raw:0.002"):
            draw_images(plan_of(setup, "guided", scale, num=4, batch=4), tmp_path)
        assert len(list(tmp_path.iterdir())) == 3
        draw_images(plan_of(setup, "guided", "raw:0.001", num=8, batch=4), tmp_path)
        assert len(list(tmp_path.iterdir())) == 3  # more of the same are added

    def test_of_other_prompts_are_others(self, setup: Setup, tmp_path: Path) -> None:
        drawn = {}
        for prompt in ("brighter", "darker", None):
            told = attrs.evolve(setup.experiment.rows[0], prompt=prompt)
            plan = setup.plan(told, num=6, batch=4)
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
        with drawing(setup.plan(experiment.rows[0], num=3, batch=3)) as draw:
            images, lost = draw_batch(draw, range(3))
        assert lost["broken"] == 3
        assert (images == 128).all()


class TestOfScenes:
    @pytest.fixture
    def setup(self, scene_experiment: Experiment) -> Setup:
        return Setup.load(scene_experiment, NAMES, "cpu")

    def test_aim_at_the_picture(self, setup: Setup, home: Path, tmp_path: Path) -> None:
        drawn, _ = draw_images(plan_of(setup, "guided", "raw:300", num=12, batch=6), tmp_path)
        for index in (1, 9):
            pixels = np.load(home / "scenes.npz")["images"][index % 8].transpose(1, 2, 0)
            guide = ppap.guide("grey", target=Image.fromarray(pixels), scale=300.0)
            assert np.abs(drawn[index] - sampled([guide], 12)[index]).max() <= 1.0

    def test_of_several_guides_follow_all_at_once(self, setup: Setup) -> None:
        (row,) = setup.experiment.chosen(["together"])
        plan = setup.plan(attrs.evolve(row, interval=(0.2, 0.9)), "raw:3", num=8, batch=8)
        assert [guide.name for guide in plan.guides] == ["together-grey", "together-colour"]
        assert [guide.scale for guide in plan.guides] == ["raw:300.0", "raw:60.0"]
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

    def test_are_known_by_guides_and_scales(self, setup: Setup) -> None:
        plans = [
            plan_of(setup, name, scale, num=4)
            for name in ("guided", "together")
            for scale in ("raw:0.1", "raw:3")
        ]
        assert len({json.dumps(identity(plan)) for plan in plans}) == 4

    def test_a_multiplier_is_of_a_calibrated_curve(
        self, scene_experiment: Experiment, tmp_path: Path
    ) -> None:
        """The curve is found once, and is that of `calibrate`."""
        setup = Setup.load(scene_experiment, NAMES, "cpu", tmp_path)
        plan = plan_of(setup, "guided", 8.0)
        (curve,) = (guide.curve for guide in plan.guides)
        (file,) = tmp_path.iterdir()
        before = file.stat().st_mtime_ns
        (guide,) = setup.guides(setup.experiment.chosen(["guided"])[0])
        assert curve == calibrate(setup.backend, guide, num=64, batch=8, device="cpu")
        again = Setup.load(scene_experiment, NAMES, "cpu", tmp_path)
        assert plan_of(again, "guided", 2.0).guides[0].curve == curve
        assert file.stat().st_mtime_ns == before

    def test_take_their_memory_in_a_process_that_reads_the_scenes(
        self, scene_experiment: Experiment
    ) -> None:
        (together,) = scene_experiment.chosen(["together"])
        threads = torch.get_num_threads()
        peak = cost._draw_alone(threads, scene_experiment, together, NAMES, "cpu")
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
        experiment = read_experiment(home / "experts.toml")
        return Setup.load(experiment, NAMES, "cpu", home / "curves")

    def test_are_what_the_same_guide_draws_by_itself(
        self, setup: Setup, home: Path, bundle: Path
    ) -> None:
        plan = plan_of(setup, "experts", "raw:10")
        drawn, _ = draw_images(plan, home / "images")
        target = torch.arange(16) % 4
        guide = ppap.guide("colour", target=target, scale=10.0, experts=bundle)
        assert abs(drawn.astype(int) - sampled([guide], 16).round()).max() <= 1
        assert counts_of(plan).guide_forwards == {"experts": 80}
        naive, _ = draw_images(plan_of(setup, "naive", "raw:10"), home / "images")
        assert (drawn != naive).any()
        assert not has_experts(plan.guides[0].model.network)

    def test_are_known_by_the_bundle_and_what_it_says_of_scales(
        self, setup: Setup, home: Path, bundle: Path
    ) -> None:
        def known(setup: Setup) -> list[str]:
            pairs = (("naive", "raw:10"), ("experts", "raw:10"), ("other", "raw:10"))
            return [json.dumps(identity(plan_of(setup, *pair))) for pair in pairs]

        before = known(setup)
        assert len(set(before)) == 3
        assert file_sha256(bundle) in before[1]
        assert file_sha256(bundle) not in before[0]
        assert known(setup) == before
        write_experts(home / "kept", seed=1, scales=(20.0, 5.0, 0.005))
        naive, *others = known(Setup.load(setup.experiment, NAMES, "cpu", home / "curves"))
        assert naive == before[0]
        assert not {*others} & {*before}

    def test_of_a_bundle_that_was_replaced_are_read_and_not_drawn(
        self, setup: Setup, home: Path
    ) -> None:
        plan = plan_of(setup, "experts", "raw:10")
        first, _ = draw_images(plan, home / "images")
        write_experts(home / "kept", seed=1)
        again, _ = draw_images(plan, home / "images")
        assert (again == first).all()
        with pytest.raises(AssetError, match="replaced after they were chosen"):
            draw_images(plan, home / "others")
        assert not list((home / "others").glob("*/*.npz"))

    def test_time_is_measured_with_experts_attached(self, setup: Setup) -> None:
        plans = [plan_of(setup, name, "raw:1", num=2) for name in ("naive", "experts", "other")]
        seconds = cost.seconds_in_turn(plans, 2)
        assert [len(taken) for taken in seconds] == [2, 2, 2]
        assert not any(has_experts(plan.guides[0].model.network) for plan in plans)

    def test_a_multiplier_is_of_a_curve_that_no_bundle_gets(
        self, setup: Setup, home: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The bundle stays as it is; the untouched network is calibrated by itself."""
        calls, before = [], bundle.read_bytes()

        def found(backend: Any, guide: Any, file: Path | None, **more: Any) -> ScaleCurve:
            assert guide.experts is None
            assert not more["write"]
            calls.append(file)
            return ScaleCurve((0.0,), (float(len(calls)),), (0.1,), guide.loss_record)

        monkeypatch.setattr("ppap_framework.learn.calibration.calibrate", found)
        for again in (setup, Setup.load(setup.experiment, NAMES, "cpu", home / "curves")):
            for number, name in enumerate(("naive", "experts"), start=1):
                guide = plan_of(again, name, 8.0).guides[0]
                assert guide.curve is not None
                assert guide.curve.scales == (number,)
                assert guide.scale == 8.0
                assert plan_of(again, name, "raw:1").guides[0].curve is None
        assert calls == [None, bundle]  # once each
        assert bundle.read_bytes() == before
        assert len(list((home / "curves").iterdir())) == 2
        # The code of a plugin without a version may change, so its curve is found anew.
        assert guide.origin is not None
        origin = attrs.evolve(guide.origin, version=None)
        changing = attrs.evolve(guide, experts=None, origin=origin)
        for _ in range(2):
            kept_curve(setup.backend, changing, Sampling(), Compute(batch=8), home / "curves")
        assert calls == [None, bundle, None, None]

    def test_a_bundle_with_a_curve_of_its_own_has_that(
        self, setup: Setup, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ppap_framework.learn.calibration.calibrate", None)
        own = ScaleCurve((-1.0, 1.0), (0.5, 8.0), (0.1, 0.1))
        write_curve(bundle, own)
        assert plan_of(setup, "experts", 8.0).guides[0].curve == own
        assert identity(plan_of(setup, "experts", 8.0))["guides"][0]["curve"] == attrs.asdict(own)

    def test_a_guide_that_cannot_be_calibrated_is_refused(
        self, setup: Setup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*given: Any, **more: Any) -> None:
            raise UsageError("guide 'colour' cannot be calibrated: it is blind")

        monkeypatch.setattr("ppap_framework.learn.calibration.calibrate", refuse)
        with pytest.raises(UsageError, match=r"row 'naive'.*it is blind.*raw:4"):
            plan_of(setup, "naive", 8.0)
        plan_of(setup, "naive", "raw:8")


class TestSchedule:
    @pytest.mark.parametrize("steps", [1, 2, 5, 25])
    def test_of_elucd_moves_the_mean_as_published(self, steps: int) -> None:
        """Its curve times the variance of a step is v_i + 0.3 sin(pi i / S) max v."""
        schedule = cosine_schedule(1000)
        process = Process(schedule, timesteps_for(1000, steps))
        curve = elucd(process)
        variance = process.posterior_variance.clone()
        variance[0] = variance[min(1, steps - 1)] if steps > 1 else process.betas[0]
        for index in range(steps):
            found = variance[index] * curve.at(process.level(index, 1)).squeeze()
            wave = 0.3 * math.sin(math.pi * index / steps) * variance.max()
            assert found.item() == pytest.approx((variance[index] + wave).item(), rel=1e-6)
