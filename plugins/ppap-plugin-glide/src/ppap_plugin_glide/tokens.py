"""From texts to tokens, by a `tokenizer.json` that a checkpoint brings (Hugging Face tokenizers).

GLIDE reads the lowered text as it is: no token marks its start or end, what does not fit is cut,
and the last token of the vocabulary pads. So the empty text is all padding: the unconditional one.
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

START, END = "<|startoftext|>", "<|endoftext|>"  # of a text that CLIP reads


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
    """A tokenizer from the object that its `tokenizer.json` is.

    Raises:
        ValueError: Where it is none.
    """
    try:
        tokenizer = Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the library raises bare Exceptions
        raise ValueError(f"'tokenizer' is no tokenizer.json: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def checked_text(text: str) -> str:
    """A text that can be tokenized: itself.

    Raises:
        UsageError: Where it is no Unicode text, such as a damaged command line gives.
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
        tokenizer: Whose vocabulary ends with the token that pads.
        vocabulary: How many tokens the network knows.
        context: L, tokens of a text, padding included.

    Raises:
        ValueError: Where the network knows another number of tokens.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, context: int) -> None:
        if (size := tokenizer.get_vocab_size()) != vocabulary:
            raise ValueError(f"the tokenizer has {size} tokens, and the network knows {vocabulary}")
        self._tokenizer = tokenizer
        self._padding = vocabulary - 1
        self._context = context
        self._cut: set[str] = set()

    def __call__(self, texts: Sequence[str]) -> Texts:
        """Tokenize texts; what does not fit is cut, with one warning in the log for each text.

        Raises:
            UsageError: Where one is no Unicode text.
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
        """All tokens of one text, however many."""
        lowered = checked_text(text).lower()
        ids: list[int] = self._tokenizer.encode(lowered, add_special_tokens=False).ids
        return ids


@final
class ClipTokens:
    """Tokenizes texts as CLIP does: repaired, unescaped, lowered, between a start and an end.

    Args:
        tokenizer: That knows the two tokens which mark start and end.
        vocabulary: How many tokens the network knows, at least.
        context: L, tokens of a text, start, end and padding included.

    Raises:
        ValueError: Where the tokenizer lacks start or end, or the network knows fewer tokens.
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
        """Tokens (1, L), int64, padded with 0, and their number with start and end, (1,).

        Raises:
            UsageError: Where it is no Unicode text.
        """
        ids = [self._start, *self.ids(text)[: self._context - 2], self._end]
        padded = ids + [0] * (self._context - len(ids))
        return torch.tensor([padded]), torch.tensor([len(ids)])

    def ids(self, text: str) -> list[int]:
        """All tokens of a text, however many, without start and end."""
        repaired = html.unescape(html.unescape(ftfy.fix_text(checked_text(text))))
        cleaned = re.sub(r"\s+", " ", repaired).strip().lower()
        ids: list[int] = self._tokenizer.encode(cleaned, add_special_tokens=False).ids
        return ids
