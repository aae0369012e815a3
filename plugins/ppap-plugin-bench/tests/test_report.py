"""The page of results, against the files that it is made of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import attrs
import numpy as np
import pytest
from bench_toy import kept_pixels, row
from PIL import Image

from ppap_framework.errors import AssetError
from ppap_plugin_bench import report
from ppap_plugin_bench.plots import write_strip
from ppap_plugin_bench.report import render
from ppap_plugin_bench.report_default import one_default
from ppap_plugin_bench.results import Results


def shown_in(text: str, title: str, found: dict[str, float], digits: int) -> bool:
    value, low, high = (f"{found[end]:.{digits}f}" for end in ("value", "low", "high"))
    starts = (line for line in text.splitlines() if line.startswith(f"| {title} "))
    return any(f"{value} [{low}, {high}]" in line for line in starts)


class TestOfClasses:
    @pytest.fixture
    def folder(self, results: Path, tmp_path: Path) -> Path:
        folder = tmp_path / "docs" / "results" / "toy"
        shutil.copytree(results, folder)
        return folder

    @pytest.fixture
    def text(self, folder: Path) -> str:
        out = folder.parent.parent / "results.md"
        written = report(folder.parent, out)
        assert written == [out, folder / "curves.png"]
        return out.read_text()

    def test_shows_every_figure_of_the_files(self, folder: Path, text: str) -> None:
        for name in ("unguided", "guided", "renders"):
            found = row(folder, name)
            for figure, digits in (("hit", 3), ("fid", 2), ("recall", 3), ("spread", 3)):
                assert shown_in(text, found["title"], found["figures"][figure], digits)
        assert f"{row(folder, 'guided')['cost']['seconds']:.3g}" in text
        assert "| **+" in text or "| **-" in text  # differences that are not 0 are bold
        for words in ("Paired", "It sees colours.", "A sketch", "| A guide | raw:100 |"):
            assert words in text
        links = [part.split(")")[0] for part in text.split("](")[1:]]
        assert len(links) == 7
        assert all((folder.parent.parent / link).is_file() for link in links)

    def test_is_the_same_every_time(self, folder: Path, text: str) -> None:
        before = (folder / "curves.png").read_bytes()
        report(folder, folder.parent.parent / "results.md")
        assert before == (folder / "curves.png").read_bytes()
        assert (folder.parent.parent / "results.md").read_text() == text

    def test_shows_comparisons_at_equal_fid_and_fidelity(self, folder: Path) -> None:
        path = folder / "differences.json"
        record = json.loads(path.read_text())
        interval = {"value": 0.25, "low": 0.125, "high": 0.375}
        never = dict.fromkeys(("value", "low", "high"))
        cases = {"unguided": (never, never, False), "guided": (interval, never, True)}
        record["equal"] = {
            "unguided": {
                name: {"hit": {"fidelity": fidelity, "fid": fid, "ends": ends}}
                for name, (fidelity, fid, ends) in cases.items()
            }
        }
        path.write_text(json.dumps(record))
        text = render([Results.read(folder)], folder)
        assert "| row | hit rate at equal FID | FID at equal hit rate |" in text
        assert "| A guide | **+0.250 [+0.125, +0.375]**\\* | never |" in text
        assert "| No guide | never | never |" in text

    def test_says_how_near_the_default_is_to_the_best_scale_of_no_higher_fid(
        self, folder: Path, text: str
    ) -> None:
        assert "one multiplier" not in text  # of rows without experts
        path = folder / "rows" / "guided.json"
        found = json.loads(path.read_text())
        figures = {4.0: (0.5, 2.0), 8.0: (0.75, 1.0), 16.0: (0.6, 1.5), 32.0: (0.9, 1.75)}
        found["points"] = [
            {"scale": scale, "figures": {"hit": {"value": hit}, "fid": {"value": fid}}}
            for scale, (hit, fid) in figures.items()
        ]
        guide = {"component": "classifier", "aim": "class", "experts": {"num_experts": 5}}
        found |= {"default": 16.0, "guide": guide}
        title = "A toy"
        result = Results.read(folder)
        rows = [found if row["name"] == "guided" else row for row in result.rows]
        both = ["hit", "depth.correlation"]  # at the second, the guide does not aim
        experiment = {**result.experiment, "title": title, "fidelity": both}
        said = one_default([attrs.evolve(result, rows=rows, experiment=experiment)])
        assert f"| {title} | A guide | hit rate | × 16 | 0.600 | × 8 | 0.750 | 80.0% |" in said
        assert one_default([attrs.evolve(result, rows=[found | {"default": "raw:16"}])]) == ""

    def test_reads_what_had_a_single_scale(self, folder: Path) -> None:
        """Of format 1, whose rows chose a scale on other images."""
        for path in folder.glob("**/*.json"):
            record = json.loads(path.read_text()) | {"format": 1}
            if path.stem == "guided":
                for name in ("points", "default", "sampling", "interval", "schedule", "curves"):
                    del record[name]
                record |= {
                    "chosen": {"scale": 100.0, "interval": [0.0, 0.5]},
                    "tuning": [{"scale": 100.0}, {"scale": 1.0}],
                }
            elif path.stem == "differences":
                del record["equal"]
            elif path.stem == "experiment":
                record["objective"] = record.pop("fidelity")
            record.get("protocol", {}).update(tuning={"seed": 7, "num": 16})
            path.write_text(json.dumps(record))
        out = folder / "page.md"
        report(folder, out)
        text = out.read_text()
        assert "| A guide | raw:100 at 0–0.5 |" in text
        assert "the scale is the best of 2 on 16 images of seed 7" in text

    @pytest.mark.parametrize(
        ("num", "said"), [(1023, ["A sketch"]), (1024, ["FID is biased"]), (2048, [])]
    )
    def test_says_what_few_images_are_good_for(
        self, folder: Path, num: int, said: list[str]
    ) -> None:
        result = Results.read(folder)
        protocol = {**result.experiment["protocol"], "num": num}
        changed = attrs.evolve(result, experiment={**result.experiment, "protocol": protocol})
        text = render([changed], folder)
        assert [words for words in ("A sketch", "FID is biased") if words in text] == said

    def test_of_several_results_begins_with_all_rows_at_a_glance(
        self, folder: Path, text: str
    ) -> None:
        assert "At a glance" not in text  # of a single one
        result = Results.read(folder)
        both = render([result, result], folder)
        lines = both.partition("## At a glance")[2].partition("\n## ")[0].splitlines()
        title = result.experiment["title"]
        anchor = title.lower().replace(" ", "-")
        for name in ("unguided", "guided"):
            found = row(folder, name)["figures"]
            shown = f"hit rate ↑ {found['hit']['value']:.3f} | {found['fid']['value']:.2f} |"
            assert sum(f"| {row(folder, name)['title']} | {shown}" in line for line in lines) == 2
        assert sum(f"[{title}](#{anchor})" in line for line in lines) == 2

    def test_says_which_rows_are_missing(self, folder: Path) -> None:
        (folder / "rows" / "guided.json").unlink()
        assert "Not measured: guided." in render([Results.read(folder)], folder)

    def test_refuses_rows_that_were_measured_otherwise(self, folder: Path) -> None:
        found = row(folder, "guided")
        found["protocol"]["steps"] += 1
        (folder / "rows" / "guided.json").write_text(json.dumps(found))
        with pytest.raises(AssetError, match=r"'guided'.*not measured as"):
            report(folder, folder / "x.md")

    def test_refuses_a_folder_without_results(self, tmp_path: Path) -> None:
        with pytest.raises(AssetError, match="no results"):
            report(tmp_path, tmp_path / "x.md")
        (tmp_path / "experiment.json").write_text("{")
        with pytest.raises(AssetError, match="damaged"):
            report(tmp_path, tmp_path / "x.md")


class TestOfScenes:
    @pytest.fixture
    def text(self, scene_results: Path, tmp_path: Path) -> str:
        report(scene_results, tmp_path / "page.md")
        return (tmp_path / "page.md").read_text()

    def test_shows_every_figure_and_which_way_is_better(
        self, scene_results: Path, text: str
    ) -> None:
        figures = "hit rate ↑ | grey distance ↓ | grey likeness ↑ |"
        assert f"| row | scale | {figures} judge is sure |" in text
        assert f"| row | {figures} FID ↓ |" in text
        for name in ("unguided", "guided", "together"):
            found = row(scene_results, name)
            assert shown_in(text, found["title"], found["figures"]["grey.distance"], 3)

    def test_says_how_it_was_measured(self, text: str) -> None:
        for words in (
            "image i aims at scene i mod 8",
            "*grey*: grey (grey-1), which guides nothing either",
            "`toy-distance` measures what it sees against the true brightness",
            "On the 8 scenes themselves",
            "grey distance and hit rate against FID and recall",
            "together: the scale is a factor; grey times 100, colour times 20.",
        ):
            assert words in text

    def test_shows_what_rows_look_like(self, home: Path, scene_results: Path, text: str) -> None:
        for name in ("scenes", "rows/guided", "rows/together", "rows/renders"):
            assert f"{name}.png)" in text
        with Image.open(scene_results / "rows" / "guided.png") as strip:
            shown = np.asarray(strip.convert("RGB"))
        assert shown.shape == (2 * 64 + 4, 8 * 68 - 4, 3)  # images, and what the judge sees in them
        pixels = kept_pixels(home / "scene-images", "raw:300.0")
        for column in range(8):
            left = column * 68
            assert (shown[:64:8, left : left + 64 : 8] == pixels[column]).all()
        with Image.open(scene_results / "scenes.png") as strip:
            scene = np.asarray(strip.convert("RGB"))[:64:8, :64:8]
        assert (scene == np.load(home / "scenes.npz")["images"][0].transpose(1, 2, 0)).all()

    def test_says_when_training_is_paid_back(self, scene_results: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        shutil.copytree(scene_results, out)
        found, other = row(out, "guided"), row(out, "together")
        found["training"] = {"seconds": 1234.0, "records": []}
        found["cost"]["seconds"] = 0.5
        for guide in other["guides"]:
            guide["through"] = "clean"
        other["cost"]["seconds"] = 1.0
        for name, changed in (("guided", found), ("together", other)):
            (out / "rows" / f"{name}.json").write_text(json.dumps(changed))
        report(out, tmp_path / "page.md")
        page = (tmp_path / "page.md").read_text()
        assert "| row | seconds | paid back against together after |" in page
        assert "| A guide | 1,234 | 2,468 images |" in page


class TestStrips:
    def test_are_the_same_every_time(self, tmp_path: Path) -> None:
        pictures = list(np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), np.uint8))
        for name in ("a.png", "b.png"):
            write_strip(tmp_path / name, [pictures, pictures[:1]])
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()

    def test_fill_their_width_and_no_more_height(self, tmp_path: Path) -> None:
        small = [np.full((32, 32, 3), value, np.uint8) for value in (10, 20)]
        large = [np.full((150, 128, 3), value, np.uint8) for value in (30, 40)]
        write_strip(tmp_path / "strip.png", [small, large])
        with Image.open(tmp_path / "strip.png") as strip:
            shown = np.asarray(strip.convert("RGB"))
        assert shown.shape == (128 + 4 + 150, 128 + 4 + 128, 3)
        corners = [int(shown[row, column, 0]) for row in (127, 132) for column in (127, 132)]
        assert corners == [10, 20, 30, 40]
