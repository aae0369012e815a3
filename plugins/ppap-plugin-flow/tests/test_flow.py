"""Correspondence with a reference picture, by closed forms and by pictures that were moved."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.models import get_model

from ppap_framework.checkpoints import open_checkpoint, save_checkpoint
from ppap_framework.errors import PpapError, UsageError
from ppap_framework.targets import decode_target
from ppap_plugin_flow.guider import FlowGuide, make_flow
from ppap_plugin_flow.loss import Correspondence
from ppap_plugin_flow.motion import read_flow
from ppap_plugin_flow.options import CorrespondenceOptions, FlowOptions

SIDE = 64
H, W, C = 4, 5, 7


@pytest.fixture(scope="module")
def raft() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return get_model("raft_small", weights=None)


def picture(seed: int = 0, side: int = 2 * SIDE) -> np.ndarray[Any, np.dtype[np.uint8]]:
    noise = np.random.default_rng(seed).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC))


def tensor(pixels: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def maps(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, C, H, W, generator=generator, dtype=torch.float64)


def flow_of(u: float, v: float) -> Tensor:
    return torch.tensor([u, v]).double()[None, :, None, None].expand(1, 2, H, W)


class TestLoss:
    def test_is_its_definition(self) -> None:
        """One place at a time, by dot products."""
        f, g, loss = maps(0), maps(1), Correspondence(CorrespondenceOptions(temperature=0.3))
        found = loss.energy(f, torch.cat([g, flow_of(1, -1)], 1))
        expected = []
        for y in range(1, H):
            for x in range(W - 1):
                cosines = torch.cosine_similarity(g[0, :, y, x, None, None], f[0], dim=0) / 0.3
                log_p = cosines - cosines.flatten().logsumexp(0)
                expected.append(-log_p[y - 1, x + 1])
        torch.testing.assert_close(found, torch.stack(expected).mean()[None])

    def test_between_cells_it_is_interpolated(self) -> None:
        f, g, loss = maps(0), maps(1), Correspondence()
        left, middle, right = (
            loss.energy(f, torch.cat([g, flow], 1))
            for flow in (flow_of(1, 0), flow_of(1.25, 0), flow_of(2, 0))
        )
        # Those with a right neighbour only: the last column of the first is not in the second.
        gaps = flow_of(1, 0).clone()
        gaps[..., W - 2 :] = torch.nan
        left = loss.energy(f, torch.cat([g, gaps], 1))
        torch.testing.assert_close(middle, 0.75 * left + 0.25 * right)

    def test_gradients_are_those_of_differences(self) -> None:
        target = torch.cat([maps(1), flow_of(0.3, 0.6)], 1)
        f = maps(0).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: Correspondence().energy(x, target), f)

    def test_no_wanted_place_has_no_energy(self) -> None:
        loss, f = Correspondence(), maps(0)
        for flow in (flow_of(W, 0), flow_of(math.nan, math.nan)):
            target = torch.cat([maps(1), flow], 1)
            assert float(loss.energy(f, target)) == 0
            assert all(float(value) == 0 for value in loss.metrics(f, target).values())

    def test_figures_of_a_moved_map(self) -> None:
        g = maps(1)
        moved = g.roll((1, 2), (2, 3))  # down and to the right
        right, wrong = (
            Correspondence().metrics(moved, torch.cat([g, flow], 1))
            for flow in (flow_of(2, 1), flow_of(-1, 1))
        )
        assert float(right["flow_error"]) == 0
        assert float(right["points_matched"]) == 1
        # Two columns are 3 cells to the right, and those that came around the edge 2 to the left.
        assert float(wrong["points_matched"]) == 0
        assert float(wrong["flow_error"]) == pytest.approx((3 + 3 + 2 + 2) / 4 / W)

    def test_transfer_is_a_mean_of_cosines(self) -> None:
        one, other, loss = maps(0), maps(1), Correspondence()
        expected = 1 - torch.cosine_similarity(one, other, dim=1).mean((1, 2))
        torch.testing.assert_close(loss.transfer(one, other), expected)
        assert loss.transfer(3 * one, one).abs().max() < 1e-12


@pytest.mark.parametrize("dx, dy", [(0, 0), (16, 0), (-16, 32)])
def test_a_moved_picture_fits_its_own_motion_best(raft: Any, dx: int, dy: int) -> None:
    """Also with random weights, since every place looks different."""
    still = picture()
    moved = tensor(np.roll(still, (dy, dx), (0, 1)))
    loss, energies = Correspondence(), {}
    for u, v in [(0, 0), (16, 0), (-16, 32), (0, -16)]:
        guide = FlowGuide(raft, FlowOptions(size=2 * SIDE, flow=f"{u},{v}"))
        target = guide.target(decode_target(Image.fromarray(still)))
        seen = guide(moved)
        energies[u, v] = float(loss.energy(seen, target.value))
        if (u, v) == (dx, dy):
            assert float(loss.metrics(seen, target.value)["points_matched"]) > 0.7
    assert min(energies, key=energies.__getitem__) == (dx, dy)


def test_descent_brings_the_reference_back(raft: Any) -> None:
    guide = FlowGuide(raft, FlowOptions(size=SIDE))
    target = guide.target(decode_target(Image.fromarray(picture(1, SIDE)))).value
    x, loss = tensor(picture(2, SIDE)), Correspondence()
    before = float(loss.energy(guide(x), target))
    for _ in range(20):
        x.requires_grad_()
        (slope,) = torch.autograd.grad(loss.energy(guide(x), target).sum(), x)
        x = (x - 0.02 * slope.sign()).clamp(-1, 1).detach()
    assert float(loss.energy(guide(x), target)) < 0.7 * before


def test_a_checkpoint(raft: Any, tmp_path: Path) -> None:
    path = tmp_path / "raft.safetensors"
    save_checkpoint(path, raft.state_dict(), {"model": "raft_small"})
    guide = make_flow(FlowOptions(size=SIDE), open_checkpoint(path))
    x = tensor(picture())
    assert torch.equal(guide(x), FlowGuide(raft, FlowOptions(size=SIDE))(x))
    with pytest.raises(UsageError, match="is a raft_small, not a raft_large") as caught:
        make_flow(FlowOptions(model="raft_large"), open_checkpoint(path))
    assert caught.value.hint == "add --guider-model raft_small"


class TestMotion:
    def test_files(self, tmp_path: Path) -> None:
        flow = np.random.default_rng(0).normal(size=(4, 6, 2)).astype("<f4")
        flow[1, 2] = 1.7e9
        np.save(tmp_path / "a.npy", flow.astype(np.float64))
        header = struct.pack("<fii", 202021.25, 6, 4)
        (tmp_path / "a.flo").write_bytes(header + flow.tobytes())
        for name in ("a.npy", "a.flo"):
            found = read_flow(str(tmp_path / name), 4, 6)
            assert found[:, 1, 2].isnan().all()
            assert int(found.isnan().sum()) == 2
            torch.testing.assert_close(found[:, 3], torch.from_numpy(flow[3]).T)

    @pytest.mark.parametrize(
        "given, message",
        [
            ("far", "no optical flow"),
            ("1,2,3", "no optical flow"),
            ("nan,1", "out of the picture"),
            ("6,0", "out of the picture"),
            ("none.flo", "is not there"),
            (f"{'x' * 300}.flo", "is not there"),
            ("short.flo", "cannot be read"),
            ("other.flo", "no Middlebury"),
            ("words.npy", "cannot be read"),
            ("wide.npy", r"shape \(4, 7, 2\)"),
        ],
    )
    def test_bad_ones_end_in_a_line(
        self, given: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("short.flo").write_bytes(struct.pack("<fii", 202021.25, 6, 4) + bytes(7))
        Path("other.flo").write_bytes(bytes(100))
        np.save("words.npy", np.array(["a"]))
        np.save("wide.npy", np.zeros((4, 7, 2)))
        with pytest.raises(PpapError, match=message) as caught:
            read_flow(given, 4, 6)
        assert caught.value.hint
        assert "\n" not in str(caught.value)

    def test_numbers_beyond_float32_are_unknown(self, tmp_path: Path) -> None:
        np.save(tmp_path / "far.npy", np.full((4, 6, 2), 1e300))
        assert read_flow(str(tmp_path / "far.npy"), 4, 6).isnan().all()

    @pytest.mark.parametrize("size", [(3, 4000), (4000, 3), (1, 1)])
    def test_a_reference_of_any_shape(self, raft: Any, size: tuple[int, int]) -> None:
        target = FlowGuide(raft).target(decode_target(Image.new("RGB", size)))
        assert target.picture is not None
        assert max(target.picture.shape[1:]) <= 1000
        assert target.value.isfinite().all()

    @pytest.mark.parametrize("given", ["still", np.zeros((4, 4))])
    def test_a_reference_is_a_picture(self, raft: Any, given: Any) -> None:
        with pytest.raises(UsageError, match="no reference picture"):
            FlowGuide(raft).target(decode_target(given))
