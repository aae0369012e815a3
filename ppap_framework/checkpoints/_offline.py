"""Whether anything may be downloaded, for whatever would: cards here, and networks of libraries."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from ppap_framework.errors import AssetError

__all__ = [
    "asking_hub",
    "asking_torch_hub",
    "downloads_are_off",
    "in_torch_hub",
    "without_downloads",
]

_log = logging.getLogger(__name__)
_off: ContextVar[bool] = ContextVar("ppap_offline", default=False)


def downloads_are_off() -> bool:
    """Whether `$PPAP_OFFLINE` says so, or `without_downloads`."""
    return _off.get() or os.environ.get("PPAP_OFFLINE", "0") not in ("", "0")


@contextlib.contextmanager
def without_downloads(off: bool = True) -> Iterator[None]:
    """A context in which nothing is downloaded; what is in caches is used.

    Args:
        off: Whether it is so; else all stays as it is outside.
    """
    before = _off.set(off or _off.get())
    try:
        yield
    finally:
        _off.reset(before)


@contextlib.contextmanager
def asking_hub() -> Iterator[None]:
    """A context in which libraries that ask the Hugging Face hub do not log what fails, since it is
    raised too, and look into its cache alone where downloads are off. That the hub is asked again
    for a while is said once.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import logging as told

    offline, verbosity = constants.HF_HUB_OFFLINE, told.get_verbosity()
    requests = logging.getLogger("huggingface_hub.utils._http")
    level, said = requests.level, False

    def say_once(record: logging.LogRecord) -> bool:
        nonlocal said
        if not said and "[Retry " in record.getMessage():
            said = True
            _log.warning("the hub cannot be reached; trying again for a while")
        return False

    # timm has no argument for it, and the hub's own requests are all refused by this.
    constants.HF_HUB_OFFLINE = offline or downloads_are_off()
    told.set_verbosity(logging.CRITICAL)
    requests.setLevel(logging.WARNING)
    requests.addFilter(say_once)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        requests.removeFilter(say_once)
        requests.setLevel(level)
        told.set_verbosity(verbosity)


@contextlib.contextmanager
def asking_torch_hub(model: str, url: str) -> Iterator[None]:
    """A context in which torchvision loads its weights of a model.

    Args:
        model: As it was asked for.
        url: Of the weights, which are downloaded where they are not yet here.

    Raises:
        AssetError: Where they cannot be had; names the address.
    """
    hint = f"download {url} elsewhere, then add --guider-checkpoint FILE"
    if downloads_are_off() and not in_torch_hub(url):
        raise AssetError(
            f"torchvision's weights of {model!r} are not here, and downloads are off", hint=hint
        )
    try:
        yield
    except Exception as error:  # the network, the disk, and whatever comes back
        reason = " ".join(str(error).split())[:200]
        raise AssetError(
            f"torchvision's weights of {model!r} cannot be had: {type(error).__name__}: {reason}",
            hint=hint,
        ) from error


def in_torch_hub(url: str) -> bool:
    """Whether the cache of `torch.hub` has the file of a URL."""
    import torch

    name = PurePosixPath(urlsplit(url).path).name
    return Path(torch.hub.get_dir(), "checkpoints", name).is_file()
