"""Options, without torch."""

from __future__ import annotations

import attrs


@attrs.frozen
class ColourOptions:
    sharpness: float = attrs.field(default=10.0, validator=attrs.validators.gt(0.0))
    upside_down: bool = attrs.field(default=False, validator=attrs.validators.instance_of(bool))
    model: str | None = None


@attrs.frozen
class GreyOptions:
    model: str | None = None
