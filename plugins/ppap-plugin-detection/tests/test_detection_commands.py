"""The embedded detector, from the command line: boxes that are found, guide and are drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import refused, typed
from PIL import Image

import ppap_framework as ppap
from ppap_framework.targets import decode_target

shapes = pytest.importorskip("ppap_plugin_shapes.world", reason="brings a detector")
pytest.importorskip("ppap_plugin_adm", reason="builds the diffusion model")
Capsys = pytest.CaptureFixture[str]
BOX = "red cube@0.1,0.35,0.55,0.85"


def test_finds_the_solids_of_fresh_renders() -> None:
    scenes = shapes.render(77, range(60), 32)
    images = torch.from_numpy(scenes.images).permute(0, 3, 1, 2).float() / 127.5 - 1
    guide = ppap.guide("detection", target=BOX, experts="none")
    heroes = torch.from_numpy(scenes.boxes[:, :1])
    with torch.no_grad():
        seen = guide.model(images)
        figures = guide.loss.metrics(seen, heroes)
        own, other = (guide.loss.energy(seen, rows) for rows in (heroes, heroes.roll(1, 0)))
    assert figures["boxes_found"].mean() > 0.6
    assert (own < other).float().mean() > 0.95
    picture = guide.model.target(decode_target(Image.fromarray(scenes.images[0])))
    best = guide.loss.metrics({k: v[:1] for k, v in seen.items()}, picture.value)
    assert best["box_iou"] > 0.99


def test_guides_and_says_so(tmp_path: Path, capsys: Capsys) -> None:
    run = typed(capsys)
    content = {
        "images": [{"width": 100, "height": 100}],
        "annotations": [{"category": "red cube", "bbox": [10, 35, 45, 50]}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    pictures = []
    for index, target in enumerate((BOX, tmp_path / "boxes.json")):
        out = tmp_path / f"run{index}"
        made = run(
            "run", "--backend", "adm", "--guider", "detection", "--target", target,
            "--experts", "none", "--scale", "raw:4", "--steps", "3", "--device", "cpu",
            "--num", "1", "--compare", "--out", out,
        )  # fmt: skip
        assert made.code == 0, made.err
        record = json.loads((out / "run.json").read_text())
        assert "box_iou" in json.dumps(record)
        pictures.append((out / "000.png").read_bytes())
        assert (out / "grid.png").is_file()
    assert pictures[0] == pictures[1]


def test_a_dry_run_counts_what_a_step_takes(capsys: Capsys) -> None:
    made = typed(capsys)(
        "run", "--backend", "adm", "--guider", "detection", "--target", f"{BOX}; {BOX}",
        "--experts", "none", "--device", "cpu", "--dry-run",
    )  # fmt: skip
    assert made.code == 0, made.err
    assert "detection backward" in made.out
    assert "cannot be counted" not in made.out + made.err


@pytest.mark.parametrize(
    "target, error",
    [
        ("red cube@0.5,0.2,0.1,0.6", "is inverted or empty"),
        ("red cube@0.5,0.2,0.9,1.6", "reaches beyond the picture"),
        ("red cubes@0.1,0.2,0.3,0.4", "there is no class 'red cubes'"),
        ("; ".join([BOX] * 10), "has 10 boxes, and the detector finds at most 9"),
    ],
)
def test_bad_boxes_end_in_one_line(target: str, error: str, capsys: Capsys, tmp_path: Path) -> None:
    run = typed(capsys)
    refused(
        run("run", "--backend", "adm", "--guider", "detection", "--target", target,
            "--out", tmp_path / "out"),
        2, error,
    )  # fmt: skip
    assert not (tmp_path / "out").exists()
