"""Which stages of a backend run behind the first one."""

from __future__ import annotations

from ppap_framework.components import CascadedStage
from ppap_framework.diffusion import Continuation
from ppap_framework.errors import UsageError
from ppap_framework.run.backend import LoadedBackend

__all__ = ["later_stages"]


def later_stages(loaded: LoadedBackend, last: str | None) -> tuple[Continuation, ...]:
    """The stages behind the first one that shall run, in their order.

    Args:
        loaded: The backend.
        last: The name of the stage at which to stop; None for the last.

    Raises:
        UsageError: Where there is no such stage, or one cannot go on from the one before it.
    """
    names = [stage.name for stage in loaded.stages]
    component = loaded.origin.component
    if last is not None and last not in names:
        raise UsageError(
            f"backend {component!r} has no stage {last!r}", hint=f"choose one of {', '.join(names)}"
        )
    wanted = loaded.stages[1 : None if last is None else names.index(last) + 1]
    later = []
    for stage in wanted:
        if not isinstance(stage, CascadedStage):
            raise UsageError(
                f"stage {stage.name!r} of backend {component!r} does not say how it goes on from "
                "the stage before it",
                hint=f"make it a CascadedStage, or stop at stage {names[0]!r}",
            )
        later.append(Continuation.of(stage))
    return tuple(later)
