"""From the architecture that a checkpoint states to a record that a factory builds from."""

from __future__ import annotations

from typing import TypeVar

import attrs

from ppap_framework.checkpoints._checkpoint import Checkpoint
from ppap_framework.errors import AssetError, UsageError

__all__ = ["read_architecture"]

_Record = TypeVar("_Record", bound=attrs.AttrsInstance)


def read_architecture(checkpoint: Checkpoint, record: type[_Record]) -> _Record:
    """The architecture of a checkpoint as an attrs record, every value checked by its validators.

    Args:
        checkpoint: Of any origin.
        record: An attrs class, whose fields are what must and what may be stated.

    Raises:
        AssetError: Where nothing is stated, a field is missing, one is unknown, or a validator or
            converter objects.
    """
    stated, fields = checkpoint.architecture, attrs.fields(record)
    required = [field.name for field in fields if field.default is attrs.NOTHING]
    if not stated:
        raise AssetError(
            f"{checkpoint.name!r} does not state its architecture",
            hint="name what it is, as CARD=PATH with a card of `ppap checkpoints list`; "
            "ppap_framework.checkpoints.save_checkpoint writes a file that says it",
        )
    missing = [name for name in required if name not in stated]
    unknown = [name for name in stated if name not in {field.name for field in fields}]
    if missing or unknown:
        faults = [
            f"{fault} {', '.join(map(repr, names[:6]))}"
            for fault, names in (("lacks", missing), ("has unknown", unknown))
            if names
        ]
        raise AssetError(
            f"{checkpoint.name!r} is of another architecture: what it states {', '.join(faults)}",
            hint=f"{', '.join(required)} must be stated",
        )
    try:
        return record(**stated)
    except (TypeError, ValueError, UsageError) as error:
        reason = error.message if isinstance(error, UsageError) else str(error.args[0])
        reason = " ".join(reason.replace(".__init__()", "").split())
        raise AssetError(
            f"{checkpoint.name!r} states an architecture that cannot be: {reason}",
            hint="correct it and save the checkpoint again",
        ) from error
