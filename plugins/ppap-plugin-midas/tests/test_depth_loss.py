"""The losses against their definitions in numpy, and what must not change them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ppap_plugin_midas.colours import colour_map, colour_table
from ppap_plugin_midas.loss import DepthMSE, ScaleShiftInvariant, depth_metrics

SSI, MSE = ScaleShiftInvariant(), DepthMSE()

seeds = st.integers(0, 2**31)
quick = settings(max_examples=30, deadline=None)
scales, shifts = st.floats(1e-3, 1e3), st.floats(-10, 10)


def maps(seed: int, *shape: int) -> Tensor:
    return 1 + torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def ssi_by_hand(d: np.ndarray, wanted: np.ndarray) -> float:
    def framed(x: np.ndarray) -> np.ndarray:
        centred = x - np.sort(x)[(len(x) - 1) // 2]
        return centred / np.abs(centred).mean()

    return float(np.abs(framed(d) - framed(wanted)).mean())


class TestScaleShiftInvariant:
    @quick
    @given(seeds, st.integers(2, 6), st.integers(2, 6))
    def test_is_its_definition(self, seed: int, height: int, width: int) -> None:
        d, wanted = maps(seed, 3, height, width), maps(seed + 1, 3, height, width)
        expected = [
            ssi_by_hand(a.flatten().double().numpy(), b.flatten().double().numpy())
            for a, b in zip(d, wanted, strict=True)
        ]
        for found in (SSI.energy(d, wanted), SSI.transfer(d, wanted)):
            torch.testing.assert_close(found, torch.tensor(expected).float(), atol=1e-3, rtol=0)

    @quick
    @given(seeds, scales, shifts, scales, shifts)
    def test_scale_and_shift_of_either_map_do_not_matter(
        self, seed: int, s: float, t: float, s2: float, t2: float
    ) -> None:
        d, wanted = maps(seed, 2, 5, 5), maps(seed + 1, 1, 5, 5)
        changed = SSI.energy(s * (d + t), s2 * (wanted + t2))
        torch.testing.assert_close(changed, SSI.energy(d, wanted), atol=1e-3, rtol=0)
        assert (SSI.energy(d, s * (d + t)) < 1e-3).all()

    @quick
    @given(seeds)
    def test_bounds_and_batches(self, seed: int) -> None:
        d, wanted = maps(seed, 4, 6, 5), maps(seed + 1, 4, 6, 5)
        together = SSI.energy(d, wanted)
        assert ((together >= 0) & (together <= 2 + 1e-5)).all()
        for row in range(4):
            alone = SSI.energy(d[row : row + 1], wanted[row : row + 1])
            torch.testing.assert_close(alone[0], together[row])
        assert (SSI.energy(d, -d) > 1).all()  # near and far exchanged

    @pytest.mark.parametrize("value", [0.0, 1e-30, 3.0, -7e5])
    def test_constant_maps_are_safe(self, value: float) -> None:
        flat, other = torch.full((2, 4, 4), value), maps(0, 2, 4, 4)
        for d, wanted in ((flat, other), (other, flat), (flat, flat)):
            d = d.clone().requires_grad_(True)
            energy = SSI.energy(d, wanted)
            energy.sum().backward()
            assert energy.isfinite().all()
            assert d.grad is not None
            assert d.grad.isfinite().all()

    def test_the_gradient_is_that_of_differences(self) -> None:
        d = maps(0, 1, 3, 3).double().requires_grad_(True)
        wanted = maps(1, 1, 3, 3).double()
        assert torch.autograd.gradcheck(
            lambda x: SSI.energy(x, wanted).double(), d, eps=1e-3, atol=1e-3
        )


class TestMSE:
    def test_is_its_definition(self) -> None:
        d, wanted = maps(0, 3, 4, 4), maps(1, 1, 4, 4)
        expected = ((d - wanted).numpy() ** 2).mean((1, 2))
        torch.testing.assert_close(MSE.energy(d, wanted), torch.from_numpy(expected))
        torch.testing.assert_close(MSE.transfer(d, wanted), torch.from_numpy(expected))
        assert not MSE.energy(d, d).any()


@pytest.mark.parametrize("loss", [SSI, MSE], ids=["ssi", "mse"])
class TestTargets:
    def test_other_resolutions_are_resized(self, loss: ScaleShiftInvariant | DepthMSE) -> None:
        ramp = torch.linspace(1, 2, 8).expand(1, 8, 8)
        large = torch.nn.functional.interpolate(ramp[None], (32, 32), mode="bilinear")[0]
        assert loss.energy(ramp, large) < 0.05
        assert loss.transfer(large, ramp) < 0.05
        assert loss.energy(ramp, large.flip(2)) > 0.1

    def test_unknown_pixels_do_not_count(self, loss: ScaleShiftInvariant | DepthMSE) -> None:
        d, wanted = maps(0, 1, 4, 6), maps(1, 1, 4, 6)
        spoilt = wanted.clone()
        spoilt[:, :, 4:] = torch.nan
        d.requires_grad_(True)
        energy = loss.energy(d, spoilt)
        torch.testing.assert_close(energy, loss.energy(d[..., :4], wanted[..., :4]))
        energy.sum().backward()
        assert d.grad is not None
        assert not d.grad[..., 4:].any()
        halved = loss.energy(d.detach(), torch.nn.functional.interpolate(spoilt[None], (8, 12))[0])
        assert halved.isfinite().all()

    def test_nothing_known_is_nothing_to_do(self, loss: ScaleShiftInvariant | DepthMSE) -> None:
        d = maps(0, 2, 4, 4).requires_grad_(True)
        energy = loss.energy(d, torch.full((1, 4, 4), torch.nan))
        energy.sum().backward()
        assert not energy.any()
        assert d.grad is not None
        assert not d.grad.any()


class TestMetrics:
    @quick
    @given(seeds)
    def test_are_their_definitions(self, seed: int) -> None:
        d, wanted = maps(seed, 2, 5, 5), maps(seed + 1, 2, 5, 5)
        told = depth_metrics(d, wanted)
        for row in range(2):
            x, y = d[row].double().numpy().ravel(), wanted[row].double().numpy().ravel()
            design = np.stack([x, np.ones_like(x)], axis=1)
            s, t = np.linalg.lstsq(design, y, rcond=None)[0]
            floor = y.max() / 100
            z, true = 1 / np.maximum(s * x + t, floor), 1 / np.maximum(y, floor)
            expected = {
                "abs_rel": (np.abs(z - true) / true).mean(),
                "delta1": (np.maximum(z / true, true / z) < 1.25).mean(),
                "correlation": np.corrcoef(x, y)[0, 1],
            }
            for name, value in expected.items():
                assert told[name][row].item() == pytest.approx(value, abs=1e-4), name

    @quick
    @given(seeds, scales, shifts)
    def test_a_map_that_is_only_scaled_is_perfect(self, seed: int, s: float, t: float) -> None:
        wanted = maps(seed, 1, 5, 5)
        told = depth_metrics(s * (wanted + t), wanted)
        assert told["abs_rel"].item() == pytest.approx(0, abs=1e-2)
        assert told["delta1"].item() == 1
        assert told["correlation"].item() == pytest.approx(1, abs=1e-3)

    def test_constant_maps_correlate_with_nothing(self) -> None:
        flat, wanted = torch.full((1, 4, 4), 3.0), maps(0, 1, 4, 4)
        for pair in ((flat, wanted), (wanted, flat)):
            told = depth_metrics(*pair)
            assert told["correlation"].item() == 0
            assert all(bool(figure.isfinite().all()) for figure in told.values())

    def test_unknown_pixels_do_not_count(self) -> None:
        d, wanted = maps(0, 1, 4, 6), maps(1, 1, 4, 6)
        spoilt = wanted.clone()
        spoilt[..., 3:] = torch.nan
        expected = depth_metrics(d[..., :3], wanted[..., :3])
        for name, figure in depth_metrics(d, spoilt).items():
            torch.testing.assert_close(figure, expected[name])


def lightness(srgb: np.ndarray) -> np.ndarray:
    """CIE L* (1976) of (..., 3), which has another model of perception behind it than Oklab."""
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16


class TestColours:
    def test_equal_steps_are_equal_steps_of_lightness(self) -> None:
        steps = np.diff(lightness(colour_table().astype(float))[8:])
        assert (steps > 0).all()
        assert steps.std() / steps.mean() < 0.35

    def test_near_is_light_and_far_is_dark(self) -> None:
        ramp = torch.linspace(0, 5, 18).expand(2, 4, 18)
        drawn = colour_map(ramp)
        assert drawn.shape == (2, 3, 4, 18)
        assert drawn.abs().max() <= 1
        shown = lightness((drawn.permute(0, 2, 3, 1).double().numpy() + 1) / 2)
        assert (np.diff(shown, axis=2) > 0).all()
        assert shown.min() < 20
        assert shown.max() > 90
        torch.testing.assert_close(drawn, colour_map(3 * ramp - 7))

    def test_constant_and_unknown(self) -> None:
        drawn = colour_map(torch.tensor([[[2.0, 2.0]], [[torch.nan, 1.0]]]))
        assert drawn.isfinite().all()
        assert torch.equal(drawn[0, :, 0, 0], drawn[0, :, 0, 1])
        assert not drawn[1, :, 0, 0].any()
