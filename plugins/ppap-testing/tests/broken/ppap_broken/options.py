import attrs


@attrs.frozen
class Undescribed:
    """Options."""

    width: int = 3


@attrs.frozen
class Untyped:
    """Options.

    Attributes:
        width: Pixels.
    """

    width = attrs.field(default=3)
