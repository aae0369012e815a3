"""Experiments whose guides are aimed at pictures, and judged by what there is to see in these."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
import toy_distribution
from PIL import Image
from toy_experts import write_experts

import ppap_framework as ppap
from ppap_framework.checkpoints import save_checkpoint
from ppap_framework.diagnosis.intervals import Interval
from ppap_framework.errors import AssetError, PpapError, UsageError
from ppap_plugin_bench import Row, evaluate, read_experiment, read_scenes, report
from ppap_plugin_bench import cost as costs
from ppap_plugin_bench.aim import Aims
from ppap_plugin_bench.blocks import draw, identity
from ppap_plugin_bench.examples import write_strip
from ppap_plugin_bench.experiment import Experiment
from ppap_plugin_bench.report_cost import paid_back
from ppap_plugin_bench.row import Candidate
from ppap_plugin_bench.stand import Stand
from ppap_plugin_bench.training import training_of
from ppap_plugin_bench.tuning import Trial, choose

NAMES = ("dark red", "light red", "green", "blue")
NUM, SCENES, TUNING = 16, 8, 8
JUDGE = torch.tensor([[0.5, -0.5, -0.5], [1.0, 0.1, 0.0], [-0.5, 1.0, -0.4], [-0.5, -0.5, 1]])

FILE = """
title = "Scenes"
backend = "toy"
judge = "colour:judge.safetensors"
reference = "reference.npz"
objective = "grey.distance"
num = 16
steps = 5
block = 8
baselines = ["unguided"]
[scenes]
pictures = "scenes.npz"
num = 8
[tuning]
seed = 7
num = 8
[timing]
num = 2
rounds = 1
[[judges]]
name = "grey"
guider = "grey:grey-1"
loss = "toy-distance"
truth = "brightness"
lower = ["distance"]
higher = ["likeness"]
[[rows]]
name = "renders"
images = "others.npz"
[[rows]]
name = "unguided"
[[rows]]
name = "guided"
title = "A guide"
guider = "grey"
model = "own"
scales = [0.1, 300.0]
[[rows]]
name = "together"
scales = [0.1, 3.0]
guides = [
    {guider = "grey", model = "own", scale = 100.0},
    {guider = "colour", scale = 20.0, aim = "class"},
]
objective = ["hit", "grey.likeness"]
"""


def scenes(path: Path, seed: int, number: int) -> Path:
    """Stripes of light and dark in one of four tints, and how bright they are."""
    rng = np.random.default_rng(seed)
    brightness = np.repeat(rng.uniform(-0.6, 0.6, (number, 8, 1)), 8, axis=2).astype(np.float32)
    labels = rng.integers(0, 4, number)
    tints = 0.2 * (JUDGE.numpy()[labels] - JUDGE.numpy()[labels].mean(1, keepdims=True))
    levels = brightness[:, None] + tints[:, :, None, None]
    images = (127.5 * (levels + 1.0)).round().clip(0, 255).astype(np.uint8)
    np.savez(
        path, images=images, labels=labels, class_names=np.array(NAMES), brightness=brightness,
        words=np.array(["a"] * number), distance=1.0 / (brightness + 2.0),
    )  # fmt: skip
    return path


@pytest.fixture(scope="module", autouse=True)
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    site = toy_distribution.install(tmp_path_factory.mktemp("toy") / "site")
    with toy_distribution.plugged(site) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PPAP_CACHE_DIR", str(site.parent / "cache"))
        # It takes a new process for each row, and is tested with other experiments.
        patch.setattr(costs, "peak_memory", lambda stand, subject: None)
        yield folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the experiment names."""
    folder = tmp_path_factory.mktemp("experiment")
    save_checkpoint(folder / "judge.safetensors", {"weight": JUDGE}, {})
    for name, seed, number in (("reference", 1, 40), ("others", 2, 20), ("scenes", 3, 20)):
        scenes(folder / f"{name}.npz", seed, number)
    (folder / "scenes.toml").write_text(FILE)
    return folder


@pytest.fixture(autouse=True)
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


@pytest.fixture(scope="module")
def experiment(home: Path) -> Experiment:
    return read_experiment(home / "scenes.toml")


