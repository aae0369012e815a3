"""Targets of images: classes, or scenes with known picture, class and ground truth."""

from __future__ import annotations

import math
from pathlib import Path
from typing import final

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ppap_framework.components import GuidanceModel, Target, TargetInput
from ppap_framework.errors import UsageError
from ppap_framework.targets import decode_target
from ppap_plugin_bench.experiment import Experiment
from ppap_plugin_bench.pictures import Pictures, read_pictures
from ppap_plugin_bench.row import TargetKind


@final
@attrs.frozen(eq=False)
class Targets:
    """K targets: the classes, or the scenes.

    Attributes:
        names: Names of the classes.
        scenes: The scenes; None for classes.
        in_turn: Whether images aim at all classes in turn, independent of their scenes.
    """

    names: tuple[str, ...]
    scenes: Pictures | None = None
    in_turn: bool = False

    @classmethod
    def of(cls, experiment: Experiment, names: tuple[str, ...]) -> Targets:
        """Targets of an experiment; `names` are the classes of the reference.

        Raises:
            AssetError: If scenes cannot be read.
            UsageError: If there are too few scenes, they have other classes, or targets would have
                different numbers of images.
        """
        num = experiment.num
        if experiment.scenes is None:
            _check_balanced(num, len(names), "classes")
            return cls(names)
        path, needed = Path(experiment.scenes.pictures), experiment.scenes.num
        scenes = read_pictures(path, {judge.truth for judge in experiment.judges})
        if scenes.names != names:
            raise UsageError(
                f"the scenes in {str(path)!r} are of {len(scenes.names)} classes, which "
                "are not those of the reference",
                hint="render both in the same way",
            )
        if len(scenes) < needed:
            reason = f"{str(path)!r} holds {len(scenes)} scenes, of {needed} that are targets"
            raise UsageError(reason, hint=f"render {needed} at least")
        in_turn = experiment.scenes.classes == "turn"
        _check_balanced(num, needed, "scenes")
        if in_turn:
            _check_balanced(num, len(names), "classes")
        return cls(names, scenes.part(0, needed), in_turn)

    def indices(self, num: int) -> NDArray[np.int64]:
        """Index of the target of each image, (num,)."""
        return np.arange(num) % len(self.names if self.scenes is None else self.scenes)

    def classes(self, num: int) -> NDArray[np.int64]:
        """Class of each image, (num,)."""
        indices = self.indices(num)
        return indices if self.scenes is None else self._labels[indices]

    def prompts(self, template: str, num: int) -> list[str]:
        """Prompts of the images: "{class}" becomes the class name, "{a class}" has an article."""
        names = [self.names[label] for label in self.classes(num)]
        told = [f"{'an' if name[:1].lower() in set('aeiou') else 'a'} {name}" for name in names]
        pairs = zip(names, told, strict=True)
        return [template.replace("{class}", n).replace("{a class}", a) for n, a in pairs]

    def examples(self, number: int) -> list[int]:
        """At most `number` images with different targets."""
        if self.scenes is not None:
            return list(range(min(number, len(self.scenes))))
        total = len(self.names)
        step = total // number + 1  # neighboring classes share parts of their names
        if math.gcd(step, total) > 1:
            step = 1
        return [k * step % total for k in range(min(number, total))]

    @torch.no_grad()
    def target(self, model: GuidanceModel, kind: TargetKind) -> Target:
        """All K targets of a kind, as tensors for the guide's loss.

        Raises:
            UsageError: If the guide does not support them.
        """
        if kind == "class":
            label = f"{len(self.names)} classes"
            values = [model.target(TargetInput(text=n, source=n)).value for n in self.names]
            if self.scenes is not None:
                values = [values[k] for k in self._labels]
        else:
            assert self.scenes is not None
            label = f"{len(self.scenes)} scenes"
            values = []
            for k, image in enumerate(self.scenes.images):
                given = decode_target(Image.fromarray(image))
                values.append(model.target(attrs.evolve(given, source=f"scene {k}")).value)
        return Target(value=torch.cat(values), label=label)

    def source(self, kind: TargetKind) -> str:
        """Unique description of the assignment of targets to images."""
        names = ", ".join(self.names)
        if self.scenes is None or (kind == "class" and self.in_turn):
            return f"image i at class i mod {len(self.names)} of {names}"
        what = f"the class, of {names}, of scene" if kind == "class" else "scene"
        return f"image i at {what} i mod {len(self.scenes)} of {self.scenes.sha256}"

    @property
    def _labels(self) -> NDArray[np.int64]:
        """Class of each scene."""
        assert self.scenes is not None
        return np.arange(len(self.scenes)) % len(self.names) if self.in_turn else self.scenes.labels


def _check_balanced(images: int, targets: int, what: str) -> None:
    if images % targets:
        raise UsageError(
            f"{images} images do not aim equally often at {targets} {what}",
            hint=f"take {-(-images // targets) * targets}",
        )
