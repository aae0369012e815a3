"""What EnergyGuidance does with its guides: adding, safety, cost and bookkeeping."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close
from toy_guides import guide_of

from ppap_framework.components import Prediction
from ppap_framework.errors import PluginError, UsageError
from ppap_framework.guidance import EnergyGuidance, GuidanceStatistics, Guide
from ppap_framework.guidance.energy import without_conflicts
from ppap_framework.guidance.guide import Through
from ppap_framework.guidance.moments import Moments
from ppap_framework.noise import NoiseLevel, cosine_schedule

BATCH, TIME = 4, 0.4
SCHEDULE = cosine_schedule(100)
T = torch.full((BATCH,), 40)
LEVEL = SCHEDULE.level(T)
NAN = float("nan")


class Counted(nn.Module):
    """A small smooth convolutional network that counts its calls and what flows back through it."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Tanh(), nn.Conv2d(4, 3, 1)
            )
        self.forwards = self.backwards = 0

    def forward(self, x: Tensor, level: NoiseLevel | None = None) -> Tensor:
        self.forwards += 1
        self.level = level
        y = self.layers(x)
        if y.requires_grad:
            y.register_hook(self._count)
        return y

    def _count(self, gradient: Tensor) -> None:
        self.backwards += 1


def guidance_of(
    guides: Sequence[Guide], through: Through | None = None, **how: Any
) -> EnergyGuidance:
    """Of guides that look at one image; None for each guide's own."""
    aimed = [attrs.evolve(one, through=through or one.through) for one in guides]
    return EnergyGuidance(aimed, **how)


def counts(guidance: EnergyGuidance) -> GuidanceStatistics:
    return guidance.tally.read([guide.name for guide in guidance.guides])


def squares(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).square().flatten(1).mean(1)


def guide(seed: int = 0, look: Callable[..., Any] | None = None, **changes: Any) -> Guide:
    target = changes.pop("target", torch.linspace(-1, 1, BATCH)[:, None, None, None])
    return guide_of(look or Counted(seed), squares, target, name=f"guide-{seed}", **changes)


def scaled(seed: int, factor: float | Tensor) -> Callable[..., Tensor]:
    network = Counted(seed)
    return lambda x, level: network(x) * factor


def poisoned(seed: int, row: int, value: float) -> Callable[..., Tensor]:
    """A network with the answer to one image multiplied by something bad."""
    return scaled(seed, torch.ones(BATCH, 1, 1, 1).index_fill(0, torch.tensor([row]), value))


def denoiser(
    network: Callable[[Tensor], Tensor] | None = None, t: Tensor = T
) -> Callable[[Tensor], Prediction]:
    network, level = network or Counted(100), SCHEDULE.level(t)
    alpha, sigma = level.alpha[:, None, None, None], level.sigma[:, None, None, None]
    return lambda x: Prediction.from_eps(network(x), x, alpha, sigma)


