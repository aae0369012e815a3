from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ppap_framework.cli.config import (
    Command,
    NumberOrAuto,
    backend_options,
    option,
    options,
    problems_of,
    settings,
)
from ppap_framework.cli.output import note, print_fields, print_json, progress
from ppap_framework.errors import Problems
from ppap_framework.files import check_writable, expanded

if TYPE_CHECKING:
    from ppap_framework.guidance import Guide
    from ppap_framework.run import Plan

_RUNS = Path("runs")

_PER_GUIDE = {
    "--target": "What the guide should see: a name, an index, or a picture's path. With several "
    "guides, type GUIDE=... in this option and the next ones.",
    "--guider-model": "The guide's network, if the guider knows several.",
    "--guider-checkpoint": "The guide's weights, by name or path.",
    "--loss": "Loss that the guide descends, if not the guider's own.",
    "--experts": "Experts that read noisy images in the guide's place: the name or path of a "
    "bundle, none, or auto, the default, for the best bundle that matches.",
}


@click.command("run", cls=Command)
@backend_options
@settings("offline")
@option("--prompt", help="Prompt, for a diffusion model that takes one.")
@option("--cfg", metavar="NUMBER", help="Weight of the prompt: scale of classifier-free guidance.")
@option("--stage", metavar="NAME", help="Last stage of the diffusion model to run, such as base.")
@option("--init-image", metavar="PATH", help="Picture to begin with, in place of noise.")
@option("--strength", type=float, help="How far it is noised, 0 to 1; usually 0.6, with --mask 1.")
@option("--mask", metavar="PATH", help="Where it is drawn anew: white. Black pixels are kept.")
@option("--resample", type=int, help="With --mask, walks of each part of the steps; usually 5.")
@option("--jump-length", default=5, help="Steps of such a part.")
@option(
    "--guider",
    multiple=True,
    metavar="NAME[=SCALE][:LO-HI]",
    help="Network that guides, its guidance scale (see --scale), and the noise levels at which it "
    "acts (t/T; 1 is noise). Repeat it for several guides. Without it, or with `none`, images are "
    "unguided.",
)
@options(*(option(name, multiple=True, help=text) for name, text in _PER_GUIDE.items()))
@option("--guider-option", multiple=True, metavar="[GUIDE.]KEY=VALUE", help="Option of the guider.")
@option("--loss-option", multiple=True, metavar="[GUIDE.]KEY=VALUE", help="Option of the loss.")
@option(
    "--scale",
    type=NumberOrAuto(float),
    metavar="NUMBER|raw:NUMBER|auto",
    help="Guidance scale for guides without =SCALE. A number multiplies the calibrated scale at "
    "each noise level if the guide's experts have a curve, and is absolute otherwise; raw:NUMBER "
    "is always absolute. auto: the curve times a default; a guide that has none is calibrated "
    "first, once. By default auto if there is a curve, and 4 otherwise.",
)
@settings("allow-mismatch", "steps", "sampler", "eta")
@option(
    "--through",
    choices=["noisy", "clean", "detached"],
    default=None,
    help="The image that guides see, by default what their experts read, or the noisy one.",
)
@option("--normalize", is_flag=True, help="Scale each guide's gradient to unit size first.")
@option("--conflicts", choices=["keep", "remove"], help="Gradients that oppose another guide's.")
@option("--guide-every", default=1, metavar="K", help="Let guides look at every K-th step only.")
@option("--moments", nargs=2, type=float, metavar="B1 B2", help="Average gradients as Adam does.")
@settings("seed", num=4)
@option("--batch", type=NumberOrAuto(int), metavar="NUMBER|auto", default=8, help="Batch size.")
@option("--compare", is_flag=True, help="Draw also without guides, and without their experts.")
@option("--out", metavar="FOLDER", help="Output folder; by default a new one in runs/.")
@settings("overwrite", "device", "threads", "precision")
@option("--offload", is_flag=True, help="Keep idle networks on the CPU: less memory, more time.")
@option("--compile", is_flag=True, help="Compile the networks first; for many images.")
@option("--dry-run", is_flag=True, help="Show the plan and its cost; draw nothing.")
@settings("json")
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> None:
    """Draw images from a diffusion model, steered by guides.

    Writes 000.png and so on, what the guides see in them, a labelled grid.png, and run.json; prints
    the path of the grid.

    \b
    ppap run --backend adm --guider classifier --target "red cube" --num 8
    ppap run --backend adm --guider depth=2 --guider classifier=4:0.2-0.9 \\
        --target depth=ref.png --target classifier=cube
    """
    from ppap_framework import run
    from ppap_framework.processes import Processes

    plan = _prepare(given, problems_of(ctx))
    for guide in plan.guides:
        note_of_target(guide)
    if given["offload"] and plan.device.type == "cpu":
        note("--offload changes nothing on the CPU")
    if given["cfg"] is not None and not given["prompt"]:
        note("--cfg weighs the prompt, and there is none: it changes nothing")
    if given["dry_run"]:
        _show(plan, given["json"])
        return
    if given["compile"]:
        note("networks are compiled when they are first used, which may take minutes")
    if not Processes.of_launch(plan.device).first:  # which writes
        run.draw(plan)
        return
    path = expanded(given["out"]) if given["out"] else run.fresh_folder(_RUNS, plan)
    typed = ["ppap", *sys.argv[1:]]
    folder = run.RunFolder(plan, path, overwrite=given["overwrite"], command=typed)
    with progress() as watch:
        try:
            result = run.draw(plan, progress=watch, finished=folder.add, keep=run.MAX_IMAGES)
            grid = folder.finish(result)
        except BaseException as error:
            folder.fail(error)
            raise
    if given["json"]:
        print_json({"folder": str(path), **folder.record})
    elif grid:
        click.echo(grid)
    if result.interrupted:
        raise click.Abort(f"{result.stats.count} of {plan.num} images are in {path}")


