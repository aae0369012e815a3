"""Counts and measures what docs/cost.md says of the paper's full recipe; writes its tables.

    python docs/make_cost.py measure    FLOPs, and seconds on this CPU; minutes, 4 GB of memory
    python docs/make_cost.py page       only the tables, from docs/cost/full-recipe.json

Weights are random: neither FLOPs nor times depend on them.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ppap_framework.experts import ExpertSet, NoiseRanges, installed_adapter
from ppap_framework.experts.info import AdapterConfig
from ppap_framework.noise import linear_schedule
from ppap_framework.registry import registry
from ppap_framework.run import ModuleGuide
from ppap_plugin_adm import build

DOCS = Path(__file__).parent
PAGE, RECORD = DOCS / "cost.md", DOCS / "cost" / "full-recipe.json"

BACKEND, WIDTH = "adm-256-uncond", 256
GUIDE, SIZE = "resnet50", 224
ADAPTERS = (AdapterConfig(name="lora", options={"rank": 8}), AdapterConfig(name="bias", options={}))
EXPERTS = 5

IMAGES, ITERATIONS, BATCH = 500_000, 300_000, 256
"""The recipe of PPAP (Go et al. 2023)."""

STEPS = 25
"""Of DDIM, for each image: the default of `ppap synthesize`."""

PEAK = 312e12
"""FLOP/s of the GPU that is assumed: 312 TFLOP/s in bfloat16, as of an NVIDIA A100."""

SHARES = (0.1, 0.3, 0.5)
"""Shares of the peak that are assumed to be reached."""

GPUS = (1, 8, 64)


def counted(compute: Callable[[], object]) -> int:
    """FLOPs of matrix products and convolutions, two for each multiply-add."""
    with FlopCounterMode(display=False) as counter:
        compute()
    return int(counter.get_total_flops())


def timed(compute: Callable[[], object]) -> float:
    """Processor time in seconds, which other processes do not add to."""
    start = time.process_time()
    compute()
    return time.process_time() - start


def costs(compute: Callable[[], object]) -> dict[str, float]:
    flops = counted(compute)  # which also lays out memory
    return {"flops": flops, "cpu_seconds": round(timed(compute), 3)}


def denoiser() -> dict[str, float]:
    """One evaluation of the diffusion model, for one image."""
    card = registry().card_named(BACKEND)
    with torch.device("meta"):
        network = build(card.architecture["official_class"], card.architecture["config"])
    network = network.to_empty(device="cpu").eval().requires_grad_(False)
    for tensor in network.state_dict().values():
        tensor.normal_(0.0, 0.02)
    x, t = torch.zeros(1, 3, WIDTH, WIDTH), torch.zeros(1, dtype=torch.int64)
    return costs(lambda: network(x, t))


def training() -> tuple[dict[str, float], dict[str, float]]:
    """One look of the teacher, and one step of an expert, each for one image."""
    network = timm.create_model(GUIDE).eval().requires_grad_(False)
    images = torch.zeros(1, 3, SIZE, SIZE)
    with torch.no_grad():
        teacher = costs(lambda: network(images))
    experts = attached(network)
    with experts.training(0):
        student = costs(lambda: experts.model(images).sum().backward())
    experts.detach()
    return teacher, student


def attached(network: nn.Module) -> ExpertSet:
    made = {config.name: installed_adapter(config) for config in ADAPTERS}
    return ExpertSet(ModuleGuide(network), NoiseRanges.equal(linear_schedule(), EXPERTS), made)


def measure() -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    teacher, student = training()
    return {
        "backend": BACKEND,
        "guide": GUIDE,
        "processor": processor(),
        "torch": torch.__version__,
        "denoiser": denoiser(),
        "teacher": teacher,
        "student": student,
    }


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def number(value: float) -> str:
    """Two digits that count."""
    return f"{float(f'{value:.2g}'):,.6g}"


def table(columns: list[str], rows: list[list[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def lines(record: dict[str, Any]) -> list[str]:
    """The tables, and the sentences that have numbers."""
    names = {
        "denoiser": f"`{record['backend']}`, one evaluation",
        "teacher": f"`{record['guide']}` looks at a clean image",
        "student": f"an expert of `{record['guide']}` learns: forward and backward",
    }
    units = []
    for key, title in names.items():
        flops, seconds = record[key]["flops"], record[key]["cpu_seconds"]
        units.append([title, *map(number, (flops / 1e9, seconds, flops / seconds / 1e9))])
    columns = ["for one image", "GFLOP", "seconds of one core", "GFLOP/s"]
    made = table(columns, units)
    made += [
        "",
        f"Measured on {record['processor']}, one thread, float32, torch {record['torch']}.",
    ]
    times = {"denoiser": IMAGES * STEPS, "teacher": IMAGES, "student": ITERATIONS * BATCH}
    jobs = {
        f"draw {IMAGES:,} images in {STEPS} steps": ["denoiser"],
        "the untouched network looks at each, once": ["teacher"],
        f"train {ITERATIONS:,} iterations of batch {BATCH}": ["student"],
        "together": [*times],
    }
    rows, small = [], []
    for title, parts in jobs.items():
        flops = sum(times[part] * record[part]["flops"] for part in parts)
        seconds = sum(times[part] * record[part]["cpu_seconds"] for part in parts)
        small.append([title, number(flops / 1e18), number(seconds / 3600 / 24 / 365)])
        for gpus in GPUS[1:]:
            hours = [flops / PEAK / share / gpus / 3600 for share in SHARES]
            rows.append([title, str(gpus), *map(number, hours)])
    made += ["", *table(["", "EFLOP", "years of one core"], small), ""]
    shares = [f"hours at {share:.0%} of the peak" for share in SHARES]
    made += table(["", "GPUs", *shares], sorted(rows, key=lambda row: int(row[1])))
    total = sum(n * record[part]["flops"] for part, n in times.items())
    used = ", ".join(number(total / PEAK / share / 3600) for share in SHARES)
    pixels = number(IMAGES * 3 * WIDTH**2 / 1e9)
    last = EXPERTS * times["student"] * record["student"]["flops"]
    longer = number((total + last - last / EXPERTS) / total)
    return [
        *made,
        "",
        f"GPU hours in all, at each of these shares of the peak: {used}. The GPU is assumed to do",
        f"{PEAK / 1e12:g} TFLOP/s at its peak, in bfloat16. If each of {EXPERTS} experts trains",
        f"for as long as all do together here, all of it takes {longer} times as long.",
        "",
        f"Uncompressed, the pixels of {IMAGES:,} images are {pixels} GB; PNG makes them smaller.",
    ]


MARK, END = "<!-- cost -->\n", "<!-- end of cost -->\n"


def write_page() -> None:
    """Put the tables between their marks."""
    head, _, rest = PAGE.read_text().partition(MARK)
    _, _, tail = rest.partition(END)
    made = "".join(f"{line}\n" for line in lines(json.loads(RECORD.read_text())))
    PAGE.write_text(f"{head}{MARK}{made}{END}{tail}")


def main() -> None:
    """Measure, or only write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("measure", "page"))
    if parser.parse_args().what == "measure":
        RECORD.write_text(json.dumps(measure(), indent=1) + "\n")
    write_page()


if __name__ == "__main__":
    main()
