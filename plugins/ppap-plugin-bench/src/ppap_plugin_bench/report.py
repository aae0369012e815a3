"""Reports results as Markdown and plots; all numbers come from the files of `evaluate`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ppap_framework.files import replacing
from ppap_plugin_bench import markdown
from ppap_plugin_bench.markdown import spoken
from ppap_plugin_bench.plots import curves_plot
from ppap_plugin_bench.report_cost import cost, training
from ppap_plugin_bench.report_default import one_default
from ppap_plugin_bench.results import Results, find_results, guides_of

_ENOUGH = 1024  # images in a row
_ENOUGH_FOR_FID = 2048
_LOSSES = ("held_out", "untouched")
_QUALITY = ("fid", "kid", "precision", "recall", "spread")
_NOTES = """\
Intervals are 95 % and come from resampling images. *Hit rate*: the judge takes the image for the \
class it was to show. *Judge is sure*: it gives some class, right or \
wrong, more than 0.9. *FID*, *KID*, *precision* \
and *recall* compare the judge's features with those of the reference. *Spread*: variance of these \
features within a class, 1 is that of the reference and less is less diverse. *Scale*: × 8 is 8 \
times the calibrated curve of each guide, raw:64 is 64 at every noise level.
"""


def report(folder: Path, out: Path) -> list[Path]:
    """Write the results in a folder as Markdown, with plots beside the figures.

    Returns:
        The written files.

    Raises:
        PpapError: As for `find_results`, or if a file cannot be written.
    """
    results = find_results(folder)
    written = [out]
    for result in results:
        written.append(result.folder / "curves.png")
        curves_plot(result, written[-1])
    with replacing(out) as temporary:
        temporary.write_text(render(results, out.parent), encoding="utf-8")
    return written


def render(results: Sequence[Results], place: Path) -> str:
    """Results as Markdown.

    Args:
        results: Results of any number of experiments.
        place: Folder of the page; links are relative to it.
    """
    sections = [_section(result, place) for result in results]
    glance = _glance(results) if len(results) > 1 else ""
    begin = ["# Results\n", "`ppap report` writes this page.\n", glance, _NOTES]
    parts = [*begin, one_default(results), *sections]
    return "\n".join(part for part in parts if part)


def _glance(results: Sequence[Results]) -> str:
    """Summary table with a line for each row of all results."""
    lines = []
    for result in results:
        title = result.experiment["title"]
        anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")  # as GitHub and MyST do
        for row in result.rows:
            objectives = ", ".join(
                f"{markdown.heading(name, result.shown.get(name))} "
                f"{markdown.number(name, row['figures'][name]['value'])}"
                for name in result.fidelity
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
    folder = Path(os.path.relpath(result.folder, place)).as_posix()  # for links
    parts = [
        f"## {experiment['title']}\n",
        f"{experiment['text'].strip()}\n" if experiment["text"] else "",
        _setting(result),
        _curves(result, folder),
        _examples(result, folder),
        _fidelity(result),
        _quality(result),
        _notes(result),
        *(_differences(result, baseline) for baseline in result.differences),
        cost(result),
        training(result),
        _judge(result),
        _sources(result, folder),
    ]
    return "\n".join(part for part in parts if part)


def _setting(result: Results) -> str:
    experiment, protocol = result.experiment, result.experiment["protocol"]
    backend, judge = experiment["backend"], experiment["judge"]
    classes, num = len(result.judge["class_names"]), protocol["num"]
    scenes = protocol.get("scenes")
    aim = f"scene i mod {scenes['num']}" if scenes else f"class i mod {classes}"
    text = (
        f"{num:,} images a row from {backend['component']} "
        f"({backend['checkpoint'] or 'no checkpoint'}) in {protocol['steps']} "
        f"{protocol.get('sampler', 'ddim').upper()} steps unless a row says otherwise, "
        f"{'products in bfloat16, ' if protocol['precision'] == 'bfloat16' else ''}"
        f"seed {protocol['seed']}; image i aims at {aim}, with the same noise in every row. "
        f"Reference: {result.judge['pictures']:,} pictures. Judge: {judge['component']} "
        f"({judge['checkpoint']}), which guides nothing.\n"
    )
    if "objective" in experiment:  # of format 1
        text += (
            "\n**Measured by an earlier version, which had no calibrated curves: a row has one "
            "scale at all noise levels, the one that came nearest to the targets on other "
            "seeds.**\n\n"
        )
    for other in experiment["judges"]:
        reciprocal = "the reciprocal of " if other["reciprocal"] else ""
        text += (
            f"*{other['name']}*: {other['component']} ({other['checkpoint']}), which guides "
            f"nothing either, looks at each image, and `{other['loss']}` measures what it sees "
            f"against {reciprocal}the true {other['truth']} of the scene.\n"
        )
    if num < _ENOUGH:
        text += (
            f"\n**A sketch: with fewer than {_ENOUGH:,} images a row, intervals are wide and FIDs "
            "too high.**\n"
        )
    elif num < _ENOUGH_FOR_FID:
        text += (
            f"\nFID is biased upwards with fewer than {_ENOUGH_FOR_FID:,} images, in all rows of "
            "this table alike; KID is not.\n"
        )
    if missing := set(experiment["rows"]) - {row["name"] for row in result.rows}:
        text += f"\nNot measured: {', '.join(sorted(missing))}.\n"
    return text


def _curves(result: Results, folder: str) -> str:
    figures = " and ".join(map(spoken, result.fidelity))
    return (
        f"![{figures} against FID and recall]({folder}/curves.png)\n\n"
        "A line is a method, with its scales beside the points and its default large; black and "
        "gray markers have no guide. Bars are 95 % intervals. Better is up, to the left in FID and "
        "to the right in recall.\n"
    )


def _examples(result: Results, folder: str) -> str:
    """Strips of images, if `evaluate` left any."""
    strips = [("scenes", "scenes.png")]
    strips += [(row["title"], f"rows/{row['name']}.png") for row in result.rows]
    lines = [
        [title, f"![{title}]({folder}/{name})"]
        for title, name in strips
        if (result.folder / name).is_file()
    ]
    if not lines:
        return ""
    text = "Columns aim at the first scenes."
    if columns := result.experiment["examples"]:
        text = f"Columns aim at {', '.join(columns)}."
    elif judges := result.experiment["judges"]:
        names = ", ".join(judge["name"] for judge in judges)
        text += f" Below images: what the judges see in them ({names}), "
        text += "and below scenes: what is there."
    return f"{text} Nobody picked them.\n\n{markdown.table(['', 'images'], lines)}"


def _fidelity(result: Results) -> str:
    names = list(result.shown)
    if any(name.startswith("hit") for name in names):
        names.append("sure")
    rows = [
        [row["title"], markdown.scale(row), *markdown.figures(names, row["figures"])]
        for row in result.rows
    ]
    headings = ["row", "scale", *_headings(result, names)]
    return f"### Does it show what it was to show?\n\n{markdown.table(headings, rows)}"


def _quality(result: Results) -> str:
    rows = [[row["title"], *markdown.figures(_QUALITY, row["figures"])] for row in result.rows]
    table = markdown.table(["row", *_headings(result, _QUALITY)], rows)
    return f"### How good and how diverse are the images?\n\n{table}"


def _headings(result: Results, names: Iterable[str]) -> list[str]:
    return [markdown.heading(name, result.shown.get(name)) for name in names]


def _held_out(experts: dict[str, Any]) -> str:
    """What a bundle says of its experts' losses, in words."""
    own, bare = (", ".join(f"{x:.3g}" for x in experts.get(of, ())) for of in _LOSSES)
    told = f", whose losses on held-out images are {own} from the least noise to the most"
    return told + (f", and {bare} untouched" if bare else "") if own else ""


