"""Tokens of GLIDE and of its noised CLIP, against those of the published tokenizers."""

from __future__ import annotations

from typing import Any

import pytest

from ppap_plugin_glide.tokens import ClipTokens, PromptTokens, read_tokenizer
from ppap_plugin_glide.vocabularies import clip_tokenizer, gpt2_tokenizer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parity("tokens")
def test_prompts(record: dict[str, Any]) -> None:
    tokenizer = read_tokenizer(gpt2_tokenizer())
    tokens = {context: PromptTokens(tokenizer, record["n_vocab"], context) for context in (16, 128)}
    for case in record["cases"]:
        prompt = bytes.fromhex(case["prompt_utf8_hex"]).decode()
        assert tokens[128].ids(prompt) == case["tokens"], prompt
        for context, read in tokens.items():
            texts = read([prompt])
            assert texts.tokens.tolist() == [case[f"padded_{context}"]]
            assert int(texts.mask.sum()) == min(context, case["n_tokens"])
        assert tokens[16]([prompt]).mask[0].tolist() == [bool(m) for m in case["mask_16"]]
    assert tokens[128]([""]).tokens.unique().tolist() == [record["padding_token"]]


@pytest.mark.parity("tokens")
def test_texts_for_the_noised_clip(record: dict[str, Any]) -> None:
    stated = record["clip_tokenizer"]
    tokenizer = read_tokenizer(clip_tokenizer())
    assert tokenizer.get_vocab_size() == stated["n_vocab_table"]
    read = ClipTokens(tokenizer, 65536, 77)
    for case in record["cases"]:
        prompt = bytes.fromhex(case["prompt_utf8_hex"]).decode()
        assert read.ids(prompt) == case["clip_tokens"], prompt
        tokens, length = read(prompt)
        assert tokens.tolist() == [case["clip_padded_77"]]
        assert length.tolist() == [case["clip_len"]]
