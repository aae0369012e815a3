r"""Guides inside diffusers: its pipelines draw, with their own samplers, and ours steer.

Between the network and the sampler's step, the output for x_t is read as a `Prediction`, moved by
the gradient of the guides' energies, and written as an output again. This comes after the
pipeline's own guidance (classifier-free, APG and others), and no sampler needs to know of it:

    with guided(pipe, [depth], through="detached"):      any pipeline of a family that is built
        images = pipe("a cat").images

    blocks = guided_blocks(StableDiffusionXLAutoBlocks(), [depth], through="detached")
    pipe = blocks.init_pipeline(FOLDER)                   modular pipelines

A `callback` sees a step only after its end; see there.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

import attrs
import torch
from diffusers.modular_pipelines import LoopSequentialPipelineBlocks, ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam
from torch import Tensor

from ppap_framework.author import NoiseLevel, Prediction, UsageError
from ppap_framework.diffusion import shifted, times
from ppap_framework.guidance import EnergyGuidance, Guide
from ppap_framework.origin import Origin
from ppap_framework.run import LoadedBackend, Plan, Sampling, changed, plan, warn_of_futility
from ppap_framework.runtime import frozen, isolated
from ppap_plugin_diffusers.backend import DiffusersBackend
from ppap_plugin_diffusers.families import Family, family_of, packed, unpacked
from ppap_plugin_diffusers.options import DiffusersOptions
from ppap_plugin_diffusers.stage import DiffusersStage

__all__ = ["GuideBlock", "callback", "guided", "guided_blocks"]

_SETTINGS = ("through", "normalize", "conflicts", "moments", "guide_every")
_STRAIGHT = ("DDIMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler")


@contextlib.contextmanager
def guided(pipe: Any, guides: Sequence[Guide], **changes: Any) -> Iterator[Any]:
    """A context in which guides steer all that a pipeline draws, whatever its scheduler.

    Meanwhile `step` of the pipeline's scheduler is replaced. With DDIM, eta 0 and no clipping, and
    with Euler steps of flow matching, the images are those of `ppap_framework.sample`. A scheduler
    that clips does so after the guides.

    Args:
        pipe: A pipeline, classic or modular, of a family that is built.
        guides: Guides, as of `ppap_framework.guide`.
        changes: Fields of `ppap_framework.Sampling` that concern guidance: `through` (not "clean"),
            `normalize`, `conflicts`, `moments`, `guide_every`.

    Raises:
        PpapError: Then or while the pipeline draws, as `ppap_framework.sample`. On exit, UsageError
            if the pipeline has got another scheduler meanwhile, whose steps were not guided.
    """
    loop = _Loop(guides, changes)
    loop.stage(pipe)
    scheduler = pipe.scheduler
    step = scheduler.step

    @functools.wraps(step)
    def steered(
        model_output: Tensor, timestep: Any, sample: Tensor, *more: Any, **named: Any
    ) -> Any:
        output = loop.steered(pipe, model_output, timestep, sample)
        return step(output, timestep, sample, *more, **named)

    own = "step" in vars(scheduler)  # another `guided` is around this one
    scheduler.step = steered
    try:
        yield pipe
    finally:
        del scheduler.step
        if own:
            scheduler.step = step
        loop.close()
    if pipe.scheduler is not scheduler:
        fault = "the pipeline got another scheduler inside `guided`, whose steps were not guided"
        raise UsageError(fault, hint="replace the scheduler first, then enter `guided`")


@final
class GuideBlock(ModularPipelineBlocks):  # type: ignore[misc]  # diffusers has no types
    """A block of a denoising loop, between `denoiser` and `after_denoiser`.

    It reads `latents`, `noise_pred` and t, and rewrites `noise_pred`. Arguments are those of
    `guided`. Copies of it share the guides.
    """

    def __init__(self, guides: Sequence[Guide], **changes: Any) -> None:
        super().__init__()
        self._loop = _Loop(guides, changes)

    @property
    def description(self) -> str:
        """One line."""
        return "step within the denoising loop in which guides of ppap rewrite the prediction"

    @property
    def inputs(self) -> list[InputParam]:
        """The latents."""
        return [InputParam("latents", required=True, type_hint=Tensor, description="x_t")]

    @torch.no_grad()
    def __call__(self, components: Any, state: Any, i: int, t: Any) -> tuple[Any, Any]:
        """Rewrite `noise_pred` of step i."""
        state.noise_pred = self._loop.steered(components, state.noise_pred, t, state.latents)
        return components, state


def guided_blocks(blocks: Any, guides: Sequence[Guide], **changes: Any) -> Any:
    """A copy of a modular pipeline's blocks, with a `GuideBlock` in each of its denoising loops.

    Arguments are those of `guided`. UsageError if there is no denoising loop.
    """
    if not isinstance(blocks, ModularPipelineBlocks):
        fault = f"a {type(blocks).__name__} is no block of a modular pipeline"
        raise UsageError(fault, hint="for a pipeline, use `guided`")
    made = copy.deepcopy(blocks)
    if not _insert(made, GuideBlock(guides, **changes)):
        fault = f"{type(blocks).__name__} has no denoising loop with a step after_denoiser"
        raise UsageError(fault, hint="insert a GuideBlock before the step of the scheduler")
    return made


def _insert(blocks: Any, block: GuideBlock) -> int:
    inside = blocks.sub_blocks
    if isinstance(blocks, LoopSequentialPipelineBlocks) and "after_denoiser" in inside:
        inside.insert("guide", block, list(inside).index("after_denoiser"))
        return 1
    return sum(_insert(each, block) for each in inside.values())


@final
class callback:  # noqa: N801  # it is called like the function that it stands for
    """What a classic pipeline takes as `callback_on_step_end`: guides move the latents of a step.

        pipe("a cat", callback_on_step_end=callback(pipe, [depth], through="detached"))

    A callback sees a step after its end, and so it cannot

    - guide the first step, whose initial noise is not shown to it;
    - follow a scheduler of higher order or with noise of its own (such as DDIM's eta above 0): the
      predicted clean latent is found on the straight line through the latents before and after the
      step, which only DDIM and Euler steps have;
    - look through the denoiser.

    `guided` can do all but the last. Arguments and errors are those of `guided`; UsageError if the
    pipeline's scheduler is of another kind.
    """

    def __init__(self, pipe: Any, guides: Sequence[Guide], **changes: Any) -> None:
        self._loop = _Loop(guides, changes)
        self._before: Tensor | None = None
        self._check(pipe)

    def _check(self, pipe: Any) -> None:
        self._loop.stage(pipe)
        if (name := type(pipe.scheduler).__name__) not in _STRAIGHT:
            fault = f"a callback cannot guide the steps of a {name}"
            raise UsageError(fault, hint=f"use `guided`, or one of {', '.join(_STRAIGHT)}")

    @torch.no_grad()
    @isolated()
    def __call__(self, pipe: Any, i: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """The tensors of step i, which ends, with guided latents."""
        self._check(pipe)
        if "latents" not in tensors:
            hint = 'add callback_on_step_end_tensor_inputs=["latents"]'
            raise UsageError("the pipeline shows the callback no latents", hint=hint)
        told = float(t)
        if i == 0:
            self._before = None
        convention, after = self._loop.stage(pipe).convention, _next(pipe.scheduler, told)
        scale = convention.scale(pipe.scheduler, after)
        latents = tensors["latents"]
        x = scale * self._loop.spread(pipe, latents).double()
        if self._before is not None:
            x = self._moved(pipe, self._before, x, told, after)
            tensors = tensors | {"latents": self._loop.gathered(pipe, x / scale).to(latents)}
        self._before = None if after is None else x
        return tensors

    def _moved(self, pipe: Any, x_t: Tensor, x: Tensor, told: float, after: float | None) -> Tensor:
        """x after a guided step from x_t."""
        convention = self._loop.stage(pipe).convention
        base = torch.tensor([convention.base(told)])
        alpha, sigma = convention.alpha_sigma(x_t, base)
        if after is None:
            abar = torch.tensor(convention.final_abar, dtype=x.dtype)
            to_alpha, to_sigma = abar.sqrt().to(x), (1.0 - abar).sqrt().to(x)
        else:
            to_alpha, to_sigma = convention.alpha_sigma(x, torch.tensor([convention.base(after)]))
        x0 = (to_sigma * x_t - sigma * x) / (alpha * to_sigma - sigma * to_alpha)
        plain = Prediction.from_x0(x0.float(), x_t.float(), alpha, sigma)
        moved = self._loop.steer(pipe, plain, told)
        change = to_alpha * (moved.x0 - plain.x0) + to_sigma * (moved.eps - plain.eps)
        return x + change


@final
@attrs.define(eq=False)
class _Loop:
    """The guidance of one denoising loop after another, of any pipeline.

    Experts are attached from the first step of a loop until its last, or until `close`.
    """

    _guides: Sequence[Guide]
    _changes: Mapping[str, Any]
    _of: tuple[Any, ...] = ()  # the pipeline and its scheduler
    _backend: Any = None
    _run: Plan | None = None
    _open: contextlib.ExitStack = attrs.field(factory=contextlib.ExitStack)
    _steer: Any = None
    _last: float = -math.inf
    _batch: int = 0

    def __attrs_post_init__(self) -> None:
        if unknown := [name for name in self._changes if name not in _SETTINGS]:
            fault = f"guides inside a pipeline have no setting {unknown[0]!r}"
            raise UsageError(fault, hint=f"choose from {', '.join(_SETTINGS)}")

    def __deepcopy__(self, memo: Any) -> _Loop:
        return self  # diffusers copies blocks; networks are not copied

    def close(self) -> None:
        """Restore the guides' networks; also done after the last step."""
        self._open.close()
        self._steer, self._last = None, -math.inf

    def stage(self, pipe: Any) -> DiffusersStage:
        """The stage of a pipeline, which may lack the encoders of prompts."""
        if not self._of or self._of[0] is not pipe or self._of[1] is not pipe.scheduler:
            family: Family = family_of(type(pipe).__name__.replace("ModularPipeline", "Pipeline"))
            here = [name for name in family.encoders if getattr(pipe, name, None) is not None]
            family = attrs.evolve(family, encoders=tuple(here))
            backend = DiffusersBackend(DiffusersStage(pipe, family, DiffusersOptions()))
            self._backend = LoadedBackend(backend, Origin(component="diffusers"))
            self._of, self._run = (pipe, pipe.scheduler), None
        stage: DiffusersStage = self._backend.stages[0]
        return stage

    def _begin(self, pipe: Any, batch: int) -> None:
        """Attach everything for a loop of B states; a plan of the same size is used again."""
        self.close()
        told = pipe.scheduler.timesteps
        if told[0] < told[-1]:
            fault = f"the steps of a {type(pipe.scheduler).__name__} lead from images to noise"
            raise UsageError(fault, hint="guides steer steps from noise to images")
        steps = min(len(told), self.stage(pipe).schedule.num_timesteps)
        sampling = changed({"steps": steps, **self._changes}, Sampling())[0]
        if sampling.through == "clean":
            fault = "guides that look through the denoiser need a loop of ours"
            raise UsageError(fault, hint="use through detached, or `ppap_framework.sample`")
        if self._run is None or (self._run.num, self._run.sampling.steps) != (batch, steps):
            self._run = plan(self._backend, self._guides, batch, sampling)
        self._steer = self._open.enter_context(_steering(self._run))

    @isolated()
    def steered(self, pipe: Any, output: Tensor, t: Any, kept: Tensor) -> Tensor:
        """The output for what the scheduler keeps at the number t, both of B states."""
        convention, told = self.stage(pipe).convention, float(t)
        x_t = self.spread(pipe, kept).float() * convention.scale(pipe.scheduler, told)
        spread = self.spread(pipe, output).float().clone()  # of inference mode it has no gradient
        mean, rest = spread[:, : x_t.shape[1]], spread[:, x_t.shape[1] :]
        read = torch.cat([mean, mean], 1) if convention.doubled else mean
        base = torch.full((len(x_t),), convention.base(told))
        moved = self.steer(pipe, convention.prediction(read, x_t, base), told)
        changed = torch.cat([convention.output(moved, base), rest], 1)
        return self.gathered(pipe, changed).to(output)

    def steer(self, pipe: Any, prediction: Prediction, told: float) -> Prediction:
        """The prediction for B states at the number that the network was told, moved."""
        stage, batch, after = self.stage(pipe), len(prediction.x_t), _next(pipe.scheduler, told)
        if told > self._last or batch != self._batch:
            self._begin(pipe, batch)
        base, self._last, self._batch = stage.convention.base, told, batch
        moved: Prediction = self._steer(
            prediction, base(told), None if after is None else base(after)
        )
        if after is None:
            self.close()
        return moved

    def spread(self, pipe: Any, state: Tensor) -> Tensor:
        """(B, C, H, W) of a state as the pipeline keeps it; UsageError if tokens are no square."""
        if state.ndim == 4:
            return state
        side = 2 * math.isqrt(state.shape[1])
        if side * side != 4 * state.shape[1]:
            fault = f"guides inside a {type(pipe).__name__} need square images"
            raise UsageError(fault, hint="give the same height and width")
        return unpacked(state, side, side)

    def gathered(self, pipe: Any, state: Tensor) -> Tensor:
        """The inverse of `spread`."""
        return packed(state) if self.stage(pipe).family.packs else state


@contextlib.contextmanager
def _steering(run: Plan) -> Iterator[Callable[[Prediction, float, float | None], Prediction]]:
    """A context with a function that moves the prediction of B states at a base timestep, as guided
    DDIM does that steps to another one, or to the end for None. Experts are attached and networks
    frozen; all is restored on exit.
    """
    stage, schedule, batch, sampling = run.stage, run.stage.schedule, run.num, run.sampling
    networks = [stage.network, *(guide.model for guide in run.guides)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(frozen(networks, run.device, move=False))
        aimed: list[Guide] = []
        sets: dict[Any, Any] = {}  # guides of a model share its experts
        for guide in run.guides:
            model = guide.model.to(run.device)
            if guide.chosen is not None and model not in sets:
                sets[model] = stack.enter_context(guide.chosen.attached(model))
                sets[model].student.to(run.device)
            aimed.append(attrs.evolve(guide.rows(0, batch), experts=sets.get(model)))
        more: Any = {"normalize": sampling.normalize, "conflicts": sampling.conflicts}
        more |= {"moments": sampling.moments, "every": sampling.guide_every}
        guidance = EnergyGuidance(aimed, decode=stage.decode, **more)

        @isolated()
        def steer(prediction: Prediction, t: float, to: float | None) -> Prediction:
            now = schedule.abar(times([t]))
            end = now.new_tensor([stage.final_abar]) if to is None else schedule.abar(times([to]))
            level, place = NoiseLevel(torch.logit(now).expand(batch)), t / schedule.num_timesteps
            _, gradient = guidance(prediction.x_t, place, level, lambda _: prediction)
            constants = torch.cat([now, end.sqrt(), (1.0 - end).sqrt()]).to(prediction.x_t)
            return shifted(prediction, gradient, *constants)

        yield steer
        warn_of_futility(guidance.tally.read([guide.name for guide in run.guides]))


def _next(scheduler: Any, told: float) -> float | None:
    """The timestep of a scheduler after one; None after the last."""
    later = [t for t in scheduler.timesteps.tolist() if t < told]
    return max(later, default=None)
