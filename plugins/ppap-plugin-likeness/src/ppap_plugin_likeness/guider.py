"""Likeness to reference pictures in the features of any timm network."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppap_framework.author import (
    AssetError,
    Checkpoint,
    ImageInput,
    NoiseLevel,
    Preprocessing,
    PreprocessingGuide,
    Target,
    TargetInput,
    UsageError,
    weighted_parts,
)
from ppap_plugin_likeness import descriptors
from ppap_plugin_likeness.network import load_backbone
from ppap_plugin_likeness.options import FeatureOptions, Kind, LikenessOptions

__all__ = ["LikenessGuide", "make_likeness", "make_structure", "make_style"]

_SHOWN, _WORDS = 512, 80  # limits of pictures and labels in grids
_DESCRIBED = {
    "perceptual": descriptors.perceptual,
    "style": descriptors.style,
    "structure": descriptors.structure,
}
_LABELS = {"perceptual": "like", "style": "the style of", "structure": "the structure of"}


def make_likeness(options: LikenessOptions, checkpoint: Checkpoint | None) -> LikenessGuide:
    """Factory of the guider `likeness`.

    Raises:
        UsageError: If no network is named, or it or a layer is unknown.
        AssetError: If the weights do not fit or are unavailable.
    """
    return _make(options, checkpoint, options.kind)


def make_style(options: FeatureOptions, checkpoint: Checkpoint | None) -> LikenessGuide:
    """Factory of the guider `style`; errors as `make_likeness`."""
    return _make(options, checkpoint, "style")


def make_structure(options: FeatureOptions, checkpoint: Checkpoint | None) -> LikenessGuide:
    """Factory of the guider `structure`; errors as `make_likeness`."""
    return _make(options, checkpoint, "structure")


def _make(options: FeatureOptions, checkpoint: Checkpoint | None, kind: Kind) -> LikenessGuide:
    if options.facet is not None and kind != "structure":
        raise UsageError(
            f"a guide of {kind} compares no {options.facet}",
            hint="leave --guider-option facet out, or take the guider structure",
        )
    network, preprocessing = load_backbone(options.model, checkpoint, options.size)
    indices, names = _layers(network, options.layers, kind)
    keys = [_keys(network, name) for name in names] if kind == "structure" else []
    if options.facet == "tokens" or (options.facet is None and not all(keys)):
        keys = []
    if not all(keys):
        raise UsageError(
            f"layer {names[keys.index(None)]!r} has no attention whose keys could be compared",
            hint="name layers of a vision transformer, or add --guider-option facet=tokens",
        )
    pruned: Any = network
    pruned.prune_intermediate_layers(indices, prune_norm=True, prune_head=True)
    return LikenessGuide(network, preprocessing, kind, indices, [key for key in keys if key])


def _layers(network: Any, wanted: Sequence[str], kind: Kind) -> tuple[list[int], list[str]]:
    """Indices and names of the layers, in the network's order."""
    if not callable(getattr(network, "forward_intermediates", None)):  # few have none
        raise AssetError(
            f"timm has no intermediate features of a {type(network).__name__}",
            hint="name another network, such as resnet50 or vit_small_patch16_224.dino",
        )
    info = network.feature_info
    names = [str(layer["module"]) for layer in getattr(info, "info", info)]
    for name in wanted:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=3)
            every = ", ".join(names if len(names) < 10 else [*names[:3], "...", names[-1]])
            raise UsageError(
                f"{type(network).__name__} has no layer {name!r} with features",
                hint=f"did you mean {', '.join(near)}?" if near else f"there are {every}",
            )
    default = {"perceptual": names[1:], "style": names[:3], "structure": names[-1:]}[kind]
    chosen = set(wanted or default)
    indices = [index for index, name in enumerate(names) if name in chosen]
    return indices, [names[index] for index in indices]


def _keys(network: nn.Module, layer: str) -> str | None:
    """The layer that computes the keys of an attention; None if there is none."""
    modules = dict(network.named_modules())
    for part in ("attn.k_proj", "attn.qkv"):
        if isinstance(modules.get(f"{layer}.{part}"), nn.Linear):
            return f"{layer}.{part}"
    return None