def images(seed: int = 0) -> Tensor:
    return torch.randn(BATCH, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def driven(guidance: EnergyGuidance, x: Tensor | None = None, denoise: Any = None) -> Tensor:
    _, gradient = guidance(images() if x is None else x, TIME, LEVEL, denoise or denoiser())
    return gradient


def pull(*guides: Guide, x: Tensor | None = None, denoise: Any = None, **how: Any) -> Tensor:
    return driven(guidance_of(guides, **how), x, denoise)


def rms(gradient: Tensor) -> Tensor:
    return gradient.square().flatten(1).mean(1).sqrt()


both = pytest.mark.parametrize("through", ["noisy", "clean"])


class TestGradient:
    def test_noisy_is_minus_the_scaled_gradient_at_x_t(self) -> None:
        one, x = guide(scale=3.0), images()
        step = 1e-3 * images(1)
        with torch.no_grad():
            ahead, behind = (
                squares(one.model(x + sign * step, LEVEL), one.target.value) for sign in (1, -1)
            )
        slope = (pull(one, x=x) * step).flatten(1).sum(1)
        assert_close(slope, -3.0 * (ahead - behind) / 2, rtol=1e-2, atol=1e-6)

    def test_clean_goes_through_the_unclipped_x0_and_the_denoiser(self) -> None:
        one, x, denoise = guide(scale=2.0), 5 * images(), denoiser()
        leaf = x.clone().requires_grad_()
        x0 = denoise(leaf).x0
        assert x0.abs().max() > 1
        energy = squares(one.model(x0, LEVEL), one.target.value).sum()
        (wanted,) = torch.autograd.grad(-2.0 * energy, leaf)
        assert_close(pull(one, x=x, denoise=denoise, through="clean"), wanted)

    @both
    def test_guides_add_up(self, through) -> None:
        guides = [guide(0, scale=1.5), guide(1, scale=-0.5)]
        apart = [pull(one, through=through) for one in guides]
        assert_close(pull(*guides, through=through), apart[0] + apart[1])

    def test_each_guide_looks_at_its_own_image(self) -> None:
        """Their gradients add up, and the denoiser serves all of them once."""
        ways: tuple[Any, ...] = ("noisy", "detached", "clean")
        guides = [guide(k, through=way) for k, way in enumerate(ways)]
        apart = [pull(guide(k), through=way) for k, way in enumerate(ways)]
        network = Counted(100)
        assert_close(pull(*guides, denoise=denoiser(network)), torch.stack(apart).sum(0))
        assert network.forwards == 1

    @both
    def test_prediction_is_the_denoisers_without_a_graph(self, through) -> None:
        x, denoise = images(), denoiser()
        prediction, gradient = guidance_of([guide()], through=through)(x, TIME, LEVEL, denoise)
        assert_close(prediction.eps, denoise(x).eps)
        for tensor in (prediction.x_t, prediction.eps, prediction.x0, gradient):
            assert not tensor.requires_grad

    @both
    def test_an_image_does_not_depend_on_the_others_or_the_memory_format(self, through) -> None:
        x, one = images(), partial(pull, guide(), through=through)
        found = one(x=x)
        assert_close(one(x=torch.cat([x[:1], images(9)[1:]]))[0], found[0])
        assert_close(one(x=x.to(memory_format=torch.channels_last)), found)

    @both
    def test_rows_take_their_own_targets(self, through) -> None:
        x, guidance = images(), guidance_of([guide()], through=through)
        whole = driven(guidance, x)
        some = attrs.evolve(
            guidance, guides=[guide(through=through).rows(1, 3)]
        )  # which counts in the same tally
        _, part = some(x[1:3], TIME, SCHEDULE.level(T[1:3]), denoiser(t=T[1:3]))
        assert_close(part, whole[1:3])
        assert counts(guidance).guides[0].forwards == BATCH + 2

    @both
    def test_parameters_get_no_gradients(self, through) -> None:
        networks = Counted(0), Counted(100)
        pull(guide(0, networks[0]), denoise=denoiser(networks[1]), through=through)
        assert all(p.grad is None for network in networks for p in network.parameters())

    def test_levels_are_those_of_what_is_looked_at(self) -> None:
        network = Counted(0)
        pull(guide(0, network))
        assert torch.equal(network.level.log_snr, LEVEL.log_snr)
        pull(guide(0, network), through="clean")
        assert bool((network.level.sigma == 0).all() & (network.level.alpha == 1).all())


class TestInterval:
    @given(st.floats(0, 0.99), st.floats(0.01, 1), st.floats(0, 0.999))
    def test_half_open(self, low: float, high: float, time: float) -> None:
        one = guide()
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
        guidance = guidance_of(guides, through=through)
        _, gradient = guidance(images(), TIME, LEVEL, denoiser(network))
        assert gradient is None
        assert (network.forwards, network.backwards) == (1, 0)
        assert counts(guidance).denoiser_backwards == 0
        assert counts(guidance).guides[0].forwards == 0

    @both
    def test_only_those_inside_act(self, through) -> None:
        inside, outside = guide(0), guide(1, interval=(0.5, 1.0))
        assert_close(pull(outside, inside, through=through), pull(inside, through=through))


class TestSafety:
    @both
    @pytest.mark.parametrize("value", [NAN, float("inf"), 1e30])
    def test_one_bad_image_is_left_out_alone(self, through, value: float) -> None:
        bad, good = guide(0, poisoned(0, 2, value)), guide(1)
        guidance = guidance_of([bad, good], through=through)
        found = driven(guidance)
        both_guides, only_good = pull(guide(0), good, through=through), pull(good, through=through)
        wanted = torch.cat([both_guides[:2], only_good[2:3], both_guides[3:]])
        assert_close(found, wanted)
        assert [one.skipped for one in counts(guidance).guides] == [1, 0]
        assert counts(guidance).denoiser_skipped == 0

    @both
    def test_a_bad_image_stays_alone(self, through) -> None:
        x, rest = images(), [0, 2, 3]
        x[1] = NAN
        guidance = guidance_of([guide()], through=through)
        found = driven(guidance, x)
        assert bool((found[1] == 0).all())
        assert counts(guidance).guides[0].skipped == 1
        assert counts(guidance).denoiser_skipped == 0  # counted once
        assert_close(found[rest], pull(guide(), through=through)[rest])

    def test_a_denoiser_that_overflows_is_counted_apart(self) -> None:
        steep = torch.tensor([1.0, 1.0, 1.0, 1e38])[:, None, None, None]

        def denoise(x: Tensor) -> Prediction:
            prediction = denoiser()(x)
            x0 = prediction.x0  # the same, with a derivative that no gradient survives
            return prediction.with_x0(x0.detach() + steep * (x0 - x0.detach()))

        guidance = guidance_of([guide()], through="clean")
        found = driven(guidance, denoise=denoise)
        assert (found != 0).flatten(1).any(1).tolist() == [True, True, True, False]
        assert counts(guidance).denoiser_skipped == 1
        assert counts(guidance).guides[0].skipped == 0

    @pytest.mark.parametrize("scale", [NAN, float("inf")])
    def test_scale_must_be_finite(self, scale: float) -> None:
        with pytest.raises(UsageError, match="guide-0"):
            guide(scale=scale)

    @both
    def test_guides_must_be_differentiable(self, through) -> None:
        with pytest.raises(PluginError, match=r"'guide-0'.*no gradient"):
            pull(guide(0, lambda x, level: x.detach()), through=through)

    def test_energies_must_be_one_for_each_image(self) -> None:
        summed = guide_of(Counted(0), lambda x, target: x.sum(), torch.zeros(1), name="sum")
        with pytest.raises(PluginError, match=r"'sum' has shape \(\)"):
            pull(summed)

    def test_denoiser_must_be_differentiable(self) -> None:
        with pytest.raises(PluginError, match="denoiser"):
            pull(guide(), through="clean", denoise=denoiser(lambda x: Counted(0)(x).detach()))


class TestNormalize:
    @both
    def test_a_scale_is_the_root_mean_square(self, through) -> None:
        found = pull(guide(scale=-3.0), through=through, normalize=True)
        assert_close(rms(found), torch.full((BATCH,), 3.0))
        plain = pull(guide(scale=-3.0), through=through)
        assert_close(found, 3.0 * plain / rms(plain)[:, None, None, None])  # the direction stays

    def test_each_guide_by_itself(self) -> None:
        loud = guide(1, scaled(1, 100.0))
        apart = [pull(one, normalize=True) for one in (guide(0), loud)]
        assert_close(pull(guide(0), loud, normalize=True), apart[0] + apart[1])

    @both
    @pytest.mark.parametrize("factor", [0.0, 1e-30, 1e-12])
    def test_a_vanishing_gradient_makes_nothing_infinite(self, through, factor: float) -> None:
        guidance = guidance_of([guide(0, scaled(0, factor))], through, normalize=True)
        found = driven(guidance)
        assert bool((rms(found) <= 1 + 1e-4).all())
        assert counts(guidance).guides[0].skipped == 0
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
        assert_close(shorter[against], (1 - cosine**2).sqrt(), atol=1e-4, rtol=1e-3)

    @given(seeds)
    def test_without_a_conflict_nothing_changes(self, seed: int) -> None:
        one, other = pulls(seed, 2)
        agreeing = torch.where((dots(one, other) < 0)[:, None, None, None], -other, other)
        found = without_conflicts([one, agreeing])
        for before, (after, changed) in zip((one, agreeing), found, strict=True):
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
            assert_close(after, torch.zeros_like(one), atol=1e-6, rtol=0)
        (after, changed), (zero, _) = without_conflicts([one, torch.zeros_like(one)])
        assert torch.equal(after, one)
        assert not bool(changed.any() | zero.any())

    @both
    def test_guides_are_parted_image_by_image_and_counted(self, through) -> None:
        # One network and another that resembles it, which want the same of two images.
        network, like = Counted(0), Counted(1)
        signs = torch.tensor([1.0, -1.0, 1.0, -1.0])
        looks = network, lambda x, level: network(x) + 0.5 * like(x)
        far = [10.0 * sign[:, None, None, None] for sign in (signs.abs(), signs)]
        guides = [guide(k, looks[k], scale=2.0 + k, target=far[k]) for k in (0, 1)]
        kept = guidance_of(guides, through)
        removed = guidance_of(guides, through, conflicts="remove")
        at = denoiser(lambda x: 0.0 * x)  # x0 is then x_t / alpha, and both ways are comparable
        x, level, chain = images(), LEVEL, torch.ones(())
        if through == "clean":
            x, level = at(x).x0, NoiseLevel.clean(BATCH)
            chain = (1 / LEVEL.alpha)[:, None, None, None].float()
        alone = [-one.scale * one.gradient(x, level) for one in guides]
        against = dots(*alone) < 0
        assert torch.equal(against, signs < 0)
        (first, _), (second, _) = without_conflicts(alone)
        found, same = driven(removed, denoise=at), driven(kept, denoise=at)
        assert_close(found, chain * (first + second), atol=1e-7, rtol=1e-4)
        assert_close(same, chain * sum(alone), atol=1e-7, rtol=1e-4)
        assert torch.equal(found[~against], same[~against])
        counted = [one.conflicts for one in counts(removed).guides]
        assert counted == [int(against.sum())] * 2
        assert [one.conflicts for one in counts(kept).guides] == [0, 0]

    def test_a_bad_image_conflicts_with_nothing(self) -> None:
        found = pull(guide(0, poisoned(0, 1, NAN)), guide(1), conflicts="remove")
        assert torch.equal(found[1], pull(guide(1))[1])
        assert bool(found.isfinite().all())


class TestStatistics:
    @pytest.mark.parametrize(("through", "backwards"), [("noisy", 0), ("clean", 1)])
    def test_cost(self, through, backwards: int) -> None:
        networks, network = [Counted(k) for k in range(3)], Counted(100)
        guidance = guidance_of([guide(k, one) for k, one in enumerate(networks)], through)
        driven(guidance, denoise=denoiser(network))
        assert (network.forwards, network.backwards) == (1, backwards)
        assert [(one.forwards, one.backwards) for one in networks] == [(1, 1)] * 3
        found = counts(guidance)
        counted = (found.denoiser_forwards, found.denoiser_backwards)
        assert counted == (BATCH, BATCH * backwards)
        assert [(g.forwards, g.backwards) for g in found.guides] == [(BATCH, BATCH)] * 3

    def test_norms_and_pulls_by_step(self) -> None:
        one = guide(scale=7.0)
        guidance = guidance_of([one])
        for time in (0.8, 0.4, 0.8):  # two batches, the second of which was cut short
            guidance(images(), time, LEVEL, denoiser())
        (found,) = counts(guidance).guides
        gradient = one.gradient(images(), LEVEL)
        assert found.times == (0.8, 0.4)
        norm = gradient.flatten(1).norm(dim=1).mean().item()
        assert found.gradient_norms == pytest.approx([norm] * 2)
        moved = (7.0 * LEVEL.sigma * rms(gradient)).mean().item()  # of the predicted noise
        assert found.pulls == pytest.approx([moved] * 2)
        assert found.forwards == 3 * BATCH

    def test_norms_leave_out_what_is_not_finite(self) -> None:
        bad, blind = guide(0, poisoned(0, 0, NAN)), guide(1, lambda x, level: x * NAN)
        guidance = guidance_of([bad, blind])
        driven(guidance)
        first, second = counts(guidance).guides
        norms = guide(0).gradient(images(), LEVEL).flatten(1).norm(dim=1)
        assert first.gradient_norms == pytest.approx([norms[1:].mean().item()])
        assert (second.gradient_norms, second.pulls) == ((None,), (0.0,))
        assert second.skipped == BATCH

    def test_nothing_done_is_nothing_counted(self) -> None:
        found = counts(guidance_of([guide()]))
        (one,) = found.guides
        assert attrs.astuple(one) == ("guide-0", 0, 0, 0, 0, (), (), ())
        assert attrs.astuple(attrs.evolve(found, guides=())) == ((), 0, 0, 0)


class TestDetached:
    def test_is_the_gradient_at_the_predicted_image(self) -> None:
        """The denoiser runs once, is not differentiated, and the guide reads a clean image."""
        look, network = Counted(0), Counted(100)
        one = guide(look=look, scale=3.0)
        guidance = guidance_of([one], "detached")
        found = driven(guidance, denoise=denoiser(network))
        assert network.forwards == 1
        x0 = denoiser(network)(images()).x0.detach().clamp(-1, 1).requires_grad_()
        energy = squares(one.model(x0, NoiseLevel.clean(BATCH)), one.target.value)
        (wanted,) = torch.autograd.grad(energy.sum(), x0)
        assert_close(found, -3.0 * wanted)
        assert network.backwards == 0
        assert counts(guidance).denoiser_backwards == 0
        assert look.level is not None
        assert look.level.log_snr.isinf().all()


class TestMoments:
    """Against `torch.optim.Adam`, one parameter and learning rate 1."""

    @pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.5), (0.5, 0.0), (0.0, 0.0)])
    @given(seeds)
    @settings(max_examples=10)
    def test_are_those_of_adam(self, betas: tuple[float, float], seed: int) -> None:
        gradients, moments = pulls(seed, 5), Moments(betas)
        x = torch.zeros_like(gradients[0]).requires_grad_()
        adam = torch.optim.Adam([x], lr=1.0, betas=betas, eps=1e-30)
        for gradient in gradients:
            x.data.zero_()
            x.grad = gradient.clone()
            adam.step()
            assert_close(moments(gradient), -x.detach(), rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("through", ["noisy", "clean", "detached"])
    def test_keep_the_norm_and_the_scale_of_each_gradient(self, through) -> None:
        """At the first step, Adam's direction is the sign. The denoiser predicts no noise, so its
        derivative is a factor.
        """
        one, no_noise = guide(scale=3.0), denoiser(lambda x: 0.0 * x)
        plain = pull(one, through=through, denoise=no_noise)
        found = pull(one, through=through, denoise=no_noise, moments=(0.9, 0.999))
        assert_close(found, plain.sign() * rms(plain)[:, None, None, None], rtol=1e-4, atol=1e-6)

    def test_are_of_each_guide_image_and_trajectory(self) -> None:
        steps = [images(k) for k in range(3)]
        guides = [guide(0, scale=2.0), guide(1, scale=5.0)]

        def walked(*chosen: Guide, rows: slice = slice(None)) -> Tensor:
            guidance = guidance_of([g.rows(rows.start or 0, rows.stop or BATCH) for g in chosen],
                                      moments=(0.9, 0.99))  # fmt: skip
            level = NoiseLevel(LEVEL.log_snr[rows])
            return [guidance(x[rows], TIME, level, denoiser(t=T[rows]))[1] for x in steps][-1]

        both_at_once = walked(*guides)
        assert_close(both_at_once, walked(guides[0]) + walked(guides[1]))
        assert_close(both_at_once[1:3], walked(*guides, rows=slice(1, 3)))
        fresh = pull(*guides, x=steps[-1], moments=(0.9, 0.99))
        assert not torch.allclose(both_at_once, fresh)

    @pytest.mark.parametrize("through", ["noisy", "clean", "detached"])
    def test_are_repeated_between_looks(self, through: Any) -> None:
        one = guide(scale=3.0, interval=(0.0, 0.9))
        guidance, times = guidance_of([one], through, every=3), [TIME, TIME, 0.95, TIME, TIME]
        g = [guidance(images(k), t, LEVEL, denoiser())[1] for k, t in enumerate(times)]
        first, last = (pull(one, x=images(k), through=through) for k in (0, 4))
        for found, expected in zip(g, [first, first, None, first, last], strict=True):
            assert found is expected or torch.allclose(found, expected)

    def test_a_bad_gradient_leaves_no_trace(self) -> None:
        """Of the image whose gradient is not finite nothing is pulled; later steps are finite."""
        bad = iter([NAN, 1.0])
        network = Counted(0)
        look = lambda x, level: network(x) * next(bad)  # noqa: E731
        guidance = guidance_of([guide(0, look)], moments=(0.9, 0.99))
        assert bool((driven(guidance) == 0).all())
        after = driven(guidance)
        assert_close(rms(after), rms(pull(guide(0))))
