"""The architectures whose experts were released, and how their files are read."""

from __future__ import annotations

import difflib

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
        model: That guider's name of the network.
        targets: The layers with low-rank changes, as the adapter `lora` takes them.
        alpha: Changes are multiplied by alpha / rank; None: by 1.
        preprocessing: What experts with low-rank changes are fed.
        network_preprocessing: What fine-tuned whole networks are fed; None for the same.
    """

    name: str
    guider: str
    model: str
    targets: str
    alpha: float | None = None
    preprocessing: Preprocessing
    network_preprocessing: Preprocessing | None = None


_RAW = Preprocessing(size=None, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
"""Images as they come, in [-1, 1]."""

ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture(
            name="resnet50",
            guider="classifier",
            model="resnet50.tv2_in1k",
            targets="conv1,layer*.conv1,layer*.conv2",
            alpha=8.0,
            preprocessing=_RAW,  # the published code normalizes images for the teacher alone
        ),
        Architecture(
            name="deit-s",
            guider="classifier",
            model="deit_small_patch16_224.fb_in1k",
            targets="blocks.*.attn.qkv,blocks.*.attn.proj",
            alpha=None,  # the published code scales only when it merges, and never merges
            # Its adapters come with a normalization; the network around them resizes.
            preprocessing=attrs.evolve(
                _RAW, size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
            ),
            network_preprocessing=attrs.evolve(_RAW, size=224),
        ),
    )
}

_REFUSED = {
    "midas-small": "their network, MiDaS_small, is none of those that transformers builds",
}


def find_architecture(name: str) -> Architecture:
    """The architecture of that name.

    Raises:
        UsageError: If there is none, or its experts cannot be imported.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    usable = " and ".join(ARCHITECTURES)
    if name in _REFUSED:
        raise UsageError(
            f"released experts of {name!r} cannot be imported: {_REFUSED[name]}",
            hint=f"those of {usable} can",
        )
    near = difflib.get_close_matches(name, ARCHITECTURES, n=1)
    raise UsageError(
        f"no released experts are known of an architecture {name!r}",
        hint=f"did you mean {near[0]!r}?" if near else f"there are {usable}",
    )
