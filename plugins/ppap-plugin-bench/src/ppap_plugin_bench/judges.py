"""Judges: networks that evaluate finished images and never guide."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ppap_framework.components import Target, TargetInput
from ppap_framework.errors import PluginError, UsageError
from ppap_framework.guidance import Guide
from ppap_framework.noise import NoiseLevel
from ppap_framework.origin import Origin
from ppap_framework.pixels import from_uint8, to_uint8
from ppap_framework.run import GuideRequest
from ppap_framework.targets import decode_target
from ppap_plugin_bench.experiment import JudgeSpec
from ppap_plugin_bench.pictures import Pictures
from ppap_plugin_bench.setup import Setup
from ppap_plugin_bench.targets import Targets
from ppap_plugin_diagnose.diagnosis import provenance
from ppap_plugin_diagnose.intervals import Floats

_BATCH = 256


@attrs.frozen(eq=False)
class Observations:
    """Outputs of the judges for N images.

    Attributes:
        features: Features of the class judge, (N, D).
        classes: Likeliest class, (N,); -1 for an unnamed class.
        confidence: Probability of that class, (N,).
        targets: Target class of each image, (N,).
        of_scenes: Figures of the scene judges by name, (N,); values may not be finite.
    """

    features: Floats
    classes: NDArray[np.int64]
    confidence: Floats
    targets: NDArray[np.int64]
    of_scenes: Mapping[str, Floats] = attrs.field(factory=dict)


class _Judge:
    """A guide's network on a device, without a target."""

    def __init__(self, guide: Guide, device: torch.device) -> None:
        assert guide.origin is not None  # it was requested by name
        self.origin: Origin = guide.origin
        self.guide = guide
        self._model = guide.model.to(device).eval()
        self._device = device

    def _predict(self, pixels: NDArray[np.uint8]) -> tuple[Tensor, Any]:
        """Images as tensors, and the prediction."""
        images = from_uint8(pixels).to(self._device)
        return images, self._model(images, NoiseLevel.clean(len(images)))


@final
class ClassJudge(_Judge):
    """A classifier of K classes. Its features are the input of the last linear layer that runs, for
    any architecture.

    Raises:
        UsageError: If the classifier does not know a class name.
    """

    def __init__(self, guide: Guide, names: Sequence[str], device: torch.device) -> None:
        super().__init__(guide, device)
        named = [self._model.target(TargetInput(text=name, source=name)).value for name in names]
        self._outputs = torch.cat(named).cpu()  # (K,), output index of each class

    @torch.inference_mode()
    def look(self, pixels: NDArray[np.uint8]) -> tuple[Floats, NDArray[np.int64], Floats]:
        """Features, classes and confidence of images (N, H, W, 3); see `Observations`.

        Raises:
            PluginError: If the network has no linear layer, or does not return logits (N, outputs).
        """
        parts = [self._look(pixels[k : k + _BATCH]) for k in range(0, len(pixels), _BATCH)]
        features, classes, confidence = (
            torch.cat(part).numpy() for part in zip(*parts, strict=True)
        )
        return features.astype(np.float64), classes, confidence.astype(np.float64)

    def _look(self, pixels: NDArray[np.uint8]) -> tuple[Tensor, Tensor, Tensor]:
        with _last_linear_input(self._model.network) as inputs:
            images, logits = self._predict(pixels)
        features = inputs[-1] if inputs else torch.empty(0)
        if len(features) != len(images) or features.ndim != 2:
            raise PluginError(
                f"judge {self.origin.component!r} shows no features: no (B, D) input reaches a "
                "last linear layer",
                hint="take a classifier that ends in one",
            )
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
            raise PluginError(f"judge {self.origin.component!r} is no classifier")
        confidence, output = logits.float().softmax(1).max(1)  # (B,)
        classes = torch.full((logits.shape[1],), -1)
        classes[self._outputs] = torch.arange(len(self._outputs))
        return features.float().cpu(), classes[output.cpu()], confidence.cpu()


