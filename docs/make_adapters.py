"""Counts and measures what docs/adapters.md says of experts; writes its tables.

    python docs/make_adapters.py shares     parameters, beside those of the published code
    python docs/make_adapters.py costs      a guided step, and memory; on a machine at rest
    python docs/make_adapters.py page       only the tables, from docs/adapters/*.json

Weights are random: neither parameters nor times depend on them.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ppap_framework.components import Target
from ppap_framework.diffusion import Process, timesteps_for
from ppap_framework.experts import AdapterConfig, ExpertSet, NoiseRanges, installed_adapter
from ppap_framework.guidance import Guide
from ppap_framework.noise import linear_schedule
from ppap_framework.run import FunctionLoss, ModuleGuide

DOCS = Path(__file__).parent
PAGE, RECORDS = DOCS / "adapters.md", DOCS / "adapters"
PUBLISHED = DOCS.parent / "tests" / "parity" / "ppap" / "index.json"

NETWORKS = {"ResNet-50": ("resnet50", "resnet50"), "DeiT-S": ("deit_small_patch16_224", "deit_s")}
"""By title: what timm calls it, and what the published experts are called."""

RELEASED = {
    "ResNet-50": ["conv1", "layer*.conv1", "layer*.conv2"],
    "DeiT-S": ["blocks.*.attn.qkv", "blocks.*.attn.proj"],
}
"""The layers that the published code adapts."""

RANKS = (8, 16)
EXPERTS = (1, 5, 20)
SCHEDULE = linear_schedule()


def lora(**options: Any) -> AdapterConfig:
    return AdapterConfig(name="lora", options={"alpha": 8.0, **options})


BIAS = AdapterConfig(name="bias", options={})


def attached(network: nn.Module, experts: int, configs: Sequence[AdapterConfig]) -> ExpertSet:
    made = {config.name: installed_adapter(config) for config in configs}
    return ExpertSet(ModuleGuide(network), NoiseRanges.equal(SCHEDULE, experts), made)


def trainable(network: nn.Module, configs: Sequence[AdapterConfig]) -> dict[str, int]:
    """The parameters of one expert, by adapter."""
    experts = attached(network, 1, configs)
    try:
        return {
            name: sum(parameter.numel() for parameter in adapter.parameters(0))
            for name, adapter in experts.adapters.items()
        }
    finally:
        experts.detach()


def count_shares() -> list[dict[str, Any]]:
    """A row for each network and rank."""
    published = json.loads(PUBLISHED.read_text())
    rows = []
    for title, (model, name) in NETWORKS.items():
        network = timm.create_model(model).eval().requires_grad_(False)
        size = sum(parameter.numel() for parameter in network.parameters())
        for rank in RANKS:
            theirs = published[f"{name}_gamma{rank}"]
            ours = trainable(network, [lora(rank=rank), BIAS])
            same = trainable(
                network, [lora(rank=rank, variant="reshaped", targets=RELEASED[title]), BIAS]
            )
            rows.append(
                {
                    "network": title,
                    "parameters": size,
                    "rank": rank,
                    "ours": ours,
                    "ours_in_the_released_layers": same,
                    "published": {
                        "lora": theirs["lora_parameters"],
                        "bias": theirs["trainable_parameters"] - theirs["lora_parameters"],
                    },
                    "published_network": theirs["base_model_parameters"],
                }
            )
    return rows


def tensors() -> Iterator[Tensor]:
    """Everything that Python holds."""
    for found in gc.get_objects():
        if issubclass(type(found), Tensor):
            yield found


def held() -> int:
    """Bytes of all tensors, each storage counted once."""
    gc.collect()
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors()}
    return sum(storages.values())


def measure_memory(model: str) -> list[dict[str, Any]]:
    """What N experts hold beside the network, with one of them merged."""
    rows = []
    for number in EXPERTS:
        before = held()
        network = timm.create_model(model).eval().requires_grad_(False)
        alone = held() - before
        experts = attached(network, number, [lora(rank=16), BIAS])
        experts.activate(number - 1)
        whole = held() - before
        own = sum(t.numel() * t.element_size() for t in experts.state_dict().values())
        experts.detach()
        rows.append(
            {
                "experts": number,
                "network": alone,
                "experts_own": own,
                "kept": whole - alone - own,
            }
        )
        del experts, network
    return rows


def measure_step(model: str, size: int, batch: int, rounds: int) -> dict[str, Any]:
    """A guided step's part that is the guide's, bare and with five experts, in turn."""
    process = Process(SCHEDULE, timesteps_for(SCHEDULE.num_timesteps, 25))
    network = timm.create_model(model).eval().requires_grad_(False)
    experts = attached(network, 5, [lora(rank=16), BIAS])
    loss = FunctionLoss(
        lambda p, t: nn.functional.cross_entropy(p, t.expand(len(p)), reduction="none")
    )
    target = Target(value=torch.tensor([1]), label="one")
    bare = Guide(name="bare", model=experts.model, loss=loss, target=target)
    guide = Guide(name="experts", model=experts.model, loss=loss, target=target, experts=experts)
    x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))

    def seconds(guide: Guide, step: int) -> float:
        start = time.perf_counter()
        guide.gradient(x, process.level(step, batch))
        return time.perf_counter() - start

    seconds(guide, 24)
    seconds(bare, 24)
    times: dict[str, list[float]] = {"bare": [], "experts": [], "switch": []}
    for _ in range(rounds):
        for step in reversed(range(25)):
            owner, start = experts.active, time.perf_counter()
            guide.at(process.level(step, batch))
            if experts.active != owner:
                times["switch"].append(time.perf_counter() - start)
            for which in (bare, guide, guide, bare):  # in turn, for a machine that drifts
                times[which.name].append(seconds(which, step))
    experts.detach()
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "network": "ResNet-50",
        "size": size,
        "batch": batch,
        "steps": 25,
        "rounds": rounds,
        "seconds": {name: round(value, 5) for name, value in medians.items()},
        "ratio": round(medians["experts"] / medians["bare"], 4),
        "switches_in_25_steps": len(times["switch"]) / rounds,
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }


def shares_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| network | rank | | LoRA | biases, norms | share of the network |",
        "|---|---|---|---|---|---|",
    ]
    titles = {
        "ours": "ours",
        "ours_in_the_released_layers": "ours, in the published code's layers",
        "published": "published",
    }
    for row in rows:
        for key, title in titles.items():
            parts = row[key]
            share = (parts["lora"] + parts["bias"]) / row["parameters"]
            lines.append(
                f"| {row['network']} | {row['rank']} | {title} | {parts['lora']:,} "
                f"| {parts['bias']:,} | {share:.2%} |"
            )
    return lines


def costs_table(found: dict[str, Any]) -> list[str]:
    step = found["step"]
    milliseconds = {name: 1000 * value for name, value in step["seconds"].items()}
    threads = f"{step['threads']} thread{'s' if step['threads'] > 1 else ''}"
    images = f"{step['batch']} images of {step['size']} x {step['size']}"
    switches = f"{step['switches_in_25_steps']:.2g} in 25 steps"
    lines = [
        f"| ResNet-50, {images}, {threads} | ms |",
        "|---|---|",
        f"| gradient, bare network | {milliseconds['bare']:.1f} |",
        f"| gradient, five experts | {milliseconds['experts']:.1f} |",
        f"| ratio of the two | {step['ratio']:.3f} |",
        f"| a switch, {switches} | {milliseconds['switch']:.1f} |",
        "",
        "| experts | network, MB | their own parameters, MB | kept beside, MB |",
        "|---|---|---|---|",
    ]
    for row in found["memory"]:
        cells = (row[key] / 1e6 for key in ("network", "experts_own", "kept"))
        lines.append(f"| {row['experts']} | " + " | ".join(f"{c:.1f}" for c in cells) + " |")
    return lines


def write_page() -> None:
    """Put the tables between their marks."""
    page = PAGE.read_text()
    for name, table in (("shares", shares_table), ("costs", costs_table)):
        record = RECORDS / f"{name}.json"
        head, mark, rest = page.partition(f"<!-- {name} -->\n")
        _, end, tail = rest.partition(f"<!-- end of {name} -->\n")
        lines = "".join(f"{line}\n" for line in table(json.loads(record.read_text())))
        page = f"{head}{mark}{lines}{end}{tail}"
    PAGE.write_text(page)


def write(name: str, value: Any) -> None:
    (RECORDS / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("shares", "costs", "page"))
    parser.add_argument("--size", type=int, default=128, help="side of the images")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4, help="walks of 25 steps")
    given = parser.parse_args()
    if given.what == "shares":
        write("shares", count_shares())
    elif given.what == "costs":
        step = measure_step("resnet50", given.size, given.batch, given.rounds)
        write("costs", {"step": step, "memory": measure_memory("resnet50")})
    write_page()


if __name__ == "__main__":
    main()
