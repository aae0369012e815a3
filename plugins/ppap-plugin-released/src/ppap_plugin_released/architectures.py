"""Architectures of the released experts, and how to read their files."""

from __future__ import annotations

import difflib
from typing import Literal

import attrs

from ppap_framework.errors import UsageError
from ppap_framework.preprocessing import Preprocessing

__all__ = ["ARCHITECTURES", "Architecture", "find_architecture"]


@attrs.frozen(kw_only=True)
class Architecture:
    """How released experts of one network are read.

    Attributes:
        name: The name after `--architecture`.
        guider: The guider that builds the network.
        model: Name of the network for the guider.
        targets: Layers with low-rank changes, in the format of the adapter `lora`.
        alpha: Changes are multiplied by alpha / rank; None means a factor of 1.
        preprocessing: Preprocessing for experts with low-rank changes.
        network_preprocessing: Preprocessing for fine-tuned whole networks; None for the same.
        backend: The diffusion model that the experts were trained for.
        schedule: Its noise schedule, of 1000 timesteps.
        side: Height and width of its images.
    """

    name: str
    guider: str
    model: str
    targets: str
    alpha: float | None = None
    preprocessing: Preprocessing
    network_preprocessing: Preprocessing | None = None
    backend: str = "adm"
    schedule: Literal["linear", "cosine"] = "linear"
    side: int = 256


_RAW = Preprocessing(size=None, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
"""No resize; images in [-1, 1]."""

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture(
            name="resnet50",
            guider="classifier",
            model="resnet50.tv2_in1k",
            targets="conv1,layer*.conv1,layer*.conv2",
            alpha=8.0,
            preprocessing=_RAW,  # the published code normalizes images only for the teacher
        ),
        Architecture(
            name="deit-s",
            guider="classifier",
            model="deit_small_patch16_224.fb_in1k",
            targets="blocks.*.attn.qkv,blocks.*.attn.proj",
            alpha=None,  # the published code scales only when it merges, and never merges
            # Experts with adapters also normalize; whole networks only resize.
            preprocessing=attrs.evolve(_RAW, size=224, mean=_MEAN, std=_STD),
            network_preprocessing=attrs.evolve(_RAW, size=224),
        ),
        Architecture(
            name="midas-small",
            guider="depth",
            model="midas-small",
            targets="pretrained.layer*.conv_pw,scratch.layer*_rn,scratch.refinenet*.out_conv,"
            "scratch.refinenet[123].resConfUnit1.conv*,scratch.refinenet*.resConfUnit2.conv*",
            alpha=8.0,
            preprocessing=attrs.evolve(_RAW, size=256, mean=_MEAN, std=_STD),
            backend="deepfloyd-if",  # its first stage; in the paper it was GLIDE
            schedule="cosine",
            side=64,
        ),
    )
}


def find_architecture(name: str) -> Architecture:
    """The architecture of that name.

    Raises:
        UsageError: If the architecture is unknown.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    near = difflib.get_close_matches(name, ARCHITECTURES, n=1)
    raise UsageError(
        f"no released experts are known of an architecture {name!r}",
        hint=f"did you mean {near[0]!r}?" if near else f"there are {', '.join(ARCHITECTURES)}",
    )
