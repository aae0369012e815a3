"""A row of an experiment's table: its guides, and the scales at which it is drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import attrs
from attrs.converters import optional
from attrs.validators import deep_iterable, in_, instance_of

from ppap_framework.guidance import Through, raw_scale
from ppap_framework.run import GuideRequest
from ppap_framework.run.settings import SamplerName
from ppap_plugin_bench import values

TargetKind: TypeAlias = Literal["class", "scene"]
"""Kind of target: the class of each image by name, or its scene by picture."""

RowScale: TypeAlias = "float | str"
"""A multiplier of the row's curve, or "raw:NUMBER" for the same scale at every noise level."""


def row_guide(
    *,
    guider: str,
    checkpoint: str | None = None,
    model: str | None = None,
    loss: str | None = None,
    options: Mapping[str, Any] | None = None,
    loss_options: Mapping[str, Any] | None = None,
    experts: str = "none",
    aim: TargetKind | None = None,
    scale: float = 1.0,
) -> GuideRequest:
    """A guide of a row; its `target` is the kind of target until images are planned.

    Args:
        guider: Name of the guider.
        checkpoint: As for `ppap_framework.guide`, like `model`, `loss` and the options.
        experts: Name or path of a bundle, or "none".
        aim: Kind of target; None for scenes if the experiment has them, else classes.
        scale: Factor of the row's scales.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If `aim` is unknown, the scale is not finite, or `experts` is "auto".
    """
    words = {"guider": guider, "checkpoint": checkpoint, "model": model, "loss": loss}
    for name, value in (words | {"experts": experts or ""}).items():
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{name!r} must be a string, not {value!r}")
    for name, table in (("options", options), ("loss_options", loss_options)):
        if not isinstance(table, dict | None):
            raise TypeError(f"{name!r} must be a table, not {table!r}")
    if aim not in (None, "class", "scene"):
        raise ValueError(f"'aim' must be class or scene, not {aim!r}")
    if experts == "auto":
        raise ValueError('has experts "auto"; name them, or write "none": a table says which')
    return GuideRequest(
        source=guider,
        target=aim,
        scale=values.number(scale),
        loss=loss,
        loss_options=loss_options,
        model=model,
        checkpoint=checkpoint,
        options=options or {},
        experts=experts,
    )


@attrs.frozen(kw_only=True, eq=False)
class Row:
    """A row of the table: unguided, guided, or existing pictures. Rows are hashed by identity.

    Attributes:
        name: Name in files and on the command line.
        title: Title in the report; the name if empty.
        text: A sentence for the reader of the report.
        guides: Guides to combine, see `row_guide`; none for an unguided row.
        through: The image that guides look at; see `ppap_framework.Sampling`.
        normalize: Whether each guide's gradient is scaled to a root mean square of 1.
        moments, guide_every: See `ppap_framework.Sampling`.
        interval: Pair [lo, hi] of t / T in which the guides act.
        scales: Scales at which it is drawn, in the order of its line: multipliers of the curve, or
            "raw:NUMBER"; None for those of the experiment.
        default: Scale that tables show; None for that of the experiment.
        schedule: Curve that scales multiply: the "calibrated" one of each guide, or "elucd".
        steps: Steps from noise to image; None for those of the experiment, as `sampler` and `eta`.
        prompt: Prompt template, see `Targets.prompts`; None for an unconditional model.
        backend_options: Options of the backend.
        training: Records of how long its experts trained: `transfer.json` of the training and
            `run.json` of its data.
        images: Labelled pictures to measure instead of drawn images, as for the reference.
        baselines: Rows to compare it with; None for those of the experiment.
    """

    name: str = attrs.field(validator=values.name)
    title: str = attrs.field(default="", validator=values.text)
    text: str = attrs.field(default="", validator=values.text)
    guides: tuple[GuideRequest, ...] = attrs.field(
        default=(), converter=tuple, validator=deep_iterable(instance_of(GuideRequest))
    )
    through: Through | None = None
    normalize: bool = attrs.field(default=False, validator=instance_of(bool))
    moments: tuple[float, float] | None = None
    guide_every: int = 1
    interval: tuple[float, float] = attrs.field(default=(0.0, 1.0), converter=values.interval)
    scales: tuple[RowScale, ...] | None = attrs.field(
        default=None, converter=optional(values.scales)
    )
    default: RowScale | None = attrs.field(default=None, converter=optional(values.scale))
    schedule: Literal["calibrated", "elucd"] = attrs.field(
        default="calibrated", validator=in_(("calibrated", "elucd"))
    )
    steps: int | None = None
    sampler: SamplerName | None = None
    eta: float | None = None
    prompt: str | None = attrs.field(default=None, validator=values.maybe_text)
    backend_options: Mapping[str, Any] = attrs.field(factory=dict, validator=instance_of(dict))
    training: tuple[str, ...] = attrs.field(default=(), converter=values.text_or_texts)
    images: str | None = attrs.field(default=None, validator=values.maybe_text)
    baselines: tuple[str, ...] | None = attrs.field(default=None, converter=optional(values.texts))

    def __attrs_post_init__(self) -> None:
        told = ("prompt", "backend_options", "steps", "sampler", "eta")
        if self.images is not None and any(getattr(self, name) for name in told):
            raise ValueError("has images, and tells the backend how to draw")
        if not self.guides:
            useless = ("normalize", "moments", "scales", "default", "training")
            if given := [name for name in useless if getattr(self, name)]:
                raise ValueError(f"has {', '.join(given)} and no guider")
            return
        if self.images is not None:
            raise ValueError("has a guider and images; it is one or the other")
        counts = Counter(self.guide_names)
        if repeated := sorted(name for name, count in counts.items() if count > 1):
            raise ValueError(f"is steered by {', '.join(repeated)} more than once")
        if self.through == "clean" and any(guide.experts != "none" for guide in self.guides):
            raise ValueError("has experts, and looks through clean, which none learns to read")

    @property
    def guide_names(self) -> tuple[str, ...]:
        """Names of the guides in messages and files."""
        if len(self.guides) == 1:
            return (self.name,)
        return tuple(f"{self.name}-{guide.label}" for guide in self.guides)


def times(factor: float, scale: RowScale) -> RowScale:
    """A scale times a factor."""
    raw = raw_scale(scale) if isinstance(scale, str) else None
    return factor * float(scale) if raw is None else f"raw:{factor * raw!r}"
