"""Which of a schedule's T base timesteps a shorter process keeps.

An even stride from 0 (`ddimN`; Song et al. 2021, arXiv 2010.02502, appendix D), or equal sections,
each thinned to its own count with its ends kept (Nichol and Dhariwal 2021, arXiv 2102.09672,
section 4).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from ppap_framework.errors import UsageError

_FAST27 = (10, 10, 3, 2, 2)


def space_timesteps(num_timesteps: int, respacing: str | Sequence[int]) -> list[int]:
    """The kept timesteps, rising; UsageError if T timesteps cannot be spaced so.

    Args:
        num_timesteps: T.
        respacing: "" for all; "25", "10,10,5" or [10, 10, 5] for the count in each of as many
            sections; "ddim25" for 25 at the smallest even stride; "fast27" for GLIDE's upsampler.
    """
    if respacing == "":
        return list(range(num_timesteps))
    if respacing == "fast27":
        kept = space_timesteps(num_timesteps, _FAST27)
        return sorted({*kept[:-1], num_timesteps - 3})
    text = respacing if isinstance(respacing, str) else ",".join(map(str, respacing))
    # [0-9] only: `int` would also take signs, underscores and other scripts' digits.
    if not (match := re.fullmatch(r"(ddim)?(\s*[0-9]+\s*)((,\s*[0-9]+\s*)*)", text)) or (
        match[1] and match[3]
    ):
        raise UsageError(
            f"respacing {respacing!r} is not understood",
            hint='use counts such as "25" or "10,10,5", "ddim25", "fast27", or "" for all',
        )
    if not match[1]:
        return _sections(num_timesteps, [int(count) for count in text.split(",")])
    count = int(match[2])
    if (stride := _even_stride(num_timesteps, count)) is None:
        raise UsageError(
            f"no even stride over {num_timesteps} timesteps gives {count}",
            hint=f"use {count} instead of {text}, or another number",
        )
    return list(range(0, num_timesteps, stride))


def timesteps_for(num_timesteps: int, steps: int) -> list[int]:
    """`steps` rising timesteps: at an even stride if there is one, else in one section.

    A single step begins at the noisiest timestep. UsageError if `steps` is not in [1, T].
    """
    if not 1 <= steps <= num_timesteps:
        raise UsageError(
            f"cannot sample in {steps} steps", hint=f"use a number from 1 to {num_timesteps}"
        )
    if steps == 1:
        return [num_timesteps - 1]
    stride = _even_stride(num_timesteps, steps)
    return list(range(0, num_timesteps, stride)) if stride else _sections(num_timesteps, [steps])


def _even_stride(num_timesteps: int, count: int) -> int | None:
    """The smallest stride below T that visits `count` of range(T), starting at 0."""
    if count < 1:
        return None
    stride = -(-num_timesteps // count)
    return stride if stride < num_timesteps and -(-num_timesteps // stride) == count else None


def _sections(num_timesteps: int, counts: list[int]) -> list[int]:
    if not any(counts):
        raise UsageError("a respacing must keep at least one timestep")
    size, longer = divmod(num_timesteps, len(counts))
    bounds = [section * size + min(section, longer) for section in range(len(counts) + 1)]
    kept: list[int] = []
    for (start, stop), count in zip(pairwise(bounds), counts, strict=True):
        if count > stop - start:
            raise UsageError(
                f"cannot keep {count} timesteps of a section that has {stop - start}",
                hint=f"the {num_timesteps} timesteps are cut into {len(counts)} sections",
            )
        stride = (stop - start - 1) / (count - 1) if count > 1 else 1.0
        # Like the published spacings, which trained networks have seen: the stride is summed, not
        # multiplied, and halves are rounded to even.
        position = 0.0
        for _ in range(count):
            kept.append(start + round(position))
            position += stride
    return kept
