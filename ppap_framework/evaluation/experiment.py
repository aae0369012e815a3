"""The file that says what is measured: a model, a judge, a reference, and the rows of a table.

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
    scales = ["auto"]                       # as they were calibrated; nothing is left to choose

TOML, or JSON of the same form. Paths are relative to the file.
"""

from __future__ import annotations

import difflib
import importlib
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import attrs
from attrs.validators import and_, ge, in_, instance_of, min_len, optional

from ppap_framework.api import Precision
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.experts import SUFFIX

__all__ = ["Candidate", "Experiment", "Row", "Timing", "Tuning", "read_experiment"]

_NAME = re.compile(r"[a-z0-9]+([-.][a-z0-9]+)*")

_T = TypeVar("_T")
_text = instance_of(str)
_whole = and_(instance_of(int), ge(1))


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(_number(item) for item in value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"wants finite numbers, not {value!r}")
    return float(value)


def _scales(value: Any) -> tuple[float | Literal["auto"], ...]:
    return tuple("auto" if item == "auto" else _number(item) for item in value)


def _intervals(value: Any) -> tuple[tuple[float, float], ...]:
    pairs = tuple(_numbers(pair) for pair in value)
    for pair in pairs:
        if len(pair) != 2 or not 0.0 <= pair[0] < pair[1] <= 1.0:
            raise ValueError(f"wants [lo, hi] between 0 and 1, not {list(pair)}")
    return tuple((low, high) for low, high in pairs)


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"wants a list of words, not {value!r}")
    return tuple(value)


def _name(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"{attribute.name!r} must be lower-case words joined by hyphens")


@attrs.frozen
class Candidate:
    """A scale and an interval between which a row chooses; "auto" is as its experts were
    calibrated.
    """

    scale: float | Literal["auto"]
    interval: tuple[float, float]


