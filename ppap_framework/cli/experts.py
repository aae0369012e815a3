from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs
import click

from ppap_framework.cli.backend_options import backend_of, backend_options
from ppap_framework.cli.config import option, problems_of
from ppap_framework.cli.groups import Group
from ppap_framework.cli.output import (
    json_option,
    print_fields,
    print_json,
    print_table,
    print_verified,
    size_words,
)
from ppap_framework.cli.progress import progress
from ppap_framework.cli.training_options import guide_options
from ppap_framework.errors import AssetError, Problems, UsageError
from ppap_framework.registry import registry

if TYPE_CHECKING:
    from ppap_framework.experts import BundleFile, BundleInfo, ScaleCurve

_COLUMNS = ("name", "guider", "backend", "experts", "size", "path", "problem")
_EMPTY = dict.fromkeys(("name", "plugin", *_COLUMNS[1:]))


@click.group("experts", cls=Group)
def command() -> None:
    """Show, check and calibrate experts.

    SOURCE is the path of a bundle, or a name that `ppap experts list` shows.
    """


@command.command("list")
@json_option
def list_experts(as_json: bool) -> None:
    """List the bundles that are found.

    `--experts auto` takes the first that matches; `--experts NAME` finds any.
    """
    from ppap_framework.experts import experts_dir, find_bundles

    rows = [_row(bundle) for bundle in find_bundles()]
    here = {row["name"] for row in rows if row["plugin"]}
    rows += [
        {
            **_EMPTY,
            "name": asset.name,
            "plugin": registry().provider(asset).distribution,
            "guider": asset.guider,
            "backend": asset.backend,
            "size": asset.size,
            "problem": "not downloaded",
        }
        for asset in registry().bundles()
        if asset.name not in here
    ]
    if as_json:
        print_json(rows)
    elif rows:
        print_table(_COLUMNS, [r | {"size": r["size"] and size_words(r["size"])} for r in rows])
    else:
        click.echo(f"There are no experts in {experts_dir()}, and no plugin brings any.")


@command.command("inspect")
@click.argument("source")
@json_option
def inspect(source: str, as_json: bool) -> None:
    """Show the description of a bundle.

    It states which expert reads which noise levels, and how the experts were trained.
    """
    from ppap_framework.experts import bundle_by_name

    bundle = bundle_by_name(source)
    info, experts = bundle.info, _experts(bundle.info)
    if as_json:
        named = {"name": bundle.name, "path": str(bundle.path)}
        print_json({**named, **attrs.asdict(info), "experts": experts})
        return
    adapters = [
        " ".join([adapter.name, *(f"{key}={value}" for key, value in adapter.options.items())])
        for adapter in info.adapters
    ]
    print_fields(
        f"experts {bundle.name}",
        {
            "path": bundle.path,
            "guide": info.guide,
            "backend": info.backend,
            "adapters": adapters,
            "images": f"{info.image_space}, {_by(info.resolution)}",
            "network input": _input(info),
            "network": f"{info.network_parameters:,} parameters",
            "seed": info.seed,
            "data": info.data_sha256,
        },
    )
    print_table(
        ["expert", f"timesteps ({info.schedule})", "log-SNR", "trainable", "share", "scale"],
        [
            (
                expert["index"],
                "none" if expert["timesteps"] is None else "{}-{}".format(*expert["timesteps"]),
                f"{_level(expert['log_snr'][0], 'inf')} to {_level(expert['log_snr'][1], '-inf')}",
                f"{expert['parameters']:,}",
                f"{expert['share']:.2%}",
                None if expert["scale"] is None else f"{expert['scale']:g}",
            )
            for expert in experts
        ],
    )
    if info.curve is not None:
        _print_curve(info.curve)
    print_fields("recipe", dict(info.recipe))
    print_fields("held-out metrics", dict(info.metrics))


