"""Guides the embedded ADM with an ImageNet classifier; writes the tables of docs/real-weights.md.

    make real-weights

The classifier becomes experts on images that the embedded ADM draws. What it says of noisy
photographs and shapes is measured, and what a second classifier says of the images that it guided.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from real_networks import PHOTOGRAPHS, guide, judge, photograph
from torch import Tensor

import ppap_framework as ppap
from ppap_framework.components import GuidanceModel
from ppap_framework.experts import ExpertSet, load_bundle
from ppap_framework.learn import Recipe, load_teacher, transfer
from ppap_framework.noise import NoiseLevel
from ppap_framework.run import GuideRequest

DOCS = Path(__file__).parent
PAGE, RECORD = DOCS / "real-weights.md", DOCS / "adapters" / "real-weights.json"
TABLES = ("clean", "noisy", "guided")


@attrs.frozen(kw_only=True)
class Size:
    """How large everything is.

    Attributes:
        synthetic: Images that the experts learn from; half as many more are measured.
        iterations: Of all experts.
        batch: Images of an iteration.
        num_experts: Of them.
        noises: Of each photograph at each level.
        images: Drawn for each target and row.
        steps: For each image.
        scale: Of guidance.
    """

    synthetic: int = 192
    iterations: int = 150
    batch: int = 8
    num_experts: int = 3
    noises: int = 8
    images: int = 4
    steps: int = 20
    scale: float = 8.0


LEVELS = (50, 150, 300, 500, 700, 900)
"""Base timesteps."""


def probabilities(model: GuidanceModel, images: Tensor) -> Tensor:
    """(B, 1000) of images that are clean to the model."""
    with torch.no_grad():
        return torch.cat([model(part).softmax(1) for part in images.split(16)])


def answers(experts: ExpertSet, images: Tensor, level: NoiseLevel) -> Tensor:
    """(B,), what noisy images of one level are called by the expert that owns it."""
    with torch.no_grad():
        parts = zip(images.split(16), map(NoiseLevel, level.log_snr.split(16)), strict=True)
        said = [experts.at(level)(part, level).argmax(1) for part, level in parts]
    experts.activate(None)
    return torch.cat(said)


def clean(looks: Mapping[str, GuidanceModel], names: Sequence[str]) -> list[dict[str, Any]]:
    """What the networks say of photographs."""
    rows = []
    for name, shows in PHOTOGRAPHS.items():
        for who, model in looks.items():
            top = probabilities(model, photograph(name, 224))[0].max(0)
            rows.append(
                {
                    "photograph": name,
                    "shows": shows,
                    "network": who,
                    "says": names[int(top.indices)],
                    "probability": round(float(top.values), 3),
                }
            )
    return rows


def noisy(
    model: GuidanceModel, experts: ExpertSet, shapes: Tensor, schedule: Any, size: Size
) -> list[dict[str, Any]]:
    """How often a noisy image is called what it is called clean, level by level."""
    sets = {name: photograph(name).expand(size.noises, -1, -1, -1) for name in PHOTOGRAPHS}
    sets["shapes"] = shapes
    called = {name: probabilities(model, images).argmax(1) for name, images in sets.items()}
    rows = []
    for t in LEVELS:
        row: dict[str, Any] = {"t": t, "log_snr": round(float(schedule.log_snr[t]), 2)}
        for name, images in sets.items():
            noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(t))
            steps = torch.full((len(images),), t)
            x_t = schedule.add_noise(images, steps, noise)
            says = {
                "untouched": probabilities(model, x_t).argmax(1),
                "experts": answers(experts, x_t, schedule.level(steps)),
            }
            for who, said in says.items():
                same = (said == called[name]).double().mean()
                row[f"{name}, {who}"] = round(float(same), 3)
        rows.append(row)
    return rows


def guided(
    backend: Any,
    judging: GuidanceModel,
    bundle: Path,
    given: Mapping[str, Any],
    targets: Sequence[str],
    size: Size,
) -> list[dict[str, Any]]:
    """What both networks see of a target in images: drawn without a guide, led by the untouched
    network, and by its experts.
    """
    rows = []
    for target in targets:
        aimed = ppap.guide(
            "classifier", **given, target=target, scale=size.scale, experts=str(bundle)
        )
        drawn = ppap.sample(
            backend, [aimed], num=size.images, steps=size.steps, seed=0, compare=True, device="cpu"
        )
        assert drawn.unguided is not None
        assert drawn.naive is not None
        index = int(aimed.target.value)
        for name, each in {
            "unguided": drawn.unguided,
            "untouched": drawn.naive,
            "experts": drawn.guided,
        }.items():
            row: dict[str, Any] = {"target": target, "led_by": name}
            for who, model in {"guide": aimed.model, "judge": judging}.items():
                said = probabilities(model, each.images)
                row[who] = round(float(said[:, index].mean()), 4)
                row[f"{who}_first"] = int((said.argmax(1) == index).sum())
            rows.append({**row, "images": size.images})
    return rows


def measure(folder: Path, size: Size) -> dict[str, Any]:
    """Everything, on this machine."""
    given = guide(folder)
    learner, judge_ = (
        load_teacher(GuideRequest(source="classifier", **options)) for options in (given, judge())
    )
    judging = judge_.model
    names = learner.model.class_names  # type: ignore[attr-defined]  # a classifier
    backend = ppap.backend("adm")
    drawn = [
        ppap.synthesize(
            backend, num=num, steps=size.steps, seed=seed, out=folder / f"data-{seed}", device="cpu"
        )
        for seed, num in enumerate((size.synthetic, size.synthetic // 2))
    ]
    looks = {"guide": learner.model, "judge": judging}
    found: dict[str, Any] = {"size": attrs.asdict(size), "clean": clean(looks, names)}
    bundle = transfer(
        backend,
        learner,
        drawn[0],
        out=folder / "experts",
        num_experts=size.num_experts,
        recipe=Recipe(iterations=size.iterations, batch=size.batch, learning_rate=0.001),
        keep=False,
        device="cpu",
        calibrate=False,
    )
    experts = load_bundle(bundle.path, learner.model, backend.inner)
    shapes = drawn[1].images(range(len(drawn[1]))).float() / 127.5 - 1
    found["noisy"] = noisy(learner.model, experts, shapes, backend.stages[0].schedule, size)
    experts.detach()
    often = Counter(probabilities(learner.model, shapes).argmax(1).tolist()).most_common(1)
    found["shapes_called"] = {names[index]: number / len(shapes) for index, number in often}
    targets = [*found["shapes_called"], PHOTOGRAPHS["chelsea"]]
    found["guided"] = guided(backend, judging, bundle.path, given, targets, size)
    return found


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    titles = list(rows[0])
    lines = [f"| {' | '.join(title.replace('_', ' ') for title in titles)} |"]
    lines.append(f"|{'---|' * len(titles)}")
    return lines + [f"| {' | '.join(str(row[title]) for title in titles)} |" for row in rows]


def write_page() -> None:
    """Put the tables between their marks."""
    page, found = PAGE.read_text(), json.loads(RECORD.read_text())
    for name in TABLES:
        head, mark, rest = page.partition(f"<!-- {name} -->\n")
        _, end, tail = rest.partition(f"<!-- end of {name} -->\n")
        lines = "".join(f"{line}\n" for line in _table(found[name]))
        page = f"{head}{mark}{lines}{end}{tail}"
    PAGE.write_text(page)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), Size())
    RECORD.write_text(json.dumps(found, indent=1) + "\n")
    write_page()


if __name__ == "__main__":
    main()
