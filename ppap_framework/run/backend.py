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
from ppap_framework.registry import registry
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

    spec: BackendSpec
    checkpoint: Checkpoint | None
    options: dict[str, Any]
    offline: bool = False

    @isolated()
    def load(self) -> LoadedBackend:
        """Build the networks and read their weights; errors are those of `backend`."""
        made, origin = made_by_plugin(self.spec, self.options, self.checkpoint, self.offline)
        if self.checkpoint is None:
            return LoadedBackend(made, attrs.evolve(origin, weights_sha256=backend_sha256(made)))
        dtype = self.checkpoint.dtype
        for stage in made.stages if dtype else ():
            if not any(parameter.dtype == dtype for parameter in stage.network.parameters()):
                reason = f"backend {self.spec.name!r} does not cast its weights to {origin.dtype}"
                raise UsageError(reason, hint="leave out --dtype; --precision is for products")
        return LoadedBackend(made, origin)


def backend(
    source: str | os.PathLike[str] | DiffusionBackend | object,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    options: Mapping[str, Any] | None = None,
    dtype: DType | None = None,
) -> LoadedBackend:
    """A diffusion model, loaded.

    Args:
        source: Name of a backend, path of a checkpoint for the only installed one, any
            `DiffusionBackend`, or a loaded model that a plugin wraps, such as one of diffusers.
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
    if isinstance(source, str | os.PathLike):
        return find_backend(source, checkpoint=checkpoint, options=options, dtype=dtype).load()
    if (spec := registry().wrapper(source)) is None:
        reason = f"a {type(source).__name__} is no diffusion model that an installed plugin knows"
        raise UsageError(reason, hint="`ppap plugins list` shows the backends")
    if checkpoint is not None or dtype is not None:
        raise UsageError("a model that is already loaded takes no checkpoint and no dtype")
    made, origin = made_by_plugin(spec, options or {}, source, False)
    return LoadedBackend(made, attrs.evolve(origin, weights_sha256=backend_sha256(made)))


def find_backend(
    source: str | os.PathLike[str],
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    options: Mapping[str, Any] | None = None,
    dtype: DType | None = None,
    offline: bool = False,
) -> FoundBackend:
    """Find all errors of `backend` without reading weights. `offline` never downloads."""
    name = os.fspath(source)
    # A name has no slash, and a dot only in the prefix of "distribution:name".
    is_path = "/" in name or os.sep in name or "." in name.rpartition(":")[2]
    if is_path or not isinstance(source, str):
        known = sorted({spec.name for spec in registry().specs("backend")})
        if checkpoint is not None:
            reason = f"there are two checkpoints, {name!r} and {os.fspath(checkpoint)!r}"
            raise UsageError(reason, hint="give the backend's name and one of them")
        if len(known) != 1:
            reason = f"{name!r} may be for any of {', '.join(known) or 'no installed backends'}"
            raise UsageError(reason, hint="give the backend's name, and the path as its checkpoint")
        name, checkpoint = known[0], Path(name)
    spec, cast = registry().spec("backend", name), str(dtype).removeprefix("torch.")
    if dtype is not None and cast not in _DTYPES:
        raise UsageError(f"dtype cannot be {dtype!r}", hint=f"choose one of {', '.join(_DTYPES)}")
    wanted = checkpoint if isinstance(checkpoint, str | None) else Path(checkpoint)
    is_card = any(card.name == wanted for card in registry().cards(name, "backend"))
    if spec.opens and wanted is not None and not is_card:
        with without_downloads(offline):
            found = registry().opened(spec, wanted)
    elif not (wanted or dtype or spec.needs_checkpoint or registry().cards(name, "backend")):
        return FoundBackend(spec, None, dict(options or {}), offline)
    else:
        found = find_checkpoint(registry(), name, "backend", wanted, offline=offline)
    if dtype is not None:
        found = attrs.evolve(found, dtype=getattr(torch, cast))
    return FoundBackend(spec, found, dict(options or {}), offline)


def made_by_plugin(
    spec: Any,
    options: Mapping[str, Any],
    checkpoint: Any,
    offline: bool,
    loss: ComponentSpec | None = None,
) -> tuple[Any, Origin]:
    """A backend or guider, made of weights or a loaded model, and its origin; `loss` is its own."""
    plugins, start = registry(), time.perf_counter()
    with without_downloads(offline):
        made = plugins.make(spec, options, checkpoint)
    seconds, provider = time.perf_counter() - start, plugins.provider(spec)
    origin = Origin(
        component=spec.name,
        distribution=provider.distribution,
        version=provider.version,
        options=dict(options),
        resolved=plugins.resolved(spec, options),
        compared=plugins.resolved(spec, options, compared=True),
        load_seconds=seconds,
        suppliers=suppliers(spec, loss, getattr(checkpoint, "card", None)),
    )
    if not isinstance(checkpoint, Checkpoint):
        return made, origin
    dtype = str(checkpoint.dtype).removeprefix("torch.") if checkpoint.dtype else None
    name, path, sha256 = checkpoint.name, checkpoint.path, checkpoint.sha256
    return made, attrs.evolve(origin, checkpoint=name, path=path, sha256=sha256, dtype=dtype)


def suppliers(*items: ComponentSpec | Card | None) -> dict[str, str | None]:
    """Versions of the distributions that supply these items."""
    providers = [registry().provider(item) for item in items if item is not None]
    return {provider.distribution: provider.version for provider in providers}
