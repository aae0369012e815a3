"""Experiments from file to page, on a model and guides whose answers are known."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
import toy_distribution
from PIL import Image
from torch import Tensor, nn

import ppap_framework as ppap
from ppap_framework.checkpoints import save_checkpoint
from ppap_framework.cli import main
from ppap_framework.components import GuidanceModel, Target, TargetInput
from ppap_framework.errors import AssetError, PluginError, PpapError, UsageError
from ppap_framework.guidance import Guide
from ppap_framework.noise import NoiseLevel
from ppap_framework.run import LoadedGuide, Origin
from ppap_plugin_bench import Experiment, Row, evaluate, read_experiment, read_pictures, report
from ppap_plugin_bench.aim import balanced
from ppap_plugin_bench.assessment import Assessment
from ppap_plugin_bench.blocks import Counts, draw, draw_block
from ppap_plugin_bench.judge import Judge, Projection
from ppap_plugin_bench.report import render
from ppap_plugin_bench.results import Results
from ppap_plugin_bench.stand import Stand

NAMES = ("dark red", "light red", "green", "blue")
COLOURS = np.array([[0.1, -0.1, -0.1], [0.9, 0.0, 0.0], [0.0, 0.9, 0.0], [0.0, 0.0, 0.9]])
NUM = 64


def pictures(path: Path, seed: int, number: int = 200) -> Path:
    """Noisy squares of the toy's four colours."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, number)
    levels = COLOURS[labels][:, :, None, None] + 0.2 * rng.standard_normal((number, 3, 8, 8))
    images = (127.5 * (levels + 1.0)).clip(0, 255).astype(np.uint8)
    np.savez(path, images=images, labels=labels, class_names=np.array(NAMES))
    return path


def experiment_file(folder: Path) -> Path:
    path = folder / "toy.toml"
    path.write_text(
        f"""
title = "A toy"
text = "Nothing to learn from."
backend = "toy"
judge = "colour:{folder / "judge.safetensors"}"
reference = "reference.npz"
num = {NUM}
steps = 5
block = 16
baselines = ["unguided"]
[tuning]
seed = 7
num = 16
[timing]
num = 2
rounds = 3
[[rows]]
name = "unguided"
title = "No guide"
[[rows]]
name = "guided"
title = "A guide"
text = "It sees colours."
guider = "colour"
scales = [0.001, 100.0, 0.002]
[[rows]]
name = "renders"
images = "others.npz"
"""
    )
    return path


@pytest.fixture(scope="module", autouse=True)
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    site = toy_distribution.install(tmp_path_factory.mktemp("toy") / "site")
    with toy_distribution.plugged(site) as folder:
        yield folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experiment")
    weight = torch.tensor([[0.5, -0.5, -0.5], [1.0, 0.1, 0.0], [-0.5, 1.0, -0.4], [-0.5, -0.5, 1]])
    save_checkpoint(folder / "judge.safetensors", {"weight": weight}, {})
    pictures(folder / "reference.npz", 1)
    pictures(folder / "others.npz", 2)
    experiment_file(folder)
    return folder


@pytest.fixture(scope="module")
def experiment(home: Path) -> Experiment:
    return read_experiment(home / "toy.toml")


@pytest.fixture(scope="module")
def results(home: Path, experiment: Experiment) -> Path:
    """The folder of the experiment's figures; its images are beside it."""
    evaluate(experiment, home / "out", home / "images", device="cpu", command=["ppap", "evaluate"])
    return home / "out"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def row(results: Path, name: str) -> Any:
    return read(results / "rows" / f"{name}.json")


