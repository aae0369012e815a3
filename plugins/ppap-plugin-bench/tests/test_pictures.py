"""Labelled pictures, scenes, and the targets that images aim at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from bench_toy import NAMES, SCENES, write_scenes
from PIL import Image

from ppap_framework.errors import AssetError, UsageError
from ppap_plugin_bench import Experiment, read_experiment, read_pictures
from ppap_plugin_bench.pictures import sized
from ppap_plugin_bench.targets import Targets

BLACK = np.zeros((2, 3, 8, 8), np.uint8)


def test_larger_images_are_averaged() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3), np.uint8)
    means = images.reshape(2, 4, 2, 6, 2, 3).mean((2, 4))
    assert np.abs(sized(images, 4, 6) - means).max() <= 1.0
    assert sized(images, 8, 12) is images


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

        np.savez(tmp_path / "unnamed.npz", images=BLACK, labels=[0, 2])
        assert read_pictures(tmp_path / "unnamed.npz").names == ("0", "1", "2")

    @pytest.mark.parametrize(
        ("arrays", "says"),
        [
            ({"images": BLACK}, "has no labels"),
            ({"images": np.zeros((2, 3, 8, 8)), "labels": [0, 1]}, "images of float64"),
            ({"images": BLACK, "labels": [0]}, "labels of int64"),
            ({"images": BLACK[:1], "labels": [-1]}, "labels from -1"),
            ({"images": BLACK[:0], "labels": np.zeros(0, int)}, "empty"),
            (
                {"images": BLACK[:1], "labels": [0], "class_names": np.array([{}], object)},
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

    def test_that_are_missing_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "text.npz").write_text("no")
        for name in ("none", "empty", "text.npz"):
            with pytest.raises(AssetError, match=name):
                read_pictures(tmp_path / name)


class TestScenes:
    def test_are_pictures_with_what_is_there(self, home: Path) -> None:
        path = home / "scenes.npz"
        found = read_pictures(path, ["brightness"])
        assert set(found.truths) == {"brightness"}
        part = found.part(2, 5)
        assert (part.truths["brightness"] == found.truths["brightness"][2:5]).all()
        assert (part.images == found.images[2:5]).all()
        hashes = {one.scenes_sha256 for one in (found, part, read_pictures(path, []))}
        assert len(hashes) == 3

    @pytest.mark.parametrize(
        ("truth", "says"),
        [("depth", "has no depth"), ("labels", "labels of int64"), ("words", "words of <U1")],
    )
    def test_without_it_are_refused(self, home: Path, truth: str, says: str) -> None:
        with pytest.raises(AssetError, match=says):
            read_pictures(home / "scenes.npz", [truth])
        with pytest.raises(AssetError, match="holds no scenes"):
            read_pictures(home, [truth])  # a folder


class TestTargets:
    @pytest.fixture
    def own(self, scene_experiment: Experiment) -> Targets:
        return Targets.of(scene_experiment, NAMES)

    def test_classes_may_go_in_turn(self, own: Targets, home: Path) -> None:
        told = SCENES.replace("num = 8}", 'num = 8, classes = "turn"}', 1)
        (home / "turn.toml").write_text(told)
        turn = Targets.of(read_experiment(home / "turn.toml"), NAMES)
        assert (turn.indices(16) == own.indices(16)).all()
        assert turn.classes(16).tolist() == [0, 1, 2, 3] * 4
        for targets in (turn, own):
            names = [NAMES[label] for label in targets.classes(8)]
            assert targets.prompts("see {class} {thing}", 8) == [
                f"see {name} {{thing}}" for name in names
            ]
        assert turn.source("scene") == own.source("scene")
        assert turn.source("class") != own.source("class")

    def test_are_scenes_in_turn(self, own: Targets, home: Path) -> None:
        labels = np.load(home / "scenes.npz")["labels"]
        assert own.indices(16).tolist() == [*range(8), *range(8)]
        assert own.classes(16).tolist() == [*labels[:8], *labels[:8]]

    def test_are_classes_in_turn_without_scenes(self) -> None:
        targets = Targets(NAMES)
        assert targets.indices(6).tolist() == targets.classes(6).tolist() == [0, 1, 2, 3, 0, 1]
        told = Targets(("orange cube", "red cube")).prompts("{a class}, {class}", 2)
        assert told == ["an orange cube, orange cube", "a red cube, red cube"]
        words = "image i at class i mod 4 of dark red, light red, green, blue"
        assert targets.source("class") == words

    def test_have_sources_that_tell_them_apart(
        self, own: Targets, scene_experiment: Experiment, home: Path
    ) -> None:
        words = {own.source("class"), own.source("scene")}
        assert len(words) == 2
        assert scene_experiment.scenes is not None
        other = str(write_scenes(home / "moved-scenes.npz", 9, 20))
        moved = attrs.evolve(scene_experiment.scenes, pictures=other)
        others = Targets.of(attrs.evolve(scene_experiment, scenes=moved), NAMES)
        assert others.source("scene") not in words

    @pytest.mark.parametrize("number", range(1, 40))
    def test_examples_show_different_targets(self, number: int) -> None:
        shown = Targets(tuple(map(str, range(number)))).examples(8)
        assert len(set(shown)) == len(shown) == min(8, number)
        assert max(shown) < number

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"num": 20}, "20 images do not aim equally often at 8 scenes.*take 24"),
            ({"num": 24, "scenes": 24}, "20 scenes, of 24 that are targets"),
            ({"names": NAMES[:3]}, "of 4 classes, which are not those of the reference"),
        ],
    )
    def test_that_are_too_few_or_others_are_refused(
        self, scene_experiment: Experiment, changes: dict[str, Any], says: str
    ) -> None:
        assert scene_experiment.scenes is not None
        wanted = attrs.evolve(
            scene_experiment,
            num=changes.get("num", 16),
            scenes=attrs.evolve(scene_experiment.scenes, num=changes.get("scenes", 8)),
        )
        with pytest.raises(UsageError, match=says):
            Targets.of(wanted, changes.get("names", NAMES))
