"""Guides of many architectures, from a file to guided images, and the page that says so."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from distributions import REPOSITORY
from tiny_networks import Task

from ppap_framework.learn import distillation

for name in ("classifier", "clip", "detection", "likeness", "midas", "segmentation", "shapes"):
    pytest.importorskip(f"ppap_plugin_{name}", reason="a guide is of it, or the diffusion model")

from library_inputs import TOLERANCE, architectures, of_timm, of_transformers, picture  # noqa: E402
from network_trials import kinds as all_kinds  # noqa: E402

KINDS = [*all_kinds()]
LONG = ("fcn", "deeplab", "fcos", "retinanet", "d_fine")
QUICK = ("classification", "depth", "segmentation")
kinds = pytest.mark.parametrize(("kind", "task"), KINDS, ids=[kind for kind, _ in KINDS])


def is_slow(kind: str, task: str) -> bool:
    return kind.startswith(LONG) or (task not in QUICK and kind != "detr")


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return runpy.run_path(str(REPOSITORY / "docs" / "make_architectures.py"))


@pytest.fixture(scope="module")
def rows(made: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["kind"]: row for row in json.loads(made["RECORD"].read_text())}


@pytest.fixture(scope="module")
def stand(made: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return made["make_stand"](tmp_path_factory.mktemp("architectures") / "data")


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        pytest.param(*each, marks=pytest.mark.slow if is_slow(*each) else (), id=each[0])
        for each in KINDS
    ],
)
def test_learns_is_saved_guides_and_is_left_as_it_was(
    kind: str,
    task: str,
    made: dict[str, Any],
    rows: dict[str, Any],
    stand: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distillation, "_STATISTICS_BATCHES", 1)
    module = sys.modules["ppap_framework.learn.transfer"]  # the package calls the function so
    monkeypatch.setattr(module, "draw_figures", lambda *_: [])
    tried = made["try_out"](kind, task, stand, tmp_path)
    assert tried["parameters"] == rows[kind]["tiny"]["parameters"]
    assert tried["loss"]["untouched"] != tried["loss"]["held_out"]
    assert tried["energy"]["unguided"] != tried["energy"]["guided"]
    assert tried["moved"] > 0


_QUICK = ("convnext", "deit", "efficientnet", "levit", "perceiver", "timm_wrapper", "vit")
_QUICK_DENSE = ("glpn", "zoedepth", "mobilevit", "segformer", "mask2former", "eomt")


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        pytest.param(task, kind, marks=() if quick else pytest.mark.slow, id=f"{task}-{kind}")
        for task, kind in architectures()
        for quick in [kind in (_QUICK if task == "classification" else _QUICK_DENSE)]
    ],
)
@pytest.mark.parametrize("shape", [(45, 45), (50, 70)], ids=["square", "oblong"])
def test_transformers_are_fed_what_transformers_feeds_them(
    task: Task, kind: str, shape: tuple[int, int], tmp_path: Path, made: dict[str, Any]
) -> None:
    deviation = of_transformers(task, kind, tmp_path, picture(*shape))
    recorded = {
        (row["task"], row["name"]): row["found"]
        for row in json.loads(made["INPUTS"].read_text())
        if row["library"] == "transformers"
    }
    if isinstance(deviation, float):
        assert deviation < TOLERANCE
        assert isinstance(recorded[task, kind], float)
    else:
        assert deviation == recorded[task, kind]


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "naflexvit_base_patch16_gap"])
@pytest.mark.parametrize("shape", [(45, 45), (300, 260)], ids=["square", "oblong"])
def test_timm_is_fed_what_timm_feeds_it(name: str, shape: tuple[int, int]) -> None:
    assert of_timm(name, picture(*shape)) < TOLERANCE


def test_the_table_of_inputs(made: dict[str, Any]) -> None:
    rows = json.loads(made["INPUTS"].read_text())
    named = [(row["task"], row["name"]) for row in rows if row["library"] == "transformers"]
    assert named == list(architectures())
    assert all(row["found"] < TOLERANCE for row in rows if isinstance(row["found"], float))
    start, end = made["INPUT_MARKS"]
    between = made["PAGE"].read_text().partition(start)[2].partition(end)[0]
    assert between.splitlines() == made["input_table"](rows)


@kinds
def test_counts(kind: str, task: str, made: dict[str, Any], rows: dict[str, Any]) -> None:
    assert made["counted"](kind) == rows[kind]["ordinary"]


def test_the_page(made: dict[str, Any], rows: dict[str, Any]) -> None:
    assert [(kind, row["task"]) for kind, row in rows.items()] == list(made["kinds"]())
    start, end = made["MARKS"]
    between = made["PAGE"].read_text().partition(start)[2].partition(end)[0]
    assert between.splitlines() == made["table"](list(rows.values()))
    # Of the same network counted elsewhere, with its weights.
    shares = json.loads((made["RECORD"].parent / "shares.json").read_text())
    (resnet,) = (row for row in shares if row["network"] == "ResNet-50" and row["rank"] == 16)
    assert rows["resnet"]["ordinary"]["expert_parameters"] == sum(resnet["ours"].values())
    assert rows["resnet"]["ordinary"]["parameters"] == resnet["parameters"]
