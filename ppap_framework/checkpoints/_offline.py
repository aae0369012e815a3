"""Whether anything may be downloaded, and what libraries that download do if not."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from ppap_framework.errors import AssetError

_log = logging.getLogger(__name__)
_off: ContextVar[bool] = ContextVar("ppap_offline", default=False)


def downloads_are_off() -> bool:
    """Whether `$PPAP_OFFLINE` or `without_downloads` forbids downloads."""
    return _off.get() or os.environ.get("PPAP_OFFLINE", "0") not in ("", "0")


@contextlib.contextmanager
def without_downloads(off: bool = True) -> Iterator[None]:
    """A context in which nothing is downloaded and caches are used; no change if `off` is False."""
    before = _off.set(off or _off.get())
    try:
        yield
    finally:
        _off.reset(before)


@contextlib.contextmanager
def downloading(what: str, hint: str, *, here: bool = True) -> Iterator[None]:
    """A context in which a library gets files, called `what`, by itself.

    If downloads are off, the Hugging Face hub's library uses only its cache. It logs nothing of its
    own: failures are raised, and retries are logged once. `hint` says how to get the files by hand;
    `here` whether a copy may be in the library's cache.

    Raises:
        AssetError: If there is no copy and downloads are off, or the download fails in any way.
    """
    off = downloads_are_off()
    absent = AssetError(f"there is no copy of {what}, and downloads are off", hint=hint)
    if off and not here:
        raise absent
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        with _quiet_hub(off):
            yield
    except AssetError:
        raise
    except Exception as error:  # the network, the disk, and the errors of several libraries
        if off and isinstance(error, LocalEntryNotFoundError):
            raise absent from error
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if type(error).__name__ in ("ConnectionError", "ConnectTimeout"):  # long and useless
            reason = "there is no connection"
        raise AssetError(f"cannot download {what}: {reason}", hint=hint) from error


@contextlib.contextmanager
def _quiet_hub(off: bool) -> Iterator[None]:
    from huggingface_hub import constants
    from huggingface_hub.utils import logging as hub_logging

    requests = logging.getLogger("huggingface_hub.utils._http")
    before = constants.HF_HUB_OFFLINE, hub_logging.get_verbosity(), requests.level
    said = False

    def say_once(record: logging.LogRecord) -> bool:
        nonlocal said
        if not said and "[Retry " in record.getMessage():
            said = True
            _log.warning("the hub cannot be reached; trying again for a while")
        return False

    # timm has no argument for this; it also refuses the hub's own requests.
    constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE or off
    hub_logging.set_verbosity(logging.CRITICAL)
    requests.setLevel(logging.WARNING)
    requests.addFilter(say_once)
    try:
        yield
    finally:
        requests.removeFilter(say_once)
        constants.HF_HUB_OFFLINE, verbosity, level = before
        hub_logging.set_verbosity(verbosity)
        requests.setLevel(level)


def in_torch_hub(url: str) -> bool:
    """Whether the cache of `torch.hub` has the file of a URL."""
    import torch

    name = PurePosixPath(urlsplit(url).path).name
    return Path(torch.hub.get_dir(), "checkpoints", name).is_file()