@final
class SceneJudge(_Judge):
    """A network whose loss compares its predictions with ground truth."""

    def __init__(self, guide: Guide, spec: JudgeSpec, device: torch.device) -> None:
        super().__init__(guide, device)
        self.spec = spec

    @torch.no_grad()
    def targets(self, scenes: Pictures) -> list[Target]:
        """Ground truth of each scene, as targets of the loss.

        Raises:
            UsageError: If the judge does not support it.
        """
        truths = scenes.truths[self.spec.truth]
        if self.spec.reciprocal:
            with np.errstate(divide="ignore"):  # infinite values are refused as a target
                truths = 1.0 / truths.astype(np.float32)
        return [self._model.target(decode_target(truth)) for truth in truths]

    @torch.inference_mode()
    def figures(self, pixels: NDArray[np.uint8], truth: Tensor) -> dict[str, Floats]:
        """The metrics of its loss.

        Args:
            pixels: (N, H, W, 3).
            truth: Target of each image's scene, (N, ...).

        Raises:
            UsageError: If the loss has no such metric.
        """
        parts = []
        for start in range(0, len(pixels), _BATCH):
            rows = slice(start, start + _BATCH)
            _, prediction = self._predict(pixels[rows])
            found = self.guide.loss.metrics(prediction, truth[rows].to(self._device))
            if missing := [name for name in self.spec.metrics if name not in found]:
                raise UsageError(
                    f"loss {self.guide.loss_name!r} of judge {self.spec.name!r} measures no "
                    f"{', '.join(missing)}",
                    hint=f"it measures {', '.join(found) or 'nothing'}",
                )
            parts.append([found[name].double().cpu() for name in self.spec.metrics])
        whole = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
        return dict(zip(self.spec.figures, whole, strict=True))

    @torch.inference_mode()
    def shown(self, pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        """Renderings, each (h, w, 3), of predictions for images (N, H, W, 3)."""
        images, prediction = self._predict(pixels)
        return list(to_uint8(self._model.render(prediction, images)))


@final
@attrs.frozen(eq=False)
class Judges:
    """All judges of an experiment.

    Attributes:
        of_classes: Class judge, whose features measure quality and diversity.
        of_scenes: Scene judges.
        targets: Targets of the images.
    """

    of_classes: ClassJudge
    of_scenes: tuple[SceneJudge, ...]
    targets: Targets
    _truths: tuple[Tensor, ...]  # (K, ...), for each scene judge

    @classmethod
    def load(cls, setup: Setup) -> Judges:
        """Load all judges.

        Raises:
            PpapError: As for `ppap_framework.guide`, or if a judge does not support its targets.
        """
        targets, scenes, device = setup.targets, setup.targets.scenes, setup.device
        of_scenes = tuple(
            SceneJudge(_load(spec.name, spec.guider, spec.loss), spec, device)
            for spec in setup.experiment.judges
        )
        truths = tuple(_truth(judge, scenes) for judge in of_scenes if scenes is not None)
        of_classes = ClassJudge(_load("judge", setup.experiment.judge), targets.names, device)
        return cls(of_classes, of_scenes, targets, truths)

    @property
    def origins(self) -> list[Origin]:
        """Origins of all judges."""
        return [self.of_classes.origin, *(judge.origin for judge in self.of_scenes)]

    @property
    def protocol(self) -> dict[str, Any]:
        """Required common settings of rows beside the class judge; empty without scenes."""
        if (scenes := self.targets.scenes) is None:
            return {}
        judges = [{**attrs.asdict(one.spec), "sha256": one.origin.sha256} for one in self.of_scenes]
        return {"scenes": {"sha256": scenes.scenes_sha256, "num": len(scenes)}, "judges": judges}

    def describe(self) -> list[dict[str, Any]]:
        """Scene judges, as JSON."""
        return [
            {
                "name": judge.spec.name,
                "loss": judge.guide.loss_name,
                "truth": judge.spec.truth,
                "reciprocal": judge.spec.reciprocal,
                **provenance(judge.origin),
            }
            for judge in self.of_scenes
        ]

    def look(self, pixels: NDArray[np.uint8]) -> Observations:
        """Observe images (N, H, W, 3) of the targets."""
        indices = torch.from_numpy(self.targets.indices(len(pixels)))
        classes = self.targets.classes(len(pixels))
        figures = self._figures(pixels, [truth[indices] for truth in self._truths])
        return Observations(*self.of_classes.look(pixels), classes, figures)

    def look_at(self, pictures: Pictures) -> Observations:
        """Observe pictures whose targets are their own content."""
        truths = [_truth(judge, pictures) for judge in self.of_scenes]
        figures = self._figures(pictures.images, truths)
        return Observations(*self.of_classes.look(pictures.images), pictures.labels, figures)

    def figures_of_scenes(self) -> dict[str, Floats]:
        """Figures, (S,), of the scenes themselves."""
        scenes = self.targets.scenes
        return {} if scenes is None else self._figures(scenes.images, self._truths)

    def lines(self, pixels: NDArray[np.uint8]) -> list[list[NDArray[np.uint8]]]:
        """Lines of pictures: images, and predictions of the scene judges."""
        return [list(pixels), *(judge.shown(pixels) for judge in self.of_scenes)]

    def scene_lines(self, number: int) -> list[list[NDArray[np.uint8]]]:
        """Lines of pictures: the first scenes and their ground truth; none without scenes."""
        if self.targets.scenes is None:
            return []
        scenes = self.targets.scenes.part(0, number)
        lines = [list(scenes.images)]
        for judge in self.of_scenes:
            targets = judge.targets(scenes)
            shown = [to_uint8(one.picture[None])[0] for one in targets if one.picture is not None]
            if len(shown) == len(targets):
                lines.append(shown)
        return lines

    def _figures(self, pixels: NDArray[np.uint8], truths: Sequence[Tensor]) -> dict[str, Floats]:
        figures: dict[str, Floats] = {}
        for judge, truth in zip(self.of_scenes, truths, strict=True):
            figures |= judge.figures(pixels, truth)
        return figures


def _truth(judge: SceneJudge, scenes: Pictures) -> Tensor:
    """Target values of S scenes, (S, ...)."""
    return torch.cat([target.value for target in judge.targets(scenes)])


def _load(name: str, source: str, loss: str | None = None) -> Guide:
    """The guide of a judge, "guider:checkpoint"."""
    guider, _, checkpoint = source.rpartition(":")
    request = GuideRequest(source=guider, checkpoint=checkpoint, loss=loss, name=name)
    return attrs.evolve(request, experts="none").load(aim=False)


@contextlib.contextmanager
def _last_linear_input(network: nn.Module) -> Iterator[list[Tensor]]:
    """Yields a list whose only item is the input of the last linear layer that ran."""
    inputs: list[Tensor] = []

    def keep(module: nn.Module, given: tuple[Any, ...]) -> None:
        inputs[:] = given[:1]

    with contextlib.ExitStack() as hooks:
        for module in network.modules():
            if isinstance(module, nn.Linear):
                hooks.enter_context(module.register_forward_pre_hook(keep))
        yield inputs
