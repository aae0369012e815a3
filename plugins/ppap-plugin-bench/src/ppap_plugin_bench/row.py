"""A row of an experiment's table: its guides, and the scales and intervals to choose from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import attrs
from attrs.validators import deep_iterable, in_, instance_of, min_len

from ppap_framework.run import GuideRequest
from ppap_plugin_bench import values

TargetKind: TypeAlias = Literal["class", "scene"]
"""Kind of target: the class of each image by name, or its scene by picture."""


def row_guide(
    *,
    guider: str,
    checkpoint: str | None = None,
    model: str | None = None,
    loss: str | None = None,
    options: Mapping[str, Any] | None = None,
    experts: str = "none",
    aim: TargetKind | None = None,
    scale: float = 1.0,
) -> GuideRequest:
    """A guide of a row; its `target` is the kind of target until images are planned.

    Args:
        guider: Name of the guider.
        checkpoint: As for `ppap_framework.guide`, like `model`, `loss` and `options`.
        experts: Name or path of a bundle, or "none".
        aim: Kind of target; None for scenes if the experiment has them, else classes.
        scale: Factor of the row's scale.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If `aim` is unknown, the scale is not finite, or `experts` is "auto".
    """
    words = {"guider": guider, "checkpoint": checkpoint, "model": model, "loss": loss}
    for name, value in (words | {"experts": experts or ""}).items():
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{name!r} must be a string, not {value!r}")
    if not isinstance(options, dict | None):
        raise TypeError(f"'options' must be a table, not {options!r}")
    if aim not in (None, "class", "scene"):
        raise ValueError(f"'aim' must be class or scene, not {aim!r}")
    if experts == "auto":
        raise ValueError('has experts "auto"; name them, or write "none": a table says which')
    return GuideRequest(
        source=guider,
        target=aim,
        scale=values.number(scale),
        loss=loss,
        model=model,
        checkpoint=checkpoint,
        options=options or {},
        experts=experts,
    )


@attrs.frozen
class Candidate:
    """A guidance scale and interval that a row can choose.

    Attributes:
        scale: Factor of each guide's own scale; "auto" for the calibrated scales of the experts.
        interval: (lo, hi) as t / T.
    """

    scale: float | Literal["auto"]
    interval: tuple[float, float]


@attrs.frozen(kw_only=True, eq=False)
class Row:
    """A row of the table: unguided, guided, or existing pictures. Rows are hashed by identity.

    Attributes:
        name: Name in files and on the command line.
        title: Title in the report; the name if empty.
        text: A sentence for the reader of the report.
        guides: Guides to combine, see `row_guide`; none for an unguided row.
        through: Input of the guides, the "noisy" or the "clean" image.
        normalize: Whether each guide's gradient is scaled to a root mean square of 1.
        scales: Scales to choose from; "auto" means the calibrated scales of the experts.
        intervals: Pairs [lo, hi] as t / T to choose from; every scale is tried with each.
        objective: Figures by which the row chooses; by default those of the experiment.
        prompt: Prompt template, see `Targets.prompts`; None for an unconditional model.
        backend_options: Options of the backend.
        training: Records of how long its experts trained: `transfer.json` of the training and
            `run.json` of its data.
        images: Labelled pictures to measure instead of drawn images, as for the reference.
    """

    name: str = attrs.field(validator=values.name)
    title: str = attrs.field(default="", validator=values.text)
    text: str = attrs.field(default="", validator=values.text)
    guides: tuple[GuideRequest, ...] = attrs.field(
        default=(), converter=tuple, validator=deep_iterable(instance_of(GuideRequest))
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
    prompt: str | None = attrs.field(default=None, validator=values.maybe_text)
    backend_options: Mapping[str, Any] = attrs.field(factory=dict, validator=instance_of(dict))
    training: tuple[str, ...] = attrs.field(default=(), converter=values.text_or_texts)
    images: str | None = attrs.field(default=None, validator=values.maybe_text)

    def __attrs_post_init__(self) -> None:
        if self.images is not None and (self.prompt is not None or self.backend_options):
            raise ValueError("has images, and tells the backend how to draw")
        if not self.guides:
            useless = ("normalize", "objective", "scales", "training")
            if given := [name for name in useless if getattr(self, name)]:
                raise ValueError(f"has {', '.join(given)} and no guider")
            return
        if self.images is not None:
            raise ValueError("has a guider and images; it is one or the other")
        if not self.scales:
            raise ValueError("has a guider and no scales to choose from")
        counts = Counter(self.guide_names)
        if repeated := sorted(name for name, count in counts.items() if count > 1):
            raise ValueError(f"is steered by {', '.join(repeated)} more than once")
        with_experts = [guide.experts != "none" for guide in self.guides]
        if any(with_experts) and self.through == "clean":
            raise ValueError("has experts, and looks through clean, where there is no noise")
        if "auto" in self.scales and not all(with_experts):
            raise ValueError('has the scale "auto", and no experts that were calibrated')

    @property
    def guide_names(self) -> tuple[str, ...]:
        """Names of the guides in messages and files."""
        if len(self.guides) == 1:
            return (self.name,)
        return tuple(f"{self.name}-{guide.label}" for guide in self.guides)

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """All combinations of scale and interval; none for an unguided row."""
        return tuple(Candidate(scale, pair) for pair in self.intervals for scale in self.scales)

    @property
    def chooses(self) -> bool:
        """Whether there is a choice; a single calibrated scale is none."""
        return bool(self.scales) and (self.scales != ("auto",) or len(self.intervals) > 1)