class TestExperimentFiles:
    def test_may_be_json(self, home: Path, experiment: Experiment, tmp_path: Path) -> None:
        tables = attrs.asdict(
            experiment, filter=lambda field, value: value is not None, recurse=True
        )
        (tmp_path / "toy.json").write_text(json.dumps(tables))
        assert read_experiment(tmp_path / "toy.json") == experiment

    def test_take_paths_from_their_own_folder(self, home: Path, experiment: Experiment) -> None:
        assert experiment.reference == str(home / "reference.npz")
        assert experiment.rows[2].images == str(home / "others.npz")

    def test_yield_to_what_is_typed(self, home: Path) -> None:
        assert read_experiment(home / "toy.toml", reference="a.npz").reference == "a.npz"

    @pytest.mark.parametrize(
        ("was", "becomes", "says"),
        [
            ("backend =", "backened =", "has 'backened', not 'backend'; it has no backend"),
            ("num = 64", 'num = "64"', "num"),
            ("seed = 7", "seed = 0", "tunes on seed 0, which it reports"),
            ('["unguided"]', '["unguarded"]', "has no row unguarded"),
            ('name = "guided"', 'name = "unguided"', "several rows called unguided"),
            ('name = "guided"', 'name = "Guided"', "lower-case"),
            ('name = "guided"', 'name = "guided"\nimages = "x"', "one or the other"),
            ('guider = "colour"\n', "", "has scales and no guider"),
            ("[0.001, 100.0, 0.002]", "[]", "no scales to choose from"),
            ("[0.001, 100.0, 0.002]", "[nan]", "finite numbers"),
            ("[0.001, 100.0, 0.002]", "3", "not iterable"),
            ("[[rows]]\nname", "[[rows]]\nthrough = 'mist'\nname", "through"),
            ("[[rows]]\nname", "[[rows]]\nintervals = [[0.9, 0.2]]\nname", "[lo, hi]"),
            (
                'images = "others.npz"',
                'guider = "colour"\nscales = [1]',
                "unequal numbers of candidates to choose from: guided 3, renders 1",
            ),
            (
                'images = "others.npz"',
                'images = "others.npz"\nprompt = "brighter"',
                "has images, and tells the backend how to draw",
            ),
            ('judge = "', 'judge = "nobody" #', 'write "guider:checkpoint"'),
            ("[tuning]", "tuning = 3\n[other]", "[tuning] is no table"),
            ("title =", "title", "neither TOML nor JSON"),
        ],
    )
    def test_that_are_wrong_are_refused_in_one_line(
        self, home: Path, tmp_path: Path, was: str, becomes: str, says: str
    ) -> None:
        path = tmp_path / "toy.toml"
        text = (home / "toy.toml").read_text()
        assert was in text
        path.write_text(text.replace(was, becomes, 1))
        with pytest.raises(UsageError) as caught:
            read_experiment(path)
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_tell_all_that_is_wrong_at_once(self, tmp_path: Path) -> None:
        (tmp_path / "x.toml").write_text("[tuning]\nnum = 0\n[[rows]]\nguider = 'a'\n")
        with pytest.raises(UsageError, match=r"num.*row \? has no name"):
            read_experiment(tmp_path / "x.toml")

    def test_that_are_not_there_are_assets(self, tmp_path: Path) -> None:
        with pytest.raises(AssetError, match="cannot read"):
            read_experiment(tmp_path / "none.toml")

    def test_know_their_rows(self, experiment: Experiment) -> None:
        assert [r.name for r in experiment.chosen(["renders", "unguided"])] == [
            "unguided",
            "renders",
        ]
        with pytest.raises(UsageError, match=r"no row 'giuded'.*did you mean 'guided'"):
            experiment.chosen(["giuded"])

    def test_pair_every_scale_with_every_interval(self) -> None:
        guided = Row(name="a", guider="b", scales=(1, 2), intervals=((0, 0.5), (0, 1)))
        assert len({(c.scale, c.interval) for c in guided.candidates}) == 4


