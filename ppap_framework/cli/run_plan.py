"""What `ppap run --dry-run` shows: what would be drawn, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ppap_framework.cli.output import print_fields, print_json
from ppap_framework.errors import PpapError

if TYPE_CHECKING:
    from ppap_framework import run as api
    from ppap_framework.diffusion import Continuation

__all__ = ["show_plan"]


def show_plan(run: api.Plan, as_json: bool) -> None:
    """Print a plan and its cost.

    Args:
        run: The plan.
        as_json: Whether a machine reads it.
    """
    import attrs

    from ppap_framework import run as api

    cost, settings = run.cost, run.settings
    try:
        estimate, unknown = api.estimate(run), ""
    except PpapError as error:
        estimate, unknown = None, error.message
    if as_json:
        known = attrs.asdict(estimate) if estimate else None
        print_json({"config": run.record(), "cost": attrs.asdict(cost), "estimate": known})
        return
    together = api.first_batch(run)
    print_fields(
        "backend",
        {
            **_source(run.backend.origin),
            "parameters": _each(cost.stage_parameters),
            "stages": _stages(run),
            "prompt": _prompt(settings.prompt),
        },
    )
    for loaded, experts in zip(run.guides, run.experts, strict=True):
        guide = loaded.guide
        low, high = guide.interval
        unit = " of unit gradients" if settings.normalize else ""
        unit += ", conflicts removed" if settings.conflicts == "remove" else ""
        print_fields(
            f"guide {guide.name}",
            {
                **_source(loaded.origin),
                "parameters": _count(cost.guide_parameters[guide.name]),
                "target": guide.target.label,
                "loss": loaded.loss_name,
                "experts": _experts(experts),
                "of an expert": _range(cost.expert_parameters.get(guide.name, ())),
                "scale": f"{api.scale_words(guide)}{unit}",
                "acts": f"from t/T {low:g} to {high:g}, through the {settings.through} image",
            },
        )
    _, height, width = run.stages[-1].image_shape
    schedule = run.process.schedule
    eta = f", eta {settings.eta:g}" if settings.eta else ""
    print_fields(
        "images",
        {
            "number": f"{settings.num} of {height}x{width}, {together} at once",
            "seed": settings.seed,
            "sampler": f"{settings.sampler}{eta}",
            "steps": f"{len(run.process)} of {schedule.num_timesteps}, schedule {schedule.name}",
            **{f"then {k.stage.name}": _continuation(k) for k in run.later},
            "device": run.device,
        },
    )
    print_fields(
        "cost in images, steps counted singly",
        {
            "denoiser forwards": cost.denoiser_forwards,
            "denoiser backwards": cost.denoiser_backwards,
            **{f"{name} forwards": count for name, count in cost.guide_forwards.items()},
            **{f"{name} backwards": count for name, count in cost.guide_forwards.items()},
        },
    )
    if estimate is None:
        print_fields("cost in products and memory", {"unknown": unknown})
    else:
        _show_estimate(estimate, together)


def _show_estimate(estimate: api.Estimate, together: int) -> None:
    looks = {**estimate.stages, **estimate.guides}
    print_fields(
        "GFLOPs of a step of an image",
        {
            **{f"{name} forward": _giga(look.forward) for name, look in looks.items()},
            **{
                f"{name} backward": _giga(look.backward)
                for name, look in looks.items()
                if look.backward
            },
            **{
                f"{name} before the first": _giga(look.before)
                for name, look in looks.items()
                if look.before
            },
            "of the whole run": _giga(estimate.flops),
        },
    )
    print_fields(
        "memory in MiB",
        {
            "weights": f"{estimate.weights / 2**20:,.0f}",
            "of a step": f"about {together * estimate.memory / 2**20:,.0f} for {together} at once",
        },
    )


def _continuation(following: Continuation) -> str:
    _, height, width = following.stage.image_shape
    schedule = following.process.schedule
    return (
        f"to {height}x{width} in {len(following.process)} of {schedule.num_timesteps} steps, "
        f"schedule {schedule.name}"
    )


def _source(origin: api.Origin) -> dict[str, Any]:
    from ppap_framework import run as api

    return {
        "name": origin.component,
        "plugin": f"{origin.distribution} {origin.version}" if origin.distribution else None,
        "checkpoint": origin.checkpoint,
        "options": api.option_words(origin.resolved),
    }


def _stages(run: api.Plan) -> str:
    """Where there are several: those that draw, and those that are left out."""
    all_of_them = [stage.name for stage in run.backend.stages]
    drawing = [stage.name for stage in run.stages]
    left_out = all_of_them[len(drawing) :]
    if len(all_of_them) == 1:
        return ""
    return ", ".join(drawing) + (f" (not {', '.join(left_out)})" if left_out else "")


def _prompt(prompt: str | Sequence[str] | None) -> str:
    if prompt is None:
        return ""
    return repr(prompt) if isinstance(prompt, str) else f"{len(prompt)}, one for each image"


def _experts(experts: api.ChosenExperts | None) -> str:
    if experts is None:
        return "none"
    return f"{len(experts.ranges)} of {experts.name}, {experts.path} ({str(experts.sha256)[:12]})"


def _each(parameters: dict[str, int]) -> str:
    counts = {name: _count(number) for name, number in parameters.items()}
    return ", ".join(f"{name} {n}" if len(counts) > 1 else n for name, n in counts.items())


def _range(parameters: Sequence[int]) -> str:
    """Of all experts."""
    ends = dict.fromkeys(_count(pick(parameters)) for pick in (min, max)) if parameters else {}
    return f"{' to '.join(ends)} parameters" if ends else ""


def _giga(flops: int) -> str:
    giga = flops / 1e9
    return f"{giga:.4g}" if giga < 1000 else f"{giga:,.0f}"


def _count(number: int) -> str:
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)
