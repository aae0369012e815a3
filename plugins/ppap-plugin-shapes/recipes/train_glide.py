"""The embedded GLIDE: a base that reads captions, 32 x 32, and an upsampler to 64 x 64.

The base is train_adm.py's U-Net with a small text transformer; one caption in ten is empty, so that
classifier-free guidance has something to differ from (Ho and Salimans 2022, arXiv 2207.12598). The
upsampler sees the averaged picture, rounded to 8 bits and now and then blurred, beside the noisy
one, as GLIDE's does (Nichol et al. 2021, arXiv 2112.10741). Both learn v and the variance, as
train_adm.py explains, and both begin with the weights that it published: what a picture of this
world looks like need not be learnt three times. The upsampler learns from crops, and one step in
four from whole pictures, a quarter as many, which costs the same. The tokenizer is a
byte-level BPE over the captions: a word of theirs is a token, and any other text is still a text.

    python train_glide.py base --state ~/ppap-train
    python train_glide.py upsampler --state ~/ppap-train
    python publish_glide.py --state ~/ppap-train
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import click
import torch
import torch.nn.functional as F
from glide import (
    CLASSES,
    DATA_COUNT,
    DATA_SEED,
    EMPTY,
    PROCESSES,
    SIZES,
    START,
    VLB_WEIGHT,
    captions,
    captions_file,
    config_of,
    tokenizer_of,
    tokens_of,
)
from publish import WEIGHTS
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision.transforms.functional import gaussian_blur
from training import (
    TEST_SEED,
    Plan,
    batch_option,
    bfloat16_option,
    compile_option,
    decay_option,
    halved,
    rendered,
    state_option,
    to_images,
    train,
)
from variational_bound import variational_bound_term

from ppap_framework.components import Prediction
from ppap_framework.diffusion import Process
from ppap_framework.noise import NoiseSchedule, noise_schedule
from ppap_plugin_glide import build
from ppap_plugin_glide.tokens import Texts

TEST_COUNT, HELD_OUT = 2_000, 1_000
CROP = 32  # pixels a side, of the upsampler's pictures

Loss = Callable[[torch.Generator], tuple[Tensor, dict[str, float]]]


def begun(network: nn.Module) -> nn.Module:
    """A network with the weights of the unconditional one wherever it has the same; the channels
    and keys that it lacks begin at nothing and at random.
    """
    own = network.state_dict()
    for name, values in load_file(WEIGHTS / f"{START}.safetensors").items():
        own[name].zero_()
        own[name][tuple(slice(size) for size in values.shape)] = values.float()
    return network


@attrs.frozen
class Kept:
    """What both trainings read, made once and kept in the folder of the state."""

    tokenizer: dict[str, Any]
    texts: Texts
    images: Tensor

    @classmethod
    def of(cls, state: Path, size: int) -> Kept:
        """Renders of one size with their captions."""
        state.mkdir(parents=True, exist_ok=True)
        path = captions_file(state)
        if not path.exists():
            said = captions(DATA_SEED, DATA_COUNT)
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps({"captions": said, "tokenizer": tokenizer_of(said)}))
            partial.replace(path)
        record = json.loads(path.read_text())
        images, _ = rendered(state, DATA_SEED, DATA_COUNT, size)
        tokens = tokens_of(record["tokenizer"])
        return cls(record["tokenizer"], tokens(record["captions"]), images)


def shrunk(images: Tensor, generator: torch.Generator | None) -> Tensor:
    """What the upsampler sees: half as large, rounded to 8 bits and, in training, blurred by
    chance, so that it does not trust the base to the last pixel.
    """
    small = F.interpolate(images, scale_factor=0.5, mode="area")
    if generator is not None and torch.rand((), generator=generator) < 0.5:
        sigma = 0.4 + 0.2 * torch.rand((), generator=generator).item()
        small = gaussian_blur(small, [3, 3], [sigma, sigma])
    return ((small + 1.0) * 127.5).round() / 127.5 - 1.0


def cropped(images: Tensor, generator: torch.Generator) -> Tensor:
    """One crop of each, that begins at an even pixel, as the small picture's pixels do."""
    room = (images.shape[-1] - CROP) // 2 + 1
    rows, columns = 2 * torch.randint(room, (2, len(images)), generator=generator)
    crops = [
        image[:, row : row + CROP, column : column + CROP]
        for image, row, column in zip(images, rows, columns, strict=True)
    ]
    return torch.stack(crops).contiguous(memory_format=torch.channels_last)


def loss_terms(process: Process, output: Tensor, x0: Tensor, t: Tensor, noise: Tensor) -> Any:
    """The squared error of v, and the bound in bits per dimension and step."""
    schedule = process.schedule
    v, variance = output.chunk(2, dim=1)
    abar = schedule.alphas_cumprod[t].float()[:, None, None, None]
    alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
    x_t = schedule.add_noise(x0, t, noise)
    prediction = Prediction.from_v(v, x_t, alpha, sigma, variance)
    bound = variational_bound_term(process, x0, x_t, t, prediction)
    return F.mse_loss(v, alpha * noise - sigma * x0), bound.mean()