@command.command("verify")
@click.argument("sources", metavar="[SOURCE]...", nargs=-1)
@json_option
def verify(sources: tuple[str, ...], as_json: bool) -> int:
    """Check that bundles are undamaged.

    That is their hash, their description and every tensor. Without SOURCE, all that `ppap experts
    list` shows are checked. Exits with 4 if one is damaged. Whether a bundle matches the guide and
    backend that are here, `ppap run` checks.
    """
    from ppap_framework.experts import bundle_by_name, find_bundles, verify_bundle

    wanted: list[str | BundleFile] = [*sources] or [*find_bundles()]
    keys, results, problems = ("source", "whole", "experts", "tensors", "fault"), [], Problems()
    for source in wanted:
        name = source if isinstance(source, str) else source.name
        results.append(dict.fromkeys(keys) | {"source": name, "whole": False})
        with problems.collected():
            bundle = bundle_by_name(source) if isinstance(source, str) else source
            info, state = verify_bundle(bundle.path)
            results[-1] |= {"whole": True, "experts": len(info), "tensors": len(state)}
    line = "{source}: {experts} experts in {tensors} tensors are whole"
    return print_verified(results, "whole", line, problems, as_json)


@command.command("calibrate")
@click.argument("source")
@backend_options
@guide_options
@option("--num", type=int, default=64, help="Number of images that the diffusion model draws.")
@option("--steps", type=int, default=25, help="Steps from noise to image.")
@option("--seed", type=int, default=0, help="Seed of images and noise.")
@option("--batch", type=int, default=32, help="Batch size.")
@option("--device", default="auto", help="Device, such as cpu or cuda.")
@json_option
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
    from ppap_framework.cli.guide_options import guide_of
    from ppap_framework.experts import bundle_by_name
    from ppap_framework.learn import calibrate, load_teacher

    problems = problems_of(ctx)
    problems.check()
    with problems.collected():
        bundle = _own(bundle_by_name(source))
    with problems.collected():
        backend = backend_of(given)
    with problems.collected():
        request = guide_of(given)
    problems.check()
    settings = {name: given[name] for name in ("num", "steps", "seed", "batch", "device")}
    with progress() as watch:
        curve = calibrate(
            backend.load(), load_teacher(request), bundle.path, **settings, progress=watch
        )
    if as_json:
        found = {"name": bundle.name, "path": str(bundle.path), "curve": attrs.asdict(curve)}
        print_json(found)
        return
    _print_curve(curve)
    click.echo(bundle.path)


def _row(bundle: BundleFile) -> dict[str, Any]:
    row: dict[str, Any] = {**_EMPTY, "name": bundle.name, "plugin": bundle.distribution}
    row["path"] = str(bundle.path)
    try:
        info = bundle.info
    except AssetError as error:
        return row | {"problem": error.message}
    return row | {
        "guider": info.guide.component,
        "backend": info.backend.component,
        "experts": len(info),
        "size": bundle.path.stat().st_size,
    }


def _own(bundle: BundleFile) -> BundleFile:
    """A bundle that may be written: no distribution supplies it."""
    if bundle.distribution is not None:
        raise UsageError(
            f"experts {bundle.name!r} belong to {bundle.distribution}, which is not changed",
            hint=f"copy {str(bundle.path)!r}, and give the path of the copy",
        )
    return bundle


def _experts(info: BundleInfo) -> list[dict[str, Any]]:
    """Each expert's timesteps [first, last] and log-SNR [above, down to]."""
    ends = [None, *info.boundaries, None]
    return [
        {
            "index": index,
            "timesteps": [first, stop - 1] if first < stop else None,
            "log_snr": [ends[index], ends[index + 1]],
            "parameters": parameters,
            "share": parameters / max(info.network_parameters, 1),
            "scale": info.scales[index] if info.scales else None,
        }
        for index, (first, stop, parameters) in enumerate(
            zip(info.timesteps, info.timesteps[1:], info.expert_parameters, strict=False)
        )
    ]


def _print_curve(curve: ScaleCurve) -> None:
    rows = zip(curve.log_snr, curve.scales, curve.errors, strict=True)
    print_table(
        ["log-SNR", "calibrated scale", "standard error of its logarithm"],
        [(f"{level:.3f}", f"{scale:.4g}", f"{error:.2g}") for level, scale, error in rows],
    )


def _level(log_snr: float | None, end: str) -> str:
    return end if log_snr is None else f"{log_snr:.3f}"


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def _input(info: BundleInfo) -> str:
    if info.input is None:
        return "unknown"
    black, white = _few(info.input.black), _few(info.input.white)
    return f"{_by(info.input.shape)}, black as {black}, white as {white}"


def _few(values: Sequence[float]) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:3])
    return f"({shown}{', ...' if len(values) > 3 else ''})"