def _notes(result: Results) -> str:
    lines = [f"- {row['title']}: {row['text']}" for row in result.rows if row["text"]]
    for row in result.rows:
        guides, notes = guides_of(row), []
        if len(guides) > 1:
            told = ", ".join(f"{guide['component']} times {guide['scale']:g}" for guide in guides)
            notes.append(f"the scale is a factor; {told}")
        notes += [
            f"guided by {experts['num_experts']} experts, {experts['name']} "
            f"({experts['sha256'][:12]}){_held_out(experts)}"
            for guide in guides
            if (experts := guide.get("experts"))
        ]
        notes += _drawn_otherwise(result, row)
        points = row.get("points") or [row]
        if skipped := sum(point.get("skipped", 0) for point in points):
            notes.append(f"{skipped:,} gradients were not finite and left out")
        if broken := sum(point.get("broken", 0) for point in points):
            notes.append(f"{broken:,} images were not finite and are grey where they were not")
        if tried := row.get("tuning"):
            tuning = result.experiment["protocol"]["tuning"]
            notes.append(
                f"the scale is the best of {len(tried)} on {tuning['num']} images of seed "
                f"{tuning['seed']}, which no figure uses"
            )
        lines += [f"- {row['title']}: {note}." for note in notes]
    return "\n".join(lines) + "\n" if lines else ""


