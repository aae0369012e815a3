"""What a run gives."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppap_framework.guidance import GuidanceStatistics
from ppap_framework.run.plan import Plan

__all__ = ["Drawn", "Result", "Seen", "Stats"]


@final
@attrs.frozen(kw_only=True, eq=False)
class Seen:
    """What one guide sees in finished images.

    Attributes:
        pictures: (B, h, w, 3), uint8, drawn by the guide for people.
        words: B descriptions; empty where there is nothing short to say.
        figures: Numbers by name, each (B,): "energy", the distance from the target, and the loss's
            own metrics.
    """

    pictures: NDArray[np.uint8]
    words: tuple[str, ...]
    figures: Mapping[str, Tensor]


@final
@attrs.frozen(kw_only=True, eq=False)
class Drawn:
    """Images, and what each guide sees in them.

    Attributes:
        images: (B, 3, H, W), float32 in [-1, 1], on the CPU: of the last stage.
        seen: What each guide sees in them, by its name.
        earlier: What the stages before the last drew, by their names: (B, 3, H, W) of other sizes.
    """

    images: Tensor
    seen: Mapping[str, Seen]
    earlier: Mapping[str, Tensor] = attrs.field(factory=dict)

    @classmethod
    def joined(cls, parts: Sequence[Drawn]) -> Drawn:
        """Batches, one behind the other; at least one."""
        first = parts[0]
        return cls(
            images=torch.cat([part.images for part in parts]),
            seen={
                name: Seen(
                    pictures=np.concatenate([part.seen[name].pictures for part in parts]),
                    words=tuple(word for part in parts for word in part.seen[name].words),
                    figures={
                        figure: torch.cat([part.seen[name].figures[figure] for part in parts])
                        for figure in first.seen[name].figures
                    },
                )
                for name in first.seen
            },
            earlier={
                name: torch.cat([part.earlier[name] for part in parts]) for name in first.earlier
            },
        )


def _shape(drawn: Drawn) -> str:
    """Of the images: the numbers themselves would fill the screen of whoever looks at a result."""
    return f"<images {tuple(drawn.images.shape)}>"


def _names(compared: Mapping[str, Drawn]) -> str:
    return ", ".join(compared) or "nothing"


@final
@attrs.frozen(kw_only=True)
class Stats:
    """What a run took.

    Attributes:
        guidance: What guidance did: gradient norms, skipped gradients, counts.
        seconds: From the first noise to the last look, of the finished images.
        own_seconds: Likewise without what these were compared with.
        peak_memory: In bytes, of the process, or on its device where that is a GPU; None where the
            system does not say.
        most_at_once: Images in the largest batch.
    """

    guidance: GuidanceStatistics = attrs.field(repr=False)
    seconds: float
    own_seconds: float
    peak_memory: int | None
    most_at_once: int


@final
@attrs.frozen(kw_only=True, eq=False)
class Result:
    """Finished images, and how they came about.

    Attributes:
        plan: What was to be done.
        guided: The images; of an interrupted run those of the batches that were finished.
        compared: Those of the same noise drawn otherwise, by the names in `Plan.compared`.
        stats: What it took.
        interrupted: Whether Ctrl-C ended the run early.
    """

    plan: Plan = attrs.field(repr=False)
    guided: Drawn = attrs.field(repr=_shape)
    compared: Mapping[str, Drawn] = attrs.field(repr=_names)
    stats: Stats
    interrupted: bool

    @property
    def images(self) -> Tensor:
        """(B, 3, H, W), float32 in [-1, 1], on the CPU."""
        return self.guided.images

    @property
    def unguided(self) -> Drawn | None:
        """The images of the same noise without guides, where they were asked for."""
        return self.compared.get("unguided")

    @property
    def naive(self) -> Drawn | None:
        """Likewise those that the guides steered without their experts."""
        return self.compared.get("naive")

    @property
    def seen(self) -> Mapping[str, Seen]:
        """What each guide sees in the images, by the guide's name."""
        return self.guided.seen

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path | None:
        """Write 000.png ..., what the guides see, grid.png and run.json.

        Args:
            folder: Made where it is not there.
            overwrite: Whether to replace an earlier run that is in it.

        Returns:
            The path of the grid; None where no image was finished.

        Raises:
            UsageError: Where the folder holds anything else, or cannot be written.
        """
        from ppap_framework.run.folder import RunFolder  # it writes results, so it imports them

        return RunFolder.create(self.plan, Path(folder), overwrite=overwrite).finish(self)
