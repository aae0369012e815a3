r"""Distillation: on noisy images, experts learn the teacher's answers to the clean ones.

With teacher f, expert f_i and its timesteps R_i (Go et al. 2023, arXiv 2212.05973, section 4.3):

    min  E_{x0, eps, t in R_i}  L(f_i(alpha_t x0 + sigma_t eps), f(x0))

Experts may read the predicted clean image x0(x_t) instead, as guides that look through "detached".
The teacher is the untouched network. Batch norms use its running statistics, unless experts hold
their own: then training normalizes by the batch and gathers running statistics. At the end of a
phase these are estimated anew if that lowers the held-out loss.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from ppap_framework.border import maker
from ppap_framework.components import TaskLoss
from ppap_framework.errors import AssetError, PluginError, PpapError, UsageError, calling
from ppap_framework.experts import ExpertSet
from ppap_framework.learn.batches import Batch, TrainingSet, training_batch, validation_batch
from ppap_framework.learn.recipe import SHARED, Phase, Recipe
from ppap_framework.noise import NoiseSchedule
from ppap_framework.predictions import widened
from ppap_framework.processes import Processes, normalized
from ppap_framework.runtime import attending, computing_in, evaluating

_STATISTICS_BATCHES = 50
_CLIP = 1.0
_STATE = ("phase", "step", "best", "stale", "scores", "start")
_CALMER = "lower the learning rate, or use float32"


class Report(NamedTuple):
    """A finished iteration: the index of its phase, in which `step` are finished, and losses."""

    phase: int
    step: int
    loss: float
    held_out: float | None  # possibly inf; None without a validation


def check_experts(experts: ExpertSet, recipe: Recipe) -> None:
    """Raise UsageError if experts have no parameters, or batch norms that need larger batches."""
    network = type(experts.model.network).__name__
    if next(experts.parameters(0), None) is None:
        message = f"{' and '.join(experts.adapters)} find no parameter to train in {network}"
        raise UsageError(message, hint="use another adapter")
    if recipe.batch == 1 and own_batch_norms(experts):
        message = f"a batch of one image says nothing to the batch norms of {network}"
        raise UsageError(message, hint="use a batch of 64, say")


def own_batch_norms(experts: ExpertSet) -> list[_BatchNorm]:
    """The batch norms whose running statistics every expert holds."""
    held = {key.partition("/")[2] for key in experts.state_dict()}
    return [
        module
        for name, module in experts.model.network.named_modules()
        if isinstance(module, _BatchNorm) and f"0.{name + '.' if name else ''}running_mean" in held
    ]


@contextlib.contextmanager
def averaging(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """A context in which running statistics are reset and become plain averages over batches."""
    with contextlib.ExitStack() as stack:
        for module in norms:
            stack.callback(setattr, module, "momentum", module.momentum)
            module.reset_running_stats()
            module.momentum = None
        yield


@contextlib.contextmanager
def synchronized(norms: Sequence[_BatchNorm], processes: Processes) -> Iterator[None]:
    """A context in which batch norms in training mode normalize by the batch of all processes."""

    def forward(module: _BatchNorm, alone: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return normalized(module, processes, x) if module.training else alone(x)

    with contextlib.ExitStack() as stack:
        for module in norms if processes.count > 1 else ():
            stack.callback(delattr, module, "forward")
            module.forward = partial(forward, module, module.forward)  # type: ignore[method-assign]
        yield


class Distillation:
    """A training of new experts, attached, that resumes exactly after any iteration.

    The loss's `transfer` compares the answers of student and teacher; its `energy` compares the
    student's with labels. Experts read `seen`(x_t, t), clipped, if not x_t. Each of several
    processes computes its part of every batch. The last `held_out` images are kept for validation.
    `scores` has for each finished expert its held-out loss, that of the untouched network, and the
    iteration of its best parameters; None if another training does it.
    """

    def __init__(
        self,
        experts: ExpertSet,
        loss: TaskLoss,
        schedule: NoiseSchedule,
        data: TrainingSet,
        recipe: Recipe,
        phases: tuple[Phase, ...],
        processes: Processes = Processes(),  # noqa: B008  # immutable
        seen: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self._processes, self._seen = processes, seen
        self._experts, self._loss, self._schedule = experts, loss, schedule
        self._data, self._recipe, self.phases = data, recipe, phases
        self.held_out = min(data.count - 1, max(1, round(data.count * recipe.held_out)))
        self.phase = self.step = 0
        self.scores: list[dict[str, float | None] | None] = []
        self.best: tuple[float, int, dict[str, Tensor]] | None = None
        self.stale = 0  # validations since the best one
        self.start: dict[str, Tensor] | None = None  # the shared start
        self._norms = own_batch_norms(experts)
        self._optimizer: Optimizer | None = None
        self._optimizer_state: dict[str, Any] | None = None

    @property
    def done(self) -> int:
        """Number of finished iterations of all phases; those skipped by early stopping count."""
        return sum(phase.iterations for phase in self.phases[: self.phase]) + self.step

    def state_dict(self) -> dict[str, Any]:
        """The complete state of training: tensors and plain values."""
        return {name: getattr(self, name) for name in _STATE} | {
            "experts": self._experts.state_dict(),
            "optimizer": self._optimizer.state_dict() if self._optimizer else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`; AssetError if it belongs to other experts."""
        self._experts.load_state_dict(state["experts"])
        self._optimizer_state = state["optimizer"]
        for name in _STATE:
            setattr(self, name, state[name])

    def run(self) -> Generator[Report, None, None]:
        """Train and yield a report after every iteration, when `state_dict` is valid.

        Closing the generator restores the network. PpapError if the loss is no longer finite,
        PluginError if it is not (B,) and differentiable, AssetError if labels do not fit answers.
        """
        while self.phase < len(self.phases):
            if self.phases[self.phase].iterations:
                yield from self._run_phase(self.phases[self.phase])
            else:
                self.scores.append(None)
                self.phase += 1

    def _run_phase(self, phase: Phase) -> Generator[Report, None, None]:
        recipe, expert = self._recipe, phase.expert
        if self.step == 0 and phase.begins_with is not None:
            shared = phase.begins_with == SHARED
            source = self.start if shared else self._held(phase.begins_with)
            assert source is not None
            self._put(expert, source)
        key, first = (recipe.seed, self.phase), self._data.count - self.held_out
        times, shape = phase.timesteps, self._data.shape
        batch = partial(
            training_batch, key, size=recipe.batch, count=first, timesteps=times, shape=shape
        )
        validation = validation_batch(key, self.held_out, times, shape)
        validation = validation._replace(images=validation.images + first)
        with (
            self._experts.training(expert),
            evaluating(self._experts.model.network),
            synchronized(self._norms, self._processes),
        ):
            for module in self._norms:  # other modules stay in evaluation mode: no dropout
                module.train()
            parameters = list(self._experts.parameters(expert))
            rates: Any = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
            self._optimizer = torch.optim.AdamW(parameters, **rates)
            if self._optimizer_state is not None:
                self._optimizer.load_state_dict(self._optimizer_state)
                self._optimizer_state = None
            while self.step < phase.iterations and not 0 < recipe.patience <= self.stale:
                loss = self._learn(phase, batch(self.step), self._optimizer, parameters)
                self.step += 1
                held_out = None
                if self.step % recipe.validate_every == 0 or self.step == phase.iterations:
                    held_out = self._score(validation)
                    self.stale += 1
                    if self.best is None or held_out < self.best[0]:
                        self.best, self.stale = (held_out, self.step, self._copied(expert)), 0
                yield Report(self.phase, self.step, loss, held_out)
            score, best = self._end(phase, batch, validation)
        self._optimizer = None
        if not phase.shared:
            bare = self._score(validation)
            untouched = bare if math.isfinite(bare) else None
            self.scores.append({"held_out": score, "untouched": untouched, "best_iteration": best})
        self.phase, self.step, self.best, self.stale = self.phase + 1, 0, None, 0

    def _learn(
        self, phase: Phase, batch: Batch, optimizer: Optimizer, parameters: list[nn.Parameter]
    ) -> float:
        for group in optimizer.param_groups:
            group["lr"] = self._recipe.rate(phase, self.step)
        own = batch.part(self._processes.share(len(batch.images)))
        loss = self._losses(own).mean() * (len(own.images) / len(batch.images))
        value = self._processes.sum(loss.detach()).item()
        if not math.isfinite(value):
            message = f"the loss of {phase.name} is {value} at iteration {self.step + 1}"
            if self.done == 0 and self._recipe.precision == "float32":  # nothing was learned yet
                message = f"{maker(self._loss)} failed in transfer: {message}"
                raise PluginError(message, hint="it, or the network's answers, are not finite")
            raise PpapError(message, hint=_CALMER)
        if not loss.requires_grad:
            message = f"the loss of {phase.name} cannot be differentiated by what the expert learns"
            raise PluginError(message, hint="neither the guide nor its loss may leave autograd")
        optimizer.zero_grad(set_to_none=True)
        with calling(maker(self._experts.model), "its backward pass"):
            torch.autograd.backward(loss)
        self._processes.sum_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, _CLIP)
        optimizer.step()
        return value

    def _end(
        self, phase: Phase, batch: Callable[[int], Batch], validation: Batch
    ) -> tuple[float, int]:
        """Restore the best parameters; return their held-out loss and iteration."""
        assert self.best is not None  # the last iteration was validated
        score, step, parameters = self.best
        if not math.isfinite(score):
            message = f"the loss of {phase.name} on held-out images was never finite"
            raise PpapError(message, hint=_CALMER)
        self._put(phase.expert, parameters)
        if self._norms:
            with torch.no_grad(), averaging(self._norms):
                for i in range(_STATISTICS_BATCHES):  # fresh noise: steps beyond the last iteration
                    fresh = batch(phase.iterations + i)
                    self._predict(fresh.part(self._processes.share(len(fresh.images))))
            estimated = self._score(validation)
            if estimated > score:
                self._put(phase.expert, parameters)
            score = min(score, estimated)
        if phase.shared:
            self.start = self._copied(phase.expert)
        return score, step

    @torch.no_grad()
    def _score(self, validation: Batch) -> float:
        """Mean loss on held-out images; inf if it is not finite."""
        total = 0.0
        with evaluating(self._experts.model.network):
            own = validation.part(self._processes.share(len(validation.images)))
            for start in range(0, len(own.images), self._recipe.batch):
                part = own.part(slice(start, start + self._recipe.batch))
                total += self._losses(part).double().sum().item()
        total = self._processes.sum(torch.tensor(total, dtype=torch.float64)).item()
        return total / len(validation.images) if math.isfinite(total) else math.inf

    def _losses(self, batch: Batch) -> Tensor:
        prediction = widened(self._predict(batch))
        answers = widened(self._data.answers(batch.images))
        compare = self._loss.energy if self._data.supervised else self._loss.transfer
        try:
            losses = compare(prediction, answers)
        except (IndexError, RuntimeError, ValueError, PluginError) as error:
            if not self._data.supervised:
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0]
            message = f"the labels do not fit the network's answers: {reason}"
            raise AssetError(message, hint="they must be what the loss takes as targets") from error
        if losses.shape != batch.images.shape:
            count = len(batch.images)
            message = f"the loss gave {tuple(losses.shape)} for {count} images"
            raise PluginError(message, hint=f"it must be ({count},), one for each")
        return losses

    def _predict(self, batch: Batch) -> Any:
        x0 = self._data.images(batch.images)
        x_t = self._schedule.add_noise(x0, batch.timesteps, batch.noise.to(x0))
        with computing_in(self._recipe.precision, x0.device), attending(x0.device):
            if self._seen:
                x_t = self._seen(x_t, batch.timesteps).to(x0).clamp(-1.0, 1.0)
            x_t = x_t.contiguous(memory_format=torch.channels_last)
            return self._experts.student(x_t, self._schedule.level(batch.timesteps))

    def _held(self, expert: int) -> dict[str, Tensor]:
        """One expert's tensors, by names without its index."""
        own = re.compile(rf"([^/]*/){expert}\.(.*)")
        found = ((own.fullmatch(key), x) for key, x in self._experts.state_dict().items())
        return {match[1] + match[2]: tensor for match, tensor in found if match}

    def _copied(self, expert: int) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self._held(expert).items()}

    @torch.no_grad()
    def _put(self, expert: int, part: dict[str, Tensor]) -> None:
        for name, tensor in self._held(expert).items():
            tensor.copy_(part[name])
