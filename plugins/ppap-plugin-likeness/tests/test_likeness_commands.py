"""The style of one picture and the structure of another, with experts, by commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from commands import refused, typed
from PIL import Image

from ppap_framework.checkpoints import save_checkpoint
from ppap_framework.learn import calibrate, load_teacher
from ppap_framework.run import GuideRequest

pytest.importorskip("ppap_plugin_shapes", reason="brings a diffusion model")
pytest.importorskip("ppap_plugin_adm", reason="builds it")
pytest.importorskip("ppap_plugin_lora", reason="experts are made of it")
Capsys = pytest.CaptureFixture[str]
SMALL = ("--steps", "2", "--device", "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks and two pictures."""
    made = tmp_path_factory.mktemp("likeness")
    torch.manual_seed(0)
    vit = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    resnet = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
    for model, arguments in (("vit_small_patch16_224", vit), ("resnet18", resnet)):
        network = timm.create_model(model, **arguments)
        stated = {"model": model, "model_args": arguments, "input_size": 32}
        save_checkpoint(made / f"{model[:3]}.safetensors", network.state_dict(), stated)
    for name in "ab":
        grid = np.random.default_rng(ord(name)).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(grid).save(made / f"{name}.png")
    return made


def test_adapts_and_calibrates(folder: Path, tmp_path: Path, capsys: Capsys) -> None:
    """Experts of one kind are not used for another."""
    run, network = typed(capsys), folder / "vit.safetensors"
    made = run(
        "adapt", "--backend", "adm", "--guider", "structure", "--guider-checkpoint", network,
        *SMALL, "--num", "8", "--num-experts", "1", "--iterations", "2", "--learn-batch", "4",
        "--held-out", "0.5", "--adapter", "lora:rank=2,alpha=2", "--adapter", "bias", "--no-keep",
        "--workers", "1", "--no-calibrate", "--out", tmp_path / "adapt",
    )  # fmt: skip
    assert made.code == 0, made.err
    (bundle,) = (tmp_path / "adapt").rglob("*.experts.safetensors")
    learner = load_teacher(GuideRequest(source="structure", checkpoint=network))
    curve = calibrate("adm", learner, bundle, num=8, levels=3, steps=2, batch=8, device="cpu")
    assert curve.loss["name"] == "likeness-mean"
    for facet, code in (("keys", 4), ("none", 0)):
        guided = run(
            "run", "--backend", "adm", "--guider", "structure", "--target", folder / "a.png",
            "--guider-checkpoint", network, "--guider-option", f"facet={facet}", *SMALL,
            "--experts", bundle, "--scale", "raw:100", "--num", "1", "--out", tmp_path / facet,
        )  # fmt: skip
        assert guided.code == code, guided.err


def test_the_style_of_one_and_the_structure_of_another(
    folder: Path, tmp_path: Path, capsys: Capsys
) -> None:
    run, out = typed(capsys), tmp_path / "out"
    guided = run(
        "run", "--backend", "adm", "--guider", "style=raw:20", "--guider", "structure=raw:200",
        "--target", f"style={folder / 'a.png'} | {folder / 'b.png'}:2",
        "--target", f"structure={folder / 'b.png'}",
        "--guider-checkpoint", f"style={folder / 'res.safetensors'}",
        "--guider-checkpoint", f"structure={folder / 'vit.safetensors'}",
        "--experts", "style=none", "--experts", "structure=none", *SMALL, "--num", "1",
        "--out", out,
    )  # fmt: skip
    assert guided.code == 0, guided.err
    record = json.loads((out / "run.json").read_text())
    assert "the style of a.png | b.png" in json.dumps(record)
    assert "the structure of b.png" in json.dumps(record)
    plain = tmp_path / "plain"
    run("run", "--backend", "adm", "--guider", "none", *SMALL, "--num", "1", "--out", plain)
    assert (out / "000.png").read_bytes() != (plain / "000.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--guider-option", "layers=layr1"), 2, "did you mean layer"),
        (("--guider-option", "kind=lok"), 2, "kind"),
        (("--target", "a.png | no.png"), 4, "'no.png' is not there"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: tuple[str, ...],
    code: int,
    words: str,
    folder: Path,
    tmp_path: Path,
    capsys: Capsys,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    target = () if "--target" in arguments else ("--target", "a.png")
    outcome = typed(capsys)(
        "run", "--backend", "adm", "--guider", "likeness", "--guider-checkpoint", "res.safetensors",
        "--experts", "none", *target, *arguments, "--out", tmp_path / "out",
    )  # fmt: skip
    refused(outcome, code, words)
    assert not (tmp_path / "out").exists()
