"""GLIDE as a backend: a text-conditional base stage for guidance, and an upsampler.

Nichol et al. 2021, arXiv 2112.10741. Classifier-free guidance (Ho and Salimans 2022, arXiv
2207.12598) happens within `denoise`: the mean is u + s (c - u), with c the network's output for the
prompt and u that for the empty prompt; the variance is that for the prompt. The formula holds for
eps, x0 and v alike, since each is a linear function of the others.

Inpainting networks (section 4 there) read the pixels to keep beside the noisy image. As in the
published sampler, these pixels also replace those of the predicted x0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import attrs
import torch
from torch import Tensor

from ppap_framework.author import (
    AssetError,
    CascadedStage,
    Checkpoint,
    DiffusionBackend,
    Known,
    Prediction,
    Stage,
    UsageError,
    read_architecture,
)
from ppap_plugin_adm.meaning import Meaning
from ppap_plugin_glide.architecture import GlideArchitecture, StageArchitecture, load_networks
from ppap_plugin_glide.options import GlideOptions
from ppap_plugin_glide.tokens import PromptTokens, Texts
from ppap_plugin_glide.unet import EncodedText, TextUNet

__all__ = ["BaseStage", "Condition", "GlideBackend", "UpsamplerStage", "make_glide"]


def make_glide(options: GlideOptions, checkpoint: Checkpoint) -> GlideBackend:
    """Factory of the backend `glide`.

    Raises:
        AssetError: If the checkpoint is no GLIDE, or its parts do not fit together.
    """
    architecture = read_architecture(checkpoint, GlideArchitecture)
    stages = [architecture.base]
    if architecture.upsampler is not None:
        stages.append(architecture.upsampler)
    loaded = load_networks(
        checkpoint, {stage.name: (stage.official_class, stage.config) for stage in stages}
    )
    networks = []
    for stage in stages:
        network = loaded[stage.name]
        assert isinstance(network, TextUNet)
        networks.append(network)
        _check_channels(checkpoint.name, stage, network)
    base, *others = networks
    for other in others:
        ours, theirs = _reading(base), _reading(other)
        if ours != theirs:
            raise AssetError(
                f"{checkpoint.name!r}: its base reads {ours}, its upsampler {theirs}",
                hint="both stages read one text, so an upsampler of this base is wanted",
            )
    try:
        tokens = PromptTokens(architecture.tokenizer, base.vocabulary, base.text_ctx)
    except ValueError as error:
        raise AssetError(
            f"{checkpoint.name!r}: {error}", hint="its tokenizer is that of another model"
        ) from error
    upsampler = architecture.upsampler and UpsamplerStage(others[0], architecture.upsampler)
    first = BaseStage(base, architecture.base, options.cfg)
    return GlideBackend(first, upsampler, tokens, inpaints=architecture.base.inpaints)


def _reading(network: TextUNet) -> str:
    return f"{network.text_ctx} tokens of {network.vocabulary}"


def _check_channels(name: str, stage: StageArchitecture, network: TextUNet) -> None:
    given = network.config.in_channels, network.config.out_channels
    wanted = 3, 6 if stage.process.variance == "learned_range" else 3
    if given != wanted:
        raise AssetError(
            f"{name!r}: its {stage.name} takes {given[0]} channels and gives {given[1]}, where a "
            f"process with variance {stage.process.variance!r} has {wanted[0]} and {wanted[1]}",
            hint="its architecture is stated wrongly",
        )


@final
@attrs.frozen(eq=False)
class Condition:
    """Condition of B images.

    Attributes:
        texts: Tokenized prompts.
        empty: The empty prompt, B times; None if all prompts are empty.
        low_res: (B, 3, h, w) in [-1, 1], images of the stage before; None for the first stage.
        known: Pixels to keep, for inpainting networks; None if all is drawn.
    """

    texts: Texts
    empty: Texts | None
    low_res: Tensor | None = None
    known: Known | None = None
    # Encodings for all steps; the key is the identity of (network, texts).
    _read: dict[tuple[int, int], EncodedText] = attrs.field(factory=dict, init=False)

    def read_by(self, network: TextUNet, texts: Texts, device: torch.device) -> EncodedText:
        """Encode texts with a network's transformer, once."""
        key = id(network), id(texts)
        if key not in self._read:
            with torch.no_grad():
                self._read[key] = network.encode_text(
                    texts.tokens.to(device), texts.mask.to(device)
                )
        return self._read[key]

    def known_beside(self, x: Tensor) -> Known | None:
        """The pixels to keep, at the size of x, (B, 3, H, W), for each of the B images."""
        if self.known is None:
            return None
        known = self.known.sized(*x.shape[-2:])
        return Known(*(part.to(x.device).expand(len(x), -1, -1, -1) for part in known))


def _fed(known: Known | None) -> dict[str, Tensor]:
    """Arguments of an inpainting network, whose mask is 1 at the pixels to keep."""
    if known is None:
        return {}
    return {"inpaint_image": known.x0, "inpaint_mask": 1.0 - known.unknown}


