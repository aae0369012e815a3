from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import click

from ppap_framework.cli import output
from ppap_framework.cli.config import backend_options, guide_options, problems_of, settings
from ppap_framework.cli.groups import Group
from ppap_framework.errors import PpapError, UsageError
from ppap_framework.registry import registry

if TYPE_CHECKING:
    from ppap_framework.experts import BundleFile, BundleInfo, ScaleCurve

_COLUMNS = ("name", "guider", "backend", "experts", "size", "path", "problem")


@click.group("experts", cls=Group)
def command() -> None:
    """Show, check and calibrate experts.

    SOURCE is the path of a bundle, or a name that `ppap experts list` shows.
    """


@command.command("list")
@output.json_option
def list_experts(as_json: bool) -> None:
    """List the bundles that are found.

    `--experts NAME` finds any. Of those that match, `--experts auto` takes a calibrated one before
    others, then that of the lowest held-out loss, then the newest.
    """
    from ppap_framework.experts import experts_dir, find_bundles

    rows = [row_of(bundle) for bundle in find_bundles()]
    here = {row["name"] for row in rows if row["plugin"]}
    for asset in registry().bundles():
        if asset.name not in here:
            fields = {name: getattr(asset, name) for name in ("name", "guider", "backend", "size")}
            plugin = registry().provider(asset).distribution
            rows.append({**_EMPTY, **fields, "plugin": plugin, "problem": "not downloaded"})
    if as_json:
        output.print_json(rows)
    elif rows:
        for row in rows:
            row |= {"size": output.size_words(row["size"]), "from": row["plugin"] or row["path"]}
        output.print_table((*_COLUMNS[:5], "from", "problem"), rows)
    else:
        click.echo(f"There are no experts in {experts_dir()}, and no plugin brings any.")


@command.command("inspect")
@click.argument("source")
@output.json_option
def inspect(source: str, as_json: bool) -> None:
    """Show the description of a bundle.

    It states which expert reads which noise levels, and how the experts were trained.
    """
    from ppap_framework.experts import bundle_by_name

    bundle = bundle_by_name(source)
    info, experts = bundle.info, _experts(bundle.info)
    if as_json:
        named = {"name": bundle.name, "path": str(bundle.path)}
        output.print_json({**named, **attrs.asdict(info), "experts": experts})
        return
    adapters = [
        " ".join([adapter.name, *(f"{key}={value}" for key, value in adapter.options.items())])
        for adapter in info.adapters
    ]
    below = ("boundaries", "timesteps", "schedule", "expert_parameters", "curve")
    left_out = attrs.filters.exclude("recipe", "metrics", *below)
    fields = attrs.asdict(info, recurse=False, filter=left_out) | {
        "adapters": adapters,
        "input": info.input and attrs.asdict(info.input),
        "network_parameters": f"{info.network_parameters:,}",
    }
    output.print_fields(f"experts {bundle.name}", {"path": bundle.path, **fields})
    output.print_fields("recipe", info.recipe)
    output.print_fields("held-out metrics", info.metrics)
    rows = []
    for expert in experts:
        ends = zip(expert["log_snr"], ("inf", "-inf"), strict=True)
        levels = [word if end is None else f"{end:.3f}" for end, word in ends]
        owned = "{}-{}".format(*expert["timesteps"]) if expert["timesteps"] else "none"
        numbers = f"{expert['parameters']:,}", f"{expert['share']:.2%}"
        rows.append((expert["index"], owned, " to ".join(levels), *numbers))
    timesteps = f"timesteps ({info.schedule})"
    output.print_table(["expert", timesteps, "log-SNR", "trainable", "share"], rows)
    if info.curve is not None:
        _print_curve(info.curve)


