"""What the distribution offers is there, is what its cards say, and works together."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

import ppap_framework as ppap
from ppap_framework.checkpoints import fetch
from ppap_framework.components import TargetInput
from ppap_framework.experts import read_bundle_info, verify_bundle
from ppap_framework.files import file_sha256
from ppap_framework.plugin import AssetFile, DefaultTarget, ExpertBundle
from ppap_plugin_shapes.plugin import ppap_assets
from ppap_plugin_shapes.world import CLASS_NAMES

ASSETS = ppap_assets()
FILES = [asset for asset in ASSETS if isinstance(asset, AssetFile)]
BUNDLES = [asset for asset in FILES if isinstance(asset, ExpertBundle)]
PACKAGES = {
    "classifier": "ppap_plugin_classifier",
    "clip-text": "ppap_plugin_clip",
    "detection": "ppap_plugin_detection",
    "likeness": "ppap_plugin_likeness",
    "style": "ppap_plugin_likeness",
    "depth": "ppap_plugin_midas",
    "segmentation": "ppap_plugin_segmentation",
}
"""Guiders, and the packages that supply them."""


@pytest.mark.parametrize("asset", FILES, ids=lambda asset: asset.name)
def test_files_are_what_their_cards_say(asset: AssetFile) -> None:
    path = fetch(asset)
    assert (file_sha256(path), path.stat().st_size) == (asset.sha256, asset.size)


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_bundles_are_for_the_networks_here(bundle: ExpertBundle) -> None:
    path = fetch(bundle)
    verify_bundle(path)
    info = read_bundle_info(path)
    assert (info.guide.component, info.backend.component) == (bundle.guider, bundle.backend)
    assert info.curve is not None
    pytest.importorskip(PACKAGES[bundle.guider], reason="the guider")
    run = ppap.sample(bundle.backend, [ppap.guide(bundle.guider)], num=1, steps=1)
    assert run.plan.guides[0].chosen is not None
    assert run.plan.guides[0].chosen.name == bundle.name


def test_experts_of_a_backend_that_is_not_here_are_no_fault() -> None:
    """Those that read latents need an adapter that comes with the backend."""
    plugins = ",".join(f"ppap-plugin-{name}" for name in ("shapes", "lora", "bias"))
    environment = {**os.environ, "PPAP_PLUGINS": plugins}
    command = [sys.executable, "-m", "ppap_framework", "doctor", "--json"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert json.loads(told.stdout)["experts"] == []


def test_default_targets_are_among_the_classes() -> None:
    targets = [asset for asset in ASSETS if isinstance(asset, DefaultTarget)]
    classifiers = [target for target in targets if target.guider == "classifier"]
    assert classifiers
    assert {target.text for target in classifiers} <= {*CLASS_NAMES}


def test_experts_lead_where_the_untouched_network_does_not() -> None:
    """By the eyes of the judge, which guides nothing."""
    pytest.importorskip(PACKAGES["classifier"], reason="the guide and the judge")
    aims = torch.arange(0, 32, 4)
    guide = ppap.guide("classifier", target=aims.numpy())
    drawn = ppap.sample("adm", [guide], num=8, steps=20, batch=8, seed=3, compare=True)
    judge = ppap.guide("classifier", checkpoint="shapes-judge", target="red cube", experts="none")
    names = [judge.model.target(TargetInput(text=name)).value for name in CLASS_NAMES]
    hits = {}
    for kind, pictures in drawn.pictures.items():
        name, images = "experts" if kind == "guided" else kind, pictures.images
        with torch.no_grad():
            seen = judge.model(images).argmax(1)
        hits[name] = int((seen == torch.cat(names)[aims]).sum())
    assert hits["experts"] >= 5
    assert hits["naive"] <= 3
    assert hits["unguided"] <= 2
