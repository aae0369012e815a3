"""A bundle of which any byte is not as it was written is refused, with the reason."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import torch
from experts_toy import Backend, TinyGuide, make_adapter, trained
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from ppap_framework.checkpoints import open_checkpoint, write_safetensors
from ppap_framework.errors import AssetError
from ppap_framework.experts import load_bundle, save_bundle, verify_bundle

SEAL = re.compile(rb'"ppap\.sha256":"([0-9a-f]{64})"')
many = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def refusal(path: Path) -> str:
    with pytest.raises(AssetError) as caught:
        load_bundle(path, TinyGuide(), Backend(), make_adapter=make_adapter)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value.message


def bundle(path: Path, seed: int = 0) -> Path:
    save_bundle(path, *trained(TinyGuide(), Backend(), seed=seed))
    return path


def seal(path: Path) -> None:
    """What somebody would do who wants a changed file to pass for a sound one."""
    content = path.read_bytes()
    at = SEAL.search(content)
    assert at
    opened = content[: at.start(1)] + b"0" * 64 + content[at.end(1) :]
    digest = hashlib.sha256(opened).hexdigest().encode()
    path.write_bytes(content[: at.start(1)] + digest + content[at.end(1) :])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return bundle(tmp_path / "toy.experts.safetensors")


def test_the_digest_is_of_the_whole_file_with_the_digest_zeroed(path: Path) -> None:
    before = path.read_bytes()
    seal(path)
    assert path.read_bytes() == before
    assert len(load_file(path)) == 9  # and any reader of safetensors can read it


@many
@given(data=st.data())
def test_a_flipped_byte_anywhere(path: Path, data: st.DataObject) -> None:
    content = bundle(path).read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    # The header is what can be misread; tensors are the same all over.
    position = data.draw(st.integers(0, header - 1) | st.integers(0, len(content) - 1))
    flip = data.draw(st.integers(1, 255))
    path.write_bytes(
        content[:position] + bytes([content[position] ^ flip]) + content[position + 1 :]
    )
    refusal(path)


def test_every_bit_of_the_digest_and_around_it(path: Path) -> None:
    content = path.read_bytes()
    at = SEAL.search(content)
    assert at
    for position in range(at.start() - 2, at.end() + 2):
        for bit in range(8):
            changed = bytearray(content)
            changed[position] ^= 1 << bit
            path.write_bytes(changed)
            with pytest.raises(AssetError):
                verify_bundle(path)


@many
@given(data=st.data())
def test_truncation_at_any_length(path: Path, data: st.DataObject) -> None:
    content = bundle(path).read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    length = data.draw(st.integers(0, header) | st.integers(0, len(content) - 1))
    path.write_bytes(content[:length])
    refusal(path)


@pytest.mark.parametrize("more", [b"\0", b" ", b"\0" * 64])
def test_something_behind_the_end(path: Path, more: bytes) -> None:
    path.write_bytes(path.read_bytes() + more)
    assert "safetensors" in refusal(path)


def test_a_space_for_a_tab_in_the_padding(path: Path) -> None:
    # Still valid JSON that says the same: only the digest can tell.
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for extra in range(8):
        experts, info = trained(TinyGuide(), Backend())
        save_bundle(path, experts, attrs.evolve(info, recipe={"note": "x" * extra}))
        content = path.read_bytes()
        header = 8 + int.from_bytes(content[:8], "little")
        if content[header - 1 : header] == b" ":
            break
    path.write_bytes(content[: header - 1] + b"\t" + content[header:])
    assert "changed after it was written" in refusal(path)


def test_tensors_of_another_bundle(path: Path, tmp_path: Path) -> None:
    # The same shapes, so that the header fits without a change.
    mine, other = path.read_bytes(), bundle(tmp_path / "b.experts.safetensors", 1).read_bytes()
    header = 8 + int.from_bytes(mine[:8], "little")
    assert len(mine) == len(other)
    path.write_bytes(mine[:header] + other[header:])
    assert "changed after it was written" in refusal(path)


def test_tensors_of_another_bundle_with_a_header_made_to_fit(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "b.experts.safetensors"
    save_bundle(other, *trained(TinyGuide(), Backend(), number=2, seed=1))
    metadata = dict(open_checkpoint(path).metadata)
    write_safetensors(path, load_file(other), metadata)
    assert "changed after it was written" in refusal(path)
    seal(path)  # which anybody can; what is said and what is there still disagree
    assert "expert 2 has no tensors of 'shift'" in refusal(path)


def test_tensors_of_an_expert_for_a_wider_network(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "b.experts.safetensors"
    save_bundle(other, *trained(TinyGuide(width=8), Backend()))
    write_safetensors(path, load_file(other), dict(open_checkpoint(path).metadata))
    assert "changed after it was written" in refusal(path)
    seal(path)
    assert "do not fit: '0.0.bias' has another shape" in refusal(path)


def test_two_experts_that_changed_places(path: Path) -> None:
    metadata, state = dict(open_checkpoint(path).metadata), load_file(path)
    swap = {"0": "1", "1": "0", "2": "2"}
    swapped = {f"shift/{swap[k[6]]}{k[7:]}": v.clone() for k, v in state.items()}
    write_safetensors(path, swapped, metadata)
    assert "changed after it was written" in refusal(path)


def test_another_guide_s_bundle(path: Path) -> None:
    save_bundle(path, *trained(TinyGuide(seed=3), Backend()))
    assert "guide: they are for the weights of look 'first'" in refusal(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.pop("ppap.experts"), "is no bundle of experts"),
        (lambda m: m.update({"ppap.experts": "{"}), "cannot be used"),
        (lambda m: m.update({"ppap.experts": '{"format": 9}'}), "format 9"),
        (
            lambda m: m.update(
                {"ppap.experts": json.dumps(json.loads(m["ppap.experts"]) | {"seed": None})}
            ),
            "seed: it must be a whole number",
        ),
    ],
)
def test_a_sealed_file_that_says_nonsense(
    path: Path, change: Callable[[dict[str, str]], object], words: str
) -> None:
    metadata, state = dict(open_checkpoint(path).metadata), load_file(path)
    change(metadata)
    write_safetensors(path, {k: v.clone() for k, v in state.items()}, metadata)
    seal(path)
    assert words in refusal(path)


def test_a_tensor_too_many(path: Path) -> None:
    metadata, state = dict(open_checkpoint(path).metadata), load_file(path)
    state = {k: v.clone() for k, v in state.items()} | {"shift/3.0.bias": torch.ones(4)}
    write_safetensors(path, state, metadata)
    seal(path)
    assert "tensor 'shift/3.0.bias' is of no expert" in refusal(path)


def test_an_ordinary_checkpoint(path: Path) -> None:
    write_safetensors(path, {"weight": torch.ones(2)}, {})
    assert "carries no SHA-256 of itself" in refusal(path)
