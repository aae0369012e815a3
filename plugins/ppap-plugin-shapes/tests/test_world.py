"""Pictures, labels, captions and promises of the embedded world."""

from __future__ import annotations

import re
import time
from pathlib import Path

import attrs
import numpy as np
import pytest
from click.testing import CliRunner

from ppap_plugin_shapes.__main__ import main
from ppap_plugin_shapes.world import (
    CLASS_NAMES,
    COLOURS,
    SEGMENTATION_NAMES,
    SHAPES,
    Scenes,
    render,
)
from ppap_plugin_shapes.world.render import SUPERSAMPLING, ground_truth, picture
from ppap_plugin_shapes.world.sampling import sample_scene
from ppap_plugin_shapes.world.scene import FIRST_SOLID, Scene
from ppap_plugin_shapes.world.vocabulary import PAINTS, TONES


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [sample_scene(2, index) for index in range(600)]


@pytest.fixture(scope="module")
def rendered() -> Scenes:
    return render(2, range(96))


def hero_alone(scene: Scene) -> Scene:
    return attrs.evolve(scene, solids=scene.solids[:1])


def same(a: Scenes, b: Scenes) -> bool:
    return all(
        np.array_equal(getattr(a, field.name), getattr(b, field.name))
        for field in attrs.fields(Scenes)
    )


def test_vocabulary() -> None:
    assert (len(SHAPES), len(COLOURS), len(set(CLASS_NAMES))) == (4, 8, 32)
    assert CLASS_NAMES[SHAPES.index("cube") * 8 + COLOURS.index("red")] == "red cube"
    assert SEGMENTATION_NAMES == ("wall", "floor", "sphere", "cube", "cylinder", "cone")
    assert set(PAINTS).isdisjoint(TONES)


def test_shapes_and_types(rendered: Scenes) -> None:
    assert (rendered.images.shape, rendered.images.dtype) == ((96, 32, 32, 3), np.uint8)
    assert (rendered.labels.shape, rendered.labels.dtype) == ((96,), np.int64)
    assert (rendered.depth.shape, rendered.depth.dtype) == ((96, 32, 32), np.float32)
    assert (rendered.segmentation.shape, rendered.segmentation.dtype) == ((96, 32, 32), np.uint8)
    assert len(rendered.captions) == 96
    assert rendered.images.flags.c_contiguous
    assert np.isfinite(rendered.depth).all()
    assert 0.5 < rendered.depth.min() < rendered.depth.max() < 20


def test_bytes_do_not_depend_on_the_batch(rendered: Scenes) -> None:
    order = np.array([17, 3, 95, 3])
    again = render(2, order)
    for field in ("images", "labels", "depth", "segmentation", "boxes"):
        np.testing.assert_array_equal(getattr(again, field), getattr(rendered, field)[order])
    assert again.captions == tuple(rendered.captions[index] for index in order)


def test_seed_and_index_both_matter() -> None:
    assert same(render(4, [1]), render(4, (1,)))
    assert not same(render(4, [1]), render(5, [1]))
    assert not same(render(4, [1]), render(4, [2]))
    assert not same(render(0, [1]), render(1, [0]))


def test_no_indices_give_empty_arrays() -> None:
    assert render(0, []).images.shape == (0, 32, 32, 3)


def test_classes_are_uniform(scenes: list[Scene]) -> None:
    labels = [scene.solids[0].shape * 8 + scene.solids[0].colour for scene in scenes]
    expected = len(scenes) / 32
    chi_squared = sum((labels.count(label) - expected) ** 2 / expected for label in range(32))
    assert chi_squared < 61.1  # 31 degrees of freedom, p = 0.001


def test_all_numbers_of_solids_occur(scenes: list[Scene]) -> None:
    counts = np.bincount([len(scene.solids) for scene in scenes], minlength=5)
    assert counts[0] == counts[4] == 0
    assert (counts[1:4] > 0.15 * len(scenes)).all()


