"""What EnergyGuidance does with its guides: adding, safety, cost and bookkeeping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ppap_framework.components import GuidanceModel, Prediction, Target, TargetInput, TaskLoss
from ppap_framework.errors import PluginError, UsageError
from ppap_framework.guidance import EnergyGuidance, Guide
from ppap_framework.guidance.conflicts import without_conflicts
from ppap_framework.noise import NoiseLevel, cosine_schedule

BATCH = 4
SCHEDULE = cosine_schedule(100)
T = torch.full((BATCH,), 40)
LEVEL = SCHEDULE.level(T)
TIME = 0.4


class Counted(nn.Module):
    """A small smooth convolutional network that counts its calls and what flows back through it."""

    def __init__(self, seed: int, channels: int = 3) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Conv2d(3, 4, 3, padding=1),
                nn.GroupNorm(2, 4),
                nn.Tanh(),
                nn.Conv2d(4, channels, 1),
            )
        self.forwards = self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        y = self.layers(x)
        if y.requires_grad:
            y.register_hook(self._count)
        return y

    def _count(self, gradient: Tensor) -> None:
        self.backwards += 1


class Eye(GuidanceModel):
    def __init__(self, network: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self._network = network
        self.levels: list[NoiseLevel | None] = []

    @property
    def network(self) -> nn.Module:
        raise NotImplementedError

    def forward(self, images: Tensor, level: NoiseLevel | None = None) -> Any:
        self.levels.append(level)
        return self._network(images)

    def target(self, given: TargetInput) -> Target:
        raise NotImplementedError


class Squares(TaskLoss):
    def energy(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).square().flatten(1).mean(1)


def guide(seed: int = 0, look: Callable[[Tensor], Any] | None = None, **changes: Any) -> Guide:
    value = torch.linspace(-1, 1, BATCH)[:, None, None, None]
    return Guide(
        name=f"guide-{seed}",
        model=Eye(look or Counted(seed)),
        loss=Squares(),
        **{"target": Target(value=value, label=""), **changes},
    )


def denoiser(network: Callable[[Tensor], Tensor] | None = None) -> Callable[[Tensor], Prediction]:
    network = network or Counted(100)
    alpha, sigma = LEVEL.alpha[:, None, None, None], LEVEL.sigma[:, None, None, None]
    return lambda x: Prediction.from_eps(network(x), x, alpha, sigma)


def images(seed: int = 0) -> Tensor:
    return torch.randn(BATCH, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def pull(guidance: EnergyGuidance, x: Tensor | None = None, denoise: Any = None) -> Tensor:
    x = images() if x is None else x
    _, gradient = guidance(x, TIME, LEVEL, denoise or denoiser())
    assert gradient is not None
    return gradient


def rms(gradient: Tensor) -> Tensor:
    return gradient.square().flatten(1).mean(1).sqrt()


def poisoned(network: nn.Module, row: int, value: float) -> Callable[[Tensor], Tensor]:
    """The network with the answer to one image multiplied by something bad."""
    factor = torch.ones(BATCH, 1, 1, 1)
    factor[row] = value
    return lambda x: network(x) * factor


both = pytest.mark.parametrize("through", ["noisy", "clean"])


class TestGradient:
    def test_noisy_is_minus_the_scaled_gradient_at_x_t(self) -> None:
        one, x = guide(scale=3.0), images()
        step = 1e-3 * images(1)
        with torch.no_grad():
            ahead, behind = (
                one.loss.energy(one.model(x + sign * step), one.target.value) for sign in (1, -1)
            )
        slope = (pull(EnergyGuidance([one]), x) * step).flatten(1).sum(1)
        torch.testing.assert_close(slope, -3.0 * (ahead - behind) / 2, rtol=1e-2, atol=1e-6)

    def test_clean_goes_through_the_unclipped_x0_and_the_denoiser(self) -> None:
        one, x, denoise = guide(scale=2.0), 5 * images(), denoiser()
        leaf = x.clone().requires_grad_()
        x0 = denoise(leaf).x0
        assert x0.abs().max() > 1
        energy = one.loss.energy(one.model(x0), one.target.value).sum()
        (wanted,) = torch.autograd.grad(-2.0 * energy, leaf)
        found = pull(EnergyGuidance([one], through="clean"), x, denoise)
        torch.testing.assert_close(found, wanted)

    @both
    def test_guides_add_up(self, through) -> None:
        guides = [guide(0, scale=1.5), guide(1, scale=-0.5)]
        apart = [pull(EnergyGuidance([one], through=through)) for one in guides]
        together = pull(EnergyGuidance(guides, through=through))
        torch.testing.assert_close(together, apart[0] + apart[1])

    @both
    def test_prediction_is_the_denoisers_without_a_graph(self, through) -> None:
        x, denoise = images(), denoiser()
        prediction, gradient = EnergyGuidance([guide()], through=through)(x, TIME, LEVEL, denoise)
        torch.testing.assert_close(prediction.eps, denoise(x).eps)
        for tensor in (prediction.x_t, prediction.eps, prediction.x0, gradient):
            assert not tensor.requires_grad

    @both
    def test_an_image_does_not_depend_on_the_others(self, through) -> None:
        x = images()
        changed = torch.cat([x[:1], images(9)[1:]])
        one, other = (
            pull(EnergyGuidance([guide()], through=through), each) for each in (x, changed)
        )
        torch.testing.assert_close(one[0], other[0])

    @both
    def test_rows_take_their_own_targets(self, through) -> None:
        x, guidance = images(), EnergyGuidance([guide()], through=through)
        whole, network = pull(guidance, x), Counted(100)
        alpha, sigma = LEVEL.alpha[1:3, None, None, None], LEVEL.sigma[1:3, None, None, None]
        _, part = guidance.rows(1, 3)(
            x[1:3],
            TIME,
            SCHEDULE.level(T[1:3]),
            lambda x: Prediction.from_eps(network(x), x, alpha, sigma),
        )
        torch.testing.assert_close(part, whole[1:3])
        assert guidance.statistics.guides[0].forwards == BATCH + 2

    @both
    def test_memory_format_makes_no_difference(self, through) -> None:
        guidance, x = EnergyGuidance([guide()], through=through), images()
        last = pull(guidance, x.to(memory_format=torch.channels_last))
        torch.testing.assert_close(last, pull(guidance, x))

    @both
    def test_parameters_get_no_gradients(self, through) -> None:
        one, network = guide(), Counted(100)
        pull(EnergyGuidance([one], through=through), denoise=denoiser(network))
        for parameter in [*one.model._network.parameters(), *network.parameters()]:
            assert parameter.grad is None

    def test_levels_are_those_of_what_is_looked_at(self) -> None:
        one = guide()
        pull(EnergyGuidance([one]))
        pull(EnergyGuidance([one], through="clean"))
        noisy, clean = one.model.levels
        assert torch.equal(noisy.log_snr, LEVEL.log_snr)
        assert bool((clean.sigma == 0).all())
        assert bool((clean.alpha == 1).all())


class TestInterval:
    @given(st.floats(0, 0.99), st.floats(0.01, 1), st.floats(0, 0.999))
    def test_half_open(self, low: float, high: float, time: float) -> None:
        one = guide(look=nn.Identity())
        if low >= high:
            with pytest.raises(UsageError, match="guide-0"):
                attrs.evolve(one, interval=(low, high))
        else:
            assert attrs.evolve(one, interval=(low, high)).acts(time, LEVEL) == (low <= time < high)

    def test_ends(self) -> None:
        one = guide(interval=(0.2, 0.4))
        assert [one.acts(t, LEVEL) for t in (0.19, 0.2, 0.39, 0.4)] == [False, True, True, False]

    @both
    def test_outside_nothing_is_differentiated(self, through) -> None:
        network = Counted(100)
        guides = [guide(0, interval=(0.5, 1.0)), guide(1, scale=0.0)]
        guidance = EnergyGuidance(guides, through=through)
        _, gradient = guidance(images(), TIME, LEVEL, denoiser(network))
        assert gradient is None
        assert (network.forwards, network.backwards) == (1, 0)
        assert guidance.statistics.denoiser_backwards == 0
        assert guidance.statistics.guides[0].forwards == 0

    @both
    def test_only_those_inside_act(self, through) -> None:
        inside, outside = guide(0), guide(1, interval=(0.5, 1.0))
        alone = pull(EnergyGuidance([inside], through=through))
        torch.testing.assert_close(pull(EnergyGuidance([outside, inside], through=through)), alone)


class TestSafety:
    @both
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
    def test_one_bad_image_is_left_out_alone(self, through, value: float) -> None:
        bad, good = guide(0, look=poisoned(Counted(0), 2, value)), guide(1)
        guidance = EnergyGuidance([bad, good], through=through)
        found = pull(guidance)
        both_guides = pull(EnergyGuidance([guide(0), good], through=through))
        only_good = pull(EnergyGuidance([good], through=through))
        wanted = torch.cat([both_guides[:2], only_good[2:3], both_guides[3:]])
        torch.testing.assert_close(found, wanted)
        assert [one.skipped for one in guidance.statistics.guides] == [1, 0]
        assert guidance.statistics.denoiser_skipped == 0

    @both
    def test_a_bad_image_stays_alone(self, through) -> None:
        x = images()
        x[1] = torch.nan
        guidance = EnergyGuidance([guide()], through=through)
        found = pull(guidance, x)
        wanted = pull(EnergyGuidance([guide()], through=through))
        assert bool((found[1] == 0).all())
        assert guidance.statistics.guides[0].skipped == 1
        assert guidance.statistics.denoiser_skipped == 0  # counted once
        rest = [0, 2, 3]
        torch.testing.assert_close(found[rest], wanted[rest])

    def test_a_denoiser_that_overflows_is_counted_apart(self) -> None:
        network = Counted(100)
        steep = torch.ones(BATCH, 1, 1, 1)
        steep[3] = 1e38

        def denoise(x: Tensor) -> Prediction:
            prediction = denoiser(network)(x)
            # The same x0, with a derivative that no gradient survives.
            x0 = prediction.x0
            return prediction.with_x0(x0.detach() + steep * (x0 - x0.detach()))

        guidance = EnergyGuidance([guide()], through="clean")
        found = pull(guidance, denoise=denoise)
        assert bool((found[3] == 0).all())
        assert bool((found[:3] != 0).any())
        assert guidance.statistics.denoiser_skipped == 1
        assert guidance.statistics.guides[0].skipped == 0

    @pytest.mark.parametrize("scale", [float("nan"), float("inf")])
    def test_scale_must_be_finite(self, scale: float) -> None:
        with pytest.raises(UsageError, match="guide-0"):
            guide(scale=scale)

    def test_through_must_be_known(self) -> None:
        with pytest.raises(UsageError, match="sideways"):
            EnergyGuidance([guide()], through="sideways")

    @both
    def test_guides_must_be_differentiable(self, through) -> None:
        blind = guide(look=lambda x: x.detach())
        with pytest.raises(PluginError, match=r"'guide-0'.*no gradient"):
            pull(EnergyGuidance([blind], through=through))

    def test_energies_must_be_one_for_each_image(self) -> None:
        class Summed(Squares):
            def energy(self, prediction: Tensor, target: Tensor) -> Tensor:
                return super().energy(prediction, target).sum()

        with pytest.raises(PluginError, match=r"'guide-0' has shape \(\)"):
            pull(EnergyGuidance([attrs.evolve(guide(), loss=Summed())]))

    def test_denoiser_must_be_differentiable(self) -> None:
        network = Counted(100)
        with pytest.raises(PluginError, match="denoiser"):
            pull(
                EnergyGuidance([guide()], through="clean"),
                denoise=denoiser(lambda x: network(x.detach()).detach()),
            )


class TestNormalise:
    @both
    def test_a_scale_is_the_root_mean_square(self, through) -> None:
        found = pull(EnergyGuidance([guide(scale=-3.0)], through=through, normalise=True))
        torch.testing.assert_close(rms(found), torch.full((BATCH,), 3.0))

    @both
    def test_direction_stays(self, through) -> None:
        plain = pull(EnergyGuidance([guide(scale=3.0)], through=through))
        found = pull(EnergyGuidance([guide(scale=3.0)], through=through, normalise=True))
        wanted = 3.0 * plain / rms(plain)[:, None, None, None]
        torch.testing.assert_close(found, wanted)

    def test_each_guide_by_itself(self) -> None:
        network = Counted(1)
        loud = guide(1, look=lambda x: 100 * network(x))
        apart = [pull(EnergyGuidance([one], normalise=True)) for one in (guide(0), loud)]
        together = pull(EnergyGuidance([guide(0), loud], normalise=True))
        torch.testing.assert_close(together, apart[0] + apart[1])

    @both
    @pytest.mark.parametrize("factor", [0.0, 1e-30, 1e-12])
    def test_a_vanishing_gradient_makes_nothing_infinite(self, through, factor: float) -> None:
        network = Counted(0)
        faint = guide(look=lambda x: factor * network(x))
        guidance = EnergyGuidance([faint], through=through, normalise=True)
        found = pull(guidance)
        assert bool((rms(found) <= 1 + 1e-4).all())
        assert guidance.statistics.guides[0].skipped == 0
        if factor == 0.0:
            assert bool((found == 0).all())


def pulls(seed: int, count: int, size: float = 1.0) -> list[Tensor]:
    """Of four images, between which every sign of a dot product occurs."""
    generator = torch.Generator().manual_seed(seed)
    return [size * torch.randn(BATCH, 3, 2, 2, generator=generator) for _ in range(count)]


def dots(one: Tensor, other: Tensor) -> Tensor:
    """Cosines, (B,)."""
    a, b = one.flatten(1).double(), other.flatten(1).double()
    return torch.nn.functional.cosine_similarity(a, b, eps=0)


seeds = st.integers(0, 2**31)
FAR, SIGNS = torch.full((BATCH,), 10.0), torch.tensor([1.0, -1.0, 1.0, -1.0])


class TestConflicts:
    @given(seeds, st.sampled_from([1e-20, 1.0, 1e10]), st.floats(1e-3, 1e3))
    def test_of_two_guides_neither_pulls_against_the_other(
        self, seed: int, size: float, ratio: float
    ) -> None:
        one, other = pulls(seed, 2, size)
        other = other * ratio
        (first, changed), (second, also) = without_conflicts([one, other])
        against = dots(one, other) < 0
        assert torch.equal(changed.flatten(), against)
        assert torch.equal(also.flatten(), against)
        for left, right in ((first, other), (second, one), (first + second, one)):
            assert bool((dots(left, right) > -1e-5).all())
        # What is left of a pull is what is normal to the other: Pythagoras.
        cosine = dots(one, other)[against]
        shorter = first.flatten(1).double().norm(dim=1) / one.flatten(1).double().norm(dim=1)
        torch.testing.assert_close(shorter[against], (1 - cosine**2).sqrt(), atol=1e-4, rtol=1e-3)

    @given(seeds)
    def test_without_a_conflict_nothing_changes(self, seed: int) -> None:
        one, other = pulls(seed, 2)
        agreeing = torch.where((dots(one, other) < 0)[:, None, None, None], -other, other)
        for before, (after, changed) in zip(
            (one, agreeing), without_conflicts([one, agreeing]), strict=True
        ):
            assert torch.equal(after, before)
            assert not bool(changed.any())

    @given(seeds, st.integers(3, 5))
    def test_of_several_guides_is_algorithm_1(self, seed: int, count: int) -> None:
        given = pulls(seed, count)
        found = without_conflicts(given)
        for image in range(BATCH):
            flat = [one[image].flatten().double().numpy() for one in given]
            for k, (after, _) in enumerate(found):
                wanted = flat[k].copy()
                for j in range(count):
                    if j != k and (dot := wanted @ flat[j]) < 0:
                        wanted -= dot / (flat[j] @ flat[j]) * flat[j]
                assert after[image].flatten().tolist() == pytest.approx(wanted, abs=1e-4)

    def test_opposite_guides_come_to_nothing_and_zero_is_no_conflict(self) -> None:
        (one,) = pulls(0, 1)
        for after, _ in without_conflicts([one, -one]):
            torch.testing.assert_close(after, torch.zeros_like(one), atol=1e-6, rtol=0)
        (after, changed), (zero, _) = without_conflicts([one, torch.zeros_like(one)])
        assert torch.equal(after, one)
        assert not bool(changed.any() | zero.any())

    @both
    def test_guides_are_parted_image_by_image_and_counted(self, through) -> None:
        # One network and another that resembles it, which want the same of two images.
        network, like = Counted(0), Counted(1)
        wanted = [Target(value=v[:, None, None, None], label="") for v in (FAR, FAR * SIGNS)]
        guides = [
            guide(0, network, scale=2.0, target=wanted[0]),
            guide(1, lambda x: network(x) + 0.5 * like(x), scale=3.0, target=wanted[1]),
        ]
        kept = EnergyGuidance(guides, through=through)
        removed = EnergyGuidance(guides, through=through, conflicts="remove")
        at = denoiser(lambda x: 0.0 * x)  # x0 is then x_t / alpha, and both ways are comparable
        x = images()
        seen = x if through == "noisy" else at(x).x0
        clean = NoiseLevel(torch.full((BATCH,), torch.inf, dtype=torch.float64))
        level = LEVEL if through == "noisy" else clean
        alone = [-one.scale * one.gradient(seen, level) for one in guides]
        chain = 1.0 if through == "noisy" else (1 / LEVEL.alpha)[:, None, None, None].float()
        against = dots(*alone) < 0
        assert torch.equal(against, SIGNS < 0)
        (first, _), (second, _) = without_conflicts(alone)
        found = pull(removed, x, at)
        torch.testing.assert_close(found, chain * (first + second), atol=1e-7, rtol=1e-4)
        same = pull(kept, x, at)
        torch.testing.assert_close(same, chain * sum(alone), atol=1e-7, rtol=1e-4)
        torch.testing.assert_close(found[~against], same[~against], atol=0, rtol=0)
        counted = [one.conflicts for one in removed.statistics.guides]
        assert counted == [int(against.sum())] * 2
        assert [one.conflicts for one in kept.statistics.guides] == [0, 0]

    def test_a_bad_image_conflicts_with_nothing(self) -> None:
        bad = guide(0, look=poisoned(Counted(0), 1, float("nan")))
        found = pull(EnergyGuidance([bad, guide(1)], conflicts="remove"))
        alone = pull(EnergyGuidance([guide(1)]))
        assert torch.equal(found[1], alone[1])
        assert bool(found.isfinite().all())

    def test_must_be_known(self) -> None:
        with pytest.raises(UsageError, match="'drop'"):
            EnergyGuidance([], conflicts="drop")  # type: ignore[arg-type]


class TestStatistics:
    def test_cost_of_noisy(self) -> None:
        guides, network = [guide(0), guide(1)], Counted(100)
        guidance = EnergyGuidance(guides)
        pull(guidance, denoise=denoiser(network))
        assert (network.forwards, network.backwards) == (1, 0)
        for one in guides:
            assert (one.model._network.forwards, one.model._network.backwards) == (1, 1)
        statistics = guidance.statistics
        assert (statistics.denoiser_forwards, statistics.denoiser_backwards) == (BATCH, 0)
        assert [(g.forwards, g.backwards) for g in statistics.guides] == [(BATCH, BATCH)] * 2

    def test_cost_of_clean(self) -> None:
        guides, network = [guide(0), guide(1), guide(2)], Counted(100)
        guidance = EnergyGuidance(guides, through="clean")
        pull(guidance, denoise=denoiser(network))
        assert (network.forwards, network.backwards) == (1, 1)
        for one in guides:
            assert (one.model._network.forwards, one.model._network.backwards) == (1, 1)
        statistics = guidance.statistics
        assert (statistics.denoiser_forwards, statistics.denoiser_backwards) == (BATCH, BATCH)

    def test_norms_by_step(self) -> None:
        one = guide(scale=7.0)
        guidance = EnergyGuidance([one])
        for time in (0.8, 0.4, 0.8):  # two batches, the second of which was cut short
            guidance(images(), time, LEVEL, denoiser())
        (found,) = guidance.statistics.guides
        norms = one.gradient(images(), LEVEL).flatten(1).norm(dim=1)
        assert found.times == (0.8, 0.4)
        assert found.gradient_norms == pytest.approx([norms.mean().item()] * 2)
        assert found.forwards == 3 * BATCH

    def test_norms_leave_out_what_is_not_finite(self) -> None:
        bad = guide(0, look=poisoned(Counted(0), 0, float("nan")))
        blind = guide(1, look=lambda x: x * torch.nan)
        guidance = EnergyGuidance([bad, blind])
        pull(guidance)
        first, second = guidance.statistics.guides
        norms = guide(0).gradient(images(), LEVEL).flatten(1).norm(dim=1)
        assert first.gradient_norms == pytest.approx([norms[1:].mean().item()])
        assert second.gradient_norms == (None,)
        assert second.skipped == BATCH

    def test_nothing_done_is_nothing_counted(self) -> None:
        statistics = EnergyGuidance([guide()]).statistics
        assert attrs.asdict(statistics) == {
            "guides": (
                {
                    "name": "guide-0",
                    "forwards": 0,
                    "backwards": 0,
                    "skipped": 0,
                    "conflicts": 0,
                    "times": (),
                    "gradient_norms": (),
                },
            ),
            "denoiser_forwards": 0,
            "denoiser_backwards": 0,
            "denoiser_skipped": 0,
        }
