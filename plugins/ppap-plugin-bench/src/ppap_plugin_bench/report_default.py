"""Section of the report: whether one multiplier of the calibrated curves serves all guides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ppap_plugin_bench import markdown
from ppap_plugin_bench.markdown import spoken
from ppap_plugin_bench.results import Results, guides_of

_FEWEST = 2  # points of a line
_TEXT = """\
Rows with experts, at the multiplier that the tables show and at the best of their line whose FID \
is no higher than there, in what their guides aim at. *Share*: the fidelity at the default as a \
part of the best; it has no interval, and a line of few images wavers by some percent.
"""


def one_default(results: Iterable[Results]) -> str:
    """Default and best multiplier of each line with experts; empty if there is none."""
    rows = [cells for result in results for cells in _rows(result)]
    if not rows:
        return ""
    headings = ["", "row", "figure", "default", "there", "best", "there", "share"]
    return f"## Does one multiplier serve all?\n\n{_TEXT}\n{markdown.table(headings, rows)}"


def _rows(result: Results) -> Iterator[list[str]]:
    title = result.experiment["title"]
    for row in result.guided:
        points, default = row["points"], row["default"]
        experts = any(guide.get("experts") for guide in guides_of(row))
        if not experts or isinstance(default, str) or len(points) < _FEWEST:
            continue
        chosen = next(point for point in points if point["scale"] == default)
        for name in _aims(result, row):
            best = max(
                (point for point in points if _value(point, "fid") <= _value(chosen, "fid")),
                key=lambda point: _worth(result, name, point),
            )
            values = [_value(point, name) for point in (chosen, best)]
            there, highest = (markdown.number(name, value) for value in values)
            share = min(values) / max(values)
            scales = f"× {default:g}", f"× {best['scale']:g}"
            figure = spoken(name)
            yield [
                title,
                row["title"],
                figure,
                scales[0],
                there,
                scales[1],
                highest,
                f"{share:.1%}",
            ]
            title = ""


def _aims(result: Results, row: dict[str, Any]) -> list[str]:
    """Figures that measure what the guides aim at: of the judge called as the guider, or hits."""
    kinds = {
        "hit" if guide.get("aim") == "class" else guide.get("component") for guide in guides_of(row)
    }
    return [name for name in result.fidelity if name.partition(".")[0] in kinds] or result.fidelity


def _value(point: dict[str, Any], name: str) -> float:
    return float(point["figures"][name]["value"])


def _worth(result: Results, name: str, point: dict[str, Any]) -> float:
    value = _value(point, name)
    return -value if result.shown.get(name) == "lower" else value
