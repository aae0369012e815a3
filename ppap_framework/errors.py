"""Errors for the user: one line that names the cause, and a hint what to type instead.

Any other exception is a defect of this project or of a plugin and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

TRACEBACK = "--debug shows the traceback"

_CONTROL = ("ppap_framework.", "torch.utils.checkpoint", "torch._dynamo", "torch._inductor")
"""Modules of exceptions that steer the code around a plugin's."""

_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class PpapError(Exception):
    """A failure: what was passed and why it is wrong, and what to type instead (may be empty)."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(PpapError):
    """An option, an argument or a configuration value that cannot be used."""

    exit_code = 2


class PluginError(PpapError):
    """A plugin that is missing, broken, incompatible, or one of two that claim the same name."""

    exit_code = 3


class AssetError(PpapError):
    """Weights, expert bundles or other files that are missing, damaged or not what they say."""

    exit_code = 4


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The question whether the nearest of the known names was meant; empty if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def must_be(what: str, test: Callable[[Any], object]) -> Callable[[Any, Any, Any], None]:
    """An attrs validator that tests a value; ValueError names the field and `what` it must be."""

    def check(instance: Any, attribute: Any, value: Any) -> None:
        if not test(value):
            raise ValueError(f"{attribute.name} must be {what}, not {value!r:.60}")

    return check


@contextlib.contextmanager
def calling(
    who: str, method: str, given: Sequence[object] = (), *, own: bool = False
) -> Iterator[None]:
    """A context in which what a plugin's code raises becomes a `PluginError`, or a `UsageError` if
    it is the user's `own`, and what a plugin prints goes to stderr. Errors on purpose, Ctrl-C and
    out-of-memory errors pass. The hint has the shapes of `given` tensors.
    """
    stdout: Any = contextlib.nullcontext() if own else contextlib.redirect_stdout(sys.stderr)
    try:
        with stdout:
            yield
    except (PpapError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # SystemExit, too: no plugin may end the host
        if is_out_of_memory(error) or type(error).__module__.startswith(_CONTROL):
            raise
        shapes = [str(tuple(x.shape)) for x in given if hasattr(x, "shape")]
        hint = f"it was given {' and '.join(shapes)}; {TRACEBACK}" if shapes else TRACEBACK
        reason = f"{who} failed{f' in {method}' if method else ''}: {one_line(error)}"
        raise (UsageError if own else PluginError)(reason, hint=hint) from error


def one_line(error: BaseException) -> str:
    """The type and the message of an exception in one line."""
    try:
        lines = str(error).strip().splitlines()
        scripted = lines and "TorchScript" in lines[0]  # it says what happened last
        message = " ".join(" ".join(lines[-1:] if scripted else lines).split())[:300]
    except Exception:
        message = ""
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


class Problems:
    """Errors that are collected and reported together."""

    def __init__(self) -> None:
        self.errors: list[PpapError] = []

    def add(self, message: str, hint: str = "") -> None:
        """Collect a `UsageError`."""
        self.errors.append(UsageError(message, hint=hint))

    @contextlib.contextmanager
    def collected(self) -> Iterator[None]:
        """A context whose `PpapError` is collected instead of raised."""
        try:
            yield
        except PpapError as error:
            self.errors.append(error)

    def attempt(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """The result of a call; None if it raises a `PpapError`, which is collected."""
        with self.collected():
            return call(*arguments, **options)

    def check(self) -> None:
        """Raise the collected error, or all in one, of the type with the lowest exit code."""
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            kind = type(min(self.errors, key=lambda error: error.exit_code))
            messages = dict.fromkeys(error.message for error in self.errors)
            hints = dict.fromkeys(error.hint for error in self.errors if error.hint)
            raise kind("; ".join(messages), hint="; ".join(hints))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is out-of-memory, on any device."""
    # torch's error is matched by name, since importing torch takes seconds; on the CPU and on MPS
    # it is matched by its message.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