@final
class LikenessGuide(PreprocessingGuide):
    """A frozen network with its preprocessing.

    Args:
        network: A timm model with `forward_intermediates`, best cut after the last of the layers.
        preprocessing: Resize and normalization of the network.
        kind: What of the features is compared; see `descriptors`.
        indices: Indices of the layers in timm's `feature_info`.
        keys: Names of the layers that compute the keys to compare instead, or none.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        kind: Kind,
        indices: Sequence[int],
        keys: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.network: Any = network
        self._kind, self._indices, self._keys = kind, [*indices], [*keys]
        self._shown = ImageInput(**attrs.asdict(preprocessing))
        self.eval().requires_grad_(False)

    def preprocessed(self, preprocessing: Preprocessing) -> LikenessGuide:
        """See `PreprocessingGuide.preprocessed`."""
        other = LikenessGuide(self.network, preprocessing, self._kind, self._indices, self._keys)
        other._shown.to(next(self._shown.buffers()))  # device and dtype
        return other

    def forward(self, images: Tensor, level: NoiseLevel | None = None) -> Tensor:
        """phi (B, F) of images (B, 3, H, W), as in `descriptors`; the noise level is ignored."""
        with _outputs(self.network, self._keys) as outputs:
            maps = self.network.forward_intermediates(
                self._shown(images), indices=self._indices, intermediates_only=True
            )
        features = [found.flatten(2) for found in maps]  # (B, C, P)
        if self._keys:
            features = [self._keys_of(name, outputs[name]) for name in self._keys]
        return _DESCRIBED[self._kind](features)

    def target(self, given: TargetInput) -> Target:
        """Weights and phi of the references, (1, R, 1 + F).

        Args:
            given: A picture, or the paths of several with weights: "a.png | b.png:0.5". Pictures
                that are not square are center-cropped.

        Raises:
            UsageError: For words, arrays, or a weight that is not above 0.
            AssetError: If a picture cannot be read.
        """
        rows: list[Tensor] = []
        labels: list[str] = []
        pictures: list[Tensor] = []
        device = next(self.network.parameters()).device
        parts = weighted_parts(given)
        total = sum(weight for _, weight in parts)
        for part, weight in parts:
            if part.image is None:
                what = repr(part.text[:_WORDS]) if part.text else "an array"
                raise UsageError(
                    f"a guide of likeness cannot aim at {what}",
                    hint='give a picture, or several: "a.png | b.png:0.5"',
                )
            if weight <= 0:
                raise UsageError(
                    f"reference {part.source!r} has the weight {weight:g}",
                    hint="give a weight above 0, or leave the reference out",
                )
            picture = _square(part.pixels())
            with torch.no_grad():
                phi = self(picture[None].to(device))[0].float().cpu()
            if self._kind == "structure" and len(phi) == len(self._indices):
                raise UsageError(
                    "in the features to compare there is one place, which has no structure",
                    hint="name an earlier layer with --guider-option layers=NAME, or give a size",
                )
            rows.append(torch.cat([torch.tensor([weight / total]), phi]))
            pictures.append(_of_height(picture, pictures[0].shape[1] if pictures else None))
            labels.append(part.source.rpartition("/")[2])
        label = f"{_LABELS[self._kind]} {' | '.join(labels)}"
        return Target(
            value=torch.stack(rows)[None], label=label[:_WORDS], picture=torch.cat(pictures, 2)
        )

    def describe(self, prediction: Tensor) -> list[str]:
        """Always empty, since features have no readable form."""
        return []

    def _keys_of(self, name: str, found: Tensor) -> Tensor:
        """Keys (B, C, P) of the output of a projection, without class tokens and registers."""
        found = found[:, self.network.num_prefix_tokens :]
        if name.endswith(".qkv"):
            found = found.chunk(3, dim=2)[1]
        return found.transpose(1, 2)


@contextmanager
def _outputs(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """A context that collects the outputs of layers by name."""
    found: dict[str, Tensor] = {}
    hooks = [
        network.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: found.__setitem__(name, output)
        )
        for name in names
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _square(picture: Tensor) -> Tensor:
    """The middle of a picture (3, H, W), at most `_SHOWN` pixels wide."""
    side = min(picture.shape[1:])
    top, left = ((extent - side) // 2 for extent in picture.shape[1:])
    picture = picture[:, top : top + side, left : left + side]
    return _of_height(picture, _SHOWN) if side > _SHOWN else picture


def _of_height(picture: Tensor, side: int | None) -> Tensor:
    if side is None or picture.shape[1] == side:
        return picture
    return F.interpolate(picture[None], (side, side), mode="bilinear", antialias=True)[0]
