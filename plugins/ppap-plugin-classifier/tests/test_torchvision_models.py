"""Classifiers of torchvision: loaded by name, and shown what torchvision itself would show them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from library_inputs import TOLERANCE, levels, picture
from safetensors.torch import save_file
from torch import nn
from torchvision.models import MobileNet_V2_Weights, get_model, get_model_weights
from torchvision.transforms import Normalize

from ppap_framework.checkpoints import open_checkpoint, save_checkpoint
from ppap_framework.errors import AssetError, PpapError, UsageError
from ppap_plugin_classifier.guider import ClassifierGuide, make_classifier
from ppap_plugin_classifier.options import ClassifierOptions
from ppap_plugin_classifier.torchvision_models import _input


def loaded(model: str, path: Path | None = None) -> ClassifierGuide:
    checkpoint = None if path is None else open_checkpoint(path)
    return make_classifier(ClassifierOptions(model=model), checkpoint)


@pytest.mark.parametrize(
    ("model", "classes", "size"),
    [("mobilenet_v2", 1000, 224), ("squeezenet1_1", 5, 224), ("googlenet", 1000, 224)],
)
def test_a_state_dict_says_what_torchvision_says(
    model: str, classes: int, size: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"transform_input": True} if model == "googlenet" else {}
    if options:
        options |= {"aux_logits": False, "init_weights": False}
    network = get_model(model, weights=None, num_classes=classes, **options).eval()
    torch.save(network.state_dict(), tmp_path / "own.pth")
    made = loaded(f"torchvision/{model}", tmp_path / "own.pth")
    assert made.shown.size == size
    assert len(made.class_names) == classes
    assert made.class_names[0] == ("tench" if classes == 1000 else "class 0")
    batch = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    shown = Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])((batch + 1) / 2)
    with torch.no_grad():
        torch.testing.assert_close(made(batch), network(shown), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_head_is_found_in_a_file_of_sorted_names(prefix: str, tmp_path: Path) -> None:
    state = get_model("resnet18", weights=None, num_classes=5).state_dict()
    save_file({prefix + name: tensor for name, tensor in state.items()}, tmp_path / "a.safetensors")
    assert len(loaded("torchvision/resnet18", tmp_path / "a.safetensors").class_names) == 5


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b0"])
@pytest.mark.parametrize("shape", [(45, 45), (300, 260)])
def test_torchvisions_weights_are_fed_what_torchvision_feeds_them(
    name: str, shape: tuple[int, int]
) -> None:
    weights = get_model_weights(name).DEFAULT
    made = ClassifierGuide(nn.Identity(), "ab", _input(weights, whole=False))
    image = picture(*shape)
    assert levels(made, image, weights.transforms()(image)[None]) < TOLERANCE


@pytest.mark.parametrize(
    ("model", "message", "hint"),
    [
        ("torchvision/resnet5", "has no classifier 'resnet5'", "torchvision/resnet50"),
        ("torchvision/fcn_resnet50", "has no classifier", "torchvision/"),
        ("torchvision/", "has no classifier ''", "lists all"),
    ],
)
def test_unknown(model: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        loaded(model)
    assert hint in str(caught.value.hint)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    for state in ({"a": torch.zeros(3)}, {}):
        save_checkpoint(path, state, {})
        with pytest.raises(PpapError) as caught:
            loaded("torchvision/mobilenet_v2", path)
        assert "\n" not in caught.value.message
    save_checkpoint(path, {"a": torch.zeros(3)}, {"model": "resnet18"})
    with pytest.raises(UsageError, match="is a resnet18, not a torchvision/resnet18"):
        loaded("torchvision/resnet18", path)


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **named: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setattr("torch.hub.os.path.exists", lambda path: False)
    with pytest.raises(AssetError, match="cannot download torchvision's weights of") as caught:
        loaded("torchvision/mobilenet_v2")
    assert MobileNet_V2_Weights.DEFAULT.url in str(caught.value.hint)
