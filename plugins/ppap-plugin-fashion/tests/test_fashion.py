"""What the distribution offers is there, is what its cards say, and works together."""

from __future__ import annotations

import pytest
import torch

import ppap_framework as ppap
from ppap_framework.checkpoints import fetch
from ppap_framework.experts import read_bundle_info, verify_bundle
from ppap_framework.files import file_sha256
from ppap_framework.plugin import AssetFile, DefaultTarget
from ppap_framework.targets import decode_target
from ppap_plugin_fashion.plugin import ppap_assets

ASSETS = ppap_assets()
FILES = [asset for asset in ASSETS if isinstance(asset, AssetFile)]


@pytest.mark.parametrize("asset", FILES, ids=lambda asset: asset.name)
def test_files_are_what_their_cards_say(asset: AssetFile) -> None:
    path = fetch(asset)
    assert (file_sha256(path), path.stat().st_size) == (asset.sha256, asset.size)


def test_all_files_together_are_small() -> None:
    assert sum(asset.size for asset in FILES) < 15e6


def test_no_card_is_a_default() -> None:
    """Defaults belong to `ppap-plugin-shapes`."""
    assert not any(getattr(asset, "default", False) for asset in FILES)


def test_default_targets_are_classes() -> None:
    targets = [asset for asset in ASSETS if isinstance(asset, DefaultTarget)]
    assert {target.checkpoint for target in targets} == {"fashion-resnet18", "fashion-judge"}
    for target in targets:
        model = ppap.guide("classifier", checkpoint=target.checkpoint, experts="none").model
        assert model.target(decode_target(target.text)).label == target.text


def test_experts_lead_where_the_untouched_network_does_not() -> None:
    """By the eyes of the judge, which guides nothing."""
    aims = torch.arange(10)
    guide = ppap.guide("classifier", checkpoint="fashion-resnet18", target=aims.numpy())
    backend = ppap.backend("adm", checkpoint="fashion-adm")
    drawn = ppap.sample(backend, [guide], num=10, steps=20, batch=10, seed=1, compare=True)
    chosen = drawn.plan.guides[0].chosen
    assert chosen is not None
    assert chosen.name == "fashion-classifier-5"
    verify_bundle(chosen.path)
    assert read_bundle_info(chosen.path).curve is not None
    judge = ppap.guide("classifier", checkpoint="fashion-judge", experts="none").model
    names = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker")
    order = [judge.target(decode_target(n)).value.item() for n in (*names, "bag", "ankle boot")]
    assert order == list(range(10))
    hits = {}
    for kind, pictures in drawn.pictures.items():
        name, images = "experts" if kind == "guided" else kind, pictures.images
        with torch.no_grad():
            hits[name] = int((judge(images).argmax(1) == aims).sum())
    assert hits["experts"] >= 7
    assert hits["experts"] > hits["naive"] + 1
    assert hits["unguided"] <= 4
