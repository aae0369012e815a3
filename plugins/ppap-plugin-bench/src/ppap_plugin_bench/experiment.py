"""The records in the file of an experiment; the README of ppap-plugin-bench explains them.

    backend = "adm"
    judge = "classifier:shapes-judge"       # guider:checkpoint; a judge never guides
    reference = "renders.npz"

    [[rows]]
    name = "naive"
    guider = "classifier"
    scales = [1.0, 2.0, 4.0, 8.0]

Image i aims at class i mod K or, with [scenes], at scene i mod S.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import attrs
from attrs.validators import deep_iterable, in_, instance_of, min_len, optional

from ppap_framework.errors import UsageError
from ppap_framework.run import GuideRequest
from ppap_framework.runtime import Precision
from ppap_plugin_bench import values
from ppap_plugin_bench.row import Row, TargetKind

Better: TypeAlias = Literal["lower", "higher"]
"""Which of two values of a figure is the better one."""


@attrs.frozen(kw_only=True)
class Tuning:
    """Images on which scales and intervals are chosen; no reported figure uses them."""

    seed: int = attrs.field(default=1, validator=instance_of(int))
    num: int = attrs.field(default=256, validator=values.positive)


@attrs.frozen(kw_only=True)
class Timing:
    """How time and memory are measured: the batch size, and the number of rounds."""

    num: int = attrs.field(default=16, validator=values.positive)
    rounds: int = attrs.field(default=5, validator=values.positive)


@attrs.frozen(kw_only=True)
class SceneFile:
    """Scenes to aim at.

    Attributes:
        pictures: Labelled pictures with arrays of what is there; see `pictures.read_pictures`.
        num: Number of scenes that reported images aim at. Rows are tuned with those after them.
        classes: The class that image i is to show: that of its "scene", or those of the reference
            in "turn", whatever the scene shows.
    """

    pictures: str = attrs.field(validator=values.text)
    num: int = attrs.field(default=256, validator=values.positive)
    classes: Literal["scene", "turn"] = attrs.field(
        default="scene", validator=in_(("scene", "turn"))
    )


@attrs.frozen(kw_only=True)
class JudgeSpec:
    """A network that never guides; the metrics of its loss compare what it sees in images with
    what is there in their scenes.

    Attributes:
        name: Prefix of its figures.
        guider: "guider:checkpoint".
        loss: Loss whose metrics count; None for the guider's own.
        truth: Array in the scenes' file that holds what is there.
        reciprocal: Whether the judge predicts 1 / truth, such as nearness for a distance.
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
        """All metrics that count."""
        return *self.lower, *self.higher

    @property
    def figures(self) -> dict[str, Better]:
        """Its figures of a row."""
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
        parts: Meaning of the words of a class name; each is also counted by itself.
        scenes: Scenes that guides can be aimed at.
        judges: Judges of scenes.
        objective: Figures by which rows choose, of several their mean: hit, hit_PART and
            JUDGE.METRIC.
        num: Images in each row, a multiple of the number of classes or scenes.
        steps: Steps of deterministic DDIM.
        seed: The noise of image i is a function of (seed, i) alone.
        precision: Precision while images are drawn; judges compute in float32.
        batch: Batch size; it changes low-order bits of images.
        baselines: Rows with which each other row is compared.
        tuning: Images on which rows choose.
        timing: How time and memory are measured.
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
    objective: tuple[str, ...] = attrs.field(default=("hit",), converter=values.text_or_texts)
    num: int = attrs.field(default=2048, validator=values.positive)
    steps: int = attrs.field(default=25, validator=values.positive)
    seed: int = attrs.field(default=0, validator=instance_of(int))
    precision: Precision = attrs.field(default="float32", validator=in_(get_args(Precision)))
    batch: int = attrs.field(default=64, validator=values.positive)
    baselines: tuple[str, ...] = attrs.field(default=(), converter=values.texts)
    tuning: Tuning = attrs.field(factory=Tuning)
    timing: Timing = attrs.field(factory=Timing)
    rows: tuple[Row, ...] = attrs.field(converter=tuple, validator=min_len(1))

    def __attrs_post_init__(self) -> None:
        names = [row.name for row in self.rows]
        _check_unique("rows", names)
        _check_unique("judges", [judge.name for judge in self.judges])
        if unknown := [name for name in self.baselines if name not in names]:
            raise ValueError(f"has no row {', '.join(unknown)}, which `baselines` names")
        if self.tuning.seed == self.seed:
            raise ValueError(f"tunes on seed {self.seed}, which it reports; tuning needs its own")
        sizes = {row.name: len(row.candidates) for row in self.rows if row.chooses}
        if len(set(sizes.values())) > 1:
            told = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise ValueError(f"gives rows unequal numbers of candidates to choose from: {told}")
        if ":" not in self.judge:
            raise ValueError(f'names the judge {self.judge!r}; write "guider:checkpoint"')
        if self.scenes is None:
            if self.judges:
                raise ValueError("has `judges` and no [scenes] that hold the truth")
            if lost := [r.name for r in self.rows if any(g.target == "scene" for g in r.guides)]:
                raise ValueError(f"has no [scenes], at which row {lost[0]} aims")
        for objective in (self.objective, *(row.objective for row in self.rows if row.objective)):
            if not objective:
                raise ValueError("has an empty `objective`")
            for name in objective:
                if name not in self.fidelity:
                    raise ValueError(
                        f"has the objective {name!r}, which is none of {', '.join(self.fidelity)}"
                    )

    @property
    def fidelity(self) -> dict[str, Better]:
        """Figures that say whether images show what they aim at, and which value is better."""
        hits = ("hit", *(f"hit_{part}" for part in self.parts))
        found: dict[str, Better] = dict.fromkeys(hits, "higher")
        for judge in self.judges:
            found |= judge.figures
        return found

    @property
    def shown(self) -> dict[str, Better]:
        """The figures of `fidelity` that the report shows; hits only if a guide or a prompt aims at
        classes.
        """
        kinds = {self.target_kind(guide) for row in self.rows for guide in row.guides}
        prompted = any(row.prompt for row in self.rows)
        hits = self.scenes is None or "class" in kinds or prompted
        return {n: better for n, better in self.fidelity.items() if hits or not n.startswith("hit")}

    def target_kind(self, guide: GuideRequest) -> TargetKind:
        """The kind of target at which a guide of a row is aimed."""
        if guide.target in ("class", "scene"):
            return guide.target
        return "class" if self.scenes is None else "scene"

    def chosen(self, names: Sequence[str] | None) -> list[Row]:
        """The rows of these names, in the table's order; all for None.

        Raises:
            UsageError: If there is no row of a name.
        """
        known = [row.name for row in self.rows]
        for name in names or ():
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise UsageError(
                    f"experiment {self.name!r} has no row {name!r}",
                    hint=f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}",
                )
        return [row for row in self.rows if names is None or row.name in names]


def _check_unique(what: str, names: Sequence[str]) -> None:
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"has several {what} called {', '.join(repeated)}")
