"""Tries each family of pipelines that backend `diffusers` drives; writes the table of
docs/diffusers.md.

    make diffusers

Of each family a tiny pipeline with random weights is drawn by itself and by this framework from the
same noise, guided, and given an expert.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tiny_pipelines import TINY, drawn, noise_of, told
from torch import Tensor

import ppap_framework as ppap
from ppap_framework.learn import Recipe, transfer
from ppap_framework.run import LoadedBackend, Sampling, plan
from ppap_framework.run.estimate import estimate
from ppap_plugin_diffusers.families import FAMILIES, Family

PAGE = Path(__file__).parent / "diffusers.md"
MARKS = "<!-- families -->\n", "<!-- end of families -->\n"
STEPS, IMAGES = 10, 2
RECIPE = Recipe(iterations=5, batch=4, num_experts=1, held_out=0.5, validate_every=5)
TITLES = (
    "family",
    "pipelines",
    "prompt",
    "x_t",
    "unguided: largest difference",
    "guided: pixels",
    "memory of a step, relative",
    "experts",
)


def row(family: Family, folder: Path) -> str:
    """The row of a family."""
    pipe = TINY[family.name]()
    backend = ppap.backend(pipe)
    stage = backend.stages[0]
    prompts, same = told(pipe)
    how: dict[str, Any] = {"steps": STEPS, "sampler": "ddim", "prompt": prompts}
    alone = ppap.sample(backend, num=IMAGES, **how)
    theirs = drawn(pipe, noise_of(stage.shape, IMAGES), STEPS, **same)
    difference = (alone.images_01 - theirs).abs().max().item()
    guide = ppap.guide("classifier", target="red cube", scale="raw:4")
    ways = ("clean", "detached") if stage.latent_shape else ("noisy", "clean")
    least = estimate(plan(backend, [], IMAGES, Sampling(**how))).memory
    moved, memory = [], []
    for through in ways:
        guided = ppap.sample(backend, [guide], num=IMAGES, through=through, **how)
        moved.append(f"{through} {pixels(guided.images, alone.images)}")
        run = plan(backend, [guide], IMAGES, Sampling(through=through, **how))
        memory.append(f"{through} {estimate(run).memory / least:.1f}")
    bundle = teach(backend, prompts, folder)
    student = ppap.guide("classifier", target="red cube", scale="raw:4", experts=bundle)
    guided = ppap.sample(backend, [student], num=IMAGES, **how)
    experts = pixels(guided.images, alone.images)
    kind = "a text" if family.prompt == "text" else "a class" if family.cfg else "none, or a class"
    cells = (
        family.name,
        ", ".join(f"`{name}`" for name in family.pipelines),
        kind,
        "latents" if stage.latent_shape else "images",
        f"{difference:.0e}",
        ", ".join(moved),
        ", ".join(memory),
        experts,
    )
    return f"| {' | '.join(cells)} |"


def pixels(one: Tensor, other: Tensor) -> str:
    """The mean change of a pixel, from 0 to 255; AssertionError if it is not finite or nothing."""
    change = 127.5 * (one - other).abs().mean().item()
    assert 0.0 < change < 256.0
    return f"{change:.0f}" if change >= 10.0 else f"{change:.2g}"


def teach(backend: LoadedBackend, prompts: list[str] | None, folder: Path) -> Any:
    """One expert of the embedded classifier for the images of a backend."""
    prompt = None if prompts is None else prompts[0]
    drawn_by_it = ppap.synthesize(backend, num=16, steps=STEPS, out=folder / "set", prompt=prompt)
    how: dict[str, Any] = {"recipe": RECIPE, "keep": False, "calibrate": False}
    return transfer(backend, "classifier", drawn_by_it, out=folder / "experts", **how)


def main() -> None:
    """Write the table of all families."""
    rows = []
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(family, Path(folder)))
        print(rows[-1])
    head, mark, rest = PAGE.read_text().partition(MARKS[0])
    _, end, tail = rest.partition(MARKS[1])
    if not mark or not end:
        raise SystemExit(f"{PAGE} has no marks for the table")
    titles = [f"| {' | '.join(TITLES)} |", f"|{'---|' * len(TITLES)}"]
    table = "".join(f"{line}\n" for line in (*titles, *rows))
    PAGE.write_text(f"{head}{mark}{table}{end}{tail}")


if __name__ == "__main__":
    main()
