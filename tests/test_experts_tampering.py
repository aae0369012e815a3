"""A bundle is written whole, and refused if any byte is not as it was written."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import torch
from experts_toy import Backend, TinyGuide, make_adapter, trained
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

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


def bundle(path: Path, seed: int = 0, **changes: int) -> Path:
    model = TinyGuide(width=changes.pop("width", 4), seed=changes.pop("network", 0))
    save_bundle(path, *trained(model, Backend(), seed=seed, **changes))
    return path


def header_of(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


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


@pytest.mark.parametrize("cut", [False, True])
@many
@given(data=st.data())
def test_a_flipped_byte_or_the_end_anywhere(path: Path, cut: bool, data: st.DataObject) -> None:
    content = bundle(path).read_bytes()
    # The header is what can be misread; tensors are the same all over.
    at = data.draw(st.integers(0, header_of(content) - 1) | st.integers(0, len(content) - 1))
    flipped = bytes([content[at] ^ data.draw(st.integers(1, 255))]) + content[at + 1 :]
    path.write_bytes(content[:at] + (b"" if cut else flipped))
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


@pytest.mark.parametrize("more", [b"\0", b" ", b"\0" * 64])
def test_something_behind_the_end(path: Path, more: bytes) -> None:
    path.write_bytes(path.read_bytes() + more)
    assert "safetensors" in refusal(path)


def test_a_space_for_a_tab_in_the_padding(path: Path) -> None:
    # Still valid JSON that says the same: only the digest can tell.
    for extra in range(8):
        experts, info = trained(TinyGuide(), Backend())
        save_bundle(path, experts, attrs.evolve(info, recipe={"note": "x" * extra}))
        content = path.read_bytes()
        header = header_of(content)
        if content[header - 1 : header] == b" ":
            break
    path.write_bytes(content[: header - 1] + b"\t" + content[header:])
    assert "changed after it was written" in refusal(path)


def test_tensors_of_another_bundle(path: Path, tmp_path: Path) -> None:
    # The same shapes, so that the header fits without a change.
    mine, other = path.read_bytes(), bundle(tmp_path / "b.experts.safetensors", 1).read_bytes()
    assert len(mine) == len(other)
    path.write_bytes(mine[: header_of(mine)] + other[header_of(mine) :])
    assert "changed after it was written" in refusal(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"number": 2, "seed": 1}, "expert 2 has no tensors of 'shift'"),
        ({"width": 8}, "do not fit: '0.0.bias' has another shape"),
    ],
)
def test_tensors_of_another_bundle_under_a_header_made_to_fit(
    path: Path, tmp_path: Path, change: dict[str, int], words: str
) -> None:
    other = bundle(tmp_path / "b.experts.safetensors", **change)
    write_safetensors(path, load_file(other), dict(open_checkpoint(path).metadata))
    assert "changed after it was written" in refusal(path)
    seal(path)  # which anybody can; the description and the tensors still disagree
    assert words in refusal(path)


def test_another_guide_s_bundle(path: Path) -> None:
    bundle(path, network=3)
    assert "guide: they are for the weights of look 'first'" in refusal(path)


Change = Callable[[dict[str, str], dict[str, Tensor]], object]


def described(**change: object) -> Change:
    def apply(metadata: dict[str, str], state: dict[str, Tensor]) -> None:
        metadata["ppap.experts"] = json.dumps(json.loads(metadata["ppap.experts"]) | change)

    return apply


def swap(metadata: dict[str, str], state: dict[str, Tensor]) -> None:
    other = {"0": "1", "1": "0", "2": "2"}
    swapped = {f"shift/{other[key[6]]}{key[7:]}": tensor for key, tensor in state.items()}
    state.update({key: tensor.clone() for key, tensor in swapped.items()})


@pytest.mark.parametrize(
    ("change", "sealed", "words"),
    [
        (swap, False, "changed after it was written"),
        (lambda m, s: m.pop("ppap.experts"), True, "is no bundle of experts"),
        (lambda m, s: m.update({"ppap.experts": "{"}), True, "cannot be used"),
        (lambda m, s: m.update({"ppap.experts": '{"format": 9}'}), True, "format 9"),
        (described(seed=None), True, "seed: it must be a whole number"),
        (
            lambda m, s: s.update({"shift/3.0.bias": torch.ones(4)}),
            True,
            "tensor 'shift/3.0.bias' is of no expert",
        ),
        (lambda m, s: (m.clear(), s.clear()), False, "carries no SHA-256 of itself"),
    ],
)
def test_a_file_that_was_written_anew(path: Path, change: Change, sealed: bool, words: str) -> None:
    metadata = dict(open_checkpoint(path).metadata)
    state = {key: tensor.clone() for key, tensor in load_file(path).items()}
    change(metadata, state)
    write_safetensors(path, state, metadata)
    if sealed:
        seal(path)
    assert words in refusal(path)


_SCRIPT = """
import os, random, signal, sys, time
from pathlib import Path

import torch

torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from experts_toy import Backend, TinyGuide, trained
from ppap_framework.experts import save_bundle, verify_bundle

path, kills = Path(sys.argv[2]), int(sys.argv[3])
# Megabytes, so that writing takes its time and is what most kills interrupt.
versions = [
    trained(TinyGuide(width=1 << 14), Backend(), seed=seed, ending="") for seed in (0, 1)
]
contents = []
for experts, info in versions:
    save_bundle(path, experts, info)
    contents.append(path.read_bytes())
assert contents[0] != contents[1]

random.seed(int(sys.argv[4]))
interrupted = 0
for _ in range(kills):
    writer = os.fork()
    if writer == 0:
        while True:
            for experts, info in versions:
                save_bundle(path, experts, info)
    first = path.stat().st_ino
    while path.stat().st_ino == first:
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.1))
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    assert path.read_bytes() in contents, "neither the old one nor the new one"
    verify_bundle(path)
    left = [entry for entry in path.parent.iterdir() if entry != path]
    assert not any(entry.name.endswith(".experts.safetensors") for entry in left), left
    interrupted += bool(left)
    for entry in left:
        entry.unlink()
print(interrupted)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="writers are forked, so that killing is quick")
@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_writers(tmp_path: Path, kills: int) -> None:
    path = tmp_path / "toy.experts.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(Path(__file__).parent), str(path), str(kills), "7"],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0  # kills that found a file half-written
