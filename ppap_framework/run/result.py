"""The result of a run: images, what guides see in them, and what they cost."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ppap_framework.guidance import GuidanceStatistics
from ppap_framework.pixels import to_pil, to_uint8
from ppap_framework.predictions import joined
from ppap_framework.run.plan import Kind, Plan


@final
@attrs.frozen(eq=False)
class Seen:
    """What one guide sees in finished images.

    Attributes:
        pictures: (B, h, w, 3), uint8, drawn by the guide for people.
        words: B descriptions, each possibly empty.
        figures: Metrics by name, each (B,): "energy" (distance from the target) and the loss's own.
    """

    pictures: NDArray[np.uint8]
    words: tuple[str, ...]
    figures: Mapping[str, Tensor]

    @classmethod
    def joined(cls, parts: Sequence[Seen]) -> Seen:
        """The batches, at least one, joined in order."""
        pictures = np.concatenate([part.pictures for part in parts])
        words = tuple(word for part in parts for word in part.words)
        return cls(pictures, words, joined([part.figures for part in parts]))


@final
@attrs.frozen(eq=False)
class Pictures:
    """Images, and what each guide sees in them.

    Attributes:
        images: (B, 3, H, W), float32 in [-1, 1], on the CPU, from the last stage.
        seen: What each guide sees in them, by its name.
        earlier: Images of earlier stages, by name: (B, 3, H, W) of other sizes.
    """

    images: Tensor
    seen: Mapping[str, Seen]
    earlier: Mapping[str, Tensor] = attrs.field(factory=dict)

    @classmethod
    def joined(cls, parts: Sequence[Pictures]) -> Pictures:
        """The batches, at least one, joined in order."""
        seen = {name: Seen.joined([part.seen[name] for part in parts]) for name in parts[0].seen}
        earlier = joined([part.earlier for part in parts])
        return cls(torch.cat([part.images for part in parts]), seen, earlier)


@final
@attrs.frozen
class Stats:
    """The cost of a run.

    Attributes:
        count: Number of finished images.
        seconds: From the first noise to the last look, of the finished images.
        own_seconds: The same without the compared images.
        peak_memory: Bytes, of the process or of its GPU; None if the system does not report it.
    """

    guidance: GuidanceStatistics = attrs.field(repr=False)
    count: int
    seconds: float
    own_seconds: float
    peak_memory: int | None
    largest_batch: int


@final
@attrs.frozen(eq=False)
class Result:
    """Finished images and how they were made.

    Attributes:
        pictures: Finished images by kind: "guided", and those of `Plan.compared`. A command
            that writes many keeps the first ones only; `stats.count` is the number of all.
        stats: The cost of the run.
        interrupted: Whether Ctrl-C ended it early.
    """

    plan: Plan = attrs.field(repr=False)
    pictures: Mapping[Kind, Pictures] = attrs.field(
        repr=lambda every: ", ".join(f"{k} {tuple(p.images.shape)}" for k, p in every.items())
    )
    stats: Stats
    interrupted: bool

    @property
    def guided(self) -> Pictures:
        """The images of the run, unguided if it has no guides."""
        return self.pictures["guided"]

    @property
    def unguided(self) -> Pictures | None:
        """Images of the same noise without guides, if asked for."""
        return self.pictures.get("unguided")

    @property
    def naive(self) -> Pictures | None:
        """Images of the same noise guided without experts, if asked for."""
        return self.pictures.get("naive")

    @property
    def seen(self) -> Mapping[str, Seen]:
        """What each guide sees in the images, by the guide's name."""
        return self.guided.seen

    @property
    def images(self) -> Tensor:
        """(B, 3, H, W), float32 in [-1, 1], on the CPU; as `images_11`."""
        return self.guided.images

    images_11 = images

    @property
    def images_01(self) -> Tensor:
        """(B, 3, H, W), float32 in [0, 1], on the CPU."""
        return (self.images + 1.0) / 2.0

    def to_uint8(self) -> NDArray[np.uint8]:
        """(B, H, W, 3), 0 to 255."""
        return to_uint8(self.images)

    def to_pil(self) -> list[Image.Image]:
        """B RGB pictures."""
        return to_pil(self.images)

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path | None:
        """Write a `RunFolder`, made if missing; the grid's path, or None without images.

        `overwrite` replaces an earlier run. UsageError if the folder holds more, or is read-only.
        """
        from ppap_framework.run.folder import RunFolder  # it writes results, so it imports them

        return RunFolder(self.plan, Path(folder), overwrite=overwrite).finish(self)
