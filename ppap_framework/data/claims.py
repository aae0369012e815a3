"""Blocks of work that processes share through a folder, perhaps on several machines.

A worker is a file that its process keeps locked and touches every few seconds. A claim is a file,
created exclusively, that names its worker. Claim k + 1 of a block succeeds claim k if the worker of
claim k is dead: on its own machine because nobody holds the lock, elsewhere because it was not
touched while another worker watched for `EXPIRY` seconds. Clocks of machines are never compared.

Claims only avoid double work. A worker that was taken for dead may return, so what it writes has to
be written by `files.replacing` with `once`.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import final

from ppap_framework.files import KEPT, locked, refusals

EXPIRY = 60.0
"""Seconds without a touch after which a worker of another machine is taken for dead."""

_CLAIM = re.compile(r"claim-(.+)\.(\d+)")
_BOOT = Path("/proc/sys/kernel/random/boot_id")  # tells machines apart, whatever their names


@final
class Claims:
    """The claims of one worker on blocks, which have names, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._own = folder, ""
        self._held: list[Path] = []
        self._watched: dict[str, tuple[object, float]] = {}  # last touch, and since when

    @contextlib.contextmanager
    def working(self, label: str) -> Iterator[None]:
        """A context for claiming blocks; its end releases them. A worker's label is for people."""
        self._own = f"worker-{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        path, ended = self._folder / self._own, threading.Event()

        def touch() -> None:
            while not ended.wait(EXPIRY / 6):
                with contextlib.suppress(OSError):  # of a folder that was tidied, or a full disk
                    os.utime(path)

        with contextlib.ExitStack() as stack:
            with refusals(path, hint=KEPT):
                file = stack.enter_context(path.open("xb", 0))  # or closing would write, too
                stack.callback(path.unlink, missing_ok=True)
                locked(file.fileno())
                file.write(f"{_machine()}\n{label}\n".encode())
            thread = threading.Thread(target=touch, daemon=True)
            thread.start()
            stack.callback(thread.join)
            stack.callback(ended.set)
            stack.callback(self.release)
            yield

    def take(self, blocks: Iterable[str]) -> str | None:
        """Claim the first block that no worker has claimed who may live; None if there is none.
        Work that was finished since the blocks were listed can be claimed, too.
        """
        latest: dict[str, int] = {}
        with contextlib.suppress(FileNotFoundError):
            for path in self._folder.iterdir():
                if match := _CLAIM.fullmatch(path.name):
                    latest[match[1]] = max(latest.get(match[1], 0), int(match[2]))
        for block in blocks:
            number = latest.get(block, 0)
            claims = [self._folder / f"claim-{block}.{k}" for k in range(1, number + 2)]
            if number and self.lives(claims[-2]) is not False:
                continue
            # The folder is missing if the work was finished since.
            taken = contextlib.suppress(FileExistsError, FileNotFoundError)
            with refusals(claims[-1], hint=KEPT), taken, claims[-1].open("x") as file:
                self._held += claims
                file.write(self._own)
                return block
        return None

    def release(self) -> None:
        """Remove what was claimed, and the claims that were succeeded."""
        for claim in self._held:
            claim.unlink(missing_ok=True)
        self._held = []

    def busy(self) -> bool:
        """Whether a worker lives; for one of another machine, finding out takes `EXPIRY`."""
        while True:
            lives = [self.lives(worker) for worker in self._folder.glob("worker-*")]
            if True in lives or None not in lives:
                return True in lives
            time.sleep(EXPIRY / 60)

    def lives(self, path: Path) -> bool | None:
        """Whether a worker, or the worker of a claim, lives; None if that is not known yet."""
        touched = None
        with contextlib.suppress(OSError):
            own = path.name.startswith("worker-")
            worker = path if own else self._folder / (path.read_text() or path.name)
            with worker.open() as file:
                here = file.readline().strip() == _machine()
                if here and (free := locked(file.fileno(), shared=True)) is not None:
                    return not free
                touched = os.fstat(file.fileno()).st_mtime_ns
        now = time.monotonic()
        before, since = self._watched.setdefault(path.name, (touched, now))
        if touched != before:
            self._watched[path.name] = touched, now
            return True
        return None if now - since < EXPIRY else False


def _machine() -> str:
    """What tells a machine, since it was started, from others."""
    with contextlib.suppress(OSError):
        return _BOOT.read_text().strip()
    return f"{platform.node()} {uuid.getnode()}"
