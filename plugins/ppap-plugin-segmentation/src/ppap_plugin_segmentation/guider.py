"""Semantic segmentation networks as guides."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppap_framework.author import (
    AssetError,
    Checkpoint,
    GuidanceModel,
    ImageInput,
    NoiseLevel,
    Target,
    TargetInput,
    UsageError,
    find_class,
)
from ppap_plugin_segmentation import torchvision_models
from ppap_plugin_segmentation.drawing import draw_segmentation, draw_target
from ppap_plugin_segmentation.loss import resized_logits
from ppap_plugin_segmentation.masks import MaskClasses, mask_from, picture_from
from ppap_plugin_segmentation.options import SegmentationOptions
from ppap_transformers import Task, central, find_model, load_network, make_input

__all__ = ["SegmentationGuide", "make_segmentation"]

_LARGEST = 512  # target side for networks without a fixed input size

_OF_MASKS = ("eomt", "eomt_dinov3", "mask2former", "maskformer")
"""Model types of transformers that predict masks and the class of each mask."""

_TINY = 1e-8  # added to class scores before the logarithm


def make_segmentation(
    options: SegmentationOptions, checkpoint: Checkpoint | None
) -> SegmentationGuide:
    """Factory of the guider `segmentation`.

    Raises:
        UsageError: If the model is not specified or unknown.
        AssetError: If the checkpoint does not fit, or the weights are unavailable.
    """
    model = options.model
    if model is None and checkpoint is None:
        raise UsageError(
            "guider 'segmentation' needs a model or a checkpoint",
            hint="type --guider-model deeplabv3_resnet50, a folder, owner/name of the hub, or "
            "--guider-checkpoint PATH",
        )
    if model is not None and model.startswith(torchvision_models.PREFIX):
        model = model.removeprefix(torchvision_models.PREFIX)
        options = attrs.evolve(options, model=model)
        if model not in torchvision_models.model_names():
            raise torchvision_models.unknown_model(model)
    known = model in torchvision_models.model_names()
    if model is not None and not known and not _may_be_transformers(model):
        raise torchvision_models.unknown_model(model)
    if known or (checkpoint is not None and "model" in checkpoint.architecture):
        guide = _of_torchvision(options, checkpoint)
    else:
        guide = _of_transformers(options, checkpoint)
    if options.size is not None:
        guide.check_size()
    return guide


@final
class SegmentationGuide(GuidanceModel):
    """A frozen segmentation network with its preprocessing and class names.

    Networks of transformers are shown what their processor shows them. If it crops to the center,
    masks are cropped alike, and guidance does not reach the border.

    Args:
        network: Network on the preprocessed images.
        class_names: Names of the K classes, in order.
        shown: Preprocessing: resize and normalisation.
        answer: Extracts the logits (B, K, h, w) from the output of the network.
        options: How to read targets.

    Raises:
        UsageError: If the options name unknown classes.
    """

    def __init__(
        self,
        network: nn.Module,
        class_names: Sequence[str],
        shown: ImageInput,
        *,
        answer: Callable[[Any], Tensor],
        options: SegmentationOptions | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.class_names = tuple(class_names)
        self.shown = shown
        self._answer = answer
        self._options = options or SegmentationOptions()
        self._mask_classes = MaskClasses.read(
            self._options.mask_classes, self.class_names, self._options.ignore_index
        )
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor, level: NoiseLevel | None = None) -> Tensor:
        """Logits (B, K, h, w) of images (B, 3, H, W), at the network's output resolution.

        The noise level is ignored.
        """
        logits = self._answer(self.network(self.shown(images)))
        return central(logits, 1 / self.shown.kept)

    def target(self, given: TargetInput) -> Target:
        """Read a mask of class indices, a picture to segment, or the name or number of one class
        for all pixels.
        """
        names, options = self.class_names, self._options
        if given.text is not None:
            index = find_class(given.text, names, is_index=given.is_index)
            mask = torch.full((1, 1, 1), index)
            label = f"{names[index].split(',')[0]} everywhere"
            return Target(value=mask, label=label, picture=draw_target(mask[0], None, names))
        picture = picture_from(given, options.target_kind)
        name = Path(given.source).name if given.source else ""
        if picture is None:
            whole = round(self._largest / min(self.shown.kept, 1.0))
            mask = central(mask_from(given, self._mask_classes, whole), self.shown.kept)
            drawn = draw_target(mask[0], None, names)
            return Target(value=mask, label=f"mask {name}".rstrip(), picture=drawn)
        mask = self._found_in(picture)
        drawn = draw_target(mask[0], central(picture[0], self.shown.kept), names)
        return Target(value=mask, label=f"the classes of {name or 'a picture'}", picture=drawn)

    def render(self, prediction: Tensor, images: Tensor) -> Tensor:
        """Draw the likeliest classes over what the network sees; see `draw_segmentation`."""
        images = central(images, self.shown.kept)
        size = (
            max(prediction.shape[-2], images.shape[-2]),
            max(prediction.shape[-1], images.shape[-1]),
        )
        classes = resized_logits(prediction.detach(), size).argmax(1)
        return draw_segmentation(classes, images, self.class_names)

    @torch.no_grad()
    def check_size(self) -> None:
        """Evaluate the network once at the input size.

        Raises:
            UsageError: If the network does not support that size.
        """
        side = self._largest
        try:
            self(torch.zeros(1, 3, side, side))
        except Exception as error:  # networks raise various errors for unsupported sizes
            reason = " ".join(str(error).split())[:200]
            raise UsageError(
                f"the network cannot be shown images of {side} pixels: {reason}",
                hint="choose another --guider-option size, or leave it out",
            ) from error

    @property
    def _largest(self) -> int:
        return self.shown.size or _LARGEST

    @torch.no_grad()
    def _found_in(self, picture: Tensor) -> Tensor:
        """Likeliest classes (1, h, w) of a picture (1, 3, H, W), at the network's resolution."""
        height, width = picture.shape[-2:]
        size = (min(height, self._largest), min(width, self._largest))
        if self.shown.size is None and (height, width) != size:
            picture = F.interpolate(picture, size, mode="bilinear", antialias=True)
        logits = self(picture.to(next(self.network.parameters()).device))
        return resized_logits(logits, size).argmax(1).cpu()


