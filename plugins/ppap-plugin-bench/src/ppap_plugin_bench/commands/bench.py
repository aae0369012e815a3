"""`ppap bench`: time and memory of the rows of an experiment."""

from __future__ import annotations

from pathlib import Path

import click

from ppap_framework.cli.output import print_json, print_table
from ppap_plugin_bench.commands.evaluate import experiment_options, read, set_threads, split_rows

__all__ = ["command"]


@click.command("bench")
@experiment_options
@click.option("--num", type=click.IntRange(1), help="Images at once; as the experiment says.")
@click.option("--rounds", type=click.IntRange(1), help="How often; as the experiment says.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    experiment: Path,
    reference: str | None,
    rows: str | None,
    device: str,
    threads: int | None,
    num: int | None,
    rounds: int | None,
    as_json: bool,
) -> None:
    """Measure time and memory of the rows of EXPERIMENT.

    Rows take turns, with the first scale and interval that each may choose; the median counts.
    """
    import attrs

    from ppap_plugin_bench import bench

    set_threads(threads)
    found = read(experiment, reference=reference)
    changes = {"num": num, "rounds": rounds}
    timing = attrs.evolve(found.timing, **{k: v for k, v in changes.items() if v is not None})
    costs = bench(attrs.evolve(found, timing=timing), rows=split_rows(rows), device=device)
    if as_json:
        print_json({name: cost.record() for name, cost in costs.items()})
        return
    print_table(
        ["row", "seconds an image", "from", "to", "ms a step", "peak memory, MiB"],
        [
            (
                name,
                f"{cost.seconds:.3g}",
                f"{min(cost.rounds):.3g}",
                f"{max(cost.rounds):.3g}",
                f"{1000 * cost.seconds / found.steps:.3g}",
                f"{cost.peak_memory / 2**20:.0f}" if cost.peak_memory else "",
            )
            for name, cost in costs.items()
        ],
    )
