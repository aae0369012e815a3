"""Every component of the project's own plugins passes its suite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import glide_files
import pytest
import tiny_towers
import torch
import torchvision
from PIL import Image

from ppap_framework.checkpoints import save_checkpoint
from ppap_framework.plugin import ComponentKind
from ppap_framework.registry import registry
from ppap_testing import run_checks
from ppap_testing.checking import SUITES, suite_of

timm = pytest.importorskip("timm", reason="makes networks of several plugins")
tiny_pipelines = pytest.importorskip("tiny_pipelines", reason="makes a pipeline of diffusers")

COMPONENTS = [
    (kind, spec.name)
    for kind in SUITES
    for spec in registry().specs(kind)
    if registry().provider(spec).distribution.startswith("ppap-plugin-")
    and not getattr(spec, "reads_latents", False)  # the suite's images are none
]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the suites are told of components; networks whose weights are large are tiny ones."""
    folder = tmp_path_factory.mktemp("matrix")
    towers = folder / "towers"
    towers.mkdir()
    tiny_towers.saved("clip", towers)
    stated = {
        "model": "resnet18",
        "model_args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
        "input_size": 32,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model("resnet18", **stated["model_args"])
    features = str(folder / "resnet.safetensors")
    save_checkpoint(Path(features), network.state_dict(), stated)
    raft = str(folder / "raft.safetensors")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = torchvision.models.optical_flow.raft_small(weights=None).state_dict()
    save_checkpoint(Path(raft), state, {"model": "raft_small"})
    pipeline = str(folder / "pipeline")
    tiny_pipelines.pixel().save_pretrained(pipeline)
    picture = Image.new("RGB", (24, 24), (200, 40, 40))
    picture.paste((20, 60, 220), (4, 4, 14, 20))
    text = {"target": "a red cube", "bad_targets": ("",)}
    likeness = {"checkpoint": features, "target": picture, "bad_targets": ("no picture",)}
    noised = {"checkpoint": str(glide_files.clip(folder).path)}
    clip = {"source": "clip-text", "model": str(towers), "target": "a red cube"}
    alike = {"source": "likeness", "checkpoint": features, "target": picture}
    beyond = ("zebra crossing@0,0,1,1", "red cube@0,0,1,2", "red cube@1,0,0,1", "{")
    flow = {"checkpoint": raft, "target": picture, "options": {"size": 64}}
    return {
        "classifier": {"bad_targets": ("zebra crossing", "-1", "100000")},
        "adm-classifier": {"bad_targets": ("zebra crossing", "-1")},
        "depth": {"bad_targets": ("near",)},
        "segmentation": {"bad_targets": ("zebra crossing",)},
        "detection": {"bad_targets": beyond},
        "flow": {**flow, "bad_targets": ("still",)},
        "correspondence": {"guider": {**flow, "source": "flow"}},
        "diffusers": {"checkpoint": pipeline},
        "clip": {**text, **noised},
        "clip-text": text,
        **dict.fromkeys(("likeness", "style"), likeness),
        "structure": {**likeness, "options": {"layers": "layer2"}},
        "clip-similarity": {"guider": {**noised, "source": "clip", "target": "a red cube"}},
        **{name: {"guider": clip} for name in ("embedding-spherical", "embedding-cosine")},
        **{name: {"guider": alike} for name in ("likeness-mean", "likeness-nearest")},
    }


@pytest.mark.parametrize("kind, name", COMPONENTS)
def test_it_conforms(kind: ComponentKind, name: str, told: dict[str, dict[str, Any]]) -> None:
    outcomes = list(run_checks(suite_of(kind, name, **told.get(name, {}))))
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    if name == "diffusers":  # a random network removes no noise
        failed = [outcome for outcome in failed if outcome.check != "test_it_removes_noise"]
    assert failed == []
    skipped = [outcome.check for outcome in outcomes if outcome.status == "skipped"]
    assert len(skipped) <= 3, skipped
