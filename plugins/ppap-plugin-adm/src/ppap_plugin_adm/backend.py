"""ADM as a backend: a stage for guidance, and an upsampler, if its checkpoint is joined to it.

Dhariwal and Nichol 2021, arXiv 2105.05233; the upsamplers are those of Nichol and Dhariwal 2021,
arXiv 2102.09672, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import attrs
import torch
from torch import Tensor, nn

from ppap_framework.author import (
    AssetError,
    CascadedStage,
    Checkpoint,
    DiffusionBackend,
    Prediction,
    Stage,
    UsageError,
    find_class,
)
from ppap_plugin_adm.architecture import (
    Architecture,
    Process,
    UpsamplerArchitecture,
    class_names,
    load_with_upsampler,
)
from ppap_plugin_adm.meaning import Meaning

__all__ = ["AdmBackend", "AdmStage", "AdmUpsampler", "make_adm"]

_UNET = "guided_diffusion.unet.UNetModel"


def make_adm(options: None, checkpoint: Checkpoint) -> AdmBackend:
    """Factory of the backend `adm`.

    Raises:
        AssetError: If the checkpoint is no ADM denoiser that generates images from noise.
    """
    network, architecture, upsampler = load_with_upsampler(checkpoint, _UNET)
    _check_channels(checkpoint, architecture)
    num_classes = architecture.config.get("num_classes")
    names = class_names(architecture, num_classes, checkpoint) if num_classes else ()
    stage, second = AdmStage(network, architecture.process, architecture.config["image_size"]), None
    if upsampler is not None:
        stated = architecture.upsampler
        assert stated is not None
        _check_channels(checkpoint, stated)
        sizes = [each.config["image_size"] for each in (architecture, stated)]
        classes = stated.config.get("num_classes")
        if sizes[0] >= sizes[1] or classes not in (None, num_classes):
            both = "its base draws {} pixels a side, its upsampler {}".format(*sizes)
            told = f"the one knows {num_classes or 'no'} classes, the other {classes or 'none'}"
            raise AssetError(
                f"{checkpoint.name!r}: {both}; {told}",
                hint="an upsampler enlarges, and is told the classes of its base, or none",
            )
        second = AdmUpsampler(upsampler, stated, labelled=classes is not None)
    return AdmBackend(stage, names, checkpoint.name, second)


def _check_channels(
    checkpoint: Checkpoint, architecture: Architecture | UpsamplerArchitecture
) -> None:
    config, variance = architecture.config, architecture.process.variance
    given, wanted = config["in_channels"], 6 if variance == "learned_range" else 3
    if (given, config["out_channels"]) != (3, wanted):
        raise AssetError(
            f"{checkpoint.name!r} takes {given} channels and gives {config['out_channels']}, where "
            f"a process with variance {variance!r} has 3 and {wanted}",
            hint="its architecture is stated wrongly",
        )


@final
class AdmStage(Stage):
    """An ADM denoiser with the process it was trained on.

    Args:
        network: Called as network(x_t, timesteps, y); frozen, in evaluation mode.
        process: Diffusion process of the network.
        image_size: Side of the images, in pixels.
    """

    def __init__(self, network: nn.Module, process: Process, image_size: int) -> None:
        self.name = "base"
        self.image_shape = (3, image_size, image_size)
        self.network = network
        self.variance = process.variance
        self._process = process
        self._meaning = Meaning(process)
        self.schedule = self._meaning.schedule

    def denoise(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Prediction:
        """Predict the clean image and the noise.

        Args:
            x_t: (B, 3, H, W), float32.
            t: (B,), int64 base timesteps.
            condition: Classes (B,), int64; None for an unconditional network.
        """
        y = None if condition is None else condition.to(x_t.device)
        output = self.network(
            x_t.contiguous(memory_format=torch.channels_last),
            self._process.network_timesteps(t.to(x_t.device)),
            y,
        )
        return self._meaning(output, x_t, t)


@final
@attrs.frozen(eq=False)
class Enlarged:
    """Condition of the upsampler: classes (B,), int64, or None, and images (B, 3, h, w)."""

    classes: Tensor | None
    low_res: Tensor


@final
class AdmUpsampler(CascadedStage):
    """The stage that enlarges the base's images, told the same classes.

    Args:
        network: Called as network(x_t, timesteps, low_res, y); frozen, in evaluation mode.
        architecture: Diffusion process, image size and recipe.
        labelled: Whether it is class-conditional.
    """

    def __init__(
        self, network: nn.Module, architecture: UpsamplerArchitecture, *, labelled: bool
    ) -> None:
        side = architecture.config["image_size"]
        self.name = "upsampler"
        self.image_shape = (3, side, side)
        self.network = network
        self.variance = architecture.process.variance
        self.sampling = architecture.recipe
        self._process = architecture.process
        self._meaning = Meaning(architecture.process)
        self.schedule = self._meaning.schedule
        self._labelled = labelled

    def conditioned(self, condition: Tensor | None, images: Tensor) -> Enlarged:
        """Add the images, cut to 8 bits as the published sampler saves them."""
        low_res = ((images + 1.0) * 127.5).floor() / 127.5 - 1.0
        return Enlarged(condition if self._labelled else None, low_res)

    def denoise(self, x_t: Tensor, t: Tensor, condition: Enlarged) -> Prediction:
        """Predict the clean image and the noise.

        Args:
            x_t: (B, 3, H, W), float32.
            t: (B,), int64 base timesteps.
            condition: Classes and smaller images of the B images.
        """
        y = None if condition.classes is None else condition.classes.to(x_t.device)
        told = self._process.network_timesteps(t.to(x_t.device))
        output = self.network(x_t, told, condition.low_res.to(x_t), y)
        return self._meaning(output, x_t, t)


@final
class AdmBackend(DiffusionBackend):
    """The ADM backend; the prompt of a class-conditional network is a class.

    Args:
        stage: The stage for guidance.
        class_names: Names of the classes; empty for an unconditional network.
        name: Name of the checkpoint, for messages.
        upsampler: The second stage, if any.
    """

    def __init__(
        self,
        stage: AdmStage,
        class_names: Sequence[str] = (),
        name: str = "adm",
        upsampler: AdmUpsampler | None = None,
    ) -> None:
        self.stages = (stage,) if upsampler is None else (stage, upsampler)
        self.class_names = tuple(class_names)
        self._name = name

    def encode(self, prompts: Sequence[str] | None, batch: int) -> Tensor | None:
        """The classes that the prompts name, (B,), int64; None for an unconditional network.

        Raises:
            UsageError: If an unconditional network gets prompts, a class-conditional one gets
                none or not one for each image, or a prompt names no class.
        """
        if not self.class_names:
            if prompts is not None:
                raise UsageError(
                    f"checkpoint {self._name!r} of backend 'adm' takes no prompt",
                    hint="leave it out, and steer with a guider",
                )
            return None
        if prompts is None:
            raise UsageError(
                f"checkpoint {self._name!r} of backend 'adm' is class-conditional",
                hint=f"give a class as the prompt, such as {self.class_names[0]!r}",
            )
        if len(prompts) != batch:
            raise UsageError(f"{len(prompts)} prompts were given for {batch} images")
        return torch.tensor([find_class(prompt, self.class_names) for prompt in prompts])
