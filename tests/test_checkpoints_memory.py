"""How much memory loading takes, and that weights are cast while they are loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from glide_files import glide
from torch import Tensor, nn

import ppap_framework as ppap
from ppap_framework.checkpoints import load_into, open_checkpoint, save_checkpoint
from ppap_framework.errors import UsageError
from ppap_plugin_adm import build
from ppap_plugin_glide.unet import TextUNet

UNET = "guided_diffusion.unet.UNetModel"
CONFIG: dict[str, Any] = {
    "image_size": 8,
    "in_channels": 3,
    "model_channels": 32,
    "out_channels": 6,
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "channel_mult": [1, 1],
    "num_classes": 5,
}
LARGE = {**CONFIG, "model_channels": 448, "channel_mult": [1, 1, 1]}
PROCESS = {"schedule": "linear", "timesteps": 1000}
TORSO = ("input_blocks", "middle_block", "output_blocks")
DTYPES = ["float32", "bfloat16", "float16"]

PROBE = """
import attrs, json, sys, torch
from ppap_framework.runtime import peak_memory
from ppap_framework.checkpoints import open_checkpoint
from ppap_plugin_adm.backend import make_adm

def load(path, config):
    architecture = {**json.loads(sys.argv[1]), "config": json.loads(config)}
    dtype = getattr(torch, sys.argv[2])
    return make_adm(
        None, attrs.evolve(open_checkpoint(path), architecture=architecture, dtype=dtype)
    )

cpu = torch.device("cpu")
load(*sys.argv[3:5])  # whatever torch imports on the way
peaks = [peak_memory(cpu)]
network = load(*sys.argv[5:7]).stages[0].network
peaks.append(peak_memory(cpu))
for parameter in network.parameters():
    parameter.sum()
peaks.append(peak_memory(cpu))
print(json.dumps([peak - peaks[0] for peak in peaks[1:]]))
"""


def random_state(official_class: str, config: Mapping[str, Any]) -> dict[str, Tensor]:
    with torch.device("meta"):
        network = build(official_class, config)
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.empty(value.shape).normal_(0, 0.05, generator=generator)
        for name, value in network.state_dict().items()
    }


def saved(path: Path, config: Mapping[str, Any] = CONFIG) -> Path:
    stated = {"official_class": UNET, "config": config, "process": PROCESS}
    save_checkpoint(path, random_state(UNET, config), stated)
    return path


class TestCasting:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_adm_is_as_if_cast_afterwards(self, tmp_path: Path, dtype: Any) -> None:
        path = saved(tmp_path / "adm.safetensors")
        loaded = ppap.backend("adm", checkpoint=path, dtype=dtype)
        expected = build(UNET, CONFIG).eval()
        expected.load_state_dict(random_state(UNET, CONFIG))
        expected.cast_torso(getattr(torch, dtype))
        self.check(loaded.stages[0].network, expected)
        x_t, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 900])
        with torch.no_grad():
            prediction = loaded.stages[0].denoise(x_t, t, torch.tensor([1, 4]))
            output = expected(x_t, t, torch.tensor([1, 4]))
        assert prediction.eps.dtype == torch.float32
        tolerance = {"float32": 1e-5, "bfloat16": 0.1, "float16": 0.02}[dtype]
        torch.testing.assert_close(prediction.eps, output[:, :3], atol=tolerance, rtol=tolerance)
        assert loaded.origin.record()["dtype"] == dtype

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_every_stage_of_glide(self, tmp_path: Path, dtype: Any) -> None:
        path = glide(tmp_path).path
        plain = ppap.backend("glide", checkpoint=path)
        loaded = ppap.backend("glide", checkpoint=path, dtype=dtype)
        assert len(loaded.stages) == 2
        for ours, theirs in zip(loaded.stages, plain.stages, strict=True):
            assert isinstance(theirs.network, TextUNet)
            theirs.network.cast(getattr(torch, dtype))
            self.check(ours.network, theirs.network)

    def check(self, ours: nn.Module, theirs: nn.Module) -> None:
        expected = theirs.state_dict()
        for name, value in ours.state_dict().items():
            assert value.dtype == expected[name].dtype, name
            assert torch.equal(value, expected[name]), name
        assert ours.state_dict().keys() == expected.keys()

    def test_what_cannot_be_asked_for(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "adm.safetensors")
        with pytest.raises(UsageError, match="dtype cannot be 'int8'") as caught:
            ppap.backend("adm", checkpoint=path, dtype="int8")  # type: ignore[arg-type]
        assert "bfloat16" in caught.value.hint
        made = ppap.backend("adm", checkpoint=path)
        with pytest.raises(UsageError, match="already made"):
            ppap.backend(made, dtype="bfloat16")


@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("large", [False, True])
def test_layout_of_convolutions_that_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cast: bool, large: bool
) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 4))

    network = make()
    save_checkpoint(tmp_path / "x.safetensors", network.state_dict(), {})
    monkeypatch.setattr("ppap_framework.checkpoints._tensor_file._SMALL", 0 if large else 2**28)
    with torch.device("meta"):
        loaded = make().to(torch.bfloat16 if cast else torch.float32)
    load_into(loaded, open_checkpoint(tmp_path / "x.safetensors"), channels_last=True)
    if cast or not large:
        network.to(memory_format=torch.channels_last)
    state = loaded.state_dict()
    for name, value in network.state_dict().items():
        assert state[name].stride() == value.stride()
        assert torch.equal(state[name], value.to(state[name].dtype))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory(tmp_path: Path) -> None:
    """Mapped weights take nothing until they are read, and then their own size. Cast ones take what
    is kept of them, and never what they were read from besides.
    """
    probed = []
    for config, name in ((CONFIG, "small.pt"), (LARGE, "large.pt")):
        with torch.device("meta"):
            network = build(UNET, config)
        state = {name: torch.zeros(value.shape) for name, value in network.state_dict().items()}
        torch.save(state, tmp_path / name)
        probed += [str(tmp_path / name), json.dumps(config)]
    size = (tmp_path / "large.pt").stat().st_size
    kept = sum(
        value.numel() * (2 if name.startswith(TORSO) and value.ndim > 2 else 4)
        for name, value in state.items()
    )
    assert size > 2**28
    assert kept < 0.65 * size
    for dtype, loading, reading in (
        ("float32", 0.1 * size, 1.15 * size),
        ("bfloat16", kept + 0.15 * size, kept + 0.15 * size),
    ):
        stated = json.dumps({"official_class": UNET, "process": PROCESS})
        done = subprocess.run(
            [sys.executable, "-c", PROBE, stated, dtype, *probed],
            capture_output=True,
            text=True,
            check=True,
        )
        loaded, read = json.loads(done.stdout)
        assert loaded <= loading
        assert read <= reading
        assert read >= 0.9 * (kept if dtype == "bfloat16" else size)  # or nothing was measured
