"""How a synthetic set is cut: blocks, which are drawn at once, and shards, which are files."""

from __future__ import annotations

from typing import final

import attrs

from ppap_framework.errors import UsageError

__all__ = ["Layout"]


@final
@attrs.frozen
class Layout:
    """Images 0 to `num` - 1 in blocks, and blocks in shards; the last of each may be shorter.

    Attributes:
        num: How many images, at least 1.
        block: Images of a block. A block is drawn as one batch, so it decides on rounding errors.
        shard: Images of a shard, a multiple of `block`.

    Raises:
        UsageError: For other numbers.
    """

    num: int
    block: int
    shard: int

    def __attrs_post_init__(self) -> None:
        for name, value in attrs.asdict(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UsageError(
                    f"{name} must be a whole number from 1, not {value}", hint="leave it out"
                )
        if self.shard % self.block:
            nearest = max(1, round(self.shard / self.block)) * self.block
            raise UsageError(
                f"a shard of {self.shard} images is not made of whole blocks of {self.block}",
                hint=f"use shards of {nearest}, say",
            )

    @property
    def blocks(self) -> range:
        """Their numbers."""
        return range(-(-self.num // self.block))

    @property
    def shards(self) -> range:
        """Their numbers."""
        return range(-(-self.num // self.shard))

    def block_images(self, block: int) -> range:
        """The numbers of a block's images."""
        return range(block * self.block, min((block + 1) * self.block, self.num))

    def shard_images(self, shard: int) -> range:
        """The numbers of a shard's images."""
        return range(shard * self.shard, min((shard + 1) * self.shard, self.num))

    def shard_blocks(self, shard: int) -> range:
        """The numbers of a shard's blocks."""
        each = self.shard // self.block
        return range(shard * each, min((shard + 1) * each, len(self.blocks)))
