"""Pictures and grids: pixel by pixel where it matters, and legible."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from toy_distribution import install, plugged

import ppap_framework as ppap
from ppap_framework.errors import PpapError
from ppap_framework.experts import NoiseRanges
from ppap_framework.run import ChosenExperts
from ppap_framework.run.grid import Aim, Row, _guided, _header, _short, draw_grid, grid_of
from ppap_framework.run.pictures import to_uint8, write_png, writing

COLOURS = [(255, 0, 0), (0, 200, 0), (0, 0, 255), (200, 0, 200), (0, 200, 200)]


@pytest.fixture(scope="module", autouse=True)
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with plugged(install(tmp_path_factory.mktemp("toy") / "site")) as folder:
        yield folder


def solid(colour: tuple[int, int, int], width: int = 32, height: int = 32) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def box_of(grid: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Where a colour is: (left, top, width, height) of a rectangle filled with it."""
    rows, columns = np.nonzero((np.asarray(grid) == colour).all(-1))
    left, top = int(columns.min()), int(rows.min())
    width, height = int(columns.max()) - left + 1, int(rows.max()) - top + 1
    assert len(rows) == width * height
    return left, top, width, height


class TestPictures:
    def test_known_values(self) -> None:
        x = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0, -7.0, 7.0]).reshape(1, 1, 1, 7)
        assert to_uint8(x)[0, 0, :, 0].tolist() == [0, 64, 128, 191, 255, 0, 255]

    @given(st.integers(0, 255))
    def test_bytes_survive(self, level: int) -> None:
        x = torch.full((1, 3, 1, 1), level / 127.5 - 1.0)
        assert (to_uint8(x) == level).all()

    def test_a_file_is_whole_or_not_there(self, tmp_path: Path) -> None:
        path = tmp_path / "x.png"
        write_png(path, solid(COLOURS[0]))
        before = path.read_bytes()
        with pytest.raises(KeyboardInterrupt), writing(path) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]
        with pytest.raises(PpapError, match="cannot write"):
            write_png(tmp_path / "none" / "x.png", solid(COLOURS[0]))


