"""Tokenizers of models that read text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ppap_framework.checkpoints import Checkpoint, downloading, downloads_are_off
from ppap_framework.errors import AssetError
from ppap_transformers._files import _HUB, _folder
from ppap_transformers._network import quiet

__all__ = ["load_tokenizer"]

_FILES = (  # any of them may be missing; the first alone is enough
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)


def load_tokenizer(model: str | None, checkpoint: Checkpoint | None) -> Any:
    """The tokenizer of a model that `find_model` found, as an object of transformers.

    Args:
        model: As for `find_model`. Its files are in the model's folder, or on the hub.
        checkpoint: If no model is named, the checkpoint beside which they are.

    Raises:
        AssetError: If there is none, it is damaged, needs code of its own, or cannot be downloaded.
    """
    from transformers import AutoTokenizer

    if model is not None:
        folder, name = _folder(model, weights=False)
        if not Path(model).expanduser().is_dir():
            _download(model)
    else:
        assert checkpoint is not None
        folder, name = checkpoint.path.parent, checkpoint.name
    if not any((folder / file).is_file() for file in _FILES):
        raise AssetError(
            f"{name!r} has no tokenizer beside it",
            hint=f"put {_FILES[0]} into {str(folder)!r}, as transformers saves it",
        )
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # each tokenizer class has its own checks
        reason = " ".join(str(error).split())[:200]
        raise AssetError(
            f"the tokenizer of {name!r} cannot be loaded: {type(error).__name__}: {reason}",
            hint="its files are damaged, or want code or a package of their own",
        ) from error


def _download(model: str) -> None:
    """Download the tokenizer's files into the folder of a hub model."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    named = _HUB.fullmatch(model)
    assert named is not None
    repository, revision = named["repository"], named["revision"]

    def fetch(file: str) -> None:
        try:
            hf_hub_download(repository, file, revision=revision)
        except LocalEntryNotFoundError:  # the hub is unreachable and may have the file
            known = try_to_load_from_cache(repository, file, revision=revision) is not None
            if not (known or downloads_are_off()):
                raise
        except EntryNotFoundError:
            pass

    hint = f"download https://huggingface.co/{repository} elsewhere and give its folder"
    with downloading(f"the tokenizer of {model!r}", hint):
        for file in _FILES:
            fetch(file)
