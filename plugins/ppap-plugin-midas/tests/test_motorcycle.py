"""A photographed scene with true disparities: figures, loss and targets of depth.

The pair "Motorcycle" of the Middlebury 2014 stereo datasets (Scharstein et al. 2014), which
scikit-image carries. Disparity is what this plugin speaks of: larger is nearer, known everywhere
but where the other camera sees nothing, which the data say with infinities.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from torch import Tensor, nn

from ppap_framework.preprocessing import ImageInput
from ppap_framework.targets import decode_target
from ppap_plugin_midas.guider import DepthGuide
from ppap_plugin_midas.loss import DepthMSE, ScaleShiftInvariant, depth_metrics

Array = NDArray[np.float64]
SSI = ScaleShiftInvariant()


@pytest.fixture(scope="module")
def pair() -> tuple[Array, Array, Array]:
    """Left and right in grey, from 0 to 1, and the disparities of the left one, at half size."""
    left, right, disparity = skimage.data.stereo_motorcycle()
    grey = [picture[::2, ::2].mean(-1) / 255 for picture in (left, right)]
    return grey[0], grey[1], disparity[::2, ::2].astype(np.float64) / 2


@pytest.fixture(scope="module")
def truth(pair: tuple[Array, Array, Array]) -> Tensor:
    """(1, H, W), NaN where it is not known."""
    disparity = torch.from_numpy(pair[2]).float()[None]
    return disparity.masked_fill(~disparity.isfinite(), torch.nan)


def figures(prediction: Tensor, truth: Tensor) -> dict[str, float]:
    return {name: value.item() for name, value in depth_metrics(prediction, truth).items()}


def known(truth: Tensor) -> Array:
    values: Array = truth[truth.isfinite()].double().numpy()
    return values


class TestFigures:
    @pytest.mark.parametrize(
        ("scale", "shift"), [(1.0, 0.0), (3.0, -40.0), (1e-3, 5.0), (-2.0, 7.0)]
    )
    def test_scale_and_shift_leave_them_perfect(
        self, truth: Tensor, scale: float, shift: float
    ) -> None:
        # Whatever is said where nothing is known must not matter.
        told = figures((scale * truth + shift).nan_to_num(1e4), truth)
        assert told["abs_rel"] == pytest.approx(0.0, abs=1e-3)
        assert told["delta1"] == 1.0
        assert told["correlation"] == pytest.approx(np.sign(scale), abs=1e-4)

    def test_a_wall_is_as_far_as_the_mean(self, truth: Tensor) -> None:
        told = figures(torch.full_like(truth, 5.0), truth)
        ratio = known(truth) / known(truth).mean()  # of distances, as aligned
        assert told["correlation"] == 0.0
        assert told["abs_rel"] == pytest.approx(np.abs(ratio - 1).mean(), rel=1e-4)
        near = np.maximum(ratio, 1 / ratio) < 1.25
        assert told["delta1"] == pytest.approx(near.mean(), abs=1e-4)

    @pytest.mark.parametrize("strength", [0.1, 0.5, 2.0])
    def test_errors_that_no_alignment_explains(self, truth: Tensor, strength: float) -> None:
        d = known(truth)
        design = np.stack([d, np.ones_like(d)], 1)
        noise = np.random.default_rng(0).normal(size=d.shape)
        noise -= design @ np.linalg.lstsq(design, noise, rcond=None)[0]
        noise *= strength / noise.std()
        spoilt = torch.zeros_like(truth)
        spoilt[truth.isfinite()] = torch.from_numpy(d + noise).float()
        told = figures(spoilt, truth)
        # The least squares of d + noise are d's own share: slope var(d) / (var(d) + var(noise)).
        share = d.var() / (d.var() + strength**2)
        aligned = np.maximum(d.mean() + share * (d + noise - d.mean()), d.max() / 100)
        assert told["correlation"] == pytest.approx(np.sqrt(share), abs=1e-4)
        assert told["abs_rel"] == pytest.approx(np.abs(d / aligned - 1).mean(), rel=1e-3)
        worst = np.maximum(d / aligned, aligned / d)
        assert told["delta1"] == pytest.approx((worst < 1.25).mean(), abs=1e-3)

    def test_distances_are_no_disparities(self, truth: Tensor) -> None:
        told = figures((100 / truth).nan_to_num(0.0), truth)
        d = known(truth)
        assert told["correlation"] == pytest.approx(np.corrcoef(100 / d, d)[0, 1], abs=1e-4)
        assert told["correlation"] < -0.8
        assert told["abs_rel"] > 0.02

    def test_coarser_maps_are_nearly_as_good(self, truth: Tensor) -> None:
        half = nn.functional.avg_pool2d(truth.nan_to_num(float(truth.nanmedian()))[None], 2)[0]
        assert figures(half, truth)["correlation"] > 0.98


def matched(left: Array, right: Array, largest: int, radius: int = 4) -> Array:
    """Block matching: for each pixel of the left one the shift to the block of the right one that
    differs least."""
    costs = []
    for shift in range(largest):
        there = np.roll(right, shift, axis=1)
        difference = np.minimum(np.abs(left - there), 0.1)
        difference[:, :shift] = 0.1  # it would lie outside
        costs.append(uniform_filter(difference, 2 * radius + 1))
    found: Array = np.argmin(costs, axis=0).astype(np.float64)
    return found


@pytest.fixture(scope="module")
def estimate(pair: tuple[Array, Array, Array]) -> Tensor:
    return torch.from_numpy(matched(*pair[:2], largest=36)).float()[None]


class TestAnEstimatorOfItsOwn:
    """Depth that comes from the two photographs, and from nothing of this project."""

    def test_disparities_lead_from_one_picture_to_the_other(
        self, pair: tuple[Array, Array, Array]
    ) -> None:
        left, right, disparity = pair
        rows, columns = np.nonzero(np.isfinite(disparity))
        source = np.rint(columns - disparity[rows, columns]).astype(int)
        inside = source >= 0
        rows, columns, source = rows[inside], columns[inside], source[inside]
        here = left[rows, columns]
        assert (
            np.abs(here - right[rows, source]).mean()
            < 0.4 * np.abs(here - right[rows, columns]).mean()
        )

    def test_is_good_and_the_figures_say_so(self, estimate: Tensor, truth: Tensor) -> None:
        told = figures(estimate, truth)
        assert told["correlation"] > 0.7
        assert told["delta1"] > 0.65
        assert told["abs_rel"] < 0.3
        turned = figures(estimate.flip(2), truth)
        assert turned["correlation"] < told["correlation"] - 0.2
        assert turned["delta1"] < told["delta1"]
        assert turned["abs_rel"] > told["abs_rel"]

    def test_the_loss_ranks_as_the_figures_do(self, estimate: Tensor, truth: Tensor) -> None:
        perfect = (2 * truth + 1).nan_to_num(0.0)
        energies = [SSI.energy(d, truth).item() for d in (perfect, estimate, estimate.flip(2))]
        assert energies[0] == pytest.approx(0.0, abs=1e-4)
        assert energies == sorted(energies)
        assert energies[1] < 0.6 * energies[2]


class Looking(nn.Module):
    """Stands for a network: as near as it is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, pixel_values: Tensor) -> Any:
        return SimpleNamespace(predicted_depth=self.weight * pixel_values.mean(1))


