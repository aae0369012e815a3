"""What `ppap run --dry-run` shows: what would be drawn, and what it costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ppap_framework.cli.output import print_fields, print_json

if TYPE_CHECKING:
    from ppap_framework import api
    from ppap_framework.sampling import Continuation

__all__ = ["show_plan"]


def show_plan(run: api.Plan, as_json: bool) -> None:
    """Print a plan and its cost.

    Args:
        run: The plan.
        as_json: Whether a machine reads it.
    """
    import attrs

    from ppap_framework import api

    cost, settings = run.cost, run.settings
    if as_json:
        print_json({"config": run.record(), "cost": attrs.asdict(cost)})
        return
    print_fields(
        "backend",
        {**_source(run.backend.origin), "parameters": _count(cost.denoiser_parameters)},
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
            "number": f"{settings.num} of {height}x{width}, {settings.batch} at once",
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


def _continuation(following: Continuation) -> str:
    _, height, width = following.stage.image_shape
    schedule = following.process.schedule
    return (
        f"to {height}x{width} in {len(following.process)} of {schedule.num_timesteps} steps, "
        f"schedule {schedule.name}"
    )


def _source(origin: api.Origin) -> dict[str, Any]:
    return {
        "name": origin.component,
        "plugin": f"{origin.distribution} {origin.version}" if origin.distribution else None,
        "checkpoint": origin.checkpoint,
    }


def _experts(experts: api.ChosenExperts | None) -> str:
    if experts is None:
        return "none"
    return f"{len(experts.ranges)} of {experts.name}, {experts.path} ({str(experts.sha256)[:12]})"


def _count(number: int) -> str:
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)
