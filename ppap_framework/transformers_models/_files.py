"""Where the config, the preprocessing and the weights of a model are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from torch import Tensor

from ppap_framework.checkpoints import (
    Checkpoint,
    asking_hub,
    downloads_are_off,
    open_checkpoint,
    read_architecture,
)
from ppap_framework.errors import AssetError, UsageError

__all__ = ["ModelFiles", "find_model"]

_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"
_WEIGHTS = (  # in the order of transformers itself
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_INDEX = ".index.json"
_MAX_JSON = 10_000_000  # bytes
_HUB = re.compile(r"(?P<repository>[\w][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")


@attrs.frozen(kw_only=True, eq=False)
class ModelFiles:
    """A model of the transformers library, its containers verified; tensors are read on demand.

    Attributes:
        name: For messages: of the folder, the checkpoint or on the hub.
        config: What `config.json` says.
        preprocessor: What `preprocessor_config.json` says; empty where there is none.
        weights: The files of its weights.
    """

    name: str
    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any]
    weights: tuple[Checkpoint, ...]

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors by name, on the CPU.

        Raises:
            AssetError: Where a file is damaged.
        """
        return {name: tensor for file in self.weights for name, tensor in file.state_dict().items()}


@attrs.frozen(kw_only=True)
class _Architecture:
    """What a checkpoint states."""

    config: dict[str, Any] = attrs.field(validator=attrs.validators.instance_of(dict))
    preprocessor: dict[str, Any] = attrs.field(
        factory=dict, validator=attrs.validators.instance_of(dict)
    )


def find_model(model: str | None, checkpoint: Checkpoint | None) -> ModelFiles:
    """Find a model by what the user says of it.

    Args:
        model: A folder, or "owner/name" or "owner/name@revision" of the Hugging Face hub, which is
            asked only where no such folder is there.
        checkpoint: Weights, which state their architecture, lie in a folder of their model, or
            belong to `model`.

    Raises:
        UsageError: Where the two contradict each other, or `model` is neither folder nor name.
        AssetError: Where a file is missing, damaged, or cannot be had.
    """
    if checkpoint is None:
        if model is None:
            raise UsageError(
                "no model is named",
                hint="give --guider-model a folder or owner/name of the hub, or --guider-checkpoint"
                " a file",
            )
        return _of_folder(*_folder(model, weights=True))
    if checkpoint.architecture:
        if model is not None:
            raise UsageError(
                f"{checkpoint.name!r} says itself which model it is, and cannot be {model!r}",
                hint="leave --guider-model out",
            )
        stated = read_architecture(checkpoint, _Architecture)
        return ModelFiles(
            name=checkpoint.name,
            config=stated.config,
            preprocessor=stated.preprocessor,
            weights=(checkpoint,),
        )
    if model is not None:
        folder, _ = _folder(model, weights=False)
    elif (checkpoint.path.parent / _CONFIG).is_file():
        folder = checkpoint.path.parent
    else:
        raise UsageError(
            f"{checkpoint.name!r} does not say of which model it is",
            hint=f"put its {_CONFIG} beside it, or name folder or hub model with --guider-model",
        )
    return ModelFiles(
        name=checkpoint.name,
        config=_read_json(folder / _CONFIG),
        preprocessor=_preprocessor(folder),
        weights=(checkpoint,),
    )


def _of_folder(folder: Path, name: str) -> ModelFiles:
    config = _read_json(folder / _CONFIG)
    found = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise AssetError(
            f"folder {str(folder)!r} has a {_CONFIG} and no weights",
            hint=f"put {_WEIGHTS[0]} there, or add --guider-checkpoint FILE",
        )
    paths = _shards(found) if found.name.endswith(_INDEX) else [found]
    return ModelFiles(
        name=name,
        config=config,
        preprocessor=_preprocessor(folder),
        weights=tuple(open_checkpoint(path) for path in paths),
    )


def _preprocessor(folder: Path) -> Mapping[str, Any]:
    path = folder / _PREPROCESSOR
    return _read_json(path) if path.is_file() else {}


def _shards(index: Path) -> list[Path]:
    named = _read_json(index).get("weight_map")
    names = sorted(set(named.values())) if isinstance(named, dict) else []
    if not names or any(Path(name).name != name for name in names):
        raise AssetError(
            f"{str(index)!r} does not say in which files beside it the weights are",
            hint="fetch it again",
        )
    return [index.parent / name for name in names]


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise AssetError(
            f"{str(path)!r} is not there",
            hint=f"a model of transformers is a folder with {_CONFIG} and {_WEIGHTS[0]}",
        )
    try:
        if path.stat().st_size > _MAX_JSON:
            raise ValueError(f"more than {_MAX_JSON} bytes")
        content = json.loads(path.read_bytes().decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise AssetError(
            f"{str(path)!r} cannot be read: {reason}", hint="fetch it again"
        ) from error
    if not isinstance(content, dict):
        raise AssetError(f"{str(path)!r} is not a JSON object", hint="fetch it again")
    return content


def _folder(model: str, *, weights: bool) -> tuple[Path, str]:
    """Where the files of a model are, downloaded if they must be, and what to call it."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path, path.resolve().name
    if path.is_file():
        raise UsageError(
            f"model {model!r} is a file",
            hint=f"--guider-model takes its folder, --guider-checkpoint takes {path.name}",
        )
    named = _HUB.fullmatch(model)
    if named is None:
        raise UsageError(
            f"model {model!r} is neither a folder that is there nor a name of the hub",
            hint="give a folder with config.json, or owner/name",
        )
    return _download(model, named["repository"], named["revision"], weights=weights), model


def _download(model: str, repository: str, revision: str | None, *, weights: bool) -> Path:
    """The folder of a hub's model, fetched file by file, and only what is read here."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    off = downloads_are_off()
    missing = AssetError(
        f"model {model!r} is not here, and downloads are off",
        hint=f"download https://huggingface.co/{repository} elsewhere and give its folder",
    )

    def fetch(name: str) -> Path | None:
        try:
            return Path(hf_hub_download(repository, name, revision=revision))
        except LocalEntryNotFoundError:  # it may be there, and the hub cannot be asked
            there_is_none = try_to_load_from_cache(repository, name, revision=revision) is not None
            if there_is_none or (off and name in _WEIGHTS):
                return None
            raise
        except EntryNotFoundError:
            return None

    try:
        with asking_hub():
            config = fetch(_CONFIG)
            fetch(_PREPROCESSOR)
            found = next(filter(None, map(fetch, _WEIGHTS)), None) if weights else None
            if found is not None and found.name.endswith(_INDEX):
                for shard in _shards(found):
                    fetch(shard.name)
    except AssetError:
        raise
    except Exception as error:  # the network, the disk, and the hub's own errors
        if off and isinstance(error, LocalEntryNotFoundError):
            raise missing from error
        reason = " ".join(str(error).split())[:200]
        raise AssetError(
            f"model {model!r} cannot be had from the hub: {type(error).__name__}: {reason}",
            hint=missing.hint,
        ) from error
    if off and weights and found is None:
        raise missing
    if config is None:
        raise AssetError(
            f"https://huggingface.co/{repository} has no {_CONFIG}",
            hint="it is no model of transformers; name another",
        )
    return config.parent