@pytest.fixture(scope="module")
def results(home: Path, experiment: Experiment) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        evaluate(experiment, home / "out", home / "images", device="cpu")
    return home / "out"


@pytest.fixture
def stand(experiment: Experiment) -> Stand:
    return Stand.load(experiment, NAMES, "cpu")


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def row(results: Path, name: str) -> Any:
    return read(results / "rows" / f"{name}.json")


def pixels_of(home: Path, seed: int, *scales: float) -> np.ndarray[Any, Any]:
    """Images that were kept, of a seed, drawn by guides of these scales."""
    for path in (home / "images" / "blocks").glob("*/settings.json"):
        found = read(path)
        if found["seed"] == seed and [guide["scale"] for guide in found["guides"]] == list(scales):
            blocks = sorted(path.parent.glob("*.npz"))
            return np.concatenate([np.load(block)["images"] for block in blocks])
    raise AssertionError(f"no images of seed {seed} and scales {scales}")


class TestFiles:
    def test_may_be_json(self, experiment: Experiment, tmp_path: Path) -> None:
        tables = attrs.asdict(experiment, filter=lambda field, value: value is not None)
        (tmp_path / "scenes.json").write_text(json.dumps(tables))
        assert read_experiment(tmp_path / "scenes.json") == experiment

    def test_take_paths_from_their_own_folder(self, home: Path, tmp_path: Path) -> None:
        guide = '{guider = "grey", model'
        text = FILE.replace(
            guide, '{experts = "kept/a.experts.safetensors", guider = "grey", model'
        )
        text = text.replace('title = "A guide"', 'training = ["a.json", "b/run.json"]')
        (tmp_path / "a.toml").write_text(text)
        found = read_experiment(tmp_path / "a.toml")
        assert found.scenes is not None
        assert found.scenes.pictures == str(tmp_path / "scenes.npz")
        assert found.rows[2].training == (str(tmp_path / "a.json"), str(tmp_path / "b/run.json"))
        experts = [guide.experts for guide in found.rows[3].steering]
        assert experts == [str(tmp_path / "kept/a.experts.safetensors"), "none"]

    @pytest.mark.parametrize(
        ("was", "becomes", "says"),
        [
            ("[scenes]\n", "[other]\n", "has 'other'"),
            ('[scenes]\npictures = "scenes.npz"\nnum = 8', "", "no [scenes] that they could know"),
            ("num = 8", "num = 0", "num"),
            ('"grey.distance"', '"grey.fid"', "none of hit, grey.distance, grey.likeness"),
            ('"grey.distance"', "[]", "an empty `objective`"),
            ('["hit", "grey.likeness"]', '["hit", "nose"]', "the objective 'nose'"),
            ('name = "grey"', 'name = "Grey"', "lower-case"),
            ('"grey:grey-1"', '"grey"', 'names the guider \'grey\'; write "guider:checkpoint"'),
            ('"grey:grey-1"', "3", "'guider' must be"),
            ('["distance"]', '["likeness"]', "names a figure twice"),
            ('lower = ["distance"]\nhigher = ["likeness"]', "", "no figures that are best"),
            ("[[rows]]\n", FILE[FILE.index("[[judges]]") : FILE.index("[[rows]]")] + "[[rows]]\n",
             "several judges called grey"),
            ('guider = "grey"\nmodel', "model", "has model, scales and no guider"),
            ('name = "together"', 'name = "together"\nguider = "grey"', "a guider and guides"),
            ('name = "together"', 'name = "together"\nimages = "a.npz"', "one or the other"),
            ('{guider = "colour"', '{guider = "grey"', "steered by together-grey more than once"),
            ('{guider = "colour"', '{guidar = "colour"', "guide 2 has 'guidar', not 'guider'"),
            ('aim = "class"', 'aim = "clas"', "guide 2 'aim' must be in"),
            ('aim = "class"', 'experts = "auto"', "a table says which"),
            ("scales = [0.1, 3.0]", 'scales = ["auto", 3.0]', "no experts that were calibrated"),
            ("scales = [0.1, 3.0]", "", "no scales to choose from"),
            ("scales = [0.1, 3.0]", "scales = [3.0]", "guided 2, together 1"),
            ('name = "unguided"', 'name = "unguided"\ntraining = "a"', "a training and no guider"),
        ],
    )  # fmt: skip
    def test_that_are_wrong_are_refused_in_one_line(
        self, tmp_path: Path, was: str, becomes: str, says: str
    ) -> None:
        assert was in FILE
        (tmp_path / "wrong.toml").write_text(FILE.replace(was, becomes, 1))
        with pytest.raises(UsageError) as caught:
            read_experiment(tmp_path / "wrong.toml")
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_without_scenes_cannot_aim_at_any(self, tmp_path: Path) -> None:
        text = FILE[: FILE.index("[[judges]]")] + FILE[FILE.index("[[rows]]") :]
        text = text.replace('[scenes]\npictures = "scenes.npz"\nnum = 8\n', "")
        text = text.replace('objective = "grey.distance"', "").replace(', "grey.likeness"', "")
        (tmp_path / "a.toml").write_text(text)
        read_experiment(tmp_path / "a.toml")
        (tmp_path / "a.toml").write_text(text.replace('"class"', '"scene"'))
        with pytest.raises(UsageError, match=r"no \[scenes\], at which row together aims"):
            read_experiment(tmp_path / "a.toml")

    def test_classes_are_shown_where_a_guide_aims_at_them(self, experiment: Experiment) -> None:
        assert experiment.shown == {
            "hit": "higher",
            "grey.distance": "lower",
            "grey.likeness": "higher",
        }
        dense = attrs.evolve(experiment, rows=experiment.rows[:3])
        assert list(dense.shown) == ["grey.distance", "grey.likeness"]

    def test_one_guide_is_a_row_of_one(self) -> None:
        alone = Row(name="a", guider="b", checkpoint="c", aim="class", scales=(1.0,))
        (guide,) = alone.steering
        assert (guide.guider, guide.checkpoint, guide.aim, guide.scale) == ("b", "c", "class", 1.0)
        assert alone.names == ("a",)


