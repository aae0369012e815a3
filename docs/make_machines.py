"""Measures how fast several processes draw a synthetic set; writes the table of docs/machines.md.

    python docs/make_machines.py            on a machine at rest; minutes

Needs accelerate. Fails if the sets of different numbers of processes are not the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from make_cost import processor

PAGE = Path(__file__).with_name("machines.md")
MARK, END = "<!-- speed -->\n", "<!-- end of speed -->\n"
COUNTS = (1, 2, 4)
SET = ("--backend", "adm", "--num", "64", "--batch", "4", "--shard", "32", "--steps", "25")


def drawn_by(count: int) -> tuple[float, str]:
    """Images a second of `count` processes of one thread each, and the SHA-256 of their shards."""
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
    command = ("-m", "--", "ppap_framework", "synthesize", *SET, "--threads", "1", "--out", "set")
    with tempfile.TemporaryDirectory() as home:
        alone = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*launch, str(count), *command], cwd=home, env=alone, check=True)
        calls = json.loads(Path(home, "set", "run.json").read_text())["calls"]
        shards = sorted(Path(home, "set").glob("*.tar"))
        read = hashlib.sha256(b"".join(shard.read_bytes() for shard in shards)).hexdigest()
    return sum(call["images"] / call["seconds"] for call in calls), read


def lines() -> list[str]:
    load = os.getloadavg()[0]
    found = {count: drawn_by(count) for count in COUNTS}
    if len({shards for _, shards in found.values()}) != 1:
        raise SystemExit("the sets of different numbers of processes differ")
    made = ["| processes | images a second |", "|---|---|"]
    made += [f"| {count} | {speed:.2f} |" for count, (speed, _) in found.items()]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    where = f"{processor()}, {cores} cores, torch {torch.__version__}"
    return [*made, "", f"Measured on {where}; load before the first call: {load:.1f}."]


def main() -> None:
    head, _, rest = PAGE.read_text().partition(MARK)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{MARK}" + "".join(f"{line}\n" for line in lines()) + f"{END}{tail}")


if __name__ == "__main__":
    main()
