"""What a network's own image processor feeds it, differentiable.

The image processors of transformers that compute with torchvision are functions of tensors, apart
from rounding to 8 bits. Those steps of theirs that move pixels (resize, crop, pad, flip) are linear
and run on images in [-1, 1] as they are, noise beyond the range included. The others (rescale,
offset, normalize, once or twice) are a scale and a shift for each channel, which are measured:
what the processor makes of black and of white.

The result differs from that of a picture of 8 bits by about one of its 255 levels at most, since
Pillow rounds after each of its two passes; and more where bicubic and Lanczos kernels overshoot
black or white, where Pillow clips.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from ppap_framework.checkpoints import Checkpoint
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.preprocessing import ImageInput
from ppap_transformers._network import make_config, quiet
from ppap_transformers._resampling import KERNELS, resampled

__all__ = ["central", "make_input"]

_SQUARE, _OBLONG = (64, 64), (70, 96)  # shapes at which processors are measured
_WRAPPER = "TimmWrapperImageProcessor"  # timm's transforms as a processor
_TOLERANCE = 1e-3  # of the range from black to white; float32 needs 1e-5


def make_input(model: Checkpoint, *, multiple: int = 1, size: int | None = None) -> ImageInput:
    """The input of a model, as its own image processor makes it.

    Missing values are transformers' defaults for this model type.

    Args:
        model: Model from `find_model`.
        multiple: Divisor of `size`, such as the patch size of the network; the preprocessor may
            require a larger one.
        size: Side in pixels at which the network is shown the whole image, instead of the
            processor's size and crop; rounded to the nearest multiple.

    Raises:
        AssetError: If the preprocessor is invalid or unknown, or its function has no gradient.
        UsageError: If the size is below 1.
    """
    if size is not None and size < 1:
        raise UsageError(f"images cannot be resized to {size} pixels")
    kind = _kind(model)
    stated = {**model.architecture["preprocessor"]}
    try:
        with quiet():
            steps = _timm_steps(model) if kind.__name__ == _WRAPPER else _steps(kind, stated)
            if size is not None:
                steps = _at(steps, kind, stated, size, multiple)
            elif (
                least := getattr(steps.processor, "size_divisor", None)
            ) and not steps.processor.size:
                steps = _after(partial(_enlarged, least=least), steps)
            return _measured(steps)
    except _ImpassableError as error:
        raise AssetError(
            f"{model.name!r} is fed by {kind.__name__}, which guidance cannot pass: {error}",
            hint="name another model",
        ) from error
    except Exception as error:  # processors raise various errors for invalid values
        reason = " ".join(str(error).split())[:200]
        raise AssetError(
            f"the preprocessing of {model.name!r} is invalid: {reason}",
            hint="its preprocessor_config.json is damaged",
        ) from error


class _ImpassableError(Exception):
    """A processor whose result has no gradient that guidance can use."""


@attrs.frozen(kw_only=True)
class _Steps:
    """An image processor in two parts.

    Attributes:
        whole: From 8-bit values (B, 3, H, W) in [0, 255] to the network's input.
        moved: The steps that move pixels alone, of images of any range.
        uncropped: The same without a center crop.
        processor: The processor; None if timm's transforms are.
    """

    whole: Callable[[Tensor], Tensor]
    moved: Callable[[Tensor], Tensor]
    uncropped: Callable[[Tensor], Tensor]
    processor: Any = None


def _kind(model: Checkpoint) -> Any:
    """The class of the model's image processor: the one that is stated, or its type's default."""
    import transformers

    preprocessor = model.architecture["preprocessor"]
    older = str(preprocessor.get("feature_extractor_type", ""))
    name = preprocessor.get("image_processor_type") or older.replace(
        "FeatureExtractor", "ImageProcessor"
    )
    name = str(name).removesuffix("Fast").removesuffix("Pil")
    if name.endswith("ImageProcessor") and hasattr(transformers, name):
        return getattr(transformers, name)
    config = make_config(model)
    if type(config) not in transformers.IMAGE_PROCESSOR_MAPPING:
        raise AssetError(
            f"transformers does not say what images a {config.model_type} wants",
            hint="put the preprocessor_config.json of the model beside its config.json",
        )
    backends = transformers.IMAGE_PROCESSOR_MAPPING[type(config)]
    return backends.get("torchvision") or backends["pil"]


def _exact(kind: Any, stated: Mapping[str, Any]) -> Any:
    """The image processor of a class, with resampling that torch cannot differentiate itself."""
    from transformers.image_processing_backends import TorchvisionBackend

    class Exact(TorchvisionBackend):  # type: ignore[misc]  # transformers is not typed
        """Resampling that torch cannot differentiate, as linear maps."""

        def resize(self, image: Tensor, size: Any, resample: Any = None, **named: Any) -> Tensor:
            if resample not in KERNELS:
                plain: Tensor = super().resize(image, size, resample=resample, **named)
                return plain
            (height, width) = super().resize(image, size, **named).shape[-2:]
            return resampled(image, (height, width), KERNELS[resample])

        def __reduce__(self) -> tuple[Any, ...]:  # the class below has no name to be found by
            return _exact, (kind, stated)

    made: Any = type(kind.__name__, (kind, Exact), {})  # kind's super().resize is that of Exact
    return made.from_dict({**stated})


def _steps(kind: Any, stated: Mapping[str, Any]) -> _Steps:
    whole = _exact(kind, stated)
    parts = {
        name: False
        for name in ("do_rescale", "do_normalize", "include_top")
        if hasattr(whole, name)
    }
    moved = _exact(kind, {**stated, **parts})
    uncropped = _exact(kind, {**stated, **parts, "do_center_crop": False})
    return _Steps(
        whole=partial(_values, whole),
        moved=partial(_values, moved),
        uncropped=partial(_values, uncropped),
        processor=whole,
    )


def _values(processor: Any, images: Tensor) -> Tensor:
    fed = processor(list(images), return_tensors="pt", input_data_format="channels_first")
    values: Tensor | None = fed.get("pixel_values")
    if values is None or values.ndim != 4:
        raise _ImpassableError(f"it makes {', '.join(fed)}, and no pictures (B, 3, h, w)")
    return values


def _timm_steps(model: Checkpoint) -> _Steps:
    from timm.data import create_transform, resolve_data_config
    from torchvision.transforms import CenterCrop, Compose, Normalize

    config = resolve_data_config(make_config(model).pretrained_cfg)
    steps = [
        step
        for step in create_transform(**config).transforms
        if not type(step).__name__.endswith("ToTensor")
    ]
    moved = [step for step in steps if not isinstance(step, Normalize)]
    return _Steps(
        whole=lambda values: Compose(steps)(values / 255),
        moved=Compose(moved),
        uncropped=Compose([step for step in moved if not isinstance(step, CenterCrop)]),
    )


def _at(steps: _Steps, kind: Any, stated: Mapping[str, Any], size: int, multiple: int) -> _Steps:
    """The same steps with another size and without a crop."""
    divisors = [
        getattr(steps.processor, name, 1) for name in ("ensure_multiple_of", "size_divisor")
    ]
    multiple = math.lcm(
        multiple, *(int(divisor) for divisor in divisors if divisor and divisor >= 1)
    )
    side = max(1, round(size / multiple)) * multiple
    own = getattr(steps.processor, "size", None)
    if own and getattr(steps.processor, "do_resize", True):
        sizes = {key: side for key, value in dict(own).items() if value}
        crop = (
            {"crop_size": {"height": side, "width": side}}
            if getattr(steps.processor, "crop_size", None)
            else {}
        )
        return _steps(kind, {**stated, "size": sizes, **crop})

    return _after(partial(_resized, height=side, width=side), steps)


def _resized(images: Tensor, *, height: int, width: int) -> Tensor:
    if images.shape[-2:] == (height, width):
        return images
    return F.interpolate(images, (height, width), mode="bilinear", antialias=True)


def _enlarged(images: Tensor, *, least: int) -> Tensor:
    """Images no side of which is below the least one: GLPN's processor would round it down to 0."""
    height, width = (max(side, least) for side in images.shape[-2:])
    return _resized(images, height=height, width=width)


