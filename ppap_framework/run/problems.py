"""Several errors reported as one, so that a command need not be mended error by error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ppap_framework.errors import PpapError

__all__ = ["Problems"]


class Problems:
    """What has been found wrong so far."""

    def __init__(self) -> None:
        self.errors: list[PpapError] = []

    @contextlib.contextmanager
    def collected(self) -> Iterator[None]:
        """A context whose `PpapError` is kept instead of raised."""
        try:
            yield
        except PpapError as error:
            self.errors.append(error)

    def check(self) -> None:
        """Go on only if nothing is wrong.

        Raises:
            PpapError: The error, or all of them in one, of the kind with the lowest exit code: a
                command that is wrong in itself is so whatever else is missing.
        """
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            kind = type(min(self.errors, key=lambda error: error.exit_code))
            messages = dict.fromkeys(error.message for error in self.errors)
            hints = dict.fromkeys(error.hint for error in self.errors if error.hint)
            raise kind("; ".join(messages), hint="; ".join(hints))
