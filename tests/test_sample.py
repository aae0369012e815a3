"""Images from Python, by a model and guides whose answers are known."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from commands import Run
from distributions import REPOSITORY
from torch import Tensor, nn
from torch.backends.cuda import flash_sdp_enabled
from toy_distribution import MEANS, SIZE, SPREAD, TIMESTEPS, green, write_experts
from toy_guides import Brightness

import ppap_framework as ppap
from ppap_framework.components import DiffusionBackend, Prediction
from ppap_framework.diffusion import (
    NoiseSource,
    Process,
    ddim_step,
    ddpm_step,
    timesteps_for,
    trajectory,
)
from ppap_framework.errors import PluginError, PpapError, UsageError
from ppap_framework.guidance import EnergyGuidance, Guide
from ppap_framework.pixels import to_uint8
from ppap_framework.run import Compute, Sampling, changed, counts_of, draw, plan
from ppap_framework.runtime import (
    Progress,
    attending,
    computing_in,
    frozen,
    isolated,
    peak_memory,
)

pytestmark = pytest.mark.usefixtures("site")


class TestPackage:
    def test_importing_it_imports_nothing_heavy(self) -> None:
        code = (
            "import sys, ppap_framework; heavy = {'torch', 'numpy', 'PIL', 'attr', 'pluggy'}; "
            "print(sorted(heavy & set(sys.modules)))"
        )
        out = subprocess.run(
            [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
        assert out.stdout == "[]\n"

    def test_every_public_name_is_there(self) -> None:
        assert {"backend", "guide", "sample", "synthesize", "SyntheticData"} <= {*ppap.__all__}
        assert all(hasattr(ppap, name) and name in dir(ppap) for name in ppap.__all__)
        with pytest.raises(AttributeError, match="no attribute 'sampel'"):
            ppap.sampel  # type: ignore[attr-defined]  # noqa: B018  # that is the test


def by_hand(toy: DiffusionBackend, guide: Guide, num: int, steps: int, seed: int = 0, **how: Any):
    """What the pieces give when they are put together."""
    stage, noise = toy.stages[0], NoiseSource(seed)
    process = Process(stage.schedule, timesteps_for(TIMESTEPS, steps), stage.variance)
    guidance = EnergyGuidance([guide], normalize=how.pop("normalize", False))
    start = noise((num, 3, SIZE, SIZE))
    *_, (last, _) = trajectory(stage, process, start, noise, guidance=guidance, **how)
    return last


class TestSample:
    def test_is_the_walk_of_its_parts(self, toy: DiffusionBackend) -> None:
        """Bit for bit."""
        guide, asked = green(interval=(0.1, 0.9)), {"num": 3, "steps": 7, "seed": 5}
        result = ppap.sample(toy, [guide], sampler="ddpm", normalize=True, **asked)
        expected = by_hand(toy, guide, step=ddpm_step, normalize=True, **asked)
        assert torch.equal(result.images, expected.clamp(-1.0, 1.0))
        assert not result.interrupted

    def test_of_many_images_a_result_may_keep_the_first(self, toy: DiffusionBackend) -> None:
        told: list[int] = []
        many = plan(toy, [green()], 8, Sampling(steps=2), Compute(batch=3), compare=True)
        result = draw(many, finished=lambda start, drawn: told.append(start), keep=4)
        assert (told, result.stats.count) == ([0, 3, 6], 8)
        for kind, pictures in draw(many).pictures.items():
            assert torch.equal(result.pictures[kind].images, pictures.images[:6])

    def test_a_step_may_have_fields(self, toy: DiffusionBackend) -> None:
        @attrs.frozen
        class Step:
            eta: float = 0.0

            def __call__(self, *given: Any) -> Any:
                return ddim_step(*given, eta=self.eta)

        drawn = [ppap.sample(toy, steps=3, sampler=one) for one in (Step(), "ddim")]
        assert torch.equal(drawn[0].images, drawn[1].images)
        assert drawn[0].plan.record()["sampler"].endswith("Step")

    def test_images_that_guidance_pushed_out_of_range_are_clamped(self, toy) -> None:
        guide = green(scale=3000.0)
        pushed = by_hand(toy, guide, num=2, steps=5)
        assert pushed.abs().max() > 1.0
        result = ppap.sample(toy, [guide], num=2, steps=5, sampler="ddim")
        assert torch.equal(result.images, pushed.clamp(-1.0, 1.0))

    def test_in_bfloat16_networks_multiply_and_losses_do_not(self, toy: DiffusionBackend) -> None:
        said: list[torch.dtype] = []
        given: set[torch.dtype] = set()
        fused: list[bool] = []

        class Linear(nn.Linear):
            def forward(self, images: Tensor) -> Tensor:
                logits = super().forward(images.mean((2, 3)))
                said.append(logits.dtype)
                fused.append(flash_sdp_enabled())
                return logits

        def energy(prediction: Tensor, target: Tensor) -> Tensor:
            products = prediction @ prediction.T
            given.update({prediction.dtype, products.dtype})
            return products.diagonal()

        network = Linear(3, 2)
        nn.init.constant_(network.weight, 1.0 / 3.0)
        guide = ppap.guide(network, loss=energy, target=0, scale=1.0)
        plain, named, as_torch = (
            ppap.sample(toy, [guide], num=2, steps=3, precision=precision).images
            for precision in ("float32", "bfloat16", torch.bfloat16)
        )
        full, half = torch.float32, torch.bfloat16
        # Three probes before drawing, and finished images, are looked at in float32.
        probes, drawn = [full] * 3, [*[half] * 3, full]
        assert said == [*probes, *[full] * 4, *probes, *drawn, *probes, *drawn]
        assert fused == [dtype == full for dtype in said]  # gradients in bfloat16 are slow so
        cpu = torch.device("cpu")
        with computing_in("bfloat16", cpu), torch.no_grad(), attending(cpu):
            assert flash_sdp_enabled()
        assert given == {full}
        assert torch.equal(named, as_torch)
        assert not torch.equal(plain, named)
        torch.testing.assert_close(plain, named, atol=0.02, rtol=0)

    def test_draws_the_model_distribution(self, toy: DiffusionBackend) -> None:
        images = ppap.sample(toy, num=32, steps=TIMESTEPS, batch=32, sampler="ddpm").images
        assert images.dtype == torch.float32
        assert torch.allclose(images.mean((0, 2, 3)), torch.tensor(MEANS), atol=0.02)
        assert torch.allclose(images.std((0, 2, 3)), torch.full((3,), SPREAD), rtol=0.1)

    def test_guides_steer(self, toy: DiffusionBackend) -> None:
        result = ppap.sample(toy, [green(scale=300.0)], num=4, steps=10, compare=True)
        before, after = result.unguided.seen["colour"], result.seen["colour"]
        assert (after.figures["energy"] < before.figures["energy"]).all()
        assert after.figures["hit"].all()
        assert not before.figures["hit"].any()
        assert all(words.startswith("green ") for words in after.words)

    def test_a_scale_of_nothing_is_no_guide(self, toy: DiffusionBackend) -> None:
        result = ppap.sample(toy, [green(scale=0.0)], num=2, steps=5, compare=True)
        assert torch.equal(result.images, result.unguided.images)
        assert torch.equal(result.images, ppap.sample(toy, num=2, steps=5).images)

    def test_an_image_depends_on_seed_and_number_alone(self, toy: DiffusionBackend) -> None:
        def bytes_of(**changes: Any) -> np.ndarray:
            settings = {"num": 5, "steps": 6, "seed": 1, "sampler": "ddim", "eta": 1.0} | changes
            return ppap.sample(toy, [green()], **settings).to_uint8().astype(int)

        whole = bytes_of()
        assert np.array_equal(whole, bytes_of())
        assert abs(whole - bytes_of(batch=1)).max() <= 2
        assert abs(whole - bytes_of(batch=2)).max() <= 2
        assert abs(whole[:3] - bytes_of(num=3)).max() <= 2
        assert (abs(whole - bytes_of(seed=2)) > 2).mean() > 0.9

    def test_a_target_for_each_image_finds_its_image(self, toy: DiffusionBackend) -> None:
        classes = torch.tensor([2, 3, 2, 3, 3])
        guide = ppap.guide("colour", target=classes, scale=300.0)
        result = ppap.sample(toy, [guide], num=5, steps=8, batch=2)
        seen = [words.split()[0] for words in result.seen["colour"].words]
        assert seen == ["green", "blue", "green", "blue", "blue"]

    def test_prompts(self, toy: DiffusionBackend) -> None:
        def brightness(**changes: Any) -> Tensor:
            return ppap.sample(toy, num=4, steps=50, batch=3, **changes).images.mean((1, 2, 3))

        shift = brightness(prompt=["darker", "darker", "darker", "brighter"]) - brightness()
        assert torch.allclose(shift, torch.tensor([-0.5, -0.5, -0.5, 0.5]), atol=0.05)
        same = ["brighter"] * 4
        assert torch.equal(brightness(prompt="brighter"), brightness(prompt=same))

    def test_through_the_clean_image(self, toy: DiffusionBackend) -> None:
        result = ppap.sample(toy, [green(scale=300.0)], num=2, steps=10, through="clean")
        assert result.seen["colour"].figures["hit"].all()
        assert result.stats.guidance.denoiser_backwards == 20

    def test_costs_what_was_planned(self, toy: DiffusionBackend) -> None:
        guides = [green(interval=(0.2, 0.6)), green(name="second", interval=(0.5, 0.7))]
        sampling, compute = Sampling(steps=20, through="clean"), Compute(batch=2)
        counts = counts_of(plan(toy, guides, 3, sampling, compute))
        spent = ppap.sample(toy, guides, num=3, sampling=sampling, compute=compute).stats.guidance
        # 20 steps are at t / T = 0, 0.05, ..., 0.95.
        assert counts.guide_forwards == {"colour": 3 * 8, "second": 3 * 4}
        assert {g.name: g.forwards for g in spent.guides} == counts.guide_forwards
        assert spent.denoiser_forwards == counts.denoiser_forwards == 60
        assert spent.denoiser_backwards == counts.denoiser_backwards == 3 * 10
        assert counts.denoiser_parameters == 3 * SIZE * SIZE + 1
        assert counts.guide_parameters == {"colour": 12, "second": 12}

    def test_progress_counts_every_image_of_every_step(self, toy: DiffusionBackend) -> None:
        seen: list[Progress] = []
        ppap.sample(toy, [green()], num=3, steps=4, batch=2, compare=True, progress=seen.append)
        assert [p.done for p in seen] == [*range(2, 17, 2), *range(17, 25)]
        assert {(p.task, p.total) for p in seen} == {("drawing", 24)}

    @pytest.mark.parametrize(("after", "finished"), [(1, 0), (9, 2), (17, 4)])
    def test_an_interrupt_leaves_what_is_finished(self, toy, after: int, finished: int) -> None:
        def stop(progress: Progress) -> None:
            if progress.done >= after:
                raise KeyboardInterrupt

        result = ppap.sample(toy, [green()], num=5, steps=4, batch=2, progress=stop)
        assert result.interrupted
        whole = ppap.sample(toy, [green()], num=5, steps=4, batch=2)
        assert not whole.interrupted
        assert torch.equal(result.images, whole.images[:finished])
        assert result.seen["colour"].words == whole.seen["colour"].words[:finished]

    def test_images_that_are_not_finite_are_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TOY_BROKEN", "1")
        for guides in ([], [green()]):
            with pytest.raises(PluginError, match=r"'toy' of .* image 0 came out not finite"):
                ppap.sample("toy", guides, num=2, steps=5)
        monkeypatch.delenv("TOY_BROKEN")
        infinite = partial(torch.full_like, fill_value=torch.inf)
        monkeypatch.setattr(EnergyGuidance, "_together", lambda self, pulls, _: infinite(pulls[0]))
        with pytest.raises(PpapError, match=r"^image 0 came out not finite") as caught:
            ppap.sample("toy", [green()], num=2, steps=5)
        assert "lower the scale" in caught.value.hint

    def test_gradients_that_are_not_finite_are_left_out_and_counted(self, toy, caplog) -> None:
        def uneven(prediction: Tensor, target: Tensor) -> Tensor:
            # Every other energy has an infinite slope: that of the square root at 0.
            logits = prediction[:, 0].unbind()
            return torch.stack(
                [(x - x.detach()).sqrt() if i % 2 else x for i, x in enumerate(logits)]
            )

        guide = ppap.guide(Brightness(), loss=uneven, target=0, scale=2000.0, name="uneven")
        result = ppap.sample(toy, [guide], num=4, steps=5, compare=True)
        (stats,) = result.stats.guidance.guides
        assert (stats.skipped, stats.forwards) == (10, 20)
        moved = abs(result.images - result.unguided.images).amax((1, 2, 3))
        assert (moved[1::2] < 1e-5).all()
        assert (moved[::2] > 0.1).all()
        told = ["guide 'uneven': 10 gradients (50 %) were not finite and left out"]
        assert caplog.messages == told

    def test_naive_images_are_guided_as_those_with_experts_are(self, toy, tmp_path) -> None:
        """Conflicts of guides are removed there, too, and gradients normalized."""
        how = {"num": 2, "steps": 6, "conflicts": "remove", "normalize": True}
        opposed = ppap.guide("colour", target="blue", name="opposed", experts="none", scale=2.0)
        both = [green(2.0, experts=write_experts(tmp_path)), opposed]
        bare = [green(2.0, experts="none"), opposed]
        compared = ppap.sample(toy, both, compare=True, **how)
        assert torch.equal(compared.naive.images, ppap.sample(toy, bare, **how).images)
        kept = ppap.sample(toy, bare, **(how | {"conflicts": "keep"}))
        assert (kept.images - compared.naive.images).abs().max() > 0.01
        assert (compared.images - compared.naive.images).abs().max() > 0.01


def heun_like(
    process: Process, index: int, prediction: Prediction, noise: Tensor, gradient: Any = None, /
) -> tuple[Tensor, Prediction]:
    """A sampler of the user's own, which does what DDIM does."""
    return ddim_step(process, index, prediction, noise, gradient)


