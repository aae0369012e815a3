"""What a diagnosis says of guides whose answers and gradients are known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import numpy as np
import pytest
import torch
import toy_distribution
from commands import Run, refused, typed
from experts_toy import Backend, TinyGuide, experts_of
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from toy_distribution import write_experts

import ppap_framework as ppap
from ppap_framework.checkpoints import save_checkpoint
from ppap_framework.components import GuidanceModel, Target, TargetInput, TaskLoss
from ppap_framework.data import SyntheticData
from ppap_framework.diagnosis import (
    disagreement,
    evenly_spaced,
    noised,
    propose_boundaries,
    propose_number,
)
from ppap_framework.diffusion import NoiseSource
from ppap_framework.errors import PluginError, UsageError
from ppap_framework.experts import keep_bundle
from ppap_framework.guidance import Guide, Through
from ppap_framework.noise import NoiseLevel, cosine_schedule
from ppap_framework.pixels import to_uint8
from ppap_plugin_diagnose.diagnose import diagnose
from ppap_plugin_diagnose.diagnosis import Diagnosis

BACKEND = Backend()
DRAW = "ppap_plugin_diagnose.diagnosis.draw_figures"
SCHEDULE = BACKEND.stages[0].schedule  # linear, 100 timesteps


class Linear(GuidanceModel):
    """Logits that are linear in the pixels."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.network = nn.Linear(inputs, outputs)
        with torch.no_grad():
            self.network.weight.copy_(weight)
            self.network.bias.copy_(torch.zeros(outputs) if bias is None else bias)
        self.levels: list[tuple[float, ...]] = []

    def forward(self, images: Tensor, level: NoiseLevel | None = None) -> Any:
        assert level is not None
        self.levels.append(tuple(level.log_snr.tolist()))
        return self.network(images.flatten(1)[:, : self.network.in_features])

    def target(self, given: TargetInput) -> Target:
        raise NotImplementedError  # a diagnosis aims at nothing


class Margin(TaskLoss):
    """Minus the target's logit: its gradient is the same everywhere."""

    def energy(self, prediction: Tensor, target: Tensor) -> Tensor:
        return -prediction.gather(1, target.expand(len(prediction))[:, None])[:, 0]


class Square(Margin):
    """The square of the target's logit."""

    def energy(self, prediction: Tensor, target: Tensor) -> Tensor:
        return super().energy(prediction, target).square()


def pictures(number: int = 24, size: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (number, 3, size, size), generator=generator, dtype=torch.uint8)


def guide_of(model: GuidanceModel, loss: TaskLoss, **changes: Any) -> Guide:
    target = Target(value=torch.tensor([1]), label="one")
    return Guide(name="known", model=model, loss=loss, target=target, **changes)


