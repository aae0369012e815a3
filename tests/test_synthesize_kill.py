"""Synthesis in processes of its own, which are killed or interrupted."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy_distribution import install, plugged, start

from ppap_framework.data import synthesize

NUM = 96
DRAW = (
    *("synthesize", "--backend", "toy", "--num", str(NUM), "--steps", "2", "--batch", "2"),
    *("--shard", "6", "--out", "set"),
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with plugged(install(tmp_path_factory.mktemp("toy") / "site")) as folder:
        yield folder


@pytest.fixture(scope="module")
def whole(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "set"
    return synthesize("toy", out=out, num=NUM, steps=2, batch=2, shard=6).path


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "run.json"
    }


def images(folder: Path) -> int:
    """How many are on the disk, in shards and blocks."""
    entries = folder.glob(".partial/shard-*.json")
    blocks = [path for path in folder.glob(".partial/*/*") if not path.name.startswith(".")]
    in_shards = {path.stem: json.loads(path.read_text())["images"] for path in entries}
    return sum(n for stem, n in in_shards.items() if (folder / f"{stem}.tar").exists()) + 2 * len(
        blocks
    )


def kill_while_it_draws(site: Path, tmp_path: Path, workers: int, seconds: float) -> None:
    """Start it, and kill it so long after it has begun to write."""
    out = tmp_path / "set"
    before = images(out)
    process = start(site, tmp_path, *DRAW, "--workers", str(workers), TOY_DELAY="0.01")
    patience = time.monotonic() + 300  # for a machine that has much else to do
    while images(out) <= before:
        assert time.monotonic() < patience
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate(timeout=60)  # returns when workers, too, let go of stderr
    assert process.returncode in (-signal.SIGKILL, 0), err


def kills(count: int) -> list[object]:
    # The slow ones start at other seeds than the few.
    return [pytest.param(count, marks=[pytest.mark.slow] if count > 3 else [], id=str(count))]


@pytest.mark.parametrize("count", [*kills(3), *kills(20)])
def test_killed_at_random_moments(site: Path, whole: Path, tmp_path: Path, count: int) -> None:
    moments = random.Random(count)
    out, interruptions = tmp_path / "set", 0
    for number in range(count):
        workers = 1 + number % 2
        seconds = moments.uniform(0.0, 0.6 / count)
        kill_while_it_draws(site, tmp_path, workers, seconds)
        if (out / "manifest.json").exists():
            break
        interruptions += 1
    assert interruptions >= min(count, 3)
    synthesize("toy", out=out, num=NUM, steps=2, batch=2, shard=6)
    assert content(out) == content(whole)


def test_ctrl_c_leaves_what_the_same_command_goes_on_with(
    site: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    process = start(site, tmp_path, *DRAW, "--workers", "2", TOY_DELAY="0.05")
    patience = time.monotonic() + 100
    while not images(out):
        assert time.monotonic() < patience
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert printed == ""
    assert err == "ppap: interrupted; the same command continues in set\n"
    assert json.loads((out / "run.json").read_text())["status"] == "interrupted"
    kept = images(out)
    assert 0 < kept < NUM
    assert not any(os.path.lexists(out / name) for name in ("manifest.json",))
    synthesize("toy", out=out, num=NUM, steps=2, batch=2, shard=6)
    assert content(out) == content(whole)
