"""Pipelines of diffusers as a backend, with one stage or, of a cascade, two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from ppap_framework.author import Checkpoint, DiffusionBackend, UsageError, find_class
from ppap_plugin_diffusers.cascade import UpsamplerStage
from ppap_plugin_diffusers.families import class_names, family_of
from ppap_plugin_diffusers.folder import load_decoder, load_pipeline, load_upsampler
from ppap_plugin_diffusers.options import DiffusersOptions
from ppap_plugin_diffusers.stage import Condition, DiffusersStage

__all__ = ["DiffusersBackend", "make_diffusers"]


def make_diffusers(options: DiffusersOptions, source: Checkpoint | Any) -> DiffusersBackend:
    """Factory of the backend `diffusers`.

    Args:
        options: Options of the backend.
        source: A checkpoint of `open_pipeline`, or a `DiffusionPipeline`, whose components are used
            as they are.

    Raises:
        AssetError: If a component is missing, or the family or the scheduler is not known.
        UsageError: If an option does not apply to the pipeline's family.
    """
    pipe = load_pipeline(source) if isinstance(source, Checkpoint) else source
    family = family_of(type(pipe).__name__)
    vae = None if options.vae is None else load_decoder(options.vae, family)
    stage = DiffusersStage(pipe, family, options, vae)
    later = load_upsampler(source) if isinstance(source, Checkpoint) else None
    return DiffusersBackend(stage, None if later is None else UpsamplerStage(later, stage))


@final
class DiffusersBackend(DiffusionBackend):
    """The backend `diffusers`.

    Args:
        stage: The stage for guidance.
        upsampler: The second stage, if any.
    """

    def __init__(self, stage: DiffusersStage, upsampler: UpsamplerStage | None = None) -> None:
        self.stages = (stage,) if upsampler is None else (stage, upsampler)
        self._stage = stage
        self.device = next(stage.network.parameters()).device

    def encode(self, prompts: Sequence[str] | None, batch: int) -> Condition:
        """The condition of B images.

        Without prompts, a model of texts gets empty ones, and a model of classes that knows an
        empty class gets that one; neither then uses classifier-free guidance.

        Raises:
            UsageError: If the model takes no prompts or needs some, there is not one for each
                image, or a prompt names no class.
        """
        stage, name = self._stage, type(self._stage.pipe).__name__
        if prompts is not None and len(prompts) != batch:
            raise UsageError(f"{len(prompts)} prompts were given for {batch} images")
        guided = stage.cfg not in (None, 1.0) and prompts is not None
        if stage.family.prompt == "text":
            negatives = [stage.options.negative] * batch if guided else []
            return Condition(prompts or [""] * batch, negatives)
        names, empty = class_names(stage.pipe, getattr(stage.pipe, stage.family.denoiser))
        if not names:
            if prompts is not None:
                raise UsageError(
                    f"a {name} takes no prompt", hint="leave it out, and steer with a guider"
                )
            return Condition((), ())
        if prompts is None and empty is None:
            raise UsageError(
                f"this {name} is class-conditional",
                hint=f"give a class as the prompt, such as {names[0]!r}",
            )
        classes = [find_class(prompt, names) for prompt in prompts or ()]
        guided = guided and empty is not None
        return Condition(classes or [empty] * batch, [empty] * batch if guided else ())
