from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from ppap_framework.cli.backend_options import backend_of, backend_options, settings_of
from ppap_framework.cli.config import Command, option, problems_of
from ppap_framework.cli.output import json_option, note, print_json, print_table
from ppap_framework.cli.progress import progress
from ppap_framework.errors import AssetError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from ppap_framework.data import SyntheticData
    from ppap_framework.diagnosis import Diagnosis
    from ppap_framework.guidance import Guide
    from ppap_framework.run import LoadedBackend, Plan
    from ppap_framework.runtime import Watch

_NUM = 256


@click.command("diagnose", cls=Command)
@backend_options
@option("--guider", required=True, metavar="NAME", help="The network to measure.")
@option("--target", help="Target of its gradients, as in `ppap run`.")
@option("--guider-model", help="Which network, if the guider knows several.")
@option("--guider-checkpoint", help="Its weights, by name or path.")
@option("--guider-option", multiple=True, metavar="KEY=VALUE", help="Option of the guider.")
@option("--loss", help="The loss, if not the guider's own.")
@option(
    "--experts",
    default="auto",
    metavar="auto|none|PATH|NAME",
    help="Experts to measure beside it; auto takes the newest that match, if there are any.",
)
@option("--allow-mismatch", multiple=True, metavar="FIELD", help="As in `ppap run`.")
@option(
    "--data", metavar="FOLDER", help="A set of `ppap synthesize`; without it, images are drawn."
)
@option("--num", type=click.IntRange(2), help="Images; by default 256, or all of a smaller set.")
@option("--steps", type=int, default=25, help="Steps from noise to image, if images are drawn.")
@option("--levels", type=click.IntRange(2), default=21, help="Noise levels, extremes included.")
@option("--num-experts", type=click.IntRange(1), help="Experts to propose; by default as needed.")
@option("--seed", type=int, default=0, help="Noise of image i at timestep t is from (seed, i, t).")
@option("--batch", type=int, default=64, help="Batch size.")
@option("--out", default="runs/diagnose", metavar="FOLDER", help="Where to write.")
@option("--overwrite", is_flag=True, help="Replace an earlier diagnosis in that folder.")
@option("--device", default="auto", help="Such as cpu or cuda.")
@option("--threads", type=int, help="Threads on the CPU; by default torch's own choice.")
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

    from ppap_framework.cli.guide_options import guide_of
    from ppap_framework.diagnosis import diagnose, evenly_spaced
    from ppap_framework.diagnosis.record import RECORD
    from ppap_framework.experts import NoiseRanges, backend_sha256
    from ppap_framework.registry import registry
    from ppap_framework.run import check_writable, plan

    sampling, compute = settings_of(given)
    problems = problems_of(ctx)
    out = Path(given["out"] or ".").expanduser()
    with problems.collected():
        check_writable(out)
        if (out / RECORD).exists() and not given["overwrite"]:
            raise UsageError(
                f"{str(out)!r} holds an earlier diagnosis",
                hint="--overwrite replaces it, or give another folder with --out",
            )
    problems.errors += [*sampling.problems(num=1), *compute.problems()]
    data = found = run = request = None
    with problems.collected():
        data = _data(given["data"], given["num"] or 2)
    with problems.collected():
        found = None if given["backend"] is None else backend_of(given)
    with problems.collected():
        request = None if given["guider"] is None else guide_of(given)
    problems.check()
    assert found is not None
    assert request is not None

    if compute.threads is not None:
        torch.set_num_threads(compute.threads)
    backend = found.load()
    num = given["num"] or (_NUM if data is None else min(_NUM, len(data)))
    with problems.collected():
        if data is None:
            run = plan(backend, (), num, sampling, compute)
        elif data.manifest["settings"]["backend"]["weights_sha256"] != backend_sha256(backend):
            raise AssetError(
                f"the images in {str(data.path)!r} were drawn by a backend with other weights",
                hint="draw them with `ppap synthesize`, or leave out --data",
            )
    with problems.collected():
        schedule = backend.stages[0].schedule
        evenly_spaced(schedule, given["levels"])
        NoiseRanges.equal(schedule, given["num_experts"] or 1)
    with problems.collected():
        guide = request.load()
    problems.check()
    guide = _with_experts(guide, backend)
    with progress() as watch:
        if run is not None:
            images, clean = _draw(run, watch)
        else:
            assert data is not None
            images, clean = (data.images(range(num), stage) for stage in (0, -1))
        diagnosis = diagnose(
            backend,
            guide,
            images,
            clean,
            classification=registry().spec("guider", str(request.source)).task == "classification",
            levels=given["levels"],
            seed=given["seed"],
            num_experts=given["num_experts"],
            batch=compute.fixed_batch,
            device=compute.place,
            progress=watch,
        )
    about = {
        **_about(backend, guide),
        "data": {
            "sha256": data and data.manifest_hash,
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
        note('matplotlib draws the curves: pip install "ppap-framework[eval]"')


def _data(folder: str | None, least: int) -> SyntheticData | None:
    from ppap_framework.data import SyntheticData

    data = None if folder is None else SyntheticData(folder)
    if data is not None and len(data) < least:
        raise UsageError(
            f"there are {len(data)} images in {folder!r}, and {least} are needed",
            hint="give a smaller --num, or draw more with `ppap synthesize`",
        )
    return data


def _with_experts(guide: Guide, backend: LoadedBackend) -> Guide:
    from ppap_framework.experts import choose_experts

    chosen = choose_experts(
        guide.experts,
        guide.name,
        guide.model,
        backend,
        noise_aware=guide.noise_aware,
        allow_mismatch=guide.allow_mismatch,
    )
    if chosen is None and guide.experts == "auto" and not guide.noise_aware:
        note(f"no experts of {guide.name} are here for this backend, so it is measured alone")
    if guide.target_is_default and guide.target is not None:
        note(f"{guide.name} aims at {guide.target.label!r}, its default; --target picks another")
    return attrs.evolve(guide, experts=chosen)


def _draw(run: Plan, watch: Watch | None) -> tuple[Tensor, Tensor]:
    """Images of the first stage and of the last one, each (N, 3, H, W), uint8."""
    import numpy as np
    import torch

    from ppap_framework.pixels import to_uint8
    from ppap_framework.run import drawing

    batches, size = [], run.compute.fixed_batch
    with drawing(run, watch) as draw:
        for start in range(0, run.num, size):
            stages = list(draw(range(start, min(start + size, run.num))).values())
            batches.append((to_uint8(stages[0]), to_uint8(stages[-1])))
    first, last = (torch.from_numpy(np.concatenate(stage)) for stage in zip(*batches, strict=True))
    return first.permute(0, 3, 1, 2), last.permute(0, 3, 1, 2)


def _about(backend: LoadedBackend, guide: Guide) -> dict[str, Any]:
    """The networks, the experts and the machine, JSON."""
    from ppap_framework.diagnosis.environment import environment, provenance
    from ppap_framework.experts import BundleFile
    from ppap_framework.run import guide_origin

    origins = [backend.origin, guide_origin(guide)]
    return {
        "backend": provenance(origins[0]),
        "guide": {
            **provenance(origins[1]),
            "loss": guide.loss_name,
            "target": guide.target and guide.target.label,
            "target_given": guide.target_source,
            "target_is_default": guide.target_is_default,
        },
        "experts": guide.experts.record() if isinstance(guide.experts, BundleFile) else None,
        "environment": environment(origins),
    }


def _show(diagnosis: Diagnosis) -> None:
    columns: dict[str, Callable[[Any], str]] = {
        "same class": lambda reading: _fixed(reading.agreement.value),
        "confidence": lambda reading: _fixed(reading.confidence.value),
        "distance": lambda reading: f"{reading.disagreement.value:.3g}",
        "gradient": lambda reading: f"{reading.gradient_norm.value:.3g}",
        "cosine": lambda reading: _fixed(reading.cosine.value),
    }
    if diagnosis.clean_confidence is None:
        del columns["same class"], columns["confidence"]
    rows = []
    for k, (t, log_snr) in enumerate(zip(diagnosis.timesteps, diagnosis.log_snr, strict=True)):
        readings = [diagnosis.untouched[k]]
        if diagnosis.experts is not None:
            readings.append(diagnosis.experts[k])
        cells = [" → ".join(map(shown, readings)) for shown in columns.values()]
        rows.append((str(t), _fixed(log_snr, 1), *cells))
    print_table(["t", "log-SNR", *columns], rows)
    if diagnosis.experts is not None:
        click.echo("untouched network → its experts")
    if diagnosis.proposal:
        starts = ",".join(map(str, diagnosis.proposal))
        click.echo(f"{len(diagnosis.proposal) + 1} experts could begin at --boundaries {starts}")
    else:
        click.echo("1 expert could own all timesteps")


def _fixed(number: float, digits: int = 2) -> str:
    """A number with fixed digits after the point, and no -0."""
    return f"{round(number, digits) + 0.0:.{digits}f}"