class TestScenes:
    def test_are_pictures_with_what_is_there(self, home: Path) -> None:
        found = read_scenes(home / "scenes.npz", ["brightness"])
        assert set(found.truths) == {"brightness"}
        part = found.part(2, 5)
        assert (part.truths["brightness"] == found.truths["brightness"][2:5]).all()
        assert (part.pictures.images == found.pictures.images[2:5]).all()
        assert len({found.sha256, part.sha256, read_scenes(home / "scenes.npz", []).sha256}) == 3

    @pytest.mark.parametrize(
        ("truth", "says"),
        [("depth", "has no depth"), ("labels", "labels of int64"), ("words", "words of <U1")],
    )
    def test_without_it_are_refused(self, home: Path, truth: str, says: str) -> None:
        with pytest.raises(AssetError, match=says):
            read_scenes(home / "scenes.npz", [truth])

    def test_are_no_folder(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / "a" / "0.png")
        with pytest.raises(AssetError, match="holds no scenes"):
            read_scenes(tmp_path, [])


class TestAims:
    def test_classes_may_go_in_turn(self, home: Path) -> None:
        told = FILE.replace("num = 8\n[tuning]", 'num = 8\nclasses = "turn"\n[tuning]')
        (home / "turn.toml").write_text(told)
        turn = Aims.of(read_experiment(home / "turn.toml"), NAMES)
        own = Aims.of(read_experiment(home / "scenes.toml"), NAMES)
        assert (turn.indices(16) == own.indices(16)).all()
        assert turn.classes(16).tolist() == [0, 1, 2, 3] * 4
        assert own.classes(8).tolist() == own.scenes.pictures.labels[:8].tolist()  # type: ignore[union-attr]  # it has scenes
        for aims, tuning in ((turn, False), (own, False), (own, True)):
            names = [NAMES[label] for label in aims.classes(8, tuning=tuning)]
            assert aims.texts("see {class} {thing}", 8, tuning=tuning) == [
                f"see {name} {{thing}}" for name in names
            ]
        told = Aims(("orange cube", "red cube")).texts("{a class}, {class}", 2)
        assert told == ["an orange cube, orange cube", "a red cube, red cube"]
        assert turn.words("scene") == own.words("scene")
        assert turn.words("class") != own.words("class")

    def test_are_scenes_in_turn_and_others_for_tuning(self, stand: Stand, home: Path) -> None:
        aims = stand.aims
        labels = np.load(home / "scenes.npz")["labels"]
        assert aims.indices(NUM).tolist() == [*range(SCENES), *range(SCENES)]
        assert aims.indices(TUNING, tuning=True).tolist() == [*range(8, 16)]
        assert aims.classes(NUM).tolist() == [*labels[:8], *labels[:8]]
        assert aims.classes(TUNING, tuning=True).tolist() == labels[8:16].tolist()

    def test_are_classes_in_turn_where_there_are_no_scenes(self) -> None:
        aims = Aims(NAMES)
        assert aims.indices(6).tolist() == aims.classes(6).tolist() == [0, 1, 2, 3, 0, 1]
        # The name of every block that was drawn so far depends on these words.
        words = "image i at class i mod 4 of dark red, light red, green, blue"
        assert aims.words("class") == aims.words("class", tuning=True) == words

    def test_are_told_apart(self, stand: Stand, experiment: Experiment, home: Path) -> None:
        words = [
            stand.aims.words(aim, tuning=tuning)  # type: ignore[arg-type]  # the two literals
            for aim in ("class", "scene")
            for tuning in (False, True)
        ]
        assert len(set(words)) == 4
        other = scenes(home / "other-scenes.npz", 9, 20)
        assert experiment.scenes is not None
        moved = attrs.evolve(
            experiment, scenes=attrs.evolve(experiment.scenes, pictures=str(other))
        )
        assert Aims.of(moved, NAMES).words("scene") not in words

    @pytest.mark.parametrize("number", range(1, 40))
    def test_examples_show_different_targets(self, number: int) -> None:
        shown = Aims(tuple(map(str, range(number)))).examples(8)
        assert len(set(shown)) == len(shown) == min(8, number)
        assert max(shown) < number

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"num": 20}, "20 images do not aim equally often at 8 scenes"),
            ({"tuning": 16}, "20 scenes, of which 8 are reported and 16 tune"),
            ({"scenes": 16}, "20 scenes, of which 16 are reported and 8 tune"),
            ({"names": NAMES[:3]}, "of 4 classes, which are not those of the reference"),
        ],
    )
    def test_that_are_too_few_or_others_are_refused(
        self, experiment: Experiment, changes: dict[str, Any], says: str
    ) -> None:
        assert experiment.scenes is not None
        wanted = attrs.evolve(
            experiment,
            num=changes.get("num", NUM),
            tuning=attrs.evolve(experiment.tuning, num=changes.get("tuning", TUNING)),
            scenes=attrs.evolve(experiment.scenes, num=changes.get("scenes", SCENES)),
        )
        with pytest.raises(UsageError, match=says):
            Aims.of(wanted, changes.get("names", NAMES)).check(wanted)


