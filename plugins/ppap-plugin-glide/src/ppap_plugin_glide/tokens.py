"""Tokenizes texts with the checkpoint's `tokenizer.json` (Hugging Face tokenizers).

GLIDE lowercases the text, adds no start or end token, truncates it to the context, and pads with
the last token of the vocabulary. The empty text is therefore all padding: the unconditional text.
"""

from __future__ import annotations

import html
import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, final

import attrs
import ftfy
import torch
from tokenizers import Tokenizer
from torch import Tensor

from ppap_framework.author import UsageError

__all__ = ["ClipTokens", "PromptTokens", "Texts", "checked_text", "read_tokenizer"]

_log = logging.getLogger(__name__)

START, END = "<|startoftext|>", "<|endoftext|>"  # of a CLIP text


@final
@attrs.frozen(eq=False)
class Texts:
    """B tokenized texts.

    Attributes:
        tokens: (B, L), int64.
        mask: (B, L), bool, False where a token is padding.
    """

    tokens: Tensor
    mask: Tensor


def read_tokenizer(content: Mapping[str, Any]) -> Tokenizer:
    """Build a tokenizer from the content of a `tokenizer.json`.

    Raises:
        ValueError: If the content is no tokenizer.
    """
    try:
        tokenizer = Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the library raises bare Exceptions
        raise ValueError(f"'tokenizer' is no tokenizer.json: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def checked_text(text: str) -> str:
    """Return the text unchanged if it can be tokenized.

    Raises:
        UsageError: If the text is not valid Unicode, such as from a damaged command line.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the text {text[:40]!r} holds what is no Unicode character, at {error.start}",
            hint="type it again",
        ) from error
    return text


@final
class PromptTokens:
    """Tokenizes prompts as GLIDE does.

    Args:
        tokenizer: Tokenizer whose last token is the padding token.
        vocabulary: Vocabulary size of the network.
        context: Context length L, padding included.

    Raises:
        ValueError: If the vocabulary sizes differ.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, context: int) -> None:
        if (size := tokenizer.get_vocab_size()) != vocabulary:
            raise ValueError(f"the tokenizer has {size} tokens, and the network knows {vocabulary}")
        self._tokenizer = tokenizer
        self._padding = vocabulary - 1
        self._context = context
        self._cut: set[str] = set()

    def __call__(self, texts: Sequence[str]) -> Texts:
        """Tokenize texts; logs one warning for each text that is truncated.

        Raises:
            UsageError: If a text is not valid Unicode.
        """
        tokens = torch.full((len(texts), self._context), self._padding)
        mask = torch.zeros_like(tokens, dtype=torch.bool)
        for row, text in enumerate(texts):
            ids = self.ids(text)
            if len(ids) > self._context and text not in self._cut:
                self._cut.add(text)
                _log.warning(
                    "the prompt %r has %d tokens, of which the first %d count",
                    text[:40],
                    len(ids),
                    self._context,
                )
            kept = ids[: self._context]
            tokens[row, : len(kept)] = torch.tensor(kept, dtype=torch.int64)
            mask[row, : len(kept)] = True
        return Texts(tokens, mask)

    def ids(self, text: str) -> list[int]:
        """All tokens of one text, before truncation."""
        lowered = checked_text(text).lower()
        ids: list[int] = self._tokenizer.encode(lowered, add_special_tokens=False).ids
        return ids


@final
class ClipTokens:
    """Tokenizes texts as CLIP does: repaired, unescaped, lowercased, with start and end tokens.

    Args:
        tokenizer: Tokenizer with the start and end tokens.
        vocabulary: Vocabulary size of the network, at least that of the tokenizer.
        context: Context length L; includes start, end and padding.

    Raises:
        ValueError: If the tokenizer lacks start or end, or has more tokens than the network.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, context: int) -> None:
        ends = [tokenizer.token_to_id(END), tokenizer.token_to_id(START)]
        if None in ends:
            raise ValueError(f"the tokenizer does not know both {START} and {END}")
        if (size := tokenizer.get_vocab_size()) > vocabulary:
            raise ValueError(f"the tokenizer has {size} tokens, and the network knows {vocabulary}")
        self._tokenizer = tokenizer
        self._end, self._start = ends
        self._context = context

    def __call__(self, text: str) -> tuple[Tensor, Tensor]:
        """Tokens (1, L), int64, padded with 0, and their number (1,), including start and end.

        Raises:
            UsageError: If the text is not valid Unicode.
        """
        ids = [self._start, *self.ids(text)[: self._context - 2], self._end]
        padded = ids + [0] * (self._context - len(ids))
        return torch.tensor([padded]), torch.tensor([len(ids)])

    def ids(self, text: str) -> list[int]:
        """All tokens of a text before truncation, without start and end."""
        repaired = html.unescape(html.unescape(ftfy.fix_text(checked_text(text))))
        cleaned = re.sub(r"\s+", " ", repaired).strip().lower()
        ids: list[int] = self._tokenizer.encode(cleaned, add_special_tokens=False).ids
        return ids
