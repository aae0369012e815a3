"""Parts of a bundle of experts, trained on several machines, become one bundle.

Every part has the shared start in the place of the experts that it did not train, so a tensor is
taken from the part that trained its expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from ppap_framework.errors import AssetError
from ppap_framework.experts import SUFFIX, BundleInfo, verify_bundle, write_bundle
from ppap_framework.files import differences

__all__ = ["found", "merge"]

_AGAIN = "give one part of every K of `--experts-of K/N`, all of the same training"


def found(path: Path) -> Path:
    """The only bundle in a folder of `ppap transfer`, else AssetError; or that file itself."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise AssetError(f"there is no part {str(path)!r}", hint=_AGAIN)
    bundles = [*path.glob(f"*{SUFFIX}")]
    if len(bundles) == 1:
        return bundles[0]
    raise AssetError(
        f"{str(path)!r} holds {len(bundles)} bundles", hint="give the file of the part"
    )


def merge(parts: Sequence[Path], out: Path) -> BundleInfo:
    """Write the bundle that one machine would have made of all experts; AssetError if the parts
    are damaged, of different trainings, or not each expert's one.
    """
    first, trained, state, scores = None, dict[int, Path](), dict[str, Any](), dict[int, Any]()
    for path in parts:
        info, tensors = verify_bundle(path)
        if info.part is None:
            raise AssetError(f"{str(path)!r} is a whole bundle, not a part of one", hint=_AGAIN)
        known = attrs.evolve(info, part=None, metrics={**info.metrics, "experts": []})
        first = first or known
        if differ := differences(attrs.asdict(first), attrs.asdict(known)):
            fault = f"{str(parts[0])!r} and {str(path)!r} are of different trainings"
            raise AssetError(f"{fault}: {'; '.join(differ[:3])}", hint=_AGAIN)
        for expert in info.part:
            if expert in trained:
                both = f"{str(trained[expert])!r} and {str(path)!r}"
                raise AssetError(f"expert {expert} is in both {both}", hint=_AGAIN)
            trained[expert], scores[expert] = path, info.metrics["experts"][expert]
        own = tuple(f"/{expert}." for expert in info.part)
        state |= {name: x for name, x in tensors.items() if f"/{_rest(name)}".startswith(own)}
    assert first is not None  # there is a part
    if missing := sorted({*range(len(first))} - {*trained}):
        fault = f"of {len(first)} experts, no part holds {', '.join(map(str, missing))}"
        raise AssetError(fault, hint=_AGAIN)
    metrics = {**first.metrics, "experts": [scores[k] for k in range(len(first))]}
    merged = attrs.evolve(first, metrics=metrics)
    write_bundle(out, state, merged)
    verify_bundle(out)
    return merged


def _rest(name: str) -> str:
    """A tensor's name, "adapter/expert.name", without its adapter."""
    return name.partition("/")[2]
