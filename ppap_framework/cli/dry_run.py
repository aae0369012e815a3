from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from ppap_framework.cli.output import print_fields, print_json
from ppap_framework.errors import PpapError

if TYPE_CHECKING:
    from ppap_framework.components import Stage
    from ppap_framework.diffusion import Process
    from ppap_framework.guidance import Guide
    from ppap_framework.origin import Origin
    from ppap_framework.run import Counts, Plan
    from ppap_framework.run.estimate import Estimate


def show_plan(plan: Plan, as_json: bool) -> None:
    from ppap_framework.run import counts_of, first_batch
    from ppap_framework.run.estimate import estimate

    counts, found, unknown = counts_of(plan), None, ""
    try:
        found = estimate(plan)
    except PpapError as error:
        unknown = error.message
    if as_json:
        cost = attrs.asdict(found) if found else None
        print_json({"config": plan.record(), "cost": attrs.asdict(counts), "estimate": cost})
        return
    batch, sampling = first_batch(plan), plan.sampling
    print_fields("backend", _backend(plan, counts))
    for guide in plan.guides:
        print_fields(f"guide {guide.name}", _guide(plan, guide, counts))
    later = {
        f"then {k.stage.name}": f"to {_size(k.stage)} in {_steps(k.process, ' steps')}"
        for k in plan.later
    }
    print_fields(
        "images",
        {
            "number": f"{plan.num} of {_size(plan.stages[-1])}, {batch} at once",
            "seed": sampling.seed,
            "sampler": sampling.sampler_name + (f", eta {sampling.eta:g}" if sampling.eta else ""),
            "steps": _steps(plan.process),
            **later,
            "device": plan.device,
        },
    )
    passes = {
        "denoiser forwards": counts.denoiser_forwards,
        "denoiser backwards": counts.denoiser_backwards,
    }
    for way in ("forwards", "backwards"):
        passes |= {f"{name} {way}": count for name, count in counts.guide_forwards.items()}
    print_fields("images that each network sees, over all steps", passes)
    if found is None:
        print_fields("cost in products and memory", {"unknown": unknown})
        return
    print_fields("GFLOPs of a step of an image", _products(found))
    step = f"about {batch * found.memory / 2**20:,.0f} for {batch} at once"
    print_fields("memory in MiB", {"weights": f"{found.weights / 2**20:,.0f}", "of a step": step})


def _backend(plan: Plan, counts: Counts) -> dict[str, Any]:
    every, running = [s.name for s in plan.backend.stages], [s.name for s in plan.stages]
    left_out = ", ".join(name for name in every if name not in running)
    stages = ", ".join(running) + (f" (not {left_out})" if left_out else "")
    each, prompt = counts.stage_parameters, plan.sampling.prompt
    return {
        **_origin(plan.backend.origin),
        "parameters": [
            f"{name} {_count(n)}" if len(each) > 1 else _count(n) for name, n in each.items()
        ],
        "stages": stages if len(every) > 1 else None,
        "prompt": repr(prompt) if isinstance(prompt, str) else None,
    }


def _guide(plan: Plan, guide: Guide, counts: Counts) -> dict[str, Any]:
    from ppap_framework.run import guide_origin, scale_words

    sampling, experts, (low, high) = plan.sampling, guide.chosen, guide.interval
    own = counts.expert_parameters.get(guide.name, ())
    ends = dict.fromkeys(_count(end(own)) for end in (min, max)) if own else ()
    bundle = "{num_experts} of {name}, {path} ({sha256:.12})"
    unit = " of unit gradients" if sampling.normalize else ""
    resolved = ", conflicts removed" if sampling.conflicts == "remove" else ""
    return {
        **_origin(guide_origin(guide)),
        "parameters": _count(counts.guide_parameters[guide.name]),
        "target": guide.target and guide.target.label,
        "loss": guide.loss_name,
        "experts": bundle.format(**experts.record()) if experts else "none",
        "each expert": f"{' to '.join(ends)} parameters" if ends else None,
        "scale": f"{scale_words(guide)}{unit}{resolved}",
        "acts": f"from t/T {low:g} to {high:g}, through the {sampling.through} image",
    }


def _products(found: Estimate) -> dict[str, Any]:
    words = {"forward": "forward", "backward": "backward", "before": "before the first"}
    products = {
        f"{name} {words[way]}": _giga(getattr(cost, way))
        for way in words
        for name, cost in {**found.stages, **found.guides}.items()
        if getattr(cost, way)
    }
    return products | {"of the whole run": _giga(found.flops)}


def _origin(origin: Origin) -> dict[str, Any]:
    from ppap_framework.run import option_words

    return {
        "name": origin.component,
        "plugin": f"{origin.distribution} {origin.version}" if origin.distribution else None,
        "checkpoint": origin.checkpoint,
        "options": option_words(origin.resolved),
    }


def _size(stage: Stage) -> str:
    return "{1}x{2}".format(*stage.image_shape)


def _steps(process: Process, unit: str = "") -> str:
    schedule = process.schedule
    return f"{len(process)} of {schedule.num_timesteps}{unit}, schedule {schedule.name}"


def _giga(flops: int) -> str:
    giga = flops / 1e9
    return f"{giga:.4g}" if giga < 1000 else f"{giga:,.0f}"


def _count(number: int) -> str:
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)
