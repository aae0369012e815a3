from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from ppap_framework.cli.output import print_fields, print_json
from ppap_framework.errors import Problems
from ppap_framework.run import counts_of, first_batch, guide_origin, option_words, scale_words
from ppap_framework.run.estimate import estimate

if TYPE_CHECKING:
    from ppap_framework.components import Stage
    from ppap_framework.diffusion import Process
    from ppap_framework.guidance import Guide
    from ppap_framework.origin import Origin
    from ppap_framework.run import Counts, Plan

_WAYS = ("forwards", "backwards")


def show_plan(plan: Plan, as_json: bool) -> None:
    counts, problems = counts_of(plan), Problems()
    found = problems.attempt(estimate, plan)
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
    images = {
        "number": f"{plan.num} of {_size(plan.stages[-1])}, {batch} at once",
        "seed": sampling.seed,
        "sampler": sampling.sampler_name + (f", eta {sampling.eta:g}" if sampling.eta else ""),
        "steps": _steps(plan.process),
    }
    print_fields("images", {**images, **later, "device": plan.device})
    passes = {f"denoiser {way}": getattr(counts, f"denoiser_{way}") for way in _WAYS}
    for way in _WAYS:
        passes |= {f"{name} {way}": count for name, count in counts.guide_forwards.items()}
    print_fields("images that each network sees, over all steps", passes)
    if found is None:
        print_fields("cost in products and memory", {"unknown": problems.errors[0].message})
        return
    costs = {**found.stages, **found.guides}.items()
    words = {"forward": "forward", "backward": "backward", "before": "before the first"}
    products = {f"{name} {words[k]}": getattr(cost, k) for k in words for name, cost in costs}
    products["of the whole run"] = found.flops
    giga = {k: flops / 1e9 for k, flops in products.items() if flops}
    form = {k: f"{g:.4g}" if g < 1000 else f"{g:,.0f}" for k, g in giga.items()}
    print_fields("GFLOPs of a step of an image", form)
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
            f"{name if each.keys() - {name} else ''} {_count(n)}".strip()
            for name, n in each.items()
        ],
        "stages": stages if len(every) > 1 else None,
        "prompt": repr(prompt) if isinstance(prompt, str) else None,
    }


def _guide(plan: Plan, guide: Guide, counts: Counts) -> dict[str, Any]:
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


def _origin(origin: Origin) -> dict[str, Any]:
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


def _count(number: int) -> str:
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)
