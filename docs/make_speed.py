"""Measures what docs/speed.md says of a guided step; writes its tables and its plot.

    python docs/make_speed.py measure    on a machine at rest with two cores; about 5 minutes
    python docs/make_speed.py page       only the page, from docs/speed/guided-step.json

Weights are random: times do not depend on them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import timm
import torch
from make_cost import processor, table
from torch.profiler import ProfilerActivity, profile

import ppap_framework as ppap
from ppap_figures import new_figure, save_both
from ppap_framework.checkpoints import save_checkpoint
from ppap_framework.diffusion import NoiseSource, trajectory
from ppap_framework.experts import AdapterConfig, ExpertSet, NoiseRanges, installed_adapter
from ppap_framework.guidance import EnergyGuidance
from ppap_framework.noise import cosine_schedule
from ppap_framework.run import Compute, ModuleGuide, Plan, Sampling, drawing, plan
from ppap_framework.runtime import computing_in
from ppap_plugin_adm import build
from ppap_plugin_bench.speed import in_turn, speed

DOCS = Path(__file__).parent
PAGE, RECORD = DOCS / "speed.md", DOCS / "speed" / "guided-step.json"
PLOT = DOCS / "speed" / "growth"
MARK, END = "<!-- measured -->\n", "<!-- end of measured -->\n"

UNET, THREADS, SIDE, BATCH, EXPERTS = "guided_diffusion.unet.UNetModel", 2, 64, 8, 5
ADAPTERS = (AdapterConfig(name="lora", options={"rank": 8}), AdapterConfig(name="bias", options={}))
CASES = ((1, "float32"), (BATCH, "float32"))
ROUNDS = 7
GROWTH: dict[str, tuple[int, ...]] = {
    "side": (32, 64, 128, 256),
    "batch": (1, 2, 4, 8, 16, 32),
    "experts": (1, 2, 5, 10, 20),
    "guides": (1, 2, 3, 4),
}
OPERATORS = 8
CPU = torch.device("cpu")


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


def guide(name: str, experts: int) -> ppap.Guide:
    """ResNet-50 with random experts."""
    network = timm.create_model("resnet50", num_classes=1000).eval()
    made = {config.name: installed_adapter(config) for config in ADAPTERS}
    attached = ExpertSet(ModuleGuide(network), NoiseRanges.equal(cosine_schedule(), experts), made)
    for number in range(experts):
        for parameter in attached.parameters(number):
            parameter.data.normal_(0.0, 0.01)
    given: Any = {"loss": "cross-entropy", "target": 0, "scale": 1.0, "name": name}
    return ppap.guide(attached.model, experts=attached, **given)


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
    """The operators of a step that take longest, with their share of the time."""
    with step(planned(path, BATCH)) as (work, _):
        work()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            work()
    every = sorted(seen.key_averages(), key=lambda row: -row.self_cpu_time_total)
    whole = sum(row.self_cpu_time_total for row in every)
    return [
        [row.key.removeprefix("aten::"), round(row.self_cpu_time_total / whole, 3), row.count]
        for row in every[:OPERATORS]
    ]


def switch(path: Path) -> float:
    """Seconds to merge another expert of five."""
    with step(planned(path, 1)) as (_, [one]):
        works = {k: partial(one.experts.activate, k) for k in range(EXPERTS)}
        return statistics.median(chain.from_iterable(in_turn(works, ROUNDS, CPU).values()))


def measure() -> dict[str, Any]:
    torch.set_num_threads(THREADS)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as home:
        paths = {side: unet(Path(home), side) for side in GROWTH["side"]}
        cases = []
        for batch, precision in CASES:
            runs = [planned(paths[SIDE], batch, precision=precision) for _ in range(2)]
            cases.append(speed(*runs, ROUNDS))
        grown: dict[str, dict[int, float]] = {}
        for what, value, seconds in growth(Path(home)):
            grown.setdefault(what, {})[value] = round(seconds, 4)
        backend = ppap.backend("adm", checkpoint=paths[SIDE])
        return {
            "processor": processor(),
            "torch": torch.__version__,
            "load": round(load, 1),
            "parameters": sum(p.numel() for p in backend.stages[0].network.parameters()),
            "cases": cases,
            "growth": grown,
            "operators": operators(paths[SIDE]),
            "switch": round(switch(paths[SIDE]), 5),
        }


def lines(record: dict[str, Any]) -> list[str]:
    """The tables of the page."""
    made = []
    for case in record["cases"]:
        most = max(case["ceiling"].values())
        rows = [
            [
                name,
                f"{1000 * part['seconds']:.3g}",
                f"{1000 * min(part['rounds']):.3g} to {1000 * max(part['rounds']):.3g}",
                f"{1000 * part['published']:.3g}",
                f"{part['faster']:.2f}",
                f"{100 * part['share']:.0f} %" if part["flops"] else "",
            ]
            for name, part in case["parts"].items()
        ]
        head = ["part", "ms", "over the rounds", "published style, ms", "times faster"]
        images = "1 image" if case["batch"] == 1 else f"{case['batch']} images"
        made += [f"{images}, {case['precision']}; ceiling {most / 1e9:.0f} GFLOP/s:", ""]
        made += [*table([*head, "of the ceiling"], rows), ""]
    shares = [[f"`{name}`", f"{100 * s:.1f} %", str(n)] for name, s, n in record["operators"]]
    made += [f"Where the time of a step of {BATCH} images goes, by torch's profiler:", ""]
    made += [*table(["operator", "of the time", "calls"], shares), ""]
    merged = f"{1000 * record['switch']:.1f} ms"
    made += [f"Merging another expert takes {merged}, once for each range of noise levels.", ""]
    where = f"{record['processor']}, {THREADS} threads, torch {record['torch']}"
    return [*made, f"Measured on {where}; load before: {record['load']}."]


def draw(record: dict[str, Any]) -> None:
    """The plot of growth, one panel for each number that grows."""
    figure = new_figure(10.0, 2.8)
    names = {"side": "pixels a side, 1 image", "batch": f"images of {SIDE} pixels"}
    for number, (what, found) in enumerate(record["growth"].items(), start=1):
        axes = figure.add_subplot(1, len(record["growth"]), number)
        at, seconds = [int(value) for value in found], list(found.values())
        axes.plot(at, seconds, marker="o")
        if what in ("side", "batch"):
            axes.set_xscale("log", base=2)
            axes.set_yscale("log", base=2)
            axes.set_yticks(seconds, [f"{s:.2g}" for s in seconds])
        else:
            axes.set_ylim(0.0, 1.15 * max(seconds))
        shown = [value for value in at if value == 1 or value >= 0.05 * at[-1] * len(at)]
        shown = at if what in ("side", "batch") else shown
        axes.set_xticks(shown, [str(value) for value in shown])
        axes.minorticks_off()
        axes.set_xlabel(names.get(what, f"{what}, {BATCH} images"))
    figure.axes[0].set_ylabel("seconds a step")
    save_both(figure, PLOT)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=["measure", "page"])
    if parser.parse_args().what == "measure":
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(json.dumps(measure(), indent=1) + "\n")
    record = json.loads(RECORD.read_text())
    draw(record)
    head, _, rest = PAGE.read_text().partition(MARK)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{MARK}" + "".join(f"{one}\n" for one in lines(record)) + f"{END}{tail}")


if __name__ == "__main__":
    main()
