"""Put what was measured of the diffusion model's own images onto its card.

The figures are those of a row that nothing steers, as `ppap evaluate` wrote them:

    python record_samples.py ../../../docs/results/adm-classifier/rows/unguided.json
"""

from __future__ import annotations

import json
from pathlib import Path

import click
from publish import WEIGHTS

FIGURES = {"fid": "fid", "kid": "kid", "recall": "recall", "sure": "judge_over_0.9_sure"}


@click.command()
@click.argument("row", type=click.Path(path_type=Path, exists=True))
@click.option("--name", default="shapes-adm", show_default=True, help="Of the card.")
def main(row: Path, name: str) -> None:
    path = WEIGHTS / f"{name}.json"
    record, measured = json.loads(path.read_text()), json.loads(row.read_text())
    card = record["card"]
    if measured["guide"] is not None or measured["protocol"]["backend"] != card["sha256"]:
        raise click.ClickException(f"{row} is not about unguided images of {name}")
    figures = {FIGURES[key]: measured["figures"][key]["value"] for key in FIGURES}
    protocol = measured["protocol"]
    record["metrics"]["samples"] = {
        "num": protocol["num"],
        "steps": protocol["steps"],
        "seed": protocol["seed"],
        **figures,
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    click.echo(f"{path}: {record['metrics']['samples']}")


if __name__ == "__main__":
    main()