class TestPictures:
    def test_are_the_same_from_either_layout_and_from_folders(self, tmp_path: Path) -> None:
        images = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), np.uint8)
        labels, names = np.array([0, 0, 1, 1]), np.array(["cat", "dog"])
        np.savez(tmp_path / "last.npz", images=images, labels=labels, class_names=names)
        first = images.transpose(0, 3, 1, 2)
        np.savez(tmp_path / "first.npz", images=first, labels=labels, class_names=names)
        for number, image in enumerate(images):
            folder = tmp_path / "folder" / names[labels[number]]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number}.png")
        found = [read_pictures(tmp_path / name) for name in ("last.npz", "first.npz", "folder")]
        assert len({one.sha256 for one in found}) == 1
        assert all(one.names == ("cat", "dog") for one in found)
        assert (found[0].images == images).all()

    def test_without_names_go_by_number(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", images=np.zeros((2, 3, 8, 8), np.uint8), labels=[0, 2])
        assert read_pictures(tmp_path / "a.npz").names == ("0", "1", "2")

    @pytest.mark.parametrize(
        ("arrays", "says"),
        [
            ({"images": np.zeros((2, 3, 8, 8), np.uint8)}, "has no labels"),
            ({"images": np.zeros((2, 3, 8, 8)), "labels": [0, 1]}, "images of float64"),
            ({"images": np.zeros((2, 3, 8, 8), np.uint8), "labels": [0]}, "labels of int64"),
            ({"images": np.zeros((1, 3, 8, 8), np.uint8), "labels": [-1]}, "labels from -1"),
            ({"images": np.zeros((0, 3, 8, 8), np.uint8), "labels": np.zeros(0, int)}, "empty"),
            (
                {
                    "images": np.zeros((1, 3, 8, 8), np.uint8),
                    "labels": [0],
                    "class_names": np.array([{}], object),
                },
                "no .npz file",
            ),
        ],
    )
    def test_that_are_wrong_are_refused(
        self, tmp_path: Path, arrays: dict[str, Any], says: str
    ) -> None:
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(AssetError, match=says):
            read_pictures(tmp_path / "a.npz")

    def test_that_are_not_there_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "text.npz").write_text("no")
        for name in ("none", "empty", "text.npz"):
            with pytest.raises(AssetError, match=name):
                read_pictures(tmp_path / name)


class Watcher(GuidanceModel):
    """A classifier with its classes in an order of its own, and one that nobody asks about."""

    classes = ("other", "blue", "red")

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, level: NoiseLevel | None = None) -> Tensor:
        return self.network(images)

    def target(self, given: TargetInput) -> Target:
        return Target(value=torch.tensor([self.classes.index(given.text or "")]), label="")


def judge(network: nn.Module) -> Judge:
    model = Watcher(network)
    target = Target(value=torch.tensor([0]), label="")
    loss = ppap.guide("colour", target="green").guide.loss
    guide = Guide(name="judge", model=model, loss=loss, target=target)
    loaded = LoadedGuide(
        guide=guide, origin=Origin(component="watcher"), loss_name="", target_source=""
    )
    return Judge(loaded, ("red", "blue"), torch.device("cpu"))


class TestJudge:
    def test_shows_what_goes_into_the_last_linear_layer(self) -> None:
        network = nn.Sequential(
            nn.Conv2d(3, 5, 3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(5, 7),
            nn.Linear(7, 3),
        )
        pixels = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 3), np.uint8)
        verdict = judge(network).look(pixels)
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        features = network[:4](x)
        assert np.allclose(verdict.features, features.detach().numpy(), atol=1e-5)
        probabilities = network(x).softmax(1).detach()
        assert np.allclose(verdict.confidence, probabilities.max(1).values, atol=1e-5)
        wanted = torch.tensor([-1, 1, 0])[probabilities.argmax(1)]
        assert (verdict.classes == wanted.numpy()).all()

    @pytest.mark.parametrize(
        ("network", "says"),
        [
            (nn.Sequential(nn.Conv2d(3, 3, 8), nn.Flatten()), "shows no features"),
            (nn.Linear(8, 3), "shows no features"),
            (nn.Sequential(nn.Flatten(), nn.Linear(192, 3), nn.Unflatten(1, (3, 1))), "no classif"),
        ],
    )
    def test_is_a_classifier_that_ends_in_a_linear_layer(
        self, network: nn.Module, says: str
    ) -> None:
        with pytest.raises(PluginError, match=says):
            judge(network).look(np.zeros((2, 8, 8, 3), np.uint8))

    def test_has_its_features_reduced_where_there_are_many(self) -> None:
        rng = np.random.default_rng(0)
        flat = rng.standard_normal((500, 5)) @ rng.standard_normal((5, 80))  # of 5 dimensions
        projection = Projection.of(flat, 5)
        reduced = projection(flat)
        assert reduced.shape == (500, 5)
        assert np.allclose(
            np.linalg.norm(reduced[0] - reduced[1:], axis=1),
            np.linalg.norm(flat[0] - flat[1:], axis=1),
        )
        assert Projection.of(flat, 80)(flat) is flat


