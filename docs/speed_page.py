"""The tables and the plot of docs/speed.md, from the record that make_speed.py measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from make_cost import table

from ppap_figures import new_figure, save_both

DOCS = Path(__file__).parent
PAGE, RECORD = DOCS / "speed.md", DOCS / "speed" / "guided-step.json"
PLOT, HELD = DOCS / "speed" / "growth", DOCS / "adapters" / "costs.json"
MARK, END = "<!-- measured -->\n", "<!-- end of measured -->\n"

THREADS, SIDE, BATCH, EXPERTS = 2, 64, 8, 5  # of the step that is measured
TRAINED = 32  # images in an iteration of transfer
RUN = ("run", "--backend", "glide", "--guider", "depth", "--num", "8", "--steps", "25")
DRAWN = (100, 2000)  # images of the runs whose memory is compared


def write(record: dict[str, Any]) -> None:
    """Write the plot, and the tables between the page's marks."""
    draw(record)
    head, _, rest = PAGE.read_text().partition(MARK)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{MARK}" + "".join(f"{one}\n" for one in lines(record)) + f"{END}{tail}")


def lines(record: dict[str, Any]) -> list[str]:
    """The tables of the page."""
    made = []
    for case in record["cases"]:
        most = max(case["ceiling"].values())
        rows = [
            [
                name,
                f"{1000 * part['seconds']:.3g}",
                f"{1000 * min(part['rounds']):.3g} to {1000 * max(part['rounds']):.3g}",
                f"{1000 * part['published']:.3g}",
                f"{part['faster']:.2f}",
                f"{100 * part['share']:.0f} %" if part["flops"] else "",
            ]
            for name, part in case["parts"].items()
        ]
        head = ["part", "ms", "over the rounds", "published style, ms", "times faster"]
        images = "1 image" if case["batch"] == 1 else f"{case['batch']} images"
        made += [f"{images}, {case['precision']}; ceiling {most / 1e9:.0f} GFLOP/s:", ""]
        made += [*table([*head, "of the ceiling"], rows), ""]
    shares = [[f"`{name}`", f"{100 * s:.1f} %", str(n)] for name, s, n in record["operators"]]
    made += [f"Where the time of a step of {BATCH} images goes, by torch's profiler:", ""]
    made += [*table(["operator", "of the time", "calls"], shares), ""]
    where = f"{record['processor']}, {THREADS} threads, torch {record['torch']}"
    made += ["What was aimed at, and what was reached; *faster* is than the published style:", ""]
    made += [*table(["", "aim", "measured"], aims(record)), ""]
    return [*made, f"Measured on {record['date']}: {where}; load before: {record['load']}."]


def aims(record: dict[str, Any]) -> list[list[str]]:
    """What was to be reached, and what was; "faster" is than the published style."""
    one, several, half = (case["parts"]["step"] for case in record["cases"])
    trained, start = record["training"], record["start"]
    few, many = record["memory"].values()
    held = next(c for c in json.loads(HELD.read_text())["memory"] if c["experts"] == EXPERTS)
    saved = [100 * (1 - c["folded"] / c["plain"]) for c in record["folding"].values()]
    around = sum(record["around"].values()) / several["seconds"]
    images = f"{BATCH} images"
    made = {
        f"a step of {images}, times faster": ("2.0", f"{several['faster']:.2f}"),
        "its share of the ceiling": ("67 %", f"{100 * several['share']:.0f} %"),
        "a step of 1 image, times faster": ("1.8", f"{one['faster']:.2f}"),
        "preprocessing and loss of the guide, of a step": ("under 3 %", f"{100 * around:.1f} %"),
        "merging another expert, ms": ("10", f"{1000 * record['switch']:.1f}"),
        "for comparison, a copy of its weights, ms": ("", f"{1000 * record['copy']:.1f}"),
        f"a step of {images} in bfloat16, times faster than in float32": (
            "",
            f"{several['seconds'] / half['seconds']:.2f}",
        ),
        f"time that folded batch norms save a gradient of 1 and of {images}": (
            "",
            " and ".join(f"{share:.0f} %" for share in saved),
        ),
        f"an iteration of transfer, {TRAINED} images, times faster": (
            "2.0",
            f"{trained['faster']:.2f}",
        ),
        "making its images and noise, of its time": (
            "",
            f"{100 * trained['data'] / trained['ours']:.1f} %",
        ),
        "`ppap --help`, ms": ("150", f"{1000 * start['help']:.0f}"),
        f"`ppap {' '.join(RUN)}`, s": ("8", f"{start['run']:.1f}"),
        "its imports, s": ("3", f"{start['imports']:.1f}"),
        f"peak memory of `ppap run`, {DRAWN[0]:,} images, MB": ("", f"{few / 1e6:.0f}"),
        f"peak memory of `ppap run`, {DRAWN[1]:,} images, MB": ("the same", f"{many / 1e6:.0f}"),
        f"memory of a network that has {EXPERTS} experts, without theirs, to the bare network's": (
            "1.15",
            f"{1 + held['kept'] / held['network']:.2f}",
        ),
    }
    return [[what, *values] for what, values in made.items()]


def draw(record: dict[str, Any]) -> None:
    """The plot of growth, one panel for each number that grows."""
    figure = new_figure(10.0, 2.8)
    names = {"side": "pixels a side, 1 image", "batch": f"images of {SIDE} pixels"}
    for number, (what, found) in enumerate(record["growth"].items(), start=1):
        axes = figure.add_subplot(1, len(record["growth"]), number)
        at, seconds = [int(value) for value in found], list(found.values())
        axes.plot(at, seconds, marker="o")
        if what in ("side", "batch"):
            axes.set_xscale("log", base=2)
            axes.set_yscale("log", base=2)
            axes.set_yticks(seconds, [f"{s:.2g}" for s in seconds])
        else:
            axes.set_ylim(0.0, 1.15 * max(seconds))
        shown = [value for value in at if value == 1 or value >= 0.05 * at[-1] * len(at)]
        shown = at if what in ("side", "batch") else shown
        axes.set_xticks(shown, [str(value) for value in shown])
        axes.minorticks_off()
        axes.set_xlabel(names.get(what, f"{what}, {BATCH} images"))
    figure.axes[0].set_ylabel("seconds a step")
    save_both(figure, PLOT)
