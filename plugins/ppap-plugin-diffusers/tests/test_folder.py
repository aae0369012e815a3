"""Folders of pipelines: loaded as they were saved, and every fault of one is one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import refused, typed
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from tiny_pipelines import PROMPTS, TINY, pixel, stable_diffusion, tiny_vae
from torch import Tensor

import ppap_framework as ppap
from ppap_framework.errors import AssetError, PpapError, UsageError
from ppap_plugin_diffusers.convention import convention_of
from ppap_plugin_diffusers.folder import open_pipeline


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines") / "painter"
    pixel().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def latent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines") / "latent"
    stable_diffusion().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "name", ["pixel U-Nets", "DiT", "Stable Diffusion 1 and 2", "Flux", "Z-Image", "PRX, pixels"]
)
def test_a_folder_draws_what_the_saved_pipeline_does(name: str, tmp_path: Path) -> None:
    pipe = TINY[name]()
    pipe.save_pretrained(tmp_path / "saved")
    how: dict[str, Any] = {"num": 1, "steps": 2}
    if name.startswith("Stable"):
        how["prompt"] = PROMPTS[0]
    size = 16 if name in ("Flux", "Z-Image") else None  # the default is that of full-size networks
    loaded = ppap.backend("diffusers", checkpoint=tmp_path / "saved", options={"size": size})
    same = ppap.sample(pipe, **how).images
    torch.testing.assert_close(ppap.sample(loaded, **how).images, same, atol=1e-5, rtol=0.0)
    assert (loaded.origin.component, loaded.origin.checkpoint) == ("diffusers", "saved")
    assert not any(p.requires_grad for p in loaded.stages[0].network.parameters())


def test_weights_are_cast_on_request(saved: Path) -> None:
    for dtype in (None, "bfloat16"):
        loaded = ppap.backend("diffusers", checkpoint=saved, dtype=dtype)
        (kind,) = {p.dtype for p in loaded.stages[0].network.parameters()}
        assert kind == (torch.bfloat16 if dtype else torch.float32)
        assert ppap.sample(loaded, num=1, steps=2).images.dtype == torch.float32


def test_another_decoder(latent: Path, tmp_path: Path) -> None:
    other = tiny_vae()
    other.save_pretrained(tmp_path / "tiny")
    options = {"vae": str(tmp_path / "tiny")}
    (stage,) = ppap.backend("diffusers", checkpoint=latent, options=options).stages
    z = torch.randn(1, *stage.latent_shape)
    with torch.no_grad():
        expected = other.decode(z).sample
        torch.testing.assert_close(stage.decode(z), expected)
    assert stage.image_shape == tuple(expected.shape[1:])


def test_another_size(saved: Path, latent: Path) -> None:
    for folder, side in ((saved, 12), (latent, 24)):
        options = {"size": side}
        images = ppap.sample(
            ppap.backend("diffusers", checkpoint=folder, options=options), num=1, steps=2
        ).images
        assert images.shape == (1, 3, side, side)
    with pytest.raises(UsageError, match="cannot have a side of 13"):
        ppap.backend("diffusers", checkpoint=latent, options={"size": 13})
    with pytest.raises(UsageError, match="option 'size'"):
        ppap.backend("diffusers", checkpoint=latent, options={"size": 0})


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: shutil.rmtree(folder / name)


def stating(**changed: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "model_index.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    return change


def configured(name: str, **changed: Any) -> Callable[[Path], object]:
    """Other values in the config of a component."""

    def change(folder: Path) -> None:
        (path,) = (folder / name).glob("*config.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    return change


def with_tensors(name: str, *dropped: str, **added: Tensor) -> Callable[[Path], object]:
    """Without some tensors of a component's weights, or with more."""

    def change(folder: Path) -> None:
        (path,) = (folder / name).glob("*.safetensors")
        kept = {key: x for key, x in load_file(path).items() if key not in dropped}
        save_file(kept | added, path, {"format": "pt"})

    return change


def pickled(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))


def cut(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def unfit(folder: Path) -> None:
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"block_out_channels": [8, 8]}))


