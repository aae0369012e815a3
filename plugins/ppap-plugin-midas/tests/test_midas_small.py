"""MiDaS_small: names, shapes and order by the manifest of released experts, outputs by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import midas_oracle
import pytest
import torch
from distributions import REPOSITORY
from PIL import Image
from torch import Tensor

from ppap_framework.checkpoints import open_checkpoint
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.preprocessing import Preprocessing
from ppap_framework.targets import decode_target
from ppap_plugin_midas.guider import DepthGuide, make_depth
from ppap_plugin_midas.midas_small import MidasSmall
from ppap_plugin_midas.options import DepthOptions

PARITY = Path(os.environ.get("PPAP_PARITY_DIR") or REPOSITORY / "tests" / "parity")
MANIFESTS = sorted(PARITY.rglob("midas_small_*.json"))
MEAN, STD = (
    torch.tensor([0.485, 0.456, 0.406]).double(),
    torch.tensor([0.229, 0.224, 0.225]).double(),
)


@pytest.fixture(scope="module")
def shapes() -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(t.shape) for name, t in MidasSmall().state_dict().items()}


@pytest.fixture(scope="module")
def state(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return midas_oracle.drawn(shapes, seed=0)


@pytest.fixture(scope="module")
def file(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("midas") / "midas_v21_small_256.pt"
    torch.save(state, path)
    return path


def guide(file: Path, **options: Any) -> DepthGuide:
    options.setdefault("model", "midas-small")
    return make_depth(DepthOptions(**options), open_checkpoint(file))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_the_state_dict_is_that_of_the_manifest(
    path: Path, shapes: dict[str, tuple[int, ...]]
) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    keys = {row[0] for row in record["state_dict"]}
    rows = []
    for key, shape, _, _ in record["state_dict"]:
        layer, inner, part = key.rpartition(".conv.")
        adapted = inner and f"{layer}.lora_A" in keys
        name = (f"{layer}.{part}" if adapted else key).removeprefix("midas.")
        if ".lora_" not in key:
            rows.append((name, tuple(shape)))
    assert list(shapes.items()) == rows
    with torch.device("meta"):
        network = MidasSmall()
    assert sum(p.numel() for p in network.parameters()) == record["base_model_parameters"]


@pytest.mark.parametrize("side", [64, pytest.param(96, marks=pytest.mark.slow)])
def test_outputs_and_gradients_are_those_of_single_operations(
    side: int, file: Path, state: dict[str, Tensor]
) -> None:
    made = guide(file, size=side).double()  # in float32, rounding crosses the kinks of ReLU6
    state = {name: t.double() if t.is_floating_point() else t for name, t in state.items()}
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, side, side, generator=generator, dtype=torch.float64) * 2 - 1
    normalized = ((images + 1) / 2 - MEAN[:, None, None]) / STD[:, None, None]
    results = []
    for look, x in ((made, images), (lambda x: midas_oracle.disparity(state, x), normalized)):
        x = x.clone().requires_grad_()
        said = look(x)
        (gradient,) = torch.autograd.grad(said.square().sum(), x)
        results.append((said.detach(), gradient))
    (said, gradient), (expected, expected_gradient) = results
    assert said.shape == (2, side, side)
    assert expected.std() > 0.01
    torch.testing.assert_close(said, expected, rtol=1e-6, atol=1e-6)  # float32 scale and shift
    inner = expected_gradient / (2 * STD[:, None, None])
    error = (gradient - inner).norm() / inner.norm()
    assert error < 1e-4


def test_sizes_and_targets(file: Path) -> None:
    assert guide(file).feed.size == 256
    made = guide(file, size=70, model="MiDaS_small")  # as it was published
    assert made.feed.size == 64
    target = made.target(decode_target(Image.new("RGB", (90, 60), "teal")))
    assert target.value.shape == (1, 64, 64)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    same = made.preprocessed(Preprocessing(size=64, mean=mean, std=std, interpolation="bicubic"))
    images = torch.zeros(1, 3, 50, 50)
    assert same.network is made.network
    assert torch.equal(same(images), made(images))


def test_what_is_refused(file: Path, state: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'midas-small' needs its weights") as caught:
        make_depth(DepthOptions(model="midas-small"), None)
    assert "midas_v21_small_256.pt" in caught.value.hint
    other = {name: tensor for name, tensor in state.items() if "refinenet4" not in name}
    torch.save(other, tmp_path / "other.pt")
    with pytest.raises(AssetError, match="does not fit the 482 keys of MidasSmall: 10 missing"):
        guide(tmp_path / "other.pt")
