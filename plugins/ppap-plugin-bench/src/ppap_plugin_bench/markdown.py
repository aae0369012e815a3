"""Figures as cells of Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ppap_plugin_bench.experiment import Better

_HEADINGS = {
    "hit": "hit rate ↑",
    "sure": "judge is sure",
    "fid": "FID ↓",
    "kid": "KID × 1000 ↓",
    "precision": "precision ↑",
    "recall": "recall ↑",
    "spread": "spread",
}
_ARROWS = {"lower": "↓", "higher": "↑"}


def heading(name: str, better: Better | None = None) -> str:
    """Heading of a figure's column, with an arrow towards better values."""
    if name in _HEADINGS:
        return _HEADINGS[name]
    return spoken(name) + (f" {_ARROWS[better]}" if better else "")


def spoken(name: str) -> str:
    """A figure's name in a sentence."""
    if name.startswith("hit_"):
        return f"{name.removeprefix('hit_')} right"
    return {"hit": "hit rate", "fid": "FID", "kid": "KID"}.get(name, name.replace(".", " "))


def show(name: str, found: Mapping[str, float | None], *, signed: bool = False) -> str:
    """A figure with its interval; bold if it is a difference and the interval excludes 0."""
    low, high = found["low"], found["high"]
    if low is None or high is None:
        return number(name, found["value"], signed=signed)
    value, *ends = (number(name, end, signed=signed) for end in (found["value"], low, high))
    text = f"{value} [{', '.join(ends)}]"
    return f"**{text}**" if signed and low * high > 0 else text


def figures(names: Iterable[str], found: Mapping[str, Any], *, signed: bool = False) -> list[str]:
    """Cells of several figures."""
    return [show(name, found[name], signed=signed) for name in names]


def number(name: str, value: float | None, *, signed: bool = False) -> str:
    """A figure alone; a dash if it is not finite."""
    if value is None:
        return "–"
    if name == "kid":
        value *= 1000.0
    digits = 2 if name in ("fid", "kid") else 3
    return f"{value:{'+' if signed else ''}.{digits}f}"


def scale(row: Mapping[str, Any]) -> str:
    """The default scale of a row, and its interval unless it is the whole range."""
    value = row.get("default")
    if value is None:
        return "–"
    low, high = row["interval"]
    shown = value if isinstance(value, str) else f"× {value:g}"
    return shown + (f" at {low:g}–{high:g}" if (low, high) != (0.0, 1.0) else "")


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column holds words, and the others numbers."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)
