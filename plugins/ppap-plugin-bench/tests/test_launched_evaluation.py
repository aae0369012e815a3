"""`ppap evaluate` under a launcher."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import launched_evaluation
import pytest
import torch

from ppap_plugin_bench import cost, evaluate


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_two_processes_write_the_files_of_one(
    site: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("accelerate")
    monkeypatch.setattr(cost, "peak_memory_of", lambda *given: None)
    one, two = tmp_path / "one", tmp_path / "two"
    experiment, command = launched_evaluation.experiment(home / "scenes.toml"), ["ppap", "evaluate"]
    evaluate(experiment, one / "out", one / "images", device="cpu", command=command)
    shutil.copytree(one / "images" / "costs", two / "images" / "costs")  # they vary
    script = Path(launched_evaluation.__file__)
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    path = os.pathsep.join([str(site), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-m", *launcher, str(script), str(home / "scenes.toml"), str(two)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert content(two / "out") == content(one / "out")
    drawn = {name: x for name, x in content(one / "images").items() if "resampled" not in name}
    again = {name: x for name, x in content(two / "images").items() if "resampled" not in name}
    assert again == drawn
    told = [(two / f"process-{rank}").read_text().split() for rank in range(2)]
    assert [int(batches) for batches, _ in told] == [7, 7]  # two batches of seven points
    assert [int(curves) for _, curves in told] == [1, 0]
    # A thread that outlives the interpreter may abort the process.
    assert all("gloo" not in (two / f"threads-{rank}").read_text() for rank in range(2))