class TestRows:
    def test_aim_their_guide_at_the_picture(self, stand: Stand, home: Path, tmp_path: Path) -> None:
        (guided,) = stand.experiment.chosen(["guided"])
        run = stand.run(
            guided, stand.guides(guided), Candidate(300.0, (0.0, 1.0)), num=12, seed=3, batch=6
        )
        drawn, _ = draw(run, tmp_path)
        for index in (1, 9):
            pixels = np.load(home / "scenes.npz")["images"][index % SCENES].transpose(1, 2, 0)
            guide = ppap.guide("grey", target=Image.fromarray(pixels), scale=300.0)
            alone = ppap.sample("toy", [guide], num=12, steps=5, seed=3, batch=12, device="cpu")
            wanted = ((alone.images[index] + 1.0) * 127.5).permute(1, 2, 0).numpy()
            assert np.abs(drawn[index] - wanted).max() <= 1.0

    def test_of_several_guides_pull_with_all_at_once(self, stand: Stand, tmp_path: Path) -> None:
        (together,) = stand.experiment.chosen(["together"])
        guides = stand.guides(together)
        run = stand.run(together, guides, Candidate(3.0, (0.2, 0.9)), num=8, seed=3, batch=8)
        assert [loaded.guide.name for loaded in run.guides] == ["together-grey", "together-colour"]
        assert [loaded.guide.scale for loaded in run.guides] == [300.0, 60.0]
        assert all(loaded.guide.interval == (0.2, 0.9) for loaded in run.guides)
        assert stand.aims.scenes is not None
        images = stand.aims.scenes.pictures.images[:8].astype(np.float64)
        levels = np.stack(
            [np.asarray(Image.fromarray(i.astype(np.uint8)).convert("L")) for i in images]
        )
        grey, colour = (loaded.guide.target.value for loaded in run.guides)
        assert torch.equal(grey, torch.from_numpy(levels) / 127.5 - 1.0)
        assert colour.tolist() == stand.aims.classes(8).tolist()
        _, counts = draw(run, tmp_path)
        assert counts.guide_forwards == 2 * 8 * sum(
            0.2 <= t / 100 < 0.9 for t in run.process.timesteps
        )

    def test_are_known_by_scenes_guides_and_whether_they_tune(self, stand: Stand) -> None:
        known = set()
        for name in ("guided", "together"):
            (made,) = stand.experiment.chosen([name])
            guides = stand.guides(made)
            for tuning in (False, True):
                for scale in (0.1, 3.0):
                    candidate = Candidate(scale, (0.0, 1.0))
                    run = stand.run(made, guides, candidate, num=4, seed=0, batch=4, tuning=tuning)
                    known.add(json.dumps(identity(run)))
        assert len(known) == 8

    def test_of_experts_are_all_as_they_were_calibrated(
        self, home: Path, experiment: Experiment
    ) -> None:
        path = write_experts(home / "kept", scales=(20.0, 5.0, 0.005))
        (together,) = experiment.chosen(["together"])
        colour = attrs.evolve(together.guides[1], experts=str(path))
        made = attrs.evolve(together, guides=(colour,), scales=("auto",), objective=("hit",))
        stand = Stand.load(attrs.evolve(experiment, rows=(made,), baselines=()), NAMES, "cpu")
        run = stand.run(made, stand.guides(made), made.candidates[0], num=2, seed=0, batch=2)
        (loaded,) = run.guides
        assert loaded.guide.scales is not None
        assert loaded.guide.scales.values == (20.0, 5.0, 0.005)

    def test_take_their_memory_in_a_process_that_reads_the_scenes(
        self, experiment: Experiment
    ) -> None:
        (together,) = experiment.chosen(["together"])
        peak = costs._draw_and_look(
            torch.get_num_threads(), experiment, together, together.candidates[0], NAMES, "cpu"
        )
        assert peak is None or peak > 2**26


