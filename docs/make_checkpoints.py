"""Measures what docs/checkpoints.md says of released networks at their full size; writes its table.

    python docs/make_checkpoints.py measure    some GB in the folder of temporary files; minutes
    python docs/make_checkpoints.py page       only the table, from docs/checkpoints/full-size.json

Weights are random, in files that are saved as the published ones are: neither memory nor times
depend on their values.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from ppap_framework.plugin import Card
from ppap_framework.registry import registry

DOCS = Path(__file__).parent
PAGE, RECORD = DOCS / "checkpoints.md", DOCS / "checkpoints" / "full-size.json"
NAMES = ("adm-256-uncond", "glide-base")
MARK, END = "<!-- full-size -->\n", "<!-- end of full-size -->\n"

LOADING = """
import json, sys, time
import torch
import ppap_framework as ppap
from ppap_framework.run import peak_memory

cpu = torch.device("cpu")
before, start = peak_memory(cpu), time.perf_counter()
network = ppap.backend(sys.argv[1], checkpoint=sys.argv[2]).stages[0].network
seconds, loaded = time.perf_counter() - start, peak_memory(cpu)
for parameter in network.parameters():
    parameter.sum()
peaks = {"before": before, "loaded": loaded, "read": peak_memory(cpu)}
print(json.dumps({"seconds": round(seconds, 1), **peaks}))
"""


def write_random(card: Card, folder: Path) -> Path:
    """A file like the published one, of random float32 weights."""
    if card.component == "glide":
        from ppap_plugin_glide import build
    else:
        from ppap_plugin_adm import build
    stated = card.architecture.get(card.prefix.rstrip("."), card.architecture)
    with torch.device("meta"):
        network = build(stated["official_class"], stated["config"])
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.empty(value.shape).normal_(0.0, 0.02, generator=generator)
        for name, value in network.state_dict().items()
    }
    path = folder / card.uri.rpartition("/")[2]
    torch.save(state, path)
    return path


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Load a network in float32; then take one guided step with it in bfloat16, each in a process
    of its own.
    """
    card = registry().card_named(name)
    path = write_random(card, folder)
    loading = json.loads(output(sys.executable, "-c", LOADING, card.component, str(path)))
    drawing = [
        *(sys.executable, "-m", "ppap_framework", "run", "--backend", card.component),
        *("--checkpoint", str(path), "--dtype", "bfloat16", "--num", "1", "--steps", "1"),
        *("--guider", "classifier", "--target", "red cube", "--experts", "none"),
        *("--device", "cpu", "--out", str(folder / "drawn"), "--overwrite", "--json"),
    ]
    if card.component == "glide":
        drawing += ["--prompt", "a red cube"]
    start = time.perf_counter()
    record = json.loads(output(*drawing))
    return {
        "name": name,
        "file_bytes": path.stat().st_size,
        "parameters": card.parameters,
        "threads": record["config"]["threads"],
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[1], 1),
        "float32": loading,
        "bfloat16": {
            "load_seconds": record["config"]["backend"]["load_seconds"],
            "step_seconds": record["seconds"]["sampling"],
            "command_seconds": round(time.perf_counter() - start, 1),
            "peak": record["peak_memory_bytes"],
        },
    }


def output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as Markdown."""
    columns = [
        *("file, GB", "float32: load, s", "peak, GB", "of the file", "with all read, GB"),
        *("bfloat16: load, s", "guided step, s", "peak, GB"),
    ]
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        size, plain, cast = row["file_bytes"], row["float32"], row["bfloat16"]
        cells = [
            f"`{row['name']}`",
            f"{size / 1e9:.2f}",
            f"{plain['seconds']:.1f}",
            f"{plain['loaded'] / 1e9:.2f}",
            f"{plain['loaded'] / size:.2f}",
            f"{plain['read'] / 1e9:.2f}",
            f"{cast['load_seconds']:.1f}",
            f"{cast['step_seconds']:.1f}",
            f"{cast['peak'] / 1e9:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    before, first = max(row["float32"]["before"] for row in rows), rows[0]
    note = (
        f"Peaks are those of the whole process, Python and torch included, which are "
        f"{before / 1e9:.2f} GB. {first['threads']} threads on {first['cores']} cores, for which "
        f"{first['load']:.1f} processes competed on average: times are upper bounds."
    )
    return [*lines, "", note]


def write_page() -> None:
    """Put the table between its marks."""
    head, mark, rest = PAGE.read_text().partition(MARK)
    _, end, tail = rest.partition(END)
    lines = "".join(f"{line}\n" for line in table(json.loads(RECORD.read_text())))
    PAGE.write_text(f"{head}{mark}{lines}{end}{tail}")


def main() -> None:
    """Measure, or only write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("measure", "page"))
    if parser.parse_args().what == "measure":
        rows = []
        for name in NAMES:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(measure(name, Path(folder)))
            print(json.dumps(rows[-1]), flush=True)
        RECORD.write_text(json.dumps(rows, indent=1) + "\n")
    write_page()


if __name__ == "__main__":
    main()
