"""Processes of two machines, whose clocks differ by up to two hours, draw one set each round.

They are killed one after another and replaced, a machine that is gone has left a claim, the disk is
full for a while, and somebody truncates a shard. The disk is a small tmpfs if file systems can be
mounted; elsewhere only flushing fails. Workers are forks of this process, which has imported
everything once.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import ppap_framework as ppap
from ppap_framework.data import claims, synthesize
from ppap_framework.errors import PpapError

SET: dict[str, Any] = {"num": 96, "steps": 2, "batch": 2, "shard": 6}
_FULL = 28  # exit code of a worker that found the disk full


@contextlib.contextmanager
def disk(place: Path) -> Iterator[bool]:
    """A folder, on a small disk of its own if the system permits that."""
    place.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    own = shutil.which("mount") is not None and not subprocess.run(mount).returncode
    try:
        yield own
        shutil.copytree(place / "set", place.with_name("set"))
    finally:
        if own:
            subprocess.run(["umount", str(place)], check=True)


def haunt(out: Path) -> bool:
    """Claim the last batch by a worker of a machine that is gone; False if it is too early."""
    last = SET["num"] // SET["batch"] - 1
    for folder in out.glob(".partial/*/"):
        with (
            contextlib.suppress(FileExistsError),
            (folder / f"claim-{last:05d}.1").open("x") as file,
        ):
            (folder / "worker-gone-1-00000000").write_text("a machine that is gone\nlabel\n")
            file.write("worker-gone-1-00000000")
            return True
    return False


def fill(full: Path, own: bool) -> None:
    """Make the disk full until the file is removed."""
    full.touch()
    for size in (2**16, 1) if own else ():
        with contextlib.suppress(OSError), full.open("ab", 0) as file:
            while file.write(bytes(size)):
                pass


def begin(backend: Any, out: Path, number: int, own: bool) -> int:
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
        if not own and out.with_name("full").exists():
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


def play(backend: Any, out: Path, own: bool, seed: int, count: int, kills: int) -> None:
    """One round, until all workers say that the set is complete."""
    chance, full, patience = random.Random(seed), out.with_name("full"), time.monotonic() + 200
    workers, started = {begin(backend, out, number, own) for number in range(count)}, count
    haunted = truncated = filled = False
    ended = {_FULL: 0, 0: 0, -signal.SIGKILL: 0}
    while workers:
        assert time.monotonic() < patience
        time.sleep(chance.uniform(0.02, 0.1))
        shards = sorted(out.glob("shard-*.tar"))
        complete = (out / "manifest.json").exists()
        if not haunted:
            haunted = haunt(out)
        elif full.exists():
            if ended[_FULL]:
                full.unlink()
        elif not complete and shards and not truncated:
            os.truncate(chance.choice(shards), 512 * chance.randrange(4))
            truncated = True
        elif not complete and shards and not filled:
            fill(full, own)
            filled = True
        elif not complete and shards and kills:
            os.kill(chance.choice(sorted(workers)), signal.SIGKILL)
            kills -= 1
        for child in list(workers):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                workers.remove(child)
                code = os.waitstatus_to_exitcode(status)
                assert code in ended, code
                ended[code] += 1
                if code:
                    workers.add(begin(backend, out, started, own))
                    started += 1
    assert haunted
    assert truncated
    assert filled
    assert not kills
    killed, stopped = ended[-signal.SIGKILL], ended[_FULL]
    where = "on a small disk" if own else "on no disk of its own"
    print(f"round {seed}, {where}: {started} workers, {killed} killed, {stopped} found it full")


if __name__ == "__main__":
    torch.set_num_threads(1)
    home, workers_, kills_, *seeds = sys.argv[1:]
    toy = ppap.backend("toy")
    for seed_ in seeds:
        with disk(place := Path(home, seed_, "disk")) as own_:
            play(toy, place / "set", own_, int(seed_), int(workers_), int(kills_))