class TestStep:
    @pytest.mark.parametrize(
        ("step", "name"),
        [
            (heun_like, "heun_like"),
            (partial(ddim_step, eta=0.0), "ddim_step"),
            (lambda *given: ddim_step(*given), "TestStep.<lambda>"),
        ],
    )
    def test_of_the_users_own(self, toy: DiffusionBackend, step: Any, name: str) -> None:
        guides = [green()]
        found = ppap.sample(toy, guides, num=2, steps=5, sampler=step)
        named = ppap.sample(toy, guides, num=2, steps=5, sampler="ddim")
        assert torch.equal(found.images, named.images)
        assert found.plan.record()["sampler"] == name

    def test_has_no_eta(self, toy: DiffusionBackend) -> None:
        with pytest.raises(UsageError, match=r"eta is 0\.5, and sampler 'heun_like' has none"):
            ppap.sample(toy, sampler=heun_like, eta=0.5)


class TestFutility:
    """A guide that does not steer is reported once, through logging."""

    @pytest.mark.parametrize(
        ("factor", "changes", "says"),
        [
            (float("nan"), {}, ": 8 gradients (100 %) were not finite and left out"),
            (0.0, {}, " cannot steer: its energy is 0 for black, white and noise alike"),
            ("round", {}, ": its gradient was zero at all 4 steps"),
            ("round", {"interval": (0.0, 0.5)}, ": its gradient was zero at all 2 steps"),
            (1e-9, {}, ": its pull was too weak to change the images"),
            (1.0, {"scale": 1e-9}, ": its pull was too weak to change the images"),
            (1.0, {"scale": 0}, " acts at none of the 4 steps"),
            (1.0, {"interval": (0.9, 1.0)}, " acts at none of the 4 steps"),
            (1.0, {}, None),
        ],
    )
    @pytest.mark.parametrize("through", ["noisy", "clean"])
    def test_from_python(self, toy, caplog, through, factor, changes, says) -> None:
        def loss(seen: Tensor, target: Tensor) -> Tensor:
            return seen[:, 0].round() if factor == "round" else factor * seen[:, 0]

        how = {"loss": loss, "target": 0, "scale": 50.0}
        guide = ppap.guide(Brightness(), name="idle", **(how | changes))
        ppap.sample(toy, [guide, green()], num=2, steps=4, batch=1, through=through, compare=True)
        assert len(caplog.messages) == (says is not None)
        assert all(message.startswith(f"guide 'idle'{says}") for message in caplog.messages)
        assert all(record.levelno == logging.WARNING for record in caplog.records)

    def test_from_the_command_line(self, typed: Run, caplog, tmp_path: Path) -> None:
        guide = ("--guider", "colour", "--target", "green", "--scale", "0")
        asked = ("run", "--backend", "toy", *guide, "--steps", "2", "--out", tmp_path / "out")
        outcome = typed(*asked)
        assert (outcome.code, outcome.err) == (0, "")  # logs are shown where the caller wants them
        assert caplog.messages == ["guide 'colour' acts at none of the 2 steps"]