def _drawn_otherwise(result: Results, row: dict[str, Any]) -> list[str]:
    """How a row is drawn, where it is not as the experiment says."""
    sampling, protocol, notes = row.get("sampling"), result.experiment["protocol"], list[str]()
    if sampling is None:
        return notes
    names = ("sampler", "steps", "eta")
    if [sampling[name] for name in names] != [protocol[name] for name in names]:
        eta = f", eta {sampling['eta']:g}" if sampling["eta"] else ""
        notes.append(f"{sampling['steps']} {sampling['sampler'].upper()} steps{eta}")
    if sampling["moments"]:
        notes.append("adaptive moments {:g} and {:g}".format(*sampling["moments"]))
    if (every := sampling.get("guide_every") or 1) > 1:
        notes.append(f"guides look at one of {every} steps, the others repeat the gradient")
    if sampling["normalize"]:
        notes.append("gradients of unit size")
    if row["schedule"] != "calibrated":
        notes.append(f"scales multiply the schedule {row['schedule']}, not a calibrated curve")
    return notes


def _differences(result: Results, baseline: str) -> str:
    names = [*(name for name in result.shown if not name.startswith("hit_")), *_QUALITY]
    titles = {row["name"]: row["title"] for row in result.rows}
    equal = result.equal.get(baseline, {})
    rows = [
        [titles.get(name, name), *markdown.figures(names, found, signed=True)]
        for name, found in result.differences[baseline].items()
    ]
    text = (
        f"### Differences from {titles.get(baseline, baseline)}\n\n"
        "Paired: image by image of the same noise and target. Bold where the interval leaves out "
        "0; one in twenty would where there is no difference.\n\n"
    )
    if equal:
        lines = [
            [titles.get(name, name), *(c for f in result.fidelity for c in _at_equal(found[f], f))]
            for name, found in equal.items()
        ]
        headings = [
            told
            for name in result.fidelity
            for told in (f"{spoken(name)} at equal FID", f"FID at equal {spoken(name)}")
        ]
        whole = f"the whole line of {titles.get(baseline, baseline)}"
        text += (
            f"At the row's FID or fidelity, from {whole}. *Never*: that line has no such FID or "
            "fidelity. With an asterisk: it ends at lower FIDs and might go further.\n\n"
            f"{markdown.table(['row', *headings], lines)}\nEach at its default:\n\n"
        )
    return text + markdown.table(["row", *_headings(result, names)], rows)


def _at_equal(found: dict[str, Any], figure: str) -> list[str]:
    """Cells of a comparison at equal FID and at equal fidelity."""
    values = {figure: found["fidelity"], "fid": found["fid"]}
    cells = [
        "never" if value["value"] is None else markdown.show(name, value, signed=True)
        for name, value in values.items()
    ]
    return [cell + "\\*" * (found["ends"] and cell != "never") for cell in cells]


def _judge(result: Results) -> str:
    judge, names = result.judge, result.judge["class_names"]
    text = (
        f"On the {judge['pictures']:,} pictures of the reference it is right in "
        f"{markdown.show('hit', judge['figures']['hit'])}"
    )
    for name, found in judge["figures"].items():
        if name.startswith("hit_"):
            text += f", {name.removeprefix('hit_')} {markdown.show(name, found)}"
    text += f", and sure in {markdown.show('sure', judge['figures']['sure'])}."
    mistakes = sorted(
        (-count, names[true], names[seen])
        for true, counts in enumerate(judge["confusion"])
        for seen, count in enumerate(counts)
        if true != seen and count
    )
    if mistakes:
        told = [f"{true} as {seen} ({-count})" for count, true, seen in mistakes[:5]]
        text += f" Its most common mistakes: {', '.join(told)}."
    scenes = judge["scenes"]
    if scenes and scenes["figures"]:
        shown = scenes["figures"].items()
        told = [f"{spoken(name)} {markdown.show(name, found)}" for name, found in shown]
        text += (
            f" On the {scenes['num']} scenes themselves, which a perfect row would draw again: "
            f"{', '.join(told)}."
        )
    return f"### The judge\n\n{text}\n"


def _sources(result: Results, folder: str) -> str:
    files = ", ".join(f"[{row['name']}]({folder}/rows/{row['name']}.json)" for row in result.rows)
    commands = sorted({" ".join(row["command"]) for row in result.rows if row["command"]})
    made = "; ".join(f"`{command}`" for command in commands)
    return f"Figures: {files}." + (f" Made by {made}.\n" if made else "\n")
