"""What all recipes share: a seeded training loop that can be killed at any moment, rendered
pictures kept on disk, what is done to them by chance, and options of the command lines.

The examples of step s are a pure function of (seed, s), so that a resumed training goes on as if
never interrupted. The learning rate rises over `warmup` steps, stays, and falls linearly to zero
over the last `decay` ones.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import attrs
import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppap_plugin_shapes.world import render

RENDER_BLOCK = 500
TEST_SEED = 900  # of scenes that no network has learnt
Truth: TypeAlias = Literal["labels", "depth", "segmentation", "boxes"]

state_option = click.option(
    "--state", type=click.Path(path_type=Path), required=True, help="Folder that survives a kill."
)
decay_option = click.option(
    "--decay",
    default=0,
    show_default=True,
    help="Last steps over which the learning rate falls to zero.",
)
batch_option = click.option("--batch", default=16, show_default=True)
compile_option = click.option("--compile/--no-compile", "compiled", default=True, show_default=True)
bfloat16_option = click.option(
    "--bfloat16/--float32",
    default=True,
    show_default=True,
    help="bfloat16 products; worth it only where the processor has them.",
)


@attrs.frozen(kw_only=True)
class Plan:
    """How long and how to train."""

    steps: int
    batch: int
    learning_rate: float
    seed: int
    warmup: int = 200
    decay: int = 0
    weight_decay: float = 0.0
    ema: float = 0.999
    save_every: int = 250

    def rate(self, step: int) -> float:
        """The factor of the learning rate at a step."""
        rise = min(1.0, (step + 1) / self.warmup)
        fall = min(1.0, (self.steps - step) / self.decay) if self.decay else 1.0
        return rise * fall

    def ema_decay(self, step: int) -> float:
        """Short memory at first, so that the average forgets the initial weights."""
        return min(self.ema, (1 + step) / (10 + step))


def record(
    recipe: str, plan: Plan, seconds: float, data: tuple[int, int] | None = None, **notes: object
) -> dict[str, Any]:
    """What a card says of a training; `data` are seed and number of the scenes, if it saw some."""
    seen = {"data_seed": data[0], "data_count": data[1], "test_seed": TEST_SEED} if data else {}
    return {
        "recipe": recipe,
        **attrs.asdict(plan),
        **notes,
        "seconds": round(seconds),
        **seen,
    }


def _render_block(seed: int, start: int, size: int, truth: str) -> tuple[np.ndarray, np.ndarray]:
    scenes = render(seed, range(start, start + RENDER_BLOCK), size)
    return scenes.images, getattr(scenes, truth)


def rendered(
    folder: Path,
    seed: int,
    count: int,
    size: int = 32,
    truth: Truth = "labels",
) -> tuple[Tensor, Tensor]:
    """The first `count` scenes of a seed, rendered once and kept: images (N, 3, size, size) uint8,
    and labels (N,), distances or classes (N, size, size), or boxes (N, 3, 5).
    """
    kept = "" if truth == "labels" else f"-{truth}"
    path = folder / f"renders-{seed}-{count}-{size}{kept}.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        starts = range(0, count, RENDER_BLOCK)
        with ProcessPoolExecutor(2) as pool:
            blocks = list(pool.map(partial(_render_block, seed, size=size, truth=truth), starts))
        images = np.concatenate([images for images, _ in blocks])[:count].transpose(0, 3, 1, 2)
        truths = np.concatenate([truths for _, truths in blocks])[:count]
        unfinished = path.with_suffix(".partial.npz")
        np.savez(unfinished, images=images, **{truth: truths})
        unfinished.replace(path)
    with np.load(path) as file:
        truths = torch.from_numpy(file[truth])
        truths = truths if truths.is_floating_point() else truths.long()
        return torch.from_numpy(file["images"]), truths


def to_images(pixels: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1], channels last."""
    return (pixels.float() / 127.5 - 1.0).contiguous(memory_format=torch.channels_last)


def mirrored(generator: torch.Generator, *maps: Tensor) -> list[Tensor]:
    """Each of B images, (B, ..., W), flipped by chance, and what belongs to it likewise."""
    chosen = torch.rand(len(maps[0]), generator=generator) < 0.5
    return [torch.where(chosen.view(-1, *[1] * (m.ndim - 1)), m.flip(-1), m) for m in maps]


def grained(x: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the images softened, and faint noise on all: what generated pictures have, and
    renders have not.
    """
    batch = len(x)
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    weight = torch.rand(batch, 1, 1, 1, generator=generator) * (
        torch.rand(batch, 1, 1, 1, generator=generator) < 0.5
    )
    sigma = 0.08 * torch.rand(batch, 1, 1, 1, generator=generator)
    return torch.lerp(x, soft, weight) + sigma * torch.randn(x.shape, generator=generator)


def halved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as they are published: floating point in half precision."""
    return {k: v.half() if v.is_floating_point() else v for k, v in state.items()}


def step_generator(seed: int, step: int) -> torch.Generator:
    """The source of everything random at one step."""
    state = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def train(
    network: nn.Module,
    plan: Plan,
    folder: Path,
    loss: Callable[[torch.Generator], tuple[Tensor, dict[str, float]]],
) -> tuple[dict[str, Tensor], float]:
    """Train, going on from `folder` if there is a state in it.

    Args:
        network: Its parameters and buffers are trained in place.
        plan: The steps counted from the very beginning.
        folder: Keeps `state.pt` and `log.jsonl`.
        loss: The loss of one batch and figures for the log, from the step's generator.

    Returns:
        The averaged state dict, and the seconds spent on all steps together.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=plan.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=plan.weight_decay,
    )
    average = {name: value.detach().clone() for name, value in network.state_dict().items()}
    state_file = folder / "state.pt"
    step, seconds = 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        average, step, seconds = state["average"], state["step"], state["seconds"]

    def save() -> None:
        unfinished = state_file.with_suffix(".partial")
        torch.save(
            {
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average,
                "step": step,
                "seconds": seconds,
            },
            unfinished,
        )
        unfinished.replace(state_file)

    stopping = False

    def stop(signum: int, frame: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    network.train()
    while step < plan.steps and not stopping:
        started = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * plan.rate(step)
        value, figures = loss(step_generator(plan.seed, step))
        optimizer.zero_grad()
        value.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        decay = plan.ema_decay(step)
        with torch.no_grad():
            for name, current in network.state_dict().items():
                if current.is_floating_point():
                    average[name].lerp_(current, 1.0 - decay)
                else:
                    average[name].copy_(current)
        step += 1
        seconds += time.perf_counter() - started
        if step % 50 == 0:
            line = {
                "step": step,
                "seconds": round(seconds, 1),
                "loss": value.item(),
                "norm": norm.item(),
                **figures,
            }
            with (folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
        if step % plan.save_every == 0:
            save()
    save()
    if stopping:
        raise SystemExit(130)
    return average, seconds
