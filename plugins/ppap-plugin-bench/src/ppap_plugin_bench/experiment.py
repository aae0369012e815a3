"""The file that says what is measured: a model, judges, a reference, and the rows of a table.

    title = "ADM and a classifier"
    backend = "adm"
    judge = "classifier:shapes-judge"       # guider:checkpoint; it never guides
    reference = "renders.npz"
    parts = ["colour", "shape"]             # what the words of a class's name stand for
    num = 2048
    baselines = ["unguided"]                # with which the other rows are compared

    [tuning]                                # where scales and intervals are chosen
    seed = 1
    num = 256

    [[rows]]
    name = "unguided"

    [[rows]]
    name = "naive"
    guider = "classifier"
    scales = [1.0, 2.0, 4.0, 8.0]           # times intervals: as many candidates in each row

    [[rows]]
    name = "experts"
    guider = "classifier"
    experts = "mine.experts.safetensors"    # or a name, and never "auto": a table says which
    training = "mine/transfer.json"         # which says how long they took
    scales = ["auto"]                       # as they were calibrated; nothing is left to choose

Image i aims at class i mod K. Where guides are to be aimed at pictures, it aims at scene i mod S,
and more judges hold what they see against what is there:

    objective = "depth.abs_rel"             # by which rows choose; of several, by their mean

    [scenes]
    pictures = "scenes.npz"                 # the first `num` are reported, those after them tune
    num = 256

    [[judges]]
    name = "depth"
    guider = "depth:shapes-depth-judge"
    truth = "depth"                         # the array of scenes.npz that is the truth
    reciprocal = true                       # it says how far, and the judge how near
    lower = ["abs_rel"]                     # figures of the judge's loss that are best low
    higher = ["correlation"]

    [[rows]]
    name = "together"
    scales = [0.5, 1.0, 2.0, 4.0]           # factors of those below
    guides = [
        {guider = "depth", scale = 30.0},
        {guider = "classifier", scale = 4.0, aim = "class"},    # of the scene
    ]

A model that takes prompts is told one, about the class at which an image aims:

    stage = "base"                          # at which images are measured; left out, the last

    [[rows]]
    name = "told"
    prompt = "{a class}"                    # or "{class}", without its article
    backend_options = {cfg = 2.0}           # the model's own

TOML, or JSON of the same form. Paths are relative to the file.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import attrs
from attrs.validators import deep_iterable, in_, instance_of, min_len, optional

from ppap_framework.errors import UsageError
from ppap_framework.run import Precision
from ppap_plugin_bench import values
from ppap_plugin_bench.row import Aim, Row, RowGuide

__all__ = ["Best", "DenseJudge", "Experiment", "SceneFile", "Timing", "Tuning"]

Best: TypeAlias = Literal["lower", "higher"]
"""Which of two values of a figure is the better one."""


@attrs.frozen(kw_only=True)
class Tuning:
    """Where scales and intervals are chosen: images that no reported figure uses."""

    seed: int = attrs.field(default=1, validator=instance_of(int))
    num: int = attrs.field(default=256, validator=values.whole)


@attrs.frozen(kw_only=True)
class Timing:
    """How time and memory are measured: so many images at once, so many times in turn."""

    num: int = attrs.field(default=16, validator=values.whole)
    rounds: int = attrs.field(default=5, validator=values.whole)


@attrs.frozen(kw_only=True)
class SceneFile:
    """Scenes to aim at.

    Attributes:
        pictures: Labelled pictures with arrays of what is there; see `pictures.read_scenes`.
        num: How many reported images aim at. Those that rows are tuned with aim at the scenes
            after them.
        classes: The class that image i is to show: that of its "scene", or, whatever is there,
            those of the reference in "turn".
    """

    pictures: str = attrs.field(validator=values.text)
    num: int = attrs.field(default=256, validator=values.whole)
    classes: Literal["scene", "turn"] = attrs.field(
        default="scene", validator=in_(("scene", "turn"))
    )


@attrs.frozen(kw_only=True)
class DenseJudge:
    """A network that never guides, by whose loss what it sees is held against what is there.

    Attributes:
        name: Before its figures.
        guider: "guider:checkpoint".
        loss: Whose metrics they are, if not the guider's own.
        truth: The array of the scenes' file that holds what is there.
        reciprocal: Whether the judge sees 1 / truth, such as nearness for a distance.
        lower: Metrics that are better where they are lower.
        higher: Metrics that are better where they are higher.
    """

    name: str = attrs.field(validator=values.hyphenated)
    guider: str = attrs.field(validator=values.text)
    loss: str | None = attrs.field(default=None, validator=optional(values.text))
    truth: str = attrs.field(validator=values.text)
    reciprocal: bool = attrs.field(default=False, validator=instance_of(bool))
    lower: tuple[str, ...] = attrs.field(default=(), converter=values.texts)
    higher: tuple[str, ...] = attrs.field(default=(), converter=values.texts)

    def __attrs_post_init__(self) -> None:
        if ":" not in self.guider:
            raise ValueError(f'names the guider {self.guider!r}; write "guider:checkpoint"')
        if not self.metrics:
            raise ValueError("has no figures that are best `lower` or `higher`")
        if len(set(self.metrics)) < len(self.metrics):
            raise ValueError("names a figure twice in `lower` and `higher`")

    @property
    def metrics(self) -> tuple[str, ...]:
        """All that are asked for."""
        return *self.lower, *self.higher

    @property
    def figures(self) -> dict[str, Best]:
        """What it contributes to a row."""
        best: dict[str, Best] = dict.fromkeys(self.lower, "lower")
        best |= dict.fromkeys(self.higher, "higher")
        return {f"{self.name}.{metric}": which for metric, which in best.items()}


@attrs.frozen(kw_only=True)
class Experiment:
    """Everything about a table.

    Attributes:
        name: In files.
        title: Of the report's section.
        text: Below the title.
        backend: That draws.
        checkpoint: Of the backend.
        stage: Of the backend, at which images are measured; None for the last.
        judge: "guider:checkpoint", a classifier that never guides.
        reference: Labelled pictures; see `pictures.read_pictures`.
        parts: What the words of a class's name stand for, to count them by themselves.
        scenes: At which rows aim instead of classes.
        judges: More of them, that look at scenes.
        objective: Figures by which rows choose, of several by their mean: hit, hit_PART, and
            JUDGE.METRIC.
        num: Images in each row, a multiple of the number of classes or scenes.
        steps: Of DDIM without fresh noise.
        seed: Noise of image i comes from (seed, i) alone.
        precision: In which networks compute products while they draw; judges look in float32.
        block: How many images are drawn at once.
        baselines: Rows with which each other row is compared.
        tuning: How rows choose.
        timing: How time and memory are measured.
        rows: Of the table, in its order.
    """

    name: str = attrs.field(validator=values.hyphenated)
    title: str = attrs.field(default="", validator=values.text)
    text: str = attrs.field(default="", validator=values.text)
    backend: str = attrs.field(validator=values.text)
    checkpoint: str | None = attrs.field(default=None, validator=optional(values.text))
    stage: str | None = attrs.field(default=None, validator=optional(values.text))
    judge: str = attrs.field(validator=values.text)
    reference: str = attrs.field(validator=values.text)
    parts: tuple[str, ...] = attrs.field(default=(), converter=values.texts)
    scenes: SceneFile | None = attrs.field(default=None, validator=optional(instance_of(SceneFile)))
    judges: tuple[DenseJudge, ...] = attrs.field(
        default=(), converter=tuple, validator=deep_iterable(instance_of(DenseJudge))
    )
    objective: tuple[str, ...] = attrs.field(default=("hit",), converter=values.text_or_texts)
    num: int = attrs.field(default=2048, validator=values.whole)
    steps: int = attrs.field(default=25, validator=values.whole)
    seed: int = attrs.field(default=0, validator=instance_of(int))
    precision: Precision = attrs.field(default="float32", validator=in_(get_args(Precision)))
    block: int = attrs.field(default=64, validator=values.whole)
    baselines: tuple[str, ...] = attrs.field(default=(), converter=values.texts)
    tuning: Tuning = attrs.field(factory=Tuning)
    timing: Timing = attrs.field(factory=Timing)
    rows: tuple[Row, ...] = attrs.field(converter=tuple, validator=min_len(1))

    def __attrs_post_init__(self) -> None:
        names = [row.name for row in self.rows]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"has several rows called {', '.join(repeated)}")
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
        self._check_scenes()

    def _check_scenes(self) -> None:
        if self.scenes is None:
            if self.judges:
                raise ValueError("has `judges` and no [scenes] that they could know the truth of")
            if lost := [r.name for r in self.rows if any(g.aim == "scene" for g in r.steering)]:
                raise ValueError(f"has no [scenes], at which row {lost[0]} aims")
        named = [judge.name for judge in self.judges]
        if repeated := sorted({name for name in named if named.count(name) > 1}):
            raise ValueError(f"has several judges called {', '.join(repeated)}")
        for objective in (self.objective, *(row.objective for row in self.rows if row.objective)):
            if not objective:
                raise ValueError("has an empty `objective`")
            for name in objective:
                if name not in self.fidelity:
                    raise ValueError(
                        f"has the objective {name!r}, which is none of {', '.join(self.fidelity)}"
                    )

    @property
    def fidelity(self) -> dict[str, Best]:
        """Figures that say whether images show what they aim at, and which is better."""
        hits = ("hit", *(f"hit_{part}" for part in self.parts))
        found: dict[str, Best] = dict.fromkeys(hits, "higher")
        for judge in self.judges:
            found |= judge.figures
        return found

    @property
    def shown(self) -> dict[str, Best]:
        """Those of `fidelity` that say something: classes count where a guide or a prompt aims at
        them.
        """
        aims = {self.aim(guide) for row in self.rows for guide in row.steering}
        told = any(row.prompt for row in self.rows)
        classes = self.scenes is None or "class" in aims or told
        return {n: best for n, best in self.fidelity.items() if classes or not n.startswith("hit")}

    def aim(self, guide: RowGuide) -> Aim:
        """What a guide of a row is aimed at."""
        return guide.aim or ("class" if self.scenes is None else "scene")

    def chosen(self, names: Sequence[str] | None) -> list[Row]:
        """The rows of these names, in the table's order; all for None.

        Raises:
            UsageError: For a name that no row has.
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