@contextlib.contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


class TestGlobalState:
    """Nothing that is set for all of torch changes the images of a seed."""

    @pytest.mark.parametrize(
        "context", [default_dtype, default_device, torch.inference_mode, torch.no_grad]
    )
    def test_changes_nothing(self, context: Any, tmp_path: Path) -> None:
        def draw(folder: Path) -> ppap.Result:
            guides = [green(), ppap.guide("grey", target=np.full((8, 8), 0.25), scale=50.0)]
            result = ppap.sample(
                "toy", guides, num=3, steps=4, sampler="ddpm", through="clean", batch="auto"
            )
            result.save(folder)
            return result

        wanted = draw(tmp_path / "plain")
        with context():
            found = draw(tmp_path / "within")
        assert found.images.dtype == torch.float32
        assert torch.equal(found.images, wanted.images)
        assert not found.images.is_inference()
        for path in (tmp_path / "plain").rglob("*.png"):
            written = tmp_path / "within" / path.relative_to(tmp_path / "plain")
            assert written.read_bytes() == path.read_bytes()

    def test_targets_made_in_inference_mode_guide(self, toy: DiffusionBackend) -> None:
        def agreement(prediction: Tensor, target: Tensor) -> Tensor:
            return (prediction * target).sum(1)

        target, network = torch.tensor([[1.0, -1.0]]), Brightness()
        wanted, found = (
            ppap.sample(toy, [ppap.guide(network, loss=agreement, target=each)], num=1, steps=3)
            for each in (target, torch.inference_mode()(target.clone)())
        )
        assert torch.equal(wanted.images, found.images)

    def test_networks_made_in_inference_mode_are_refused(self, toy: DiffusionBackend) -> None:
        with torch.inference_mode():
            guide = ppap.guide(Brightness(), loss="toy-margin", target=1)
        with pytest.raises(UsageError, match=r"guide 'Brightness' failed .*: Inference tensors"):
            ppap.sample(toy, [guide], num=1, steps=2)

    def test_is_as_it_was_afterwards(self) -> None:
        with default_dtype(), default_device(), torch.inference_mode():
            with contextlib.suppress(RuntimeError), isolated():
                made = torch.ones(2)
                raise RuntimeError
            assert (made.dtype, made.device.type) == (torch.float32, "cpu")
            assert not made.is_inference()
            made = torch.ones(2)
            assert (made.dtype, made.device.type) == (torch.float64, "meta")
            assert made.is_inference()