@pytest.mark.parametrize("size", [32, 64])
def test_the_hero_covers_8_to_35_percent_inside_the_picture(scenes: list[Scene], size: int) -> None:
    for scene in scenes[:300]:
        mask = ground_truth(hero_alone(scene), size)[1] >= FIRST_SOLID
        assert 0.08 <= mask.mean() <= 0.35
        border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert border.mean() <= 0.02


def test_the_hero_stands_in_front_and_looks_largest(scenes: list[Scene]) -> None:
    for scene in scenes:
        depth, segmentation, _ = ground_truth(scene, 32)
        alone = ground_truth(hero_alone(scene), 32)
        hero = alone[1] >= FIRST_SOLID
        np.testing.assert_array_equal(segmentation[hero], FIRST_SOLID + scene.solids[0].shape)
        np.testing.assert_array_equal(depth[hero], alone[0][hero])
        for other in scene.solids[1:]:
            lonely = attrs.evolve(scene, solids=(scene.solids[0], other))
            visible = (ground_truth(lonely, 32)[1] >= FIRST_SOLID) & ~hero
            assert 0 < visible.sum() < hero.sum()
            assert (other.shape, other.colour) != (scene.solids[0].shape, scene.solids[0].colour)


def test_the_heros_hue_is_that_of_its_class(rendered: Scenes, scenes: list[Scene]) -> None:
    paints = np.array([PAINTS[colour] for colour in COLOURS]) ** 2.2
    paints /= np.linalg.norm(paints, axis=1, keepdims=True)
    for index, image in enumerate(rendered.images):
        hero = ground_truth(hero_alone(scenes[index]), 32)[1] >= FIRST_SOLID
        mean = ((image[hero] / 255.0) ** 2.2).mean(axis=0)
        assert np.argmax(paints @ mean) == rendered.labels[index] % 8


def test_background_is_muted(rendered: Scenes) -> None:
    pixels = rendered.images[rendered.segmentation < FIRST_SOLID].astype(float)
    saturation = 1 - pixels.min(axis=1) / pixels.max(axis=1)
    assert np.quantile(saturation, 0.95) < 0.5
    assert (np.array([image.mean() for image in rendered.images]) > 70).all()


def test_solids_only_take_light_from_what_is_behind_them(scenes: list[Scene]) -> None:
    shadows = 0
    for scene in scenes[:20]:
        bare = picture(attrs.evolve(scene, solids=()), 32).astype(int)
        full = picture(scene, 32).astype(int)
        samples = ground_truth(scene, 32 * SUPERSAMPLING)[1].reshape(32, SUPERSAMPLING, 32, -1)
        behind = (samples < FIRST_SOLID).all(axis=(1, 3))
        change = (full - bare)[behind]
        assert change.max() <= 0
        shadows += bool((change.min(axis=0) < -15).all())
    assert shadows == 20


def test_boxes_are_around_what_removing_a_solid_changes(scenes: list[Scene]) -> None:
    """A pixel shows a solid if its depth is another one without it."""
    number = 0
    for scene in scenes[:60]:
        depth, _, boxes = ground_truth(scene, 32)
        for index, solid in enumerate(scene.solids):
            rest = scene.solids[:index] + scene.solids[index + 1 :]
            visible = ground_truth(attrs.evolve(scene, solids=rest), 32)[0] > depth
            rows, columns = np.nonzero(visible)
            edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            np.testing.assert_array_equal(32 * boxes[index, 1:], edges)
            assert CLASS_NAMES[int(boxes[index, 0])] == (
                f"{COLOURS[solid.colour]} {SHAPES[solid.shape]}"
            )
            number += 1
        assert (boxes[len(scene.solids) :] == -1).all()
    assert number > 100


def test_a_larger_picture_shows_the_same_scene(scenes: list[Scene]) -> None:
    for scene in scenes[:40]:
        depth, segmentation, _ = ground_truth(scene, 32)
        fine_depth, fine_segmentation, _ = ground_truth(scene, 96)
        # Of nine pixels the middle one has the same centre.
        agree = fine_segmentation[1::3, 1::3] == segmentation
        assert agree.mean() > 0.998  # rounding on an outline
        np.testing.assert_allclose(fine_depth[1::3, 1::3][agree], depth[agree], rtol=1e-5)


