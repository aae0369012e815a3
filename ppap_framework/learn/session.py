"""A call of a training: it goes on from the folder, and leaves a record beside earlier calls'."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import attrs
import torch

from ppap_framework.errors import PpapError
from ppap_framework.learn.distillation import Distillation, Report
from ppap_framework.learn.folder import TransferFolder
from ppap_framework.learn.plan import TransferPlan

__all__ = ["Learned", "Session"]

_LOG_EVERY = 10
_SAVE_SECONDS = 10.0


@final
@attrs.frozen(kw_only=True)
class Learned:
    """How far a training is.

    Attributes:
        iterations: That are done.
        of: All of them.
        loss: Of the last one.
    """

    iterations: int
    of: int
    loss: float


@final
class Session:
    """One call, and the record that it leaves beside those of earlier calls."""

    def __init__(
        self,
        folder: TransferFolder,
        plan: TransferPlan,
        progress: Callable[[Learned], None] | None,
        command: Sequence[str] | None,
    ) -> None:
        self._folder, self._plan, self._progress = folder, plan, progress
        self._total = sum(phase.iterations for phase in plan.phases)
        self._start = self._saved = time.perf_counter()
        self._earlier = _earlier_calls(folder.record)
        self._call: dict[str, Any] = {
            "command": None if command is None else list(command),
            "threads": torch.get_num_threads(),
            "iterations": 0,
            "seconds": 0.0,
        }

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """A context that the record says something of: how it ends, if it does."""
        self._write("running")
        try:
            yield
        except BaseException as error:
            with contextlib.suppress(PpapError):  # the first error is the one to tell
                self._write("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
            raise
        self._write("complete")

    def train(self, distillation: Distillation) -> dict[str, Any]:
        """Train to the end, from where the folder says.

        Returns:
            What is known of the experts, held out.
        """
        state = self._folder.load()
        if state is not None:
            distillation.load_state_dict(state)
        with contextlib.closing(distillation.run()) as reports:
            for report in reports:
                self._note(report, distillation)
        self._folder.save(distillation.state_dict())
        return {
            "held_out_images": distillation.course.held_out,
            "experts": distillation.scores,
        }

    def _note(self, report: Report, distillation: Distillation) -> None:
        phase = self._plan.phases[report.phase]
        line = {"phase": phase.name, "iteration": report.step}
        if report.held_out:
            score = report.loss if math.isfinite(report.loss) else None
            self._folder.log({**line, "held_out": score})
        else:
            self._call["iterations"] += 1
            if report.step % _LOG_EVERY == 0 or report.step == phase.iterations:
                self._folder.log({**line, "loss": report.loss})
            if self._progress:
                self._progress(
                    Learned(iterations=distillation.done, of=self._total, loss=report.loss)
                )
            # A look at held-out images belongs to its iteration: no state lies between the two.
            looks = report.step % self._plan.recipe.validate_every == 0
            if looks or report.step == phase.iterations:
                return
        if report.held_out or time.perf_counter() - self._saved >= _SAVE_SECONDS:
            self._folder.save(distillation.state_dict())
            self._write("running")
            self._saved = time.perf_counter()

    def _write(self, status: str) -> None:
        self._call["seconds"] = round(time.perf_counter() - self._start, 3)
        calls = [*self._earlier, self._call]
        self._folder.write_record(
            {
                "status": status,
                "seconds": round(sum(call["seconds"] for call in calls), 3),
                "calls": calls,
            }
        )


def _earlier_calls(record: dict[str, Any] | None) -> list[dict[str, Any]]:
    """What a record says of them; nothing where that makes no sense: it is a mere diary."""
    with contextlib.suppress(KeyError, TypeError, ValueError):
        calls = record["calls"] if record else []
        return [{**call, "seconds": float(call["seconds"])} for call in calls]
    return []
