r"""Distillation: experts learn to say of a noised image what the teacher says of the clean one.

With teacher f, expert f_i and its range R_i of timesteps (Go et al. 2023, arXiv 2212.05973, section
4.3):

    min  E_{x0, eps, t in R_i}  L(f_i(alpha_t x0 + sigma_t eps), f(x0))

The teacher is the untouched network itself, whose answers are computed once. Its batch norms use
their running statistics; those of an expert that has statistics of its own use the batch's, gather
running ones, and have them estimated anew at the end.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Iterator
from typing import Any, final

import attrs
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ppap_framework.components import TaskLoss
from ppap_framework.errors import AssetError, PluginError, PpapError, UsageError
from ppap_framework.experts import ExpertSet
from ppap_framework.learn.lessons import Lesson, examination, lesson
from ppap_framework.learn.recipe import SHARED, Phase, Recipe
from ppap_framework.noise import NoiseSchedule
from ppap_framework.predictions import widened
from ppap_framework.run import products_in

__all__ = ["Course", "Distillation", "Report", "check_experts"]

_STATISTICS_BATCHES = 50
_CLIP = 1.0


@final
@attrs.frozen(kw_only=True, eq=False)
class Course:
    """What there is to learn from, and how.

    Attributes:
        experts: That learn; attached, and otherwise as they were made.
        loss: `transfer` compares a student's answer with a teacher's, or `energy` with a label.
        schedule: Of the stage whose images are noised.
        images: B images by their numbers, (B, 3, H, W) in [-1, 1], on the network's device.
        answers: What the teacher says of them, or their labels.
        supervised: Whether the answers are labels.
        count: How many images there are.
        shape: (3, H, W).
        recipe: How.
        phases: Of the recipe.
    """

    experts: ExpertSet
    loss: TaskLoss
    schedule: NoiseSchedule
    images: Callable[[Tensor], Tensor]
    answers: Callable[[Tensor], Any]
    supervised: bool
    count: int
    shape: tuple[int, int, int]
    recipe: Recipe
    phases: tuple[Phase, ...]

    @property
    def held_out(self) -> int:
        """How many images, the last ones, are kept from training."""
        return min(self.count - 1, max(1, round(self.count * self.recipe.held_out)))


@final
@attrs.frozen(kw_only=True)
class Report:
    """How a training gets on.

    Attributes:
        phase: The number of the phase.
        step: Iterations of it that are done.
        loss: Of the last one, or on the held-out images, where it may be inf.
        held_out: Which of the two.
    """

    phase: int
    step: int
    loss: float
    held_out: bool


def check_experts(experts: ExpertSet, recipe: Recipe) -> None:
    """Accept experts that can learn.

    Raises:
        UsageError: Where they hold nothing that could be trained, or need larger batches.
    """
    network = type(experts.model.network).__name__
    if next(experts.parameters(0), None) is None:
        raise UsageError(
            f"{' and '.join(experts.adapters)} find no parameter to train in {network}",
            hint="use another adapter",
        )
    if recipe.batch == 1 and _own_statistics(experts):
        raise UsageError(
            f"a batch of one image says nothing to the batch norms of {network}",
            hint="use a batch of 64, say",
        )


@final
class Distillation:
    """A training that can be left after any iteration and gone on with exactly.

    Args:
        course: What is learned and how.

    Raises:
        UsageError: As `check_experts`.
    """

    def __init__(self, course: Course) -> None:
        check_experts(course.experts, course.recipe)
        self.course = course
        self.phase = 0
        self.step = 0
        self.best: tuple[float, int, dict[str, Tensor]] | None = None
        self.stale = 0
        self.scores: list[dict[str, float | None]] = []
        self._start: dict[str, Tensor] | None = None
        self._network = course.experts.model.network
        self._owned = _own_statistics(course.experts)
        self._optimizer_state: dict[str, Any] | None = None
        self._optimizer: torch.optim.Optimizer | None = None

    @property
    def finished(self) -> bool:
        """Whether everything is learned."""
        return self.phase == len(self.course.phases)

    @property
    def done(self) -> int:
        """Iterations so far, in all phases; those that early stopping saved count as done."""
        return sum(phase.iterations for phase in self.course.phases[: self.phase]) + self.step

    @property
    def _stopped(self) -> bool:
        """Whether the phase ends early."""
        patience = self.course.recipe.patience
        return bool(patience) and self.stale >= patience

    def state_dict(self) -> dict[str, Any]:
        """Everything from which `load_state_dict` goes on, tensors and plain values."""
        return {
            "phase": self.phase,
            "step": self.step,
            "experts": self.course.experts.state_dict(),
            "optimizer": self._optimizer.state_dict() if self._optimizer else None,
            "best": list(self.best) if self.best else None,
            "stale": self.stale,
            "scores": self.scores,
            "start": self._start,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            AssetError: Where it is of other experts.
        """
        self.course.experts.load_state_dict(state["experts"])
        self.phase, self.step, self.stale = state["phase"], state["step"], state["stale"]
        best = state["best"]
        self.best = None if best is None else (best[0], best[1], best[2])
        self.scores, self._start = state["scores"], state["start"]
        self._optimizer_state = state["optimizer"]

    def run(self) -> Generator[Report, None, None]:
        """Learn. Between any two reports `state_dict` says where it stands; the network is left as
        it was found when the generator is closed.

        Raises:
            PpapError: Where the loss is no longer finite.
            PluginError: Where it is not one number for each image, or cannot be differentiated.
            AssetError: Where labels do not fit what the network says.
        """
        while not self.finished:
            yield from self._run_phase(self.course.phases[self.phase])

    def _run_phase(self, phase: Phase) -> Generator[Report, None, None]:
        course, recipe = self.course, self.course.recipe
        if self.step == 0:
            self._begin(phase)
        exam = self._examination()
        with course.experts.training(phase.expert), self._modes():
            parameters = list(course.experts.parameters(phase.expert))
            self._optimizer = torch.optim.AdamW(
                parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay
            )
            if self._optimizer_state is not None:
                self._optimizer.load_state_dict(self._optimizer_state)
                self._optimizer_state = None
            while self.step < phase.iterations and not self._stopped:
                loss = self._learn(phase, parameters)
                self.step += 1
                score = None
                if self.step % recipe.validate_every == 0 or self.step == phase.iterations:
                    score = self._score(exam)
                    self._remember(phase, score)
                yield Report(phase=self.phase, step=self.step, loss=loss, held_out=False)
                if score is not None:
                    yield Report(phase=self.phase, step=self.step, loss=score, held_out=True)
            score, best = self._end(phase, exam)
        self._optimizer = None
        if not phase.shared:
            bare = self._score(exam)
            self.scores.append(
                {
                    "held_out": score,
                    "untouched": bare if math.isfinite(bare) else None,  # JSON knows no infinity
                    "best_iteration": best,
                }
            )
        self.phase, self.step, self.best, self.stale = self.phase + 1, 0, None, 0

    def _begin(self, phase: Phase) -> None:
        """Copy what the phase begins with."""
        state = self.course.experts.state_dict()
        if phase.begins_with is None:
            return
        source = self._start if phase.begins_with == SHARED else _of(state, phase.begins_with)
        assert source is not None
        _put(state, phase.expert, source)

    def _end(self, phase: Phase, exam: Lesson) -> tuple[float, int]:
        """Take the best parameters, and estimate statistics for them where that helps.

        Returns:
            Their score, and after how many iterations they were found.

        Raises:
            PpapError: Where no score was finite.
        """
        state = self.course.experts.state_dict()
        assert self.best is not None
        score, step, kept = self.best
        if not math.isfinite(score):
            raise PpapError(
                f"the loss of {phase.name} on held-out images was never finite",
                hint="lower the learning rate, or use float32",
            )
        _put(state, phase.expert, kept)
        if self._owned:
            gathered = {key: value.clone() for key, value in _of(state, phase.expert).items()}
            self._estimate_statistics(phase)
            anew = self._score(exam)
            if anew <= score:
                score = anew
            else:
                _put(state, phase.expert, gathered)
        if phase.shared:
            self._start = {key: value.clone() for key, value in _of(state, phase.expert).items()}
        return score, step

    def _learn(self, phase: Phase, parameters: list[nn.Parameter]) -> float:
        recipe = self.course.recipe
        assert self._optimizer is not None
        for group in self._optimizer.param_groups:
            group["lr"] = recipe.rate(phase, self.step)
        batch = self._lesson(phase, self.phase, self.step)
        loss = self._losses(batch, 0).mean()
        value = loss.item()
        if not math.isfinite(value):
            raise PpapError(
                f"the loss of {phase.name} is {value} at iteration {self.step + 1}",
                hint="lower the learning rate, or use float32",
            )
        if not loss.requires_grad:
            raise PluginError(
                f"the loss of {phase.name} cannot be differentiated in what the expert holds",
                hint="neither the guide nor its loss may leave autograd",
            )
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parameters, _CLIP)
        self._optimizer.step()
        return value

    def _lesson(self, phase: Phase, stream: int, step: int) -> Lesson:
        course = self.course
        return lesson(
            course.recipe.seed,
            stream,
            step,
            batch=course.recipe.batch,
            count=course.count - course.held_out,
            timesteps=phase.timesteps,
            shape=course.shape,
        )

    def _examination(self) -> Lesson:
        course = self.course
        return examination(
            course.recipe.seed,
            self.phase,
            count=course.held_out,
            timesteps=course.phases[self.phase].timesteps,
            shape=course.shape,
        )

    def _losses(self, batch: Lesson, first: int) -> Tensor:
        """(B,), of the images from number `first`."""
        course = self.course
        numbers = batch.images + first
        prediction = widened(self._look(batch, first))
        answers = widened(course.answers(numbers))
        if course.supervised:
            losses = _supervised(course.loss, prediction, answers)
        else:
            losses = course.loss.transfer(prediction, answers)
        if losses.shape != numbers.shape:
            raise PluginError(
                f"the loss gave {tuple(losses.shape)} for {len(numbers)} images",
                hint=f"it must be ({len(numbers)},), one for each",
            )
        return losses

    def _look(self, batch: Lesson, first: int) -> Any:
        course = self.course
        x0 = course.images(batch.images + first)
        x_t = course.schedule.add_noise(x0, batch.timesteps, batch.noise.to(x0))
        with products_in(course.recipe.precision, x0.device):
            return course.experts.model(
                x_t.contiguous(memory_format=torch.channels_last),
                course.schedule.level(batch.timesteps),
            )

    @torch.no_grad()
    def _score(self, exam: Lesson) -> float:
        """The mean loss on held-out images; inf where it is not finite."""
        first = self.course.count - self.course.held_out
        total = 0.0
        with _evaluating(self._network):
            for start in range(0, len(exam.images), self.course.recipe.batch):
                rows = slice(start, start + self.course.recipe.batch)
                part = Lesson(exam.images[rows], exam.timesteps[rows], exam.noise[rows])
                total += self._losses(part, first).double().sum().item()
        return total / len(exam.images) if math.isfinite(total) else math.inf

    def _remember(self, phase: Phase, score: float) -> None:
        if self.best is None or score < self.best[0]:
            state = _of(self.course.experts.state_dict(), phase.expert)
            self.best = (score, self.step, {key: value.clone() for key, value in state.items()})
            self.stale = 0
        else:
            self.stale += 1

    @torch.no_grad()
    def _estimate_statistics(self, phase: Phase) -> None:
        """Plain averages over some batches in the place of running ones."""
        momenta = [module.momentum for module in self._owned]
        try:
            for module in self._owned:
                module.reset_running_stats()
                module.momentum = None  # the plain average
            for step in range(_STATISTICS_BATCHES):
                # Past the last iteration: fresh noise.
                self._look(self._lesson(phase, self.phase, phase.iterations + step), 0)
        finally:
            for module, momentum in zip(self._owned, momenta, strict=True):
                module.momentum = momentum

    @contextlib.contextmanager
    def _modes(self) -> Iterator[None]:
        """Evaluation mode, so that nothing is dropped out, but for the batch norms that learn."""
        with _evaluating(self._network):
            for module in self._owned:
                module.train()
            yield


