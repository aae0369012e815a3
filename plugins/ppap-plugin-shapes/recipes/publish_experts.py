"""Put trained experts into the package: the bundle, and the card that goes with it.

ppap synthesize --backend adm --num 4096 --seed 500 --out data
ppap transfer --backend adm --guider classifier --data data --out experts
python publish_experts.py experts --name shapes-classifier-5 --summary "..."
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import attrs
import click
from publish import WEIGHTS

from ppap_framework.experts import SUFFIX, read_bundle_info, verify_bundle
from ppap_framework.files import file_sha256
from ppap_framework.plugin import ExpertBundle


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--name", required=True, help="Of the bundle, as in `--experts NAME`.")
@click.option("--summary", required=True, help="One line.")
@click.option(
    "--weights",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=WEIGHTS,
    help="The folder `weights` of the package.",
    show_default="that of this plugin",
)
def main(folder: Path, name: str, summary: str, weights: Path) -> None:
    """Publish the experts that `ppap transfer` or `ppap experts join` left in FOLDER."""
    weights = weights.resolve()
    (source,) = folder.glob(f"*{SUFFIX}")
    verify_bundle(source)
    info = read_bundle_info(source)
    training = folder / "transfer.json"  # which experts that were joined do not have
    seconds = json.loads(training.read_text())["seconds"] if training.is_file() else None
    target = weights / f"{name}{SUFFIX}"
    partial = target.with_suffix(".partial")
    shutil.copyfile(source, partial)
    partial.replace(target)
    card = ExpertBundle(
        name=name,
        guider=info.guide.component,
        backend=info.backend.component,
        summary=summary,
        uri=f"package://{target.relative_to(weights.parents[1]).as_posix()}",
        sha256=file_sha256(target),
        size=target.stat().st_size,
        licence="Apache-2.0",
    )
    record = {
        "experts": attrs.asdict(card),
        "training": {
            "recipe": info.recipe,
            "seconds": seconds,
            "data_sha256": info.data_sha256,
        },
        "metrics": info.metrics,
    }
    partial.write_text(json.dumps(record, indent=1) + "\n")
    partial.replace(weights / f"{name}.json")
    click.echo(target)


if __name__ == "__main__":
    main()