class TestSettings:
    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"num": 0}, "num must be a whole number from 1, not 0"),
            ({"num": 10**20}, "num must be a whole number from 1, not 100000000000000000000"),
            ({"num": 2.0}, "num must"),
            ({"num": True}, "num must"),
            ({"steps": 0}, "steps must be a whole number from 1, not 0"),
            ({"steps": -5}, "not -5"),
            ({"steps": TIMESTEPS + 1}, f"{TIMESTEPS + 1} steps"),
            ({"batch": 0}, "batch must"),
            ({"threads": 0}, "threads must be a whole number from 1, not 0"),
            ({"seed": 1.5}, "seed must"),
            (
                {"sampler": "euler"},
                "sampler must be ancestral or ddpm or ddim, not euler",
            ),
            ({"through": "glass"}, "through must be noisy or clean or detached, not glass"),
            ({"conflicts": "drop"}, "conflicts must be keep or remove, not drop"),
            ({"precision": "float16"}, "precision must be float32 or bfloat16, not float16"),
            ({"precision": torch.float16}, "precision must be float32 or bfloat16, not float16"),
            ({"eta": -0.1}, "eta must"),
            ({"eta": float("nan")}, "eta must"),
            ({"eta": 0.5, "sampler": "ddpm"}, "sampler 'ddpm' has none"),
            ({"device": "abacus"}, "device 'abacus'"),
            ({"device": "cuda:99"}, "device 'cuda:99'"),
            ({"device": torch.device("meta")}, "device 'meta'"),
            ({"compare": True}, "nothing to compare"),
            ({"prompt": 3}, "3 is none"),
            ({"prompt": ["brighter", 3], "num": 2}, "3 is none"),
            ({"prompt": ["darker", "darker"]}, "2 prompts were given for 4 images"),
            ({"prompt": ["darker", "louder"], "num": 2}, "'louder' is no prompt"),
            ({"guides": "colour"}, "'colour' is none"),
            ({"guides": ["colour"]}, "'colour' is none"),
            ({"guides": 3}, "a int is none"),
            ({"stepz": 3}, "there is no setting 'stepz'"),
        ],
    )
    def test_errors(self, toy: DiffusionBackend, changes: Any, says: str) -> None:
        with pytest.raises(UsageError) as caught:
            ppap.sample(toy, **changes)
        assert says in caught.value.message

    def test_everything_wrong_is_told_at_once(self, toy: DiffusionBackend) -> None:
        with pytest.raises(UsageError) as caught:
            ppap.sample(toy, num=0, steps=-1, batch=0, eta=-7.0, device="abacus")
        for culprit in ("num", "steps", "batch", "eta", "abacus"):
            assert culprit in caught.value.message

    @pytest.mark.parametrize("steps", [1, 2, 33, 99, TIMESTEPS])
    def test_any_number_of_steps(self, toy: DiffusionBackend, steps: int) -> None:
        assert ppap.sample(toy, num=1, steps=steps).images.isfinite().all()

    @pytest.mark.parametrize(
        ("make", "says"),
        [
            (lambda: green(), "a Guide is one"),
            (lambda: [green(), green()], "2 guides called 'colour'"),
            (lambda: [green(name="a/b")], "cannot be called 'a/b'"),
            (lambda: [ppap.guide("colour", target=[1, 2, 3])], "3 targets for 4 images"),
        ],
    )
    def test_guides_that_do_not_go_together(self, toy, make: Any, says: str) -> None:
        with pytest.raises(UsageError, match=says):
            ppap.sample(toy, make())

    def test_guides_of_one_kind_go_by_their_names(self, toy: DiffusionBackend) -> None:
        both = [green(), ppap.guide("colour", target="blue", name="other")]
        assert set(ppap.sample(toy, both, num=1, steps=2).seen) == {"colour", "other"}


