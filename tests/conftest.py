"""Settings of all tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from hypothesis import settings

from ppap_framework.cli import main

# The first example pays for lazy imports, and machines differ: time is no property of ours.
settings.register_profile("ppap", deadline=None)
settings.load_profile("ppap")


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Types `ppap ...` in this process."""

    def ppap(*arguments: object) -> Outcome:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        assert isinstance(ended.value.code, int)
        return Outcome(ended.value.code, *capsys.readouterr())

    return ppap


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What whoever runs the tests has downloaded or trained is none of theirs."""
    before = os.environ.get("PPAP_CACHE_DIR")
    os.environ["PPAP_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("PPAP_CACHE_DIR")
    if before is not None:
        os.environ["PPAP_CACHE_DIR"] = before