def note_of_target(guide: Guide) -> None:
    if guide.target_is_default and guide.target:
        note(f"{guide.name} aims at {guide.target.label!r}, its default; --target picks another")


def _prepare(given: dict[str, Any], problems: Problems) -> Plan:
    """Find all errors before weights are read, and report them together."""
    from ppap_framework import run
    from ppap_framework.cli.guide_options import backend_of, parse_guides, settings_of
    from ppap_framework.processes import launched

    num, offline = given["num"], given["dry_run"] or given["offline"]
    for name, what in (("init_image", "init image"), ("mask", "mask")):
        given[name] = problems.attempt(run.read_picture, given[name], what)
    if problems.errors:  # else it would be missed by the others
        given |= {"strength": None, "mask": None, "resample": None}
    sampling, compute = settings_of(given)
    requests = parse_guides(given, problems, offline=offline)
    problems.attempt(run.check, num, sampling, compute)
    out, overwrite = given["out"], given["overwrite"]
    if launched()[0] > 0:
        pass  # the first process of the launch writes
    elif out is None and overwrite:
        problems.add("--overwrite goes with --out", "name the folder with --out")
    elif out is None:
        problems.attempt(check_writable, _RUNS)
    elif not out.strip():
        problems.add("--out is empty", "name a folder, or leave it out")
    else:
        problems.attempt(run.check_folder, expanded(out), overwrite=overwrite)
    cfg = [] if given["cfg"] is None else [f"cfg={given['cfg']}"]
    found = given["backend"] and problems.attempt(backend_of, given, *cfg, offline=offline)
    for request in requests:
        problems.attempt(request.check, sampling.through)
    problems.check()

    if backend := problems.attempt(found.load):
        plain = problems.attempt(run.plan, backend, (), num, sampling, compute)
    guides = [problems.attempt(request.load) for request in requests]
    problems.check()
    guides = [_calibrated(plain, guide, dry=given["dry_run"]) for guide in guides]
    return run.plan(backend, guides, num, sampling, compute, compare=given["compare"])


def _calibrated(plan: Plan, guide: Guide, *, dry: bool) -> Guide:
    """A guide of the plan's backend, with its curve if its scale multiplies one."""
    import attrs

    from ppap_framework.experts import same_loss
    from ppap_framework.learn import kept_curve
    from ppap_framework.run import Compute, Sampling
    from ppap_framework.run.plan import DEFAULT_MULTIPLIER

    if guide.scale != "auto":
        return guide
    through, prompt, stage = (getattr(plan.sampling, of) for of in ("through", "prompt", "stage"))
    guide = guide.with_experts(plan.backend, through)
    curve = guide.chosen and guide.chosen.calibration
    if dry and not (curve and same_loss(curve.loss, guide.loss_record)):
        note(f"{guide.name} has no curve: the run finds one first, which the scale multiplies")
        return attrs.evolve(guide, scale=DEFAULT_MULTIPLIER)
    through = guide.through if isinstance(guide.through, str) else None
    how: Any = {"through": through, "prompt": prompt, "stage": stage}
    sampling = Sampling(steps=25, sampler="ddpm", **how)
    compute = Compute(device=plan.compute.device, precision=plan.compute.precision, batch=32)
    with progress() as watch:
        curve = kept_curve(plan.backend, guide, sampling, compute, progress=watch)
    return attrs.evolve(guide, curve=curve)


