"""`ppap doctor`: what is installed, and what is wrong with it.

Plugins are listed, components imported and bundles read in other processes, which may end: the next
one goes on with what is left, and the report names what ended it. This one does not import torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import click

from ppap_framework.cli import COMMANDS
from ppap_framework.cli.groups import plugin_commands
from ppap_framework.cli.output import json_option, print_fields, print_json, print_table
from ppap_framework.cli.plugins import ASSETS, plugin_record, print_idle
from ppap_framework.files import cache_dir, core_version
from ppap_framework.registry import Conflict, Registry, conflicts, discover, registry
from ppap_framework.registry.discovery import DISABLE, ONLY, STRICT

_ANSWER = "import sys; from ppap_framework.cli.doctor import answer; answer(*sys.argv[1:])"
_SECONDS = 120  # until a process is taken for hanging
_SLOW = 1.0  # seconds that a plugin may take to be listed
_VARIABLES = (
    *("CUDA_VISIBLE_DEVICES", "FORCE_COLOR", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE"),
    *("MKL_NUM_THREADS", "NO_COLOR", "OMP_NUM_THREADS", "PYTHONPATH", "TORCH_HOME"),
    "XDG_CACHE_HOME",
)
"""Variables that are shown beside `PPAP_*`; none of them holds a secret."""


@click.command("doctor")
@json_option
def command(as_json: bool) -> int:
    """Check the installation and every plugin.

    Every component is imported, in another process. Exits with 3 if a plugin failed, a component
    names what is not there, or two plugins are in conflict, with 1 if torch cannot be used, with 4
    if a bundle of experts cannot be attached, and otherwise with 0.
    """
    found, faults, environment = _listed()
    torch, experts, more = _examined(found, environment)
    faults += more
    commands = {name: [*claims] for name, claims in plugin_commands().items()}
    contested = conflicts(found)
    for name, others in commands.items():
        core = ["ppap-framework"] * (name in COMMANDS)  # it keeps its commands
        if len(claims := (*core, *others)) > 1:
            contested.append(Conflict(f"command {name!r}", claims, *core))
    report = {
        "ppap": core_version(),
        "python": {
            "version": platform.python_version(),
            "executable": sys.executable,
            "platform": platform.platform(),
        },
        "torch": torch,
        "plugins": [plugin_record(record) for record in found.records],
        "commands": commands,
        "faults": faults,
        "conflicts": [attrs.asdict(conflict) for conflict in contested],
        "unknown_plugin_names": [{"variable": v, "name": name} for v, name in found.unknown_names],
        "caches": [{"path": path, "bytes": size} for path, size in _caches().items()],
        "experts": experts,
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name in _VARIABLES or name.startswith("PPAP_")
        },
    }
    if as_json:
        print_json(report)
    else:
        _print(report, found)
    if any(record.failed for record in found.records) or faults or contested:
        return 3
    return 1 if "error" in torch else 4 * bool(experts)


def _listed() -> tuple[Registry, list[str], dict[str, str]]:
    """All plugins, faults of their listing, and an environment without those that end it."""
    names = [one.name for one in discover(environ={ONLY: "-"}, strict=False).records]
    answers = _ask("list", names, os.environ)
    ended = {name: said for name, said in answers.items() if isinstance(said, str)}
    without = ",".join([*filter(None, [os.environ.get(DISABLE)]), *ended])
    environment = {**os.environ, DISABLE: without} if ended else {**os.environ}
    found = discover(environ=environment, strict=False)
    records = [
        attrs.evolve(one, status="broken", reason=f"listing it {ended[one.name]}", hint="")
        if one.name in ended
        else one
        for one in found.records
    ]
    faults = [fault for said in answers.values() if isinstance(said, list) for fault in said]
    return attrs.evolve(found, records=tuple(records)), faults, environment


def _examined(
    found: Registry, environment: Mapping[str, str]
) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """What is known of torch, bundles that cannot be attached, and faults of components."""
    components = [f"{one.name} {s.kind} {s.name}" for one in found.records for s in one.specs]
    has_bundles = found.bundles() or (cache_dir() / "experts").is_dir()
    answers = _ask("examine", ["torch", *["experts"] * bool(has_bundles), *components], environment)
    torch, experts = answers.pop("torch"), answers.pop("experts", [])
    if isinstance(torch, str):
        return {"error": f"importing torch {torch}"}, [], []
    faults: list[str] = []
    for name, said in answers.items():
        plugin, component = name.split(" ", 1)
        faults += [f"importing {component} of {plugin} {said}"] if isinstance(said, str) else said
    if isinstance(experts, str):
        return torch, [], [*faults, f"listing bundles of experts {experts}"]
    return torch, experts, faults


def _ask(task: str, names: list[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """Answers of another process by name; a text where one ended it."""
    answers: dict[str, Any] = {}
    # A torch.py in this folder is not torch, and no plugin's fault ends discovery.
    environment = {**environment, "PYTHONSAFEPATH": "1", STRICT: ""}
    while rest := [name for name in names if name not in answers]:
        ended = f"took more than {_SECONDS} s"
        try:
            command = [sys.executable, "-c", _ANSWER, task, *rest]
            how: Any = {"capture_output": True, "timeout": _SECONDS, "check": False}
            done: Any = subprocess.run(command, env=environment, **how)
            said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            ended = f"ended with exit code {done.returncode}: {said or 'nothing was said'}"
        except subprocess.TimeoutExpired as late:
            done = late
        lines = [json.loads(line) for line in (done.stdout or b"").splitlines()]
        answers |= {name: found[0] for name, *found in lines if found}
        asked = lines[-1][0] if lines else rest[0]
        if asked not in answers:
            answers[asked] = ended
            if asked == "torch":  # without it nothing else can be imported
                break
    return answers


def answer(task: str, *names: str) -> None:
    """Print names, each before and with what is found out about it, as JSON lines."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever plugins and libraries print
    find: Callable[[str], Any] = {"list": _list, "examine": _examine}[task]
    for name in names:
        print(json.dumps([name]), file=out, flush=True)
        print(json.dumps([name, find(name)], default=str), file=out, flush=True)
        if task == "list" and "torch" in sys.modules:
            return  # another process finds out who else imports it