class TestBlocks:
    @pytest.fixture
    def run(self, experiment: Experiment) -> Any:
        stand = Stand.load(experiment, NAMES, "cpu")
        guided = experiment.rows[1]
        candidate = guided.candidates[1]
        return stand.run(guided, stand.guides(guided), candidate, num=20, seed=3, batch=8)

    def test_are_what_sampling_gives(self, run: Any, tmp_path: Path) -> None:
        images, counts = draw(run, tmp_path)
        guide = ppap.guide("colour", target=np.arange(20) % 4, scale=100.0)
        result = ppap.sample("toy", [guide], num=20, steps=5, seed=3, batch=20, device="cpu")
        wanted = ((result.images + 1) * 127.5).permute(0, 2, 3, 1).numpy()
        assert np.abs(images - wanted).max() <= 1.0
        assert counts == Counts(denoiser_forwards=100, guide_forwards=100, guide_backwards=100)

    def test_outlive_a_kill_at_any_moment(self, run: Any, tmp_path: Path) -> None:
        images, counts = draw(run, tmp_path / "whole")
        kept = tmp_path / "killed"

        def kill(done: int, of: int) -> None:
            if done == 16:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            draw(run, kept, kill)
        blocks = sorted(kept.glob("*/*.npz"))
        assert len(blocks) == 2
        blocks[0].write_bytes(blocks[0].read_bytes()[:100])  # not even a torn file matters
        untouched = blocks[1].stat().st_mtime_ns
        again, total = draw(run, kept)
        assert (again == images).all()
        assert total == counts
        assert blocks[1].stat().st_mtime_ns == untouched

    def test_of_other_settings_lie_elsewhere(self, experiment: Experiment, tmp_path: Path) -> None:
        stand = Stand.load(experiment, NAMES, "cpu")
        guided = experiment.rows[1]
        guide = stand.guides(guided)
        for candidate in guided.candidates:
            draw(stand.run(guided, guide, candidate, num=4, seed=3, batch=4), tmp_path)
        assert len(list(tmp_path.iterdir())) == 3
        more = stand.run(guided, guide, guided.candidates[0], num=8, seed=3, batch=4)
        draw(more, tmp_path)  # more images of the same are added to what is there
        assert len(list(tmp_path.iterdir())) == 3

    def test_of_other_prompts_are_others(self, experiment: Experiment, tmp_path: Path) -> None:
        stand = Stand.load(experiment, NAMES, "cpu")
        drawn = {}
        for prompt in ("brighter", "darker", None):
            told = attrs.evolve(experiment.rows[0], prompt=prompt)
            run = stand.run(told, (), num=6, seed=3, batch=4)
            drawn[prompt], _ = draw(run, tmp_path)
            again, _ = draw(run, tmp_path)
            assert (again == drawn[prompt]).all()
        assert len(list(tmp_path.glob("*/*.npz"))) == 6
        wanted = ppap.sample("toy", num=6, steps=5, seed=3, device="cpu", prompt="brighter").images
        wanted = ((wanted + 1) * 127.5).permute(0, 2, 3, 1)
        assert np.abs(drawn["brighter"] - wanted.numpy()).max() <= 1.0
        means = [drawn[prompt].mean() for prompt in ("darker", None, "brighter")]
        assert means == sorted(set(means))

    def test_say_what_was_not_finite(
        self, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TOY_BROKEN", "1")
        stand = Stand.load(experiment, NAMES, "cpu")
        images, counts = draw_block(stand.run(None, (), num=3, seed=0, batch=3), (), 0, 3)
        assert counts.broken == 3
        assert (images == 128).all()


class TestEvaluation:
    def test_aims_at_all_classes_equally_often(self) -> None:
        assert balanced(6, 3).tolist() == [0, 1, 2, 0, 1, 2]
        with pytest.raises(UsageError, match="take 9"):
            balanced(7, 3)

    def test_chooses_the_scale_that_hits_most(self, results: Path) -> None:
        found = row(results, "guided")
        hits = [trial["hit"]["value"] for trial in found["tuning"]]
        assert hits[1] == max(hits)
        assert found["chosen"] == {"scale": 100.0, "interval": [0.0, 1.0]}
        assert (
            found["figures"]["hit"]["value"] > row(results, "unguided")["figures"]["hit"]["value"]
        )

    def test_counts_hits_by_the_judge(self, home: Path, results: Path) -> None:
        """Again from the pixels and the weights, without any of the machinery."""
        settings = {
            path.parent: read(path) for path in (home / "images" / "blocks").glob("*/settings.json")
        }
        (folder,) = (
            folder
            for folder, found in settings.items()
            if found["seed"] == 0 and found["guides"] and found["guides"][0]["scale"] == 100.0
        )
        pixels = np.concatenate([np.load(path)["images"] for path in sorted(folder.glob("*.npz"))])
        weight = torch.tensor(
            [[0.5, -0.5, -0.5], [1.0, 0.1, 0.0], [-0.5, 1.0, -0.4], [-0.5, -0.5, 1]]
        )
        seen = ((pixels / 127.5 - 1.0).mean((1, 2)) @ weight.numpy().T).argmax(1)
        share = (seen == np.arange(NUM) % 4).mean()
        assert row(results, "guided")["figures"]["hit"]["value"] == pytest.approx(share)

    def test_measures_pictures_that_are_there_already(self, results: Path) -> None:
        found = row(results, "renders")
        assert found["cost"] is None
        assert found["figures"]["hit"]["value"] == pytest.approx(
            read(results / "judge.json")["figures"]["hit"]["value"], abs=0.1
        )
        assert (
            found["figures"]["fid"]["value"] < row(results, "unguided")["figures"]["fid"]["value"]
        )
        assert found["figures"]["spread"]["value"] == pytest.approx(1.0, abs=0.4)

    def test_publishes_the_confusion_of_the_judge(self, home: Path, results: Path) -> None:
        judged = read(results / "judge.json")
        matrix = np.array(judged["confusion"])
        assert (
            matrix.sum(1).tolist()
            == np.bincount(np.load(home / "reference.npz")["labels"]).tolist()
        )
        assert np.trace(matrix) / 200 == pytest.approx(judged["figures"]["hit"]["value"])

    def test_pairs_rows_of_the_same_noise(self, home: Path, results: Path) -> None:
        differences = read(results / "differences.json")["from"]
        assert {name: list(found) for name, found in differences.items()} == {
            "unguided": ["guided"]
        }
        found = differences["unguided"]["guided"]["hit"]
        values = [row(results, name)["figures"]["hit"]["value"] for name in ("guided", "unguided")]
        assert found["value"] == pytest.approx(values[0] - values[1])
        assert found["low"] > 0.0

    def test_states_what_an_image_costs(self, results: Path) -> None:
        plain, guided = row(results, "unguided"), row(results, "guided")
        assert plain["per_image"] == {
            "denoiser_forwards": 5,
            "denoiser_backwards": 0,
            "guide_forwards": 0,
            "guide_backwards": 0,
        }
        assert guided["per_image"]["guide_backwards"] == 5
        cost = guided["cost"]
        assert cost["seconds"] == sorted(cost["rounds"])[1]
        assert cost["in_turn_with"] == ["unguided", "guided"]
        assert cost["threads"] == torch.get_num_threads()
        assert cost["peak_memory"] is None or 2**26 < cost["peak_memory"] < 2**33

    def test_goes_on_after_a_kill_to_equal_figures(
        self, home: Path, experiment: Experiment, results: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(home / "images" / "costs", tmp_path / "images" / "costs")
        moments = iter([2, 5, 9])  # in images drawn

        def killed_after(number: int) -> None:
            left = number

            def kill(what: str, done: int, of: int) -> None:
                nonlocal left
                left -= done > 1
                if left == 0:
                    raise KeyboardInterrupt

            evaluate(experiment, tmp_path / "out", tmp_path / "images", device="cpu", watch=kill)

        for moment in moments:
            with pytest.raises(KeyboardInterrupt):
                killed_after(moment)
        evaluate(
            experiment, tmp_path / "out", tmp_path / "images", device="cpu",
            command=["ppap", "evaluate"],
        )  # fmt: skip
        files = sorted(path.relative_to(results) for path in results.glob("**/*.json"))
        assert len(files) == 6
        for path in files:
            assert (tmp_path / "out" / path).read_bytes() == (results / path).read_bytes()

    def test_of_one_row_leaves_the_others(
        self, home: Path, experiment: Experiment, results: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(results, tmp_path / "out")
        before = (results / "differences.json").read_bytes()
        paths = evaluate(
            experiment, tmp_path / "out", home / "images", rows=["unguided"], device="cpu"
        )
        assert paths == [tmp_path / "out" / "rows" / "unguided.json"]
        assert (tmp_path / "out" / "differences.json").read_bytes() == before
        assert row(tmp_path / "out", "guided") == row(results, "guided")

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
    def test_of_what_does_not_go_together_is_refused(
        self, experiment: Experiment, tmp_path: Path, changes: dict[str, Any], says: str
    ) -> None:
        with pytest.raises(PpapError, match=says):
            evaluate(
                attrs.evolve(experiment, **changes), tmp_path / "o", tmp_path / "i",
                rows=["guided"], device="cpu",
            )  # fmt: skip

    def test_refuses_the_reference_as_a_row(self, experiment: Experiment, tmp_path: Path) -> None:
        same = attrs.evolve(experiment.rows[2], images=experiment.reference)
        rows = (*experiment.rows[:2], same)
        with pytest.raises(UsageError, match="the reference itself"):
            evaluate(
                attrs.evolve(experiment, rows=rows), tmp_path / "o", tmp_path / "i",
                rows=["renders"], device="cpu",
            )  # fmt: skip

    def test_keeps_resampled_figures_as_they_are(self, tmp_path: Path, home: Path) -> None:
        (path,) = (home / "images").glob("resampled/*/guided.npz")
        kept = Assessment.load(path)
        kept.save(tmp_path / "again.npz")
        again = Assessment.load(tmp_path / "again.npz")
        assert again.figures == kept.figures
        assert all((again.resampled[name] == kept.resampled[name]).all() for name in kept.figures)


class TestReport:
    @pytest.fixture
    def page(self, results: Path, tmp_path: Path) -> tuple[Path, str]:
        folder = tmp_path / "docs" / "results" / "toy"
        shutil.copytree(results, folder)
        out = tmp_path / "docs" / "results.md"
        written = report(folder.parent, out)
        assert written == [out, folder / "tuning.svg", folder / "confusion.svg"]
        return folder, out.read_text()

    def test_shows_every_figure_of_the_files(self, page: tuple[Path, str]) -> None:
        folder, text = page
        for name in ("unguided", "guided", "renders"):
            found = row(folder, name)
            for figure, digits in (("hit", 3), ("fid", 2), ("recall", 3), ("spread", 3)):
                numbers = found["figures"][figure]
                low, high = numbers["low"], numbers["high"]
                shown = f"{numbers['value']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
                (line, *_) = (
                    line for line in text.splitlines()
                    if line.startswith(f"| {found['title']} ") and shown in line
                )  # fmt: skip
                assert line

    def test_shows_what_came_out_for_and_against(self, page: tuple[Path, str]) -> None:
        folder, text = page
        assert "Paired" in text
        assert re_bold(text) >= 1
        assert "It sees colours." in text
        assert "A sketch" in text  # of 64 images
        assert f"{row(folder, 'guided')['cost']['seconds']:.3g}" in text
        assert "| A guide | 100 |" in text

    def test_links_to_files_that_are_there(self, page: tuple[Path, str]) -> None:
        folder, text = page
        links = [part.split(")")[0] for part in text.split("](")[1:]]
        assert len(links) == 8
        assert all((folder.parent.parent / link).is_file() for link in links)

    def test_is_the_same_every_time(self, page: tuple[Path, str]) -> None:
        folder, text = page
        before = {path: path.read_bytes() for path in folder.glob("*.svg")}
        report(folder, folder.parent.parent / "results.md")
        assert before == {path: path.read_bytes() for path in folder.glob("*.svg")}
        assert (folder.parent.parent / "results.md").read_text() == text

    def test_says_where_a_scale_is_at_the_edge(self, page: tuple[Path, str]) -> None:
        folder, text = page
        assert "at the edge" in text  # 100 is the largest
        found = row(folder, "guided")
        found["tuning"].append({**found["tuning"][0], "scale": 1000.0})
        (folder / "rows" / "guided.json").write_text(json.dumps(found))
        assert "at the edge" not in render([Results.read(folder)], folder)

    @pytest.mark.parametrize(
        ("num", "said"), [(1023, "A sketch"), (1024, "FID is biased"), (2048, "")]
    )
    def test_says_what_few_images_are_good_for(
        self, page: tuple[Path, str], num: int, said: str
    ) -> None:
        folder, _ = page
        result = Results.read(folder)
        experiment = {
            **result.experiment,
            "protocol": {**result.experiment["protocol"], "num": num},
        }
        text = render([attrs.evolve(result, experiment=experiment)], folder)
        assert [words for words in ("A sketch", "FID is biased") if words in text] == (
            [said] if said else []
        )

    def test_several_results_begin_with_all_rows_at_a_glance(self, page: tuple[Path, str]) -> None:
        folder, text = page
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

    def test_says_which_rows_are_missing(self, page: tuple[Path, str]) -> None:
        folder, _ = page
        (folder / "rows" / "guided.json").unlink()
        assert "Not measured: guided." in render([Results.read(folder)], folder)

    def test_refuses_rows_that_were_measured_otherwise(self, page: tuple[Path, str]) -> None:
        folder, _ = page
        found = row(folder, "guided")
        found["protocol"]["steps"] += 1
        (folder / "rows" / "guided.json").write_text(json.dumps(found))
        with pytest.raises(AssetError, match=r"'guided'.*not measured as"):
            report(folder, folder / "x.md")

    def test_refuses_a_folder_without_results(self, tmp_path: Path) -> None:
        with pytest.raises(AssetError, match="no results"):
            report(tmp_path, tmp_path / "x.md")
        (tmp_path / "experiment.json").write_text("{")
        with pytest.raises(AssetError, match="not JSON"):
            report(tmp_path, tmp_path / "x.md")


def re_bold(text: str) -> int:
    """How many differences are bold."""
    return text.count("| **+") + text.count("| **-")


class TestCommands:
    def ppap(self, site: Path, home: Path, *arguments: str) -> str:
        done = toy_distribution.ppap(site, home, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def test_make_a_page_of_an_experiment(
        self,
        home: Path,
        results: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def ppap(*arguments: str) -> str:
            with pytest.raises(SystemExit) as left:
                main(arguments)
            out, err = capsys.readouterr()
            assert left.value.code == 0, err
            return out

        monkeypatch.chdir(home)
        evaluating = ("evaluate", "toy.toml", "--rows", "guided", "--images", "images")
        out = ("--out", "again", "--device", "cpu")  # nothing is drawn or timed again
        (found,) = json.loads(ppap(*evaluating, *out, "--json"))
        before = row(results, "guided")
        assert found | {"command": 0} == before | {"command": 0}
        hit = f"{before['figures']['hit']['value']:.3g}"
        assert hit in ppap(*evaluating, *out)
        said = ppap("report", "again", "--out", "again/results.md")
        assert said.split() == ["again/results.md", "again/tuning.svg", "again/confusion.svg"]

    @pytest.mark.slow  # several processes that import torch
    def test_measure_costs_alone(self, site: Path, home: Path) -> None:
        table = json.loads(
            self.ppap(
                site,
                home,
                "bench",
                "toy.toml",
                "--num",
                "3",
                "--rounds",
                "2",
                "--rows",
                "guided",
                "--json",
            )
        )
        assert list(table) == ["guided"]
        assert len(table["guided"]["rounds"]) == 2
        assert table["guided"]["images_at_once"] == 3

    @pytest.mark.slow  # several processes that import torch
    def test_go_on_after_a_kill(self, site: Path, home: Path, results: Path) -> None:
        """SIGKILL while blocks are drawn, three times over: figures come out as undisturbed."""
        images = home / "killed"
        arguments = (
            "evaluate", "toy.toml", "--rows", "guided", "--out", "killed-out", "--images",
            str(images), "--device", "cpu", "--threads", str(torch.get_num_threads()),
        )  # fmt: skip
        for number in (1, 3, 5):
            process = toy_distribution.start(site, home, *arguments, TOY_DELAY="0.05")
            while len(list(images.glob("blocks/*/*.npz"))) < number:
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        self.ppap(site, home, *arguments)
        found, before = row(home / "killed-out", "guided"), row(results, "guided")
        for name in ("figures", "tuning", "chosen", "per_image"):
            assert found[name] == before[name]
