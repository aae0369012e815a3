"""The records in the file of an experiment; the README of ppap-plugin-bench explains them.

    backend = "adm"
    judge = "classifier:shapes-judge"       # guider:checkpoint; a judge never guides
    reference = "renders.npz"

    [[rows]]
    name = "naive"
    guider = "classifier"
    scales = [2, 4, 8, 16, 32]              # multipliers of its calibrated curve

Image i aims at class i mod K or, with [scenes], at scene i mod S.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import attrs
from attrs import converters
from attrs.validators import deep_iterable, in_, instance_of, min_len, optional

from ppap_framework.errors import UsageError, did_you_mean
from ppap_framework.run import GuideRequest, Sampling
from ppap_framework.run.plan import DEFAULT_MULTIPLIER
from ppap_framework.run.settings import SamplerName
from ppap_framework.runtime import Precision
from ppap_plugin_bench import values
from ppap_plugin_bench.row import Row, RowScale, TargetKind

Better: TypeAlias = Literal["lower", "higher"]
"""Which of two values of a figure is the better one."""

_SCALES = (2.0, 4.0, 8.0, 16.0, 32.0)


@attrs.frozen(kw_only=True)
class Timing:
    """Batch size and number of rounds for measuring time and memory."""

    num: int = attrs.field(default=16, validator=values.positive)
    rounds: int = attrs.field(default=5, validator=values.positive)


@attrs.frozen(kw_only=True)
class SceneFile:
    """Target scenes.

    Attributes:
        pictures: Labelled pictures with ground truth; see `pictures.read_pictures`.
        num: Number of scenes; image i aims at scene i mod num.
        classes: Class of image i: that of its "scene", or those of the reference in "turn",
            independent of the scene.
    """

    pictures: str = attrs.field(validator=values.text)
    num: int = attrs.field(default=256, validator=values.positive)
    classes: Literal["scene", "turn"] = attrs.field(
        default="scene", validator=in_(("scene", "turn"))
    )


@attrs.frozen(kw_only=True)
class JudgeSpec:
    """A network that never guides; its loss's metrics compare predictions with ground truth.

    Attributes:
        name: Prefix of its figures.
        guider: "guider:checkpoint".
        loss: Loss with the metrics; None for the guider's own.
        truth: Name of the ground-truth array in the file of scenes.
        reciprocal: Whether the judge predicts 1 / truth, such as disparity for a distance.
        lower: Metrics that are better if they are lower.
        higher: Metrics that are better if they are higher.
    """

    name: str = attrs.field(validator=values.name)
    guider: str = attrs.field(validator=values.text)
    loss: str | None = attrs.field(default=None, validator=values.maybe_text)
    truth: str = attrs.field(validator=values.text)
    reciprocal: bool = attrs.field(default=False, validator=instance_of(bool))
    lower: tuple[str, ...] = attrs.field(default=(), converter=values.texts)
    higher: tuple[str, ...] = attrs.field(default=(), converter=values.texts)

    def __attrs_post_init__(self) -> None:
        if ":" not in self.guider:
            raise ValueError(f'names the guider {self.guider!r}; write "guider:checkpoint"')
        if not self.metrics:
            raise ValueError("has no figures that are better `lower` or `higher`")
        if len(set(self.metrics)) < len(self.metrics):
            raise ValueError("names a figure twice in `lower` and `higher`")

    @property
    def metrics(self) -> tuple[str, ...]:
        """All metrics of the judge."""
        return *self.lower, *self.higher

    @property
    def figures(self) -> dict[str, Better]:
        """Figures of the judge, and which value is better."""
        better: dict[str, Better] = dict.fromkeys(self.lower, "lower")
        better |= dict.fromkeys(self.higher, "higher")
        return {f"{self.name}.{metric}": which for metric, which in better.items()}


@attrs.frozen(kw_only=True)
class Experiment:
    """An experiment.

    Attributes:
        name: Name in files.
        title: Title of the report's section.
        text: Text below the title.
        backend: Name of the backend.
        checkpoint: Checkpoint of the backend.
        stage: Stage of the backend whose images are measured; None for the last.
        judge: "guider:checkpoint", a classifier that never guides.
        reference: Labelled pictures; see `pictures.read_pictures`.
        parts: Meaning of each word of a class name; each has its own hit rate.
        scenes: Scenes as targets of guides.
        judges: Judges of scenes.
        fidelity: Figures that are drawn and compared against FID: hit, hit_PART or JUDGE.METRIC.
        num: Images in each row, a multiple of the number of classes or scenes.
        scales: Scales at which guided rows are drawn; see `Row.scales`.
        default: Scale that tables show, unless a row has its own; None for the default multiplier
            of `ppap run` if it is among the scales, else the middle one.
        steps: Steps from noise to image; a row may have its own, as of `sampler` and `eta`.
        sampler: As of `Sampling`.
        eta: As of `Sampling`.
        seed: Seed; the noise of image i depends only on (seed, i).
        precision: Precision of sampling; judges compute in float32.
        batch: Batch size; it changes low-order bits of images.
        baselines: Rows to compare every other row with; a row may have its own.
        timing: Measurement of time and memory.
        rows: Rows of the table, in order.
    """

    name: str = attrs.field(validator=values.name)
    title: str = attrs.field(default="", validator=values.text)
    text: str = attrs.field(default="", validator=values.text)
    backend: str = attrs.field(validator=values.text)
    checkpoint: str | None = attrs.field(default=None, validator=values.maybe_text)
    stage: str | None = attrs.field(default=None, validator=values.maybe_text)
    judge: str = attrs.field(validator=values.text)
    reference: str = attrs.field(validator=values.text)
    parts: tuple[str, ...] = attrs.field(default=(), converter=values.texts)
    scenes: SceneFile | None = attrs.field(default=None, validator=optional(instance_of(SceneFile)))
    judges: tuple[JudgeSpec, ...] = attrs.field(
        default=(), converter=tuple, validator=deep_iterable(instance_of(JudgeSpec))
    )
    fidelity: tuple[str, ...] = attrs.field(
        default=("hit",), converter=values.text_or_texts, validator=min_len(1)
    )
    num: int = attrs.field(default=2048, validator=values.positive)
    scales: tuple[RowScale, ...] = attrs.field(default=_SCALES, converter=values.scales)
    default: RowScale | None = attrs.field(
        default=None, converter=converters.optional(values.scale)
    )
    steps: int = attrs.field(default=Sampling().steps, validator=values.positive)
    sampler: SamplerName = "ancestral"
    eta: float | None = None
    seed: int = attrs.field(default=0, validator=instance_of(int))
    precision: Precision = attrs.field(default="float32", validator=in_(get_args(Precision)))
    batch: int = attrs.field(default=64, validator=values.positive)
    baselines: tuple[str, ...] = attrs.field(default=(), converter=values.texts)
    timing: Timing = attrs.field(factory=Timing)
    rows: tuple[Row, ...] = attrs.field(converter=tuple, validator=min_len(1))

    def __attrs_post_init__(self) -> None:
        names = [row.name for row in self.rows]
        _check_unique("rows", names)
        _check_unique("judges", [judge.name for judge in self.judges])
        for baselines in (self.baselines, *map(self.baselines_of, self.rows)):
            if unknown := [name for name in baselines if name not in names]:
                raise ValueError(f"has no row {', '.join(unknown)}, which `baselines` names")
        for row in self.rows:
            if row.default is not None and row.default not in self.scales_of(row):
                raise ValueError(f"has row {row.name}, whose default is none of its scales")
            for problem in self.sampling_of(row).problems(self.num):
                raise ValueError(f"has row {row.name}: {problem.message}")
        if ":" not in self.judge:
            raise ValueError(f'names the judge {self.judge!r}; write "guider:checkpoint"')
        if self.scenes is None:
            if self.judges:
                raise ValueError("has `judges` and no [scenes] that hold the truth")
            if lost := [r.name for r in self.rows if any(g.target == "scene" for g in r.guides)]:
                raise ValueError(f"has no [scenes], at which row {lost[0]} aims")
        for name in self.fidelity:
            if name not in self.figures:
                raise ValueError(
                    f"has the fidelity {name!r}, which is none of {', '.join(self.figures)}"
                )

    def baselines_of(self, row: Row) -> tuple[str, ...]:
        """Names of the other rows with which a row is compared."""
        names = self.baselines if row.baselines is None else row.baselines
        return tuple(name for name in names if name != row.name)

    def scales_of(self, row: Row) -> tuple[RowScale, ...]:
        """Scales at which a row is drawn; none for an unguided one."""
        return (row.scales or self.scales) if row.guides else ()

    def default_of(self, row: Row) -> RowScale | None:
        """Scale of a row that tables show."""
        scales = self.scales_of(row)
        if not scales or row.default is not None:
            return row.default
        usual: RowScale = DEFAULT_MULTIPLIER if self.default is None else self.default
        return usual if usual in scales else scales[(len(scales) - 1) // 2]

    @property
    def sampling(self) -> Sampling:
        """How rows are sampled that do not say otherwise."""
        return Sampling(steps=self.steps, sampler=self.sampler, eta=self.eta, seed=self.seed)

    def sampling_of(self, row: Row, **more: Any) -> Sampling:
        """What determines a row's images, apart from its guides; `more` are other fields."""
        return Sampling(
            steps=row.steps or self.steps,
            sampler=row.sampler or self.sampler,
            eta=self.eta if row.eta is None and row.sampler is None else row.eta,
            seed=self.seed,
            through=row.through,
            normalize=row.normalize,
            moments=row.moments,
            guide_every=row.guide_every,
            stage=self.stage,
            **more,
        )

    def start_of(self, row: Row) -> Row | None:
        """The unguided row that a guided row is with a scale of 0, if there is one."""

        def drawn(one: Row) -> Any:
            sampling = self.sampling_of(one)
            how = sampling.steps, sampling.sampler, sampling.stochasticity
            return how, one.prompt, one.backend_options

        plain = (other for other in self.rows if not other.guides and other.images is None)
        return next((one for one in plain if row.guides and drawn(one) == drawn(row)), None)

    @property
    def figures(self) -> dict[str, Better]:
        """Figures of fidelity to the targets, and which value is better."""
        hits = ("hit", *(f"hit_{part}" for part in self.parts))
        found: dict[str, Better] = dict.fromkeys(hits, "higher")
        for judge in self.judges:
            found |= judge.figures
        return found

    @property
    def shown(self) -> dict[str, Better]:
        """Reported `figures`; hits only if a guide or prompt has classes as targets, or `fidelity`
        names one.
        """
        kinds = {self.target_kind(guide) for row in self.rows for guide in row.guides}
        prompted = any(row.prompt for row in self.rows)
        named = any(name.startswith("hit") for name in self.fidelity)
        hits = self.scenes is None or "class" in kinds or prompted or named
        return {n: better for n, better in self.figures.items() if hits or not n.startswith("hit")}

    def target_kind(self, guide: GuideRequest) -> TargetKind:
        """Kind of target of a guide."""
        if guide.target in ("class", "scene"):
            return guide.target
        return "class" if self.scenes is None else "scene"

    def chosen(self, names: Sequence[str] | None) -> list[Row]:
        """The rows of these names, in the table's order; all for None.

        Raises:
            UsageError: If a name is unknown.
        """
        known = [row.name for row in self.rows]
        for name in names or ():
            if name not in known:
                raise UsageError(
                    f"experiment {self.name!r} has no row {name!r}",
                    hint=did_you_mean(name, known) or f"it has {', '.join(known)}",
                )
        return [row for row in self.rows if names is None or row.name in names]


def _check_unique(what: str, names: Sequence[str]) -> None:
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"has several {what} called {', '.join(repeated)}")
