from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from ppap_framework.cli.output import print_fields, print_json
from ppap_framework.errors import Problems
from ppap_framework.run import counts_of, first_batch, option_words, scale_words
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
    sampling, every = plan.sampling, plan.backend.stages
    stages = [stage.name for stage in plan.stages]
    left_out = [stage.name for stage in every if stage.name not in stages]
    print_fields(
        "backend",
        {
            **_origin(config["backend"]),
            "stages": stages if len(every) > 1 else None,
            "not drawn": left_out or None,
            "parameters": [f"{name} {n:,}" for name, n in counts["stage_parameters"].items()],
        },
    )
    for guide, record in zip(plan.guides, config["guides"], strict=True):
        experts, (low, high) = record["experts"], guide.interval
        own = counts["expert_parameters"].get(guide.name, ())
        print_fields(
            f"guide {guide.name}",
            {
                **_origin(record),
                "parameters": f"{counts['guide_parameters'][guide.name]:,}",
                "target": record["target"],
                "loss": record["loss"],
                "experts": "{num_experts} of {name}, {path} ({sha256:.12})".format(**experts)
                if experts
                else "none",
                "each expert": f"{max(own):,} parameters" if own else None,
                "scale": scale_words(guide) + (" of unit gradients" if sampling.normalize else ""),
                "acts": f"from t/T {low:g} to {high:g}, through the {sampling.through} image",
                "conflicts": None if sampling.conflicts == "keep" else "removed",
            },
        )
    print_fields(
        "images",
        {
            "number": f"{plan.num} of {height}x{width}, {batch} at once",
            "seed": sampling.seed,
            "prompt": sampling.prompt if isinstance(sampling.prompt, str) else None,
            "sampler": sampling.sampler_name + (f", eta {sampling.eta:g}" if sampling.eta else ""),
            "steps": [_steps(*each) for each in zip(stages, plan.processes, strict=True)],
            "device": plan.device,
        },
    )
    forwards = {f"{name} forwards": n for name, n in counts["guide_forwards"].items()}
    backwards = {f"{name} backwards": n for name, n in counts["guide_forwards"].items()}
    print_fields(
        "images that each network sees, over all steps",
        {
            "denoiser forwards": counts["denoiser_forwards"],
            "denoiser backwards": counts["denoiser_backwards"],
            **forwards,
            **backwards,
        },
    )
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


def _steps(stage: str, process: Process) -> str:
    schedule = process.schedule
    return f"{stage} {len(process)} of {schedule.num_timesteps}, schedule {schedule.name}"


def _origin(record: Mapping[str, Any]) -> dict[str, Any]:
    supplier = "{distribution} {version}".format(**record) if record.get("distribution") else None
    options = record.get("resolved") or record.get("options")
    return {
        "name": record["component"],
        "plugin": supplier,
        "checkpoint": record.get("checkpoint"),
        "options": option_words(options) if options else None,
    }
