"""Figures for readers: Markdown and plots, every number from the files that `evaluate` wrote."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppap_framework.files import replacing
from ppap_plugin_bench import markdown
from ppap_plugin_bench.plots import confusion_plot, tuning_plot
from ppap_plugin_bench.report_cost import cost, training
from ppap_plugin_bench.results import Results, find_results, guides_of

__all__ = ["render", "report"]

_ENOUGH = 1024  # images in a row
_ENOUGH_FOR_FID = 2048
_QUALITY = ("fid", "kid", "precision", "recall", "spread")
_NOTES = """\
Intervals are 95 % and come from resampling images. *Hit rate*: the judge takes the image for the \
class it was to show. *Judge is sure*: it gives some class, right or \
wrong, more than 0.9. *FID*, *KID*, *precision* \
and *recall* compare the judge's features with those of the reference. *Spread*: variance of these \
features within a class, 1 is that of the reference and less is less diverse.
"""


def report(folder: Path, out: Path) -> list[Path]:
    """Write the results in a folder as Markdown, with plots beside the figures.

    Returns:
        The files that were written.

    Raises:
        PpapError: As `find_results`, or if a file cannot be written.
    """
    results = find_results(folder)
    written = [out]
    for result in results:
        for name, plot in (("tuning.svg", tuning_plot), ("confusion.svg", confusion_plot)):
            written.append(result.folder / name)
            with replacing(written[-1]) as temporary:
                plot(result, temporary)
    with replacing(out) as temporary:
        temporary.write_text(render(results, out.parent), encoding="utf-8")
    return written


def render(results: Sequence[Results], place: Path) -> str:
    """Results as Markdown.

    Args:
        results: Any number.
        place: The page's folder, to which links are relative.
    """
    sections = [_section(result, place) for result in results]
    glance = _glance(results) if len(results) > 1 else ""
    parts = ["# Results\n", "`ppap report` writes this page.\n", glance, _NOTES, *sections]
    return "\n".join(part for part in parts if part)


def _glance(results: Sequence[Results]) -> str:
    """A line for each row of all results."""
    lines = []
    for result in results:
        title = result.experiment["title"]
        anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")  # as GitHub and MyST do
        for row in result.rows:
            objectives = ", ".join(
                f"{markdown.heading(name, result.shown.get(name))} "
                f"{markdown.number(name, row['figures'][name]['value'])}"
                for name in result.objectives or list(result.shown)[:1]
            )
            lines.append(
                [
                    f"[{title}](#{anchor})" if row is result.rows[0] else "",
                    row["title"],
                    objectives,
                    markdown.number("fid", row["figures"]["fid"]["value"]),
                    f"{cost['seconds']:.3g}" if (cost := row.get("cost")) else "–",
                ]
            )
    headings = ["", "row", "by the judges", markdown.heading("fid"), "seconds an image"]
    return f"## At a glance\n\n{markdown.table(headings, lines)}"


def _section(result: Results, place: Path) -> str:
    experiment = result.experiment
    parts = [
        f"## {experiment['title']}\n",
        f"{experiment['text'].strip()}\n" if experiment["text"] else "",
        _setting(result),
        _examples(result, place),
        _fidelity(result),
        _quality(result),
        _notes(result),
        *(_differences(result, baseline) for baseline in result.differences),
        cost(result),
        training(result),
        _tuning(result, place),
        _judge(result, place),
        _sources(result, place),
    ]
    return "\n".join(part for part in parts if part)


def _setting(result: Results) -> str:
    experiment, protocol = result.experiment, result.experiment["protocol"]
    backend, judge = experiment["backend"], experiment["judge"]
    scenes = protocol.get("scenes")
    aim = f"scene i mod {scenes['num']}" if scenes else f"class i mod {_classes(result)}"
    text = (
        f"{protocol['num']:,} images a row from {backend['component']} "
        f"({backend['checkpoint'] or 'no checkpoint'}) in {protocol['steps']} DDIM steps, "
        f"{'products in bfloat16, ' if protocol.get('precision') == 'bfloat16' else ''}"
        f"seed {protocol['seed']}; image i aims at {aim}, with the same noise in every row. "
        f"Reference: {result.judge['pictures']:,} pictures. Judge: {judge['component']} "
        f"({judge['checkpoint']}), which guides nothing.\n"
    )
    for other in experiment.get("judges") or ():
        reciprocal = "the reciprocal of " if other["reciprocal"] else ""
        text += (
            f"*{other['name']}*: {other['component']} ({other['checkpoint']}), which guides "
            f"nothing either, looks at each image, and `{other['loss']}` measures what it sees "
            f"against {reciprocal}the true {other['truth']} of the scene.\n"
        )
    if protocol["num"] < _ENOUGH:
        text += f"\n**A sketch: with fewer than {_ENOUGH:,} images a row, read nothing into it.**\n"
    elif protocol["num"] < _ENOUGH_FOR_FID:
        text += (
            f"\nFID is biased upwards with fewer than {_ENOUGH_FOR_FID:,} images, in all rows of "
            "this table alike; KID is not.\n"
        )
    if missing := set(experiment["rows"]) - {row["name"] for row in result.rows}:
        text += f"\nNot measured: {', '.join(sorted(missing))}.\n"
    return text


def _classes(result: Results) -> int:
    return len(result.judge["class_names"])


def _examples(result: Results, place: Path) -> str:
    """Strips of images, where `evaluate` left some."""
    strips = [(row["title"], result.folder / "rows" / f"{row['name']}.png") for row in result.rows]
    scenes = result.folder / "scenes.png"
    lines = [(title, path) for title, path in [("scenes", scenes), *strips] if path.is_file()]
    if not lines:
        return ""
    seen = [other["name"] for other in result.experiment.get("judges") or ()]
    columns = result.experiment.get("examples")
    text = (
        f"Columns aim at {', '.join(columns)}."
        if columns
        else "Columns aim at the first scenes."
        + (
            f" Below images: what the judges see in them ({', '.join(seen)}), and below scenes: "
            "what is there."
            if seen
            else ""
        )
    )
    rows = [[title, f"![{title}]({markdown.link(path, place)})"] for title, path in lines]
    return f"{text} Nobody picked them.\n\n{markdown.table(['', 'images'], rows)}"


def _fidelity(result: Results) -> str:
    shown = result.shown
    headings = [markdown.heading(name, best) for name, best in shown.items()]
    names = list(shown)
    if any(name.startswith("hit") for name in names):
        names.append("sure")
        headings.append(markdown.heading("sure"))
    rows = [
        [
            row["title"],
            markdown.chosen(row),
            *(markdown.show(name, row["figures"][name]) for name in names),
        ]
        for row in result.rows
    ]
    title = "### Does it show what it was to show?"
    return f"{title}\n\n{markdown.table(['row', 'scale', *headings], rows)}"


def _quality(result: Results) -> str:
    rows = [
        [row["title"], *(markdown.show(name, row["figures"][name]) for name in _QUALITY)]
        for row in result.rows
    ]
    headings = [markdown.heading(name) for name in _QUALITY]
    return (
        f"### How good and how diverse are the images?\n\n{markdown.table(['row', *headings], rows)}"
    )


def _notes(result: Results) -> str:
    lines = [f"- {row['title']}: {row['text']}" for row in result.rows if row["text"]]
    for row in result.rows:
        guides = guides_of(row)
        if len(guides) > 1:
            told = ", ".join(f"{guide['component']} times {guide['scale']:g}" for guide in guides)
            lines.append(f"- {row['title']}: the scale is a factor; {told}.")
        lines += [
            f"- {row['title']}: guided by {experts['num_experts']} experts, {experts['name']} "
            f"({experts['sha256'][:12]})."
            for guide in guides
            if (experts := guide.get("experts"))
        ]
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
    names = [*(name for name in result.shown if not name.startswith("hit_")), *_QUALITY]
    rows = [
        [result.title(name), *(markdown.show(n, found[n], signed=True) for n in names)]
        for name, found in result.differences[baseline].items()
    ]
    headings = [markdown.heading(name, result.shown.get(name)) for name in names]
    return (
        f"### Differences from {result.title(baseline)}\n\n"
        "Paired: image by image of the same noise and target. Bold where the interval leaves out "
        "0; one in twenty would where there is no difference.\n\n"
        + markdown.table(["row", *headings], rows)
    )


def _tuning(result: Results, place: Path) -> str:
    tuned = [row for row in result.rows if row.get("tuning")]
    if not tuned:
        return ""
    tuning = result.experiment["protocol"]["tuning"]
    common = all(result.objective(row) == result.objectives for row in tuned)
    shown = {name: best for name, best in result.shown.items() if name in result.objectives}
    rows = [
        [
            row["title"] if trial is row["tuning"][0] else "",
            markdown.scale(trial["scale"], trial["interval"])
            + (" (chosen)" if _is(row, trial) else ""),
            *(markdown.show(name, trial[name]) for name in shown),
            markdown.number("fid", trial["fid"]),
            markdown.number("spread", trial["spread"]),
        ]
        for row in tuned
        for trial in row["tuning"]
    ]
    headings = [markdown.heading(name, best) for name, best in shown.items()]
    by = f"By {_best(result, result.objectives)}" if common else "Each row by figures of its own"
    words = "; ".join(f"{row['title']} by {_best(result, result.objective(row))}" for row in tuned)
    figures = " and ".join([*map(markdown.spoken, shown), "FID"])
    return (
        "### How scales were chosen\n\n"
        f"{by}, on {tuning['num']} images of seed {tuning['seed']} that no other figure uses, "
        f"among as many candidates for each row{'' if common else f': {words}'}. FID depends on "
        "the number of images: this one compares candidates, and nothing else.\n"
        f"\n![{figures} over scale]({markdown.link(result.folder / 'tuning.svg', place)})\n\n"
        + markdown.table(["row", "scale", *headings, "FID ↓", "spread"], rows)
    )


def _best(result: Results, objective: Sequence[str]) -> str:
    if len(objective) > 1:
        return f"the best mean of {', '.join(map(markdown.spoken, objective))}"
    (name,) = objective
    lowest = result.shown.get(name) == "lower"
    return f"the {'lowest' if lowest else 'highest'} {markdown.spoken(name)}"


def _judge(result: Results, place: Path) -> str:
    judge, names = result.judge, result.judge["class_names"]
    shares = [
        f"{name.removeprefix('hit_')} {markdown.show(name, found)}"
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
    scenes = judge.get("scenes")
    told = ", ".join(
        f"{markdown.spoken(name)} {markdown.show(name, found)}"
        for name, found in (scenes["figures"].items() if scenes else ())
    )
    return (
        "### The judge\n\n"
        f"On the {judge['pictures']:,} pictures of the reference it is right in "
        f"{markdown.show('hit', judge['figures']['hit'])}"
        f"{''.join(f', {share}' for share in shares)}, and "
        f"sure in {markdown.show('sure', judge['figures']['sure'])}."
        + (f" Its most common mistakes: {common}." if common else "")
        + (
            f" On the {scenes['num']} scenes themselves, which a perfect row would draw again: "
            f"{told}."
            if scenes and told
            else ""
        )
        + f"\n\n![confusion matrix]({markdown.link(result.folder / 'confusion.svg', place)})\n"
    )


def _sources(result: Results, place: Path) -> str:
    files = ", ".join(
        f"[{row['name']}]({markdown.link(result.folder / 'rows' / row['name'], place)}.json)"
        for row in result.rows
    )
    commands = sorted({" ".join(row["command"]) for row in result.rows if row["command"]})
    made = "; ".join(f"`{command}`" for command in commands)
    return f"Figures: {files}." + (f" Made by {made}.\n" if made else "\n")


def _is(row: Mapping[str, Any], trial: Mapping[str, Any]) -> bool:
    return all(row["chosen"][key] == trial[key] for key in ("scale", "interval"))


def _at_edge(row: Mapping[str, Any]) -> bool:
    scales = {trial["scale"] for trial in row.get("tuning") or ()} - {"auto"}
    return len(scales) > 1 and row["chosen"]["scale"] in (min(scales), max(scales))
