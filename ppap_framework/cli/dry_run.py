from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from ppap_framework.cli.output import print_fields, print_json
from ppap_framework.errors import Problems
from ppap_framework.run import counts_of, first_batch, scale_words
from ppap_framework.run.estimate import estimate

if TYPE_CHECKING:
    from ppap_framework.diffusion import Process
    from ppap_framework.run import Plan


def show_plan(plan: Plan, as_json: bool) -> None:
    """Print a plan and its cost."""
    config, counts, problems = plan.record(), attrs.asdict(counts_of(plan)), Problems()
    found = problems.attempt(estimate, plan)
    if as_json:
        cost = attrs.asdict(found) if found else None
        print_json({"config": config, "cost": counts, "estimate": cost})
        return
    batch, (_, height, width) = first_batch(plan), plan.stages[-1].image_shape
    print_fields("backend", config["backend"])
    for guide, record in zip(plan.guides, config["guides"], strict=True):
        print_fields(f"guide {guide.name}", {**record, "scale": scale_words(guide)})
    steps = {stage.name: _steps(p) for stage, p in zip(plan.stages, plan.processes, strict=True)}
    images = {"number": f"{plan.num} of {height}x{width}, {batch} at once", "steps": steps}
    print_fields("images", {**plan.sampling.record(), **images, "device": plan.device})
    print_fields("parameters, and images that each network sees over all steps", counts)
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


def _steps(process: Process) -> str:
    schedule = process.schedule
    return f"{len(process)} of {schedule.num_timesteps}, schedule {schedule.name}"
