"""ADM as a backend with one stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from ppap_framework.author import (
    AssetError,
    Checkpoint,
    DiffusionBackend,
    Prediction,
    Stage,
    UsageError,
    find_class,
)
from ppap_plugin_adm.architecture import Process, class_names, load_network
from ppap_plugin_adm.meaning import Meaning

__all__ = ["AdmBackend", "AdmStage", "make_adm"]

_UNET = "guided_diffusion.unet.UNetModel"


def make_adm(options: None, checkpoint: Checkpoint) -> AdmBackend:
    """Factory of the backend `adm`.

    Raises:
        AssetError: If the checkpoint is no ADM denoiser that generates images from noise.
    """
    network, architecture = load_network(checkpoint, _UNET)
    config, process = network.config, architecture.process
    channels = 6 if process.variance == "learned_range" else 3
    if (config.in_channels, config.out_channels) != (3, channels):
        raise AssetError(
            f"{checkpoint.name!r} takes {config.in_channels} channels and gives "
            f"{config.out_channels}, where a process with variance {process.variance!r} has 3 and "
            f"{channels}",
            hint="its architecture is stated wrongly",
        )
    num_classes = architecture.config.get("num_classes")
    names = class_names(architecture, num_classes, checkpoint) if num_classes else ()
    stage = AdmStage(network, process, architecture.config["image_size"])
    return AdmBackend(stage, names, checkpoint.name)


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
class AdmBackend(DiffusionBackend):
    """The ADM backend; the prompt of a class-conditional network is a class.

    Args:
        stage: The only stage.
        class_names: Names of the classes; empty for an unconditional network.
        name: Name of the checkpoint, for messages.
    """

    def __init__(self, stage: AdmStage, class_names: Sequence[str] = (), name: str = "adm") -> None:
        self.stages = (stage,)
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