def _of_torchvision(
    options: SegmentationOptions, checkpoint: Checkpoint | None
) -> SegmentationGuide:
    if checkpoint is not None:
        loaded = torchvision_models.from_checkpoint(checkpoint, options.model, options.size)
    else:
        assert options.model is not None
        loaded = torchvision_models.from_torchvision(options.model, options.size)
    return SegmentationGuide(*loaded, answer=_torchvision_answer, options=options)


def _of_transformers(
    options: SegmentationOptions, checkpoint: Checkpoint | None
) -> SegmentationGuide:
    files = find_model(options.model, checkpoint)
    of_masks = files.architecture["config"].get("model_type") in _OF_MASKS
    task: Task = "universal-segmentation" if of_masks else "semantic-segmentation"
    network: Any = load_network(files, task)
    names = _class_names(files, network.config.id2label)
    shown = make_input(files, size=options.size)
    answer = _answer_in_masks if of_masks else _transformers_answer
    return SegmentationGuide(network, names, shown, answer=answer, options=options)


def _may_be_transformers(model: str) -> bool:
    return "/" in model or os.path.exists(os.path.expanduser(model))  # noqa: PTH110, PTH111  # pathlib's raise


def _torchvision_answer(answer: Mapping[str, Tensor]) -> Tensor:
    return answer["out"]


def _transformers_answer(answer: Any) -> Tensor:
    logits: Tensor = answer.logits
    return logits


def _answer_in_masks(answer: Any) -> Tensor:
    """Logits (B, K, h, w) from Q classified masks: log of the sum over masks of
    p(class) p(pixel in mask).

    Source: Cheng et al. 2021, arXiv 2107.06278, section 3.4, "semantic inference".
    """
    classes = answer.class_queries_logits.float().softmax(-1)[..., :-1]  # the last is "nothing"
    masks = answer.masks_queries_logits.float().sigmoid()
    return (torch.einsum("bqk,bqhw->bkhw", classes, masks) + _TINY).log()


def _class_names(files: Checkpoint, id2label: Mapping[int, str]) -> list[str]:
    """Names of all classes, in order.

    Raises:
        AssetError: If the class numbers have gaps.
    """
    if sorted(id2label) != list(range(len(id2label))):
        raise AssetError(
            f"the classes of {files.name!r} are not numbered from 0 on",
            hint="correct id2label in its config.json",
        )
    return [str(id2label[index]) for index in range(len(id2label))]
