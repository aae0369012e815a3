"""Division of a synthetic set into batches and shards (files)."""

from __future__ import annotations

from typing import final

import attrs

from ppap_framework.errors import UsageError


@final
@attrs.frozen
class Layout:
    """Images in batches, and batches in shards; the last of each may be shorter.

    Attributes:
        num: Number of images.
        batch: Batch size, which changes low-order bits.
        shard: Images in a shard; UsageError if it is no multiple of `batch`.
    """

    num: int
    batch: int
    shard: int

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.shard, int) or isinstance(self.shard, bool) or self.shard < 1:
            raise UsageError(
                f"shard must be a whole number from 1, not {self.shard}", hint="leave it out"
            )
        if self.shard % self.batch:
            nearest = max(1, round(self.shard / self.batch)) * self.batch
            raise UsageError(
                f"a shard of {self.shard} images is not made of whole batches of {self.batch}",
                hint=f"use shards of {nearest}, say",
            )

    @property
    def batches(self) -> range:
        return range(-(-self.num // self.batch))

    @property
    def shards(self) -> range:
        return range(-(-self.num // self.shard))

    def batch_images(self, batch: int) -> range:
        return range(batch * self.batch, min((batch + 1) * self.batch, self.num))

    def shard_images(self, shard: int) -> range:
        return range(shard * self.shard, min((shard + 1) * self.shard, self.num))

    def shard_batches(self, shard: int) -> range:
        each = self.shard // self.batch
        return range(shard * each, min((shard + 1) * each, len(self.batches)))
