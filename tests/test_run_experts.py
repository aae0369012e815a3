"""Experts that guide: which are chosen, what they change, and that they leave nothing behind."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from toy_distribution import SIZE, TIMESTEPS, install, plugged, shifts, start, write_experts
from toy_distribution import ppap as ppap_process

import ppap_framework as ppap
from ppap_framework.cli import main
from ppap_framework.components import DiffusionBackend, GuidanceModel
from ppap_framework.diffusion import NoiseSource, Process, ddim_step, timesteps_for
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.experts import (
    BundleFile,
    ExpertSet,
    ScaleCurve,
    choose_experts,
    experts_dir,
    has_experts,
    keep_bundle,
    load_bundle,
    read_bundle_info,
    same_experts,
    verify_bundle,
    write_curve,
)
from ppap_framework.experts.bundle import write_bundle
from ppap_framework.files import file_sha256
from ppap_framework.guidance import Guide, Through
from ppap_framework.run import Plan, Sampling, counts_of, draw, plan
from ppap_framework.run.plan import DEFAULT_MULTIPLIER, DEFAULT_SCALE

Toy = DiffusionBackend
NUM, STEPS, SCALE = 3, 12, 4.0
INTERVAL = 0.0, 0.7  # above, any pull drives the toy out of range, where all images are alike


@pytest.fixture(scope="module", autouse=True)
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with plugged(install(tmp_path_factory.mktemp("toy") / "site")) as folder:
        yield folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PPAP_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def toy(site: Path) -> DiffusionBackend:
    return ppap.backend("toy")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Not where it is found by name."""
    return write_experts(tmp_path / "aside")


@pytest.fixture
def curved(tmp_path: Path) -> Path:
    """A bundle with scales of ranges, and a curve exp(log-SNR / 2) between -2 and 4."""
    path = write_experts(tmp_path / "curved", "curved", scales=(20.0, 5.0, 1.0))
    write_curve(path, ScaleCurve((-2.0, 4.0), (math.exp(-1.0), math.exp(2.0)), (0.1, 0.1)))
    return path


def green(scale: Any = SCALE, **changes: Any) -> Guide:
    given = {"interval": INTERVAL} | changes
    return ppap.guide("colour", target="green", scale=scale, **given)


def of_model(model: GuidanceModel, **changes: Any) -> Guide:
    given = {"scale": SCALE, "loss": "toy-cross-entropy"} | changes
    return ppap.guide(model, target="green", interval=INTERVAL, **given)


def sampled(toy: Toy, *guides: Guide, **changes: Any) -> ppap.Result:
    settings = {"num": NUM, "steps": STEPS, "sampler": "ddim", "batch": 2}
    return ppap.sample(toy, guides, **settings | changes)


def planned(toy: Toy, *guides: Guide, num: int = NUM, **changes: Any) -> Plan:
    return plan(toy, guides, num, Sampling(**{"steps": STEPS} | changes))