class TestAsTarget:
    @pytest.mark.parametrize("meaning", ["disparity", "depth"])
    def test_gaps_stay_gaps_and_the_middle_is_taken(
        self, pair: tuple[Array, Array, Array], tmp_path: Path, meaning: Any
    ) -> None:
        disparity = pair[2]
        np.save(tmp_path / "d.npy", disparity if meaning == "disparity" else 60 / disparity)
        guide = DepthGuide(Looking(), ImageInput(size=None), target_map=meaning)
        target = guide.target(decode_target(tmp_path / "d.npy"))
        height, width = disparity.shape
        start = (width - height) // 2
        middle = torch.from_numpy(disparity[:, start : start + height])
        missing = ~middle.isfinite()
        assert missing.any()
        assert torch.equal(target.value[0].isnan(), missing)
        ratio = target.value[0][~missing] / middle[~missing]
        torch.testing.assert_close(
            ratio, torch.full_like(ratio, ratio[0].item()), rtol=1e-5, atol=0
        )
        assert target.picture is not None
        assert not target.picture[:, missing].any()  # grey

    @pytest.mark.parametrize("loss", [SSI, DepthMSE()], ids=["ssi", "mse"])
    def test_following_the_gradient_brings_it_nearer(
        self, truth: Tensor, loss: ScaleShiftInvariant | DepthMSE
    ) -> None:
        guide = DepthGuide(Looking(), ImageInput(size=None))
        target = guide.target(decode_target(truth[0] / 30))
        start = 0.01 * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        images, energies = start, []
        for _ in range(200):
            images = images.detach().requires_grad_(True)
            energy = loss.energy(guide(images), target.value).sum()
            energies.append(energy.item())
            (gradient,) = torch.autograd.grad(energy, images)
            images = images - 0.02 * gradient / gradient.square().mean().sqrt()
        assert energies[-1] < 0.3 * energies[0]
        before, after = (
            depth_metrics(guide(x), target.value)["correlation"].item()
            for x in (start, images.detach())
        )
        assert after > before + 0.5