def _after(first: Callable[[Tensor], Tensor], steps: _Steps) -> _Steps:
    """The steps on what another function makes of the images."""

    def then(step: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        return step(first(images))

    return attrs.evolve(
        steps,
        whole=partial(then, steps.whole),
        moved=partial(then, steps.moved),
        uncropped=partial(then, steps.uncropped),
    )


@torch.no_grad()
def _measured(steps: _Steps) -> ImageInput:
    """The input with the scale, the shift and the padding that the processor shows.

    Raises:
        _ImpassableError: If the processor is no scale and shift of moved pixels.
    """
    own = steps.uncropped(torch.empty(1, 3, *_SQUARE, device="meta")).shape[-2:]
    for shape in (_OBLONG, own):  # where it pads, or else where it need not resize
        inside = steps.moved(torch.ones(1, 3, *shape))[0]  # 0 where padded
        if padded := bool(inside.min() < 1 - _TOLERANCE):
            break
    noise = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    values = 255 * torch.stack([torch.zeros_like(noise), torch.ones_like(noise), noise])
    fed = steps.whole(values)
    with torch.enable_grad():
        moved = steps.moved((values / 127.5 - 1).requires_grad_())
    if fed.shape != moved.shape or not moved.requires_grad:
        raise _ImpassableError("its result has no gradient")
    seen = int(inside.amin(0).argmax())  # a pixel of the image, where an edge is padded
    black, white = (each.flatten(1)[:, seen].double() for each in fed[:2])
    if not bool((white != black).all() and white.isfinite().all() and black.isfinite().all()):
        raise ValueError("black and white look the same")
    scale, shift = ((white - black) / 2).view(3, 1, 1), ((white + black) / 2).view(3, 1, 1)
    unscaled = (fed - shift) / scale
    beside, resize = unscaled - moved.detach(), steps.moved
    if padded:
        edge = int(inside.amax(0).argmin())
        border = (beside[0] / (1 - inside)).flatten(1)[:, edge].float().view(3, 1, 1)
        beside, resize = beside - (1 - inside) * border, partial(_bordered, steps.moved, border)
    if not beside.abs().max() < _TOLERANCE:
        raise _ImpassableError("it does more than resize, crop and scale each channel")
    squares = [torch.empty(1, 3, side, side, device="meta") for side in _OBLONG]
    (height, width), other = (steps.moved(square).shape[-2:] for square in squares)
    size = height if (height, width) == (width, height) == other else None
    kept = height / steps.uncropped(squares[0]).shape[-2]
    return ImageInput(
        size=size,
        mean=(-black / (white - black)).tolist(),
        std=(1 / (white - black)).tolist(),
        resize=resize,
        kept=kept,
    )


def central(images: Tensor, share: float) -> Tensor:
    """The center of images (..., H, W): this share of each side, or all from 1 on."""
    for axis in (-2, -1):
        side = images.shape[axis]
        cut = round(side * (1 - min(share, 1.0)) / 2)
        images = images.narrow(axis, cut, side - 2 * cut)
    return images


def _bordered(moved: Callable[[Tensor], Tensor], border: Tensor, images: Tensor) -> Tensor:
    """Moved images with what the processor puts beside them, (3, 1, 1)."""
    inside = moved(torch.ones_like(images[:1]))
    return moved(images) + (1 - inside) * border.to(images)
