"""The conformance suite of task losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ppap_framework.errors import PpapError
from ppap_framework.plugin import TaskLossSpec
from ppap_framework.predictions import each_tensor, tensors_of, widened
from ppap_framework.registry import registry
from ppap_framework.run import GuideRequest
from ppap_framework.runtime import evaluating
from ppap_testing.probes import close, finite, pictures, same, slope_fault
from ppap_testing.suite import Conformance, NotConformingError, require, shared, skip

_CLASSES, _SIDE, _BATCH = 5, 6, 3


class TaskLossConformance(Conformance):
    """Checks of a task loss.

    Predictions and targets of classification, depth and segmentation are made here. For another
    task, name a `guider`, or override `prediction` and `wanted`; else a guider of that task that is
    installed makes them.

    Attributes:
        guider: A guider of the task that makes predictions and a target: arguments of `ppap.guide`.
    """

    kind = "loss"
    guider: ClassVar[Mapping[str, Any]] = {}

    @property
    def _task(self) -> str:
        spec = self.spec
        return spec.task if isinstance(spec, TaskLossSpec) else ""

    def prediction(self, seed: int) -> Any:
        """Predictions of three images as a guider makes them; another seed, other ones."""
        generator = torch.Generator("cpu").manual_seed(seed)
        shapes = {
            "classification": (_BATCH, _CLASSES),
            "depth": (_BATCH, _SIDE, _SIDE),
            "segmentation": (_BATCH, _CLASSES, _SIDE, _SIDE),
        }
        if self._task in shapes:
            return torch.randn(shapes[self._task], generator=generator)
        model = self._guide()[0]
        with torch.no_grad(), evaluating(model):
            return widened(model(pictures(_BATCH, (64, 64), seed=seed)))

    def wanted(self) -> Tensor:
        """A target, (1, ...)."""
        generator = torch.Generator("cpu").manual_seed(9)
        if self._task == "classification":
            return torch.tensor([2])
        if self._task == "depth":
            return torch.randn(1, _SIDE, _SIDE, generator=generator)
        if self._task == "segmentation":
            return torch.randint(_CLASSES, (1, _SIDE, _SIDE), generator=generator)
        value: Tensor = self._guide()[1].value
        return value

    def matching(self, target: Tensor) -> Any:
        """The predictions that match a target exactly, or None if unknown."""
        if self._task == "classification":
            return 20.0 * torch.nn.functional.one_hot(target, _CLASSES).float()
        if self._task == "segmentation":
            return 20.0 * torch.nn.functional.one_hot(target, _CLASSES).float().movedim(-1, 1)
        return target.expand(_BATCH, *target.shape[1:]) if self._task == "depth" else None

    @shared
    def _guide(self) -> Any:
        if self.guider:
            guide = GuideRequest(**{"experts": "none", **self.guider}).load()
            return guide.model, guide.target
        for spec in registry().specs("guider"):
            if getattr(spec, "task", None) == self._task:
                try:
                    guide = GuideRequest(source=spec.name, experts="none", offline=True).load()
                except PpapError:
                    continue
                return guide.model, guide.target
        return skip(
            f"override `prediction` and `wanted`, or install a guider for the task {self._task!r}"
        )

    def _energy(self, prediction: Any, target: Tensor | None = None) -> Tensor:
        loss = self.made()
        return loss.energy(prediction, self.wanted() if target is None else target)  # type: ignore[no-any-return]

    @shared
    def energies(self) -> Tensor:
        self.made()
        energy = self._energy(self.prediction(0))
        require(
            finite(energy),
            f"the energies are {energy.tolist()}",
            "avoid logs and divisions of what may be 0",
        )
        return energy

    def test_energies(self) -> None:
        """the energy is a finite number for each image"""
        self.energies(first=True)

    def test_one_target_serves_all(self) -> None:
        """a target of one row serves every image, and one for each image is used"""
        energy, target = self.energies(), self.wanted()
        repeated = target.expand(_BATCH, *target.shape[1:])
        require(
            close(self._energy(self.prediction(0), repeated), energy, 1e-5),
            "a target of one row and the same one repeated give other energies",
            "expand the target: target.expand(len(prediction), ...)",
        )

    def test_images_are_compared_independently(self) -> None:
        """an image's energy does not depend on the rest of the batch"""
        energy, prediction = self.energies(), self.prediction(0)
        for row in range(_BATCH):
            alone = self._energy(each_tensor(lambda x, row=row: x[[row]], prediction))  # type: ignore[misc]
            require(
                close(alone, energy[[row]], 1e-4),
                "the energy of an image depends on the others in its batch",
                "average over the pixels of each image, not over dimension 0",
            )

    def _sum_of(self, tensors: list[Tensor]) -> Tensor:
        """The summed energy of the predictions with these floating tensors in their places."""
        parts = iter(tensors)
        known = each_tensor(
            lambda x: next(parts) if x.is_floating_point() else x, self.prediction(0)
        )
        return self._energy(known).sum()

    def _floating(self) -> list[Tensor]:
        return [x for x in tensors_of(self.prediction(0)) if x.is_floating_point()]

    @shared
    def slopes(self) -> tuple[Tensor, ...]:
        tensors = [x.requires_grad_() for x in self._floating()]
        energy = self._sum_of(tensors)
        require(
            energy.requires_grad,
            "the energy cannot be differentiated in the prediction",
            "use torch's operations on it, without no_grad, detach, argmax or numpy",
        )
        slopes = torch.autograd.grad(energy, tensors, materialize_grads=True)
        require(
            finite(slopes) and any(bool(slope.any()) for slope in slopes),
            "the gradient of the energy is zero or not finite",
            "avoid argmax, rounding and comparisons, and square roots at 0",
        )
        return slopes

    def test_the_gradient_guides(self) -> None:
        """the energy's gradient is finite and not zero"""
        self.energies()
        self.slopes(first=True)

    def test_the_gradient_is_right(self) -> None:
        """the energy's gradient agrees with differences"""
        for index, slope in enumerate(self.slopes()):
            tensor = self._floating()[index]
            if not slope.any():
                continue

            def energy(x: Tensor, index: int = index) -> Tensor:
                own = [y.to(x.dtype) for y in self._floating()]
                return self._sum_of([*own[:index], x, *own[index + 1 :]])

            exact = energy(tensor.double()).dtype == torch.float64
            at, step, tolerance = (tensor.double(), 1e-6, 1e-3) if exact else (tensor, 3e-3, 5e-2)
            fault = slope_fault(energy, at, step, tolerance)
            require(
                not fault,
                f"the gradient of the energy is wrong: {fault}",
                "detach nothing that depends on the prediction",
            )

    def test_lower_is_closer(self) -> None:
        """what matches the target has a lower energy than what does not"""
        energy, target = self.energies(), self.wanted()
        best = self.matching(target)
        if best is None:
            skip("override `matching`: the predictions that match a target exactly")
        require(
            bool((self._energy(best, target) < energy).all()),
            f"a prediction that matches has the energy {self._energy(best, target).tolist()}, "
            f"and others have {energy.tolist()}",
            "return a distance: guidance descends it",
        )

    def test_arguments_are_left_alone(self) -> None:
        """nothing that is compared is changed, and the energy is the same every time"""
        energy, prediction, target = self.energies(), self.prediction(0), self.wanted()
        again = self._energy(prediction, target)
        require(
            same(prediction, self.prediction(0)) and same(target, self.wanted()),
            "the energy changes the prediction or the target",
            "write `x = x - y`, not `x -= y`",
        )
        require(
            same(again, energy),
            "the energy of the same is another the second time",
            "keep no state",
        )

    @shared
    def transferred(self) -> Tensor:
        return self.made().transfer(self.prediction(0), self.prediction(1))  # type: ignore[no-any-return]

    def test_experts_learn_from_it(self) -> None:
        """`transfer` is least for the teacher's own answers"""
        self.made()
        away, teacher = self.transferred(first=True), self.prediction(1)
        own = self.made().transfer(self.prediction(1), teacher)
        require(
            finite(away) and finite(own) and bool((own < away).all()),
            f"`transfer` is {own.tolist()} at the teacher's answers, {away.tolist()} elsewhere",
            "return a distance between two predictions, or leave the default",
        )

    def test_experts_begin_at_their_teacher(self) -> None:
        """the gradient of `transfer` is finite, also where experts begin"""
        self.transferred()
        for seed in (1, 0):
            student = each_tensor(
                lambda x: x.requires_grad_() if x.is_floating_point() else x, self.prediction(seed)
            )
            tensors = [x for x in tensors_of(student) if x.requires_grad]
            value = self.made().transfer(student, self.prediction(1)).sum()
            slopes = torch.autograd.grad(value, tensors, materialize_grads=True)
            where = "its teacher's answers" if seed else "other answers"
            require(
                finite(slopes) and (seed == 1 or any(bool(slope.any()) for slope in slopes)),
                f"at {where} the gradient of `transfer` is zero or not finite",
                "experts begin as their teacher: square roots and norms have no slope at 0",
            )

    def test_metrics(self) -> None:
        """metrics are a finite number for each image"""
        self.made()
        try:
            metrics = self.made().metrics(self.prediction(0), self.wanted())
        except PpapError as error:
            raise NotConformingError(error.message, error.hint) from error
        wrong = [name for name, values in metrics.items() if not finite(values)]
        require(not wrong, f"the metrics {wrong} are not finite", "say 0 where nothing is known")
