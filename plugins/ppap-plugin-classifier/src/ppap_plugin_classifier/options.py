"""Options of the components; this module imports neither torch nor timm."""

from __future__ import annotations

import math

import attrs


def _positive(instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"must be a positive number, not {value}")


@attrs.frozen(kw_only=True)
class ClassifierOptions:
    """Options of the guider `classifier`.

    Attributes:
        model: A timm model, such as "resnet50" or "deit_small_patch16_224.fb_in1k"; one of
            torchvision, such as "torchvision/resnet50"; or one of transformers, as a folder or as
            "owner/name" of the hub. Required for a checkpoint that does not name its model; without
            a checkpoint, the library's pretrained weights are used.
        softplus: Replaces each ReLU by log(1 + exp(b x)) / b with this b, whose gradient is smooth;
            None keeps them. Ma et al. (2024, arXiv 2310.11311) use 3.
    """

    model: str | None = attrs.field(
        default=None,
        validator=attrs.validators.optional(attrs.validators.instance_of(str)),
        metadata={"compared": False},  # experts know the weights
    )
    softplus: float | None = attrs.field(
        default=None, validator=attrs.validators.optional(_positive)
    )


@attrs.frozen(kw_only=True)
class CrossEntropyOptions:
    """Options of the task loss `cross-entropy`.

    Attributes:
        temperature: Divides the teacher's logits in knowledge transfer. Below 1 it sharpens the
            teacher, and a student equal to its teacher is no longer the minimum. The released PPAP
            experts were trained with 0.25.
        joint: tau_1, the factor of the target's logit in the energy; see `CrossEntropy.energy`.
        marginal: tau_2, the factor of all logits in the log-sum-exp. Ma et al. (2024, arXiv
            2310.11311) use 1 and 0.5.
    """

    temperature: float = attrs.field(
        default=1.0,
        converter=float,
        validator=_positive,
        metadata={"compared": False},  # it does not change the energy
    )
    joint: float = attrs.field(default=1.0, converter=float, validator=_positive)
    marginal: float = attrs.field(default=1.0, converter=float, validator=_positive)