def weights(outputs: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(outputs, 192, generator=torch.Generator().manual_seed(seed))


def seen(images: Tensor) -> Tensor:
    return images.double() / 127.5 - 1.0


def probability(z: float) -> float:
    """Phi, of the standard normal distribution."""
    return 0.5 * (1.0 + math.erf(z / math.sqrt(2.0)))


class TestFigures:
    def test_a_guide_that_ignores_noise_is_right_everywhere(self) -> None:
        """Its likeliest class is settled by the bias, and its gradient by the target alone."""
        model = Linear(weights(), torch.tensor([1e4, 0.0, 0.0]))
        found = diagnose(BACKEND, guide_of(model, Margin()), pictures(), classification=True)
        assert found.timesteps == tuple(round(k * 99 / 20) for k in range(21))
        length = model.network.weight[1].norm().item()
        for reading in found.untouched:
            assert (reading.agreement.value, reading.confidence.value) == (1.0, 1.0)
            assert reading.cosine.value == pytest.approx(1.0, abs=1e-12)
            assert reading.gradient_norm.value == pytest.approx(length, rel=1e-6)
            assert (reading.compared, reading.not_finite) == (24, 0)
        assert found.clean_gradient_norm.value == pytest.approx(length, rel=1e-6)
        assert found.clean_confidence.value == 1.0

    def test_a_classifier_of_one_direction(self) -> None:
        """Logits (s, -s), s = w . x: of x_t, s is normal, of mean alpha w . x0 and deviation sigma
        |w|, and its sign is as without noise with probability Phi(alpha |w . x0| / sigma |w|).
        """
        w = torch.zeros(192)
        w[:48] = 0.5 * weights(1)[0, :48]
        images = pictures(600)
        model = Linear(torch.stack([w, -w]))
        found = diagnose(BACKEND, guide_of(model, Margin()), images, levels=5, classification=True)
        s = (seen(images).flatten(1) @ w.double()).abs()
        length = w.double().norm()
        nodes, shares = np.polynomial.hermite_e.hermegauss(80)
        for t, reading in zip(found.timesteps, found.untouched, strict=True):
            level = SCHEDULE.level(torch.tensor([t]))
            alpha, sigma = level.alpha.item(), level.sigma.item()
            agreement = np.mean([probability(x) for x in (alpha * s / (sigma * length)).tolist()])
            # E max softmax = E sigmoid(2 |s_t|), by quadrature.
            drawn = alpha * s.numpy()[:, None] + sigma * float(length) * nodes
            confidence = (1 / (1 + np.exp(-2 * np.abs(drawn)))) @ shares / shares.sum()
            assert reading.agreement.value == pytest.approx(agreement, abs=4 * 0.5 / 600**0.5)
            assert reading.confidence.value == pytest.approx(confidence.mean(), abs=0.03)
            # transfer: the mean over both logits of ((alpha - 1) s + sigma |w| z)^2
            apart = (1 - alpha) ** 2 * s.square().mean().item() + (sigma * length.item()) ** 2
            assert reading.disagreement.value == pytest.approx(apart, rel=0.2)
            low, high = reading.disagreement.low, reading.disagreement.high
            assert low < reading.disagreement.value < high
        assert found.untouched[0].agreement.value > found.untouched[-1].agreement.value + 0.3

    def test_gradients_of_a_square(self) -> None:
        """E = (w . x)^2 has the gradient 2 (w . x) w: of length 2 |w . x| |w|, along w or against
        it, so that each cosine is the sign of both products.
        """
        model, images = Linear(weights()), pictures(30)
        found = diagnose(BACKEND, guide_of(model, Square()), images, levels=4, seed=9, batch=7)
        w = model.network.weight[1].double().detach()
        x0 = seen(images)
        for t, reading in zip(found.timesteps, found.untouched, strict=True):
            x_t = noised(x0.float(), SCHEDULE, t, seed=9)[0].double()
            before, after = x0.flatten(1) @ w, x_t.flatten(1) @ w
            length = (2 * after.abs() * w.norm()).mean().item()
            assert reading.gradient_norm.value == pytest.approx(length, rel=1e-5)
            signs = (before.sign() * after.sign()).mean().item()
            assert reading.cosine.value == pytest.approx(signs, abs=1e-6)
            assert reading.agreement is None
            assert reading.confidence is None
        length = (2 * (x0.flatten(1) @ w).abs() * w.norm()).mean().item()
        assert found.clean_gradient_norm.value == pytest.approx(length, rel=1e-5)
        assert found.clean_confidence is None

    def test_levels_and_the_schedule(self) -> None:
        model = Linear(weights())
        found = diagnose(BACKEND, guide_of(model, Margin()), pictures(4), levels=3, batch=4)
        assert (found.schedule, found.schedule_length) == ("linear", 100)
        assert found.timesteps == (0, 50, 99)
        assert found.log_snr == tuple(SCHEDULE.log_snr[[0, 50, 99]].tolist())
        assert {*model.levels} == {(x,) * 4 for x in (math.inf, *found.log_snr)}

    def test_disagreement_is_that_which_boundaries_are_proposed_from(self) -> None:
        model, images, clean = Linear(weights()), pictures(10), pictures(10, size=16)
        guide = guide_of(model, Margin())
        found = diagnose(BACKEND, guide, images, clean, seed=4, levels=6, batch=3)
        curve = disagreement(
            model, Margin(), SCHEDULE, found.timesteps, images, clean, seed=4, batch=10
        )
        assert [r.disagreement.value for r in found.untouched] == pytest.approx(curve, rel=1e-5)
        number = propose_number(found.timesteps, curve, 100)
        assert found.proposal == tuple(propose_boundaries(found.timesteps, curve, 100, number))
        found = diagnose(BACKEND, guide, images, clean, seed=4, levels=6, num_experts=number + 1)
        assert found.proposal == tuple(propose_boundaries(found.timesteps, curve, 100, number + 1))

    def test_batches_do_not_matter(self) -> None:
        guide = guide_of(TinyGuide(), Margin())
        images = pictures(11)
        whole, *others = (
            diagnose(BACKEND, guide, images, levels=4, batch=batch, classification=True)
            for batch in (11, 4, 1)
        )
        for other in others:
            for a, b in zip(numbers(whole), numbers(other), strict=True):
                assert a == pytest.approx(b, rel=1e-3, abs=1e-5)
        another = diagnose(BACKEND, guide, images, levels=4, seed=1, classification=True)
        assert numbers(another) != pytest.approx(numbers(whole), rel=1e-2)

    def test_the_teacher_looks_at_the_last_stage(self) -> None:
        """Of which the guided stage's picture is no part here; and the gradient is the guided
        stage's all the same.
        """
        model = Linear(weights(2)[:, :100])
        small, large = pictures(9, seed=2), pictures(9, size=16, seed=3)
        found = diagnose(BACKEND, guide_of(model, Square()), small, large, levels=2, seed=1)
        w = model.network.weight.double().detach()
        teacher = seen(large).flatten(1)[:, :100] @ w.T
        x0 = seen(small)
        for t, reading in zip(found.timesteps, found.untouched, strict=True):
            x_t = noised(x0.float(), SCHEDULE, t, seed=1)[0].double()
            student = x_t.flatten(1)[:, :100] @ w.T
            apart = (student - teacher).square().mean().item()
            assert reading.disagreement.value == pytest.approx(apart, rel=1e-5)
            signs = ((x0.flatten(1)[:, :100] @ w[1]).sign() * student[:, 1].sign()).mean().item()
            assert reading.cosine.value == pytest.approx(signs, abs=1e-6)

    def test_gradients_without_a_direction_are_counted(self) -> None:
        class Faulty(Square):
            """Of every three images one has no gradient, and one none that is finite."""

            def energy(self, prediction: Tensor, target: Tensor) -> Tensor:
                found = super().energy(prediction, target)
                kind = torch.arange(len(found)) % 3
                noisy = model.levels[-1][0] < math.inf
                factor = torch.where(kind == 1, 0.0, torch.where(kind == 2, math.nan, 1.0))
                return found * factor if noisy else found

        model, images = Linear(weights()), pictures(12)
        found = diagnose(BACKEND, guide_of(model, Faulty()), images, levels=2, batch=6)
        w = model.network.weight[1].double().detach()
        for t, reading in zip(found.timesteps, found.untouched, strict=True):
            assert (reading.not_finite, reading.compared) == (4, 4)
            x_t = noised(seen(images).float(), SCHEDULE, t)[0].double()[::3]
            length = (2 * (x_t.flatten(1) @ w).abs() * w.norm()).sum().item() / 8
            assert reading.gradient_norm.value == pytest.approx(length, rel=1e-5)
            assert abs(reading.cosine.value) <= 1.0

    def test_where_no_gradient_is_left_there_is_no_figure(self) -> None:
        class Flat(Margin):
            def energy(self, prediction: Tensor, target: Tensor) -> Tensor:
                return 0.0 * super().energy(prediction, target)

        found = diagnose(BACKEND, guide_of(Linear(weights()), Flat()), pictures(4), levels=2)
        assert found.untouched[0].gradient_norm.value == 0.0
        assert math.isnan(found.untouched[0].cosine.value)
        level = found.record()["levels"][0]["untouched"]
        assert level["cosine"] == {"value": None, "low": None, "high": None}
        assert (level["compared"], level["not_finite"]) == (0, 0)
        json.dumps(found.record(), allow_nan=False)


class TestLevels:
    @given(st.integers(2, 1100), st.data())
    def test_are_even_and_reach_both_ends(self, length: int, data: st.DataObject) -> None:
        levels = data.draw(st.integers(2, length))
        found = evenly_spaced(cosine_schedule(length), levels)
        assert (found[0], found[-1], len(found)) == (0, length - 1, levels)
        exact = [k * (length - 1) / (levels - 1) for k in range(levels)]
        assert max(abs(t - e) for t, e in zip(found, exact, strict=True)) <= 0.5
        assert sorted(set(found)) == found

    @pytest.mark.parametrize("levels", [-1, 0, 1, 101])
    def test_that_there_are_not(self, levels: int) -> None:
        with pytest.raises(UsageError, match="from 2 to 100"):
            evenly_spaced(SCHEDULE, levels)


class TestNoise:
    @pytest.mark.parametrize("t", [0, 30, 99])
    def test_is_of_the_variance_that_the_schedule_says(self, t: int) -> None:
        x_t, level = noised(torch.full((40, 3, 16, 16), 0.5), SCHEDULE, t)
        assert level.log_snr.tolist() == [SCHEDULE.log_snr[t].item()] * 40
        abar, n = SCHEDULE.alphas_cumprod[t].item(), x_t.numel()
        std = math.sqrt(1.0 - abar)
        assert x_t.mean().item() == pytest.approx(0.5 * math.sqrt(abar), abs=5 * std / n**0.5)
        assert x_t.std().item() == pytest.approx(std, rel=5 / (2 * n) ** 0.5)

    def test_is_a_function_of_seed_image_and_timestep_alone(self) -> None:
        images = torch.zeros(5, 3, 4, 4)
        whole, _ = noised(images, SCHEDULE, 50, seed=3)
        for image in range(5):
            alone, _ = noised(images[:1], SCHEDULE, 50, seed=3, first=image)
            assert torch.equal(alone[0], whole[image])
        with torch.device("meta"):
            torch.set_default_dtype(torch.float64)
            try:
                again, _ = noised(images, SCHEDULE, 50, seed=3)
            finally:
                torch.set_default_dtype(torch.float32)
        assert torch.equal(again, whole)

    @pytest.mark.parametrize("t", [0, 1, 2, 50])
    def test_no_other_stream_is_the_same(self, t: int) -> None:
        """Those of other images, seeds and timesteps, and those that images are drawn from, whose
        stages have numbers as timesteps do.
        """
        zeros = torch.zeros(1, 3, 4, 4)
        streams = [
            noised(zeros, SCHEDULE, t, seed=3)[0],
            noised(zeros, SCHEDULE, t, seed=3, first=1)[0],
            noised(zeros, SCHEDULE, t, seed=4)[0],
            noised(zeros, SCHEDULE, t + 1, seed=3)[0],
            noised(zeros, SCHEDULE, 5, seed=3)[0],
            *(NoiseSource(3, 0, stage)(zeros.shape) for stage in (0, 1, 2, 50)),
        ]
        likeness = torch.corrcoef(torch.stack([stream.flatten() for stream in streams]))
        # Of 48 numbers: 4 standard deviations.
        assert (likeness - torch.eye(len(streams))).abs().max() < 0.6


class TestDisagreement:
    def test_of_what_sees_pixels_is_that_of_the_pixels(self) -> None:
        """E |alpha x + sigma eps - x|^2 = (1 - alpha)^2 |x|^2 + sigma^2, over 64 x 192 pixels."""
        model, images, timesteps = Linear(torch.eye(192)), pictures(64), [0, 25, 50, 75, 99]
        found = disagreement(model, Margin(), SCHEDULE, timesteps, images)
        power = seen(images).square().mean().item()
        for t, value in zip(timesteps, found, strict=True):
            abar = SCHEDULE.alphas_cumprod[t].item()
            exact = (1.0 - math.sqrt(abar)) ** 2 * power + 1.0 - abar
            assert value == pytest.approx(exact, rel=0.06)
        # A level says the same, whatever others are asked for.
        alone = disagreement(model, Margin(), SCHEDULE, [50], images, batch=7)
        assert alone == [pytest.approx(found[2], rel=1e-5)]
        other = disagreement(model, Margin(), SCHEDULE, [50], images, seed=6)
        assert other != [pytest.approx(found[2], rel=1e-3)]

    def test_images_whose_loss_is_not_finite_are_left_out(self) -> None:
        class Broken(Margin):
            def transfer(self, student: Tensor, teacher: Tensor) -> Tensor:
                found = super().transfer(student, teacher)
                return torch.where(torch.arange(len(found)) % 2 == 0, found, torch.nan)

        class Lost(Margin):
            def transfer(self, student: Tensor, teacher: Tensor) -> Tensor:
                return super().transfer(student, teacher) * torch.inf

        class Whole(Margin):
            def transfer(self, student: Tensor, teacher: Tensor) -> Tensor:
                return super().transfer(student, teacher).mean()

        model, images = Linear(torch.eye(192)), pictures(4)
        found = disagreement(model, Broken(), SCHEDULE, [60], images)
        x_t = noised(seen(images).float(), SCHEDULE, 60)[0].double()
        apart = (x_t - seen(images)).square().mean((1, 2, 3))
        assert found == [pytest.approx(apart[::2].mean().item(), rel=1e-5)]
        for loss, fault in (
            (Lost(), r"Lost\.transfer is finite for no image.* 60"),
            (Whole(), r"of 4 images has shape \(\)"),
        ):
            with pytest.raises(PluginError, match=fault):
                disagreement(model, loss, SCHEDULE, [60], images)


def numbers(found: Diagnosis) -> list[float]:
    """Every figure of the untouched network."""
    figures = ("disagreement", "agreement", "confidence", "gradient_norm", "cosine")
    return [getattr(reading, name).value for reading in found.untouched for name in figures]


class TestFiles:
    def test_the_record_and_whatever_is_drawn_of_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = diagnose(BACKEND, guide_of(TinyGuide(), Margin()), pictures(2), levels=2)
        given: list[object] = []

        def draw(*subject: object) -> list[Path]:
            given.extend(subject)
            return [tmp_path / "deep" / "diagnose.png"]

        monkeypatch.setattr(DRAW, draw)
        paths = found.save(tmp_path / "deep", {"guide": "a known one"})
        assert [path.name for path in paths] == ["diagnose.json", "diagnose.png"]
        assert given == ["diagnosis", found, tmp_path / "deep" / "diagnose"]
        assert json.loads(paths[0].read_text()) == {**found.record(), "guide": "a known one"}

    def test_if_nothing_draws_figures_there_are_no_curves(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = diagnose(BACKEND, guide_of(TinyGuide(), Margin()), pictures(2), levels=2)
        monkeypatch.setattr(DRAW, lambda *_: [])
        assert found.save(tmp_path) == [tmp_path / "diagnose.json"]


class TestExperts:
    @pytest.mark.parametrize("through", ["noisy", "detached", ("detached", "noisy", "noisy")])
    def test_each_level_is_read_by_the_expert_that_owns_it(
        self, through: Through | tuple[Through, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(BACKEND, "encode", lambda *_: None)
        predicting = staticmethod(lambda x_t, t, _: SimpleNamespace(x0=x_t * 2.0))
        monkeypatch.setattr(type(BACKEND.stages[0]), "denoise", predicting)
        model, images = TinyGuide(), pictures(6)
        bare = diagnose(
            BACKEND, guide_of(model, Margin()), images, levels=7, classification=True, batch=4
        )
        assert bare.experts is None
        assert bare.starts is None
        experts = experts_of(model, 3)
        guide = guide_of(model, Margin(), experts=experts, through=through)
        found = diagnose(BACKEND, guide, images, levels=7, classification=True, batch=4)
        assert numbers(found) == numbers(bare)  # the untouched network is not touched
        assert found.proposal == bare.proposal
        assert found.starts == (33, 66)
        assert experts.active is None
        x0 = seen(images).float()
        for t, reading in zip(found.timesteps, found.experts, strict=True):
            experts.activate(None)
            with torch.no_grad():
                teacher = model(x0)
                experts.activate(0 if t < 33 else 1 if t < 66 else 2)
                x, level = noised(x0, SCHEDULE, t)
                if "detached" in (through, through[0] if t < 33 else ""):
                    x = (x * 2.0).clamp(-1.0, 1.0)
                answer = model(x)
            apart = (answer - teacher).square().mean().item()
            assert reading.disagreement.value == pytest.approx(apart, rel=1e-4)
            same = (answer.argmax(1) == teacher.argmax(1)).double().mean().item()
            assert reading.agreement.value == same
            length = guide.gradient(x, level).flatten(1).norm(dim=1).mean().item()
            assert reading.gradient_norm.value == pytest.approx(length, rel=1e-4)
        levels = found.record()["levels"]
        assert [level["experts"]["expert"] for level in levels] == [0, 0, 1, 1, 2, 2, 2]
        assert "experts" not in bare.record()["levels"][0]
        experts.detach()

    def test_the_network_is_left_as_it_was_found(self) -> None:
        model = TinyGuide().train()
        state = {name: value.clone() for name, value in model.state_dict().items()}
        experts = experts_of(model, 2)
        diagnose(BACKEND, guide_of(model, Margin(), experts=experts), pictures(4), levels=3)
        experts.detach()
        assert model.training
        assert all(module.training for module in model.modules())
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert all(p.grad is None for p in model.parameters())
        for name, value in model.state_dict().items():
            assert torch.equal(value, state[name])


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"levels": 1}, "at 1 levels"),
            ({"levels": 101}, "at 101 levels"),
            ({"num_experts": 0}, "among 0 experts"),
            ({"num_experts": 101}, "among 101 experts"),
            ({"batch": 0}, "batch must be"),
            ({"device": "abacus"}, "device 'abacus' cannot be used"),
            ({"images": pictures(1)}, r"images are \(1, 3, 8, 8\)"),
            ({"images": pictures(4, size=9)}, r"\(4, 3, 9, 9\)"),
            ({"images": pictures(4).float()}, "float32"),
            ({"clean": pictures(3, size=16)}, r"clean ones \(3, 3, 16, 16\)"),
            ({"clean": pictures(4)[0]}, r"clean ones \(3, 8, 8\)"),
        ],
    )
    def test_arguments(self, changes: dict[str, Any], message: str) -> None:
        arguments = {"images": pictures(4), **changes}
        with pytest.raises(UsageError, match=message):
            diagnose(BACKEND, guide_of(TinyGuide(), Margin()), **arguments)

    def test_a_target_for_each_image(self) -> None:
        """-logit[target] has the gradient -w[target], whatever the batch."""
        model = Linear(weights())
        target = Target(value=torch.tensor([0, 0, 1, 2, 2]), label="several")
        guide = attrs.evolve(guide_of(model, Margin()), target=target)
        found = diagnose(BACKEND, guide, pictures(5), levels=2, batch=2)
        length = model.network.weight.norm(dim=1)[target.value].mean().item()
        assert found.untouched[0].gradient_norm.value == pytest.approx(length, rel=1e-6)
        assert found.clean_gradient_norm.value == pytest.approx(length, rel=1e-6)
        with pytest.raises(UsageError, match="5 targets for 4 images"):
            diagnose(BACKEND, guide, pictures(4))

    def test_what_is_no_classifier(self) -> None:
        class Maps(Linear):
            def forward(self, images: Tensor, level: NoiseLevel | None = None) -> Any:
                return super().forward(images, level)[:, None]

        class Sum(Margin):
            def energy(self, prediction: Tensor, target: Tensor) -> Tensor:
                return prediction.flatten(1).sum(1)

        guide = guide_of(Maps(weights()), Sum())
        with pytest.raises(PluginError, match=r"'known' classifies 4 images as \(4, 1, 3\)"):
            diagnose(BACKEND, guide, pictures(4), classification=True)