@attrs.frozen(kw_only=True)
class Row:
    """A row of the table: unguided, guided, or pictures that are there already.

    Attributes:
        name: In files and on the command line.
        title: In the report; the name where it is empty.
        text: What a reader should know of it.
        guider: That steers; None for none.
        checkpoint: Of the guider.
        model: Of the guider, where it knows several.
        loss: That is descended, if not the guider's own.
        options: Of the guider.
        experts: That look at noisy images in its place: "none", or the name or path of a bundle.
        through: Where the guider looks.
        normalize: Whether its gradients are brought to unit size first.
        scales: Between which is chosen, together with `intervals`; "auto" is as the experts were
            calibrated.
        intervals: [lo, hi] as t / T.
        images: Labelled pictures to measure instead of drawn ones, as for the reference.
    """

    name: str = attrs.field(validator=_name)
    title: str = attrs.field(default="", validator=_text)
    text: str = attrs.field(default="", validator=_text)
    guider: str | None = attrs.field(default=None, validator=optional(_text))
    checkpoint: str | None = attrs.field(default=None, validator=optional(_text))
    model: str | None = attrs.field(default=None, validator=optional(_text))
    loss: str | None = attrs.field(default=None, validator=optional(_text))
    options: Mapping[str, Any] = attrs.field(factory=dict, validator=instance_of(dict))
    experts: str = attrs.field(default="none", validator=_text)
    through: Literal["noisy", "clean"] = attrs.field(
        default="noisy", validator=in_(("noisy", "clean"))
    )
    normalize: bool = attrs.field(default=False, validator=instance_of(bool))
    scales: tuple[float | Literal["auto"], ...] = attrs.field(default=(), converter=_scales)
    intervals: tuple[tuple[float, float], ...] = attrs.field(
        default=((0.0, 1.0),), converter=_intervals, validator=min_len(1)
    )
    images: str | None = attrs.field(default=None, validator=optional(_text))

    def __attrs_post_init__(self) -> None:
        guided = {"checkpoint", "model", "loss", "options", "normalize", "scales"}
        if self.guider is None and (given := sorted(n for n in guided if getattr(self, n))):
            raise ValueError(f"has {', '.join(given)} and no guider")
        if self.guider is not None and self.images is not None:
            raise ValueError("has a guider and images; it is one or the other")
        if self.guider is not None and not self.scales:
            raise ValueError("has a guider and no scales to choose from")
        if self.experts == "auto":
            raise ValueError('has experts "auto"; a table says which: name them, or "none"')
        if self.experts != "none" and self.guider is None:
            raise ValueError("has experts and no guider")
        if self.experts != "none" and self.through == "clean":
            raise ValueError(
                "has experts, and looks through clean, where they have nothing to read"
            )
        if "auto" in self.scales and self.experts == "none":
            raise ValueError('has the scale "auto", and no experts that were calibrated')

    @property
    def label(self) -> str:
        """The title, or the name."""
        return self.title or self.name

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Every scale with every interval."""
        if self.guider is None:
            return ()
        return tuple(Candidate(scale, pair) for pair in self.intervals for scale in self.scales)

    @property
    def chooses(self) -> bool:
        """Whether it has anything to choose from: a calibrated scale was settled elsewhere."""
        return bool(self.candidates) and (self.scales != ("auto",) or len(self.intervals) > 1)


@attrs.frozen(kw_only=True)
class Tuning:
    """Where scales and intervals are chosen: images that no reported figure uses."""

    seed: int = attrs.field(default=1, validator=instance_of(int))
    num: int = attrs.field(default=256, validator=_whole)


@attrs.frozen(kw_only=True)
class Timing:
    """How time and memory are measured: so many images at once, so many times in turn."""

    num: int = attrs.field(default=16, validator=_whole)
    rounds: int = attrs.field(default=5, validator=_whole)


@attrs.frozen(kw_only=True)
class Experiment:
    """Everything about a table.

    Attributes:
        name: In files.
        title: Of the report's section.
        text: Below the title.
        backend: That draws.
        checkpoint: Of the backend.
        judge: "guider:checkpoint", a classifier that never guides.
        reference: Labelled pictures; see `pictures.read_pictures`.
        parts: What the words of a class's name stand for, to count them by themselves.
        num: Images in each row, a multiple of the number of classes.
        steps: Of DDIM without fresh noise.
        seed: Noise of image i comes from (seed, i) alone.
        precision: In which networks compute products while they draw; judges look in float32.
        block: How many images are drawn at once.
        baselines: Rows with which each other row is compared.
        tuning: How rows choose.
        timing: How time and memory are measured.
        rows: Of the table, in its order.
    """

    name: str = attrs.field(validator=_name)
    title: str = attrs.field(default="", validator=_text)
    text: str = attrs.field(default="", validator=_text)
    backend: str = attrs.field(validator=_text)
    checkpoint: str | None = attrs.field(default=None, validator=optional(_text))
    judge: str = attrs.field(validator=_text)
    reference: str = attrs.field(validator=_text)
    parts: tuple[str, ...] = attrs.field(default=(), converter=_texts)
    num: int = attrs.field(default=2048, validator=_whole)
    steps: int = attrs.field(default=25, validator=_whole)
    seed: int = attrs.field(default=0, validator=instance_of(int))
    precision: Precision = attrs.field(default="float32", validator=in_(get_args(Precision)))
    block: int = attrs.field(default=64, validator=_whole)
    baselines: tuple[str, ...] = attrs.field(default=(), converter=_texts)
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


def read_experiment(path: Path, **changes: str) -> Experiment:
    """Read an experiment's file.

    Args:
        path: TOML, or JSON where it ends so.
        changes: Values that go before the file's; paths among them from the current folder.

    Raises:
        AssetError: Where there is no such file.
        UsageError: For everything that is wrong with it, at once.
    """
    given = {"name": path.stem.lower(), **_placed(_load(path), path.parent, "reference"), **changes}
    faults: list[str] = []
    for key, kind in (("tuning", Tuning), ("timing", Timing)):
        if key in given:
            given[key] = _build(kind, given[key], f"[{key}]", faults)
    tables = given.pop("rows", [])
    if isinstance(tables, list):
        placed = [_placed(table, path.parent, "images") for table in tables]
        given["rows"] = [_build(Row, table, _label(table), faults) for table in placed]
    experiment = None if faults else _build(Experiment, given, "it", faults)
    if experiment is None:
        raise UsageError(
            f"experiment {str(path)!r}: {'; '.join(faults)}",
            hint="the documentation of ppap_framework.evaluation.experiment shows one",
        )
    return experiment


def _load(path: Path) -> dict[str, Any]:
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        text = path.read_text(encoding="utf-8")
        tables = json.loads(text) if path.suffix == ".json" else toml.loads(text)
    except OSError as error:
        raise AssetError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"{str(path)!r} is neither TOML nor JSON: {error}") from error
    if not isinstance(tables, dict):
        raise UsageError(f"{str(path)!r} holds no table", hint="it says backend, judge, rows ...")
    return tables


def _placed(table: Any, folder: Path, key: str) -> Any:
    """The table with `key`, a checkpoint that is a file there, and experts, from the current
    folder.
    """
    if not isinstance(table, dict):
        return table
    placed = dict(table)
    if isinstance(path := table.get(key), str):
        placed[key] = str(folder / Path(path).expanduser())
    if isinstance(path := table.get("checkpoint"), str) and (folder / path).is_file():
        placed["checkpoint"] = str(folder / path)
    if isinstance(path := table.get("experts"), str) and _is_bundle_path(path):
        placed["experts"] = str(folder / Path(path).expanduser())
    return placed


def _is_bundle_path(experts: str) -> bool:
    return experts.endswith(SUFFIX) or len(Path(experts).parts) > 1


def _label(table: Any) -> str:
    return f"row {table.get('name', '?')}" if isinstance(table, dict) else "a row"


def _build(kind: type[_T], table: Any, where: str, faults: list[str]) -> _T | None:
    """An instance from a table; None with what is wrong noted."""
    if not isinstance(table, dict):
        faults.append(f"{where} is no table")
        return None
    fields = {field.name: field for field in attrs.fields(kind)}  # type: ignore[arg-type]  # an attrs class
    for key in sorted(set(table) - set(fields)):
        near = difflib.get_close_matches(key, fields, n=1)
        faults.append(f"{where} has {key!r}" + (f", not {near[0]!r}" if near else ", unknown"))
    required = (name for name, field in fields.items() if field.default is attrs.NOTHING)
    if missing := [name for name in required if name not in table]:
        faults.append(f"{where} has no {', '.join(missing)}")
    if missing or set(table) - set(fields):
        return None
    try:
        return kind(**table)
    except (TypeError, ValueError) as error:
        faults.append(f"{where} {error.args[0]}")
        return None
