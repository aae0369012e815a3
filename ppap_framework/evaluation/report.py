"""Figures for readers: Markdown and plots, every number from the files that `evaluate` wrote."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from ppap_framework.errors import AssetError
from ppap_framework.evaluation.files import FORMAT, read_json, replacing
from ppap_framework.evaluation.plots import confusion_plot, tuning_plot

__all__ = ["Results", "find_results", "render", "report"]

_ENOUGH = 1024  # images in a row
_QUALITY = ("fid", "kid", "precision", "recall", "spread")
_HEADINGS = {
    "hit": "hit rate ↑",
    "sure": "judge is sure",
    "fid": "FID ↓",
    "kid": "KID × 1000 ↓",
    "precision": "precision ↑",
    "recall": "recall ↑",
    "spread": "spread",
}
_NOTES = """\
Intervals are 95 % and come from resampling images. *Hit rate*: the judge takes the image for the \
class it was to show. *Judge is sure*: it gives some class, right or \
wrong, more than 0.9. *FID*, *KID*, *precision* \
and *recall* compare the judge's features with those of the reference. *Spread*: variance of these \
features within a class, 1 is that of the reference and less is less diverse.
"""


@attrs.frozen
class Results:
    """What `evaluate` wrote into a folder.

    Attributes:
        folder: That folder.
        experiment: What was measured.
        judge: How well the judge does.
        rows: Those that were measured, in the table's order.
        differences: By baseline and row.
    """

    folder: Path
    experiment: dict[str, Any]
    judge: dict[str, Any]
    rows: list[dict[str, Any]]
    differences: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> Results:
        """Read a folder.

        Raises:
            AssetError: Where files are missing, or were not measured in the same way.
        """
        experiment = _read(folder / "experiment.json")
        paths = [folder / "rows" / f"{name}.json" for name in experiment["rows"]]
        rows = [_read(path) for path in paths if path.is_file()]
        differences = _read(folder / "differences.json")
        for file in (*rows, differences):
            if file["protocol"] != experiment["protocol"]:
                raise AssetError(
                    f"{file.get('name', 'differences')!r} in {str(folder)!r} was not measured as "
                    "experiment.json says",
                    hint="evaluate it again",
                )
        return cls(folder, experiment, _read(folder / "judge.json"), rows, differences["from"])

    def title(self, name: str) -> str:
        """Of a row."""
        return next((row["title"] for row in self.rows if row["name"] == name), name)


def find_results(folder: Path) -> list[Results]:
    """The results in a folder, or in each of the folders in it.

    Raises:
        AssetError: Where there are none, or they cannot be read.
    """
    found = sorted(path.parent for path in folder.glob("**/experiment.json"))
    if not found:
        raise AssetError(f"there are no results in {str(folder)!r}", hint="`ppap evaluate` first")
    return [Results.read(path) for path in found]


def report(folder: Path, out: Path) -> list[Path]:
    """Write the results in a folder as Markdown, with plots beside the figures.

    Returns:
        What was written.

    Raises:
        PpapError: As `find_results`, or where a file cannot be written.
    """
    results = find_results(folder)
    written = [out]
    for result in results:
        for name, plot in (("tuning.svg", tuning_plot), ("confusion.svg", confusion_plot)):
            written.append(result.folder / name)
            replacing(written[-1], functools.partial(plot, result))
    text = render(results, out.parent)
    replacing(out, lambda partial: partial.write_text(text, encoding="utf-8"))
    return written


def render(results: Sequence[Results], place: Path) -> str:
    """Results as Markdown.

    Args:
        results: Any number.
        place: The folder that the text is for, from which links go out.
    """
    sections = [_section(result, place) for result in results]
    return "\n".join(["# Results\n", "`ppap report` writes this page.\n", _NOTES, *sections])


def _section(result: Results, place: Path) -> str:
    experiment = result.experiment
    parts = [
        f"## {experiment['title']}\n",
        f"{experiment['text'].strip()}\n" if experiment["text"] else "",
        _setting(result),
        _fidelity(result),
        _quality(result),
        _notes(result),
        *(_differences(result, baseline) for baseline in result.differences),
        _cost(result),
        _tuning(result, place),
        _judge(result, place),
        _sources(result, place),
    ]
    return "\n".join(part for part in parts if part)


def _setting(result: Results) -> str:
    experiment, protocol = result.experiment, result.experiment["protocol"]
    backend, judge = experiment["backend"], experiment["judge"]
    text = (
        f"{protocol['num']:,} images a row from {backend['component']} "
        f"({backend['checkpoint'] or 'no checkpoint'}) in {protocol['steps']} DDIM steps, "
        f"{'products in bfloat16, ' if protocol.get('precision') == 'bfloat16' else ''}"
        f"seed {protocol['seed']}; image i aims at class i mod "
        f"{len(result.judge['class_names'])}, with the same noise in every row. Reference: "
        f"{result.judge['pictures']:,} pictures. Judge: {judge['component']} "
        f"({judge['checkpoint']}), which guides nothing.\n"
    )
    if protocol["num"] < _ENOUGH:
        text += f"\n**A sketch: with fewer than {_ENOUGH:,} images a row, read nothing into it.**\n"
    if missing := set(experiment["rows"]) - {row["name"] for row in result.rows}:
        text += f"\nNot measured: {', '.join(sorted(missing))}.\n"
    return text


def _fidelity(result: Results) -> str:
    names = ["hit", *(f"hit_{part}" for part in result.experiment["parts"]), "sure"]
    rows = [
        [row["title"], _chosen(row), *(_show(name, row["figures"][name]) for name in names)]
        for row in result.rows
    ]
    headings = [_HEADINGS.get(n, f"{n.removeprefix('hit_')} right ↑") for n in names]
    return f"### Does it show what it was to show?\n\n{_table(['row', 'scale', *headings], rows)}"


def _quality(result: Results) -> str:
    rows = [
        [row["title"], *(_show(name, row["figures"][name]) for name in _QUALITY)]
        for row in result.rows
    ]
    headings = [_HEADINGS[name] for name in _QUALITY]
    return f"### How good and how diverse are the images?\n\n{_table(['row', *headings], rows)}"


def _notes(result: Results) -> str:
    lines = [f"- {row['title']}: {row['text']}" for row in result.rows if row["text"]]
    for row in result.rows:
        if experts := (row.get("guide") or {}).get("experts"):
            lines.append(
                f"- {row['title']}: guided by {experts['num_experts']} experts, "
                f"{experts['name']} ({experts['sha256'][:12]})."
            )
        for key, what in (
            ("skipped", "gradients were not finite and left out"),
            ("broken", "images were not finite and are grey where they were not"),
        ):
            if row.get(key):
                lines.append(f"- {row['title']}: {row[key]:,} {what}.")
        if _at_edge(row):
            lines.append(
                f"- {row['title']}: the chosen scale is at the edge of those that were tried; one "
                "beyond may do better."
            )
    return "\n".join(lines) + "\n" if lines else ""


def _differences(result: Results, baseline: str) -> str:
    names = ("hit", *_QUALITY)
    rows = [
        [result.title(name), *(_show(n, found[n], signed=True) for n in names)]
        for name, found in result.differences[baseline].items()
    ]
    headings = [_HEADINGS[name] for name in names]
    return (
        f"### Differences from {result.title(baseline)}\n\n"
        "Paired: image by image of the same noise and target. Bold where the interval leaves out "
        "0; one in twenty would where there is no difference.\n\n"
        + _table(["row", *headings], rows)
    )


def _cost(result: Results) -> str:
    costs = [(row, row["cost"]) for row in result.rows if row["cost"]]
    if not costs:
        return ""
    rows = [
        [
            row["title"],
            *(f"{count:g}" for count in row["per_image"].values()),
            f"{cost['seconds']:.3g}",
            f"{min(cost['rounds']):.3g} – {max(cost['rounds']):.3g}",
            f"{cost['peak_memory'] / 2**20:.0f}" if cost["peak_memory"] else "–",
        ]
        for row, cost in costs
    ]
    headings = [name.replace("_", " ") for name in costs[0][0]["per_image"]]
    table = _table(["row", *headings, "seconds", "from – to", "peak memory, MiB"], rows)
    settings = sorted(
        {
            f"{cost['images_at_once']} images at once, {len(cost['rounds'])} rounds in turn, "
            f"{cost['threads']} thread{'s' * (cost['threads'] > 1)}, {cost['device']}, "
            f"{row['environment']['gpu'] or row['environment']['processor']}"
            for row, cost in costs
        }
    )
    return (
        f"### What an image costs\n\n{table}\n"
        "Seconds are the median of rounds in which the rows take turns; memory is the peak of a "
        f"process that draws one batch ({'; '.join(settings)}).\n"
    )


def _tuning(result: Results, place: Path) -> str:
    tuned = [row for row in result.rows if row.get("tuning")]
    if not tuned:
        return ""
    tuning = result.experiment["protocol"]["tuning"]
    rows = [
        [
            row["title"] if trial is row["tuning"][0] else "",
            _scale(trial["scale"], trial["interval"]) + (" (chosen)" if _is(row, trial) else ""),
            _show("hit", trial["hit"]),
            _number("fid", trial["fid"]),
            _number("spread", trial["spread"]),
        ]
        for row in tuned
        for trial in row["tuning"]
    ]
    return (
        "### How scales were chosen\n\n"
        f"By the highest hit rate of {tuning['num']} images of seed {tuning['seed']}, which no "
        "other figure uses, among as many candidates for each row. FID depends on the number of "
        "images: this one compares candidates, and nothing else.\n\n"
        f"![hit rate and FID over scale]({_link(result.folder / 'tuning.svg', place)})\n\n"
        + _table(["row", "scale", "hit rate ↑", "FID ↓", "spread"], rows)
    )


def _judge(result: Results, place: Path) -> str:
    judge, names = result.judge, result.judge["class_names"]
    shares = [
        f"{name.removeprefix('hit_')} {_show(name, found)}"
        for name, found in judge["figures"].items()
        if name.startswith("hit_")
    ]
    mistakes = sorted(
        (
            (count, names[true], names[seen])
            for true, counts in enumerate(judge["confusion"])
            for seen, count in enumerate(counts)
            if true != seen and count
        ),
        key=lambda mistake: (-mistake[0], *mistake[1:]),
    )
    common = ", ".join(f"{true} as {seen} ({count})" for count, true, seen in mistakes[:5])
    return (
        "### The judge\n\n"
        f"On the {judge['pictures']:,} pictures of the reference it is right in "
        f"{_show('hit', judge['figures']['hit'])}{''.join(f', {share}' for share in shares)}, and "
        f"sure in {_show('sure', judge['figures']['sure'])}."
        + (f" Its most common mistakes: {common}." if common else "")
        + f"\n\n![confusion matrix]({_link(result.folder / 'confusion.svg', place)})\n"
    )


def _sources(result: Results, place: Path) -> str:
    files = ", ".join(
        f"[{row['name']}]({_link(result.folder / 'rows' / row['name'], place)}.json)"
        for row in result.rows
    )
    commands = sorted({" ".join(row["command"]) for row in result.rows if row["command"]})
    made = "; ".join(f"`{command}`" for command in commands)
    return f"Figures: {files}." + (f" Made by {made}.\n" if made else "\n")


def _read(path: Path) -> Any:
    value = read_json(path)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise AssetError(f"{str(path)!r} is of another format", hint="evaluate again")
    return value


def _show(name: str, found: Mapping[str, float | None], *, signed: bool = False) -> str:
    """A figure with its interval; bold where it is a difference that is not 0."""
    low, high = found["low"], found["high"]
    if low is None or high is None:
        return _number(name, found["value"], signed=signed)
    value, *ends = (_number(name, number, signed=signed) for number in (found["value"], low, high))
    text = f"{value} [{', '.join(ends)}]"
    return f"**{text}**" if signed and low * high > 0 else text


def _number(name: str, value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return "–"
    if name == "kid":
        value *= 1000.0
    digits = 2 if name in ("fid", "kid") else 3
    return f"{value:{'+' if signed else ''}.{digits}f}"


def _scale(scale: float | str, interval: Sequence[float]) -> str:
    low, high = interval
    shown = scale if isinstance(scale, str) else f"{scale:g}"
    return shown + (f" at {low:g}–{high:g}" if (low, high) != (0.0, 1.0) else "")


def _chosen(row: Mapping[str, Any]) -> str:
    chosen = row.get("chosen")
    return _scale(chosen["scale"], chosen["interval"]) if chosen else "–"


def _is(row: Mapping[str, Any], trial: Mapping[str, Any]) -> bool:
    return all(row["chosen"][key] == trial[key] for key in ("scale", "interval"))


def _at_edge(row: Mapping[str, Any]) -> bool:
    scales = {trial["scale"] for trial in row.get("tuning") or ()} - {"auto"}
    return len(scales) > 1 and row["chosen"]["scale"] in (min(scales), max(scales))


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def _link(path: Path, place: Path) -> str:
    return Path(os.path.relpath(path, place)).as_posix()
