"""`ppap diagnose`: what a network understands at which noise level."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from ppap_framework.cli import State
from ppap_framework.cli.backend_options import backend_of, backend_options
from ppap_framework.cli.config import Command, option, problems_of
from ppap_framework.cli.output import print_json, print_table
from ppap_framework.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from ppap_framework import run as api
    from ppap_framework.cli.guide_options import GuideRequest
    from ppap_framework.data import SyntheticData
    from ppap_framework.diagnosis import Diagnosis

__all__ = ["command"]

_NUM = 256
_LEAST = {"num": 2, "levels": 2, "steps": 1, "num_experts": 1, "batch": 1, "threads": 1}


@click.command("diagnose", cls=Command)
@backend_options
@option("--guider", required=True, metavar="NAME", help="The network to look into.")
@option("--target", help="What its gradients shall lead to: as in `ppap run`.")
@option("--guider-model", help="Which network, where the guider knows several.")
@option("--guider-checkpoint", help="Its weights, by name or path.")
@option(
    "--guider-option",
    multiple=True,
    metavar="KEY=VALUE",
    help="The guider's own options; `ppap plugins info NAME` lists them.",
)
@option("--loss", help="What its gradients are of, if not its own loss.")
@option(
    "--experts",
    default="auto",
    metavar="auto|none|PATH|NAME",
    help="To be measured beside it; auto takes the newest that match, if there are any.",
)
@option(
    "--allow-mismatch",
    multiple=True,
    metavar="FIELD",
    help="Take experts although they learned from another `backend`, or at another `resolution`.",
)
@option("--data", metavar="FOLDER", help="What `ppap synthesize` drew; drawn anew if left out.")
@option("--num", type=int, help="Images; 256 if left out, or all of a smaller set.")
@option("--steps", type=int, default=25, help="From noise to image, where they are drawn anew.")
@option("--levels", type=int, default=21, help="How many noise levels, the extremes included.")
@option(
    "--num-experts",
    type=int,
    help="For which to propose where they begin; as many as the curve asks for if left out.",
)
@option("--seed", type=int, default=0, help="Noise of image i at timestep t is from (seed, i, t).")
@option("--batch", type=int, default=64, help="How many images at once.")
@option("--out", default="runs/diagnose", metavar="FOLDER", help="Where to write.")
@option("--overwrite", is_flag=True, help="Replace an earlier diagnosis in that folder.")
@option("--device", default="auto", help="Such as cpu or cuda.")
@option("--threads", type=int, help="Threads on the CPU; as torch likes if left out.")
@option("--json", is_flag=True, help="Print the record as JSON.")
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
    from ppap_framework.diagnosis import diagnose

    state = ctx.ensure_object(State)
    job = _prepare(given, problems_of(ctx), state)
    images, clean = _images(job, given, state)
    with _progress(state, "looking") as watch:
        diagnosis = diagnose(
            job.backend,
            job.guide,
            images,
            clean,
            classification=job.classification,
            levels=given["levels"],
            seed=given["seed"],
            num_experts=given["num_experts"],
            batch=given["batch"],
            device=given["device"],
            progress=watch,
        )
    about = _about(job, given)
    paths = diagnosis.save(job.out, about)
    if given["json"]:
        print_json({"folder": str(job.out), **diagnosis.record(), **about})
        return
    _show(diagnosis)
    click.echo(paths[-1])
    if len(paths) == 1 and state.verbosity >= 0:
        _note('matplotlib draws the curves: pip install "ppap-framework[eval]"')


@attrs.frozen(kw_only=True)
class _Job:
    """What is looked into, and where its record goes."""

    backend: api.LoadedBackend
    guide: api.LoadedGuide
    classification: bool
    experts: api.ChosenExperts | None
    data: SyntheticData | None
    num: int
    out: Path


def _prepare(given: dict[str, Any], wrong: Sequence[UsageError], state: State) -> _Job:
    """Everything that can be wrong is found before weights are read, and reported at once."""
    import torch

    from ppap_framework import run as api
    from ppap_framework.cli.guide_options import parse_guides

    problems = api.Problems()
    problems.errors += wrong
    problems.errors += _too_small(given)
    out = Path(given["out"] or ".").expanduser()
    with problems.collected():
        _check_out(out, given["overwrite"])
    with problems.collected():
        api.find_device(given["device"])
    data, backends, guides = [], [], []
    if given["data"] is not None:
        with problems.collected():
            data.append(_data(given["data"], given["num"]))
    if given["backend"] is not None:
        with problems.collected():
            backends.append(backend_of(given))
    values = {
        name: [given[option]] if given[option] is not None else []
        for name, option in (
            ("target", "target"),
            ("model", "guider_model"),
            ("checkpoint", "guider_checkpoint"),
            ("loss", "loss"),
            ("experts", "experts"),
        )
    }
    if given["guider"] is not None:
        if given["guider"].strip() == "none":
            problems.errors.append(
                UsageError("there is no network to look into", hint="name one with --guider")
            )
        wanted = parse_guides([given["guider"]], values, given["guider_option"], problems)
        for request in wanted:
            with problems.collected():
                guides.append(_find(request, given["allow_mismatch"]))
    problems.check()

    if given["threads"] is not None:
        torch.set_num_threads(given["threads"])
    backend = backends[0].load()
    num = given["num"] or (min(_NUM, len(data[0])) if data else _NUM)
    with problems.collected():
        _check_backend(backend, data[0] if data else None, _settings(given, num))
    with problems.collected():
        _check_levels(backend, given)
    loaded = []
    with problems.collected():
        loaded.append(guides[0].load())
    problems.check()
    guide, experts = _with_experts(loaded[0], backend, state)
    if guide.target_is_default and state.verbosity >= 0:
        _note(
            f"{guide.guide.name} aims at {guide.guide.target.label!r}, its default; "
            "--target picks another"
        )
    return _Job(
        backend=backend,
        guide=guide,
        classification=guides[0].spec.task == "classification",
        experts=experts,
        data=data[0] if data else None,
        num=num,
        out=out,
    )


def _too_small(given: dict[str, Any]) -> Iterator[UsageError]:
    for name, least in _LEAST.items():
        value = given[name]
        if value is not None and value < least:
            flag = name.replace("_", "-")
            yield UsageError(
                f"--{flag} must be a whole number from {least}, not {value}",
                hint=f"use {least} or more",
            )


def _check_out(out: Path, overwrite: bool) -> None:
    from ppap_framework import run as api
    from ppap_framework.diagnosis.record import RECORD

    api.check_writable(out)
    if (out / RECORD).exists() and not overwrite:
        raise UsageError(
            f"{str(out)!r} holds an earlier diagnosis",
            hint="--overwrite replaces it, or give another folder with --out",
        )


def _data(folder: str, num: int | None) -> SyntheticData:
    from ppap_framework.data import SyntheticData

    data = SyntheticData(folder)
    least = max(num or 0, _LEAST["num"])
    if len(data) < least:
        raise UsageError(
            f"there are {len(data)} images in {folder!r}, and {least} are needed",
            hint="give a smaller --num, or draw more with `ppap synthesize`",
        )
    return data


def _find(request: GuideRequest, allow_mismatch: Sequence[str]) -> api.FoundGuide:
    from ppap_framework import run as api
    from ppap_framework.cli.guide_options import typed_option

    if request.scale is not None or request.interval is not None:
        raise UsageError(
            f"--guider {request.name} takes no scale and no interval here",
            hint="gradients are looked at as they are, at all noise levels",
        )
    return api.find_guide(
        request.guider,
        target=request.target,
        loss=request.loss,
        model=request.model,
        checkpoint=request.checkpoint,
        options={
            key: typed_option(request.guider, key, text) for key, text in request.options.items()
        },
        experts=request.experts or "auto",
        allow_mismatch=allow_mismatch,
    )


def _settings(given: dict[str, Any], num: int) -> api.Settings:
    """How images are drawn where there are none."""
    from ppap_framework import run as api

    return api.Settings(
        num=num,
        steps=given["steps"],
        seed=given["seed"],
        batch=given["batch"],
        device=given["device"],
    )


def _check_backend(
    backend: api.LoadedBackend, data: SyntheticData | None, settings: api.Settings
) -> None:
    """Accept a backend that drew the images, or that can draw them."""
    from ppap_framework import run as api
    from ppap_framework.errors import AssetError
    from ppap_framework.experts import backend_sha256

    if data is None:
        settings.check()
        api.check_backend(backend, settings)
    elif data.manifest["settings"]["backend"]["weights_sha256"] != backend_sha256(backend):
        raise AssetError(
            f"the images in {str(data.path)!r} were drawn by a backend with other weights",
            hint="draw them with `ppap synthesize`, or leave out --data",
        )


def _check_levels(backend: api.LoadedBackend, given: dict[str, Any]) -> None:
    from ppap_framework.diagnosis import evenly_spaced
    from ppap_framework.experts import NoiseRanges

    schedule = backend.stages[0].schedule
    evenly_spaced(schedule, given["levels"])
    NoiseRanges.equal(schedule, given["num_experts"] or 1)


def _with_experts(
    loaded: api.LoadedGuide, backend: api.LoadedBackend, state: State
) -> tuple[api.LoadedGuide, api.ChosenExperts | None]:
    """The guide with a request for the very experts that were chosen, and these."""
    wanted, name = loaded.experts, loaded.guide.name
    chosen = wanted.choose(name, loaded.guide.model, backend, "noisy")
    missed = chosen is None and wanted.source == "auto" and not wanted.noise_aware
    if missed and state.verbosity >= 0:
        _note(f"no experts of {name} are here for this backend, so it is measured alone")
    return attrs.evolve(loaded, experts=attrs.evolve(wanted, source=chosen or "none")), chosen


def _images(job: _Job, given: dict[str, Any], state: State) -> tuple[Tensor, Tensor]:
    """Images of the guided stage, and of the last one: (N, 3, H, W), uint8."""
    import torch

    from ppap_framework import run as api

    if job.data is not None:
        rows = range(job.num)
        images = job.data.images(rows, 0)
        return images, images if len(job.data.stages) == 1 else job.data.images(rows, -1)
    with _progress(state, "drawing") as watch:
        result = api.draw(
            api.plan(job.backend, [], _settings(given, job.num)),
            progress=watch and (lambda done: watch(done.steps, done.of)),
        )
    if result.interrupted:
        raise KeyboardInterrupt
    images = ((result.images + 1.0) * 127.5).round().to(torch.uint8)
    return images, images


def _about(job: _Job, given: dict[str, Any]) -> dict[str, Any]:
    """What was measured, and with what: as JSON."""
    from ppap_framework.diagnosis.environment import environment, provenance
    from ppap_framework.run import find_device

    guide, backend = job.guide, job.backend.origin
    return {
        "backend": provenance(backend),
        "guide": provenance(guide.origin)
        | {
            "loss": guide.loss_name,
            "target": guide.guide.target.label,
            "target_given": guide.target_source,
            "target_is_default": guide.target_is_default,
        },
        "experts": None if job.experts is None else job.experts.record(),
        "data": {"sha256": job.data.manifest_hash, "drawn_in_steps": None}
        if job.data
        else {"sha256": None, "drawn_in_steps": given["steps"]},
        "batch": given["batch"],
        "device": str(find_device(given["device"])),
        "environment": environment([backend, guide.origin]),
        "command": ["ppap", *sys.argv[1:]],
    }


def _show(diagnosis: Diagnosis) -> None:
    """Print a row for each level, and what is proposed."""
    columns: dict[str, Callable[[Any], str]] = {
        "same class": lambda reading: _fixed(reading.agreement.value),
        "confidence": lambda reading: _fixed(reading.confidence.value),
        "distance": lambda reading: f"{reading.disagreement.value:.3g}",
        "gradient": lambda reading: f"{reading.gradient_norm.value:.3g}",
        "cosine": lambda reading: _fixed(reading.cosine.value),
    }
    if diagnosis.clean.confidence is None:
        del columns["same class"], columns["confidence"]
    rows = []
    for k, (t, log_snr) in enumerate(zip(diagnosis.timesteps, diagnosis.log_snr, strict=True)):
        cells = [shown(diagnosis.untouched[k]) for shown in columns.values()]
        if diagnosis.experts is not None:
            others = [shown(diagnosis.experts[k]) for shown in columns.values()]
            cells = [f"{cell} → {other}" for cell, other in zip(cells, others, strict=True)]
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
    """With so many digits behind the point, and no -0."""
    return f"{round(number, digits) + 0.0:.{digits}f}"


@contextmanager
def _progress(state: State, what: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr where that is a terminal."""
    if state.verbosity < 0 or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), TextColumn("{task.percentage:.0f} %"))
    with Progress(
        *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def _note(text: str) -> None:
    click.echo(f"ppap: {text}", err=True)
