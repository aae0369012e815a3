"""`ppap diagnose`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from ppap_framework.cli.config import (
    Command,
    backend_options,
    guide_options,
    option,
    problems_of,
    settings,
)
from ppap_framework.cli.output import json_option, note, print_json, print_table, progress
from ppap_framework.cli.run import note_of_target
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.files import check_writable, expanded

if TYPE_CHECKING:
    from ppap_plugin_diagnose.diagnosis import Diagnosis

_NUM = 256
_COLUMNS = {
    "same class": "agreement",
    "confidence": "confidence",
    "distance": "disagreement",
    "gradient": "gradient_norm",
    "cosine": "cosine",
}
"""Figures of a reading by their headings."""


@click.command("diagnose", cls=Command)
@backend_options
@guide_options
@option("--target", help="Target of its gradients, as in `ppap run`.")
@option("--experts", default="auto", metavar="auto|none|PATH|NAME", help="As in `ppap run`.")
@option("--data", metavar="FOLDER|URL", help="A synthetic set; without it, images are drawn.")
@option("--num", type=click.IntRange(2), help="Images; by default 256, or all of a smaller set.")
@option("--levels", type=click.IntRange(2), default=21, help="Noise levels, extremes included.")
@option("--num-experts", type=click.IntRange(1), help="Experts to propose; by default as needed.")
@option("--out", default="runs/diagnose", metavar="FOLDER", help="Where to write.")
@settings("allow-mismatch", "seed", "device", "threads", "overwrite", steps=25, batch=64)
@json_option
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> None:
    """Measure what a network understands of noised images, and what its experts do.

    The network's answers to clean images are the measure; no labels are needed. Writes
    diagnose.json, and its curves as diagnose.png and .svg; prints the figures at each noise level,
    and where experts could begin.

    \b
    ppap diagnose --backend adm --guider classifier
    ppap diagnose --backend adm --guider classifier --data runs/synthetic --experts none
    """
    import torch

    from ppap_framework import run
    from ppap_framework.cli.guide_options import backend_of, guide_of, settings_of
    from ppap_framework.data import SyntheticData
    from ppap_framework.diagnosis import evenly_spaced
    from ppap_framework.experts import NoiseRanges, backend_sha256
    from ppap_framework.pixels import to_uint8
    from ppap_framework.registry import registry
    from ppap_plugin_diagnose.diagnose import diagnose
    from ppap_plugin_diagnose.diagnosis import RECORD, environment, provenance

    sampling, compute = settings_of(given, sampler="ddim")
    problems, out = problems_of(ctx), expanded(given["out"])
    with problems.collected():
        check_writable(out)
        if (out / RECORD).exists() and not given["overwrite"]:
            fault = f"{str(out)!r} holds an earlier diagnosis"
            raise UsageError(fault, hint="add --overwrite, or another --out")
    problems.errors += [*sampling.problems(num=1), *compute.problems()]
    data = plan = None
    with problems.collected():
        data = given["data"] and SyntheticData(given["data"])
        if data and len(data) < (given["num"] or 2):
            fault = f"there are {len(data)} images in {given['data']!r}, and more are needed"
            raise UsageError(fault, hint="lower --num, or draw more with `ppap synthesize`")
    found = given["backend"] and problems.attempt(backend_of, given)
    request = given["guider"] and problems.attempt(guide_of, given)
    problems.check()

    if compute.threads is not None:
        torch.set_num_threads(compute.threads)
    backend = found.load()
    num = given["num"] or min(_NUM, len(data) if data else _NUM)
    with problems.collected():
        if not data:
            plan = run.plan(backend, (), num, sampling, compute)
        elif data.manifest["settings"]["backend"]["weights_sha256"] != backend_sha256(backend):
            fault = f"the images in {str(data.path)!r} were drawn by a backend with other weights"
            raise AssetError(fault, hint="draw them with `ppap synthesize`, or leave out --data")
    schedule = backend.stages[0].schedule
    problems.attempt(evenly_spaced, schedule, given["levels"])
    problems.attempt(NoiseRanges.equal, schedule, given["num_experts"] or 1)
    guide = problems.attempt(request.load)
    problems.check()
    wanted, guide = guide.experts, guide.with_experts(backend, None)
    if guide.chosen is None and wanted == "auto" and not guide.noise_aware:
        note(f"no experts of {guide.name} are here for this backend, so it is measured alone")
    note_of_target(guide)
    with progress() as watch:
        if plan:
            drawn = run.draw(plan, progress=watch)
            if drawn.interrupted:
                raise KeyboardInterrupt
            stages = [*drawn.guided.earlier.values(), drawn.images]
            pictures = [torch.from_numpy(to_uint8(x)).permute(0, 3, 1, 2) for x in stages]
        else:
            pictures = [data.images(range(num), stage) for stage in (0, -1)]
        how = {name: given[name] for name in ("levels", "seed", "num_experts")}
        how |= {"batch": compute.fixed_batch, "device": compute.place, "progress": watch}
        task = registry().spec("guider", str(request.source)).task
        how["classification"] = task == "classification"
        diagnosis = diagnose(backend, guide, pictures[0], pictures[-1], **how)
    origins = [backend.origin, run.guide_origin(guide)]
    about = {
        "backend": provenance(origins[0]),
        "guide": {
            **provenance(origins[1]),
            "loss": guide.loss_name,
            "target": guide.target and guide.target.label,
            "target_given": guide.target_source,
            "target_is_default": guide.target_is_default,
        },
        "experts": guide.chosen.record() if guide.chosen else None,
        "environment": environment(origins),
        "data": {
            "sha256": data.manifest_hash if data else None,
            "drawn_in_steps": None if data else given["steps"],
        },
        "batch": compute.batch,
        "device": str(compute.place),
        "command": ["ppap", *sys.argv[1:]],
    }
    paths = diagnosis.save(out, about)
    if given["as_json"]:
        print_json({"folder": str(out), **diagnosis.record(), **about})
        return
    _show(diagnosis)
    click.echo(paths[-1])
    if len(paths) == 1:
        note('nothing here draws the curves: pip install "ppap-framework[eval]"')


def _show(diagnosis: Diagnosis) -> None:
    readings = [found for found in (diagnosis.untouched, diagnosis.experts) if found]
    shown = {t: n for t, n in _COLUMNS.items() if getattr(readings[0][0], n) is not None}
    rows = []
    for t, snr, *row in zip(diagnosis.timesteps, diagnosis.log_snr, *readings, strict=True):
        figures = ([f"{getattr(reading, n).value:.3g}" for reading in row] for n in shown.values())
        rows.append((t, f"{snr:.3g}", *map(" → ".join, figures)))
    print_table(["t", "log-SNR", *shown], rows)
    if diagnosis.experts is not None:
        click.echo("untouched network → its experts")
    starts = ",".join(map(str, diagnosis.proposal))
    number = f"{len(diagnosis.proposal) + 1} experts could begin at --boundaries {starts}"
    click.echo(number if starts else "1 expert could own all timesteps")
