"""The config, the preprocessor and the weights of a model."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import attrs
from attrs.validators import instance_of

from ppap_framework.checkpoints import (
    Checkpoint,
    downloading,
    downloads_are_off,
    open_checkpoint,
    read_architecture,
)
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.files import read_json

__all__ = ["find_model"]

_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"
_WEIGHTS = (  # in the order of transformers
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_INDEX = ".index.json"
_MAX_JSON = 10_000_000  # bytes
_HUB = re.compile(r"(?P<repository>[\w][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")


@attrs.frozen(kw_only=True)
class _Architecture:
    config: dict[str, Any] = attrs.field(validator=instance_of(dict))
    preprocessor: dict[str, Any] = attrs.field(factory=dict, validator=instance_of(dict))


def find_model(model: str | None, checkpoint: Checkpoint | None) -> Checkpoint:
    """Find the weights of a model, with its configs as the architecture.

    The architecture is {"config": {...}, "preprocessor": {...}}.

    Args:
        model: A folder, or "owner/name" or "owner/name@revision" of the Hugging Face hub if there
            is no such folder.
        checkpoint: Weights that state their architecture, lie in a folder of their model, or
            belong to `model`.

    Raises:
        UsageError: If the two contradict each other, or `model` is neither a folder nor a hub name.
        AssetError: If a file is missing, damaged, or cannot be downloaded.
    """
    if checkpoint is not None and checkpoint.architecture:
        if model is not None:
            raise UsageError(
                f"{checkpoint.name!r} states which model it is, and cannot be {model!r}",
                hint="leave --guider-model out",
            )
        stated = read_architecture(checkpoint, _Architecture)
        return attrs.evolve(checkpoint, architecture=attrs.asdict(stated))
    if model is not None:
        folder, name = _folder(model, weights=checkpoint is None)
    elif checkpoint is None:
        raise UsageError(
            "no model is named",
            hint="give --guider-model a folder or owner/name of the hub, or --guider-checkpoint"
            " a file",
        )
    elif (checkpoint.path.parent / _CONFIG).is_file():
        folder, name = checkpoint.path.parent, checkpoint.name
    else:
        raise UsageError(
            f"{checkpoint.name!r} does not state which model it is",
            hint=f"put its {_CONFIG} beside it, or name folder or hub model with --guider-model",
        )
    config = _read(folder / _CONFIG)
    preprocessor = _read(folder / _PREPROCESSOR) if (folder / _PREPROCESSOR).is_file() else {}
    return attrs.evolve(
        checkpoint or _weights(folder, name),
        architecture={"config": config, "preprocessor": preprocessor},
    )


def _weights(folder: Path, name: str) -> Checkpoint:
    found = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise AssetError(
            f"folder {str(folder)!r} has a {_CONFIG} and no weights",
            hint=f"put {_WEIGHTS[0]} there, or add --guider-checkpoint FILE",
        )
    paths = _shards(found) if found.name.endswith(_INDEX) else [found]
    for path in paths:
        open_checkpoint(path)
    return Checkpoint(name, dict.fromkeys(paths, ""))


def _shards(index: Path) -> list[Path]:
    named = _read(index).get("weight_map")
    names = [*named.values()] if isinstance(named, dict) else []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise AssetError(
            f"{str(index)!r} does not say in which files beside it the weights are",
            hint="fetch it again",
        )
    return [index.parent / name for name in sorted(set(names))]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise AssetError(
            f"there is no file {str(path)!r}",
            hint=f"a model of transformers is a folder with {_CONFIG} and {_WEIGHTS[0]}",
        )
    small = path.stat().st_size <= _MAX_JSON
    content = read_json(path, hint="fetch it again") if small else None
    if not isinstance(content, dict):
        what = "a JSON object" if small else f"a config: it has more than {_MAX_JSON} bytes"
        raise AssetError(f"{str(path)!r} is not {what}", hint="fetch it again")
    return content


def _folder(model: str, *, weights: bool) -> tuple[Path, str]:
    """The folder of a model, downloaded if necessary, and its name."""
    path = Path(os.path.expanduser(model))  # noqa: PTH111  # pathlib's raises
    if os.path.isdir(path):  # noqa: PTH112  # pathlib's raises
        return path, path.resolve().name
    if os.path.isfile(path):  # noqa: PTH113  # pathlib's raises
        raise UsageError(
            f"model {model!r} is a file",
            hint=f"--guider-model takes its folder, --guider-checkpoint takes {path.name}",
        )
    named = _HUB.fullmatch(model)
    if named is None:
        raise UsageError(
            f"model {model!r} is neither a folder that exists nor a name of the hub",
            hint="give a folder with config.json, or owner/name",
        )
    hint = f"download https://huggingface.co/{named['repository']} elsewhere and give its folder"
    with downloading(f"model {model!r}", hint):
        return _download(named["repository"], named["revision"], weights=weights), model


def _download(repository: str, revision: str | None, *, weights: bool) -> Path:
    """Download only the necessary files of a hub model and return their folder."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    off = downloads_are_off()

    def fetch(name: str) -> Path | None:
        try:
            return Path(hf_hub_download(repository, name, revision=revision))
        except LocalEntryNotFoundError:  # the hub is unreachable and may have the file
            known_missing = try_to_load_from_cache(repository, name, revision=revision) is not None
            if known_missing or (off and name in _WEIGHTS):
                return None
            raise
        except EntryNotFoundError:
            return None

    config = fetch(_CONFIG)
    fetch(_PREPROCESSOR)
    if weights:
        found = next(filter(None, map(fetch, _WEIGHTS)), None)
        if found is None and off:
            raise LocalEntryNotFoundError("no weights")
        if found is not None and found.name.endswith(_INDEX):
            for shard in _shards(found):
                fetch(shard.name)
    if config is None:
        raise AssetError(
            f"https://huggingface.co/{repository} has no {_CONFIG}",
            hint="it is no model of transformers; name another",
        )
    return config.parent
