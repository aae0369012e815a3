"""The end of a process at any change of the file system, without ending one."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest


class Death(BaseException):
    """The end of a process, as far as files can tell."""


class Reaper:
    """Ends a call at its nth change of the file system; after that, nothing changes any more."""

    CHANGES = frozenset({"os.link", "os.rename", "os.remove", "os.mkdir", "os.rmdir"})

    def __init__(self) -> None:
        self.armed, self.left = False, 0
        sys.addaudithook(self.hook)  # for good: Python has no way to remove one

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        creates = event == "open" and arguments[2] & os.O_CREAT
        if creates or event in self.CHANGES:
            self.left -= 1
            if self.left < 0:
                raise Death

    @contextlib.contextmanager
    def after(self, changes: int) -> Iterator[None]:
        self.armed, self.left = True, changes
        try:
            with pytest.MonkeyPatch.context() as patched:  # who goes on is another process
                patched.setattr(os, "getpid", lambda: 1)
                yield
        finally:
            self.armed = False
