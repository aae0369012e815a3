"""From a folder of transformers to experts and guided pictures, by commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_towers
import torch
from commands import refused, typed
from PIL import Image

import ppap_framework as ppap
from ppap_framework.components import TargetInput
from ppap_framework.learn import calibrate, load_teacher
from ppap_framework.run import GuideRequest

pytest.importorskip("ppap_plugin_shapes", reason="brings a diffusion model")
pytest.importorskip("ppap_plugin_adm", reason="builds it")
pytest.importorskip("ppap_plugin_lora", reason="experts are made of it")
Capsys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("clip")
    tiny_towers.saved("clip", made)
    return made


def test_adapts_calibrates_and_guides(folder: Path, tmp_path: Path, capsys: Capsys) -> None:
    run = typed(capsys)
    network = ("--guider", "clip-text", "--guider-model", folder)
    small = ("--steps", "2", "--device", "cpu")
    learn = ("--num", "8", "--num-experts", "1", "--iterations", "2", "--learn-batch", "4")
    adapters = ("--adapter", "lora:rank=2,alpha=2", "--adapter", "bias", "--no-keep")
    made = run(
        "adapt", "--backend", "adm", *network, *small, *learn, *adapters, "--no-calibrate",
        "--workers", "1", "--held-out", "0.5", "--out", tmp_path / "adapt",
    )  # fmt: skip
    assert made.code == 0, made.err
    (bundle,) = (tmp_path / "adapt").rglob("*.experts.safetensors")
    learner = load_teacher(GuideRequest(source="clip-text", model=str(folder)))
    curve = calibrate("adm", learner, bundle, num=8, levels=3, steps=2, batch=8, device="cpu")
    assert curve.loss["name"] == "embedding-spherical"
    grid = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(grid).save(tmp_path / "mood.png")
    target = f"a red cube | {tmp_path / 'mood.png'}:0.5 | a blue sphere:-1"
    seen = []
    for index, experts in enumerate((bundle, "none")):
        out = tmp_path / f"run{index}"
        guided = run(
            "run", "--backend", "adm", *network, *small, "--experts", experts,
            "--scale", "raw:300", "--target", target, "--num", "1", "--out", out,
        )  # fmt: skip
        assert guided.code == 0, guided.err
        record = json.loads((out / "run.json").read_text())
        assert "a blue sphere:-1" in json.dumps(record)
        assert "cosine" in json.dumps(record)
        seen.append((out / "000.png").read_bytes())
    unguided = tmp_path / "unguided"
    run("run", "--backend", "adm", "--guider", "none", *small, "--num", "1", "--out", unguided)
    assert len({*seen, (unguided / "000.png").read_bytes()}) == 3


def test_a_long_prompt_is_one_line(folder: Path, tmp_path: Path, capsys: Capsys) -> None:
    network = ("--guider", "clip-text", "--guider-model", folder)
    outcome = typed(capsys)(
        "run", "--backend", "adm", *network, "--experts", "none", "--target", "a. b/c " * 1430,
        "--out", tmp_path / "out",
    )  # fmt: skip
    refused(outcome, 2, "reads at most 12", "shorten it")
    assert not (tmp_path / "out").exists()


def test_the_embedded_network_guides_as_it_stands() -> None:
    result = ppap.sample("adm", [ppap.guide("clip-text", scale="raw:300")], num=2, steps=2)
    (guide,) = result.plan.guides
    assert guide.target is not None
    assert guide.target.label == "a red cube"
    assert guide.chosen is not None
    assert guide.chosen.name == "shapes-clip-text-5"


def test_the_embedded_network_reads_texts_of_any_form() -> None:
    """Captions begin with an article and are in small letters; texts need not."""
    from ppap_plugin_shapes.world import CLASS_NAMES, render

    model = ppap.guide("clip-text").model
    scenes = render(901, range(64), 32)
    images = torch.from_numpy(scenes.images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        seen = model(images)
    answers = []
    for form in (str, str.upper, lambda name: f"{'an' if name[0] in 'aeiou' else 'a'} {name}"):
        given = [TargetInput(text=form(name), source=name) for name in CLASS_NAMES]
        texts = torch.cat([model.target(one).value[0] for one in given])
        answers.append((seen @ texts.T).argmax(1))
        assert torch.equal(answers[-1], answers[0])
    assert (answers[0].numpy() == scenes.labels).mean() > 0.75