def emptied(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()


@pytest.mark.parametrize(
    ("break_it", "words", "hint"),
    [
        (lambda folder: (folder / "model_index.json").unlink(), "is no pipeline", "model_index"),
        (lambda folder: (folder / "model_index.json").write_text("{"), "cannot be read", "again"),
        (lambda folder: (folder / "model_index.json").write_text("[]"), "no JSON object", "again"),
        (without("unet"), "no folder for its unet", "incomplete"),
        (without("scheduler"), "has no scheduler_config.json", "components"),
        (with_tensors("unet", "conv_in.bias"), "lack 1 of the tensors of UNet2DModel", "again"),
        (lambda folder: (folder / "unet" / "config.json").write_text("[]"), "no JSON", "again"),
        (configured("unet", sample_size=None), "None x None", "multiple of 2"),
        (configured("unet", sample_size=-8), "-8 x -8", "multiple of 2"),
        (configured("unet", sample_size=7), "7 x 7", "multiple of 2"),
        (configured("scheduler", beta_start=-1.0), "betas", "scheduler_config.json"),
        (configured("scheduler", steps_offset=-5), "steps_offset is -5", "scheduler_config.json"),
        (configured("scheduler", steps_offset="a"), "'a'", "scheduler_config.json"),
        (configured("scheduler", clip_sample_range=0), "clip_sample_range", "scheduler_config"),
        (configured("scheduler", dynamic_thresholding_ratio=5), "ratio is 5", "scheduler_config"),
        (emptied, "unet in", "safetensors"),
        (pickled, "is pickled", "save_pretrained"),
        (cut, "truncated or damaged", "again"),
        (unfit, "cannot be loaded", "different models"),
        (stating(unet=["my_code", "MyUNet"]), "wants code of its own", "yourself"),
        (stating(scheduler=["my_code", "MyScheduler"]), "wants code of its own", "yourself"),
        (stating(unet=[None, None]), "has no unet", "has unet"),
        (stating(unet="UNet2DModel"), "what its unet is", "again"),
        (stating(_class_name=["pipeline", "Mine"]), "wants code of its own", "yourself"),
        (stating(_class_name="CogVideoXPipeline"), "CogVideoXPipeline is of no", "pixel U-Nets"),
    ],
)
def test_a_fault_is_one_line(
    saved: Path, tmp_path: Path, break_it: Callable[[Path], object], words: str, hint: str
) -> None:
    folder = tmp_path / "painter"
    shutil.copytree(saved, folder)
    break_it(folder)
    with pytest.raises(AssetError) as caught:
        ppap.backend("diffusers", checkpoint=folder)
    assert words in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (without("tokenizer"), "no folder for its tokenizer"),
        (with_tensors("vae", "decoder.conv_in.bias"), "lack 1 of the tensors of AutoencoderKL"),
        (with_tensors("text_encoder", "final_layer_norm.bias"), "tensors of CLIPTextModel"),
        (configured("vae", scaling_factor=0.0), "scaling_factor of the AutoencoderKL is 0"),
        (configured("vae", scaling_factor=None), "scaling_factor of the AutoencoderKL is None"),
    ],
)
def test_a_fault_of_latent_diffusion(
    latent: Path, tmp_path: Path, break_it: Callable[[Path], object], words: str
) -> None:
    folder = tmp_path / "painter"
    shutil.copytree(latent, folder)
    break_it(folder)
    with pytest.raises(AssetError, match=words):
        ppap.backend("diffusers", checkpoint=folder)


@pytest.mark.parametrize(
    "wrong",
    [{"shift": 0}, {"shift": "a"}, {"use_dynamic_shifting": True, "max_image_seq_len": 256}],
)
def test_a_fault_of_flow_matching(wrong: dict[str, Any]) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.register_to_config(**wrong)
    with pytest.raises(AssetError, match="config of the scheduler FlowMatchEuler"):
        convention_of(scheduler, doubled=False)


def test_tensors_that_are_not_used_are_named(
    saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(saved, tmp_path / "painter")
    with_tensors("unet", spare=torch.zeros(2))(tmp_path / "painter")
    ppap.backend("diffusers", checkpoint=tmp_path / "painter")
    assert "UNet2DModel does not use 1 tensors, such as spare" in caplog.text


def test_watermarks_and_filters_are_left_out(tmp_path: Path) -> None:
    folder, own = tmp_path / "deepfloyd", ["deepfloyd_if", "IFWatermarker"]
    TINY["DeepFloyd IF, stage I"]().save_pretrained(folder)
    stating(watermarker=own, safety_checker=["deepfloyd_if", "IFSafetyChecker"])(folder)
    assert ppap.sample(ppap.backend("diffusers", checkpoint=folder), num=1, steps=2).images.any()


def test_a_size_that_skips_of_a_u_net_do_not_allow(saved: Path) -> None:
    with pytest.raises(UsageError, match="side of 9") as caught:
        ppap.backend("diffusers", checkpoint=saved, options={"size": 9})
    assert "multiple of 2" in caught.value.hint


def predicting(what: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "scheduler" / "scheduler_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": what}))

    return change


@pytest.mark.parametrize(
    ("break_it", "code", "words"),
    [
        (lambda folder: (folder / "model_index.json").unlink(), 4, "is no pipeline"),
        (pickled, 4, "pickles may run code"),
        (cut, 4, "truncated or damaged"),
        (stating(unet=["my_code", "MyUNet"]), 4, "nothing was run"),
        (stating(_class_name="CogVideoXPipeline"), 4, "of no family"),
        (predicting("score"), 4, "prediction_type of DDIMScheduler is 'score'"),
        (lambda folder: None, 2, "draws latents"),
    ],
)
def test_a_fault_typed(
    toy: None,
    latent: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    break_it: Callable[[Path], object],
    code: int,
    words: str,
) -> None:
    """Errors of `ppap run`: one line and a hint, and nothing is written."""
    folder, out = tmp_path / "painter", tmp_path / "out"
    shutil.copytree(latent, folder)
    break_it(folder)
    command = ("run", "--backend", "diffusers", "--checkpoint", folder, "--out", out)
    guide = ("--guider", "colour", "--target", "green", "--num", "1", "--steps", "2")
    refused(typed(capsys)(*command, *guide), code, words, "hint: ")
    assert not out.exists()


def test_what_is_no_folder(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="is a file, and no pipeline"):
        open_pipeline(saved / "model_index.json")
    with pytest.raises(UsageError, match="neither a folder that exists"):
        open_pipeline("no folder")
    with pytest.raises(UsageError, match="neither a folder that exists"):
        open_pipeline("long" * 100)
    monkeypatch.setenv("PPAP_OFFLINE", "1")
    with pytest.raises(PpapError, match="downloads are off"):
        open_pipeline("nobody/nothing-of-that-name")


def test_another_decoder_that_is_none(saved: Path, latent: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    for folder, words in ((tmp_path, "holds a UNet2DModel"), (latent, "has no config.json")):
        with pytest.raises(AssetError, match=words):
            ppap.backend("diffusers", checkpoint=latent, options={"vae": str(folder)})
    with pytest.raises(UsageError, match="is no folder"):
        ppap.backend("diffusers", checkpoint=latent, options={"vae": "long" * 100})
    with pytest.raises(UsageError, match="have no latents"):
        ppap.backend("diffusers", checkpoint=saved, options={"vae": str(latent / "vae")})
