"""The toy plugin with weights, installed into a folder of the tests' own, and experts for it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from distributions import REPOSITORY, Project

import ppap_framework
from ppap_framework.checkpoints import save_checkpoint
from ppap_framework.components import DiffusionBackend
from ppap_framework.experts import (
    SUFFIX,
    AdapterConfig,
    ExpertSet,
    Identity,
    NoiseRanges,
    backend_sha256,
    describe,
    guide_sha256,
    installed_adapter,
    save_bundle,
    write_bundle,
)
from ppap_framework.guidance import Guide
from ppap_framework.registry import registry

SIZE, TIMESTEPS = 8, 100
MEANS = (0.3, -0.2, 0.1)  # of the three channels
SPREAD = 0.25
ADAPTER = AdapterConfig(name="toy-shift", options={})
_SOURCES = Path(__file__).parent / "toy" / "ppap_plugin_toy"


def install(site: Path) -> Path:
    """Install it into the folder `site`."""
    site.mkdir(parents=True, exist_ok=True)
    files = {f"{_SOURCES.name}/{path.name}": path.read_text() for path in _SOURCES.glob("*.py")}
    Project(
        name="ppap-plugin-toy",
        version="0.7",
        entry_points={"toy": f"{_SOURCES.name}.plugin"},
        files=files,
    ).install(site)
    write_backend(site / _SOURCES.name / "toy-8.safetensors")
    weight = torch.tensor(
        [[1.0, -0.5, -0.5], [1.0, 0.0, 0.0], [-0.5, 1.0, -0.5], [-0.5, -0.5, 1.0]]
    )
    save_checkpoint(site / _SOURCES.name / "colour-3.safetensors", {"weight": weight}, {})
    save_checkpoint(site / _SOURCES.name / "grey-1.safetensors", {}, {})
    return site


def write_backend(path: Path, size: int = SIZE, stated: int = SIZE) -> Path:
    """A checkpoint of the toy backend; its file lies about its size where the two differ."""
    mean = torch.tensor(MEANS)[:, None, None].expand(3, size, size)
    state = {"mean": mean, "spread": torch.tensor(SPREAD)}
    save_checkpoint(path, state, {"size": stated, "timesteps": TIMESTEPS})
    return path


def green(scale: float = 40.0, **changes: Any) -> Guide:
    """A guide that wants the second channel to be the brightest."""
    return ppap_framework.guide("colour", target="green", scale=scale, **changes)


def start(site: Path, folder: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """Start `ppap` in a folder, with the toy plugin and nothing else that is installed."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    return subprocess.Popen(
        [sys.executable, "-m", "ppap_framework", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={
            **kept,
            "HOME": str(folder),
            "PYTHONPATH": os.pathsep.join([str(site), str(REPOSITORY)]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PPAP_PLUGINS": "ppap-plugin-toy",
            "OMP_NUM_THREADS": "1",
            **variables,
        },
        # A shell's background jobs ignore Ctrl-C, and so would this process if the tests are one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def ppap(
    site: Path, folder: Path, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run `ppap` to its end."""
    process = start(site, folder, *arguments, **variables)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@contextlib.contextmanager
def plugged(site: Path, *others: str) -> Iterator[Path]:
    """The plugin that is installed in `site`, and of others those named, in this process."""
    before = os.environ.get("PPAP_PLUGINS")
    os.environ["PPAP_PLUGINS"] = ",".join(["ppap-plugin-toy", *others])
    sys.path.insert(0, str(site))
    registry.cache_clear()
    try:
        yield site
    finally:
        sys.path.remove(str(site))
        os.environ.pop("PPAP_PLUGINS")
        if before is not None:
            os.environ["PPAP_PLUGINS"] = before
        registry.cache_clear()
        for module in [name for name in sys.modules if name.startswith("ppap_plugin_toy")]:
            del sys.modules[module]


def shifts(number: int, seed: int) -> torch.Tensor:
    """What each expert adds to the guide's weight: (N, 4, 3)."""
    return torch.randn(number, 4, 3, generator=torch.Generator().manual_seed(seed))


def write_experts(
    folder: Path,
    name: str = "mine",
    *,
    number: int = 3,
    seed: int = 0,
    scales: Sequence[float] | None = None,
    sharpness: float = 10.0,
    backend: DiffusionBackend | None = None,
    through: str | Sequence[str] | None = None,
    held_out: Sequence[float] = (),
) -> Path:
    """A bundle of experts that differ much, its path; `scales` as earlier versions wrote them.
    The untouched network's losses are twice the `held_out` ones.
    """
    options = {"sharpness": sharpness}
    model = ppap_framework.guide("colour", target="green", options=options, experts="none").model
    backend = backend or ppap_framework.backend("toy").inner
    guide = Identity(component="colour", checkpoint="colour-3", sha256=guide_sha256(model))
    drawn_by = Identity(component="toy", checkpoint="toy-8", sha256=backend_sha256(backend))
    stage = backend.stages[0]
    ranges = NoiseRanges.equal(stage.schedule, number)
    experts = ExpertSet(model, ranges, {ADAPTER.name: installed_adapter(ADAPTER)})
    with torch.no_grad():
        for index, shift in enumerate(shifts(number, seed)):
            (parameter,) = experts.parameters(index)
            parameter.copy_(shift)
    recipe = {} if through is None else {"through": through}
    said: Any = {"adapters": [ADAPTER], "recipe": recipe, "seed": seed}
    scores = [{"held_out": loss, "untouched": 2.0 * loss} for loss in held_out]
    said |= {"metrics": {"experts": scores}} if scores else {}
    size = stage.image_shape[1:]
    info = describe(experts, stage.schedule, size, guide=guide, backend=drawn_by, **said)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}{SUFFIX}"
    save_bundle(path, experts, info)
    if scales is not None:
        content = json.dumps({**json.loads(info.to_json()), "scales": [*scales]})
        earlier: Any = SimpleNamespace(to_json=lambda: content)
        write_bundle(path, experts.state_dict(), earlier)
    experts.detach()
    return path
