"""Hooks that a plugin module may implement. Each is called once, at discovery, for its records."""

from __future__ import annotations

from collections.abc import Sequence

import pluggy

from ppap_framework.plugin import AdapterSpec, Asset, BackendSpec, GuiderSpec, TaskLossSpec

hookspec = pluggy.HookspecMarker("ppap")


@hookspec
def ppap_backends() -> Sequence[BackendSpec]:  # type: ignore[empty-body]  # a declaration
    """Diffusion models."""


@hookspec
def ppap_guiders() -> Sequence[GuiderSpec]:  # type: ignore[empty-body]  # a declaration
    """Networks that can guide."""


@hookspec
def ppap_task_losses() -> Sequence[TaskLossSpec]:  # type: ignore[empty-body]  # a declaration
    """Distances between predictions and targets."""


@hookspec
def ppap_expert_adapters() -> Sequence[AdapterSpec]:  # type: ignore[empty-body]  # a declaration
    """Ways to fine-tune few parameters of a frozen network."""


@hookspec
def ppap_assets() -> Sequence[Asset]:  # type: ignore[empty-body]  # a declaration
    """Checkpoints, bundles of experts and default targets, for components of any distribution."""
