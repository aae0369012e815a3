"""Diffusion backends by name, by path, or as objects."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

import attrs
import torch

from ppap_framework.checkpoints import Checkpoint, find_checkpoint, without_downloads
from ppap_framework.components import DiffusionBackend, Stage
from ppap_framework.errors import UsageError
from ppap_framework.experts import backend_sha256
from ppap_framework.origin import Origin
from ppap_framework.plugin import BackendSpec, Card, ComponentSpec
from ppap_framework.registry import Registry, registry
from ppap_framework.runtime import isolated

DType: TypeAlias = Literal["float32", "bfloat16", "float16"] | torch.dtype
_DTYPES = ("float32", "bfloat16", "float16")


@final
@attrs.frozen(eq=False)
class LoadedBackend(DiffusionBackend):
    """A backend with its origin."""

    inner: DiffusionBackend
    origin: Origin
    stages: tuple[Stage, ...] = attrs.field(init=False)

    @stages.default
    def _stages(self) -> tuple[Stage, ...]:
        return self.inner.stages

    def encode(self, prompts: Sequence[str] | None, batch: int) -> Any:
        """See `DiffusionBackend.encode`."""
        return self.inner.encode(prompts, batch)


@attrs.frozen
class FoundBackend:
    """A backend that can be loaded: its plugin is known, its checkpoint's header is valid."""

    registry: Registry
    spec: BackendSpec
    checkpoint: Checkpoint
    options: dict[str, Any]
    offline: bool = False

    @isolated()
    def load(self) -> LoadedBackend:
        """Build the networks and read their weights; errors are those of `backend`."""
        start = time.perf_counter()
        with without_downloads(self.offline):
            made = self.registry.make(self.spec, self.options, self.checkpoint)
        dtype = self.checkpoint.dtype
        if dtype is not None and not _computes_in(made, dtype):
            raise UsageError(
                f"backend {self.spec.name!r} does not cast its weights to {_name(dtype)}",
                hint="leave out --dtype; --precision sets the precision of products alone",
            )
        seconds = time.perf_counter() - start
        origin = made_from(self.registry, self.spec, self.options, self.checkpoint, seconds)
        return LoadedBackend(made, origin)


def backend(
    source: str | os.PathLike[str] | DiffusionBackend,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    options: Mapping[str, Any] | None = None,
    dtype: DType | None = None,
) -> LoadedBackend:
    """A diffusion model, loaded.

    Args:
        source: Name of a backend that a plugin supplies, path of a checkpoint for the only
            installed backend, or any `DiffusionBackend`.
        checkpoint: Name of a checkpoint of the backend, or path of a file; None for its default.
        options: Options of the backend.
        dtype: Type to which weights are cast while loading, if the backend computes in it; norms,
            embeddings and the last layer stay float32. None leaves them as stored.

    Raises:
        PluginError: If no plugin, or more than one, supplies the backend, or it is broken.
        AssetError: If the checkpoint is missing, damaged, or of another architecture.
        UsageError: If the backend does not take an option.
    """
    if isinstance(source, DiffusionBackend):
        if checkpoint is not None or options or dtype is not None:
            raise UsageError("a backend that is already made takes no checkpoint and no options")
        if isinstance(source, LoadedBackend):
            return source
        origin = Origin(component=type(source).__qualname__, weights_sha256=backend_sha256(source))
        return LoadedBackend(source, origin)
    return find_backend(source, checkpoint=checkpoint, options=options, dtype=dtype).load()


def find_backend(
    source: str | os.PathLike[str],
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    options: Mapping[str, Any] | None = None,
    dtype: DType | None = None,
    offline: bool = False,
) -> FoundBackend:
    """Find all errors of a backend, as of `backend`, without reading weights.

    `offline` raises instead of downloading. UsageError if `source` is a path and several backends
    are installed.
    """
    plugins = registry()
    name = source if isinstance(source, str) else os.fspath(source)
    if not isinstance(source, str) or _is_path(name):
        if checkpoint is not None:
            raise UsageError(
                f"there are two checkpoints, {name!r} and {os.fspath(checkpoint)!r}",
                hint="give the backend's name and one checkpoint",
            )
        name, checkpoint = _only_backend(plugins, name), Path(name)
    spec = plugins.spec("backend", name)
    wanted = checkpoint if checkpoint is None or isinstance(checkpoint, str) else Path(checkpoint)
    cast = None if dtype is None else str(dtype).removeprefix("torch.")
    if cast not in (None, *_DTYPES):
        raise UsageError(f"dtype cannot be {dtype!r}", hint=f"choose one of {', '.join(_DTYPES)}")
    found = find_checkpoint(plugins, name, "backend", wanted, offline=offline)
    if cast is not None:
        found = attrs.evolve(found, dtype=getattr(torch, cast))
    return FoundBackend(plugins, spec, found, dict(options or {}), offline)


def _computes_in(made: DiffusionBackend, dtype: torch.dtype) -> bool:
    return all(
        any(parameter.dtype == dtype for parameter in stage.network.parameters())
        for stage in made.stages
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _is_path(name: str) -> bool:
    """Whether a name has a slash, or a dot outside the prefix of "distribution:name"."""
    return any(mark in name for mark in ("/", os.sep)) or "." in name.rpartition(":")[2]


def _only_backend(plugins: Registry, path: str) -> str:
    names = list(dict.fromkeys(spec.name for spec in plugins.specs("backend")))
    if len(names) == 1:
        return names[0]
    if not names:
        raise UsageError(f"no backend is installed to read {path!r}", hint="`ppap plugins list`")
    raise UsageError(
        f"{path!r} may be for any of {', '.join(names)}",
        hint="give the backend's name, and the path as its checkpoint",
    )


def made_from(
    plugins: Registry,
    spec: ComponentSpec,
    options: Mapping[str, Any],
    checkpoint: Checkpoint | None,
    seconds: float,
    others: Sequence[ComponentSpec | None] = (),
) -> Origin:
    """The origin of a component that a plugin made in `seconds`.

    `others` are components that belong to it, such as a loss.
    """
    provider = plugins.provider(spec)
    made = plugins.options(spec, options)
    fields = () if made is None else attrs.fields(type(made))
    card = checkpoint.card if checkpoint else None
    dtype = checkpoint.dtype if checkpoint else None
    return Origin(
        component=spec.name,
        distribution=provider.distribution,
        version=provider.version,
        checkpoint=checkpoint.name if checkpoint else None,
        path=checkpoint.path if checkpoint else None,
        sha256=checkpoint.sha256 if checkpoint else None,
        options=dict(options),
        resolved={f.alias or f.name: getattr(made, f.name) for f in fields if f.init},
        dtype=None if dtype is None else str(dtype).removeprefix("torch."),
        load_seconds=seconds,
        suppliers=suppliers(plugins, spec, *others, card),
    )


def suppliers(plugins: Registry, *items: ComponentSpec | Card | None) -> dict[str, str | None]:
    """Versions of the distributions that supply these items."""
    providers = [plugins.provider(item) for item in items if item is not None]
    return {provider.distribution: provider.version for provider in providers}