def _list(name: str) -> list[str]:
    """Faults of importing a plugin's module and asking its hooks."""
    times = []
    for only in ("-", name):  # what the search itself takes is no fault of the plugin
        start = time.monotonic()
        discover(environ={ONLY: only}, strict=False)
        times.append(time.monotonic() - start)
    imports = "imports torch when it is listed, not when it is used"
    slow = f"takes {times[1] - times[0]:.1f} s to be listed"
    faults = {imports: "torch" in sys.modules, slow: times[1] - times[0] > _SLOW}
    return [f"plugin {name} {fault}" for fault, is_so in faults.items() if is_so]


def _examine(name: str) -> Any:
    """Facts about torch, rows of bundles with a problem, or faults of a component."""
    if name == "torch":
        import torch

        device = "mps" if torch.backends.mps.is_available() else "cpu"
        if torch.cuda.is_available():
            device = f"cuda ({torch.cuda.device_count()} x {torch.cuda.get_device_name(0)})"
        return {"version": torch.__version__, "threads": torch.get_num_threads(), "device": device}
    plugins = registry()
    if name == "experts":
        from ppap_framework.cli.experts import row_of
        from ppap_framework.experts import find_bundles

        here = {spec.name for spec in plugins.specs("backend")}  # others use no experts
        rows = [row for row in map(row_of, find_bundles()) if row["problem"]]
        return [row for row in rows if row["plugin"] is None or row["backend"] in here]
    every = {f"{one.name} {s.kind} {s.name}": s for one in plugins.records for s in one.specs}
    return [*plugins.faults(every[name])]


def _caches() -> dict[str, int]:
    """Bytes of folders of weights: the project's, and those of libraries that plugins use."""
    get = os.environ.get
    shared = Path(get("XDG_CACHE_HOME") or Path.home() / ".cache")
    hub = get("HF_HUB_CACHE") or Path(get("HF_HOME") or shared / "huggingface", "hub")
    sizes = {}
    for folder in (cache_dir(), Path(hub), Path(get("TORCH_HOME") or shared / "torch")):
        sizes[str(folder)] = 0
        for file in (Path(parent, name) for parent, _, names in os.walk(folder) for name in names):
            with contextlib.suppress(OSError):
                if file.is_file() and not file.is_symlink():
                    sizes[str(folder)] += file.stat().st_size
    return sizes


def _print(report: dict[str, Any], found: Registry) -> None:
    shown = {key: report[key] for key in ("python", "torch", "environment", "caches", "commands")}
    print_fields(f"ppap {report['ppap']}", shown)
    loaded = [plugin for plugin in report["plugins"] if plugin["status"] == "ok"]
    for plugin in loaded:
        assets = [f"{kind} {name}" for key, (kind, *_) in ASSETS.items() for name in plugin[key]]
        plugin |= {"loaded": plugin["plugin"], "supplies": [*plugin["components"], *assets]}
    print_table(["loaded", "version", "supplies"], loaded)
    print_idle(found.records)
    for record in found.records:
        if record.error is not None:
            click.secho(f"{record.name}, {record.status}:", bold=True)
            click.echo(record.traceback)
    for fault in report["faults"]:
        click.echo(f"fault: {fault}")
    for conflict in report["conflicts"]:
        taken, claims = conflict["taken"], ", ".join(conflict["claims"])
        outcome = f"{taken} is taken" if taken else "asking for it is an error"
        click.echo(f"conflict: {conflict['subject']} of {claims}; {outcome}")
    experts = [(row["name"], row["path"], row["problem"]) for row in report["experts"]]
    print_table(["experts that cannot be attached", "path", "problem"], experts)
    for variable, name in found.unknown_names:
        click.echo(f"warning: {variable} names {name!r}, and no such plugin is installed")