def _keeping(prediction: Prediction, known: Known | None) -> Prediction:
    return prediction if known is None else prediction.with_x0(known.kept(prediction.x0))


@final
class BaseStage(Stage):
    """The stage for guidance.

    Args:
        network: Denoiser, frozen and in evaluation mode.
        architecture: Diffusion process and image size.
        cfg: Guidance scale of classifier-free guidance.
    """

    def __init__(self, network: TextUNet, architecture: StageArchitecture, cfg: float) -> None:
        self.name = architecture.name
        self.image_shape = (3, architecture.image_size, architecture.image_size)
        self.network: TextUNet = network
        self.variance = architecture.process.variance
        self._process = architecture.process
        self._meaning = Meaning(architecture.process)
        self.schedule = self._meaning.schedule
        self._cfg = cfg

    def denoise(self, x_t: Tensor, t: Tensor, condition: Condition) -> Prediction:
        """Predict the clean image and the noise.

        Args:
            x_t: (B, 3, H, W), float32.
            t: (B,), int64 base timesteps.
            condition: Condition of the B images.
        """
        network = self.network
        told = self._process.network_timesteps(t.to(x_t.device))
        text = condition.read_by(network, condition.texts, x_t.device)
        known = condition.known_beside(x_t)
        fed = _fed(known)
        if condition.empty is None or self.evaluations(condition) == 1:
            output = network(x_t, told, tokens=text, **fed)
            return _keeping(self._meaning(output, x_t, t), known)
        empty = condition.read_by(network, condition.empty, x_t.device)
        twice = EncodedText.joined(text, empty)
        fed = {name: torch.cat([each, each]) for name, each in fed.items()}
        both = network(torch.cat([x_t, x_t]), torch.cat([told, told]), tokens=twice, **fed)
        output, without = both.chunk(2)
        mean, variance = output[:, :3], output[:, 3:]
        guided = without[:, :3] + self._cfg * (mean - without[:, :3])
        output = torch.cat([guided, variance], dim=1)
        return _keeping(self._meaning(output, x_t, t), known)

    def evaluations(self, condition: Condition) -> int:
        """Two if classifier-free guidance applies, else one."""
        return 1 if condition.empty is None or self._cfg == 1.0 else 2


@final
class UpsamplerStage(CascadedStage):
    """The stage that enlarges the base's images with the same text, without guidance.

    Args:
        network: Denoiser, frozen and in evaluation mode.
        architecture: Diffusion process, image size and recipe.
    """

    def __init__(self, network: TextUNet, architecture: StageArchitecture) -> None:
        self.name = architecture.name
        self.image_shape = (3, architecture.image_size, architecture.image_size)
        self.network: TextUNet = network
        self.variance = architecture.process.variance
        self.sampling = architecture.recipe
        self._process = architecture.process
        self._meaning = Meaning(architecture.process)
        self.schedule = self._meaning.schedule

    def conditioned(self, condition: Condition, images: Tensor) -> Condition:
        """Add the images, rounded to 8 bits as in training."""
        low_res = ((images + 1.0) * 127.5).round() / 127.5 - 1.0
        return attrs.evolve(condition, low_res=low_res)

    def denoise(self, x_t: Tensor, t: Tensor, condition: Condition) -> Prediction:
        """Predict the clean image and the noise.

        Args:
            x_t: (B, 3, H, W), float32.
            t: (B,), int64 base timesteps.
            condition: Condition of the B images, with `low_res`.
        """
        assert condition.low_res is not None
        told = self._process.network_timesteps(t.to(x_t.device))
        text = condition.read_by(self.network, condition.texts, x_t.device)
        low_res = condition.low_res.to(x_t)
        known = condition.known_beside(x_t)
        output = self.network(x_t, told, low_res=low_res, tokens=text, **_fed(known))
        return _keeping(self._meaning(output, x_t, t), known)


@final
class GlideBackend(DiffusionBackend):
    """The GLIDE backend.

    Args:
        base: The first stage.
        upsampler: The second stage, if any.
        tokens: Tokenizer of both stages.
        inpaints: Whether the networks read the pixels to keep.
    """

    def __init__(
        self,
        base: BaseStage,
        upsampler: UpsamplerStage | None,
        tokens: PromptTokens,
        *,
        inpaints: bool = False,
    ) -> None:
        self.stages = (base,) if upsampler is None else (base, upsampler)
        self._tokens = tokens
        self._inpaints = inpaints

    def inpainting(self, condition: Condition, known: Known) -> Condition:
        """The condition with the pixels to keep, if the networks read them."""
        return attrs.evolve(condition, known=known) if self._inpaints else condition

    def encode(self, prompts: Sequence[str] | None, batch: int) -> Condition:
        """Tokenize prompts; None means empty prompts, which have no classifier-free guidance.

        Raises:
            UsageError: If the number of prompts is not `batch`, or one is not valid Unicode.
        """
        if prompts is not None and len(prompts) != batch:
            raise UsageError(f"{len(prompts)} prompts were given for {batch} images")
        texts = self._tokens([""] * batch if prompts is None else prompts)
        return Condition(texts, self._tokens([""] * batch) if texts.mask.any() else None)