class TestEvaluation:
    def test_judges_images_by_what_is_there(self, home: Path, results: Path) -> None:
        """Again from the pixels and the file of scenes, without any of the machinery."""
        there = np.load(home / "scenes.npz")["brightness"][np.arange(NUM) % SCENES]
        pixels = pixels_of(home, 0, 300.0)
        distances = np.abs((pixels / 127.5 - 1.0).mean(3) - there).mean((1, 2))
        found = row(results, "guided")["figures"]
        assert found["grey.distance"]["value"] == pytest.approx(distances.mean(), rel=1e-4)
        assert found["grey.likeness"]["value"] == pytest.approx(1 - distances.mean(), rel=1e-4)
        low, high = (found["grey.distance"][end] for end in ("low", "high"))
        width = 2 * 1.96 * distances.std() / math.sqrt(NUM)
        assert high - low == pytest.approx(width, rel=0.2)

    def test_chooses_what_is_better_low(self, home: Path, results: Path) -> None:
        found = row(results, "guided")
        assert found["objective"] == ["grey.distance"]
        distances = [trial["grey.distance"]["value"] for trial in found["tuning"]]
        assert found["chosen"]["scale"] == 300.0
        assert distances[1] == min(distances)
        there = np.load(home / "scenes.npz")["brightness"][SCENES : SCENES + TUNING]
        pixels = pixels_of(home, 7, 300.0)
        by_hand = np.abs((pixels / 127.5 - 1.0).mean(3) - there).mean()
        assert distances[1] == pytest.approx(by_hand, rel=1e-4)

    def test_pairs_rows_of_the_same_scenes(self, results: Path) -> None:
        found = read(results / "differences.json")["from"]["unguided"]["guided"]["grey.distance"]
        values = [
            row(results, name)["figures"]["grey.distance"]["value"]
            for name in ("guided", "unguided")
        ]
        assert found["value"] == pytest.approx(values[0] - values[1], abs=1e-5)
        assert found["high"] < 0.0

    def test_lets_each_of_several_guides_be_judged(self, results: Path) -> None:
        unguided, together = (row(results, name) for name in ("unguided", "together"))
        for figure in ("hit", "grey.likeness"):
            assert together["figures"][figure]["value"] > unguided["figures"][figure]["value"]
        assert together["objective"] == ["hit", "grey.likeness"]
        assert together["guide"] is None
        assert [(g["component"], g["scale"]) for g in together["guides"]] == [
            ("grey", 100.0),
            ("colour", 20.0),
        ]
        assert together["guides"][1]["aim"] == "class"
        assert together["per_image"]["guide_backwards"] == 10
        assert set(together["cost"]["parameters"]) == {
            "denoiser",
            "together-grey",
            "together-colour",
        }

    def test_says_how_the_judge_judges_scenes_themselves(self, home: Path, results: Path) -> None:
        found = read(results / "judge.json")["scenes"]
        file = np.load(home / "scenes.npz")
        seen = (file["images"] / 127.5 - 1.0).mean(1)
        wanted = np.abs(seen - file["brightness"])[:SCENES].mean()
        assert found["num"] == SCENES
        assert found["figures"]["grey.distance"]["value"] == pytest.approx(wanted, rel=1e-3)
        assert wanted < 0.01 < row(results, "guided")["figures"]["grey.distance"]["value"]

    def test_judges_pictures_by_their_own_truth(self, results: Path) -> None:
        assert row(results, "renders")["figures"]["grey.distance"]["value"] < 0.01

    def test_says_what_rows_have_in_common(self, experiment: Experiment, results: Path) -> None:
        told = read(results / "experiment.json")
        protocol = told["protocol"]
        assert protocol["scenes"]["num"] == SCENES
        assert protocol["judges"][0]["truth"] == "brightness"
        assert told["judges"][0]["checkpoint"] == "grey-1"
        assert told["shown"] == experiment.shown

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"truth": "depth"}, "has no depth"),
            ({"lower": ("nothing",)}, "judge 'grey' measures no nothing"),
            ({"guider": "grey:grye"}, "grye"),
            ({"guider": "colour:colour-3", "loss": None}, "measures no distance, likeness"),
        ],
    )
    def test_of_judges_that_do_not_fit_is_refused(
        self, experiment: Experiment, tmp_path: Path, changes: dict[str, Any], says: str
    ) -> None:
        judge = attrs.evolve(experiment.judges[0], **changes)
        objective = {"objective": ("hit",), "rows": experiment.rows[1:3]}
        with pytest.raises(PpapError, match=says):
            evaluate(
                attrs.evolve(experiment, judges=(judge,), **objective),
                tmp_path / "o", tmp_path / "i", rows=["unguided"], device="cpu",
            )  # fmt: skip

    def test_by_the_judge_itself_is_refused(self, experiment: Experiment, tmp_path: Path) -> None:
        own = attrs.evolve(experiment.rows[2], model=None)
        with pytest.raises(UsageError, match="guided by the judge"):
            evaluate(
                attrs.evolve(experiment, rows=(own,), baselines=()), tmp_path / "o", tmp_path / "i",
                device="cpu",
            )  # fmt: skip

    def test_reads_what_is_reciprocal(self, experiment: Experiment, home: Path) -> None:
        judge = attrs.evolve(experiment.judges[0], truth="distance", reciprocal=True)
        stand = Stand.load(attrs.evolve(experiment, judges=(judge,)), NAMES, "cpu")
        assert stand.aims.scenes is not None
        (made,) = stand.scene_judges()
        brightness = np.load(home / "scenes.npz")["brightness"]
        assert np.allclose(made.truth(stand.aims.scenes), brightness[:16] + 2.0, atol=1e-5)

    def test_keeps_what_is_not_finite_as_that(self, experiment: Experiment, tmp_path: Path) -> None:
        judge = attrs.evolve(experiment.judges[0], lower=("unknown",), higher=())
        unknown = attrs.evolve(
            experiment, judges=(judge,), objective=("grey.unknown",), rows=experiment.rows[1:3]
        )
        evaluate(unknown, tmp_path / "o", tmp_path / "i", device="cpu")
        found = row(tmp_path / "o", "guided")
        assert found["figures"]["grey.unknown"] == {"value": None, "low": None, "high": None}
        assert found["chosen"]["scale"] == 0.1  # the first of several that are equally bad
        report(tmp_path / "o", tmp_path / "page.md")
        assert "| A guide | 0.1 | – |" in (tmp_path / "page.md").read_text()