def _own_statistics(experts: ExpertSet) -> list[_BatchNorm]:
    """The batch norms of which every expert has its own running statistics."""
    kept = {key.partition("/")[2] for key in experts.state_dict()}
    return [
        module
        for name, module in experts.model.network.named_modules()
        if isinstance(module, _BatchNorm) and f"0.{name + '.' if name else ''}running_mean" in kept
    ]


def _supervised(loss: TaskLoss, prediction: Any, labels: Tensor) -> Tensor:
    try:
        return loss.energy(prediction, labels)
    except (IndexError, RuntimeError, ValueError) as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise AssetError(
            f"the labels do not fit what the network says: {said}",
            hint="they must be what the loss takes as targets",
        ) from error


@contextlib.contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _of(state: dict[str, Tensor], expert: int) -> dict[str, Tensor]:
    """One expert's part of a state, under names without its number."""
    found = {}
    for key, tensor in state.items():
        adapter, _, rest = key.partition("/")
        number, _, name = rest.partition(".")
        if number == str(expert):
            found[f"{adapter}/{name}"] = tensor
    return found


@torch.no_grad()
def _put(state: dict[str, Tensor], expert: int, part: dict[str, Tensor]) -> None:
    """Copy such a part into an expert."""
    own = _of(state, expert)
    for key, tensor in part.items():
        own[key].copy_(tensor)
