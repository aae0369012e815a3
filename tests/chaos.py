"""Processes of two machines, whose clocks differ by up to two hours, draw one set each round.

They are killed one after another and replaced, the disk is full for a while, and somebody truncates
a shard. Workers are forks of this process, which has imported everything once.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

import ppap_framework as ppap
from ppap_framework.data import claims, synthesize
from ppap_framework.errors import PpapError

SET: dict[str, Any] = {"num": 96, "steps": 2, "batch": 2, "shard": 6}
_FULL = 28  # exit code of a worker that found the disk full


def begin(backend: Any, out: Path, number: int) -> int:
    """Fork a worker; returns its process id."""
    if child := os.fork():
        return child
    skew = (-3600.0, 0.0, 3600.0)[number % 3]
    now, touch, sync = time.time, os.utime, os.fsync
    time.time = lambda: now() + skew
    os.utime = lambda path: touch(path, (now() + skew,) * 2)  # type: ignore[assignment]
    claims._machine = lambda: f"machine {number % 2}"
    claims.EXPIRY = 1.0

    def write(file: int) -> None:
        if out.with_name("full").exists():
            with open("/dev/full", "wb", 0) as disk:  # noqa: PTH123  # ENOSPC of the system's own
                disk.write(b"0")
        sync(file)

    os.fsync = write
    code = 1
    try:
        synthesize(backend, out=out, **SET)
        code = 0
    except PpapError as error:
        code = _FULL if "No space left on device" in error.message else 1
        if code == 1:
            traceback.print_exc()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def play(backend: Any, out: Path, seed: int, count: int, kills: int) -> None:
    """One round, until all workers say that the set is complete."""
    chance, full, patience = random.Random(seed), out.with_name("full"), time.monotonic() + 200
    workers, started = {begin(backend, out, number) for number in range(count)}, count
    truncated = filled = False
    while workers:
        assert time.monotonic() < patience
        time.sleep(chance.uniform(0.02, 0.1))
        shards = sorted(out.glob("shard-*.tar"))
        complete = (out / "manifest.json").exists()
        if not complete and shards and not truncated:
            os.truncate(chance.choice(shards), 512 * chance.randrange(4))
            truncated = True
        elif not complete and shards and not filled:
            full.touch()
            time.sleep(0.15)
            full.unlink()
            filled = True
        elif not complete and shards and kills:
            os.kill(chance.choice(sorted(workers)), signal.SIGKILL)
            kills -= 1
        for child in list(workers):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                workers.remove(child)
                code = os.waitstatus_to_exitcode(status)
                assert code in (0, _FULL, -signal.SIGKILL), code
                if code:
                    workers.add(begin(backend, out, started))
                    started += 1
    assert truncated
    assert filled
    assert not kills


if __name__ == "__main__":
    torch.set_num_threads(1)
    home, workers_, kills_, *seeds = sys.argv[1:]
    toy = ppap.backend("toy")
    for seed_ in seeds:
        place = Path(home, seed_, "set")
        place.parent.mkdir()
        play(toy, place, int(seed_), int(workers_), int(kills_))