# On the command line


BASE = ("diagnose", "--backend", "toy", "--guider", "colour")
SMALL = ("--num", "6", "--steps", "2", "--levels", "4", "--num-experts", "3")


@pytest.fixture(scope="module")
def data(site: Path, tmp_path_factory: pytest.TempPathFactory) -> SyntheticData:
    return ppap.synthesize(
        ppap.backend("toy"), out=tmp_path_factory.mktemp("data") / "set", num=9, steps=2, seed=3
    )


@pytest.fixture
def run(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Types `ppap ...` in an empty folder, where no experts are found; curves take their time and
    are not drawn.
    """

    def touch(kind: str, found: Diagnosis, path: Path) -> list[Path]:
        paths = [path.with_suffix(suffix) for suffix in (".svg", ".png")]
        for each in paths:
            each.touch()
        return paths

    monkeypatch.setattr(DRAW, touch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PPAP_CACHE_DIR", str(tmp_path / "cache"))
    return typed(capsys)


def record(folder: str = "runs/diagnose") -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((Path(folder) / "diagnose.json").read_text())
    return loaded


class TestCommand:
    def test_draws_what_it_has_no_pictures_of(self, run: Run) -> None:
        code, out, err = run(*BASE, *SMALL)
        assert code == 0
        assert "colour aims at 'green', its default; --target picks another" in err
        assert "no experts of colour are here" in err
        *table, proposed, path = out.splitlines()
        assert path == "runs/diagnose/diagnose.png"
        assert {file.name for file in Path("runs/diagnose").iterdir()} == {
            *("diagnose.json", "diagnose.png", "diagnose.svg"),
        }
        said = record()
        boundaries = said["proposal"]["boundaries"]
        assert len(boundaries) == 2
        assert proposed == f"3 experts could begin at --boundaries {boundaries[0]},{boundaries[1]}"
        assert [line.split()[0] for line in table if line.split()[:1] and "." in line] == [
            *("0", "33", "66", "99"),
        ]
        assert table[1].split() == ["t", "log-SNR", "distance", "gradient", "cosine"]
        assert (said["experts"], said["experts_begin"]) == (None, None)
        assert said["data"] == {"sha256": None, "drawn_in_steps": 2}
        assert said["guide"]["target"] == "green"
        assert said["guide"]["component"] == "colour"
        assert said["backend"]["component"] == "toy"
        pixels = torch.from_numpy(
            to_uint8(ppap.sample("toy", num=6, steps=2, sampler="ddim").images)
        )
        pixels = pixels.permute(0, 3, 1, 2)
        guide = ppap.guide("colour", target="green", experts="none")
        again = diagnose(ppap.backend("toy"), guide, pixels, levels=4, num_experts=3)
        assert {**said, **again.record()} == said

    def test_a_cascade_is_noised_at_its_first_stage_and_taught_by_its_last(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from ppap_plugin_toy.cascade import ToyCascade

        two = ppap.backend(ToyCascade(ppap.backend("toy")))
        found = SimpleNamespace(load=lambda: two)
        monkeypatch.setattr("ppap_framework.cli.guide_options.backend_of", lambda given: found)
        assert run(*BASE, *SMALL, "--batch", "4", "--experts", "none").code == 0
        drawn = ppap.sample(two, num=6, steps=2, sampler="ddim", batch=4).pictures["guided"]
        small, large = (
            torch.from_numpy(to_uint8(x)).permute(0, 3, 1, 2)
            for x in (drawn.earlier["base"], drawn.images)
        )
        assert large.shape == (6, 3, 16, 16)
        guide = ppap.guide("colour", target="green", experts="none")
        again = diagnose(two, guide, small, large, levels=4, num_experts=3, batch=4)
        assert {**record(), **again.record()} == record()

    def test_pictures_that_are_there(self, run: Run, data: SyntheticData) -> None:
        arguments = (*BASE, "--data", str(data.path), "--levels", "3", "--target", "blue")
        code, out, err = run("-q", *arguments, "--seed", "7", "--json", "--out", "all")
        assert (code, err) == (0, "")
        said = record("all")
        assert json.loads(out) == {"folder": "all", **said}
        assert said["images"] == 9
        assert said["data"] == {"sha256": data.manifest_hash, "drawn_in_steps": None}
        guide = ppap.guide("colour", target="blue", experts="none")
        for num, folder in ((9, "all"), (4, "some")):
            if num == 4:
                run(*arguments, "--seed", "7", "--num", "4", "--out", folder)
            again = diagnose(ppap.backend("toy"), guide, data.images(range(num)), levels=3, seed=7)
            assert {**record(folder), **again.record()} == record(folder)

    def test_experts_are_found_or_named_or_left_out(self, run: Run, tmp_path: Path) -> None:
        path = write_experts(tmp_path / "aside", number=4)
        code, out, _ = run(*BASE, *SMALL, "--experts", str(path), "--out", "named")
        assert code == 0
        assert "→" in out
        said = record("named")
        assert said["experts"]["num_experts"] == 4
        assert said["experts_begin"] == [25, 50, 75]
        assert [level["experts"]["expert"] for level in said["levels"]] == [0, 1, 2, 3]
        differ = [
            level["experts"]["disagreement"]["value"] != level["untouched"]["disagreement"]["value"]
            for level in said["levels"]
        ]
        assert all(differ)
        keep_bundle(path)
        assert run(*BASE, *SMALL, "--out", "auto").code == 0
        assert record("auto")["experts"]["name"] == "mine"
        assert record("auto")["levels"] == said["levels"]
        code, _, err = run(*BASE, *SMALL, "--experts", "none", "--out", "none")
        assert code == 0
        assert "no experts" not in err
        assert record("none")["experts"] is None
        assert [level["untouched"] for level in record("none")["levels"]] == [
            level["untouched"] for level in said["levels"]
        ]

    def test_an_earlier_diagnosis_is_replaced_if_asked(self, run: Run) -> None:
        assert run(*BASE, *SMALL).code == 0
        refused(run(*BASE, *SMALL, "--seed", "1"), 2, "holds an earlier diagnosis")
        assert record()["seed"] == 0
        assert run(*BASE, *SMALL, "--seed", "1", "--overwrite").code == 0
        assert record()["seed"] == 1

    def test_if_nothing_draws_figures_it_says_so(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(DRAW, lambda *_: [])
        code, out, err = run(*BASE, *SMALL)
        assert code == 0
        assert out.splitlines()[-1] == "runs/diagnose/diagnose.json"
        assert 'pip install "ppap-framework[eval]"' in err

    @pytest.mark.parametrize(
        ("changes", "code", "message"),
        [
            (("--levels", "1"), 2, "--levels: 1 is not in the range"),
            (("--levels", "101"), 2, "cannot be measured at 101 levels"),
            (("--levels", "some"), 2, "--levels"),
            (("--num", "1"), 2, "--num: 1 is not in the range"),
            (("--num-experts", "0"), 2, "--num-experts: 0 is not in the range"),
            (("--num-experts", "101"), 2, "among 101 experts"),
            (("--batch", "0"), 2, "batch must be a whole number from 1"),
            (("--steps", "101"), 2, "101"),
            (("--threads", "0"), 2, "threads must be a whole number from 1"),
            (("--device", "abacus"), 2, "abacus"),
            (("--guider", "colour=4"), 2, "takes no scale and no interval here"),
            (("--guider", "colour:0-0.5"), 2, "takes no scale and no interval here"),
            (("--guider", "none"), 2, "--guider none names no network"),
            (("--guider", "color"), 3, "color"),
            (("--backend", "toys"), 3, "toys"),
            (("--target", "mauve"), 2, "mauve"),
            (("--experts", "there"), 4, "there"),
            (("--experts", "there/is.experts.safetensors"), 4, "there/is"),
            (("--data", "nowhere"), 4, "no synthetic set in 'nowhere'"),
            (("--allow-mismatch", "guide"), 2, "guide"),
            (("--out", "file/in"), 2, "cannot write to 'file/in'"),
        ],
    )
    def test_refusals(self, run: Run, changes: tuple[str, ...], code: int, message: str) -> None:
        Path("file").write_text("in the way")
        refused(run(*BASE, *SMALL, *changes), code, message)
        assert not Path("runs").exists()

    def test_several_refusals_at_once(self, run: Run) -> None:
        outcome = run(*BASE, "--levels", "0", "--data", "nowhere", "--guider", "color")
        refused(outcome, 2, "--levels", "nowhere", "color")

    def test_pictures_of_other_weights_or_too_few(
        self, run: Run, data: SyntheticData, tmp_path: Path
    ) -> None:
        arguments = (*BASE, "--data", str(data.path))
        refused(run(*arguments, "--num", "10"), 2, "there are 9 images")
        state = {"mean": torch.zeros(3, 8, 8), "spread": torch.tensor(0.5)}
        save_checkpoint(tmp_path / "other.safetensors", state, {"size": 8, "timesteps": 100})
        other = run(*arguments, "--checkpoint", str(tmp_path / "other.safetensors"))
        refused(other, 4, "drawn by a backend with other weights")


def test_a_classifier_off_the_shelf(site: Path, tmp_path: Path) -> None:
    """The embedded one, as a user types it: noise takes its understanding, and not all at once."""
    pytest.importorskip("ppap_plugin_classifier", reason="the classifier")
    pytest.importorskip("ppap_plugin_shapes", reason="its weights")
    done = toy_distribution.ppap(
        site,
        tmp_path,
        *("diagnose", "--backend", "toy", "--guider", "classifier", "--target", "red cube"),
        *("--num", "64", "--steps", "3", "--levels", "5", "--out", "out"),
        PPAP_PLUGINS="ppap-plugin-toy,ppap-plugin-classifier,ppap-plugin-shapes",
        PPAP_CACHE_DIR=str(tmp_path / "cache"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "out/diagnose.png"
    assert "same class" in done.stdout
    with Image.open(tmp_path / "out" / "diagnose.png") as image:
        assert min(image.size) > 400
    said = json.loads((tmp_path / "out" / "diagnose.json").read_text())
    first, *_, last = (level["untouched"] for level in said["levels"])
    assert first["agreement"]["value"] >= 0.9
    assert first["cosine"]["value"] > 0.5 > abs(last["cosine"]["value"])
    assert first["disagreement"]["value"] < 0.1 < last["disagreement"]["value"]
    assert said["guide"]["checkpoint"] == "shapes-resnet18"
    assert said["environment"]["versions"]["ppap-plugin-classifier"]
