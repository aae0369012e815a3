"""A photographed stereo pair with its true optical flow: what the guide prefers, and how it
pulls.

The pair "Motorcycle" of the Middlebury 2014 stereo datasets (Scharstein et al. 2014), which
scikit-image carries. A point (x, y) of the left picture is at (x - d(x, y), y) in the right one,
where d is the disparity, infinite where the right camera does not see the point. The network has
random weights: its features tell places apart, which is all that the loss wants.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import map_coordinates
from torch import Tensor
from torchvision.models import get_model

from ppap_framework.targets import decode_target
from ppap_plugin_flow.guider import FlowGuide
from ppap_plugin_flow.loss import Correspondence
from ppap_plugin_flow.options import FlowOptions

Pixels = NDArray[np.uint8]
Disparity = NDArray[np.float32]
SIZE = 256  # of the network's input: 32 x 32 cells, disparities of up to 3 of them


@pytest.fixture(scope="module")
def pair() -> tuple[Pixels, Pixels, Disparity]:
    """Left, right, (H, W, 3), and the disparities of the left one, (H, W), in pixels, NaN where
    they are unknown; at half size.
    """
    left, right, disparity = (each[::2, ::2] for each in skimage.data.stereo_motorcycle())
    return left, right, np.where(np.isfinite(disparity), disparity / 2, np.nan).astype(np.float32)


@pytest.fixture(scope="module")
def raft() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return get_model("raft_small", weights=None)


def tensor(picture: NDArray[Any]) -> Tensor:
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def aimed(raft: Any, picture: Pixels, flow: NDArray[Any] | None, folder: Path) -> Any:
    """A guide, and its target that this picture moves so."""
    path = None
    if flow is not None:
        path = str(folder / "flow.npy")
        np.save(path, flow)
    guide = FlowGuide(raft, FlowOptions(size=SIZE, flow=path))
    return guide, guide.target(decode_target(Image.fromarray(picture))).value


def flow_of(disparity: Disparity) -> NDArray[np.float32]:
    """(H, W, 2) in pixels, NaN where it is unknown."""
    return np.stack([-disparity, np.zeros_like(disparity)], -1)


def test_the_true_flow_explains_the_other_picture_best(
    raft: Any, pair: tuple[Pixels, Pixels, Disparity], tmp_path: Path
) -> None:
    left, right, disparity = pair
    flat = 0 * disparity + np.nanmean(disparity)
    wanted = {"true": disparity, "none": 0 * disparity, "half": disparity / 2, "mean": flat}
    wanted |= {"twice": 2 * disparity, "opposite": -disparity}
    energy, matched = {}, {}
    for name, each in wanted.items():
        guide, target = aimed(raft, left, flow_of(each), tmp_path)
        with torch.no_grad():
            seen = guide(tensor(right))
        energy[name] = float(Correspondence().energy(seen, target))
        matched[name] = float(Correspondence().metrics(seen, target)["points_matched"])
    assert min(energy, key=energy.__getitem__) == "true"
    assert max(matched, key=matched.__getitem__) == "true"


def test_a_picture_that_the_true_flow_warps_back_has_not_moved(
    raft: Any, pair: tuple[Pixels, Pixels, Disparity], tmp_path: Path
) -> None:
    """The right picture read at (x - d, y), by SciPy, is the left one again."""
    left, right, disparity = pair
    known = np.isfinite(disparity)
    y, x = np.indices(disparity.shape, np.float32)
    places = [y, x - np.where(known, disparity, 0)]
    warped = np.stack([map_coordinates(right[..., c], places, order=1) for c in range(3)], -1)
    still = np.where(known[..., None], 0.0, np.nan) * np.ones(2)
    guide, target = aimed(raft, left, still, tmp_path)
    with torch.no_grad():
        moved, back = (
            Correspondence().energy(guide(tensor(picture)), target) for picture in (right, warped)
        )
    assert float(back) < 0.9 * float(moved)


def test_descent_moves_the_left_picture(
    raft: Any, pair: tuple[Pixels, Pixels, Disparity], tmp_path: Path
) -> None:
    left, _, disparity = pair
    guide, target = aimed(raft, left, flow_of(disparity), tmp_path)
    loss, x, energies = Correspondence(), tensor(left), []
    for _ in range(6):
        x.requires_grad_()
        energy = loss.energy(guide(x), target).sum()
        (slope,) = torch.autograd.grad(energy, x)
        energies.append(float(energy.detach()))
        x = (x - 0.02 * slope.sign()).clamp(-1, 1).detach()
    assert energies[-1] < 0.9 * energies[0]
