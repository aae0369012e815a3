"""What images aim at: classes, or scenes of which picture, class and truth are known."""

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
from ppap_plugin_bench.pictures import Scenes, read_scenes
from ppap_plugin_bench.row import Aim

__all__ = ["Aims", "balanced"]


def balanced(images: int, targets: int, what: str = "classes") -> NDArray[np.int64]:
    """The target that each image aims at: image i at target i mod K.

    Raises:
        UsageError: Where targets would not be aimed at equally often.
    """
    if images % targets:
        raise UsageError(
            f"{images} images do not aim equally often at {targets} {what}",
            hint=f"take {-(-images // targets) * targets}",
        )
    return np.arange(images) % targets


def _article(name: str) -> str:
    return "an" if name[:1].lower() in set("aeiou") else "a"


@final
@attrs.frozen(eq=False)
class Aims:
    """K targets: the classes, or the scenes that are reported and those after them, which tune.

    Attributes:
        names: Of the classes.
        scenes: None for classes.
        reported: How many of the scenes are reported.
        in_turn: Whether classes are aimed at in turn, whatever the scenes show.
    """

    names: tuple[str, ...]
    scenes: Scenes | None = None
    reported: int = 0
    in_turn: bool = False

    @classmethod
    def of(cls, experiment: Experiment, names: tuple[str, ...]) -> Aims:
        """Those of an experiment.

        Raises:
            AssetError: Where scenes cannot be read.
            UsageError: Where there are too few of them, or they are of other classes.
        """
        if experiment.scenes is None:
            return cls(names)
        path, reported = Path(experiment.scenes.pictures), experiment.scenes.num
        scenes = read_scenes(path, {judge.truth for judge in experiment.judges})
        if scenes.pictures.names != names:
            raise UsageError(
                f"the scenes in {str(path)!r} are of {len(scenes.pictures.names)} classes, which "
                "are not those of the reference",
                hint="render both in the same way",
            )
        needed = reported + experiment.tuning.num
        if len(scenes) < needed:
            raise UsageError(
                f"{str(path)!r} holds {len(scenes)} scenes, of which {reported} are reported and "
                f"{experiment.tuning.num} tune",
                hint=f"render {needed} at least",
            )
        in_turn = experiment.scenes.classes == "turn"
        return cls(names, scenes.part(0, needed), reported, in_turn)

    def check(self, experiment: Experiment) -> None:
        """Accept numbers of images with which targets are aimed at equally often.

        Raises:
            UsageError: Where they are not.
        """
        if self.scenes is not None:
            balanced(experiment.num, self.reported, "scenes")
            if self.in_turn:
                balanced(experiment.num, len(self.names))
            return
        for num in (experiment.num, experiment.tuning.num):
            balanced(num, len(self.names))

    def indices(self, num: int, *, tuning: bool = False) -> NDArray[np.int64]:
        """The target that each of N images aims at, (N,)."""
        if self.scenes is None:
            return np.arange(num) % len(self.names)
        if tuning:
            return self.reported + np.arange(num)
        return np.arange(num) % self.reported

    def classes(self, num: int, *, tuning: bool = False) -> NDArray[np.int64]:
        """The class that each of N images is to show, (N,)."""
        indices = self.indices(num, tuning=tuning)
        return indices if self.scenes is None else self._labels[indices]

    def texts(self, template: str, num: int, *, tuning: bool = False) -> list[str]:
        """What the backend is told for each of N images: the template with the name of its class
        for "{class}", or behind its article for "{a class}".
        """
        return [
            template.replace("{class}", name).replace("{a class}", f"{_article(name)} {name}")
            for name in (self.names[label] for label in self.classes(num, tuning=tuning))
        ]

    @property
    def _labels(self) -> NDArray[np.int64]:
        """The class that goes with each scene."""
        assert self.scenes is not None
        if not self.in_turn:
            return self.scenes.pictures.labels
        return np.arange(len(self.scenes)) % len(self.names)

    def examples(self, number: int) -> list[int]:
        """Images that show different targets: `number` of them, or fewer."""
        if self.scenes is not None:
            return list(range(min(number, self.reported)))
        total = len(self.names)
        step = total // number + 1  # neighbouring classes are alike where names have parts
        if math.gcd(step, total) > 1:
            step = 1
        return [k * step % total for k in range(min(number, total))]

    def first(self, aim: Aim) -> TargetInput:
        """The first of the K targets, as a guide wants it."""
        return self._given(aim, 0)

    @torch.no_grad()
    def target(self, model: GuidanceModel, aim: Aim) -> Target:
        """All K of them, in the form that a guide's loss compares with.

        Raises:
            UsageError: Where the guide cannot be aimed so.
        """
        if aim == "class":
            of_class = [model.target(self._named(name)).value for name in self.names]
            if self.scenes is None:
                values = of_class
            else:
                values = [of_class[label] for label in self._labels]
        else:
            assert self.scenes is not None
            values = [model.target(self._given(aim, k)).value for k in range(len(self.scenes))]
        label = f"{len(self.names)} classes" if aim == "class" else f"{len(values)} scenes"
        return Target(value=torch.cat(values), label=label)

    def words(self, aim: Aim, *, tuning: bool = False) -> str:
        """Which image aims at which target: everything that determines it."""
        if self.scenes is None:
            return f"image i at class i mod {len(self.names)} of {', '.join(self.names)}"
        names = ", ".join(self.names)
        if aim == "class" and self.in_turn:
            return f"image i at class i mod {len(self.names)} of {names}"
        what = f"the class, of {names}, of scene" if aim == "class" else "scene"
        which = "i" if tuning else f"i mod {self.reported}"
        part = (self.reported, len(self.scenes)) if tuning else (0, self.reported)
        return f"image i at {what} {which} of {self.scenes.part(*part).pictures.sha256}"

    def _given(self, aim: Aim, index: int) -> TargetInput:
        if aim == "class":
            label = index if self.scenes is None else self._labels[index]
            return self._named(self.names[label])
        assert self.scenes is not None
        given = decode_target(Image.fromarray(self.scenes.pictures.images[index]))
        return attrs.evolve(given, source=f"scene {index}")

    @staticmethod
    def _named(name: str) -> TargetInput:
        return TargetInput(text=name, source=name)
