"""A bundle whose writer is killed is the old one or the new one, whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = """
import os, random, signal, sys, time
from pathlib import Path

import torch

torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from experts_toy import Backend, TinyGuide, trained
from ppap_framework.experts import save_bundle, verify_bundle

path, kills = Path(sys.argv[2]), int(sys.argv[3])
# Megabytes, so that writing takes its time and is what most kills interrupt.
versions = [
    trained(TinyGuide(width=1 << 14), Backend(), seed=seed, ending="") for seed in (0, 1)
]
contents = []
for experts, info in versions:
    save_bundle(path, experts, info)
    contents.append(path.read_bytes())
assert contents[0] != contents[1]

random.seed(int(sys.argv[4]))
interrupted = 0
for _ in range(kills):
    writer = os.fork()
    if writer == 0:
        while True:
            for experts, info in versions:
                save_bundle(path, experts, info)
    first = path.stat().st_ino
    while path.stat().st_ino == first:
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.1))
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    assert path.read_bytes() in contents, "neither the old one nor the new one"
    verify_bundle(path)
    left = [entry for entry in path.parent.iterdir() if entry != path]
    assert not any(entry.name.endswith(".experts.safetensors") for entry in left), left
    interrupted += bool(left)
    for entry in left:
        entry.unlink()
print(interrupted)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="writers are forked, so that killing is quick")
@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_writers(tmp_path: Path, kills: int) -> None:
    path = tmp_path / "toy.experts.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(Path(__file__).parent), str(path), str(kills), "7"],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0  # kills that found a file half-written
