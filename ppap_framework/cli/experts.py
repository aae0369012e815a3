"""`ppap experts`: bundles of experts, read from their files alone, and calibrated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import click

from ppap_framework.cli import PluginGroup, State
from ppap_framework.cli.backend_options import backend_of, backend_options
from ppap_framework.cli.config import option, problems_of
from ppap_framework.cli.output import print_fields, print_json, print_table, size_words
from ppap_framework.cli.training_options import guide_options, progress_bars, teacher_of
from ppap_framework.errors import AssetError, UsageError

if TYPE_CHECKING:
    from ppap_framework.experts import BundleFile, BundleInfo

__all__ = ["command"]

_DAMAGED = 4
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("experts", cls=PluginGroup)
def command() -> None:
    """Show, check and calibrate experts.

    SOURCE is the path of a bundle, or a name that `ppap experts list` shows.
    """


@command.command("list")
@_JSON
def list_experts(as_json: bool) -> None:
    """List the bundles that are found.

    `--experts auto` takes the first that matches; `--experts NAME` finds any.
    """
    from ppap_framework.experts import experts_dir, find_bundles
    from ppap_framework.registry import registry

    rows = [_summary(bundle) for bundle in find_bundles()]
    here = {row["name"] for row in rows if row["plugin"]}
    rows += [
        _row(
            name=asset.name,
            plugin=registry().provider(asset).distribution,
            guider=asset.guider,
            backend=asset.backend,
            size=asset.size,
            problem="not downloaded",
        )
        for asset in registry().bundles()
        if asset.name not in here
    ]
    if as_json:
        print_json(rows)
    elif rows:
        columns = ["name", "guider", "backend", "experts", "size", "path", "problem"]
        print_table(
            columns,
            [
                ["" if row[key] is None else _shown(key, row[key]) for key in columns]
                for row in rows
            ],
        )
    else:
        click.echo(f"There are no experts in {experts_dir()}, and no plugin brings any.")


@command.command("inspect")
@click.argument("source")
@_JSON
def inspect(source: str, as_json: bool) -> None:
    """Show what a bundle says of itself.

    That is which expert reads which noise, what they were trained for, and how.
    """
    from ppap_framework.experts import bundle_by_name

    bundle = bundle_by_name(source)
    info = bundle.info
    experts = _experts(info)
    if as_json:
        print_json(
            {
                "name": bundle.name,
                "path": str(bundle.path),
                **attrs.asdict(info),
                "experts": experts,
            }
        )
        return
    print_fields(
        f"experts {bundle.name}",
        {
            "path": bundle.path,
            "guide": info.guide,
            "backend": info.backend,
            "adapters": [_worded(adapter.name, adapter.options) for adapter in info.adapters],
            "images": f"{info.image_space}, {_by(info.resolution)}",
            "network is fed": _fed(info),
            "network": f"{info.network_parameters:,} parameters",
            "seed": info.seed,
            "data": info.data_sha256,
        },
    )
    print_table(
        ["expert", f"timesteps ({info.schedule})", "log-SNR", "trainable", "share", "scale"],
        [
            [
                str(expert["index"]),
                "none" if expert["timesteps"] is None else "{}-{}".format(*expert["timesteps"]),
                f"{_level(expert['log_snr'][0], 'inf')} to {_level(expert['log_snr'][1], '-inf')}",
                f"{expert['parameters']:,}",
                f"{expert['share']:.2%}",
                "" if expert["scale"] is None else f"{expert['scale']:g}",
            ]
            for expert in experts
        ],
    )
    print_fields("recipe", dict(info.recipe))
    print_fields("held-out metrics", dict(info.metrics))


@command.command("verify")
@click.argument("sources", metavar="[SOURCE]...", nargs=-1)
@_JSON
def verify(sources: tuple[str, ...], as_json: bool) -> int:
    """Check that bundles are whole.

    That is their digest, their description and every tensor. Without SOURCE, all that `ppap experts
    list` shows. Exits with 4 where one is not. Whether a bundle is for the guide and backend that
    are here, `ppap run` checks.
    """
    from ppap_framework.experts import bundle_by_name, find_bundles, verify_bundle

    wanted: list[str | BundleFile] = [*sources] or [*find_bundles()]
    results: list[dict[str, Any]] = []
    errors: list[AssetError] = []
    for source in wanted:
        result: dict[str, Any] = {"source": source if isinstance(source, str) else source.name}
        try:
            bundle = bundle_by_name(source) if isinstance(source, str) else source
            info, state = verify_bundle(bundle.path)
            result |= {"whole": True, "experts": len(info), "tensors": len(state), "fault": None}
        except AssetError as error:
            errors.append(error)
            result |= {"whole": False, "experts": None, "tensors": None, "fault": error.message}
        results.append(result)
    if as_json:
        print_json(results)
        return _DAMAGED if errors else 0
    for result in results:
        if result["whole"]:
            click.echo(
                "{source}: {experts} experts in {tensors} tensors are whole".format(**result)
            )
    if errors:
        hints = dict.fromkeys(error.hint for error in errors)
        raise AssetError("; ".join(error.message for error in errors), hint="; ".join(hints))
    return 0


@command.command("calibrate")
@click.argument("source")
@backend_options
@guide_options
@option("--num", type=int, default=32, help="Trajectories of a trial.")
@option("--steps", type=int, default=25, help="Steps of a trajectory.")
@option("--seed", type=int, default=0, help="Of pictures and trajectories.")
@option("--batch", type=int, default=32, help="How many images at once.")
@option("--device", default="auto", help="Such as cpu or cuda.")
@_JSON
@click.pass_context
def calibrate_experts(ctx: click.Context, /, source: str, as_json: bool, **given: Any) -> None:
    """Find the scales with which experts guide, without labels.

    The diffusion model draws pictures, and trajectories are led to what the guide sees in them:
    with a common scale at first, then with one for each expert. The scales are written into the
    bundle, and every trial into NAME.calibration.json beside it; `ppap run` then takes them where
    no --scale is given.

    \b
    ppap experts calibrate adm-classifier-5 --backend adm --guider classifier
    """
    from ppap_framework.experts import bundle_by_name
    from ppap_framework.learn import calibrate
    from ppap_framework.learn.folder import calibration_path
    from ppap_framework.run import Problems

    problems = Problems()
    problems.errors += problems_of(ctx)
    problems.check()
    bundles, backends, learner = [], [], []
    with problems.collected():
        bundles.append(_own(bundle_by_name(source)))
    with problems.collected():
        backends.append(backend_of(given))
    with problems.collected():
        learner.append(teacher_of(given))
    problems.check()
    [bundle] = bundles
    with progress_bars(ctx.ensure_object(State)) as (_, _, watch):
        found = calibrate(
            backends[0].load(),
            learner[0],
            bundle.path,
            num=given["num"],
            steps=given["steps"],
            seed=given["seed"],
            batch=given["batch"],
            device=given["device"],
            progress=watch,
        )
    if as_json:
        print_json({"name": bundle.name, "path": str(bundle.path), **found.record()})
        return
    print_table(
        ["scales", "distance", "oddity", "loss", ""],
        [
            [
                _scales(trial["scales"]),
                f"{trial['distance']:.3f}",
                f"{trial['oddity']:.3f}",
                f"{trial['loss']:.3f} ± {trial['standard_error']:.3f}",
                "kept" if trial["kept"] else "",
            ]
            for trial in found.record()["trials"]
        ],
    )
    click.echo(calibration_path(bundle.path))


def _own(bundle: BundleFile) -> BundleFile:
    """A bundle that may be written.

    Raises:
        UsageError: Where a distribution supplies it.
    """
    if bundle.distribution is not None:
        raise UsageError(
            f"experts {bundle.name!r} belong to {bundle.distribution}, and stay as they are",
            hint=f"copy {str(bundle.path)!r}, and give the path of the copy",
        )
    return bundle


def _row(**known: Any) -> dict[str, Any]:
    keys = ["name", "plugin", "guider", "backend", "experts", "size", "path", "problem"]
    return dict.fromkeys(keys) | known


def _shown(key: str, value: Any) -> str:
    return size_words(value) if key == "size" else str(value)


def _summary(bundle: BundleFile) -> dict[str, Any]:
    row = _row(name=bundle.name, plugin=bundle.distribution, path=str(bundle.path))
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


def _experts(info: BundleInfo) -> list[dict[str, Any]]:
    """Each expert: the timesteps [first, last] and the log-SNR [above, down to] that it owns."""
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


def _scales(scales: Sequence[float]) -> str:
    """One where all are alike."""
    return " ".join(f"{s:.3g}" for s in (scales[:1] if len(set(scales)) == 1 else scales))


def _level(log_snr: float | None, end: str) -> str:
    return end if log_snr is None else f"{log_snr:.3f}"


def _worded(name: str, options: Mapping[str, Any]) -> str:
    return " ".join([name, *(f"{option}={value}" for option, value in options.items())])


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def _fed(info: BundleInfo) -> str:
    if info.input is None:
        return "unknown"
    black, white = _few(info.input.black), _few(info.input.white)
    return f"{_by(info.input.shape)}, black as {black}, white as {white}"


def _few(values: Sequence[float]) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:3])
    return f"({shown}{', ...' if len(values) > 3 else ''})"