class TestChanged:
    def test_changes_go_to_the_record_that_has_them(self) -> None:
        given = Sampling(seed=3, steps=9), Compute(batch=2)
        sampling, compute = changed({"steps": 5, "device": torch.device("cpu")}, *given)
        assert sampling == Sampling(seed=3, steps=5)
        assert compute == Compute(batch=2, device=torch.device("cpu"))
        assert given == (Sampling(seed=3, steps=9), Compute(batch=2))  # which stay as they are
        assert compute.place == torch.device("cpu")
        assert compute.record()["device"] == "cpu"

    def test_what_is_not_named_stays(self) -> None:
        records = Sampling(steps=50, seed=1), Compute(batch=64)
        assert changed({"seed": 2}, *records) == (Sampling(steps=50, seed=2), Compute(batch=64))
        assert changed({}, *records) == records

    def test_torch_types(self) -> None:
        assert Compute(precision=torch.bfloat16) == Compute(precision="bfloat16")
        assert changed({"precision": torch.float32}, Compute(precision="bfloat16")) == (Compute(),)

    @pytest.mark.parametrize(
        ("name", "hint"), [("sampeler", "did you mean 'sampler'?"), ("xyz", "choose from steps, ")]
    )
    def test_unknown_names(self, name: str, hint: str) -> None:
        with pytest.raises(UsageError, match=f"no setting '{name}'") as caught:
            changed({name: 1}, Sampling(), Compute())
        assert hint in caught.value.hint

    def test_a_batch_that_depends_on_the_machine(self) -> None:
        assert Compute(batch=3).fixed_batch == 3
        with pytest.raises(UsageError, match="cannot be 'auto' here"):
            _ = Compute(batch="auto").fixed_batch


