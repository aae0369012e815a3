"""ADM's noise-aware classifier as a guide (Dhariwal and Nichol 2021, arXiv 2105.05233, sec. 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppap_figures.classes import draw_top_classes
from ppap_framework.author import (
    Checkpoint,
    GuidanceModel,
    NoiseLevel,
    Target,
    TargetInput,
    class_target,
    describe_top_class,
)
from ppap_plugin_adm.architecture import Process, class_names, load_network

__all__ = ["AdmClassifierGuide", "make_adm_classifier"]

_ENCODER = "guided_diffusion.unet.EncoderUNetModel"


def make_adm_classifier(options: None, checkpoint: Checkpoint) -> AdmClassifierGuide:
    """Factory of the guider `adm-classifier`.

    Raises:
        AssetError: If the checkpoint is no ADM classifier.
    """
    network, architecture = load_network(checkpoint, _ENCODER)
    names = class_names(architecture, network.config.out_channels, checkpoint)
    return AdmClassifierGuide(
        network, names, architecture.process, architecture.config["image_size"]
    )


def at_size(images: Tensor, size: int, *, noisy: bool) -> Tensor:
    """Resize images (B, 3, H, W) to (B, 3, size, size).

    Clean images are averaged; noisy ones use nearest neighbour, since averaging reduces the noise.
    """
    if images.shape[-2:] == (size, size):
        return images
    if noisy:
        return F.interpolate(images, (size, size), mode="nearest-exact")
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


@final
class AdmClassifierGuide(GuidanceModel):
    """A classifier trained on noisy images and conditioned on the noise level.

    Its input is the timestep of its own schedule that is closest to the noise level; the schedule
    of the denoiser does not matter. Without a level, images are treated as clean: timestep 0.
    Images of another size are resized; see `at_size`.

    Args:
        network: Called as network(x, timesteps); returns logits (B, K).
        class_names: Names of the K classes, in order.
        process: Diffusion process of the classifier; only its timesteps matter.
        image_size: Side of its images, in pixels.
    """

    def __init__(
        self, network: nn.Module, class_names: Sequence[str], process: Process, image_size: int
    ) -> None:
        super().__init__()
        self.network = network
        self.class_names = tuple(class_names)
        self._process = process
        self._schedule = process.noise_schedule()
        self._image_size = image_size
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor, level: NoiseLevel | None = None) -> Tensor:
        """Logits (B, K) of images (B, 3, H, W) at a noise level."""
        if level is None:
            t = torch.zeros(len(images), dtype=torch.int64)
        else:
            t = self._schedule.nearest_timestep(level)
        images = at_size(images, self._image_size, noisy=level is not None)
        logits: Tensor = self.network(
            images.contiguous(memory_format=torch.channels_last),
            self._process.network_timesteps(t.to(images.device)),
        )
        return logits

    def target(self, given: TargetInput) -> Target:
        """Read a class by index, name or unambiguous part of a name; B indices; or a picture, whose
        predicted class becomes the target.
        """
        device = next(self.network.parameters()).device
        return class_target(given, self.class_names, lambda images: self(images.to(device)))

    def render(self, prediction: Tensor, images: Tensor) -> Tensor:
        """Each image beside its five likeliest classes: (B, 3, 144, 288)."""
        return draw_top_classes(prediction, images, self.class_names)

    def describe(self, prediction: Tensor) -> list[str]:
        """The likeliest class of each image, such as "red cube 0.97"."""
        return describe_top_class(prediction, self.class_names)
