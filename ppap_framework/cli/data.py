"""`ppap data`: look at the images that `ppap synthesize` drew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ppap_framework.cli.output import print_fields, print_json, print_table

__all__ = ["command"]

_DAMAGED = 4
_FOLDER = click.argument("folder", type=click.Path(path_type=Path))


@click.group("data")
def command() -> None:
    """Look at the images that `ppap synthesize` drew."""


@command.command("verify")
@_FOLDER
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(folder: Path, as_json: bool) -> int:
    """Check that nothing is missing or damaged: hashes, counts, and that pictures can be read."""
    from ppap_framework.data import SyntheticData
    from ppap_framework.errors import AssetError

    data = SyntheticData(folder)
    faults = data.faults()
    if as_json:
        print_json(
            {
                "folder": str(folder),
                "whole": not faults,
                "images": len(data),
                "sha256": data.manifest_hash,
                "faults": [{"file": fault.file, "reason": fault.reason} for fault in faults],
            }
        )
        return _DAMAGED if faults else 0
    if faults:
        files = list(dict.fromkeys(fault.file for fault in faults))
        more = f", and {len(files) - 1} more files are not right" if len(files) > 1 else ""
        raise AssetError(
            f"{str(folder / files[0])!r} {faults[0].reason}{more}",
            hint="--json names them all; `ppap synthesize` with the same settings mends them",
        )
    click.echo(f"{len(data)} images in {len(data.manifest['shards'])} shards are whole")
    return 0


@command.command("stats")
@_FOLDER
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def stats(folder: Path, as_json: bool) -> None:
    """Show what a set holds, and the mean and spread of its colours."""
    from ppap_framework.data import SyntheticData

    data = SyntheticData(folder)
    settings, seconds = data.manifest["settings"], data.seconds
    size = sum(entry["bytes"] for entry in data.manifest["shards"])
    stages: list[dict[str, Any]] = []
    for index, stage in enumerate(data.stages):
        mean, spread = data.moments(index)
        shape = list(data.image_shape(index))
        stages.append(
            {"name": stage, "image_shape": shape, "mean": mean.tolist(), "std": spread.tolist()}
        )
    if as_json:
        print_json(
            {
                "folder": str(folder),
                "images": len(data),
                "shards": len(data.manifest["shards"]),
                "bytes": size,
                "seconds": seconds,
                "sha256": data.manifest_hash,
                "stages": stages,
            }
        )
        return
    print_fields(
        str(folder),
        {
            "images": len(data),
            "shards": len(data.manifest["shards"]),
            "size": f"{size / 2**20:.1f} MiB",
            "drawn in": None if seconds is None else f"{seconds:.1f} s",
            "backend": settings["backend"]["component"],
            "checkpoint": settings["backend"]["checkpoint"],
            "sampler": f"{settings['sampler']}, {settings['steps']} steps, seed {settings['seed']}",
            "SHA-256": data.manifest_hash,
        },
    )
    print_table(
        ["stage", "shape", *(f"{c} mean, std" for c in ("red", "green", "blue"))],
        [
            (
                stage["name"],
                "x".join(map(str, stage["image_shape"])),
                *(f"{m:+.3f}, {s:.3f}" for m, s in zip(stage["mean"], stage["std"], strict=True)),
            )
            for stage in stages
        ],
    )
