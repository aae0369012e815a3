"""`ppap run`: draw images, steered by guides."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ppap_framework.cli import State
from ppap_framework.cli.backend_options import backend_of, backend_options
from ppap_framework.cli.config import Command, option, problems_of
from ppap_framework.cli.output import print_json
from ppap_framework.errors import UsageError

if TYPE_CHECKING:
    from ppap_framework import run as api
    from ppap_framework.cli.guide_options import GuideRequest

__all__ = ["command"]

_RUNS = Path("runs")
_INTERRUPTED = 130


def _scale(value: object) -> float | Literal["auto"]:
    from ppap_framework.cli.guide_options import read_scale

    try:
        return read_scale(str(value))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is neither a number nor auto.") from error


def _batch(value: object) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    try:
        return int(str(value))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is neither a whole number nor auto.") from error


def _per_guide(name: str, text: str) -> Callable[[Any], Any]:
    return option(name, multiple=True, help=f"{text} With several guides: GUIDE=...")


@click.command("run", cls=Command)
@backend_options
@option("--offline", is_flag=True, help="Download nothing.")
@option("--prompt", help="What the diffusion model is told, where it takes a prompt.")
@option(
    "--cfg",
    metavar="NUMBER",
    help="How much the prompt weighs: the scale of classifier-free guidance, where the diffusion "
    "model has that option.",
)
@option("--stage", metavar="NAME", help="Stop at this stage of the model, such as base.")
@option(
    "--guider",
    multiple=True,
    metavar="NAME[=SCALE][:LO-HI]",
    help="What steers it, how hard, and from which to which noise level (t/T, 1 is noise); "
    "repeat it for several guides. Left out, or `none`: nothing steers.",
)
@_per_guide("--target", "What the guide is to see: a name, an index, or the path of a picture.")
@_per_guide("--guider-model", "The guide's network, where it knows several.")
@_per_guide("--guider-checkpoint", "The guide's weights, by name or path.")
@option(
    "--guider-option",
    multiple=True,
    metavar="[GUIDE.]KEY=VALUE",
    help="The guide's own options; `ppap plugins info NAME` lists them.",
)
@_per_guide("--loss", "What the guide descends, if not its own loss.")
@option(
    "--scale",
    type=_scale,
    metavar="NUMBER|auto",
    help="How hard guides pull that have no =SCALE. auto is as their experts were calibrated, each "
    "at its own noise levels: the default where they were, and else it is 4.",
)
@_per_guide(
    "--experts",
    "What reads noise in the guide's place: a bundle's name or path, none, or auto, the default, "
    "for the newest bundle that matches.",
)
@option(
    "--allow-mismatch",
    multiple=True,
    metavar="FIELD",
    help="Use experts although they learned from another `backend`, or at another `resolution`.",
)
@option("--steps", type=int, default=25, help="Steps from noise to image.")
@option("--sampler", type=click.Choice(["ddim", "ddpm"]), default="ddim", help="How to step.")
@option("--eta", type=float, default=0.0, help="Fresh noise in DDIM, from 0 to 1.")
@option(
    "--through",
    type=click.Choice(["noisy", "clean"]),
    default="noisy",
    help="Where guides look: at the noisy image or, through the denoiser, at its prediction.",
)
@option("--normalize", is_flag=True, help="Bring each guide's gradient to unit size first.")
@option(
    "--conflicts",
    type=click.Choice(["keep", "remove"]),
    default="keep",
    help="What of a guide's pull points against another's.",
)
@option("--num", type=int, default=4, help="How many images.")
@option(
    "--batch",
    type=_batch,
    metavar="NUMBER|auto",
    default=8,
    help="How many at once; auto is as many as memory has room for.",
)
@option("--seed", type=int, default=0, help="Image i is drawn from (seed, i).")
@option(
    "--compare",
    is_flag=True,
    help="Draw the same noise without guides, too; and without experts, where these guide.",
)
@option("--out", metavar="FOLDER", help="Where to write; a new folder in runs/ if left out.")
@option("--overwrite", is_flag=True, help="Replace an earlier run in that folder.")
@option("--device", default="auto", help="Such as cpu, cuda, cuda:1 or mps.")
@option(
    "--offload",
    is_flag=True,
    help="Keep on the device what is at work, and the rest on the CPU: less memory, more time.",
)
@option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    help="Of the networks' products; bfloat16 is faster where the processor can.",
)
@option(
    "--compile",
    is_flag=True,
    help="Let torch compile the networks first: takes a while, and pays where much is drawn.",
)
@option("--threads", type=int, help="Threads on the CPU; as torch likes if left out.")
@option("--dry-run", is_flag=True, help="Show what would be done and what it costs; draw nothing.")
@option("--json", is_flag=True, help="Print the record of the run as JSON.")
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> int:
    """Draw images from a diffusion model, steered by guides.

    Writes 000.png and so on, what the guides see in them, a labelled grid.png, and run.json; prints
    the path of the grid.

    \b
    ppap run --backend adm --guider classifier --target "red cube" --num 8
    ppap run --backend adm --guider depth=2 --guider classifier=4:0.2-0.9 \\
        --target depth=ref.png --target classifier=cube
    """
    state = ctx.ensure_object(State)
    run = _prepare(given, problems_of(ctx))
    if not state.verbosity < 0:
        for loaded in run.guides:
            if loaded.target_is_default:
                _note(
                    f"{loaded.guide.name} aims at {loaded.guide.target.label!r}, "
                    "its default; --target picks another"
                )
    if given["offload"] and run.device.type == "cpu":
        _note("--offload changes nothing on the CPU")
    if given["cfg"] is not None and not given["prompt"]:
        _note("--cfg weighs the prompt, and there is none: it changes nothing")
    if given["compile"] and not given["dry_run"]:
        _note("networks are compiled as they are first used, which may take minutes")
    if given["dry_run"]:
        from ppap_framework.cli.run_plan import show_plan

        show_plan(run, given["json"])
        return 0
    return _draw(run, given, state)


def _prepare(given: dict[str, Any], wrong: Sequence[UsageError]) -> api.Plan:
    """Everything that can be wrong is found before weights are read, and reported at once."""
    import attrs

    from ppap_framework import run as api
    from ppap_framework.cli.guide_options import parse_guides

    problems = api.Problems()
    problems.errors += wrong
    values = {
        "target": given["target"],
        "model": given["guider_model"],
        "checkpoint": given["guider_checkpoint"],
        "loss": given["loss"],
        "experts": given["experts"],
    }
    requests = parse_guides(given["guider"], values, given["guider_option"], problems)
    fields = attrs.fields_dict(api.Settings)
    settings = api.Settings(**{k: v for k, v in given.items() if k in fields and v is not None})
    with problems.collected():
        settings.check()
    with problems.collected():
        _set_threads(given["threads"])
    with problems.collected():
        _check_out(given["out"], given["overwrite"])
    offline = given["dry_run"] or given["offline"]
    backends, guides = [], []
    if given["backend"] is not None:
        with problems.collected():
            cfg = [f"cfg={given['cfg']}"] if given["cfg"] is not None else []
            backends.append(backend_of(given, *cfg, offline=offline))
    for request in requests:
        with problems.collected():
            guide = _find(request, given["scale"], given["allow_mismatch"], offline)
            guide.experts.check(guide.name, settings.through)
            guides.append(guide)
    problems.check()

    loaded, aimed = [], []
    for backend in backends:
        with problems.collected():
            loaded.append(backend.load())
            api.check_backend(loaded[0], settings)
    for guide in guides:
        with problems.collected():
            aimed.append(guide.load())
    problems.check()
    return api.plan(loaded[0], aimed, settings)


def _find(
    request: GuideRequest, scale: api.Scale, allow_mismatch: Sequence[str], offline: bool
) -> api.FoundGuide:
    from ppap_framework import run as api
    from ppap_framework.cli.guide_options import typed_option

    options = {
        key: typed_option(request.guider, key, text) for key, text in request.options.items()
    }
    return api.find_guide(
        request.guider,
        target=request.target,
        scale=scale if request.scale is None else request.scale,
        interval=request.interval or (0.0, 1.0),
        loss=request.loss,
        model=request.model,
        checkpoint=request.checkpoint,
        options=options,
        experts=request.experts or "auto",
        allow_mismatch=allow_mismatch,
        offline=offline,
    )


def _set_threads(threads: int | None) -> None:
    import torch

    if threads is not None:
        if threads < 1:
            raise UsageError(
                f"threads must be a whole number from 1, not {threads}", hint="or leave it out"
            )
        torch.set_num_threads(threads)


def _check_out(out: str | None, overwrite: bool) -> None:
    from ppap_framework import run as api

    if out is None:
        if overwrite:
            raise UsageError("--overwrite goes with --out", hint="name the folder with --out")
        api.check_writable(_RUNS)
    elif not out.strip():
        raise UsageError("--out is empty", hint="name a folder, or leave it out")
    else:
        api.check_folder(Path(out).expanduser(), overwrite=overwrite)


def _draw(run: api.Plan, given: dict[str, Any], state: State) -> int:
    from ppap_framework import run as api

    out = given["out"]
    path = Path(out).expanduser() if out else api.fresh_folder(_RUNS, run)
    folder = api.RunFolder.create(
        run, path, overwrite=given["overwrite"], command=["ppap", *sys.argv[1:]]
    )
    try:
        with _terminable(), _progress(state) as watch:
            result = api.draw(run, progress=watch, finished=folder.add)
        grid = folder.finish(result)
    except BaseException as error:
        folder.fail(error)
        raise
    for guide in result.stats.guidance.guides:
        if guide.skipped:
            _note(f"{guide.name}: {guide.skipped} gradients were not finite and left out")
    if lost := result.stats.guidance.denoiser_skipped:
        _note(f"{lost} gradients through the denoiser were not finite and left out")
    if given["json"]:
        print_json({"folder": str(path), **folder.record})
    elif grid:
        click.echo(grid)
    if result.interrupted:
        _note(f"interrupted; {len(result.images)} of {run.settings.num} images are in {path}")
        return _INTERRUPTED
    return 0


@contextmanager
def _terminable() -> Iterator[None]:
    """A context in which SIGTERM ends a run as Ctrl-C does, so that its record says so."""
    try:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _progress(state: State) -> Iterator[Callable[[api.Progress], None] | None]:
    """A bar on stderr where that is a terminal."""
    if state.verbosity < 0 or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("drawing"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
    with Progress(
        *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True
    ) as bar:
        task = bar.add_task("drawing", total=None)
        yield lambda progress: bar.update(task, completed=progress.steps, total=progress.of)


def _note(text: str) -> None:
    click.echo(f"ppap: {text}", err=True)
