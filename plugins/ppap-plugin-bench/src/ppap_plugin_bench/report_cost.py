"""Sections of the report: cost of images, and when training is paid back."""

from __future__ import annotations

from typing import Any

from ppap_plugin_bench import markdown
from ppap_plugin_bench.results import Results, guides_of


def cost(result: Results) -> str:
    """Cost per image of each row; empty if no row was timed."""
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
    table = markdown.table(["row", *headings, "seconds", "from – to", "peak memory, MiB"], rows)
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


def training(result: Results) -> str:
    """Cost of training, and the number of images after which it is paid back, for each row with
    "clean" input; empty if no row has records of training.
    """
    trained = [row for row in result.rows if row.get("training")]
    if not trained:
        return ""
    timed = (row for row in result.rows if row["cost"])
    clean = [row for row in timed if any(one["through"] == "clean" for one in guides_of(row))]
    rows = []
    for row in trained:
        seconds = f"{row['training']['seconds']:,.0f}"
        rows.append([row["title"], seconds, *(paid_back(row, other) for other in clean)])
    headings = [f"paid back against {other['title']} after" for other in clean]
    return (
        f"### What training cost\n\n{markdown.table(['row', 'seconds', *headings], rows)}\n"
        "Seconds are those of the records of training and of the data it used, on whatever machine "
        "and beside whatever else that ran. Training is paid back after as many images as it takes "
        "to save these seconds, one image costing what the table above says.\n"
    )


def paid_back(row: dict[str, Any], other: dict[str, Any]) -> str:
    """Training seconds / (seconds per image of the other row - seconds per image of this row)."""
    if not row["cost"]:
        return "–"
    saved = other["cost"]["seconds"] - row["cost"]["seconds"]
    return f"{row['training']['seconds'] / saved:,.0f} images" if saved > 0 else "never"
