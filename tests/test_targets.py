"""Targets: words, files and arrays, decoded; hostile and damaged files refused in one line."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ppap_framework.errors import AssetError, PpapError, UsageError
from ppap_framework.targets import MAX_PIXELS, decode_target, weighted_parts

# Three pixels by two, every one of another colour.
PIXELS = np.array(
    [[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[9, 9, 9], [99, 99, 99], [250, 250, 250]]], np.uint8
)


def picture(given: object) -> Image.Image:
    decoded = decode_target(given)
    assert decoded.text is None and decoded.array is None and decoded.image is not None
    return decoded.image


def pixels(given: object) -> np.ndarray:
    return np.asarray(picture(given))


def array(given: object) -> torch.Tensor:
    found = decode_target(given).array
    assert found is not None
    return found


LONG = "a. b/c " * 1430  # no name of a file is that long
WORDS = [
    LONG,
    "a.png | b.png",
    "red cube",
    " red cube ",
    "tv/monitor",
    "a.b",
    "3.5",
    "7",
    7,
    np.int64(7),
    np.uint8(7),
]


@pytest.mark.parametrize("given", WORDS)
def test_words_and_numbers_stay_words(given: object) -> None:
    decoded = decode_target(given)
    assert decoded.text == str(given).strip()
    assert decoded.image is None and decoded.array is None
    assert decode_target(decoded) is decoded


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ("red cube", [("red cube", 1.0)]),
        ("red cube:2", [("red cube", 2.0)]),
        (" a red cube | blurry : -1.5|x:.5 ", [("a red cube", 1.0), ("blurry", -1.5), ("x", 0.5)]),
        ("16:9:1 | at 12:30 o'clock", [("16:9", 1.0), ("at 12:30 o'clock", 1.0)]),
        ("a:b | 1e3:1e3 | a:0", [("a:b", 1.0), ("1e3:1e3", 1.0), ("a", 0.0)]),
        ("a\nb: 3", [("a\nb", 3.0)]),
    ],
)
def test_parts_and_their_weights(given: str, parts: list[tuple[str, float]]) -> None:
    found = weighted_parts(decode_target(given))
    assert [(part.text, weight) for part, weight in found] == parts


def test_parts_that_are_pictures(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    found = weighted_parts(decode_target(f"{path}:2 | sky | {path}"))
    assert [(part.image is not None, weight) for part, weight in found] == [
        (True, 2.0),
        (False, 1.0),
        (True, 1.0),
    ]
    whole = decode_target(path)
    assert weighted_parts(whole) == [(whole, 1.0)]
    with pytest.raises(AssetError, match=r"'no\.png' is not there"):
        weighted_parts(decode_target("no.png | sky"))
    with pytest.raises(UsageError, match="the target is empty"):
        weighted_parts(decode_target("sky | "))
    odd = tmp_path / "a | b.png"
    Image.fromarray(PIXELS).save(odd)
    assert decode_target(str(odd)).image is not None  # it is there


@pytest.mark.parametrize(
    ("given", "why"),
    [
        *((given, "target") for given in ("", "  ", True, None, object(), 2.5, {"a": 1})),
        (np.full((2, 2), np.inf), "4 numbers that are not finite"),
        (np.array([1.0, np.nan]), "1 numbers that are not finite"),
        (torch.tensor([torch.inf]), "not finite"),
        (np.array(["a"]), "not numbers"),
        (np.array([1j]), "not numbers"),
        (torch.tensor([1j]), "complex"),
        (np.zeros((0, 3)), "holds 0 numbers"),
        ([], "holds 0 numbers"),
        ([[1], [1, 2]], "no array"),
        *((Image.fromarray(np.array([[n]], np.int32)), "16 bits") for n in (65_536, -1)),
    ],
)
def test_what_is_no_target(given: object, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        decode_target(given)
    assert caught.value.hint


def test_a_name_without_suffix_is_a_path_only_inside_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(PIXELS).save("cube", "PNG")
    assert decode_target("cube").text == "cube"
    for given in ("./cube", str(tmp_path / "cube"), Path("cube")):
        assert np.array_equal(pixels(given), PIXELS)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "webp"])
def test_lossless_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(PIXELS).save(path, lossless=True)
    assert decode_target(str(path)).source == str(path)
    assert picture(path).mode == "RGB"
    assert np.array_equal(pixels(path), PIXELS)


# Where a file says in EXIF how the camera was held, and what undoes it.
UPRIGHT = {
    1: PIXELS,
    2: PIXELS[:, ::-1],
    3: PIXELS[::-1, ::-1],
    4: PIXELS[::-1],
    5: PIXELS.swapaxes(0, 1),
    6: PIXELS[::-1].swapaxes(0, 1),
    7: PIXELS[::-1, ::-1].swapaxes(0, 1),
    8: PIXELS[:, ::-1].swapaxes(0, 1),
    **dict.fromkeys((0, 9, 65_535), PIXELS),  # nonsense changes nothing
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(pixels(tmp_path / "x.png"), UPRIGHT[orientation])


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    rgba = np.dstack([PIXELS, np.array([[0, 128, 255]] * 2, np.uint8)])
    Image.fromarray(rgba).save(path)
    share = rgba[..., 3:] / 255.0
    got = pixels(path)
    assert np.abs(got - (PIXELS * share + 255.0 * (1.0 - share))).max() <= 1.0
    assert np.array_equal(got, pixels(rgba))
    grey = Image.fromarray(np.array([[10, 20]], np.uint8))
    grey.putalpha(Image.fromarray(np.array([[0, 255]], np.uint8)))
    assert pixels(grey).tolist() == [[[255] * 3, [20] * 3]]
    Image.fromarray(PIXELS).save(path, transparency=(255, 0, 0))
    expected = PIXELS.copy()
    expected[0, 0] = 255
    assert np.array_equal(pixels(path), expected)


def test_depth_of_pixels_is_kept(tmp_path: Path) -> None:
    depth = np.array([[0, 1, 300], [40_000, 65_534, 65_535]], np.uint16)
    Image.fromarray(depth).save(tmp_path / "x.png")
    Image.fromarray(depth).save(tmp_path / "x.tiff")
    big_endian = b"P5 3 2 65535\n" + depth.astype(">u2").tobytes()
    (tmp_path / "x.pgm").write_bytes(big_endian)
    for suffix in ("png", "tiff", "pgm"):
        assert picture(tmp_path / f"x.{suffix}").mode == "I;16"
        assert np.array_equal(pixels(tmp_path / f"x.{suffix}"), depth)
    fits = np.array([[0, 65_535]], np.int32)
    assert np.array_equal(pixels(Image.fromarray(fits)), fits)
    floating = np.array([[0.25, -3.0]], np.float32)
    Image.fromarray(floating).save(tmp_path / "x.tiff")
    assert np.array_equal(array(tmp_path / "x.tiff").numpy(), floating)
    grey = np.array([[0, 7, 255]], np.uint8)
    assert np.array_equal(pixels(Image.fromarray(grey)), np.stack([grey] * 3, -1))
    found = picture(Image.fromarray(np.array([[True, False]])))
    assert np.asarray(found).tolist() == [[1, 0]]
    assert np.asarray(found.convert("RGB")).tolist() == [[[255] * 3, [0] * 3]]


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_of_few_bits_the_numbers_are_kept_and_the_greys(
    tmp_path: Path, bits: int, kind: str
) -> None:
    levels = 2**bits
    numbers = np.arange(16, dtype=np.uint8).reshape(2, 8) % levels
    path = tmp_path / f"mask.{kind}"
    write = {"png": png_of_few_bits, "tiff": tiff_of_few_bits}[kind]
    path.write_bytes(write(numbers, bits))
    found = picture(path)
    assert found.mode == "P"
    assert np.array_equal(np.asarray(found), numbers)
    shades = np.asarray(found.convert("RGB"))
    assert np.array_equal(shades, np.stack([numbers * (255 // (levels - 1))] * 3, -1))


def packed(numbers: np.ndarray, bits: int) -> list[bytes]:
    """Rows of numbers, so many bits each, the first in the highest."""
    rows = []
    for row in numbers:
        digits = "".join(f"{number:0{bits}b}" for number in row)
        rows.append(int(digits, 2).to_bytes(len(digits) // 8, "big"))
    return rows


def png_of_few_bits(numbers: np.ndarray, bits: int) -> bytes:
    rows = b"".join(b"\0" + row for row in packed(numbers, bits))
    return png(numbers.shape[1], numbers.shape[0], rows, bits)


def tiff_of_few_bits(numbers: np.ndarray, bits: int) -> bytes:
    height, width = numbers.shape
    data = b"".join(packed(numbers, bits))
    # Width, height, bits, no compression, black is 0, where the data begin, rows, how many bytes.
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8, 278: height, 279: len(data)}
    header = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return header + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_indexed_pictures_keep_their_indices_and_are_copied(tmp_path: Path) -> None:
    mask = Image.fromarray(np.array([[0, 1], [5, 2]], np.uint8))
    mask.putpalette([0, 0, 0, 255, 0, 0] * 100)
    mask.save(tmp_path / "mask.png")
    image = picture(tmp_path / "mask.png")
    assert image.mode == "P"
    assert np.asarray(image).tolist() == [[0, 1], [5, 2]]
    picture(mask).putpixel((0, 0), 1)
    assert mask.getpixel((0, 0)) == 0


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_the_first_frame_of_an_animation(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    first, second = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    options = {"lossless": True} if suffix == "webp" else {}
    first.save(path, save_all=True, append_images=[second], **options)
    assert picture(path).convert("RGB").getpixel((0, 0)) == (255, 0, 0)
    with Image.open(path) as opened:
        opened.seek(1)
        assert picture(opened).convert("RGB").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff", "npy"])
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.95])
def test_truncated_files(tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"x.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    if suffix == "npy":
        np.save(path, noise)
    else:
        Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(AssetError, match="x." + suffix):
        decode_target(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp", "tiff"])
def test_damage_is_an_error_of_ours_or_nothing(tmp_path: Path, suffix: str) -> None:
    """Whatever bytes change, either the file still decodes or the error is for people."""
    rng = np.random.default_rng(1)
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, {"jpg": "JPEG"}.get(suffix, suffix.upper()))
    path = tmp_path / f"x.{suffix}"
    for _ in range(150):
        damaged = bytearray(buffer.getvalue())
        for at in rng.integers(0, len(damaged), 3):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            decode_target(path)
        except PpapError as error:
            assert "x." + suffix in error.message


@pytest.mark.parametrize(
    "content", [b"%!PS-Adobe-3.0 EPSF-3.0\nshowpage\n", b"<svg/>", b"hello", "PCX", "SGI", "PDF"]
)
def test_other_formats_are_refused_even_if_pillow_reads_them(
    tmp_path: Path, content: bytes | str
) -> None:
    if isinstance(content, bytes):
        (tmp_path / "x.png").write_bytes(content)
    else:
        Image.fromarray(PIXELS).save(tmp_path / "x.png", content)
    with pytest.raises(AssetError, match="known format"):
        decode_target(tmp_path / "x.png")


def png(width: int, height: int, data: bytes, bits: int = 8) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize("side", [7_072, 10_000, 60_000])
def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path, side: int) -> None:
    assert side * side > MAX_PIXELS
    (tmp_path / "x.png").write_bytes(png(side, side, bytes(1000)))
    with pytest.raises(AssetError, match=f"more than {MAX_PIXELS} pixels"):
        decode_target(tmp_path / "x.png")


def test_files_that_are_not_what_their_name_says(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    np.save(tmp_path / "lies.npy", np.zeros((4, 4), np.float32))
    content = (tmp_path / "lies.npy").read_bytes()
    lie = content.replace(b"(4, 4)", b"(9999999, 99999)")[: len(content)]
    (tmp_path / "lies.npy").write_bytes(lie)
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (marker,))  # type: ignore[return-value]  # any callable does

    np.save(tmp_path / "evil.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(Evil()))
    for name, fault in {
        "none.png": "is not there",
        "folder.png": "is a folder",
        "lies.npy": "lies.npy",
        "evil.npy": "array of objects",
        "pickle.npy": "pickle.npy",
    }.items():
        with pytest.raises(AssetError, match=fault) as caught:
            decode_target(str(tmp_path / name))
        assert name != "evil.npy" or "damaged" not in caught.value.hint
    assert not marker.exists()


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (np.array([[1.5, 2.0]]), torch.float32),
        (np.array([1, 2], np.uint8), torch.int64),
        (torch.tensor([1.5], dtype=torch.float16), torch.float32),
        (torch.tensor([3], dtype=torch.int32), torch.int64),
        ([1, 2, 3], torch.int64),
        (np.ones((3, 4, 4)), torch.float32),
    ],
)
def test_numbers_become_tensors(given: object, dtype: torch.dtype) -> None:
    assert array(given).dtype == dtype
    assert np.array_equal(array(given).numpy(), np.asarray(given))


def test_array_files_and_gaps_of_maps(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float64).reshape(2, 3)
    np.save(tmp_path / "x.npy", values)
    assert np.array_equal(array(str(tmp_path / "x.npy")).numpy(), values)
    given = np.array([[1.0, np.inf, 2.0], [np.nan, -np.inf, 3.0]])
    np.save(tmp_path / "y.npy", given)
    for source in (given, tmp_path / "y.npy", torch.from_numpy(given)):
        assert array(source)[array(source).isfinite()].tolist() == [1.0, 2.0, 3.0]
        assert int(array(source).isnan().sum()) == 3


def test_a_file_of_an_unknown_ending_is_no_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.heic").write_bytes(b"\0\0\0\x18ftypheic")
    Path("cat").touch()
    with pytest.raises(AssetError, match=r"'x\.heic' is no picture of a known format"):
        decode_target("x.heic")
    for words in ("cat", "y.heic", "~nosuch", "~nosuch/cat"):
        assert decode_target(words).text == words
