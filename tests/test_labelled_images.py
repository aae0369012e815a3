"""Pictures with labels, from NPZ files."""

from __future__ import annotations

import contextlib
import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transfer_toy import npz, pictures

from ppap_framework.data import LabelledImages
from ppap_framework.errors import AssetError


@pytest.mark.parametrize(
    ("labels", "dtype"),
    [
        (np.arange(20, dtype=np.uint8), torch.int64),
        (np.arange(20, dtype=np.int32), torch.int64),
        (np.arange(20) % 2 == 0, torch.int64),
        (np.arange(20.0), torch.float32),
        (np.zeros((20, 4, 5), np.float16), torch.float32),
    ],
)
def test_good_ones(tmp_path: Path, labels: Any, dtype: torch.dtype) -> None:
    data = LabelledImages(npz(tmp_path / "a.npz", pictures(), labels))
    assert len(data) == 20
    assert data.image_shape() == data.image_shape(0) == (3, 8, 8)
    assert torch.equal(data.images([3, 0, 3]), pictures()[[3, 0, 3]])
    assert torch.equal(data.images(torch.tensor([7])), pictures()[7:8])
    assert data.labels.dtype == dtype
    assert np.array_equal(data.labels.numpy(), labels)
    assert len(data.stages) == 1


def test_the_hash_tells_any_change(tmp_path: Path) -> None:
    other = pictures()
    other[3, 1, 2, 5] ^= 1
    labels = np.arange(20)
    swapped = labels.copy()
    swapped[:2] = 1, 0
    hashes = [
        LabelledImages(npz(tmp_path / "a.npz", images, given)).manifest_hash
        for images, given in (
            (pictures(), labels),
            (other, labels),
            (pictures(), swapped),
            (pictures(), labels.astype(np.float32)),
            (pictures(), labels[:, None]),
            (pictures().reshape(20, 3, 4, 16), labels),
        )
    ]
    assert len(set(hashes)) == len(hashes)
    assert all(re.fullmatch("[0-9a-f]{64}", found) for found in hashes)
    compressed = tmp_path / "c.npz"
    np.savez_compressed(
        compressed, images=pictures().permute(0, 2, 3, 1).numpy(), labels=labels.astype(np.int8)
    )
    assert LabelledImages(compressed).manifest_hash == hashes[0]


def test_channels_may_come_first(tmp_path: Path) -> None:
    last = LabelledImages(npz(tmp_path / "last.npz", pictures(), np.arange(20)))
    np.savez(tmp_path / "first.npz", images=pictures().numpy(), labels=np.arange(20))
    first = LabelledImages(tmp_path / "first.npz")
    assert first.manifest_hash == last.manifest_hash
    assert torch.equal(first.images([5, 2]), pictures()[[5, 2]])


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (pictures().float(), np.arange(20), "float32"),
        (pictures()[:, :1], np.arange(20), r"\(20, 8, 8, 1\)"),
        (pictures(), np.arange(19), r"\(20, .* and labels of int64 \(19,\)"),
        (pictures(), np.int64(3), "labels of"),
        (pictures(), np.array(["cat"] * 20), "<U3"),
        (pictures(), np.array([None] * 20), "cannot read"),
    ],
)
def test_bad_ones(tmp_path: Path, images: Tensor, labels: Any, said: str) -> None:
    with pytest.raises(AssetError, match=said) as caught:
        LabelledImages(npz(tmp_path / "a.npz", images, labels))
    assert "a.npz" in caught.value.message
    assert "\n" not in str(caught.value)
    assert "NPZ" in caught.value.hint


def test_files_that_are_something_else(tmp_path: Path) -> None:
    good = npz(tmp_path / "good.npz", pictures(), np.arange(20)).read_bytes()
    array, picture, archive = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(array, np.arange(20))
    Image.new("RGB", (4, 4)).save(picture, "PNG")
    with zipfile.ZipFile(archive, "w") as written:
        written.writestr("images", "none")
    missing = io.BytesIO()
    np.savez(missing, pictures=np.arange(3))
    for number, content_ in enumerate(
        (
            *(b"", b"PK", b"PK\x03\x04", b"hello", good[:100], good[:-30]),
            *(part.getvalue() for part in (array, picture, archive, missing)),
        )
    ):
        path = tmp_path / f"{number}.npz"
        path.write_bytes(content_)
        with pytest.raises(AssetError, match=f"{number}.npz") as caught:
            LabelledImages(path)
        assert "\n" not in str(caught.value)
    for path in (tmp_path, tmp_path / "none.npz"):
        with pytest.raises(AssetError, match="cannot read"):
            LabelledImages(path)


@pytest.mark.parametrize("packed", [False, True])
def test_any_flipped_byte_is_read_as_it_was_or_refused(tmp_path: Path, packed: bool) -> None:
    save = np.savez_compressed if packed else np.savez
    save(tmp_path / "a.npz", images=np.ones((3, 2, 2, 3), np.uint8), labels=np.arange(3))
    sound = (tmp_path / "a.npz").read_bytes()
    wanted = LabelledImages(tmp_path / "a.npz").manifest_hash
    for place in range(len(sound)):
        changed = bytearray(sound)
        changed[place] ^= 1 << place % 8
        (tmp_path / "a.npz").write_bytes(changed)
        with contextlib.suppress(AssetError):
            assert LabelledImages(tmp_path / "a.npz").manifest_hash == wanted