def _show(plan: Plan, as_json: bool) -> None:
    """Print a plan and its cost."""
    import attrs

    from ppap_framework.run import counts_of, first_batch, scale_words
    from ppap_framework.run.estimate import estimate

    config, counts, problems = plan.record(), attrs.asdict(counts_of(plan)), Problems()
    found = problems.attempt(estimate, plan)
    if as_json:
        print_json({"config": config, "cost": counts, "estimate": found and attrs.asdict(found)})
        return
    batch, (_, height, width) = first_batch(plan), plan.stages[-1].image_shape
    sampling, every = plan.sampling, plan.backend.stages
    stages = [stage.name for stage in plan.stages]
    shown = {
        **_origin(config["backend"]),
        "stages": stages if len(every) > 1 else None,
        "not drawn": [stage.name for stage in every if stage.name not in stages],
        "parameters": [f"{name} {n:,}" for name, n in counts["stage_parameters"].items()],
    }
    print_fields("backend", shown)
    for guide, record in zip(plan.guides, config["guides"], strict=True):
        experts, (low, high) = record["experts"], guide.interval
        own = counts["expert_parameters"].get(guide.name, ())
        looks = " and ".join(dict.fromkeys(guide.each_through))
        bundle = experts and "{num_experts} of {name}, {path} ({sha256:.12})".format(**experts)
        shown = {
            **_origin(record),
            "parameters": f"{counts['guide_parameters'][guide.name]:,}",
            "target": record["target"],
            "loss": record["loss"],
            "experts": bundle or "none",
            "each expert": f"{max(own):,} parameters" if own else None,
            "scale": scale_words(guide) + (" of unit gradients" if sampling.normalize else ""),
            "acts": f"from t/T {low:g} to {high:g}, through the {looks} image",
            "looks": None if (k := sampling.guide_every) == 1 else f"at one of {k} steps",
            "conflicts": None if sampling.conflicts == "keep" else "removed",
            "moments": sampling.moments and "{:g} and {:g}".format(*sampling.moments),
        }
        print_fields(f"guide {guide.name}", shown)
    shown = {
        "number": f"{plan.num} of {height}x{width}, {batch} at once",
        "seed": sampling.seed,
        "prompt": sampling.prompt if isinstance(sampling.prompt, str) else None,
        "init image": sampling.init_image and sampling.init_image.source,
        "strength": config.get("strength"),
        "mask": sampling.mask and sampling.mask.source,
        "sampler": sampling.sampler_name
        + (f", eta {eta:g}" if (eta := sampling.stochasticity) else ""),
        "steps": [
            f"{stage} {walk} of {process.schedule.num_timesteps}, schedule {process.schedule.name}"
            for stage, walk, process in zip(stages, plan.walks, plan.processes, strict=True)
        ],
        "device": plan.device,
    }
    print_fields("images", shown)
    shown = {}
    for way in ("forwards", "backwards"):
        shown[f"denoiser {way}"] = counts[f"denoiser_{way}"]
        shown |= {f"{name} {way}": n for name, n in counts["guide_forwards"].items()}
    print_fields("images that each network sees, over all steps", shown)
    if found is None:
        print_fields("cost in products and memory", {"unknown": problems.errors[0].message})
        return
    costs = {**found.stages, **found.guides}.items()
    words = {"forward": "forward", "backward": "backward", "before": "before the first"}
    products = {f"{name} {words[k]}": getattr(cost, k) for k in words for name, cost in costs}
    products["of the whole run"] = found.flops
    giga = {name: flops / 1e9 for name, flops in products.items() if flops}
    shown = {name: f"{g:.4g}" if g < 1000 else f"{g:,.0f}" for name, g in giga.items()}
    print_fields("GFLOPs of a step of an image", shown)
    step = f"about {batch * found.memory / 2**20:,.0f} for {batch} at once"
    print_fields("memory in MiB", {"weights": f"{found.weights / 2**20:,.0f}", "of a step": step})


def _origin(record: Mapping[str, Any]) -> dict[str, Any]:
    from ppap_framework.run import option_words

    supplier = "{distribution} {version}".format(**record) if record.get("distribution") else None
    options = record.get("resolved") or record.get("options")
    return {
        "name": record["component"],
        "plugin": supplier,
        "checkpoint": record.get("checkpoint"),
        "options": option_words(options) if options else None,
    }
