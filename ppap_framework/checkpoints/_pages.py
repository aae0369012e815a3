"""Memory of mapped files, let go of as soon as a copy has been made.

A page of a mapped file that was read counts as the process's own for as long as the file is mapped,
and the file stays mapped for as long as one of its tensors is used as it lies.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import final

from torch import Tensor

__all__ = ["MappedPages"]

_MAPS = Path("/proc/self/maps")
_DONTNEED = 4  # MADV_DONTNEED: a page of a file is read again when it is asked for


@final
class MappedPages:
    """Where files are mapped in this process; nowhere, on systems that do not say.

    Args:
        paths: Of files whose mappings nobody has written to.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        wanted = {str(path.resolve()) for path in paths}
        self._ranges: list[tuple[int, int]] = []
        self._advise = _madvise()
        if self._advise is None:
            return
        for line in _MAPS.read_text(errors="replace").splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5] in wanted:
                begin, _, end = fields[0].partition("-")
                self._ranges.append((int(begin, 16), int(end, 16)))

    def let_go(self, tensor: Tensor) -> None:
        """Let go of the pages that lie wholly within a tensor, if it lies in one of the files."""
        begin, end = tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()
        mapped = any(low <= begin and end <= high for low, high in self._ranges)
        if self._advise is None or not mapped or not tensor.is_contiguous():
            return
        first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        length = end // mmap.PAGESIZE * mmap.PAGESIZE - first
        if length > 0:
            self._advise(first, length, _DONTNEED)


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if not sys.platform.startswith("linux") or not _MAPS.exists():
        return None
    try:
        advise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return lambda begin, length, advice: int(advise(begin, length, advice))
