"""Experiments from their file to the files of figures."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from bench_toy import NAMES, WEIGHT, kept_pixels, read, row, write_experiments
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_distribution import write_experts

from ppap_framework.errors import AssetError, PpapError, UsageError
from ppap_framework.experts import ScaleCurve, keep_bundle, write_curve
from ppap_framework.files import file_sha256
from ppap_framework.runtime import Progress
from ppap_plugin_bench import Experiment, Row, evaluate, read_experiment, report, row_guide
from ppap_plugin_bench.assessment import Assessment
from ppap_plugin_bench.comparison import at_equal, best_within
from ppap_plugin_bench.cost import training_of
from ppap_plugin_bench.report_cost import paid_back
from ppap_plugin_bench.setup import Setup
from ppap_plugin_diagnose.intervals import Interval


def evaluated(experiment: Experiment, folder: Path, *rows: str, **given: Any) -> list[Path]:
    out, images = folder / "out", folder / "images"
    return evaluate(experiment, out, images, rows=rows or None, device="cpu", **given)


def figure(results: Path, name: str, figure: str) -> float:
    return row(results, name)["figures"][figure]["value"]


class TestClasses:
    def test_rows_are_measured_at_every_scale(self, home: Path, results: Path) -> None:
        """Hits are counted again from pixels and weights, without any of the machinery."""
        found = row(results, "guided")
        assert [point["scale"] for point in found["points"]] == [
            "raw:0.001",
            "raw:100",
            "raw:0.002",
        ]
        assert found["default"] == "raw:100"
        assert found["figures"] == found["points"][1]["figures"]
        assert figure(results, "guided", "hit") > figure(results, "unguided", "hit")
        for point in found["points"]:
            scale = f"raw:{float(point['scale'][4:])!r}"
            pixels = kept_pixels(home / "images", scale)
            seen = ((pixels / 127.5 - 1.0).mean((1, 2)) @ WEIGHT.numpy().T).argmax(1)
            share = (seen == np.arange(64) % 4).mean()
            hit = point["figures"]["hit"]
            assert hit["value"] == pytest.approx(share)
            assert hit["error"] == pytest.approx(math.sqrt(share * (1 - share) / 64), rel=0.1)

    def test_existing_pictures_are_measured(self, results: Path) -> None:
        judged = read(results / "judge.json")["figures"]["hit"]["value"]
        assert row(results, "renders")["cost"] is None
        assert figure(results, "renders", "hit") == pytest.approx(judged, abs=0.1)
        assert figure(results, "renders", "fid") < figure(results, "unguided", "fid")
        assert figure(results, "renders", "spread") == pytest.approx(1.0, abs=0.4)

    def test_the_confusion_of_the_judge_is_published(self, home: Path, results: Path) -> None:
        judged, labels = read(results / "judge.json"), np.load(home / "reference.npz")["labels"]
        matrix = np.array(judged["confusion"])
        assert matrix.sum(1).tolist() == np.bincount(labels).tolist()
        assert np.trace(matrix) / 200 == pytest.approx(judged["figures"]["hit"]["value"])

    def test_rows_of_the_same_noise_are_paired(self, results: Path) -> None:
        differences = read(results / "differences.json")["from"]
        assert {n: list(found) for n, found in differences.items()} == {"unguided": ["guided"]}
        found = differences["unguided"]["guided"]["hit"]
        wanted = figure(results, "guided", "hit") - figure(results, "unguided", "hit")
        assert found["value"] == pytest.approx(wanted)
        assert found["low"] > 0.0

    def test_rows_are_compared_along_the_curves_of_guided_baselines(
        self, experiment: Experiment, home: Path, tmp_path: Path
    ) -> None:
        """A row equals its own copy at equal FID and equal fidelity, image by image."""
        guided = experiment.rows[1]
        twin = attrs.evolve(guided, name="twin")
        rows = (experiment.rows[0], guided, twin)
        both = attrs.evolve(experiment, rows=rows, baselines=("unguided", "guided"))
        evaluate(both, tmp_path / "out", home / "images", rows=["unguided", "guided", "twin"],
                 device="cpu")  # fmt: skip
        equal = read(tmp_path / "out" / "differences.json")["equal"]
        assert {name: list(rows) for name, rows in equal.items()} == {"guided": ["twin"]}
        found = equal["guided"]["twin"]["hit"]
        assert found["fidelity"] == {"value": 0.0, "low": 0.0, "high": 0.0}
        assert found["fid"]["value"] <= 0.0 or found["fid"]["value"] == pytest.approx(0.0)

    def test_a_row_may_have_baselines_of_its_own(
        self, experiment: Experiment, home: Path, tmp_path: Path
    ) -> None:
        plain, guided = experiment.rows[:2]
        rows = (plain, guided, attrs.evolve(guided, name="twin", baselines=("guided",)))
        more = attrs.evolve(experiment, rows=rows)
        evaluate(more, tmp_path / "out", home / "images", rows=["unguided", "guided", "twin"],
                 device="cpu")  # fmt: skip
        found = read(tmp_path / "out" / "differences.json")["from"]
        compared = {name: list(rows) for name, rows in found.items()}
        assert compared == {"unguided": ["guided"], "guided": ["twin"]}
        with pytest.raises(ValueError, match="has no row nobody, which `baselines` names"):
            attrs.evolve(more, rows=(plain, attrs.evolve(guided, baselines=("nobody",))))

    def test_what_an_image_costs_is_stated(self, results: Path) -> None:
        plain, guided = row(results, "unguided"), row(results, "guided")
        passes = ("denoiser_forwards", "denoiser_backwards", "guide_forwards", "guide_backwards")
        assert plain["per_image"] == dict(zip(passes, (5, 0, 0, 0), strict=True))
        assert guided["per_image"] == dict(zip(passes, (5, 0, 5, 5), strict=True))
        cost = guided["cost"]
        assert cost["seconds"] == sorted(cost["rounds"])[1]
        assert cost["in_turn_with"] == ["unguided", "guided"]
        assert cost["threads"] == torch.get_num_threads()
        assert cost["peak_memory"] is None or 2**26 < cost["peak_memory"] < 2**33

    def test_go_on_after_a_kill_to_equal_figures(
        self, home: Path, experiment: Experiment, results: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(home / "images" / "costs", tmp_path / "images" / "costs")
        for moment in (2, 5, 9):  # in batches drawn
            left = moment

            def kill(now: Progress) -> None:
                nonlocal left
                left -= now.done > 1
                if left == 0:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                evaluated(experiment, tmp_path, progress=kill)
        evaluated(experiment, tmp_path, command=["ppap", "evaluate"])
        files = sorted(path.relative_to(results) for path in results.glob("**/*.json"))
        assert len(files) == 6
        for path in files:
            assert (tmp_path / "out" / path).read_bytes() == (results / path).read_bytes()

    def test_of_one_row_leave_the_others(
        self, home: Path, experiment: Experiment, results: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        shutil.copytree(results, out)
        before = (results / "differences.json").read_bytes()
        paths = evaluate(experiment, out, home / "images", rows=["unguided"], device="cpu")
        assert paths == [out / "rows" / "unguided.json"]
        assert (out / "differences.json").read_bytes() == before
        assert row(out, "guided") == row(results, "guided")

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"num": 62}, "62 images do not aim equally often at 4 classes"),
            ({"num": 400}, "200 pictures for rows of 400"),
            ({"parts": ("shade",)}, "does not have the 1 parts shade"),
            ({"judge": "colour:colour-3"}, "guided by the judge"),
            ({"steps": 1000}, "1000 steps"),
            ({"reference": "/nowhere.npz"}, "no pictures '/nowhere.npz'"),
            ({"backend": "tyo"}, "tyo"),
        ],
    )
    def test_that_do_not_go_together_are_refused(
        self, experiment: Experiment, tmp_path: Path, changes: dict[str, Any], says: str
    ) -> None:
        with pytest.raises(PpapError, match=says):
            evaluated(attrs.evolve(experiment, **changes), tmp_path, "guided")

    def test_the_reference_is_no_row(self, experiment: Experiment, tmp_path: Path) -> None:
        same = attrs.evolve(experiment.rows[2], images=experiment.reference)
        changed = attrs.evolve(experiment, rows=(*experiment.rows[:2], same))
        with pytest.raises(UsageError, match="the reference itself"):
            evaluated(changed, tmp_path, "renders")

    def test_resampled_figures_are_kept(self, results: Path, home: Path, tmp_path: Path) -> None:
        paths = sorted((home / "images").glob("resampled/*/guided-*.npz"))
        assert len(paths) >= 3  # one for each scale
        kept = Assessment.load(paths[0])
        kept.save(tmp_path / "again.npz")
        again = Assessment.load(tmp_path / "again.npz")
        assert again.figures == kept.figures
        assert all((again.resampled[name] == kept.resampled[name]).all() for name in kept.figures)
        assert set(kept.images) == {"hit", "sure", "precision"}
        for name, values in kept.images.items():  # of each image
            assert again.images[name].shape == (64,)
            assert values.mean() == pytest.approx(kept.figures[name].value)


class TestScenes:
    def test_are_what_images_are_judged_by(self, home: Path, scene_results: Path) -> None:
        """Again from the pixels and the file of scenes, without any of the machinery."""
        there = np.load(home / "scenes.npz")["brightness"]
        pixels = kept_pixels(home / "scene-images", "raw:300.0")
        distances = np.abs((pixels / 127.5 - 1.0).mean(3) - there[np.arange(16) % 8]).mean((1, 2))
        found = row(scene_results, "guided")["figures"]
        assert found["grey.distance"]["value"] == pytest.approx(distances.mean(), rel=1e-4)
        assert found["grey.likeness"]["value"] == pytest.approx(1 - distances.mean(), rel=1e-4)
        low, high = (found["grey.distance"][end] for end in ("low", "high"))
        width = 2 * 1.96 * distances.std() / math.sqrt(16)
        assert high - low == pytest.approx(width, rel=0.2)

    def test_pair_rows(self, scene_results: Path) -> None:
        differences = read(scene_results / "differences.json")["from"]["unguided"]
        found = differences["guided"]["grey.distance"]
        guided, unguided = (
            figure(scene_results, name, "grey.distance") for name in ("guided", "unguided")
        )
        assert found["value"] == pytest.approx(guided - unguided, abs=1e-5)
        assert found["high"] < 0.0

    def test_let_each_of_several_guides_be_judged(self, scene_results: Path) -> None:
        together = row(scene_results, "together")
        for name in ("hit", "grey.likeness"):
            unguided = figure(scene_results, "unguided", name)
            assert together["figures"][name]["value"] > unguided
        assert together["guide"] is None
        guides = [(guide["component"], guide["scale"]) for guide in together["guides"]]
        assert guides == [("grey", 100.0), ("colour", 20.0)]
        assert together["guides"][1]["aim"] == "class"
        assert together["per_image"]["guide_backwards"] == 10
        parameters = {"denoiser", "together-grey", "together-colour"}
        assert set(together["cost"]["parameters"]) == parameters

    def test_are_judged_themselves(self, home: Path, scene_results: Path) -> None:
        found = read(scene_results / "judge.json")["scenes"]
        file = np.load(home / "scenes.npz")
        seen = (file["images"] / 127.5 - 1.0).mean(1)
        wanted = np.abs(seen - file["brightness"])[:8].mean()
        assert found["num"] == 8
        assert found["figures"]["grey.distance"]["value"] == pytest.approx(wanted, rel=1e-3)
        assert wanted < 0.01 < figure(scene_results, "guided", "grey.distance")
        # Existing pictures are judged by their own truth.
        assert figure(scene_results, "renders", "grey.distance") < 0.01

    def test_are_what_rows_have_in_common(
        self, scene_experiment: Experiment, scene_results: Path
    ) -> None:
        told = read(scene_results / "experiment.json")
        assert told["protocol"]["scenes"]["num"] == 8
        assert told["protocol"]["judges"][0]["truth"] == "brightness"
        assert told["judges"][0]["checkpoint"] == "grey-1"
        assert told["shown"] == scene_experiment.shown

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"truth": "depth"}, "has no depth"),
            ({"lower": ("nothing",)}, "judge 'grey' measures no nothing"),
            ({"guider": "grey:grye"}, "grye"),
            ({"guider": "colour:colour-3", "loss": None}, "failed in metrics"),
        ],
    )
    def test_of_judges_that_do_not_fit_are_refused(
        self, scene_experiment: Experiment, tmp_path: Path, changes: dict[str, Any], says: str
    ) -> None:
        judges = (attrs.evolve(scene_experiment.judges[0], **changes),)
        rows = scene_experiment.rows[1:3]
        changed = attrs.evolve(scene_experiment, judges=judges, fidelity=("hit",), rows=rows)
        with pytest.raises(PpapError, match=says):
            evaluated(changed, tmp_path, "unguided")

    def test_cannot_be_judged_by_a_guide(
        self, scene_experiment: Experiment, tmp_path: Path
    ) -> None:
        guided = scene_experiment.rows[2]
        own = attrs.evolve(guided, guides=(attrs.evolve(guided.guides[0], model=None),))
        with pytest.raises(UsageError, match="guided by the judge"):
            evaluated(attrs.evolve(scene_experiment, rows=(own,), baselines=()), tmp_path)

    def test_figures_that_are_not_finite_are_kept_as_that(
        self, scene_experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ppap_plugin_bench.cost.peak_memory_of", lambda *given: None)
        judge = attrs.evolve(scene_experiment.judges[0], lower=("unknown",), higher=())
        rows, fidelity = scene_experiment.rows[1:3], ("grey.unknown",)
        changes = {"judges": (judge,), "fidelity": fidelity, "rows": rows}
        evaluated(attrs.evolve(scene_experiment, **changes), tmp_path)
        found = row(tmp_path / "out", "guided")
        unknown = dict.fromkeys(("value", "low", "high", "error"))
        assert found["figures"]["grey.unknown"] == unknown
        report(tmp_path / "out", tmp_path / "page.md")
        assert "| A guide | raw:300 | – |" in (tmp_path / "page.md").read_text()


def test_figures_say_how_a_row_was_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPAP_CACHE_DIR", str(tmp_path / "cache"))
    bundle = write_experts(write_experiments(tmp_path) / "kept", held_out=(0.125, 0.5, 2.0))
    write_curve(bundle, ScaleCurve((-1.0, 1.0), (0.5, 8.0), (0.1, 0.2)))
    keep_bundle(write_experts(tmp_path, seed=5))  # auto would take it
    found = read_experiment(tmp_path / "experts.toml")
    other = attrs.evolve(found.rows[2], moments=(0.5, 0.9), guide_every=2)
    found = attrs.evolve(found, rows=(*found.rows[:2], other))
    paths = evaluated(found, tmp_path, "experts", "other")
    record, drawn_otherwise = map(read, paths)
    experts = record["guide"]["experts"]
    assert experts["sha256"] == file_sha256(bundle)
    assert experts["num_experts"] == 3
    assert [point["scale"] for point in record["points"]] == [1.0, 8.0]
    assert record["default"] == 8.0
    (curve,) = record["curves"]
    assert (curve["scales"], curve["errors"]) == ([0.5, 8.0], [0.1, 0.2])
    assert drawn_otherwise["curves"] == [None]
    assert drawn_otherwise["sampling"]["steps"] == 4
    assert drawn_otherwise["cost"]["steps"] == 4
    assert record["cost"]["peak_memory"] is None or record["cost"]["peak_memory"] > 2**26
    written = report(tmp_path / "out", tmp_path / "page.md")
    assert all(path.is_file() for path in written)
    page = (tmp_path / "page.md").read_text()
    assert "| experts | × 8 |" in page
    assert "| other | raw:7.5 |" in page
    assert (experts["held_out"], experts["untouched"]) == ([0.125, 0.5, 2.0], [0.25, 1.0, 4.0])
    told = "whose losses on held-out images are 0.125, 0.5, 2 from the least noise to the most"
    known = f"mine ({experts['sha256'][:12]}), {told}, and 0.25, 1, 4 untouched."
    assert f"experts: guided by 3 experts, {known}" in page
    assert "other: 4 DDPM steps." in page
    assert "other: adaptive moments 0.5 and 0.9." in page
    assert "other: guides look at one of 2 steps, the others repeat the gradient." in page


class TestAtEqualFid:
    """`best_within` against brute force along the line, and `at_equal` where it is known."""

    @given(st.integers(0, 2**31), st.integers(1, 6))
    @settings(max_examples=50)
    def test_is_the_best_anywhere_on_the_line(self, seed: int, number: int) -> None:
        rng = np.random.default_rng(seed)
        cost, gain, limit = rng.random((number, 4)), rng.random((number, 4)), rng.random(4)
        found = best_within(cost, gain, limit)
        along = np.linspace(0.0, 1.0, 2001)[:, None]
        for column in range(4):
            x, y = cost[:, column], gain[:, column]
            every = [(x, y)] + [
                (x[k] + along[:, 0] * (x[k + 1] - x[k]), y[k] + along[:, 0] * (y[k + 1] - y[k]))
                for k in range(number - 1)
            ]
            within = [b[a <= limit[column]] for a, b in every]
            wanted = max((part.max() for part in within if len(part)), default=math.nan)
            assert found[column] == pytest.approx(wanted, abs=2e-3, nan_ok=True)
            assert not found[column] < wanted  # NaN where nothing is

    def made(self, fid: float, hit: float) -> Assessment:
        noise = np.random.default_rng(0).standard_normal(100) / 100
        values = {"fid": fid, "hit": hit}
        figures = {name: Interval(value, value, value) for name, value in values.items()}
        return Assessment(figures, {n: v + noise + 0.5 for n, v in values.items()}, {})

    def test_is_read_between_two_scales(self) -> None:
        curve = [self.made(1.0, 0.0), self.made(2.0, 0.4), self.made(4.0, 0.8)]
        found = at_equal(self.made(3.0, 0.7), curve, "hit", "higher")
        assert found["fidelity"]["value"] == pytest.approx(0.7 - 0.6)
        assert found["fid"]["value"] == pytest.approx(3.0 - 3.5)
        assert found["ends"] is False
        ends = [found["fidelity"][end] for end in ("low", "high")]
        assert ends == pytest.approx([0.1, 0.1])  # the noise is common, and falls out
        lower = at_equal(self.made(3.0, 0.3), curve[::-1], "hit", "lower")
        assert lower["fidelity"]["value"] == pytest.approx(0.3)  # 0 is reached at a FID of 1
        assert lower["fid"]["value"] == pytest.approx(2.0)

    def test_is_unknown_where_a_curve_does_not_go(self) -> None:
        curve = [self.made(2.0, 0.1), self.made(3.0, 0.4)]
        found = at_equal(self.made(1.0, 0.9), curve, "hit", "higher")
        assert found["fidelity"] == found["fid"] == dict.fromkeys(("value", "low", "high"))
        found = at_equal(self.made(9.0, 0.2), curve, "hit", "higher")
        assert found["ends"] is True
        assert found["fidelity"]["value"] == pytest.approx(-0.2)


class TestTraining:
    @pytest.fixture
    def trained(self, home: Path, scene_experiment: Experiment) -> Any:
        """A row with experts, and its guides."""
        path = write_experts(home / "kept", scales=(1.0, 1.0, 1.0))
        guide = row_guide(guider="colour", aim="class", experts=str(path))
        made = Row(name="experts", guides=(guide,))
        wanted = attrs.evolve(scene_experiment, rows=(made,), baselines=())
        return made, Setup.load(wanted, NAMES, "cpu").guides(made)

    def record(self, path: Path, seconds: float, **more: Any) -> str:
        path.write_text(json.dumps({"status": "complete", "seconds": seconds, **more}))
        return str(path)

    def test_is_the_sum_of_its_records(self, trained: Any, tmp_path: Path) -> None:
        made, guides = trained
        settings = {"boundaries": list(guides[0].experts.ranges.boundaries), "data": None}
        paths = (
            self.record(tmp_path / "transfer.json", 90.5, settings=settings),
            self.record(tmp_path / "run.json", 9.5),
        )
        assert training_of(made, guides) is None
        files = (("transfer.json", 90.5), ("run.json", 9.5))
        records = [{"file": name, "seconds": seconds} for name, seconds in files]
        found = training_of(attrs.evolve(made, training=paths), guides)
        assert found == {"seconds": 100.0, "records": records}

    @pytest.mark.parametrize(
        ("text", "error", "says"),
        [
            (None, AssetError, "does not exist"),
            ("{", AssetError, "is damaged"),
            ("[]", AssetError, "does not say how many seconds"),
            ('{"status": "complete"}', AssetError, "does not say how many seconds"),
            ('{"status": "running", "seconds": 1}', AssetError, "was not finished"),
            (
                '{"status": "complete", "seconds": 1, "settings": {"boundaries": [], "data": "a"}}',
                UsageError,
                "is not of the training of row 'experts'",
            ),
        ],
    )
    def test_of_anything_else_is_refused(
        self, trained: Any, tmp_path: Path, text: str | None, error: type[PpapError], says: str
    ) -> None:
        made, guides = trained
        if text is not None:
            (tmp_path / "a.json").write_text(text)
        with pytest.raises(error, match=says):
            training_of(attrs.evolve(made, training=str(tmp_path / "a.json")), guides)

    def test_is_paid_back_by_what_images_save(self) -> None:
        def costs(seconds: float) -> dict[str, Any]:
            return {"training": {"seconds": 600.0}, "cost": {"seconds": seconds}}

        assert paid_back(costs(0.1), costs(0.4)) == "2,000 images"
        assert paid_back(costs(0.4), costs(0.1)) == "never"
        assert paid_back({"training": {"seconds": 1.0}, "cost": None}, costs(0.1)) == "–"