@command.command("verify")
@click.argument("sources", metavar="[SOURCE]...", nargs=-1)
@output.json_option
def verify(sources: tuple[str, ...], as_json: bool) -> int:
    """Check that bundles are undamaged.

    That is their hash, their description and every tensor. Without SOURCE, all that `ppap experts
    list` shows are checked. Exits with 4 if one is damaged. Whether a bundle matches the guide and
    backend that are here, `ppap run` checks.
    """
    from ppap_framework.experts import bundle_by_name, find_bundles, verify_bundle

    def facts(source: str | BundleFile) -> dict[str, Any]:
        bundle = bundle_by_name(source) if isinstance(source, str) else source
        info, state = verify_bundle(bundle.path)
        return {"experts": len(info), "tensors": len(state)}

    files: list[tuple[str, Any]] = [(source, source) for source in sources]
    files = files or [(bundle.name, bundle) for bundle in find_bundles()]
    blank = dict.fromkeys(("source", "whole", "experts", "tensors"))
    line = "{source}: {experts} experts in {tensors} tensors are whole"
    return output.print_verified(files, facts, blank, line, as_json)


@command.command("calibrate")
@click.argument("source")
@backend_options
@guide_options
@settings("seed", "device", steps=25, num=64, batch=32)
@output.json_option
@click.pass_context
def calibrate_experts(ctx: click.Context, /, source: str, as_json: bool, **given: Any) -> None:
    """Find the guidance scale of experts at each noise level, without labels.

    The diffusion model draws images, and the experts read them with noise. The scale is that at
    which their energy is an honest log-likelihood of which image it is: small where they cannot
    tell the images apart. The curve is written into the bundle, and the scale of `ppap run`
    multiplies it.

    \b
    ppap experts calibrate adm-classifier-5 --backend adm --guider classifier
    """
    from ppap_framework.cli.guide_options import backend_of, guide_of
    from ppap_framework.experts import bundle_by_name
    from ppap_framework.learn import calibrate, load_teacher

    problems = problems_of(ctx)
    problems.check()
    with problems.collected():
        bundle = bundle_by_name(source)
        if bundle.distribution is not None:
            fault = f"experts {bundle.name!r} belong to {bundle.distribution}, which stays as it is"
            hint = f"copy {str(bundle.path)!r}, and give the path of the copy"
            raise UsageError(fault, hint=hint)
    backend, request = problems.attempt(backend_of, given), problems.attempt(guide_of, given)
    problems.check()
    chosen = {name: given[name] for name in ("num", "steps", "seed", "batch", "device")}
    with output.progress() as watch:
        made = backend.load(), load_teacher(request)
        curve = calibrate(*made, bundle.path, **chosen, progress=watch)
    if as_json:
        output.print_json({"name": bundle.name, "path": bundle.path, "curve": attrs.asdict(curve)})
        return
    _print_curve(curve)
    click.echo(bundle.path)


def _print_curve(curve: ScaleCurve) -> None:
    points = zip(curve.log_snr, curve.scales, curve.errors, strict=True)
    rows = [(f"{level:.3f}", f"{scale:.4g}", f"{error:.2g}") for level, scale, error in points]
    output.print_table(["log-SNR", "calibrated scale", "standard error of its logarithm"], rows)


_EMPTY = dict.fromkeys(("name", "plugin", *_COLUMNS[1:]))


def row_of(bundle: BundleFile) -> dict[str, Any]:
    """A row of `ppap experts list`, with the bundle's problem, if any."""
    from ppap_framework.experts import installed_adapter

    named = {"name": bundle.name, "plugin": bundle.distribution, "path": str(bundle.path)}
    row: dict[str, Any] = _EMPTY | named
    try:
        info = bundle.info
        row |= {"guider": info.guide.component, "backend": info.backend.component}
        row |= {"experts": len(info), "size": bundle.path.stat().st_size}
        for adapter in info.adapters:
            installed_adapter(adapter)
    except (OSError, PpapError) as error:
        row["problem"] = error.message if isinstance(error, PpapError) else str(error)
    return row


def _experts(info: BundleInfo) -> list[dict[str, Any]]:
    """Each expert's timesteps [first, last] and log-SNR [above, down to]."""
    ends, t = [None, *info.boundaries, None], info.timesteps
    return [
        {
            "index": k,
            "timesteps": [t[k], t[k + 1] - 1] if t[k] < t[k + 1] else None,
            "log_snr": ends[k : k + 2],
            "parameters": parameters,
            "share": parameters / max(info.network_parameters, 1),
        }
        for k, parameters in enumerate(info.expert_parameters)
    ]
