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
from toy_experts import write_experts

from ppap_framework.diagnosis.intervals import Interval
from ppap_framework.errors import AssetError, PpapError, UsageError
from ppap_framework.experts import keep_bundle
from ppap_framework.files import file_sha256
from ppap_framework.runtime import Progress
from ppap_plugin_bench import Experiment, Row, evaluate, read_experiment, report, row_guide
from ppap_plugin_bench.assessment import Assessment, Trial, choose
from ppap_plugin_bench.cost import training_of
from ppap_plugin_bench.report_cost import paid_back
from ppap_plugin_bench.row import Candidate
from ppap_plugin_bench.setup import Setup


def evaluated(experiment: Experiment, folder: Path, *rows: str, **given: Any) -> list[Path]:
    out, images = folder / "out", folder / "images"
    return evaluate(experiment, out, images, rows=rows or None, device="cpu", **given)


def figure(results: Path, name: str, figure: str) -> float:
    return row(results, name)["figures"][figure]["value"]


class TestClasses:
    def test_rows_choose_the_scale_that_hits_most(self, home: Path, results: Path) -> None:
        """Hits are counted again from pixels and weights, without any of the machinery."""
        found = row(results, "guided")
        hits = [trial["hit"]["value"] for trial in found["tuning"]]
        assert hits[1] == max(hits)
        assert found["chosen"] == {"scale": 100.0, "interval": [0.0, 1.0]}
        assert figure(results, "guided", "hit") > figure(results, "unguided", "hit")
        pixels = kept_pixels(home / "images", 0, 100.0)
        seen = ((pixels / 127.5 - 1.0).mean((1, 2)) @ WEIGHT.numpy().T).argmax(1)
        share = (seen == np.arange(64) % 4).mean()
        assert figure(results, "guided", "hit") == pytest.approx(share)

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
        (path,) = (home / "images").glob("resampled/*/guided.npz")
        kept = Assessment.load(path)
        kept.save(tmp_path / "again.npz")
        again = Assessment.load(tmp_path / "again.npz")
        assert again.figures == kept.figures
        assert all((again.resampled[name] == kept.resampled[name]).all() for name in kept.figures)


class TestScenes:
    def test_are_what_images_are_judged_by(self, home: Path, scene_results: Path) -> None:
        """Again from the pixels and the file of scenes, without any of the machinery."""
        there = np.load(home / "scenes.npz")["brightness"]
        pixels = kept_pixels(home / "scene-images", 0, 300.0)
        distances = np.abs((pixels / 127.5 - 1.0).mean(3) - there[np.arange(16) % 8]).mean((1, 2))
        found = row(scene_results, "guided")["figures"]
        assert found["grey.distance"]["value"] == pytest.approx(distances.mean(), rel=1e-4)
        assert found["grey.likeness"]["value"] == pytest.approx(1 - distances.mean(), rel=1e-4)
        low, high = (found["grey.distance"][end] for end in ("low", "high"))
        width = 2 * 1.96 * distances.std() / math.sqrt(16)
        assert high - low == pytest.approx(width, rel=0.2)

    def test_let_rows_choose_what_is_better_low(self, home: Path, scene_results: Path) -> None:
        found = row(scene_results, "guided")
        assert found["objective"] == ["grey.distance"]
        distances = [trial["grey.distance"]["value"] for trial in found["tuning"]]
        assert found["chosen"]["scale"] == 300.0
        assert distances[1] == min(distances)
        there = np.load(home / "scenes.npz")["brightness"][8:16]
        pixels = kept_pixels(home / "scene-images", 7, 300.0)
        by_hand = np.abs((pixels / 127.5 - 1.0).mean(3) - there).mean()
        assert distances[1] == pytest.approx(by_hand, rel=1e-4)

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
        assert together["objective"] == ["hit", "grey.likeness"]
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
        changed = attrs.evolve(scene_experiment, judges=judges, objective=("hit",), rows=rows)
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
        rows, objective = scene_experiment.rows[1:3], ("grey.unknown",)
        changes = {"judges": (judge,), "objective": objective, "rows": rows}
        evaluated(attrs.evolve(scene_experiment, **changes), tmp_path)
        found = row(tmp_path / "out", "guided")
        assert found["figures"]["grey.unknown"] == {"value": None, "low": None, "high": None}
        assert found["chosen"]["scale"] == 0.1  # the first of several that are equally bad
        report(tmp_path / "out", tmp_path / "page.md")
        assert "| A guide | 0.1 | – |" in (tmp_path / "page.md").read_text()


def test_figures_say_which_experts_guided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPAP_CACHE_DIR", str(tmp_path / "cache"))
    scales = (20.0, 5.0, 0.005)
    bundle = write_experts(write_experiments(tmp_path) / "kept", scales=scales)
    keep_bundle(write_experts(tmp_path, seed=5))  # auto would take it
    (path,) = evaluated(read_experiment(tmp_path / "experts.toml"), tmp_path, "calibrated")
    found = read(path)
    experts = found["guide"]["experts"]
    assert experts == {
        "name": "mine",
        "sha256": file_sha256(bundle),
        "num_experts": 3,
        "boundaries": experts["boundaries"],
        "scales": list(scales),
    }
    assert len(experts["boundaries"]) == 2
    assert found["chosen"] == {"scale": "auto", "interval": [0.0, 1.0]}
    assert found["cost"]["peak_memory"] is None or found["cost"]["peak_memory"] > 2**26
    written = report(tmp_path / "out", tmp_path / "page.md")  # a plot of no scales among it
    assert all(path.is_file() for path in written)
    page = (tmp_path / "page.md").read_text()
    assert "| calibrated | auto |" in page
    assert f"calibrated: guided by 3 experts, mine ({experts['sha256'][:12]})." in page
    assert "at the edge" not in page


class TestChoice:
    def made(self, scale: float, **figures: float) -> Trial:
        known = {name: Interval(value, value, value) for name, value in figures.items()}
        return Trial(Candidate(scale, (0.0, 1.0)), known, 0.0, 0.0)

    def test_is_by_the_mean_of_figures_each_in_its_direction(self) -> None:
        figures = {1.0: (0.5, 0.6), 2.0: (0.8, 0.8), 3.0: (0.6, 0.3), 4.0: (math.nan, math.nan)}
        trials = [self.made(scale, hit=h, error=e) for scale, (h, e) in figures.items()]
        higher, lower = {"hit": "higher"}, {"error": "lower"}
        chosen = [choose(trials, one).candidate.scale for one in (higher, lower, higher | lower)]
        assert chosen == [2.0, 3.0, 3.0]

    def test_is_never_what_is_not_finite(self) -> None:
        trials = [self.made(1.0, hit=math.nan), self.made(2.0, hit=0.0), self.made(3.0, hit=0.0)]
        assert choose(trials, {"hit": "higher"}).candidate.scale == 2.0


class TestTraining:
    @pytest.fixture
    def trained(self, home: Path, scene_experiment: Experiment) -> Any:
        """A row with experts, and its guides."""
        path = write_experts(home / "kept", scales=(1.0, 1.0, 1.0))
        guide = row_guide(guider="colour", aim="class", experts=str(path))
        made = Row(name="experts", guides=(guide,), scales=(1.0,))
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
