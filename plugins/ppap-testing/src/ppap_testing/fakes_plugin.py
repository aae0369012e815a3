"""The fake components as a plugin that is not installed: see `isolated_registry`."""

from __future__ import annotations

from ppap_framework.plugin import BackendSpec, GuiderSpec, TaskLossSpec, hookimpl

PPAP_API = (1, 0)


@hookimpl
def ppap_backends() -> list[BackendSpec]:
    """The backend `fake`."""
    return [
        BackendSpec(
            name="fake",
            summary="A Gaussian in closed form",
            factory="ppap_testing.fakes:make_backend",
            needs_checkpoint=False,
            licence="Apache-2.0",
        )
    ]


@hookimpl
def ppap_guiders() -> list[GuiderSpec]:
    """The guider `fake`."""
    return [
        GuiderSpec(
            name="fake",
            summary="A random classifier of four colours",
            factory="ppap_testing.fakes:make_guider",
            task="classification",
            default_loss="fake-cross-entropy",
            needs_checkpoint=False,
            licence="Apache-2.0",
        )
    ]


@hookimpl
def ppap_task_losses() -> list[TaskLossSpec]:
    """The loss `fake-cross-entropy`."""
    return [
        TaskLossSpec(
            name="fake-cross-entropy",
            summary="Cross-entropy with a class",
            factory="ppap_testing.fakes:FakeCrossEntropy",
            task="classification",
            licence="Apache-2.0",
        )
    ]
