"""The networks, against outputs and gradients of the published code."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import ppap_plugin_adm
import ppap_plugin_glide
from ppap_plugin_glide.noised_clip import unit
from ppap_plugin_glide.unet import TextUNet

BUILDERS: dict[str, Callable[[str, Mapping[str, Any]], Any]] = {
    "guided_diffusion.": ppap_plugin_adm.build,
    "glide_text2im.": ppap_plugin_glide.build,
}


def relative_l2(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


METRICS = {"relative L2": relative_l2}


def prefixed(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}


def check(
    record: dict[str, Any], actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    distance = METRICS[record["tolerance"]["metric"]]
    errors = {name: distance(tensor, expected[name]) for name, tensor in actual.items()}
    assert all(error <= record["tolerance"]["value"] for error in errors.values()), errors


@pytest.mark.parity("network", official_class=BUILDERS)
def test_network(record: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    check_network(record, tensors)


def test_a_text_network_without_padding_needs_no_mask() -> None:
    """No case is of one so far. It computes what one with padding does where all is text."""
    path = Path(__file__).parent / "tiny" / "glide_base"
    record, tensors = (
        json.loads(path.with_suffix(".json").read_text()),
        load_file(f"{path}.safetensors"),
    )
    tensors = {n: t for n, t in tensors.items() if n not in ("guidance_grad", "output_fp16")}
    network = ppap_plugin_glide.build(record["official_class"], record["config"]).eval()
    network.load_state_dict({n: p.float() for n, p in prefixed(tensors, "param.").items()})
    inputs = prefixed(tensors, "input.") | {"mask": torch.ones_like(tensors["input.mask"])}
    x = inputs["x"].requires_grad_()
    tensors["output"] = network(**inputs)
    (tensors["grad_x"],) = torch.autograd.grad((tensors["output"] * tensors["fixed"]).sum(), x)
    text = network.encode_text(inputs["tokens"], inputs["mask"])
    tensors |= {"xf_proj": text.pooled, "xf_out": text.tokens.mT}
    record = {**record, "config": record["config"] | {"xf_padding": False}}
    unneeded = ("param.padding_embedding", "input.mask")
    check_network(record, {n: t.detach() for n, t in tensors.items() if n not in unneeded})


def check_network(record: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    official_class = record["official_class"]
    builder = next(b for prefix, b in BUILDERS.items() if official_class.startswith(prefix))
    network = builder(official_class, record["config"]).eval().requires_grad_(False)
    network.load_state_dict({n: p.float() for n, p in prefixed(tensors, "param.").items()})
    inputs = prefixed(tensors, "input.")
    x = inputs["x"].requires_grad_()

    output = network(**inputs)
    objectives = {"grad_x": (output * tensors["fixed"]).sum()}
    if "guidance_grad" in tensors:
        chosen = output.log_softmax(dim=-1).gather(1, tensors["guidance_labels"][:, None])
        objectives["guidance_grad"] = chosen.sum()
    actual = {"output": output.detach()}
    if isinstance(network, TextUNet):
        text = network.encode_text(inputs["tokens"], inputs.get("mask"))
        actual |= {"xf_proj": text.pooled, "xf_out": text.tokens.mT}
    for name, objective in objectives.items():
        (actual[name],) = torch.autograd.grad(objective, x, retain_graph=True)

    distance = METRICS[record["tolerance"]["metric"]]
    check(record, actual, tensors)

    if "output_fp16" in tensors:
        cast = network.cast if isinstance(network, TextUNet) else network.cast_torso
        cast(torch.float16)
        with torch.no_grad():
            error = distance(network(**inputs), tensors["output_fp16"])
        assert error <= record["tolerance"]["value_fp16"]


@pytest.mark.parity("noised_clip")
def test_noised_clip(record: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    configs = record["config"]
    image_encoder, text_encoder = (
        ppap_plugin_glide.build(f"glide_text2im.clip.encoders.{name}", configs[config])
        .eval()
        .requires_grad_(False)
        for name, config in (("ImageEncoder", "image_encoder"), ("TextEncoder", "text_encoder"))
    )
    for encoder, prefix in ((image_encoder, "param."), (text_encoder, "textparam.")):
        encoder.load_state_dict({n: p.float() for n, p in prefixed(tensors, prefix).items()})
    x = tensors["input.x"].requires_grad_()
    seen = image_encoder((x + 1.0) * 127.5, tensors["input.timesteps"])
    said = text_encoder(tensors["text.tokens"], tensors["text.lens"])
    (grad_x,) = torch.autograd.grad((seen * tensors["fixed"]).sum(), x, retain_graph=True)
    agreement = configs["logit_scale"] * (unit(said) * unit(seen)).sum()
    (gradient,) = torch.autograd.grad(agreement, x)
    actual = {
        "output": seen.detach(),
        "grad_x": grad_x,
        "text_embedding_normalised": unit(said),
        "image_embedding_normalised": unit(seen).detach(),
        "clip_cond_grad_scale1": gradient,
    }
    check(record, actual, tensors)
