"""Object detectors as guides."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_convert

from ppap_framework.author import (
    AssetError,
    Checkpoint,
    GuidanceModel,
    ImageInput,
    NoiseLevel,
    Target,
    TargetInput,
    UsageError,
)
from ppap_plugin_detection import targets, torchvision_models
from ppap_plugin_detection.drawing import Found, draw_boxes
from ppap_plugin_detection.options import DetectionOptions
from ppap_transformers import find_model, load_network, make_input

__all__ = ["DetectionGuide", "make_detection"]

_SEEN = 16  # boxes of a picture as target, at most
_SHOWN = 3  # classes in labels and descriptions
_LONGEST, _PAPER = 76, (128, 128)
_OVERLAP = 0.5  # from which two detections of one class are of one object

_KNOWN = (
    "conditional_detr",
    "d_fine",
    "dab-detr",
    "deformable_detr",
    "detr",
    "lw_detr",
    "rf_detr",
    "rt_detr",
    "rt_detr_v2",
    "table-transformer",
    "yolos",
)
"""Model types of transformers that answer with logits and boxes of queries."""

_Answer = Callable[[Any, Tensor], tuple[Tensor, Tensor]]


def make_detection(options: DetectionOptions, checkpoint: Checkpoint | None) -> DetectionGuide:
    """Factory of the guider `detection`.

    Raises:
        UsageError: If the model is not specified, unknown, or a detector of two stages.
        AssetError: If the checkpoint does not fit, or the weights are unavailable.
    """
    model = options.model
    if model is None and checkpoint is None:
        raise UsageError(
            "guider 'detection' needs a model or a checkpoint",
            hint="type --guider-model fcos_resnet50_fpn, a folder, owner/name of the hub, or "
            "--guider-checkpoint PATH",
        )
    prefixed = model is not None and model.startswith(torchvision_models.PREFIX)
    if model is not None and prefixed:
        model = model.removeprefix(torchvision_models.PREFIX)
    known = model is not None and torchvision_models.known(model)
    if model is not None and not known and (prefixed or not _may_be_transformers(model)):
        raise torchvision_models.unknown_model(model)
    if known or (checkpoint is not None and "model" in checkpoint.architecture):
        if checkpoint is not None:
            loaded = torchvision_models.from_checkpoint(checkpoint, model, options.size)
        else:
            assert model is not None
            loaded = torchvision_models.from_torchvision(model, options.size)
        assert loaded[2].size is not None
        answer: _Answer = torchvision_models.answer_of(loaded[2].size)
        return DetectionGuide(*loaded, answer=answer, options=options)
    return _of_transformers(options, checkpoint)


@final
class DetectionGuide(GuidanceModel):
    """A frozen detector with its preprocessing and class names.

    Args:
        network: Network on the preprocessed images.
        class_names: Names of the K classes, in order.
        shown: Preprocessing: resize and normalisation of whole images.
        answer: From the network and its input to logits (B, Q, K + 1), the last of nothing, and
            boxes (B, Q, 4) as corners in fractions of the image.
        options: How to read targets.
    """

    def __init__(
        self,
        network: nn.Module,
        class_names: Sequence[str],
        shown: ImageInput,
        *,
        answer: _Answer,
        options: DetectionOptions | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.class_names = tuple(class_names)
        self.shown = shown
        self._answer = answer
        self._options = options or DetectionOptions()
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor, level: NoiseLevel | None = None) -> dict[str, Tensor]:
        """The answers of Q queries, or places and anchors, to images (B, 3, H, W).

        Returns:
            "logits", (B, Q, K + 1): of the classes and, last, of nothing. K independent sigmoids
            with logits l are (l, 0): the probability that exactly that class is there, given that
            at most one is. "boxes", (B, Q, 4): corners (x1, y1, x2, y2) in fractions of the image.

        The noise level is ignored.
        """
        logits, boxes = self._answer(self.network, self.shown(images))
        return {"logits": logits, "boxes": boxes}

    def target(self, given: TargetInput) -> Target:
        """Wanted boxes: (1, n, 5), or (B, n, 5) of an array with those of each image.

        Args:
            given: "red cube@0.1,0.2,0.5,0.6; blue cone@...", the text of a COCO-style JSON file, an
                array of rows (class, x1, y1, x2, y2), or a picture, in which the detector finds
                its boxes: those above the threshold, or else the likeliest one.

        Raises:
            UsageError: For an unknown class, a box that is inverted or reaches beyond the picture,
                malformed text, or more boxes than the detector has queries.
        """
        names, picture = self.class_names, None
        if given.image is not None:
            picture = given.pixels()
            rows = self._found_in(picture)
        elif given.array is not None:
            rows = targets.from_numbers(given.array, names)
        else:
            text = given.text or ""
            is_json = text.lstrip().startswith(("{", "[")) or given.source.endswith(".json")
            read = (
                targets.from_json(text, names, Path(given.source).name)
                if is_json
                else targets.from_text(text, names)
            )
            rows = torch.tensor(read)[None]
        rows = targets.within(rows, self._queries())
        first = [(int(row[0]), row[1:].tolist()) for row in rows[0] if row[0] >= 0]
        found = [Found(kind, corners, self._first_name(kind)) for kind, corners in first]
        label = _shortened([each.words for each in found]) or "no boxes"
        drawn = draw_boxes(found, picture, _PAPER)
        return Target(value=rows, label=label, picture=drawn)

    def render(self, prediction: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Draw the detections above the threshold, with class and probability, over the images."""
        drawn = []
        for found, picture in zip(self._detections(prediction), images, strict=True):
            each = [
                Found(int(kind), corners, f"{self._first_name(int(kind))} {p:.2f}")
                for kind, *corners, p in found.tolist()
            ]
            drawn.append(draw_boxes(each, picture, _PAPER))
        return torch.stack(drawn)

    def describe(self, prediction: Mapping[str, Tensor]) -> list[str]:
        """The likeliest detections, such as "red cube 0.97, blue cone 0.80", or "nothing"."""
        return [
            _shortened([f"{self._first_name(int(row[0]))} {row[5]:.2f}" for row in found])
            or "nothing"
            for found in self._detections(prediction)
        ]

    def _detections(self, prediction: Mapping[str, Tensor], *, least: int = 0) -> list[Tensor]:
        """Of each image rows (class, x1, y1, x2, y2, probability), the likeliest first, without
        others of the same object; at least so many, however unlikely.
        """
        p = prediction["logits"].detach().float().softmax(-1)[..., :-1]
        scores, kinds = p.max(-1)
        found = []
        for score, kind, boxes in zip(scores, kinds, prediction["boxes"], strict=True):
            corners = boxes.detach().float().clamp(0, 1)
            kept = batched_nms(corners, score, kind, _OVERLAP)
            number = max(least, int((score[kept] >= self._options.threshold).sum()))
            kept = kept[:number]
            columns = (kind[kept, None].float(), corners[kept], score[kept, None])
            found.append(torch.cat(columns, 1).cpu())
        return found

    @torch.no_grad()
    def _found_in(self, picture: Tensor) -> Tensor:
        """Boxes of a picture (3, H, W): (1, 16, 5), those beyond the number found of class -1."""
        device = next(self.network.parameters()).device
        (found,) = self._detections(self(picture[None].to(device)), least=1)
        rows = torch.full((1, min(_SEEN, self._queries()), 5), -1.0)
        found = found[: rows.shape[1], :5]
        rows[0, : len(found)] = found
        return rows

    @torch.no_grad()
    def _queries(self) -> int:
        if self._number is None:
            device = next(self.network.parameters()).device
            side = self.shown.size or _PAPER[0]
            self._number = self(torch.zeros(1, 3, side, side, device=device))["boxes"].shape[1]
        return self._number

    _number: int | None = None

    def _first_name(self, kind: int) -> str:
        return self.class_names[kind].split(",")[0]


