"""`ppap doctor`: checks the installation. It imports neither torch nor any component itself."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import click

from ppap_framework.cli import COMMANDS, version
from ppap_framework.cli.groups import plugin_commands
from ppap_framework.cli.output import json_option, print_fields, print_json, print_table
from ppap_framework.cli.plugins import describe_plugin, print_idle
from ppap_framework.files import cache_dir
from ppap_framework.registry import Conflict, PluginRecord, Registry, conflicts, discover

_PROBE = """
import json, torch
if torch.cuda.is_available():
    device = f"cuda ({torch.cuda.device_count()} x {torch.cuda.get_device_name(0)})"
elif torch.backends.mps.is_available():
    device = "mps"
else:
    device = "cpu"
found = {"version": torch.__version__, "threads": torch.get_num_threads(), "device": device}
print(json.dumps(found))
"""
_PROBE_SECONDS = 120

_VARIABLES = (
    *("CUDA_VISIBLE_DEVICES", "FORCE_COLOR", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE"),
    *("MKL_NUM_THREADS", "NO_COLOR", "OMP_NUM_THREADS", "PYTHONPATH", "TORCH_HOME"),
    "XDG_CACHE_HOME",
)
"""Variables that are shown beside `PPAP_*`; none of them holds a secret."""


@click.command()
@json_option
def command(as_json: bool) -> int:
    """Check the installation and every plugin.

    Exits with 3 if a plugin failed or two are in conflict, with 1 if torch cannot be used, and
    otherwise with 0.
    """
    found = discover(strict=False)
    report = _examine(found)
    if as_json:
        print_json(report)
    else:
        _print(report, found)
    if any(record.failed for record in found.records) or report["conflicts"]:
        return 3
    return 1 if "error" in report["torch"] else 0


def _examine(found: Registry) -> dict[str, Any]:
    return {
        "ppap": version(),
        "python": {
            "version": platform.python_version(),
            "executable": sys.executable,
            "platform": platform.platform(),
        },
        "torch": _probe_torch(),
        "plugins": [describe_plugin(record) for record in found.records],
        "commands": _commands(),
        "conflicts": [attrs.asdict(c) for c in (*conflicts(found), *_contested_commands())],
        "unknown_plugin_names": [
            {"variable": variable, "name": name} for variable, name in found.unknown_names
        ],
        "caches": [{"path": str(path), "bytes": _size(path)} for path in _caches()],
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name in _VARIABLES or name.startswith("PPAP_")
        },
    }


def _commands() -> dict[str, list[str]]:
    """The distributions that supply each command of plugins."""
    return {
        name: [claim.distribution for claim in claims] for name, claims in plugin_commands().items()
    }


def _contested_commands() -> list[Conflict]:
    """Command names that several distributions claim, or one and the core, which keeps them."""
    found = []
    for name, claims in _commands().items():
        core = ["ppap-framework"] if name in COMMANDS else []
        if len(claims) + len(core) > 1:
            taken = core[0] if core else None
            found.append(Conflict(f"command {name!r}", (*core, *claims), taken))
    return found


def _probe_torch() -> dict[str, Any]:
    """Version, threads and device of torch, or its error; in another process, which may crash."""
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_SECONDS,
            check=False,
            env={**os.environ, "PYTHONSAFEPATH": "1"},  # a torch.py in this folder is not torch
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": str(error)}
    if probe.returncode != 0:
        said = probe.stderr.strip().rpartition("\n")[2] or "nothing was said"
        return {"error": f"importing torch ended with exit code {probe.returncode}: {said}"}
    try:
        found: dict[str, Any] = json.loads(probe.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return {"error": f"importing torch ended early, after printing {probe.stdout!r:.80}"}
    return found


def _caches() -> list[Path]:
    """Folders of weights: the project's, and those of libraries that plugins use."""
    home = Path.home()
    shared = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    hub = os.environ.get("HF_HUB_CACHE") or Path(
        os.environ.get("HF_HOME") or shared / "huggingface", "hub"
    )
    torch_home = os.environ.get("TORCH_HOME") or shared / "torch"
    return [cache_dir(), Path(hub), Path(torch_home)]


def _supplies(record: PluginRecord) -> str:
    described = describe_plugin(record)
    kinds = {"checkpoints": "checkpoint", "experts": "experts", "default_targets": "default target"}
    assets = [f"{kind} {name}" for key, kind in kinds.items() for name in described[key]]
    return ", ".join(described["components"] + assets)


def _size(folder: Path) -> int:
    """Bytes of the readable files under a folder; links are not followed."""
    files = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    total = 0
    for file in files:
        with contextlib.suppress(OSError):
            total += file.stat().st_size if not file.is_symlink() and file.is_file() else 0
    return total


def _print(report: dict[str, Any], found: Registry) -> None:
    click.secho(f"ppap {report['ppap']}", bold=True)
    print_fields("Python", report["python"])
    print_fields("torch", report["torch"])
    caches = {cache["path"]: f"{cache['bytes'] / 1e6:,.1f} MB" for cache in report["caches"]}
    print_fields("caches", caches)
    print_fields("environment", report["environment"])
    loaded = [(r.name, r.version, _supplies(r)) for r in found.records if r.status == "ok"]
    if loaded:
        print_table(["loaded", "version", "supplies"], loaded)
    print_idle(found.records)
    print_fields("commands of plugins", {n: " and ".join(c) for n, c in report["commands"].items()})
    for record in found.records:
        if record.error is not None:
            click.secho(f"{record.name}, {record.status}:", bold=True)
            click.echo(record.traceback)
    for conflict in report["conflicts"]:
        taken, claims = conflict["taken"], ", ".join(conflict["claims"])
        outcome = f"{taken} is taken" if taken else "asking for it is an error"
        click.echo(f"conflict: {conflict['subject']} of {claims}; {outcome}")
    for variable, name in found.unknown_names:
        click.echo(f"warning: {variable} names {name!r}, and no such plugin is installed")
