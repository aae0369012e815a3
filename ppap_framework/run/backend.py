"""Diffusion backends by name, by path, or as the user brings them."""

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
from ppap_framework.plugin import BackendSpec
from ppap_framework.registry import Registry, registry
from ppap_framework.run.made import made_from
from ppap_framework.runtime import isolated

__all__ = ["DType", "FoundBackend", "LoadedBackend", "backend", "find_backend"]

DType: TypeAlias = Literal["float32", "bfloat16", "float16"] | torch.dtype
_DTYPES = ("float32", "bfloat16", "float16")


@final
@attrs.frozen(eq=False)
class LoadedBackend(DiffusionBackend):
    """A backend that knows where it came from.

    Attributes:
        inner: The backend itself.
        origin: Where it came from.
    """

    inner: DiffusionBackend
    origin: Origin

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Those of the backend itself."""
        return self.inner.stages

    def encode(self, prompts: Sequence[str] | None, batch: int) -> Any:
        """As the backend itself does."""
        return self.inner.encode(prompts, batch)


@attrs.frozen
class FoundBackend:
    """A backend that is there to be loaded: its plugin is known, its checkpoint's header sound."""

    registry: Registry
    spec: BackendSpec
    checkpoint: Checkpoint
    options: dict[str, Any]
    offline: bool = False

    @isolated()
    def load(self) -> LoadedBackend:
        """Build the networks and read their weights.

        Raises:
            AssetError: Where the weights do not fit.
            PluginError: Where the plugin fails.
            UsageError: For options that it does not take.
        """
        start = time.perf_counter()
        with without_downloads(self.offline):
            made = self.registry.make(self.spec, self.options, self.checkpoint)
        dtype = self.checkpoint.dtype
        if dtype is not None and not _computes_in(made, dtype):
            raise UsageError(
                f"backend {self.spec.name!r} does not cast its weights to {_name(dtype)}",
                hint="leave out --dtype; --precision is of the products alone",
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
    """A diffusion model, ready to sample from.

    Args:
        source: The name of a backend that a plugin supplies, the path of a checkpoint for the one
            backend that is installed, or any `DiffusionBackend`.
        checkpoint: The name of one of the backend's checkpoints, or the path of a file; None for
            its default.
        options: The backend's own options.
        dtype: To which weights are cast while they are loaded, as far as the backend computes in
            it; norms, embeddings and the last layer stay float32. None leaves them as the network
            has them: float32.

    Raises:
        PluginError: Where no plugin, or more than one, supplies the backend, or it is broken.
        AssetError: Where the checkpoint is missing, damaged, or of another architecture.
        UsageError: For options that it does not take.
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
    """The backend that `backend` would load; what can be wrong without reading weights is found.

    Args:
        offline: Whether to raise instead of downloading. The rest is as for `backend`.

    Raises:
        PluginError: As `backend`.
        AssetError: As `backend`, but for the architecture.
        UsageError: Where `source` is a path and it is not clear for which backend, or there is no
            such dtype.
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
    """Names of components have no dots and slashes; a colon is for "distribution:name"."""
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
