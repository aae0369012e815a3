"""A second stage, which enlarges the images of the first one: stage II of DeepFloyd IF."""

from __future__ import annotations

from typing import Any, final

import attrs
import torch
from torch import Tensor, nn

from ppap_framework.author import AssetError, CascadedStage, CascadeSampling, Prediction
from ppap_plugin_diffusers.convention import convention_of
from ppap_plugin_diffusers.stage import Condition, DiffusersStage, with_guidance

__all__ = ["Enlarged", "UpsamplerStage"]

_LEVEL, _SCALE = 250, 4.0  # of IFSuperResolutionPipeline


@final
@attrs.frozen(eq=False)
class Enlarged:
    """Condition of an upsampler: that of stage I, and its images, (B, 3, H, W), noised."""

    told: Condition
    low_res: Tensor


@final
class UpsamplerStage(CascadedStage):
    """Stage II of DeepFloyd IF, which enlarges the images of stage I with the same text.

    The network reads the images, noised to a level that it is told (Ho et al. 2021, arXiv
    2106.15282, section 4). This noise is the same for all images, so that none depends on its
    batch. Level, steps and guidance scale are the defaults of the pipeline.

    Args:
        pipe: An `IFSuperResolutionPipeline`; its encoder of texts is not used.
        before: Stage I.

    Raises:
        AssetError: If its scheduler is not known, or its network is no upsampler.
    """

    name = "upsampler"
    sampling = CascadeSampling(respacing="ddim50", eta=1.0)

    def __init__(self, pipe: Any, before: DiffusersStage) -> None:
        config = pipe.unet.config
        if (config.in_channels, config.encoder_hid_dim) != (6, before.text_width):
            fault = f"stage II reads {config.in_channels} channels and texts of"
            fault = f"{fault} {config.encoder_hid_dim} numbers, not 6 and {before.text_width}"
            raise AssetError(fault, hint="give the stage II of the same model")
        self.network = pipe.unet
        self.image_shape = (3, config.sample_size, config.sample_size)
        self.convention = convention_of(pipe.scheduler, config.out_channels == 6)
        self.schedule, self.variance = self.convention.schedule, self.convention.variance
        self.final_abar = self.convention.final_abar
        self._before = before
        self._abar = float(pipe.image_noising_scheduler.alphas_cumprod[_LEVEL])

    def clip(self, x0: Tensor) -> Tensor:
        """As the scheduler's config says."""
        return self.convention.clip(x0)

    def evaluations(self, condition: Condition | Enlarged) -> int:
        """Two if classifier-free guidance applies, else one."""
        told = condition.told if isinstance(condition, Enlarged) else condition
        return self._before.evaluations(told)

    def conditioned(self, condition: Condition, images: Tensor) -> Enlarged:
        """Add the images, enlarged and noised."""
        side = self.image_shape[1:]
        large = nn.functional.interpolate(images, side, mode="bilinear", align_corners=True)
        noise = torch.randn(self.image_shape, generator=torch.Generator().manual_seed(0))
        noised = self._abar**0.5 * large + (1.0 - self._abar) ** 0.5 * noise.to(images)
        return Enlarged(condition, noised)

    def denoise(self, x_t: Tensor, t: Tensor, condition: Enlarged) -> Prediction:
        """Predict the clean image and the noise.

        Args:
            x_t: (B, 3, H, W), float32.
            t: (B,), base timesteps.
            condition: Condition of the B images.
        """
        arguments = condition.told.arguments(self._before, x_t.device)
        fed = torch.cat([x_t, condition.low_res.to(x_t)], dim=1)
        told = t.to(x_t.device)
        if condition.told.negatives:
            fed, told = torch.cat([fed, fed]), torch.cat([told, told])
        level = torch.full_like(told, _LEVEL)
        dtype = next(self.network.parameters()).dtype
        output = self.network(
            fed.to(dtype), told, **arguments, class_labels=level, return_dict=False
        )[0].float()
        if condition.told.negatives:
            output = with_guidance(output, 3, _SCALE)
        return self.convention.prediction(output, x_t, t)