def test_a_larger_picture_averages_to_the_smaller() -> None:
    small, large = render(9, range(8)), render(9, range(8), size=64)
    pooled = large.images.reshape(8, 32, 2, 32, 2, 3).mean(axis=(2, 4))
    difference = np.abs(pooled - small.images)
    assert difference.mean() < 1.0
    assert large.captions == small.captions
    np.testing.assert_array_equal(large.labels, small.labels)


NAME = rf"an? (?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})"
RELATION = r"(?:in front of|to the (?:left|right) of)"
PLACE = rf"on an? (?:{'|'.join(TONES)}) floor"
WALL = rf"before an? (?:{'|'.join(TONES)}) wall"
CAPTION = re.compile(
    rf"{NAME}(?: {RELATION} {NAME}(?: and {RELATION} {NAME})?)?(?: {PLACE})?(?: {WALL})?"
)


def test_captions_name_the_hero_first(rendered: Scenes) -> None:
    for caption, label in zip(rendered.captions, rendered.labels, strict=True):
        name = CLASS_NAMES[label]
        assert caption.startswith(f"{'an' if name[0] == 'o' else 'a'} {name} ")
        assert CAPTION.fullmatch(caption), caption
    assert len(set(rendered.captions)) > 60


def test_captions_tell_left_from_right(scenes: list[Scene]) -> None:
    seen = set()
    for scene in scenes:
        match = re.search(r"to the (left|right) of an? (\w+) (\w+)", scene.caption)
        if match is None:
            continue
        side, colour, shape = match.groups()
        wanted = (SHAPES.index(shape), COLOURS.index(colour))
        (other,) = [s for s in scene.solids[1:] if (s.shape, s.colour) == wanted]
        hero_at, other_at = (
            np.nonzero(ground_truth(attrs.evolve(scene, solids=(s,)), 32)[1] >= FIRST_SOLID)[1]
            for s in (scene.solids[0], other)
        )
        assert (hero_at.mean() < other_at.mean()) == (side == "left")
        seen.add(side)
    assert seen == {"left", "right"}


@pytest.mark.parametrize("size", [8, 31, 64])
def test_other_sizes(size: int) -> None:
    scenes = render(0, [0], size=size)
    assert scenes.images.shape == (1, size, size, 3)
    assert scenes.images.std() > 10


@pytest.mark.parametrize(
    ("seed", "indices", "size", "named"),
    [(-1, [0], 32, "seed is -1"), (0, [4, -2], 32, "-2"), (0, [0], 7, "size is 7")],
)
def test_values_out_of_range(seed: int, indices: list[int], size: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        render(seed, indices, size=size)


@pytest.mark.parametrize("in_turn", [True, False])
def test_file(in_turn: bool, tmp_path: Path) -> None:
    out = tmp_path / "renders.npz"
    given = ["--seed", "3", "--num", "70", "--out", str(out), *(["--in-turn"] if in_turn else [])]
    assert CliRunner().invoke(main, given).exit_code == 0
    with np.load(out) as file:
        assert file["images"].shape == (70, 3, 32, 32)
        assert len(np.unique(file["images"], axis=0)) == 70
        assert (file["labels"].tolist() == [i % 32 for i in range(70)]) == in_turn
        kinds = (sample_scene(3, index).solids[0].kind for index in range(300))
        first = list(kinds).index(file["labels"][0])
        assert np.array_equal(file["images"][0], render(3, [first]).images[0].transpose(2, 0, 1))


def test_indices_must_be_integers() -> None:
    with pytest.raises(TypeError):
        render(0, np.array([0.5]))


def test_speed() -> None:
    start = time.process_time()
    render(7, range(40))
    # 10,000 scenes in two minutes on two cores are 24 ms each.
    assert (time.process_time() - start) / 40 < 0.024
