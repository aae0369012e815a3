"""Options of the guiders; this module imports neither torch nor timm."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import attrs
from attrs.validators import and_, deep_iterable, ge, in_, instance_of, min_len, optional

Kind = Literal["perceptual", "style", "structure"]
Facet = Literal["keys", "tokens"]

_NOT_COMPARED = {"compared": False}  # with that of experts: weights and input are


def _names(given: str | Iterable[str]) -> tuple[str, ...]:
    """Split a comma-separated string."""
    words = given.split(",") if isinstance(given, str) else given
    return tuple(word.strip() if isinstance(word, str) else word for word in words)


@attrs.frozen(kw_only=True)
class FeatureOptions:
    """Options of the guiders `style` and `structure`.

    Attributes:
        model: Name of a timm model, such as "resnet50" or "vit_small_patch16_224.dino". Required
            for a checkpoint that does not name its model.
        layers: Layers whose features are compared, such as "layer2,layer3" or "blocks.11"; by
            default all but the first one, for style the first three, for structure the last.
        facet: For structure, whether the "keys" of a layer's attention are compared or its
            "tokens"; by default keys if the layer has attention.
        size: Input side in pixels, instead of the network's own.
    """

    model: str | None = attrs.field(
        default=None, validator=optional(instance_of(str)), metadata=_NOT_COMPARED
    )
    layers: tuple[str, ...] = attrs.field(
        default=(),
        converter=_names,
        validator=deep_iterable(and_(instance_of(str), min_len(1))),
    )
    facet: Literal["keys", "tokens"] | None = attrs.field(
        default=None, validator=optional(in_(("keys", "tokens")))
    )
    size: int | None = attrs.field(
        default=None, validator=optional([instance_of(int), ge(1)]), metadata=_NOT_COMPARED
    )


@attrs.frozen(kw_only=True)
class LikenessOptions(FeatureOptions):
    """Options of the guider `likeness`: those of `style` and `structure`, and the kind.

    Attributes:
        model: Name of a timm model, such as "resnet50" or "vit_small_patch16_224.dino". Required
            for a checkpoint that does not name its model.
        layers: Layers whose features are compared, such as "layer2,layer3" or "blocks.11"; by
            default all but the first one, for style the first three, for structure the last.
        facet: For structure, whether the "keys" of a layer's attention are compared or its
            "tokens"; by default keys if the layer has attention.
        size: Input side in pixels, instead of the network's own.
        kind: What is compared: "perceptual", the features of each place; "style", which features
            occur together; "structure", which places are alike.
    """

    kind: Literal["perceptual", "style", "structure"] = attrs.field(
        default="perceptual", validator=in_(("perceptual", "style", "structure"))
    )
