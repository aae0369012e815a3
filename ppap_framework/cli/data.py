from __future__ import annotations

from pathlib import Path

import click

from ppap_framework.cli.output import json_option, print_fields, print_json, print_table, size_words

_FOLDER = click.argument("folder", type=click.Path(path_type=Path))


@click.group("data")
def command() -> None:
    """Look at the images that `ppap synthesize` drew."""


@command.command("verify")
@_FOLDER
@json_option
def verify(folder: Path, as_json: bool) -> int:
    """Check that nothing is missing or damaged: hashes, counts, and that pictures can be read."""
    from ppap_framework.data import SyntheticData
    from ppap_framework.errors import AssetError

    data = SyntheticData(folder)
    faults = data.faults()
    files = list(dict.fromkeys(fault.file for fault in faults))
    if as_json:
        print_json(
            {
                "folder": str(folder),
                "whole": not faults,
                "images": len(data),
                "sha256": data.manifest_hash,
                "faults": [fault._asdict() for fault in faults],
            }
        )
        return AssetError.exit_code if faults else 0
    if faults:
        more = f", and {len(files) - 1} more files are not right" if len(files) > 1 else ""
        raise AssetError(
            f"{str(folder / files[0])!r} {faults[0].reason}{more}",
            hint="--json names them all; `ppap synthesize` with the same settings mends them",
        )
    click.echo(f"{len(data)} images in {len(data.manifest['shards'])} shards are whole")
    return 0


@command.command("stats")
@_FOLDER
@json_option
def stats(folder: Path, as_json: bool) -> None:
    """Show what a set holds, and the mean and standard deviation of its colors."""
    from ppap_framework.data import SyntheticData

    data = SyntheticData(folder)
    shards, settings = data.manifest["shards"], data.manifest["settings"]
    stages, rows = [], []
    for index, stage in enumerate(data.stages):
        mean, std = (values.tolist() for values in data.moments(index))
        shape = data.image_shape(index)
        stages.append({"name": stage, "image_shape": [*shape], "mean": mean, "std": std})
        moments = (f"{m:+.3f}, {s:.3f}" for m, s in zip(mean, std, strict=True))
        rows.append((stage, "x".join(map(str, shape)), *moments))
    found = {
        "images": len(data),
        "shards": len(shards),
        "bytes": sum(entry["bytes"] for entry in shards),
        "seconds": data.seconds,
        "sha256": data.manifest_hash,
    }
    if as_json:
        print_json({"folder": str(folder), **found, "stages": stages})
        return
    print_fields(str(folder), {**found, "size": size_words(found["bytes"]), **settings})
    print_table(["stage", "shape", *(f"{c} mean, std" for c in ("red", "green", "blue"))], rows)