class TestChoice:
    def made(self, scale: float, **figures: float) -> Trial:
        known = {name: Interval(value, value, value) for name, value in figures.items()}
        return Trial(Candidate(scale, (0.0, 1.0)), known, 0.0, 0.0)

    def test_is_by_the_mean_of_figures_each_in_its_direction(self) -> None:
        trials = [
            self.made(1.0, hit=0.5, error=0.6),
            self.made(2.0, hit=0.8, error=0.8),
            self.made(3.0, hit=0.6, error=0.3),
        ]
        chosen = {
            name: choose(trials, objective).candidate.scale
            for name, objective in {
                "hit": {"hit": "higher"},
                "error": {"error": "lower"},
                "both": {"hit": "higher", "error": "lower"},
            }.items()
        }
        assert chosen == {"hit": 2.0, "error": 3.0, "both": 3.0}

    def test_is_never_what_is_not_finite(self) -> None:
        trials = [self.made(1.0, hit=math.nan), self.made(2.0, hit=0.0), self.made(3.0, hit=0.0)]
        assert choose(trials, {"hit": "higher"}).candidate.scale == 2.0


class TestTraining:
    @pytest.fixture
    def manned(self, home: Path, experiment: Experiment) -> Any:
        """A row with experts, and its guides."""
        path = write_experts(home / "kept", scales=(1.0, 1.0, 1.0))
        made = Row(name="experts", guider="colour", aim="class", experts=str(path), scales=(1.0,))
        wanted = attrs.evolve(experiment, rows=(made,), baselines=())
        return made, Stand.load(wanted, NAMES, "cpu").guides(made)

    def record(self, path: Path, seconds: float, **more: Any) -> str:
        path.write_text(json.dumps({"status": "complete", "seconds": seconds, **more}))
        return str(path)

    def test_is_the_sum_of_its_records(self, manned: Any, tmp_path: Path) -> None:
        made, guides = manned
        boundaries = list(guides[0].experts.source.ranges.boundaries)
        paths = (
            self.record(tmp_path / "transfer.json", 90.5,
                        settings={"boundaries": boundaries, "data": None}),
            self.record(tmp_path / "run.json", 9.5),
        )  # fmt: skip
        assert training_of(made, guides) is None
        found = training_of(attrs.evolve(made, training=paths), guides)
        assert found == {
            "seconds": 100.0,
            "records": [
                {"file": "transfer.json", "seconds": 90.5},
                {"file": "run.json", "seconds": 9.5},
            ],
        }

    @pytest.mark.parametrize(
        ("text", "error", "says"),
        [
            (None, AssetError, "cannot read"),
            ("{", AssetError, "is not JSON"),
            ("[]", AssetError, "says nothing of seconds"),
            ('{"status": "complete"}', AssetError, "says nothing of seconds"),
            ('{"status": "running", "seconds": 1}', AssetError, "was not finished"),
            (
                '{"status": "complete", "seconds": 1, "settings": {"boundaries": [], "data": "a"}}',
                UsageError,
                "is not of the training of row 'experts'",
            ),
        ],
    )
    def test_of_anything_else_is_refused(
        self, manned: Any, tmp_path: Path, text: str | None, error: type[PpapError], says: str
    ) -> None:
        made, guides = manned
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


