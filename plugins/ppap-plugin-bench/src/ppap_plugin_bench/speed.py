"""Cost of one guided step, part by part, beside the machine's ceiling and the published style.

The published style computes the same numbers as the published code does: convolutions in PyTorch's
default layout, attention as two products with all scores in memory, and the adapters of an expert
beside the weights instead of merged into them. All parts take turns, round by round, so that other
load on the machine affects each of them.
"""

from __future__ import annotations

import contextlib
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ppap_framework.diffusion import NoiseSource, trajectory
from ppap_framework.diffusion.process import times
from ppap_framework.experts import ExpertSet
from ppap_framework.guidance import EnergyGuidance, Guide
from ppap_framework.run import Plan, drawing
from ppap_framework.run.estimate import estimate
from ppap_framework.runtime import computing_in
from ppap_plugin_diagnose.intervals import rounded

_SIDE, _CHANNELS, _WIDTH = 64, 64, 2048


def speed(ours: Plan, published: Plan, rounds: int = 7) -> dict[str, Any]:
    """Measure a guided step of all images of a plan at once, halfway between noise and image.

    Args:
        ours: A plan with one guide, whose batch holds all of its images.
        published: The same plan of another backend and guide, whose networks change their layout.
        rounds: Number of measurements after a first one that does not count.

    Returns:
        JSON. `parts`: for each of "denoiser", "guide forward", "guide gradient" (forward and
        backward), "sampler", and the whole "step": `seconds` (median), `rounds`, `published` (the
        same in the published style), `faster` (median ratio of a round), `flops`, `share` (of the
        ceiling), and `memory` in bytes, estimated. `ceiling`: FLOP/s of a convolution of 64
        channels and of a product of 2048 x 2048 matrices in the same rounds; the larger counts.
    """
    with contextlib.ExitStack() as stack:
        parts = stack.enter_context(_parts(ours, published_style=False))
        theirs = stack.enter_context(_parts(published, published_style=True))
        ceilings = {"convolution": _convolution(ours), "product": _product(ours)}
        works: dict[Any, Callable[[], object]] = {
            **parts,
            **{("published", name): work for name, work in theirs.items()},
            **{("ceiling", name): work for name, (work, _) in ceilings.items()},
        }
        seconds = in_turn(works, rounds, ours.device)
    flops = {name: ceilings[name][1] / min(seconds["ceiling", name]) for name in ceilings}
    costs = _costs(ours)
    return {
        "machine": platform.processor() or platform.machine(),
        "device": str(ours.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": ours.compute.precision,
        "batch": ours.num,
        "shape": list(ours.stage.shape),
        "ceiling": flops,
        "parts": {
            name: {
                "seconds": rounded(statistics.median(taken := seconds[name])),
                "rounds": [rounded(one) for one in taken],
                "published": rounded(statistics.median(seconds["published", name])),
                "faster": rounded(
                    statistics.median(
                        b / a for a, b in zip(taken, seconds["published", name], strict=True)
                    )
                ),
                "flops": costs[name][0],
                "share": rounded(costs[name][0] / statistics.median(taken) / max(flops.values())),
                "memory": costs[name][1],
            }
            for name in parts
        },
    }


def in_turn(
    works: Mapping[Any, Callable[[], object]], rounds: int, device: torch.device
) -> dict[Any, list[float]]:
    """Seconds of each function, once a round; the first round, which is slower, is left out."""
    seconds: dict[Any, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


@contextlib.contextmanager
def _parts(plan: Plan, *, published_style: bool) -> Iterator[dict[str, Callable[[], object]]]:
    """The parts of a step as functions."""
    stage, process, sampling = plan.stage, plan.process, plan.sampling
    index, noise = len(process) // 2, NoiseSource(sampling.seed)
    level, images = process.level(index, plan.num), range(plan.num)
    style: Callable[[], Any] = contextlib.nullcontext
    with drawing(plan) as draw, contextlib.ExitStack() as stack:
        [guide] = draw.guides
        guide = guide.rows(0, plan.num)
        if published_style:
            style = partial(sdpa_kernel, SDPBackend.MATH)
            guide = stack.enter_context(_unmerged(guide, level.log_snr[0].item()))
            for network in (stage.network, guide.model.network):
                network.to(memory_format=torch.contiguous_format)
                stack.callback(network.register_forward_pre_hook(_in_default_layout).remove)
        x = noise((plan.num, *stage.shape)).to(plan.device)
        t = times([process.timesteps[index]] * plan.num, plan.device)
        condition = plan.backend.encode(sampling.prompts(images), plan.num)
        walk = partial(trajectory, stage, process, x, noise, condition=condition, indices=[index])
        gradient, prediction = guide.gradient(x, level), stage.denoise(x, t, condition).detach()
        works: dict[str, Callable[[], object]] = {
            "denoiser": torch.no_grad()(lambda: stage.denoise(x, t, condition)),
            "guide forward": torch.no_grad()(lambda: guide.energy(x, level)),
            "guide gradient": lambda: guide.gradient(x, level),
            "sampler": lambda: sampling.step(process, index, prediction, x, gradient),
            "step": lambda: list(walk(step=sampling.step, guidance=EnergyGuidance([guide]))),
        }

        def styled(work: Callable[[], object]) -> object:
            with computing_in(plan.compute.precision, plan.device), style():
                return work()

        yield {name: partial(styled, work) for name, work in works.items()}


@contextlib.contextmanager
def _unmerged(guide: Guide, log_snr: float) -> Iterator[Guide]:
    """A context in which the weights of the expert of a level stay beside the network's."""
    experts = guide.experts
    if not isinstance(experts, ExpertSet):
        yield guide
        return
    owner = experts.ranges.owner(log_snr)
    with experts.training(owner):
        for parameter in experts.parameters(owner):
            parameter.requires_grad_(False)
        yield attrs.evolve(guide, model=experts.student, experts=None)


def _in_default_layout(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.contiguous() if isinstance(x, Tensor) else x for x in given)


def _convolution(plan: Plan) -> tuple[Callable[[], object], float]:
    """A large convolution, and its FLOPs."""
    x = torch.randn(8, _CHANNELS, _SIDE, _SIDE, device=plan.device)
    layer = nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1, bias=False, device=plan.device)
    layer, x = layer.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def work() -> object:
        with computing_in(plan.compute.precision, plan.device):
            return layer(x)

    return work, 2.0 * 9 * _CHANNELS**2 * x.shape[0] * _SIDE**2


def _product(plan: Plan) -> tuple[Callable[[], object], float]:
    """A large matrix product, and its FLOPs."""
    a, b = (torch.randn(_WIDTH, _WIDTH, device=plan.device) for _ in range(2))

    def work() -> object:
        with computing_in(plan.compute.precision, plan.device):
            return F.linear(a, b)

    return work, 2.0 * _WIDTH**3


def _costs(plan: Plan) -> dict[str, tuple[float, int | None]]:
    """FLOPs and bytes of each part for the batch."""
    found = estimate(plan)
    denoiser = found.stages[plan.stage.name]
    [guide] = found.guides.values()
    count, both = plan.num, guide.forward + guide.backward
    return {
        "denoiser": (count * denoiser.forward, count * denoiser.memory),
        "guide forward": (count * guide.forward, None),
        "guide gradient": (count * both, count * guide.memory),
        "sampler": (0.0, None),
        "step": (count * (denoiser.forward + both), count * max(denoiser.memory, guide.memory)),
    }
