"""A row of an experiment's table: what steers its images, and between what it chooses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import attrs
from attrs.validators import deep_iterable, in_, instance_of, min_len, optional

from ppap_plugin_bench import values

__all__ = ["Aim", "Candidate", "Row", "RowGuide"]

Aim = Literal["class", "scene"]
"""What a guide is aimed at: a class by its name, or a scene by its picture."""

_aim = optional(in_(("class", "scene")))


@attrs.frozen
class Candidate:
    """A scale and an interval between which a row chooses; "auto" is as its experts were
    calibrated. Where several guides steer, the scale is a factor of each one's own.
    """

    scale: float | Literal["auto"]
    interval: tuple[float, float]


@attrs.frozen(kw_only=True)
class RowGuide:
    """A guide that steers the images of a row.

    Attributes:
        guider: By its name.
        checkpoint: Of the guider.
        model: Of the guider, where it knows several.
        loss: That is descended, if not the guider's own.
        options: Of the guider.
        experts: That look at noisy images in its place: "none", or the name or path of a bundle.
        aim: At what; None for scenes where the experiment has some, and else for classes.
        scale: Relative to the other guides of the row.
    """

    guider: str = attrs.field(validator=values.text)
    checkpoint: str | None = attrs.field(default=None, validator=optional(values.text))
    model: str | None = attrs.field(default=None, validator=optional(values.text))
    loss: str | None = attrs.field(default=None, validator=optional(values.text))
    options: Mapping[str, Any] = attrs.field(factory=dict, validator=instance_of(dict))
    experts: str = attrs.field(default="none", validator=values.text)
    aim: Aim | None = attrs.field(default=None, validator=_aim)
    scale: float = attrs.field(default=1.0, converter=values.number)

    def __attrs_post_init__(self) -> None:
        if self.experts == "auto":
            raise ValueError('has experts "auto"; a table says which: name them, or "none"')


_OF_A_GUIDE = ("checkpoint", "model", "loss", "options", "experts", "aim")


@attrs.frozen(kw_only=True)
class Row:
    """A row of the table: unguided, guided, or pictures that are there already.

    Attributes:
        name: In files and on the command line.
        title: In the report; the name where it is empty.
        text: What a reader should know of it.
        guider: That steers; None for none. This and the next six are as for `RowGuide`.
        checkpoint: Of the guider.
        model: Likewise.
        loss: Likewise.
        options: Likewise.
        experts: Likewise.
        aim: Likewise.
        guides: Several that steer at once, instead of one.
        through: Where guides look.
        normalize: Whether their gradients are brought to unit size first.
        scales: Between which is chosen, together with `intervals`; "auto" is as the experts were
            calibrated.
        intervals: [lo, hi] as t / T.
        objective: Figures by which it chooses; none for those of the experiment.
        prompt: What the backend is told, "{a class}" standing for the class that an image is to
            show, "{class}" for its bare name; none for nothing.
        backend_options: Of the backend.
        training: Records that say how many seconds its experts took: the `transfer.json` of their
            training, and the `run.json` of the data they learned from.
        images: Labelled pictures to measure instead of drawn ones, as for the reference.
    """

    name: str = attrs.field(validator=values.hyphenated)
    title: str = attrs.field(default="", validator=values.text)
    text: str = attrs.field(default="", validator=values.text)
    guider: str | None = attrs.field(default=None, validator=optional(values.text))
    checkpoint: str | None = attrs.field(default=None, validator=optional(values.text))
    model: str | None = attrs.field(default=None, validator=optional(values.text))
    loss: str | None = attrs.field(default=None, validator=optional(values.text))
    options: Mapping[str, Any] = attrs.field(factory=dict, validator=instance_of(dict))
    experts: str = attrs.field(default="none", validator=values.text)
    aim: Aim | None = attrs.field(default=None, validator=_aim)
    guides: tuple[RowGuide, ...] = attrs.field(
        default=(), converter=tuple, validator=deep_iterable(instance_of(RowGuide))
    )
    through: Literal["noisy", "clean"] = attrs.field(
        default="noisy", validator=in_(("noisy", "clean"))
    )
    normalize: bool = attrs.field(default=False, validator=instance_of(bool))
    scales: tuple[float | Literal["auto"], ...] = attrs.field(default=(), converter=values.scales)
    intervals: tuple[tuple[float, float], ...] = attrs.field(
        default=((0.0, 1.0),), converter=values.intervals, validator=min_len(1)
    )
    objective: tuple[str, ...] = attrs.field(default=(), converter=values.text_or_texts)
    prompt: str | None = attrs.field(default=None, validator=optional(values.text))
    backend_options: Mapping[str, Any] = attrs.field(factory=dict, validator=instance_of(dict))
    training: tuple[str, ...] = attrs.field(default=(), converter=values.text_or_texts)
    images: str | None = attrs.field(default=None, validator=optional(values.text))

    def __attrs_post_init__(self) -> None:
        stated = {name: getattr(self, name) for name in _OF_A_GUIDE}
        if self.guider is None:
            stated["experts"] = self.experts != "none"
            of_all = {name: getattr(self, name) for name in ("normalize", "scales", "objective")}
            given = sorted(n for n, v in (stated | ({} if self.guides else of_all)).items() if v)
            if given:
                raise ValueError(f"has {', '.join(given)} and no guider")
        elif self.guides:
            raise ValueError("has a guider and guides; it is one or the other")
        if self.images is not None and (self.prompt is not None or self.backend_options):
            raise ValueError("has images, and tells the backend how to draw")
        if not self.steering:
            if self.training:
                raise ValueError("has a training and no guider")
            return
        if self.images is not None:
            raise ValueError("has a guider and images; it is one or the other")
        if not self.scales:
            raise ValueError("has a guider and no scales to choose from")
        counts = Counter(self.names)
        if repeated := sorted(name for name, count in counts.items() if count > 1):
            raise ValueError(f"is steered by {', '.join(repeated)} more than once")
        manned = [guide.experts != "none" for guide in self.steering]
        if any(manned) and self.through == "clean":
            raise ValueError(
                "has experts, and looks through clean, where they have nothing to read"
            )
        if "auto" in self.scales and not all(manned):
            raise ValueError('has the scale "auto", and no experts that were calibrated')

    @property
    def steering(self) -> tuple[RowGuide, ...]:
        """The guides, however they were given."""
        if self.guider is None:
            return self.guides
        return (
            RowGuide(guider=self.guider, **{name: getattr(self, name) for name in _OF_A_GUIDE}),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Of the guides, in messages and files."""
        if self.guider is not None:
            return (self.name,)
        return tuple(f"{self.name}-{guide.guider.rpartition(':')[2]}" for guide in self.guides)

    @property
    def label(self) -> str:
        """The title, or the name."""
        return self.title or self.name

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Every scale with every interval."""
        if not self.steering:
            return ()
        return tuple(Candidate(scale, pair) for pair in self.intervals for scale in self.scales)

    @property
    def chooses(self) -> bool:
        """Whether it has anything to choose from: a calibrated scale was settled elsewhere."""
        return bool(self.candidates) and (self.scales != ("auto",) or len(self.intervals) > 1)
