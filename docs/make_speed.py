"""Measures what docs/speed.md says; `speed_page` writes its tables and its plot.

    python docs/make_speed.py measure    on a machine at rest with two cores; about 8 minutes
    python docs/make_speed.py page       only the page, from docs/speed/guided-step.json

`measure step training` measures these parts again and keeps the others. Weights of steps and
trainings are random: times do not depend on them.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import datetime
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import timm
import torch
from make_cost import processor
from speed_page import BATCH, DRAWN, EXPERTS, RECORD, RUN, SIDE, THREADS, TRAINED, write
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.profiler import ProfilerActivity, profile

import ppap_framework as ppap
from ppap_framework.author import Preprocessing
from ppap_framework.checkpoints import save_checkpoint
from ppap_framework.diffusion import NoiseSource, trajectory
from ppap_framework.experts import AdapterConfig, ExpertSet, NoiseRanges, installed_adapter
from ppap_framework.guidance import EnergyGuidance
from ppap_framework.learn.batches import TrainingSet, training_batch
from ppap_framework.learn.distillation import Distillation
from ppap_framework.learn.recipe import Phase, Recipe
from ppap_framework.noise import cosine_schedule
from ppap_framework.pixels import scaled
from ppap_framework.run import Compute, ModuleGuide, Plan, Sampling, drawing, plan
from ppap_framework.runtime import computing_in
from ppap_plugin_adm import build
from ppap_plugin_bench.speed import in_turn, speed
from ppap_plugin_classifier.guider import ClassifierGuide
from ppap_plugin_classifier.loss import CrossEntropy

UNET = "guided_diffusion.unet.UNetModel"
ADAPTERS = (AdapterConfig(name="lora", options={"rank": 8}), AdapterConfig(name="bias", options={}))
CASES = ((1, "float32"), (BATCH, "float32"), (BATCH, "bfloat16"))
ROUNDS = 7
GROWTH: dict[str, tuple[int, ...]] = {
    "side": (32, 64, 128, 256),
    "batch": (1, 2, 4, 8, 16, 32),
    "experts": (1, 2, 5, 10, 20),
    "guides": (1, 2, 3, 4),
}
OPERATORS = 8
IMAGES = 512
CPU = torch.device("cpu")
SHOWN = Preprocessing(size=SIDE, mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bilinear")


def unet(folder: Path, side: int) -> Path:
    """A file of ADM's architecture: 32 channels, attention at 32, 16 and 8 pixels."""
    config: dict[str, Any] = {
        "image_size": side,
        "in_channels": 3,
        "model_channels": 32,
        "out_channels": 6,
        "num_res_blocks": 2,
        "attention_resolutions": [d for d in (1, 2, 4, 8) if 8 <= side // d <= 32],
        "channel_mult": [1, 2, 3, 4],
        "num_head_channels": 32,
        "use_scale_shift_norm": True,
        "resblock_updown": True,
    }
    with torch.device("meta"):
        network = build(UNET, config)
    state = {n: 0.02 * torch.randn(value.shape) for n, value in network.state_dict().items()}
    path = folder / f"{side}.safetensors"
    process = {"schedule": "cosine", "timesteps": 1000}
    save_checkpoint(path, state, {"official_class": UNET, "config": config, "process": process})
    return path


def resnet() -> nn.Module:
    """ResNet-50 with random weights and statistics."""
    network = timm.create_model("resnet50", num_classes=1000).eval()
    for name, buffer in network.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
    return network


def attached(model: ppap.GuidanceModel, experts: int) -> ExpertSet:
    """Random experts of a guide."""
    made = {config.name: installed_adapter(config) for config in ADAPTERS}
    found = ExpertSet(model, NoiseRanges.equal(cosine_schedule(), experts), made)
    for number in range(experts):
        for parameter in found.parameters(number):
            parameter.data.normal_(0.0, 0.01)
    return found


def guide(name: str, experts: int) -> ppap.Guide:
    """ResNet-50 with random experts, as the guider `classifier` makes it."""
    made = attached(ClassifierGuide(resnet(), [str(k) for k in range(1000)], SHOWN), experts)
    given: Any = {"loss": "cross-entropy", "target": 0, "scale": 1.0, "name": name}
    return ppap.guide(made.model, experts=made, **given)


def planned(path: Path, batch: int, guides: int = 1, experts: int = EXPERTS, **how: Any) -> Plan:
    """A run of one batch."""
    every = [guide(f"guide-{number}", experts) for number in range(guides)]
    compute = Compute(batch=batch, threads=THREADS, **how)
    return plan(
        ppap.backend("adm", checkpoint=path), every, batch, Sampling(sampler="ddim"), compute
    )


@contextlib.contextmanager
def step(run: Plan) -> Iterator[tuple[Callable[[], object], Any]]:
    """A guided step of a run, and its guides."""
    noise, index = NoiseSource(0), len(run.process) // 2
    x = noise((run.num, *run.stage.shape))

    def work() -> object:
        how: Any = {
            "step": run.sampling.step,
            "guidance": EnergyGuidance(guides),
            "indices": [index],
        }
        with computing_in(run.compute.precision, run.device):
            return list(trajectory(run.stage, run.process, x, noise, **how))

    with drawing(run) as draw:
        guides = [one.rows(0, run.num) for one in draw.guides]
        yield work, guides


def growth(folder: Path) -> Iterator[tuple[str, int, float]]:
    """Seconds of a step, as one number grows and the others stay."""
    for what, values in GROWTH.items():
        for value in values:
            side = value if what == "side" else SIDE
            batch = value if what == "batch" else 1 if what == "side" else BATCH
            more = {what: value} if what in ("experts", "guides") else {}
            with step(planned(folder / f"{side}.safetensors", batch, **more)) as (work, _):
                yield what, value, statistics.median(in_turn({0: work}, 3, CPU)[0])


def operators(path: Path) -> list[list[Any]]:
    """The operators of a step that take longest, and slow convolutions, with their share of the
    time.
    """
    with step(planned(path, BATCH)) as (work, _):
        work()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            work()
    every = sorted(seen.key_averages(), key=lambda row: -row.self_cpu_time_total)
    whole = sum(row.self_cpu_time_total for row in every)
    shown = every[:OPERATORS] + [row for row in every[OPERATORS:] if "slow_conv" in row.key]
    return [
        [row.key.removeprefix("aten::"), round(row.self_cpu_time_total / whole, 3), row.count]
        for row in shown
    ]


def switch(path: Path) -> dict[str, float]:
    """Seconds to merge another expert of five, beside a plain copy of the same weights."""
    with step(planned(path, 1)) as (_, [one]):
        weights = [tensor.detach() for tensor in one.model.network.parameters()]
        others = [tensor.clone() for tensor in weights]

        def copied() -> None:
            for other, weight in zip(others, weights, strict=True):
                other.copy_(weight)

        works = {k: partial(one.experts.activate, k) for k in range(EXPERTS)}
        found = in_turn({**works, "copy": copied}, ROUNDS, CPU)
    copy_ = statistics.median(found.pop("copy"))
    return {"switch": statistics.median(chain.from_iterable(found.values())), "copy": copy_}


def around(path: Path) -> dict[str, float]:
    """Seconds of the guide's preprocessing and of its loss, forward and backward."""
    with step(planned(path, BATCH)) as (_, [one]):
        x = torch.randn(BATCH, 3, SIDE, SIDE, requires_grad=True)
        logits = torch.randn(BATCH, 1000, requires_grad=True)
        target = torch.zeros(BATCH, dtype=torch.int64)
        works = {
            "preprocessing": lambda: torch.autograd.grad(one.model.shown(x).sum(), x),
            "loss": lambda: torch.autograd.grad(one.loss.energy(logits, target).sum(), logits),
        }
        return {what: statistics.median(s) for what, s in in_turn(works, ROUNDS, CPU).items()}


def folded(network: nn.Module) -> nn.Module:
    """A copy of a ResNet of timm whose convolutions contain the batch norms behind them."""
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        pairs = [(f"conv{k}", f"bn{k}") for k in (1, 2, 3) if hasattr(module, f"bn{k}")]
        if isinstance(module, nn.Sequential) and len(module) > 1:
            pairs += [("0", "1")] * isinstance(module[1], nn.BatchNorm2d)
        for conv, norm in pairs:
            setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
            setattr(module, norm, nn.Identity())
    return network.to(memory_format=torch.channels_last)


def folding() -> dict[int, dict[str, float]]:
    """Seconds of the gradient through a bare ResNet-50, with and without folded batch norms."""
    network = resnet().requires_grad_(False).to(memory_format=torch.channels_last)
    networks, found = {"plain": network, "folded": folded(network)}, {}
    for batch in (1, BATCH):
        x = torch.randn(batch, 3, SIDE, SIDE).to(memory_format=torch.channels_last)
        x.requires_grad_()
        works = {
            what: lambda one=one, x=x: torch.autograd.grad(one(x).logsumexp(1).sum(), x)
            for what, one in networks.items()
        }
        [a], [b] = (work() for work in works.values())
        torch.testing.assert_close(a, b, rtol=0.0, atol=0.05 * a.abs().max().item())
        found[batch] = {w: statistics.median(s) for w, s in in_turn(works, ROUNDS, CPU).items()}
    return found


def training() -> dict[str, float]:
    """Seconds of an iteration of knowledge transfer, beside one in the style of the published code:
    a network of its own, in the default layout, and the teacher's answers computed anew.
    """
    schedule, compare = cosine_schedule(), CrossEntropy()
    pixels = torch.randint(0, 256, (IMAGES, 3, SIDE, SIDE), dtype=torch.uint8)
    answers = torch.randn(IMAGES, 1000)
    data = TrainingSet(
        images=lambda rows: scaled(pixels[rows]),
        answers=lambda rows: answers[rows],
        count=IMAGES,
        shape=(3, SIDE, SIDE),
    )
    recipe = Recipe(batch=TRAINED, validate_every=10**6)
    times = range(200)
    phases = (Phase(0, times, 10**6, None),)
    experts = attached(ClassifierGuide(resnet(), [str(k) for k in range(1000)], SHOWN), EXPERTS)
    ours = Distillation(experts, compare, schedule, data, recipe, phases).run()

    network, teacher = resnet(), resnet().requires_grad_(False)
    theirs = attached(ModuleGuide(network), 1)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        drawn = training_batch((0, 0), step, TRAINED, IMAGES, times, (3, SIDE, SIDE))
        x0 = data.images(drawn.images)
        return x0, schedule.add_noise(x0, drawn.timesteps, drawn.noise)

    with theirs.training(0), contextlib.closing(ours):
        network.train()
        parameters = list(theirs.parameters(0))
        optimizer = torch.optim.AdamW(parameters)

        def published() -> None:
            x0, x_t = batch(0)
            with torch.no_grad():
                said = teacher(x0)
            loss = compare.transfer(network(x_t), said).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()

        works = {"ours": partial(next, ours), "published": published, "data": partial(batch, 0)}
        found = in_turn(works, ROUNDS, CPU)
    faster = [b / a for a, b in zip(found["ours"], found["published"], strict=True)]
    medians = {what: statistics.median(seconds) for what, seconds in found.items()}
    return {**medians, "faster": statistics.median(faster)}


def command(*typed: str, python: tuple[str, ...] = ()) -> tuple[float, str]:
    """Seconds of a command from a cold interpreter, and what it wrote to stderr."""
    line = [sys.executable, *python, "-m", "ppap_framework", *typed]
    threads = {"OMP_NUM_THREADS": str(THREADS)}
    start = time.perf_counter()
    done = subprocess.run(line, env={**os.environ, **threads}, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(done.stderr)
    return seconds, done.stderr


def start_up(folder: Path) -> dict[str, float]:
    """Seconds of commands from a cold interpreter, and of the imports of the second."""
    outs = (("--out", str(folder / f"run-{number}")) for number in range(5))
    help_ = [command("--help")[0] for _ in range(ROUNDS + 1)][1:]
    whole = [command(*RUN, *next(outs))[0] for _ in range(4)][1:]
    _, told = command(*RUN, *next(outs), python=("-X", "importtime"))
    imports = sum(int(us) for us in re.findall(r"^import time: +(\d+) \|", told, re.M)) / 1e6
    medians = {"help": statistics.median(help_), "run": statistics.median(whole)}
    return {**medians, "imports": imports}


def memory(folder: Path) -> dict[int, float]:
    """Peak memory in bytes of runs without a guide, by their number of images."""
    found = {}
    for count in DRAWN:
        out = folder / f"drawn-{count}"
        how = ("--backend", "adm", "--num", str(count), "--batch", "32", "--steps", "2")
        command("run", *how, "--sampler", "ddim", "--out", str(out))
        found[count] = json.loads((out / "run.json").read_text())["peak_memory_bytes"]
    return found


def step_parts(paths: dict[int, Path], folder: Path) -> dict[str, Any]:
    cases = []
    for batch, precision in CASES:
        runs = [planned(paths[SIDE], batch, precision=precision) for _ in range(2)]
        cases.append(speed(*runs, ROUNDS))
    return {"cases": cases, "operators": operators(paths[SIDE]), "around": around(paths[SIDE])}


def grown(paths: dict[int, Path], folder: Path) -> dict[str, Any]:
    found: dict[str, dict[int, float]] = {}
    for what, value, seconds in growth(folder):
        found.setdefault(what, {})[value] = round(seconds, 4)
    return {"growth": found}


PARTS: dict[str, Callable[[dict[int, Path], Path], dict[str, Any]]] = {
    "step": step_parts,
    "switch": lambda paths, _: switch(paths[SIDE]),
    "folding": lambda *_: {"folding": folding()},
    "training": lambda *_: {"training": training()},
    "commands": lambda _, folder: {"start": start_up(folder), "memory": memory(folder)},
    "growth": grown,
}


def measure(parts: list[str]) -> None:
    """Measure, and write the record after each part."""
    torch.set_num_threads(THREADS)
    record = json.loads(RECORD.read_text()) if parts else {}
    record |= {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "processor": processor(),
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 1),
    }
    with tempfile.TemporaryDirectory() as home:
        paths = {side: unet(Path(home), side) for side in GROWTH["side"]}
        for name in parts or PARTS:
            record |= PARTS[name](paths, Path(home))
            short = json.loads(json.dumps(record), parse_float=lambda x: float(f"{float(x):.4g}"))
            RECORD.write_text(json.dumps(short, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=["measure", "page"])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    given = parser.parse_args()
    if given.what == "measure":
        RECORD.parent.mkdir(exist_ok=True)
        measure(given.parts)
    write(json.loads(RECORD.read_text()))


if __name__ == "__main__":
    main()
