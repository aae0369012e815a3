"""`ppap ...` typed in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import pytest

from ppap_framework.cli import main


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Run: TypeAlias = Callable[..., Outcome]


def refused(outcome: tuple[int, str, str], code: int, *said: str) -> None:
    """An error and at most a hint, in a line each, that say this; nothing on stdout."""
    found, out, err = outcome
    assert (found, out) == (code, ""), err
    first, *rest = err.splitlines()
    assert first.startswith("ppap: error: ")
    assert "bug" not in first
    assert [line[:6] for line in rest] in ([], ["hint: "])
    for text in said:
        assert text in err


def typed(capsys: pytest.CaptureFixture[str]) -> Run:
    """A function that types a command and gives its exit code and what it printed."""

    def run(*arguments: object) -> Outcome:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        code = caught.value.code
        assert isinstance(code, int)
        return Outcome(code, *capsys.readouterr())

    return run
