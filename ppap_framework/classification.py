"""Class names, shared by all guides that classify."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ppap_framework.components import Target, TargetInput
from ppap_framework.errors import UsageError

__all__ = ["class_target", "describe_top_class", "find_class"]

_SHOWN = 8  # candidates in a message


def find_class(text: str, names: Sequence[str], *, is_index: bool = False) -> int:
    """The class that a text means: a name, an index, one of several names, or an unambiguous part.
    The result is its index in the `names` of all K classes.

    Case does not matter, and hyphens and underscores count as spaces. If a name consists of several
    separated by commas, as in ImageNet ("tench, Tinca tinca"), each is accepted. Whole words go
    before other parts: if there is a "hen", it is not the "hen-of-the-woods". A text that
    `is_index` is no name, even if a class is called "3". UsageError if the text means no class or
    several; the hint lists what is close.
    """
    wanted = _plain(text)
    if not wanted:
        raise UsageError("the class to aim at is empty", hint=_examples(names))
    plain = [_plain(name) for name in names]
    if (is_index or wanted not in plain) and re.fullmatch(r"[+-]?[0-9]{1,18}", wanted):
        if 0 <= int(wanted) < len(names):
            return int(wanted)
        fault = f"there is no class {int(wanted)}: they are numbered from 0 to {len(names) - 1}"
        raise UsageError(fault, hint=_examples(names))
    part = re.escape(wanted)
    for pattern in (rf"\A{part}\Z", rf"(\A|, ){part}(, |\Z)", rf"(?<!\w){part}(?!\w)", part):
        found = [index for index, name in enumerate(plain) if re.search(pattern, name)]
        if len(found) == 1:
            return found[0]
        if found:
            listed = ", ".join(f"{names[index]!r} ({index})" for index in found[:_SHOWN])
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            fault = f"class {text!r} is ambiguous: {len(found)} of {len(names)} classes match"
            raise UsageError(fault, hint=f"type the name or the number of one of {listed}{more}")
    whole: dict[str, str] = {}  # class by each of its names and their words
    for name, simple in zip(names, plain, strict=True):
        for word in (simple, *simple.split(", "), *simple.split()):
            whole.setdefault(word, repr(name))
    close = difflib.get_close_matches(wanted, whole, n=3, cutoff=0.6)
    listed = ", ".join(dict.fromkeys(whole[match] for match in close))
    hint = f"did you mean {listed}?" if close else _examples(names)
    raise UsageError(f"there is no class {text[:60]!r} among {len(names)}", hint=hint)


def class_target(
    given: TargetInput, names: Sequence[str], look: Callable[[Tensor], Tensor] | None = None
) -> Target:
    """The class to aim at, or one for each image of a batch: `value` is (1,) or (B,), int64.

    It is given as text, as in `find_class`; as an array of class indices, () or (B,); or as a
    picture, whose class is predicted by `look`, a function from images (1, 3, H, W) in [-1, 1] to
    logits (1, K). UsageError for anything else.
    """
    if given.image is not None and look is not None:
        picture = given.pixels()
        with torch.no_grad():
            index = int(look(picture[None])[0].argmax())
        seen = f"{_first_name(names[index])}{given.source and f', as in {given.source}'}"
        return Target(value=torch.tensor([index]), label=seen, picture=picture)
    if given.text is not None:
        index = find_class(given.text, names, is_index=given.is_index)
        return Target(value=torch.tensor([index]), label=_first_name(names[index]))
    if given.array is None or given.array.ndim > 1 or given.array.numel() == 0:
        what = "a picture" if given.array is None else f"an array of {tuple(given.array.shape)}"
        fault = f"a classifier cannot aim at {what}{given.source and f' ({given.source})'}"
        raise UsageError(fault, hint=_examples(names))
    numbers = given.array.reshape(-1)
    value = numbers.to(torch.int64)
    if bool(((value != numbers) | (value < 0) | (value >= len(names))).any()):
        fault = f"target classes must be whole numbers from 0 to {len(names) - 1}"
        raise UsageError(fault, hint=_examples(names))
    distinct = list(set(value.tolist()))
    label = _first_name(names[distinct[0]]) if len(distinct) == 1 else f"{len(distinct)} classes"
    return Target(value=value, label=label)


def describe_top_class(logits: Tensor, names: Sequence[str]) -> list[str]:
    """First name and probability of the likeliest class, "red cube 0.97"; logits are (B, K)."""
    top = logits.detach().float().softmax(-1).cpu().max(-1)
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [f"{_first_name(names[index])} {probability:.2f}" for index, probability in pairs]


def _plain(name: str) -> str:
    return " ".join(re.sub(r"(?<=\w)[_-]+(?=\w)", " ", name).casefold().split())


def _first_name(name: str) -> str:
    return name.split(",")[0]


def _examples(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return f"type a class by name or number: {shown}{', ...' if len(names) > 3 else ''}"
