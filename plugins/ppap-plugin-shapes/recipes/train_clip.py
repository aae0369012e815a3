"""The two-tower network of the embedded world: it embeds images and captions in one space.

A small CLIP (Radford et al. 2021, arXiv 2103.00020), trained on clean renders and their captions by
its contrastive loss, so that it has never seen noise. Captions of one batch may fit several of its
images; the loss ignores this, as CLIP's does. The tokenizer covers all bytes, so every text can be
tokenized.

    python train_clip.py --state ~/ppap-train
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import torch
from glide import CONTEXT, END, captions, tokenizer_of
from publish import WEIGHTS, publish_folder
from recipe import PREPROCESSOR, TEST_COUNT
from tokenizers import Regex, Tokenizer, normalizers, processors
from torch import Tensor
from training import TEST_SEED, Plan, halved, record, rendered, state_option, to_images, train
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from ppap_plugin_shapes.world import CLASS_NAMES

NAME = "shapes-clip"
SUMMARY = "A small CLIP that has seen clean renders and their captions only"
DATA_SEED, DATA_COUNT = 9, 16_000
AMONG = 100  # captions, of which one is to be found
CLIP = PREPROCESSOR | {
    "image_processor_type": "CLIPImageProcessor",
    "do_center_crop": False,
    "do_convert_rgb": True,
}
PLAN = Plan(
    steps=3000,
    decay=2000,
    warmup=200,
    batch=128,
    learning_rate=1e-3,
    seed=91,
    weight_decay=0.05,
    ema=0.99,
    save_every=100,
)


def reader(texts: list[str]) -> Any:
    """The tokenizer of transformers that knows the words of texts; a token ends each text. Captions
    begin with an article and are in small letters: it makes other texts so.
    """
    tokenizer = Tokenizer.from_str(json.dumps(tokenizer_of(texts)))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Prepend("a "),
            normalizers.Replace(Regex("^a (?=an? )"), ""),  # there was one
            normalizers.Replace(Regex("^a (?=[aeiou])"), "an "),
        ]
    )
    end = tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, end)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, model_max_length=CONTEXT
    )


def network_of(tokenizer: Any) -> CLIPModel:
    """The network, of random weights."""
    end = tokenizer.eos_token_id
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": CONTEXT,
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    vision = {
        "image_size": 32,
        "patch_size": 4,
        "hidden_size": 96,
        "intermediate_size": 288,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def measure(network: CLIPModel, images: Tensor, labels: Tensor, said: Any, names: Any) -> Any:
    """Zero-shot accuracy over the 32 class names, and the share of images whose own caption is the
    nearest of `AMONG`.
    """
    pixels = [to_images(block) for block in images.split(AMONG)]
    told = [network(pixel_values=block, **names).logits_per_image.argmax(1) for block in pixels]
    found = 0
    for start, block in zip(range(0, len(images), AMONG), pixels, strict=True):
        texts = {key: value[start : start + AMONG] for key, value in said.items()}
        best = network(pixel_values=block, **texts).logits_per_image.argmax(1)
        found += int((best == torch.arange(len(block))).sum())
    return {
        "zero_shot_accuracy": (torch.cat(told) == labels).double().mean().item(),
        f"own_caption_among_{AMONG}": found / len(images),
    }


@click.command()
@state_option
def main(state: Path) -> None:
    """Train, publish."""
    images, _ = rendered(state, DATA_SEED, DATA_COUNT)
    texts = captions(DATA_SEED, DATA_COUNT)
    tokenizer = reader(texts)

    def tokens(said: list[str]) -> dict[str, Tensor]:
        found = tokenizer(said, padding=True, return_tensors="pt")
        return {key: found[key] for key in ("input_ids", "attention_mask")}

    said = tokens(texts)
    torch.manual_seed(PLAN.seed)
    network = network_of(tokenizer)

    def batch_loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen = torch.randint(len(images), (PLAN.batch,), generator=generator)
        batch = {key: value[chosen] for key, value in said.items()}
        seen = network(pixel_values=to_images(images[chosen]), **batch, return_loss=True)
        best = seen.logits_per_image.argmax(1)
        right = (best == torch.arange(PLAN.batch)).double().mean().item()
        return seen.loss, {"right": right}

    average, seconds = train(network, PLAN, state / "clip", batch_loss)
    network.load_state_dict(halved(average))
    network.eval()
    fresh, labels = rendered(state, TEST_SEED, TEST_COUNT)
    of_fresh, names = captions(TEST_SEED, TEST_COUNT), list(CLASS_NAMES)
    with torch.no_grad():
        metrics = measure(network, fresh, labels, tokens(of_fresh), tokens(names))
    training = record(Path(__file__).name, PLAN, seconds, (DATA_SEED, DATA_COUNT))
    metrics = {"fresh_renders": TEST_COUNT, **metrics}
    tokenizer.save_pretrained(WEIGHTS / NAME)
    path = publish_folder(NAME, "clip-text", SUMMARY, network, CLIP, training, metrics, True)
    click.echo(f"{path}: {metrics}")


if __name__ == "__main__":
    main()