def loss_of(
    kept: Kept, name: str, network: nn.Module, forward: Any, size: int, bfloat16: bool
) -> Loss:
    """The loss of one batch; nothing in it is drawn but from the step's generator."""
    process = process_of(name)
    schedule = process.schedule
    empty = tokens_of(kept.tokenizer)([""])

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        crops = name == "upsampler" and torch.rand((), generator=generator) < 0.75
        batch = size if name == "base" or crops else size // 4
        chosen = torch.randint(len(kept.images), (batch,), generator=generator)
        x0 = to_images(kept.images[chosen])  # not mirrored: captions know left from right
        if crops:
            x0 = cropped(x0, generator)
        silent = (torch.rand(batch, generator=generator) < EMPTY)[:, None]
        tokens = torch.where(silent, empty.tokens, kept.texts.tokens[chosen])
        mask = torch.where(silent, empty.mask, kept.texts.mask[chosen])
        u = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        t = (u * schedule.num_timesteps).long()  # one from each of `batch` equal ranges
        noise = torch.randn(x0.shape, generator=generator).contiguous(
            memory_format=torch.channels_last
        )
        given: dict[str, Tensor] = {"tokens": tokens, "mask": mask}
        if name == "upsampler":
            given["low_res"] = shrunk(x0, generator)
        x_t = schedule.add_noise(x0, t, noise)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16), sdpa_kernel(SDPBackend.MATH):
            output = forward(x_t, t, **given).float()
        simple, bound = loss_terms(process, output, x0, t, noise)
        value = simple + VLB_WEIGHT * len(process) * bound
        return value, {"mse": simple.item(), "bits": bound.item() * len(process)}

    return loss


def process_of(name: str) -> Process:
    """The process that a stage is trained on, all of its timesteps."""
    stated = PROCESSES[name]
    schedule: NoiseSchedule = noise_schedule(stated["schedule"], stated["timesteps"])
    return Process(schedule, range(schedule.num_timesteps), stated["variance"])


@torch.no_grad()
def held_out(state: Path, name: str, kept: Kept, network: nn.Module) -> dict[str, object]:
    """How well fresh renders are denoised over all timesteps, with their captions and without."""
    network.eval()
    process, tokens = process_of(name), tokens_of(kept.tokenizer)
    images, _ = rendered(state, TEST_SEED, TEST_COUNT, SIZES[name])
    said = captions(TEST_SEED, HELD_OUT)
    figures: dict[str, list[tuple[float, float]]] = {"told": [], "untold": []}
    generator = torch.Generator().manual_seed(TEST_SEED)
    for start in range(0, HELD_OUT, 100):
        x0 = to_images(images[start : start + 100])
        noise = torch.randn(x0.shape, generator=generator)
        t = ((torch.arange(len(x0)) + 0.5) / len(x0) * process.schedule.num_timesteps).long()
        x_t = process.schedule.add_noise(x0, t, noise)
        for key, texts in (("told", said[start : start + 100]), ("untold", [""] * len(x0))):
            read = tokens(texts)
            given: dict[str, Tensor] = {"tokens": read.tokens, "mask": read.mask}
            if name == "upsampler":
                given["low_res"] = shrunk(x0, None)
            simple, bound = loss_terms(process, network(x_t, t, **given), x0, t, noise)
            figures[key].append((simple.item(), bound.item() * len(process)))
    told, untold = (torch.tensor(rows).mean(0).tolist() for rows in figures.values())
    return {
        "fresh_renders": HELD_OUT,
        "v_mse": round(told[0], 5),
        "v_mse_without_caption": round(untold[0], 5),
        "bits_per_dimension": round(told[1], 4),
    }


@click.group()
def main() -> None:
    """Train the two stages, one after the other or side by side."""


def stage_command(name: str, usual: int) -> click.Command:
    """The training of one stage."""

    @click.command(name, help=f"Train the {name}.")
    @state_option
    @click.option("--steps", default=usual, show_default=True)
    @decay_option
    @batch_option
    @compile_option
    @bfloat16_option
    def command(
        state: Path, steps: int, decay: int, batch: int, compiled: bool, bfloat16: bool
    ) -> None:
        kept = Kept.of(state, SIZES[name])
        torch.manual_seed(0)
        network = begun(build(CLASSES[name], config_of(kept.tokenizer)))
        network.to(memory_format=torch.channels_last)
        forward = torch.compile(network, dynamic=False) if compiled else network
        plan = Plan(steps=steps, decay=decay, batch=batch, learning_rate=5e-4, seed=12, warmup=500)
        folder = state / f"glide-{name}"
        loss = loss_of(kept, name, network, forward, batch, bfloat16)
        average, seconds = train(network, plan, folder, loss)
        halves = halved(average)
        network.load_state_dict(halves)
        record = {
            **attrs.asdict(plan),
            "precision": "bfloat16 products" if bfloat16 else "float32",
            "seconds": round(seconds),
            "metrics": held_out(state, name, kept, network),
        }
        save_file({key: value.contiguous() for key, value in halves.items()}, folder / "done.st")
        (folder / "done.json").write_text(json.dumps(record, indent=1) + "\n")
        click.echo(f"{folder}: {record['metrics']}, {seconds / max(1, steps):.2f} s a step")

    return command


for stage, number in (("base", 20_000), ("upsampler", 10_000)):
    main.add_command(stage_command(stage, number))


if __name__ == "__main__":
    main()