def _of_transformers(options: DetectionOptions, checkpoint: Checkpoint | None) -> DetectionGuide:
    files = find_model(options.model, checkpoint)
    kind = str(files.architecture["config"].get("model_type"))
    if kind.startswith("pp_"):
        raise AssetError(
            f"{files.name!r} is a {kind}, whose answer is not of queries with a class and a box",
            hint=f"give a model of type {', '.join(_KNOWN)}",
        )
    network: Any = load_network(files, "object-detection")
    names = network.config.id2label
    if sorted(names) != list(range(len(names))):
        raise AssetError(
            f"the classes of {files.name!r} are not numbered from 0 on",
            hint="correct id2label in its config.json",
        )
    shown = make_input(files, size=options.size)
    if shown.kept != 1:
        raise AssetError(
            f"{files.name!r} is not shown the whole image, in which boxes lie",
            hint="add --guider-option size=... to show it the whole image",
        )
    named = [str(names[index]) for index in range(len(names))]
    return DetectionGuide(network, named, shown, answer=_transformers_answer, options=options)


def _transformers_answer(network: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    answer = network(pixel_values=images)
    logits, boxes = answer.logits, box_convert(answer.pred_boxes, "cxcywh", "xyxy")
    if logits.shape[-1] == network.config.num_labels:  # sigmoids; else the last is of nothing
        logits = F.pad(logits, (0, 1))
    return logits, boxes


def _may_be_transformers(model: str) -> bool:
    return "/" in model or os.path.exists(os.path.expanduser(model))  # noqa: PTH110, PTH111  # pathlib's raise


def _shortened(words: Sequence[str]) -> str:
    more = f", and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    text = ", ".join(words[:_SHOWN])
    return text[: _LONGEST - len(more)] + more
