"""torchvision's detectors of one stage, by the raw outputs of their heads.

FCOS, RetinaNet and SSD answer at every place (and anchor) of their feature maps. What torchvision
does next (thresholds, sorting, non-maximum suppression) has no useful gradient and is left out.
Detectors of two stages (Faster R-CNN and its kin) sort and suppress before their second stage, so
most wanted boxes have no answer at all; they are refused.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, final

import attrs
import torch
import torch.nn.functional as F
import torchvision
from attrs.validators import and_, deep_iterable, gt, instance_of, optional
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FrozenBatchNorm2d

from ppap_framework.author import (
    AssetError,
    Checkpoint,
    ImageInput,
    UsageError,
    downloading,
    in_torch_hub,
    load_into,
    read_architecture,
)

__all__ = ["PREFIX", "answer_of", "from_checkpoint", "from_torchvision", "known", "unknown_model"]

_Loaded = tuple[nn.Module, Sequence[str], ImageInput]

PREFIX = "torchvision/"  # optional prefix of names

_ONE_STAGE = ("fcos", "retinanet", "ssd")
_BACKGROUND = "__background__"


def known(model: str) -> bool:
    """Whether torchvision has this detector; UsageError if it has two stages."""
    if model not in list_models(module=torchvision.models.detection):
        return False
    if not model.startswith(_ONE_STAGE):
        raise UsageError(
            f"{model!r} selects regions before it names them, and no gradient passes that",
            hint=f"take a detector of one stage: {', '.join(_names())}, or one of transformers",
        )
    return True


def _names() -> list[str]:
    found: list[str] = list_models(module=torchvision.models.detection)
    return [name for name in found if name.startswith(_ONE_STAGE)]


def unknown_model(model: str) -> UsageError:
    """Error for an unknown model; the hint lists similar names."""
    close = difflib.get_close_matches(model, _names(), n=3) or _names()
    return UsageError(
        f"torchvision {torchvision.__version__} has no detector {model!r}, and there is no such"
        " folder",
        hint=f"it has {', '.join(close)}; of transformers give a folder, or owner/name of the hub",
    )


@attrs.frozen(kw_only=True)
class _Architecture:
    """Architecture record of a checkpoint; only the model is required."""

    model: str = attrs.field(validator=instance_of(str))
    class_names: Sequence[str] | None = attrs.field(
        default=None, validator=optional(deep_iterable(instance_of(str), instance_of(list)))
    )
    input_size: int | None = attrs.field(
        default=None, validator=optional(and_(instance_of(int), gt(0)))
    )

    @model.validator
    def _of_one_stage(self, _: object, value: str) -> None:
        if value not in _names():
            raise ValueError(f"torchvision {torchvision.__version__} has no detector {value!r}")


def from_checkpoint(checkpoint: Checkpoint, model: str | None, size: int | None) -> _Loaded:
    """Build the model of a checkpoint and load its weights.

    Args:
        checkpoint: State dict of torchvision's model. Without `class_names` it has the classes of
            torchvision's own weights.
        model: Model name, required if the checkpoint does not state it.
        size: Input side in pixels; overrides the stated one.

    Raises:
        UsageError: If `model` contradicts the checkpoint.
        AssetError: If the architecture is invalid, or the weights do not fit it.
    """
    if checkpoint.architecture:
        stated = read_architecture(checkpoint, _Architecture)
        if model not in (None, stated.model):
            raise UsageError(
                f"{checkpoint.name!r} is a {stated.model}, not a {model}",
                hint="leave --guider-model out",
            )
    else:
        assert model is not None
        stated = _Architecture(model=model)
    own = get_model_weights(stated.model).DEFAULT.meta["categories"]
    names = [name for name in stated.class_names or own if name != _BACKGROUND]
    if not names:
        raise AssetError(f"{checkpoint.name!r} names no class", hint="state its class_names")
    network = get_model(
        stated.model, weights=None, weights_backbone=None, num_classes=1 + len(names)
    )
    if not any(name.endswith("num_batches_tracked") for name in checkpoint.state_dict()):
        _freeze_norms(network)
    load_into(network, checkpoint)
    return network.eval(), names, _input(network, size or stated.input_size)


def from_torchvision(model: str, size: int | None) -> _Loaded:
    """A model with torchvision's weights, downloaded if necessary.

    Raises:
        AssetError: If the weights cannot be downloaded; the hint names the URL.
    """
    weights = get_model_weights(model).DEFAULT
    hint = f"download {weights.url} elsewhere, then add --guider-checkpoint FILE"
    with downloading(f"torchvision's weights of {model!r}", hint, here=in_torch_hub(weights.url)):
        network = get_model(model, weights=weights, progress=False)
    names = [name for name in weights.meta["categories"] if name != _BACKGROUND]
    return network.eval(), names, _input(network, size)


def _freeze_norms(module: nn.Module) -> None:
    """Replace batch norms by those without a count of batches, as released weights have them."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features, eps=child.eps))
        else:
            _freeze_norms(child)


def _input(network: Any, size: int | None) -> ImageInput:
    """The whole image, resized to a square: torchvision's shorter side, or its fixed size."""
    transform = network.transform
    own = transform.fixed_size[0] if transform.fixed_size else transform.min_size[0]
    return ImageInput(size=size or own, mean=transform.image_mean, std=transform.image_std)


@final
class answer_of:  # noqa: N801  # a function that can be copied and pickled
    """The answers (logits, boxes) of a network to prepared images; see `guider.DetectionGuide`."""

    def __init__(self, side: int) -> None:
        self._side = side

    def __call__(self, network: Any, images: Tensor) -> tuple[Tensor, Tensor]:
        features = list(network.backbone(images).values())
        outputs = network.head(features)
        sizes = [(self._side, self._side)] * len(images)
        anchors = network.anchor_generator(ImageList(images, sizes), features)[0]
        logits, codes = outputs["cls_logits"], outputs["bbox_regression"]
        if hasattr(network.head, "box_coder"):  # FCOS
            boxes = network.head.box_coder.decode(codes, anchors)
            logits = _logits_of_geometric_mean(logits, outputs["bbox_ctrness"])
        else:
            rows = network.box_coder.decode_single(
                codes.flatten(0, 1), anchors.repeat(len(codes), 1)
            )
            boxes = rows.view_as(codes)
        if type(network).__name__ == "SSD":  # a softmax, whose first class is nothing
            return logits.roll(-1, -1), boxes / self._side
        # Sigmoids; the first is that of "__background__", which was never trained.
        return F.pad(logits[..., 1:], (0, 1)), boxes / self._side


def _logits_of_geometric_mean(one: Tensor, other: Tensor) -> Tensor:
    """logit(sqrt(sigmoid(one) sigmoid(other))), the score of FCOS (Tian et al. 2019)."""
    log_p = (F.logsigmoid(one) + F.logsigmoid(other)) / 2
    return log_p - torch.log(-torch.expm1(log_p.clamp(max=-1e-6)))