def state_of(model: GuidanceModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def untouched(model: GuidanceModel, before: dict[str, Tensor]) -> bool:
    after = model.network.state_dict()
    equal = all(torch.equal(after[name], tensor) for name, tensor in before.items())
    return equal and after.keys() == before.keys() and not has_experts(model.network)


def by_hand(
    toy: Toy,
    scales: tuple[float, ...],
    number: int = 3,
    seed: int = 0,
    curve: Callable[[float], float] = lambda log_snr: 1.0,
    predicted: int = 0,
) -> Tensor:
    """The images when the weight of expert floor(t N / T) looks at timestep t, pulling with that
    expert's scale times the curve: PPAP's equation, with nothing of `experts` or `guidance` in it.
    The first `predicted` experts look at the predicted image.
    """
    stage = toy.stages[0]
    process = Process(stage.schedule, timesteps_for(TIMESTEPS, STEPS), stage.variance)
    model = green(experts="none").model
    weight, own = next(model.network.parameters()).detach(), shifts(number, seed)
    images = []
    for image in range(NUM):
        noise = NoiseSource(0, image)
        x = noise((1, 3, SIZE, SIZE))
        for index in reversed(range(len(process))):
            t, drawn = process.timesteps[index], noise((1, 3, SIZE, SIZE))
            expert = t * number // TIMESTEPS
            prediction = stage.denoise(x, torch.tensor([t]), None)
            prediction = prediction.with_x0(prediction.x0.clamp(-1.0, 1.0))
            with torch.enable_grad():
                seen = (prediction.x0 if expert < predicted else x).detach().requires_grad_()
                logits = 10.0 * seen.mean((2, 3)) @ (weight + own[expert]).T
                energy = nn.functional.cross_entropy(logits, torch.tensor([2]))
                (gradient,) = torch.autograd.grad(energy, seen)
            with torch.no_grad():
                scale = scales[expert] * curve(stage.schedule.log_snr[t].item())
                pull = -scale * gradient if t / TIMESTEPS < INTERVAL[1] else None
                x, _ = ddim_step(process, index, prediction, drawn, pull)
        images.append(x.clamp(-1.0, 1.0))
    return torch.cat(images)


class TestGuiding:
    def test_is_the_loop_that_switches_experts(self, toy: Toy, bundle: Path) -> None:
        drawn = sampled(toy, green(experts=bundle)).images
        assert torch.allclose(drawn, by_hand(toy, (SCALE,) * 3), atol=1e-5)
        assert (drawn.abs() < 0.95).all()  # far from where all images would be alike
        without = sampled(toy, green(experts="none")).images
        assert (drawn - without).abs().max() > 0.05
        at_once = sampled(toy, green(experts=bundle), batch=NUM).images
        assert torch.allclose(
            sampled(toy, green(experts=bundle), batch=1).images, at_once, atol=1e-5
        )

    @pytest.mark.parametrize(
        ("reads", "through", "predicted"),
        [("detached", "detached", 3), ("detached", None, 3), (None, None, 2)],
    )
    def test_experts_of_predicted_images(
        self, toy: Toy, tmp_path: Path, reads: str | None, through: Through | None, predicted: int
    ) -> None:
        looks = ["detached"] * predicted + ["noisy"] * (3 - predicted)
        path = write_experts(tmp_path, through=reads or looks)
        result = sampled(toy, green(experts=path), through=through, compare=True)
        by_them = by_hand(toy, (SCALE,) * 3, predicted=predicted)
        assert torch.allclose(result.images, by_them, atol=1e-5)
        assert result.plan.looks == {*looks}
        assert list(result.plan.guides[0].each_through) in (looks, looks[:1])
        for look, same in ("noisy", True), ("detached", False):
            bare = sampled(toy, green(experts="none"), through=look).images
            assert torch.allclose(result.pictures["naive"].images, bare, atol=1e-5) == same
            assert (result.images - bare).abs().max() > 0.05

    def test_each_guide_looks_at_what_its_experts_read(self, toy: Toy, tmp_path: Path) -> None:
        guides = [
            attrs.evolve(
                green(experts=write_experts(tmp_path, f"of-{reads}", through=reads)), name=reads
            )
            for reads in ("noisy", "detached")
        ]
        planned_guides = planned(toy, *guides).guides
        assert [guide.through for guide in planned_guides] == ["noisy", "detached"]
        both = sampled(toy, *guides).images
        for guide in guides:
            assert (sampled(toy, guide).images - both).abs().max() > 0.05

    def test_scales_of_earlier_versions_are_not_used(self, toy: Toy, tmp_path: Path) -> None:
        path = write_experts(tmp_path, scales=(20.0, 5.0, 1.0))
        drawn = sampled(toy, green(None, experts=path)).images
        assert torch.allclose(drawn, by_hand(toy, (DEFAULT_SCALE,) * 3), atol=1e-5)
        with pytest.raises(UsageError, match="has no calibrated curve for its loss") as caught:
            planned(toy, green("auto", experts=path))
        assert "ppap experts calibrate" in caught.value.hint

    def test_a_number_multiplies_the_curve(self, toy: Toy, curved: Path) -> None:
        drawn = sampled(toy, green(3.0, experts=curved)).images
        hand = by_hand(toy, (3.0,) * 3, curve=lambda x: math.exp(min(max(x, -2.0), 4.0) / 2))
        assert torch.allclose(drawn, hand, atol=1e-5)
        raw = sampled(toy, green(f"raw:{SCALE}", experts=curved)).images
        assert torch.allclose(raw, by_hand(toy, (SCALE,) * 3), atol=1e-5)
        default = sampled(toy, green(None, experts=curved))
        assert default.plan.guides[0].scale == DEFAULT_MULTIPLIER
        for scale in ("auto", DEFAULT_MULTIPLIER):
            again = sampled(toy, green(scale, experts=curved)).images
            assert torch.equal(again, default.images)

    @pytest.mark.parametrize("calibrated", [False, True])
    def test_compared_with_the_untouched_network(
        self, toy: Toy, tmp_path: Path, calibrated: bool
    ) -> None:
        """Naive images are those of a run without experts, pulled as hard; nothing else changes."""
        path = write_experts(tmp_path)
        if calibrated:
            write_curve(path, ScaleCurve((0.0,), (SCALE / DEFAULT_MULTIPLIER,), (0.1,)))
        scale = "auto" if calibrated else SCALE
        alone, naive = sampled(toy, green(scale, experts=path)), sampled(toy, green(experts="none"))
        both = sampled(toy, green(scale, experts=path), compare=True)
        assert torch.equal(both.images, alone.images)
        assert torch.equal(both.pictures["naive"].images, naive.images)
        assert torch.equal(both.pictures["unguided"].images, sampled(toy).images)
        assert not torch.equal(naive.images, alone.images)
        assert both.stats.guidance == alone.stats.guidance
        counts, once = counts_of(both.plan).guide_forwards, counts_of(alone.plan).guide_forwards
        assert counts == {"colour": 2 * once["colour"]}
        assert both.save(tmp_path / "out") is not None
        record = json.loads((tmp_path / "out" / "run.json").read_text())
        assert [entry["naive"]["file"] for entry in record["images"]] == [
            f"naive/00{i}.png" for i in range(NUM)
        ]
        assert (tmp_path / "out" / "naive" / "002.png").is_file()
        assert sampled(toy, green(experts="none"), compare=True).naive is None
        both.save(tmp_path / "out", overwrite=True)
        naive.save(tmp_path / "out", overwrite=True)
        assert not (tmp_path / "out" / "naive" / "002.png").exists()

    @pytest.mark.parametrize("every", [1, 2, 3])
    def test_a_step_at_which_no_guide_looks_costs_nothing(self, toy: Toy, every: int) -> None:
        run = planned(toy, green(), guide_every=every)
        acting = [t for t in reversed(run.process.timesteps) if t < 70][::every]
        assert 0 < len(acting) < STEPS
        assert counts_of(run).guide_forwards == {"colour": NUM * len(acting)}
        (spent,) = sampled(toy, green(), guide_every=every).stats.guidance.guides
        assert spent.forwards == NUM * len(acting)
        assert list(spent.times) == [t / TIMESTEPS for t in acting]

    def test_the_untouched_network_reads_clean_images(self, toy: Toy, bundle: Path) -> None:
        result = sampled(toy, green(experts=bundle), compare=True)
        plain = green(experts="none")
        assert plain.target is not None
        for drawn in (result.guided, result.pictures["unguided"]):
            energy = plain.loss.energy(plain.model(drawn.images), plain.target.value)
            assert torch.allclose(drawn.seen["colour"].figures["energy"], energy, atol=1e-6)

    def test_two_guides_with_experts_each(self, toy: Toy, tmp_path: Path) -> None:
        paths = [write_experts(tmp_path, name, seed=k) for k, name in enumerate(("a", "b"))]
        guides = [green(experts=p, name=f"g{k}") for k, p in enumerate(paths)]
        both = sampled(toy, *guides).images
        swapped = [green(experts=p, name=f"g{k}") for k, p in enumerate(reversed(paths))]
        assert torch.allclose(both, sampled(toy, *swapped).images)
        assert not torch.allclose(both, sampled(toy, guides[0]).images, atol=0.01)

    def test_guides_of_one_model_share_its_experts(self, toy: Toy, bundle: Path) -> None:
        first = green(experts=bundle, name="first")
        second = of_model(first.model, loss=first.loss, name="second", experts=bundle)
        shared = sampled(toy, first, second).images
        assert torch.allclose(shared, by_hand(toy, (2 * SCALE,) * 3), atol=1e-5)
        with pytest.raises(UsageError, match="'first' and 'second' share a network"):
            planned(toy, first, attrs.evolve(second, experts="none"))
        assert not has_experts(first.model.network)


class TestTheUsersOwnSet:
    @pytest.fixture
    def experts(self, bundle: Path) -> ExpertSet:
        return load_bundle(bundle, green(experts="none").model)

    def test_guides_and_stays_attached(self, toy: Toy, bundle: Path, experts: ExpertSet) -> None:
        network = experts.model.network
        before = {k: t.clone() for k, t in network.state_dict().items()}
        result = sampled(toy, of_model(experts.model, experts=experts))
        assert torch.equal(result.images, sampled(toy, green(experts=bundle)).images)
        assert has_experts(network)
        assert experts.active is None
        assert all(torch.equal(network.state_dict()[k], t) for k, t in before.items())
        record = result.plan.record()["guides"][0]["experts"]
        kept = BundleFile("mine", bundle).record()
        assert record == kept | {"name": None, "path": None, "sha256": None}

    def test_the_curve_of_a_guide_is_kept(self, toy: Toy, experts: ExpertSet) -> None:
        guide = attrs.evolve(green(0.5, experts="none"), model=experts.model, experts=experts)
        drawn = sampled(toy, attrs.evolve(guide, curve=ScaleCurve((0.0,), (20.0,), (0.1,)))).images
        assert torch.allclose(drawn, by_hand(toy, (10.0,) * 3), atol=1e-5)

    def test_of_another_model_is_refused(self, toy: Toy, experts: ExpertSet) -> None:
        with pytest.raises(UsageError, match="'colour' are of another model"):
            green(experts=experts)
        experts.detach()
        with pytest.raises(UsageError, match="not attached to its model"):
            sampled(toy, of_model(experts.model, experts=experts))

    def test_is_not_overlooked(self, toy: Toy, experts: ExpertSet) -> None:
        with pytest.raises(UsageError, match="the network of guide 'mine' has experts already"):
            sampled(toy, of_model(experts.model, name="mine"))

    def test_has_no_calibrated_scales(self, toy: Toy, experts: ExpertSet) -> None:
        with pytest.raises(UsageError, match="has no calibrated curve for its loss"):
            sampled(toy, of_model(experts.model, experts=experts, scale="auto"))


class TestChoosing:
    def test_a_curve_of_another_loss_is_not_used(
        self, toy: Toy, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """By the loss that the curve states, not that of the training; an unknown loss is any."""
        path = write_experts(tmp_path / "scaled")
        curve = ScaleCurve((-2.0, 4.0), (1.0, 2.0), (0.1, 0.1))
        info, state = verify_bundle(path)
        for name, own, found in (
            ("toy-cross-entropy", {}, True),
            ("ppap-plugin-toy:toy-cross-entropy", {}, True),
            ("toy-margin", {}, False),
            ("toy-cross-entropy", {"gone": 1}, False),
            (None, {}, True),
        ):
            loss = name and {"name": name, "options": own}
            other = loss and {"name": "toy-margin", "options": {}}
            given = attrs.evolve(curve, loss=loss)
            changed = attrs.evolve(info, recipe={"loss": other}, curve=given)
            write_bundle(path, state, changed)
            caplog.clear()
            (guide,) = planned(toy, green(None, experts=path)).guides
            assert (guide.curve is not None) == found
            assert ("calibrated scales" in caplog.text) == (not found)
            if not found:
                assert guide.scale == DEFAULT_SCALE
                with pytest.raises(UsageError, match="has no calibrated curve for its loss"):
                    planned(toy, green("auto", experts=path))
            caplog.clear()
            (guide,) = planned(toy, green("raw:3", experts=path)).guides
            assert (guide.curve, guide.factor, caplog.text) == (None, 3.0, "")

    def test_experts_of_other_options_are_passed_over(
        self, toy: Toy, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = write_experts(experts_dir())
        info, state = verify_bundle(path)
        options = green(experts="none").compared_options(toy)
        assert options == {"guide.model": None, "guide.sharpness": 10.0, "guide.upside_down": False}
        write_bundle(path, state, attrs.evolve(info, options=options))
        assert planned(toy, green()).guides[0].chosen is not None
        other = {"options": {"sharpness": 5.0}}
        assert planned(toy, green(**other)).guides[0].chosen is None
        assert "guide.sharpness was 10.0, and is 5.0" in caplog.text
        waived = green(**other, allow_mismatch=["options"])
        assert planned(toy, waived).guides[0].chosen is not None
        assert of_model(waived.model).compared_options(toy) == {}

    def test_auto_takes_what_was_kept(self, toy: Toy, bundle: Path) -> None:
        alone, without, named = (
            sampled(toy, green(experts=experts)).images for experts in ("auto", "none", bundle)
        )
        assert torch.equal(alone, without)
        keep_bundle(bundle)
        for experts in ("auto", "mine"):
            assert torch.equal(sampled(toy, green(experts=experts)).images, named)
        assert torch.equal(sampled(toy, green(experts="none")).images, alone)

    def test_auto_takes_nothing_that_is_for_another_input(self, toy: Toy) -> None:
        keep_bundle(write_experts(experts_dir().parent))
        guide = ppap.guide(nn.Linear(3, 4), loss=lambda p, t: p.square().mean((1, 2, 3)), target=1)
        assert planned(toy, guide).guides[0].chosen is None

    def test_what_the_plan_says(self, toy: Toy, tmp_path: Path) -> None:
        path = write_experts(tmp_path, number=4)
        record = planned(toy, green(None, experts=path)).record()
        assert record["guides"][0]["scale"] == DEFAULT_SCALE
        assert record["guides"][0]["experts"] == {
            "name": "mine",
            "path": str(path),
            "sha256": file_sha256(path),
            "num_experts": 4,
            "boundaries": list(read_bundle_info(path).boundaries),
        }
        json.dumps(record, allow_nan=False)
        assert planned(toy, green(2.0, experts=path)).record()["guides"][0]["scale"] == 2.0
        none = planned(toy, green(None, experts="none")).record()["guides"][0]
        assert (none["experts"], none["scale"]) == (None, 4.0)

    def test_what_it_says_of_a_curve(self, toy: Toy, curved: Path, bundle: Path) -> None:
        for scale, factor in ((3.0, 3.0), (None, DEFAULT_MULTIPLIER)):
            record = planned(toy, green(scale, experts=curved)).record()["guides"][0]
            assert record["scale"] == factor
            assert record["curve"] == attrs.asdict(read_bundle_info(curved).curve)
            ends = factor * math.exp(-1.0), factor * math.exp(2.0)
            assert record["scales"] == pytest.approx(ends, rel=1e-3)
        for scale, path in (("raw:3", curved), (3.0, bundle)):
            record = planned(toy, green(scale, experts=path)).record()["guides"][0]
            assert (record["scale"], record["curve"]) == (scale, None)
            assert record["scales"] == (3.0, 3.0)

    @pytest.mark.parametrize("scale", [None, 2.0, "raw:2"])
    @pytest.mark.parametrize("curve", [False, True])
    def test_a_plan_can_be_planned_again(
        self, toy: Toy, curved: Path, tmp_path: Path, scale: Any, curve: bool
    ) -> None:
        path = curved if curve else write_experts(tmp_path)
        first = planned(toy, green(scale, experts=path))
        path.unlink()  # it is settled
        assert planned(toy, *first.guides).record() == first.record()

    def test_experts_without_a_curve_are_told_of_once(
        self, toy: Toy, bundle: Path, curved: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO):
            for _ in sampled(toy, green(experts=curved)), sampled(toy, green(experts="none")):
                assert caplog.messages == []
            sampled(toy, green(experts=bundle), compare=True)
        [line] = caplog.records
        assert line.levelno == logging.INFO
        assert "`ppap experts calibrate mine --backend toy --guider colour`" in line.message

    @pytest.mark.parametrize("through", ["noisy", "detached", "clean"])
    def test_of_the_images_that_they_learned_to_read(
        self, toy: Toy, tmp_path: Path, through: Any
    ) -> None:
        for name, reads in {"noisy": None, "detached": "detached"}.items():
            keep_bundle(write_experts(tmp_path, name, through=reads))
        [guide] = planned(toy, green()).guides  # nobody says what it looks at
        assert isinstance(guide.chosen, BundleFile)
        assert guide.chosen.info.reads == guide.through
        chosen = planned(toy, green(), through=through).guides[0].chosen
        assert through == (chosen.name if isinstance(chosen, BundleFile) else "clean")
        mixed = write_experts(tmp_path, "both", through=["detached", "noisy", "noisy"])
        with pytest.raises(UsageError, match="learned through detached and noisy") as caught:
            planned(toy, green(experts=mixed), through=through)
        assert caught.value.hint == "leave the experts out, or do not say what it looks through"
        for name in {"noisy", "detached"} - {through}:
            said = f"looks through {through}, and its experts learned through {name}"
            with pytest.raises(UsageError, match=said):
                planned(toy, green(experts=name), through=through)

    def test_a_noise_aware_guide_takes_none(self, toy: Toy, bundle: Path) -> None:
        keep_bundle(bundle)
        aware = attrs.evolve(green(), noise_aware=True)
        assert planned(toy, aware).guides[0].chosen is None
        with pytest.raises(UsageError, match="reads noise by itself and takes no experts"):
            planned(toy, attrs.evolve(aware, experts="mine"))

    def test_the_same_experts(self, toy: Toy, tmp_path: Path) -> None:
        model, path = green(experts="none").model, write_experts(tmp_path)
        one, again = (choose_experts(path, "g", model, toy.inner) for _ in range(2))
        assert isinstance(one, BundleFile)
        assert same_experts(one, again)
        assert same_experts(None, None)
        assert not same_experts(one, None)
        write_experts(tmp_path, seed=9)
        assert not same_experts(one, choose_experts(path, "g", model, toy.inner))

    def test_scales_that_nobody_calibrated(self, toy: Toy, bundle: Path) -> None:
        for experts in (bundle, "none"):
            with pytest.raises(UsageError, match="has no calibrated curve for its loss") as caught:
                planned(toy, green("auto", experts=experts))
            assert "such as 4" in caught.value.hint
        keep_bundle(bundle)
        with pytest.raises(UsageError, match="has no calibrated curve for its loss"):
            planned(toy, green("auto"))
        for scale, said in {"big": "no number", "raw:big": "finite", "raw:inf": "finite"}.items():
            with pytest.raises(UsageError, match=f"scale .*{said}"):
                green(scale)

    def test_another_backend_may_be_allowed(self, site: Path, tmp_path: Path) -> None:
        path = write_experts(tmp_path)
        other = ppap.backend("toy")
        with torch.no_grad():
            next(other.stages[0].network.parameters()).add_(0.1)
        with pytest.raises(AssetError, match="backend: ") as caught:
            planned(other, green(experts=path))
        assert caught.value.hint == "--allow-mismatch backend"
        allowed = green(experts=path, allow_mismatch=["backend"])
        assert sampled(other, allowed).images.shape == (NUM, 3, SIZE, SIZE)
        with pytest.raises(UsageError, match="mismatch of 'guide' cannot be allowed"):
            green(experts=path, allow_mismatch=["guide"])


def test_idle_experts_are_warned_of(
    toy: Toy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_experts(tmp_path, number=5)
    with caplog.at_level(logging.WARNING):
        planned(toy, green(experts=path), steps=25)
        assert caplog.messages == []
        run = planned(toy, green(experts=path), steps=3)
    owners = {t * 5 // TIMESTEPS for t in run.process.timesteps}
    assert len(owners) == 3
    (message,) = caplog.messages
    for expert in range(5):
        told = f"expert {expert} (timesteps {20 * expert} to {20 * expert + 19})"
        assert (told in message) == (expert not in owners)
    assert message.startswith("guide 'colour': of 3 steps none is for ")


class TestNothingIsLeftBehind:
    @pytest.mark.parametrize("error", [None, KeyboardInterrupt, RuntimeError])
    def test_after_a_run(self, toy: Toy, bundle: Path, error: type[BaseException] | None) -> None:
        guide = green(experts=bundle)
        before, merged = state_of(guide.model), []

        def watch(progress: object) -> None:
            merged.append(not torch.equal(guide.model.network.weight, before["weight"]))
            if error and len(merged) == 5:
                raise error

        with pytest.raises(RuntimeError) if error is RuntimeError else contextlib.nullcontext():
            result = sampled(toy, guide, progress=watch)
            assert result.interrupted == (error is KeyboardInterrupt)
            assert result.plan.guides[0].chosen is not None
        assert any(merged)
        assert untouched(guide.model, before)
        assert not sampled(toy, guide).interrupted  # and it can be run again

    def test_if_the_file_was_replaced(self, toy: Toy, tmp_path: Path) -> None:
        guide = green(experts=write_experts(tmp_path))
        before, run = state_of(guide.model), planned(toy, guide)
        write_experts(tmp_path, seed=9)
        with pytest.raises(AssetError, match="were replaced after they were chosen"):
            draw(run)
        assert untouched(guide.model, before)


BASE = ("run", "--backend", "toy", "--steps", "6", "--num", "2", "--guider", "colour")
STEER = (*BASE, "--target", "blue")

Run = Callable[..., tuple[int, str, str]]
"""From what is typed after `ppap` to the exit code, stdout and stderr."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)

    def typed(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert isinstance(caught.value.code, int)
        return caught.value.code, *capsys.readouterr()

    return typed


def guides_of(folder: Path | str) -> Any:
    return json.loads((Path(folder) / "run.json").read_text())["config"]["guides"]


class TestCommandLine:
    def test_records_what_guided(self, run: Run, bundle: Path) -> None:
        for source, out in (("auto", "a"), ("aside/mine.experts.safetensors", "b"), ("none", "c")):
            assert run(*STEER, "--experts", source, "--out", out)[0] == 0
        keep_bundle(bundle)
        for source, out in (("auto", "d"), ("colour=mine", "e")):
            assert run(*STEER, "--experts", source, "--out", out)[0] == 0
        run(*STEER, "--out", "f")
        said = {out: guides_of(out)[0]["experts"] for out in "abcdef"}
        assert (said["a"], said["c"]) == (None, None)
        assert said["b"]["path"] == "aside/mine.experts.safetensors"
        assert said["d"] == said["e"] == said["f"]
        assert said["b"]["sha256"] == said["d"]["sha256"] == file_sha256(bundle)
        images = {out: Path(out, "000.png").read_bytes() for out in "abcdef"}
        assert images["a"] == images["c"] != images["b"]
        assert images["b"] == images["d"] == images["e"] == images["f"]

    def test_each_guide_has_its_own(self, run: Run, bundle: Path, tmp_path: Path) -> None:
        Image.new("L", (SIZE, SIZE), 230).save(tmp_path / "ref.png")
        keep_bundle(bundle)
        both = (*BASE, "--guider", "grey", "--target", "grey=ref.png")
        assert run(*both, "--experts", "colour=mine", "--out", "out")[0] == 0
        colour, grey = guides_of("out")
        assert (colour["experts"]["name"], grey["experts"]) == ("mine", None)
        for experts, code, words in (
            ("mine", 2, "does not say for which guide"),
            ("grey=mine", 4, "do not match: guide: "),
        ):
            found, _, err = run(*both, "--experts", experts)
            assert found == code
            assert words in err

    def test_scales(self, run: Run, curved: Path) -> None:
        keep_bundle(curved)
        steer = (*BASE[:-2], "--target", "blue", "--guider")
        for out, typed in {
            "a": ("colour",),
            "b": ("colour", "--scale", "auto"),
            "c": ("colour", "--scale", "5"),
            "d": ("colour=auto:0.1-0.9",),
            "e": ("colour=7",),
            "f": ("colour", "--scale", "raw:5"),
            "g": ("colour=raw:7",),
            "h": ("ppap-plugin-toy:colour=raw:-.5e1:0.1-0.9", "--scale", "3"),
        }.items():
            assert run(*steer, *typed, "--out", out)[0] == 0
        said, auto = [guides_of(out)[0]["scale"] for out in "abcdefgh"], DEFAULT_MULTIPLIER
        assert said == [auto, auto, 5.0, auto, 7.0, "raw:5", "raw:7", "raw:-.5e1"]
        assert guides_of("d")[0]["interval"] == guides_of("h")[0]["interval"] == [0.1, 0.9]
        a, b, c, f = (Path(out, "000.png").read_bytes() for out in "abcf")
        assert a == b != c != f

    def test_auto_calibrates_a_guide_without_a_curve_once(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The untouched network, and experts in a copy of their bundle."""
        calls, scales = [], []

        def found(backend: Any, guide: Any, copy: Path | None, **how: Any) -> ScaleCurve:
            calls.append((copy and copy.read_bytes(), how["sampling"].through))
            return ScaleCurve((0.0,), (float(len(calls)),), (0.1,), guide.loss_record)

        monkeypatch.setattr("ppap_framework.learn.calibration.calibrate", found)
        path = write_experts(tmp_path / "aside")
        before = path.read_bytes()
        steer = ("--target", "blue", "--guider", "colour", "--scale", "auto", "--overwrite")
        for more in (("none",), (str(path),), ("none", "--through", "clean")) * 2:
            assert run(*BASE[:-2], *steer, "--experts", *more, "--out", "out")[0] == 0
            scales.append(guides_of("out")[0]["curve"]["scales"])
        assert scales == [[1.0], [2.0], [3.0]] * 2
        assert calls == [(None, "noisy"), (before, "noisy"), (None, "clean")]
        assert path.read_bytes() == before
        code, out, err = run(*BASE[:-2], *steer[:-1], "--experts", "none", "--dry-run")
        assert (code, "has no curve: the run finds one first" in err) == (0, True)
        assert re.search(rf"scale +{DEFAULT_MULTIPLIER:g} *\n", out)

    def test_dry_run(self, run: Run, tmp_path: Path, curved: Path) -> None:
        path = keep_bundle(write_experts(tmp_path / "aside"))
        code, shown, _ = run(*STEER, "--dry-run")
        assert code == 0
        for fact in ("3 of mine", str(path), file_sha256(path)[:12]):
            assert fact in shown
        words = "2 x calibrated (0.736 in noise to 14.8 without)"
        for scale, said in {"2": words, "raw:2": "2"}.items():
            shown = run(*STEER, "--experts", str(curved), "--scale", scale, "--dry-run")[1]
            assert re.search(rf"scale +{re.escape(said)} *\n", shown)
        for more, digest in (((), file_sha256(path)), (("--experts", "none"), None)):
            _, shown, _ = run(*STEER, "--dry-run", "--json", *more)
            experts = json.loads(shown)["config"]["guides"][0]["experts"]
            assert (experts and experts["sha256"]) == digest

    @pytest.mark.parametrize(
        ("typed", "code", "culprit", "hint"),
        [
            ("--experts no.experts.safetensors", 4, "no.experts.safetensors", "there is"),
            ("--experts mien", 4, "'mien'", "did you mean 'mine'"),
            ("--experts ./text.experts.safetensors", 4, "text.experts.safetensors", ""),
            ("--experts mine --through clean", 2, "through clean", "noisy"),
            ("--allow-mismatch guide", 2, "'guide' cannot be allowed", "backend"),
            ("--scale big", 2, "'big' is neither a number, raw:NUMBER, nor auto", "--help"),
            ("--scale raw:", 2, "'raw:' is neither", "--help"),
            ("--scale raw:nan", 2, "must be finite, not raw:nan", "scale of 4"),
            ("--experts mine --experts none", 2, "--experts is given twice", "once"),
            ("--experts no.experts.safetensors --steps 0", 2, "no.experts.safetensors", ""),
            ("--experts no.experts.safetensors --steps 0", 2, "steps must be", ""),
        ],
    )
    def test_wrong_input(
        self, run: Run, bundle: Path, tmp_path: Path, typed: str, code: int, culprit: str, hint: str
    ) -> None:
        keep_bundle(bundle)
        (tmp_path / "text.experts.safetensors").write_text("no")
        before = sorted(tmp_path.rglob("*"))
        found, out, err = run(*STEER, *typed.split())
        assert (found, out) == (code, ""), err
        first, second = err.splitlines()
        assert first.startswith("ppap: error: ")
        assert culprit in first
        assert hint in second
        assert sorted(tmp_path.rglob("*")) == before


class TestProcess:
    """What only a process of its own shows."""

    def test_kept_experts_guide_by_themselves(
        self, site: Path, tmp_path: Path, cache: Path
    ) -> None:
        kept = keep_bundle(write_experts(tmp_path / "aside", number=5))
        typed = (*STEER, "--steps", "3", "--out", "out")
        done = ppap_process(site, tmp_path, *typed, PPAP_CACHE_DIR=str(cache))
        assert done.returncode == 0, done.stderr
        assert done.stdout == "out/grid.png\n"
        (line,) = done.stderr.splitlines()
        assert line.startswith("ppap: guide 'colour': of 3 steps none is for expert ")
        assert guides_of(tmp_path / "out")[0]["experts"]["path"] == str(kept)
        quiet = ppap_process(site, tmp_path, "-q", *typed, "--overwrite", PPAP_CACHE_DIR=str(cache))
        assert quiet.stderr == ""

    def test_an_interrupted_run_says_what_guided(
        self, site: Path, tmp_path: Path, cache: Path
    ) -> None:
        kept = keep_bundle(write_experts(tmp_path / "aside"))
        typed = (*STEER, "--num", "1000", "--batch", "1", "--out", "out")
        process = start(site, tmp_path, *typed, PPAP_CACHE_DIR=str(cache), TOY_DELAY="0.02")
        patience = time.monotonic() + 300
        while not (tmp_path / "out" / "000.png").exists():
            assert time.monotonic() < patience
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 130, err
        assert "Traceback" not in err
        assert guides_of(tmp_path / "out")[0]["experts"]["sha256"] == file_sha256(kept)