class TestReport:
    @pytest.fixture
    def page(self, results: Path, tmp_path: Path) -> str:
        report(results, tmp_path / "page.md")
        return (tmp_path / "page.md").read_text()

    def test_has_a_column_for_each_figure_that_says_which_way_is_better(self, page: str) -> None:
        heading = "| row | scale | hit rate ↑ | grey distance ↓ | grey likeness ↑ | judge is sure |"
        assert heading in page
        assert "| row | hit rate ↑ | grey distance ↓ | grey likeness ↑ | FID ↓ |" in page

    def test_shows_every_figure_of_the_files(self, results: Path, page: str) -> None:
        for name in ("unguided", "guided", "together"):
            found = row(results, name)["figures"]["grey.distance"]
            shown = f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
            title = row(results, name)["title"]
            assert any(
                line.startswith(f"| {title} ") and shown in line for line in page.split("\n")
            )

    def test_says_how_it_was_measured(self, page: str) -> None:
        assert "image i aims at scene i mod 8" in page
        assert "*grey*: grey (grey-1), which guides nothing either" in page
        assert "`toy-distance` measures what it sees against the true brightness" in page
        assert "On the 8 scenes themselves" in page
        assert "A guide by the lowest grey distance" in page
        assert "together by the best mean of hit rate, grey likeness" in page
        assert "together: the scale is a factor; grey times 100, colour times 20." in page

    def test_shows_what_rows_look_like(self, home: Path, results: Path, page: str) -> None:
        for name in ("scenes", "rows/guided", "rows/together", "rows/renders"):
            assert f"{name}.png)" in page
        with Image.open(results / "rows" / "guided.png") as strip:
            shown = np.asarray(strip.convert("RGB"))
        assert shown.shape == (2 * 64 + 4, 8 * 68 - 4, 3)  # images, and what the judge sees in them
        pixels = pixels_of(home, 0, 300.0)
        for column in range(8):
            left = column * 68
            assert (shown[:64:8, left : left + 64 : 8] == pixels[column]).all()
        with Image.open(results / "scenes.png") as strip:
            scene = np.asarray(strip.convert("RGB"))[:64:8, :64:8]
        assert (scene == np.load(home / "scenes.npz")["images"][0].transpose(1, 2, 0)).all()

    def test_strips_are_the_same_every_time(self, tmp_path: Path) -> None:
        pictures = list(np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), np.uint8))
        for name in ("a.png", "b.png"):
            write_strip(tmp_path / name, [pictures, pictures[:1]])
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()

    def test_lines_of_strips_fill_their_width_and_no_more_height(self, tmp_path: Path) -> None:
        small = [np.full((32, 32, 3), value, np.uint8) for value in (10, 20)]
        large = [np.full((150, 128, 3), value, np.uint8) for value in (30, 40)]
        write_strip(tmp_path / "strip.png", [small, large])
        with Image.open(tmp_path / "strip.png") as strip:
            shown = np.asarray(strip.convert("RGB"))
        assert shown.shape == (128 + 4 + 150, 128 + 4 + 128, 3)
        assert [int(shown[row, column, 0]) for row in (127, 132) for column in (127, 132)] == [
            *(10, 20),
            *(30, 40),
        ]

    def test_says_when_training_is_paid_back(self, results: Path, tmp_path: Path) -> None:
        found = row(results, "guided")
        found["training"] = {"seconds": 1234.0, "records": []}
        found["cost"]["seconds"] = 0.5
        other = row(results, "together")
        for guide in other["guides"]:
            guide["through"] = "clean"
        other["cost"]["seconds"] = 1.0
        (tmp_path / "out" / "rows").mkdir(parents=True)
        for path in results.glob("**/*.json"):
            (tmp_path / "out" / path.relative_to(results)).write_text(path.read_text())
        for name, changed in (("guided", found), ("together", other)):
            (tmp_path / "out" / "rows" / f"{name}.json").write_text(json.dumps(changed))
        report(tmp_path / "out", tmp_path / "page.md")
        page = (tmp_path / "page.md").read_text()
        assert "| row | seconds | paid back against together after |" in page
        assert "| A guide | 1,234 | 2,468 images |" in page
