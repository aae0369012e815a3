"""Trainings in processes of their own, which are killed or interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from distributions import REPOSITORY
from toy_distribution import install, start

PLUGINS = "ppap-plugin-toy,ppap-plugin-bias"

_SCRIPT = """
import os, random, signal, sys, time
from pathlib import Path

import torch

torch.set_num_threads(1)
import ppap_framework.learn, ppap_plugin_bias.adapter, ppap_plugin_toy.parts
from ppap_framework.cli import main

# A plot would take longer than a training.
sys.modules["ppap_framework.learn.transfer"].draw_figures = lambda *_: []
torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]).step()  # imports much, once for all
command, kills = sys.argv[1], int(sys.argv[2])
LEARN = (
    "--num-experts 2 --iterations 240 --shared 0.3 --learn-batch 4 --validate-every 8 "
    "--adapter full --device cpu --no-keep --no-calibrate"
).split()
DRAW = "--num 96 --steps 2 --workers 1".split()
NAMED = "--backend toy --guider colour".split()


def begin(*arguments):
    child = os.fork()
    if child:
        return child
    os.close(1)
    os.open(os.devnull, os.O_WRONLY)
    code = 70
    try:
        main(arguments)
    except SystemExit as left:
        code = left.code
    finally:
        os._exit(code)


def end(child):
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def arguments(out):
    if command == "adapt":
        return ("adapt", *NAMED, *DRAW, *LEARN, "--out", str(out))
    return ("transfer", *NAMED, *LEARN, "--data", "set", "--out", str(out))


def content(out):
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in ("run.json", "transfer.json")
    }


def written(paths):
    return sorted((str(path), path.stat().st_mtime_ns) for path in paths)


def drawing(out):
    return written(out.glob("data/.partial/*/0*"))


def learning(out):
    return written(out.glob(".partial/state"))


if command == "transfer":
    end(begin("synthesize", "--backend", "toy", *DRAW, "--out", "set"))
    os.environ["TOY_DELAY"] = "0"
end(begin(*arguments(Path("whole"))))
whole = content(Path("whole"))
acts = [drawing, learning] if command == "adapt" else [learning]
random.seed(kills)
hits, folder = {act.__name__: 0 for act in acts}, 0
while sum(hits.values()) < kills:
    out, folder = Path(str(folder)), folder + 1
    for act in (*acts, *acts[-1:]):
        before, child, patience = act(out), begin(*arguments(out)), time.monotonic() + 100
        while act(out) in (before, []):  # until it gets on
            done, status = os.waitpid(child, os.WNOHANG)
            assert not done, status
            assert time.monotonic() < patience
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.06))
        try:
            os.kill(child, signal.SIGKILL)
        finally:
            status = os.waitpid(child, 0)[1]
        killed = os.WIFSIGNALED(status)
        assert killed or os.waitstatus_to_exitcode(status) == 0
        hits[act.__name__] += killed
        if not killed:
            break
    end(begin(*arguments(out)))
    assert content(out) == whole, out
assert all(hits.values()), hits
print(sum(hits.values()))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("toy") / "site")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="they are forked, so that killing is quick")
@pytest.mark.parametrize("command", ["transfer", pytest.param("adapt", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(site: Path, tmp_path: Path, command: str, kills: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, command, str(kills)],
        cwd=tmp_path,
        env={
            **{name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ},
            "HOME": str(tmp_path),
            "PYTHONPATH": os.pathsep.join([str(site), str(REPOSITORY)]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PPAP_PLUGINS": PLUGINS,
            "OMP_NUM_THREADS": "1",
            "TOY_DELAY": "0.02",
        },
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= kills


@pytest.mark.slow
def test_ctrl_c_and_death_leave_what_the_same_command_goes_on_with(
    site: Path, tmp_path: Path
) -> None:
    """As it is typed: one process interrupted, one killed, one that ends."""
    command = (
        *("adapt", "--backend", "toy", "--guider", "colour", "--num", "16", "--steps", "1"),
        *("--workers", "1", "--num-experts", "2", "--iterations", "600", "--learn-batch", "4"),
        *("--validate-every", "10", "--adapter", "full", "--out", "out"),
        *("--device", "cpu", "--no-calibrate", "--json"),
    )
    state = tmp_path / "out" / ".partial" / "state"
    for sent, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        before = state.stat().st_mtime_ns if state.exists() else 0
        process = start(site, tmp_path, *command, PPAP_PLUGINS=PLUGINS)
        patience = time.monotonic() + 200
        while not state.exists() or state.stat().st_mtime_ns == before:
            assert time.monotonic() < patience
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        process.send_signal(sent)
        out, err = process.communicate(timeout=100)
        assert (process.returncode, out) == (code, ""), err
        if sent == signal.SIGINT:
            assert err == "ppap: interrupted; the same command goes on in out\n"
            record = json.loads((tmp_path / "out" / "transfer.json").read_text())
            assert record["status"] == "interrupted"
    process = start(site, tmp_path, *command, PPAP_PLUGINS=PLUGINS)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    bundle = Path(json.loads(out)["path"])
    assert bundle.read_bytes() == (tmp_path / "out" / bundle.name).read_bytes()
    record = json.loads((tmp_path / "out" / "transfer.json").read_text())
    assert record["status"] == "complete"
    assert len(record["calls"]) == 3
