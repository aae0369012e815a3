"""An inpainting twin of the embedded GLIDE's base: it begins with the published weights, and its
first convolution reads four channels more, which begin at zero (Nichol et al. 2021, arXiv
2112.10741, section 4). Of each picture a part is unknown: a box, half of the picture, all but a
box, or one time in eight everything.

It is not among the embedded weights: half as large as the embedded GLIDE, it would add 8 MB.

    python train_glide_inpaint.py --state ~/ppap-train --steps 4000 --decay 1500

`ppap run --backend glide --checkpoint ~/ppap-train/shapes-glide-inpaint.safetensors` draws with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import click
import torch
from glide import EMPTY, NAME, PROCESSES, SIZES, VLB_WEIGHT, config_of, tokens_of
from publish import WEIGHTS
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from train_glide import TEST_COUNT, TEST_SEED, Kept, loss_terms, process_of
from training import Plan, halved, rendered, to_images, train

from ppap_framework.checkpoints import open_checkpoint, save_checkpoint
from ppap_plugin_glide import build

INPAINT = "glide_text2im.text2im_model.InpaintText2ImUNet"
SIZE = SIZES["base"]
CHECKED = 200  # fresh renders


def begun(tokenizer: dict[str, Any]) -> nn.Module:
    """The network, which says what the published base says until its new channels are trained."""
    network = build(INPAINT, config_of(tokenizer))
    own, published = network.state_dict(), open_checkpoint(WEIGHTS / f"{NAME}.safetensors")
    for name, values in published.state_dict().items():
        if name.startswith("base."):
            kept = own[name.removeprefix("base.")].zero_()
            kept[tuple(slice(size) for size in values.shape)] = values.float()
    return network.to(memory_format=torch.channels_last)


def known_of(count: int, generator: torch.Generator) -> Tensor:
    """Masks, (B, 1, H, W): 1 where pixels are known."""
    masks = torch.ones(count, 1, SIZE, SIZE)
    for mask in masks:
        kind = torch.randint(8, (), generator=generator).item()
        ends = torch.randint(SIZE + 1, (2, 2), generator=generator).sort(dim=1).values.tolist()
        (top, bottom), (left, right) = ends
        if kind == 0:
            mask.zero_()
        elif kind == 1:
            mask[:, : SIZE // 2] = 0.0
        elif kind == 2:
            mask[..., SIZE // 2 :] = 0.0
        else:
            mask[:, top:bottom, left:right] = 0.0
            mask.sub_(1.0).neg_() if kind == 3 else None
    return masks


@torch.no_grad()
def held_out(state: Path, kept: Kept, network: nn.Module) -> dict[str, float]:
    """The error of v on fresh renders, without captions: where pixels are unknown, with the known
    ones and without.
    """
    network.eval()
    images, _ = rendered(state, TEST_SEED, TEST_COUNT, SIZE)
    x0, generator = to_images(images[:CHECKED]), torch.Generator().manual_seed(TEST_SEED)
    process, read = process_of("base"), tokens_of(kept.tokenizer)([""] * CHECKED)
    noise, known = torch.randn(x0.shape, generator=generator), known_of(CHECKED, generator)
    t = ((torch.arange(CHECKED) + 0.5) / CHECKED * process.schedule.num_timesteps).long()
    abar = process.schedule.alphas_cumprod[t].float()[:, None, None, None]
    v, errors = abar.sqrt() * noise - (1 - abar).sqrt() * x0, {}
    for name, mask in (("known", known), ("nothing_known", torch.zeros_like(known))):
        given: dict[str, Tensor] = {"inpaint_image": x0, "inpaint_mask": mask}
        x_t = process.schedule.add_noise(x0, t, noise)
        output = network(x_t, t, tokens=read.tokens, mask=read.mask, **given)[:, :3]
        square = (output - v).square().mean(1, keepdim=True)
        errors[name] = round(square[known == 0].mean().item(), 5)
    return errors


@click.command()
@click.option("--state", type=click.Path(path_type=Path), required=True, help="Survives a kill.")
@click.option("--steps", default=4_000, show_default=True)
@click.option("--decay", default=1_500, show_default=True)
@click.option("--batch", default=16, show_default=True)
def main(state: Path, steps: int, decay: int, batch: int) -> None:
    """Train it, and write it to the folder of the state."""
    kept = Kept.of(state, SIZE)
    torch.manual_seed(0)
    network, process = begun(kept.tokenizer), process_of("base")
    empty = tokens_of(kept.tokenizer)([""])

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen = torch.randint(len(kept.images), (batch,), generator=generator)
        x0 = to_images(kept.images[chosen])
        silent = (torch.rand(batch, generator=generator) < EMPTY)[:, None]
        u = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        t = (u * process.schedule.num_timesteps).long()
        noise = torch.randn(x0.shape, generator=generator)
        given = {
            "tokens": torch.where(silent, empty.tokens, kept.texts.tokens[chosen]),
            "mask": torch.where(silent, empty.mask, kept.texts.mask[chosen]),
            "inpaint_image": x0,
            "inpaint_mask": known_of(batch, generator),
        }
        x_t = process.schedule.add_noise(x0, t, noise)
        with sdpa_kernel(SDPBackend.MATH):
            output = network(x_t, t, **given)
        simple, bound = loss_terms(process, output, x0, t, noise)
        return simple + VLB_WEIGHT * len(process) * bound, {"mse": simple.item()}

    plan = Plan(steps=steps, decay=decay, batch=batch, learning_rate=2e-4, seed=13)
    average, seconds = train(network, plan, state / "glide-inpaint", loss)
    halves = halved(average)
    network.load_state_dict(halves)
    metrics = held_out(state, kept, network)
    base = {
        "official_class": INPAINT,
        "config": config_of(kept.tokenizer),
        "image_size": SIZE,
        "process": PROCESSES["base"],
    }
    path = state / "shapes-glide-inpaint.safetensors"
    weights = {f"base.{name}": value.contiguous() for name, value in halves.items()}
    notes = {"seconds": round(seconds), "metrics": metrics, **attrs.asdict(plan)}
    save_checkpoint(path, weights, {"base": base, "tokenizer": kept.tokenizer}, notes)
    click.echo(f"{path}: {metrics}, {seconds / max(1, steps):.2f} s a step")


if __name__ == "__main__":
    main()