class TestResult:
    def test_in_every_range(self, toy: DiffusionBackend) -> None:
        result = ppap.sample(toy, num=2, steps=3)
        assert torch.equal(result.images, result.images_11)
        assert torch.equal(result.images, result.guided.images)
        assert torch.equal(result.images_01, (result.images + 1) / 2)
        pixels = result.to_uint8()
        assert (pixels.shape, pixels.dtype) == ((2, SIZE, SIZE, 3), np.uint8)
        assert np.array_equal(pixels, to_uint8(result.images))
        pictures = result.to_pil()
        assert [picture.mode for picture in pictures] == ["RGB"] * 2
        assert np.array_equal(np.stack([np.asarray(picture) for picture in pictures]), pixels)


class TestNetworksInUse:
    def test_are_frozen_and_come_back_as_they_were(self) -> None:
        network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2))
        network[1].eval()
        network[2].weight.requires_grad_(False)
        modes = [module.training for module in network.modules()]
        asked = [parameter.requires_grad for parameter in network.parameters()]
        with pytest.raises(KeyboardInterrupt), frozen([network], torch.device("cpu")):
            assert not any(module.training for module in network.modules())
            assert not any(parameter.requires_grad for parameter in network.parameters())
            raise KeyboardInterrupt
        assert [module.training for module in network.modules()] == modes
        assert [parameter.requires_grad for parameter in network.parameters()] == asked

    @pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux says it there")
    @pytest.mark.parametrize("silent", [False, True])
    def test_peak_memory_is_in_bytes_and_rises(self, monkeypatch, silent: bool) -> None:
        if silent:  # as other systems are
            monkeypatch.setattr("ppap_framework.runtime._STATUS", Path("/proc/self/no-such-file"))
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        now, before = pages * os.sysconf("SC_PAGESIZE"), peak_memory(torch.device("cpu"))
        assert before is not None
        more = max(0, before - now) + 2**26
        held = np.ones(more, np.uint8)
        after = peak_memory(torch.device("cpu"))
        assert after is not None
        assert 2**25 < after - before < 2**28
        assert held[-1] == 1
