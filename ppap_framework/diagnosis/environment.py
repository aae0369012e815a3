"""Machine, versions and weights behind measured figures."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ppap_framework.origin import Origin

_LIBRARIES = ("ppap-framework", "torch", "numpy", "torch-fidelity")


def environment(origins: Iterable[Origin]) -> dict[str, Any]:
    """Versions, including the origins' plugins, and machine, as JSON."""
    versions = {name: _version(name) for name in _LIBRARIES}
    versions |= {o.distribution: o.version for o in origins if o.distribution}
    return {
        "python": platform.python_version(),
        "versions": dict(sorted(versions.items())),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
    }


def provenance(origin: Origin) -> dict[str, Any]:
    """Identity of a component, without its path, as JSON."""
    record = origin.record()
    if record["sha256"] is not None:  # the file's hash suffices
        del record["weights_sha256"]
    return {name: value for name, value in record.items() if name not in ("path", "load_seconds")}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