class TestGrid:
    @pytest.mark.parametrize(
        ("size", "tile"),
        [((32, 32), 128), ((8, 8), 128), ((50, 50), 150), ((128, 128), 128), ((200, 200), 200),
         ((512, 512), 256), ((256, 384), (256, 384)), ((300, 900), (128, 384)),
         ((16, 32), (64, 128)), ((512, 256), (256, 128))],
    )  # fmt: skip
    def test_tiles_are_legible(self, size: tuple[int, int], tile: int | tuple[int, int]) -> None:
        wide, high = (tile, tile) if isinstance(tile, int) else tile
        pictures = [solid(colour, *size) for colour in COLOURS[:3]]
        grid = draw_grid(["title"], [Row(title="row", pictures=pictures, captions=[["a"]] * 3)])
        boxes = [box_of(grid, colour) for colour in COLOURS[:3]]
        assert {box[2:] for box in boxes} == {(wide, high)}
        assert {box[1] for box in boxes} == {boxes[0][1]}
        assert boxes[0][0] < boxes[1][0] < boxes[2][0]

    @pytest.mark.parametrize(
        ("size", "shown"),
        [((32, 32), (128, 128)), ((64, 32), (256, 128)), ((96, 32), (384, 128)),
         ((384, 128), (384, 128)), ((160, 32), (640, 128)), ((192, 32), (576, 96)),
         ((1, 99), (2, 198)),
         ((1024, 512), (512, 256)), ((99, 1000), (25, 256))],
    )  # fmt: skip
    def test_targets_of_several_pictures_are_as_large_as_theirs(
        self, size: tuple[int, int], shown: tuple[int, int]
    ) -> None:
        aims = [Aim(picture=solid(c, *size), caption="x") for c in COLOURS[1:4]]
        row = Row(title="row", pictures=[solid(COLOURS[0])], captions=[[]])
        grid = draw_grid([], [row], aims)
        boxes = [box_of(grid, colour) for colour in COLOURS[1:4]]
        assert {box[2:] for box in boxes} == {shown}
        assert {box[1] for box in boxes} == {boxes[0][1]}
        assert all(a[0] + a[2] < b[0] for a, b in pairwise(boxes))
        assert boxes[0][1] + shown[1] < box_of(grid, COLOURS[0])[1]  # above the images

    def test_nothing_is_wasted_on_a_tall_target_or_a_long_title(self) -> None:
        row = Row(title="a title of many words " * 9, pictures=[solid(COLOURS[0])], captions=[[]])
        alone = draw_grid([], [row])
        aim = Aim(picture=solid(COLOURS[1], 10, 5000), caption="a long caption " * 9)
        both = draw_grid(["a header of many words " * 30], [row], [aim])
        assert both.width == alone.width
        assert both.height < alone.height + 256 + 200

    def test_small_pictures_keep_their_pixels(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
        row = Row(title="", pictures=[Image.fromarray(pixels)], captions=[[]])
        grid = np.asarray(draw_grid([], [row]))
        enlarged = pixels.repeat(4, 0).repeat(4, 1)
        corners = np.argwhere((grid[:-127, :-127] == pixels[0, 0]).all(-1))
        assert any(np.array_equal(grid[y : y + 128, x : x + 128], enlarged) for y, x in corners)

    def test_rows_are_broken_together(self) -> None:
        count = 11
        shades = (
            [(i * 20 + 10, 0, 5) for i in range(count)],
            [(0, i * 20 + 10, 5) for i in range(count)],
        )
        rows = [
            Row(title=name, pictures=[solid(c) for c in colours], captions=[["x"]] * count)
            for name, colours in zip(("a", "b"), shades, strict=True)
        ]
        grid = draw_grid([], rows)
        above = [box_of(grid, colour) for colour in shades[0]]
        below = [box_of(grid, colour) for colour in shades[1]]
        assert [box[0] for box in above] == [box[0] for box in below]
        tops = [above[0][1], below[0][1], above[8][1], below[8][1]]
        assert tops == sorted(set(tops))
        assert {box[1] for box in above} == {tops[0], tops[2]}
        assert above[8][0] == above[0][0]

    def test_text_is_written_and_stays_in_its_place(self) -> None:
        def drawn(caption: str) -> np.ndarray:
            row = Row(title="", pictures=[solid(c) for c in COLOURS[:2]], captions=[[caption], []])
            return np.asarray(draw_grid([], [row])).astype(int)

        blank = drawn("")
        for caption in (
            "red cube 0.97",
            "a very long name of a class " * 9,
            "supercalifragilistic" * 5,
        ):
            written = drawn(caption)
            more = ((0, written.shape[0] - blank.shape[0]), (0, 0), (0, 0))
            paper = np.pad(blank, more, constant_values=255)
            changed = np.argwhere(abs(written - paper).max(-1) > 60)
            left, top, width, height = box_of(Image.fromarray(blank.astype(np.uint8)), COLOURS[0])
            assert len(changed) > 50
            assert changed[:, 0].min() >= top + height
            assert left <= changed[:, 1].min()
            assert changed[:, 1].max() <= left + width

    def test_of_a_run(self) -> None:
        target = Image.new("L", (8, 8), 40)
        guides = [
            ppap.guide("colour", target="green"),
            ppap.guide("grey", target=target),
        ]
        result = ppap.sample("toy", guides, num=2, steps=2, compare=True)
        rows = grid_of(result)
        alone = grid_of(ppap.sample("toy", num=2, steps=2))
        # Images with and without guides, what the guide of brightness sees in both, two more lines.
        assert rows.height > 3 * alone.height
        assert box_of(rows, (40, 40, 40))[2:] == (128, 128)  # the target

    def test_of_a_prompt_says_what_was_told(self) -> None:
        def grid(prompt: str | list[str] | None) -> Image.Image:
            return grid_of(ppap.sample("toy", num=1, steps=2, prompt=prompt))

        bare, told, each = grid(None), grid("brighter"), grid(["brighter"])
        assert told.height == each.height > bare.height
        assert told.tobytes() != each.tobytes()
        assert _short("a  red\ncube") == "a red cube"
        assert _short("x" * 300) == "x" * 79 + "…"

    def test_says_what_was_asked_for(self) -> None:
        options = ppap.guide("colour", target="green", options={"sharpness": 5.0})
        run = ppap.sample("toy", [options], num=1, steps=2).plan
        backend = attrs.evolve(
            run.backend, origin=attrs.evolve(run.backend.origin, options={"cfg": 5.0})
        )
        assert _header(attrs.evolve(run, backend=backend))[0].startswith("toy · toy-8 · cfg=5 · ")
        assert _guided(run) == "guided"
        chosen = ChosenExperts(
            ranges=NoiseRanges((0.0,)), parameters=(1, 1), scales=(3.0, 1.5), name="x"
        )
        (colour,) = run.guides
        calibrated = attrs.evolve(
            colour, guide=attrs.evolve(colour.guide, scale=1.0, scales=chosen.calibration)
        )
        other = ppap.guide("grey", target=Image.new("L", (8, 8), 40), name="other")
        mixed = attrs.evolve(run, guides=(calibrated, other), experts=(chosen, None))
        assert _guided(mixed) == "guided, with experts of colour"
        assert _guided(attrs.evolve(mixed, experts=(chosen, chosen))) == "guided, with experts"
        assert "scales of experts, from little noise to much: 3, 1.5 ·" in _header(mixed)[1]

    def test_of_several_guides_shows_what_each_is_aimed_at(self) -> None:
        guides = [
            ppap.guide("grey", target=Image.new("L", (8, 8), shade), name=f"grey-{shade}")
            for shade in (40, 200)
        ]
        grid = grid_of(ppap.sample("toy", guides, num=2, steps=2))
        one, other = box_of(grid, (40, 40, 40)), box_of(grid, (200, 200, 200))
        assert one[2:] == other[2:] == (128, 128)
        assert one[1] == other[1]
        assert one[0] + 128 < other[0]

    def test_of_many_images_shows_the_first(self) -> None:
        few = grid_of(ppap.sample("toy", num=64, steps=1, batch=64))
        many = grid_of(ppap.sample("toy", num=70, steps=1, batch=70))
        assert many.width == few.width
        assert 0 < many.height - few.height < 40  # one more line says so
