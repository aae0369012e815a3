"""What is kept of a run: pixels, a folder with its record, and a grid that can be read."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from toy_distribution import green, write_experts

import ppap_framework as ppap
from ppap_framework.components import DiffusionBackend
from ppap_framework.errors import PpapError, UsageError
from ppap_framework.experts.identity import weights_sha256
from ppap_framework.files import replacing
from ppap_framework.pixels import to_uint8
from ppap_framework.run import RunFolder, plan
from ppap_framework.run.grid import Line, _guided, _header, _lines, draw_grid, grid_of
from ppap_framework.run.result import Pictures, Seen
from ppap_framework.runtime import Progress

pytestmark = pytest.mark.usefixtures("site")

COLOURS = [(255, 0, 0), (0, 200, 0), (0, 0, 255), (200, 0, 200), (0, 200, 200)]


def files_of(folder: Path) -> set[str]:
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    return found - {".lock"}


def record_of(folder: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    found: dict[str, Any] = json.loads((folder / "run.json").read_text(), parse_constant=refuse)
    return found


class TestSave:
    def test_everything_is_there(self, toy: DiffusionBackend, tmp_path: Path) -> None:
        result = ppap.sample(toy, [green()], num=3, steps=4, seed=9, compare=True, batch=2)
        folder = tmp_path / "deep" / "out"
        assert result.save(folder) == folder / "grid.png"
        numbers = ("000", "001", "002")
        assert files_of(folder) == {
            "grid.png",
            "run.json",
            *(f"{i}.png" for i in numbers),
            *(f"seen/{i}-colour.png" for i in numbers),
            *(f"unguided/{i}.png" for i in numbers),
            *(f"unguided/seen/{i}-colour.png" for i in numbers),
        }
        for i in range(3):
            saved = np.asarray(Image.open(folder / f"{i:03d}.png"))
            assert np.array_equal(saved, to_uint8(result.images)[i])
            seen = np.asarray(Image.open(folder / "seen" / f"{i:03d}-colour.png"))
            assert np.array_equal(seen, saved[:, ::-1])

    def test_the_record(self, toy: DiffusionBackend, site: Path, tmp_path: Path) -> None:
        guide = green(scale=3.0, interval=(0.0, 0.5), options={"sharpness": 5.0})
        result = ppap.sample(toy, [guide], num=2, steps=4, seed=9, compare=True)
        assert "guided (2, 3, 8, 8), unguided (2, 3, 8, 8)" in repr(result)
        assert len(repr(result)) < 220
        result.save(tmp_path)
        record = record_of(tmp_path)
        assert (record["status"], record["finished"]) == ("complete", 2)
        config = record["config"]
        assert (config["seed"], config["num"], config["steps"]) == (9, 2, 4)
        assert config["timesteps"] == [0, 25, 50, 75]
        assert config["guides"][0]["target"] == "green"
        assert config["guides"][0]["interval"] == [0.0, 0.5]
        defaults = {"upside_down": False, "model": None}
        assert config["guides"][0]["options"] == {"sharpness": 5.0, **defaults}
        assert guide.origin.record()["options"] == {"sharpness": 5.0}
        assert record["versions"]["plugins"] == {"ppap-plugin-toy": "0.7"}
        assert record["versions"]["torch"] == torch.__version__
        for part, file in ((config["backend"], "toy-8"), (config["guides"][0], "colour-3")):
            content = (site / "ppap_plugin_toy" / f"{file}.safetensors").read_bytes()
            assert part["sha256"] == hashlib.sha256(content).hexdigest()
            assert part["weights_sha256"] is None  # the file's says it
        spent = record["guidance"]["guides"][0]
        assert spent["times"] == [0.25, 0.0]
        assert all(norm > 0 for norm in spent["gradient_norms"])
        assert spent["skipped"] == 0
        assert record["peak_memory_bytes"] > 1e7
        assert 0 < record["seconds"]["per_image"] < record["seconds"]["sampling"] / 2
        sights = result.seen["colour"]
        for i, entry in enumerate(record["images"]):
            seen = entry["seen"]["colour"]
            assert entry["file"] == f"00{i}.png"
            assert seen["says"] == sights.words[i]
            assert seen["energy"] == pytest.approx(float(sights.figures["energy"][i]))
            assert seen["broken"] is None  # it is not a number

    def test_weights_without_a_file_are_known_by_their_values(self, toy, tmp_path) -> None:
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
        hashes = []
        for name in ("one", "same", "other"):
            if name == "other":
                network[1].bias.data[0] += 1
            guide = ppap.guide(network, target=1, loss=lambda said, wanted: said[:, wanted[0]])
            ppap.sample(toy, [guide], num=1, steps=1).save(tmp_path / name)
            (recorded,) = record_of(tmp_path / name)["config"]["guides"]
            assert recorded["sha256"] is None
            assert recorded["weights_sha256"] == weights_sha256(network.state_dict())
            hashes.append(recorded["weights_sha256"])
        assert hashes[0] == hashes[1] != hashes[2]

    @pytest.mark.parametrize("compare", [False, True])
    def test_overwriting_loses_no_file_of_the_user(
        self, toy: DiffusionBackend, tmp_path: Path, compare: bool
    ) -> None:
        """Fifty files with tempting names are there afterwards, byte for byte."""
        ppap.sample(toy, [green()], num=2, steps=2, compare=compare).save(tmp_path)
        kinds = [""] if compare else ["", "unguided/", "naive/"]
        tempting = [
            *("20240101.png", "0001-holiday.png", "000.jpg", "000.PNG", "grid.jpg", "grid.png.bak"),
            *("run.json.bak", "run-2.json", "000.png~", "0000.png", "1.png", "-01.png", "Grid.png"),
            *("naive/555.png", "naive/000.png", "naive/seen/000-colour.png", "stages/base/000.png"),
            *("seen/000.png", "seen/000-other.png", "seen/002-colour.png", "seen/colour.png"),
            *(f"{kind}{name}" for kind in kinds for name in ("002.png", "003.png", "notes.txt")),
            *(f"unguided/{n:03d}.png" for n in range(2 if compare else 0, 30)),
        ]
        tempting = list(dict.fromkeys(tempting))
        assert len(tempting) >= 50
        for name in tempting:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(f"mine: {name}".encode())
        ppap.sample(toy, num=1, steps=3).save(tmp_path, overwrite=True)
        left = {name: (tmp_path / name).read_bytes() for name in tempting}
        assert left == {name: f"mine: {name}".encode() for name in tempting}
        assert not (tmp_path / "001.png").exists()

    def test_two_runs_at_once_exclude_each_other(
        self, toy: DiffusionBackend, tmp_path: Path
    ) -> None:
        result = ppap.sample(toy, num=1, steps=2)
        for overwrite in (False, True):
            folder = RunFolder(result.plan, tmp_path, overwrite=overwrite)
            before = (tmp_path / "run.json").read_bytes()
            for again in (False, True):
                with pytest.raises(UsageError, match=r"another process|earlier run"):
                    RunFolder(result.plan, tmp_path, overwrite=again)
            assert (tmp_path / "run.json").read_bytes() == before
            folder.finish(result)
        RunFolder(result.plan, tmp_path, overwrite=True).fail(KeyboardInterrupt())
        assert result.save(tmp_path, overwrite=True)

    def test_what_is_there_is_not_overwritten(self, toy: DiffusionBackend, tmp_path: Path) -> None:
        ppap.sample(toy, num=3, steps=2).save(tmp_path)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
        fewer = ppap.sample(toy, [green()], num=1, steps=3)
        with pytest.raises(UsageError, match="earlier run") as caught:
            fewer.save(tmp_path)
        assert "--overwrite" in caught.value.hint
        assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
        (tmp_path / "notes.txt").write_text("mine")
        (tmp_path / "0.png").write_text("mine")
        fewer.save(tmp_path, overwrite=True)
        assert files_of(tmp_path) == {
            "000.png", "grid.png", "run.json", "seen/000-colour.png", "notes.txt", "0.png",
        }  # fmt: skip
        assert (tmp_path / "notes.txt").read_text() == "mine"

    @pytest.mark.parametrize("overwrite", [False, True])
    @pytest.mark.parametrize(
        ("folder", "says"),
        [("", "thesis"), ("thesis.tex", "is no folder"), ("thesis.tex/out", "is no folder")],
    )
    def test_other_peoples_folders(
        self, toy: DiffusionBackend, tmp_path: Path, overwrite: bool, folder: str, says: str
    ) -> None:
        (tmp_path / "thesis.tex").write_text("mine")
        with pytest.raises(UsageError, match=says):
            ppap.sample(toy, num=1, steps=1).save(tmp_path / folder, overwrite=overwrite)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    def test_an_interrupted_result_saves_too(self, toy: DiffusionBackend, tmp_path: Path) -> None:
        def stop(progress: Progress) -> None:
            raise KeyboardInterrupt

        result = ppap.sample(toy, [green()], num=2, steps=2, progress=stop)
        assert result.images_01.shape == (0, 3, 8, 8)
        assert result.to_uint8().shape == (0, 8, 8, 3)
        assert result.to_pil() == []
        assert result.save(tmp_path) is None
        record = record_of(tmp_path)
        assert (record["status"], record["finished"]) == ("interrupted", 0)


def solid(colour: tuple[int, int, int], width: int = 32, height: int = 32) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def line_of(pictures: list[Image.Image], caption: str = "", title: str = "") -> Line:
    return Line(title=title, pictures=pictures, captions=[[caption]] * len(pictures))


def box_of(grid: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Where a colour is: (left, top, width, height) of a rectangle filled with it."""
    rows, columns = np.nonzero((np.asarray(grid) == colour).all(-1))
    left, top = int(columns.min()), int(rows.min())
    width, height = int(columns.max()) - left + 1, int(rows.max()) - top + 1
    assert len(rows) == width * height
    return left, top, width, height


