"""Files of experts as the published PPAP code saves them.

Expert i of N is `{i}_max{N}.ckpt`, the full state dict after training, in a folder named after the
method:

    finetune         one network for all noise levels, fine-tuned with labels
    multi_experts    one such network for each range
    ppap             one network with a low-rank change for each range

Names have the prefix of a wrapper, and an adapted layer is nested in its adapter:

    resnet.layer1.0.bn1.weight             the network's own layer1.0.bn1.weight
    resnet.layer1.0.conv1.conv.weight      layer1.0.conv1.weight, frozen
    resnet.layer1.0.conv1.lora_A, .lora_B  its change

The tensors determine the kind of a file. A contradicting name is an error.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

import attrs
from torch import Tensor

from ppap_framework.checkpoints import open_checkpoint
from ppap_framework.errors import AssetError, UsageError

__all__ = ["Method", "ReleasedFile", "in_order", "method_of", "read_file"]

Method = Literal["multi-experts", "finetune", "ppap"]

_WORDS: dict[Method, str] = {
    "multi-experts": r"multi[-_ ]?experts?",
    "finetune": r"fine[-_ ]?tuned?",
    "ppap": r"ppap",
}
_NUMBERED = re.compile(r"(?P<index>\d+)(?:_iteration\d+)?_max(?P<of>\d+)")
_LOW_RANK = (".lora_A", ".lora_B")


@attrs.frozen(kw_only=True, eq=False)
class ReleasedFile:
    """State of one expert, with the tensor names of the network.

    Attributes:
        path: Path of the file.
        sha256: Hash of the file.
        state: Tensors; the change of a layer NAME is `NAME.weight.lora_A` and
            `NAME.weight.lora_B`.
    """

    path: Path
    sha256: str
    state: Mapping[str, Tensor]

    @property
    def low_rank(self) -> bool:
        """Whether the file holds low-rank changes, not a whole network."""
        return any(name.endswith(_LOW_RANK) for name in self.state)

    @property
    def stated(self) -> Method | None:
        """Method in the name of the file or else of its folder."""
        for name in (self.path.stem, self.path.absolute().parent.name):
            for method, words in _WORDS.items():
                if re.search(words, name, re.IGNORECASE):
                    return method
        return None


def in_order(paths: Sequence[Path]) -> list[Path]:
    """Sort the files of all experts, the least noisy range first.

    The order is that of the numbers in their names, or as given if none has a number.

    Raises:
        UsageError: If files are missing, or there are too many.
    """
    found = [_NUMBERED.fullmatch(path.stem) for path in paths]
    numbers = [(int(match["index"]), int(match["of"])) for match in found if match]
    if not numbers:
        if len({path.absolute() for path in paths}) < len(paths):
            raise UsageError("a file is given twice", hint="give the file of each expert once")
        return list(paths)
    total = numbers[0][1]
    if len(paths) != total or sorted(numbers) != [(index, total) for index in range(total)]:
        raise UsageError(
            f"{', '.join(path.name for path in paths)} are not the files of {total} experts",
            hint=f"give 0_max{total}.ckpt to {total - 1}_max{total}.ckpt, each once",
        )
    return [path for _, path in sorted(zip(numbers, paths, strict=True))]


def read_file(path: Path, own: Collection[str]) -> ReleasedFile:
    """Read a file without executing code in it.

    Args:
        path: Path of the file.
        own: Tensor names of the network.

    Raises:
        AssetError: If the file is missing, damaged, or of another network.
    """
    checkpoint = open_checkpoint(path)
    state = checkpoint.state_dict()
    layers = {name.rpartition(".")[0] for name in state if name.endswith(_LOW_RANK)}
    renamed = {name: _without_adapter(name, layers) for name in state}
    wrapper = _wrapper(renamed.values(), own)
    if wrapper is None:
        raise AssetError(
            f"{str(path)!r} holds none of the {len(own)} tensors of the network",
            hint="it is of another architecture, or no released expert",
        )
    found = {renamed[name].removeprefix(wrapper): tensor for name, tensor in state.items()}
    if len(found) < len(state):
        twice = next(n for n, count in Counter(renamed.values()).items() if count > 1)
        raise AssetError(
            f"{str(path)!r} holds {twice!r} within an adapter and beside it",
            hint="fetch or save it again",
        )
    return ReleasedFile(path=path, sha256=checkpoint.sha256, state=found)


def method_of(files: Sequence[ReleasedFile], method: Method | None = None) -> Method:
    """Training method of all files.

    Args:
        files: The files of all experts.
        method: Method stated by the user; None to infer it from names or tensors.

    Raises:
        AssetError: If a file contradicts the stated method, or files are of different kinds.
        UsageError: If there are several files of one fine-tuned network.
    """
    for file in files:
        said = method or file.stated
        if said is not None and file.low_rank != (said == "ppap"):
            held = "low-rank changes (lora_A, lora_B)" if file.low_rank else "no low-rank changes"
            whose = "asked for" if method else "what its name says"
            raise AssetError(
                f"{str(file.path)!r} is not {whose}: {said!r}, and it holds {held}",
                hint="fetch the right file; if the name is wrong, say --method "
                + ("ppap" if file.low_rank else "multi-experts or --method finetune"),
            )
    stated = {file.stated for file in files} if method is None else {method}
    if len(stated) > 1 or len({file.low_rank for file in files}) > 1:
        kinds = [
            f"{f.path.name} ({f.stated or ('low-rank changes' if f.low_rank else 'whole network')})"
            for f in files
        ]
        raise AssetError(
            f"these are experts of different kinds: {', '.join(kinds)}",
            hint="give the files of one method",
        )
    (said,) = stated
    if said == "finetune" and len(files) > 1:
        raise UsageError(
            f"a fine-tuned network is one file, and these are {len(files)}",
            hint="give one, or say --method multi-experts",
        )
    several: Method = "multi-experts" if len(files) > 1 else "finetune"
    return said or ("ppap" if files[0].low_rank else several)


def _without_adapter(name: str, layers: Collection[str]) -> str:
    layer, _, part = name.rpartition(".")
    if name.endswith(_LOW_RANK):
        return f"{layer}.weight.{part}"
    around, _, _ = layer.rpartition(".")
    return f"{around}.{part}" if around in layers else name


def _wrapper(names: Collection[str], own: Collection[str]) -> str | None:
    """The most frequent prefix before the network's tensor names; None if there is none."""
    before: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in own:
                before[".".join([*parts[:start], ""])] += 1
    return before.most_common(1)[0][0] if before else None