class TestPixels:
    def test_known_values(self) -> None:
        x = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0, -7.0, 7.0]).reshape(1, 1, 1, 7)
        assert to_uint8(x)[0, 0, :, 0].tolist() == [0, 64, 128, 191, 255, 0, 255]

    @given(st.integers(0, 255))
    def test_bytes_survive(self, level: int) -> None:
        x = torch.full((1, 3, 1, 1), level / 127.5 - 1.0)
        assert (to_uint8(x) == level).all()

    def test_a_file_is_whole_or_not_there(self, tmp_path: Path) -> None:
        path = tmp_path / "x.png"
        path.write_bytes(b"whole")
        with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt
        assert path.read_bytes() == b"whole"
        assert list(tmp_path.iterdir()) == [path]
        with pytest.raises(PpapError, match="cannot write"), replacing(path / "y.png"):
            pass


class TestGrid:
    @pytest.mark.parametrize(
        ("size", "tile"),
        [((32, 32), (128, 128)), ((8, 8), (128, 128)), ((50, 50), (150, 150)),
         ((128, 128), (128, 128)), ((200, 200), (200, 200)), ((512, 512), (256, 256)),
         ((256, 384), (256, 384)), ((300, 900), (128, 384)), ((16, 32), (64, 128)),
         ((512, 256), (256, 128))],
    )  # fmt: skip
    def test_tiles_are_legible(self, size: tuple[int, int], tile: tuple[int, int]) -> None:
        pictures = [solid(colour, *size) for colour in COLOURS[:3]]
        grid = draw_grid(["title"], [line_of(pictures, "a", "row")])
        boxes = [box_of(grid, colour) for colour in COLOURS[:3]]
        assert {box[2:] for box in boxes} == {tile}
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
        aims = [(solid(c, *size), "x") for c in COLOURS[1:4]]
        grid = draw_grid([], [line_of([solid(COLOURS[0])])], aims)
        boxes = [box_of(grid, colour) for colour in COLOURS[1:4]]
        assert {box[2:] for box in boxes} == {shown}
        assert {box[1] for box in boxes} == {boxes[0][1]}
        assert all(a[0] + a[2] < b[0] for a, b in pairwise(boxes))
        assert boxes[0][1] + shown[1] < box_of(grid, COLOURS[0])[1]  # above the images

    def test_nothing_is_wasted_on_a_tall_target_or_a_long_title(self) -> None:
        row = line_of([solid(COLOURS[0])], title="a title of many words " * 9)
        alone = draw_grid([], [row])
        aim = (solid(COLOURS[1], 10, 5000), "a long caption " * 9)
        both = draw_grid(["a header of many words " * 30], [row], [aim])
        assert both.width == alone.width
        assert both.height < alone.height + 256 + 200

    def test_small_pictures_keep_their_pixels(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
        grid = np.asarray(draw_grid([], [line_of([Image.fromarray(pixels)])]))
        enlarged = pixels.repeat(4, 0).repeat(4, 1)
        corners = np.argwhere((grid[:-127, :-127] == pixels[0, 0]).all(-1))
        assert any(np.array_equal(grid[y : y + 128, x : x + 128], enlarged) for y, x in corners)

    def test_rows_are_broken_together(self) -> None:
        levels = range(10, 230, 20)  # of eleven pictures
        shades = [(level, 0, 5) for level in levels], [(0, level, 5) for level in levels]
        grid = draw_grid([], [line_of([solid(c) for c in row], "x") for row in shades])
        above, below = ([box_of(grid, colour) for colour in row] for row in shades)
        assert [box[0] for box in above] == [box[0] for box in below]
        tops = [above[0][1], below[0][1], above[8][1], below[8][1]]
        assert tops == sorted(set(tops))
        assert {box[1] for box in above} == {tops[0], tops[2]}
        assert above[8][0] == above[0][0]

    def test_text_is_written_and_stays_in_its_place(self) -> None:
        def drawn(caption: str) -> np.ndarray:
            row = attrs.evolve(line_of([solid(c) for c in COLOURS[:2]]), captions=[[caption], []])
            return np.asarray(draw_grid([], [row])).astype(int)

        blank = drawn("")
        left, top, width, height = box_of(Image.fromarray(blank.astype(np.uint8)), COLOURS[0])
        for caption in ("red cube 0.97", "a very long name " * 9, "supercalifragilistic" * 5):
            written = drawn(caption)
            more = ((0, written.shape[0] - blank.shape[0]), (0, 0), (0, 0))
            paper = np.pad(blank, more, constant_values=255)
            changed = np.argwhere(abs(written - paper).max(-1) > 60)
            assert len(changed) > 50
            assert changed[:, 0].min() >= top + height
            assert left <= changed[:, 1].min()
            assert changed[:, 1].max() <= left + width

    def test_of_a_run(self) -> None:
        greys = [
            ppap.guide("grey", target=Image.new("L", (8, 8), shade), name=f"grey-{shade}")
            for shade in (40, 200)
        ]
        grid = grid_of(ppap.sample("toy", [green(), *greys], num=2, steps=2, compare=True))
        alone = grid_of(ppap.sample("toy", num=2, steps=2))
        # Images with and without guides, what the guides of brightness see in both, more lines.
        assert grid.height > 3 * alone.height
        one, other = box_of(grid, (40, 40, 40)), box_of(grid, (200, 200, 200))  # the targets
        assert one[2:] == other[2:] == (128, 128)
        assert one[1] == other[1]
        assert one[0] + 128 < other[0]

    def test_of_a_prompt_says_what_was_told(self) -> None:
        def grid(prompt: str | list[str] | None) -> Image.Image:
            return grid_of(ppap.sample("toy", num=1, steps=2, prompt=prompt))

        bare, told, each = grid(None), grid("brighter"), grid(["brighter"])
        assert told.height == each.height > bare.height
        assert told.tobytes() != each.tobytes()
        run = ppap.sample("toy", num=1, steps=2).plan
        for prompt, line in (("a  red\ncube", "a red cube"), ("x" * 300, "x" * 79 + "…")):
            sampling = attrs.evolve(run.sampling, prompt=prompt)
            assert f"told: {line}" in _header(attrs.evolve(run, sampling=sampling))

    def test_says_what_was_asked_for(self, toy: DiffusionBackend, tmp_path: Path) -> None:
        bundle = write_experts(tmp_path, number=2)
        bare, expert = green(experts="none"), green(None, experts=bundle)
        grey = ppap.guide("grey", target=Image.new("L", (8, 8), 40))
        run = plan(toy, [expert, grey])
        origin = attrs.evolve(run.backend.origin, options={"cfg": 5.0})
        told = attrs.evolve(run, backend=attrs.evolve(run.backend, origin=origin))
        assert _header(told)[0].startswith("toy · toy-8 · cfg=5 · ")
        assert "scale 4 · with 2 experts" in _header(run)[1]
        assert _guided(run) == "guided, with experts of colour"
        assert _guided(plan(toy, [expert])) == "guided, with experts"
        assert _guided(plan(toy, [bare])) == "guided"

    def test_a_guide_that_draws_nothing_has_energies_below_the_images(self) -> None:
        pixels, energy = np.zeros((2, 8, 8, 3), np.uint8), {"energy": torch.tensor([1.0, 2.0])}
        seen = {"a": Seen(pixels, ("", ""), energy), "b": Seen(pixels + 1, ("", ""), energy)}
        one, two = _lines("guided", Pictures(-torch.ones(2, 3, 8, 8), seen))
        assert one.captions == [["a: energy 1"], ["a: energy 2"]]
        assert (two.title, two.captions) == ("what b sees", [["energy 1"], ["energy 2"]])

    def test_of_many_images_shows_the_first(self) -> None:
        few = grid_of(ppap.sample("toy", num=64, steps=1, batch=64))
        many = grid_of(ppap.sample("toy", num=70, steps=1, batch=70))
        assert many.width == few.width
        assert 0 < many.height - few.height < 40  # one more line says so
