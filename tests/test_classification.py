"""Finding classes by name, and drawing the top k."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ppap_framework.classification import (
    class_target,
    describe_top_class,
    draw_top_classes,
    find_class,
)
from ppap_framework.components import TargetInput
from ppap_framework.errors import UsageError

COLOURS, SHAPES = ("red", "light blue"), ("sphere", "cube", "cylinder")
NAMES = [f"{colour} {shape}" for shape in SHAPES for colour in COLOURS]
BIRDS = ["hen-of-the-woods, Polyporus", "cock", "hen", "crane", "crane, machine", "prairie_chicken"]


class TestFindClass:
    @pytest.mark.parametrize(
        ("text", "name"),
        [
            ("red cube", "red cube"),
            (" RED  Cube ", "red cube"),
            ("light-blue_cube", "light blue cube"),
            ("3", "light blue cube"),
            (" 0 ", "red sphere"),
            ("d cube", "red cube"),
            ("blue sph", "light blue sphere"),
        ],
    )
    def test_found(self, text: str, name: str) -> None:
        assert NAMES[find_class(text, NAMES)] == name

    @pytest.mark.parametrize(
        ("text", "index"),
        [("hen", 2), ("polyporus", 0), ("woods", 0), ("machine", 4), ("prairie chicken", 5)],
    )
    def test_names_of_several_words_and_parts(self, text: str, index: int) -> None:
        assert find_class(text, BIRDS) == index

    def test_whole_words_go_before_other_parts(self) -> None:
        assert find_class("hen", ["kitchen", "hen house"]) == 1
        assert find_class("tche", ["kitchen", "hen house"]) == 0

    def test_a_name_goes_before_a_number(self) -> None:
        assert find_class("7", ["3", "7"]) == 1
        assert find_class("0", ["3", "7"]) == 0

    def test_ambiguous(self) -> None:
        with pytest.raises(UsageError, match="2 of 6 classes") as caught:
            find_class("cube", NAMES)
        assert "'red cube' (2), 'light blue cube' (3)" in caught.value.hint
        assert "sphere" not in caught.value.hint
        with pytest.raises(UsageError) as caught:
            find_class("class", [f"class {i} of many" for i in range(100)])
        assert caught.value.hint.endswith("'class 7 of many' (7) and 92 more")

    def test_equal_names_are_told_apart_by_number(self) -> None:
        with pytest.raises(UsageError, match="ambiguous"):
            find_class("crane", ["crane", "crane"])
        assert find_class("1", ["crane", "crane"]) == 1

    @pytest.mark.parametrize("text", ["6", "-1", "+99", "100000000000000000"])
    def test_no_such_number(self, text: str) -> None:
        with pytest.raises(UsageError, match="numbered from 0 to 5"):
            find_class(text, NAMES)

    @pytest.mark.parametrize(
        ("text", "near"), [("red kube", "'red cube'"), ("cilinder", "cylinder"), ("spehre", "here")]
    )
    def test_unknown(self, text: str, near: str) -> None:
        with pytest.raises(UsageError, match="there is no class") as caught:
            find_class(text, NAMES)
        assert "did you mean" in caught.value.hint
        assert near in caught.value.hint

    @pytest.mark.parametrize("text", ["", "  ", "@@@", "(", "a\nb", "9" * 5000])
    def test_rubbish(self, text: str) -> None:
        with pytest.raises(UsageError) as caught:
            find_class(text, NAMES)
        assert "\n" not in str(caught.value)
        assert "'red sphere'" in caught.value.hint

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.text("abc ,-_", min_size=1), min_size=1, max_size=6), st.data())
    def test_never_another_class_than_one_that_matches(
        self, names: list[str], data: st.DataObject
    ) -> None:
        text = data.draw(st.sampled_from(names) | st.text("abc", min_size=1))
        try:
            index = find_class(text, names)
        except UsageError:
            return
        letters = str.maketrans("", "", " ,-_")
        assert text.translate(letters) in names[index].translate(letters)


class TestTarget:
    def test_text(self) -> None:
        target = class_target(TargetInput(text="red cyl"), NAMES)
        assert target.value.tolist() == [4]
        assert target.value.dtype == torch.int64
        assert target.label == "red cylinder"
        assert class_target(TargetInput(text="0"), BIRDS).label == "hen-of-the-woods"

    @pytest.mark.parametrize("array", [torch.tensor([1, 1]), torch.tensor([1.0, 1.0])])
    def test_one_for_each_image(self, array: torch.Tensor) -> None:
        target = class_target(TargetInput(array=array), NAMES)
        assert target.value.tolist() == [1, 1]
        assert target.value.dtype == torch.int64
        assert target.label == "light blue sphere"

    def test_different_ones(self) -> None:
        target = class_target(TargetInput(array=torch.arange(4)), NAMES)
        assert target.label == "4 classes"
        assert target.rows(1, 3).value.tolist() == [1, 2]

    @pytest.mark.parametrize(
        "array",
        [
            torch.tensor([0.5]),
            torch.tensor([6]),
            torch.tensor([-1]),
            torch.tensor([float("nan")]),
            torch.tensor([float("inf")]),
            torch.zeros(2, 2),
            torch.zeros(0),
        ],
    )
    def test_arrays_that_are_no_classes(self, array: torch.Tensor) -> None:
        with pytest.raises(UsageError):
            class_target(TargetInput(array=array), NAMES)

    def test_pictures(self) -> None:
        with pytest.raises(UsageError, match=r"a picture \(ref.png\)"):
            class_target(TargetInput(image=Image.new("RGB", (2, 2)), source="ref.png"), NAMES)

    def test_a_picture_stands_for_what_is_seen_in_it(self) -> None:
        seen = []

        def look(images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            return torch.tensor([[0.0, 1.0, 0.0, 7.0, 2.0, 0.0]], requires_grad=True)

        picture = Image.new("RGB", (3, 2), (255, 0, 51))
        target = class_target(TargetInput(image=picture, source="ref.png"), NAMES, look)
        assert target.value.tolist() == [3]
        assert target.value.dtype == torch.int64
        assert target.label == "light blue cube, as in ref.png"
        assert target.picture is not None
        torch.testing.assert_close(target.picture[:, 1, 2], torch.tensor([1.0, -1.0, -0.6]))
        assert seen[0].shape == (1, 3, 2, 3)
        assert not class_target(TargetInput(text="0"), NAMES, look).picture


class TestDrawing:
    logits = torch.tensor([[0.0, 9.0, 1.0, 0.0, 0.0, 0.0], [5.0, 0.0, 0.0, 0.0, 5.0, 0.0]])

    def test_description(self) -> None:
        assert describe_top_class(self.logits, NAMES)[0] == "light blue sphere 1.00"

    @pytest.mark.parametrize("size", [(8, 8), (32, 32), (300, 200)])
    def test_shape_range_and_picture(self, size: tuple[int, int]) -> None:
        images = torch.full((2, 3, *size), -3.0)
        images[1] = 3.0
        drawn = draw_top_classes(self.logits, images, NAMES)
        assert drawn.shape == (2, 3, 144, 288)
        assert drawn.min() >= -1
        assert drawn.max() <= 1
        assert (drawn[0, :, 60:80, 40:90] == -1).all()  # black, where the picture is
        assert (drawn[1, :, 60:80, 40:90] == 1).all()

    def test_bars_are_as_long_as_probabilities(self) -> None:
        probabilities = torch.tensor([[0.5, 0.25, 0.125, 0.0625, 0.0625]])
        drawn = draw_top_classes(probabilities.log(), torch.zeros(1, 3, 8, 8), list("abcde"))
        blue = (drawn[0, 2] - drawn[0, 0] > 0.5)[:, 144:]  # right of the picture
        lengths = blue.sum(1)
        rows = [int(lengths[8 + i * 26 : 8 + (i + 1) * 26].max()) for i in range(5)]
        full = 288 - 8 - 144
        expected = [round(p * full) for p in (0.5, 0.25, 0.125, 0.0625, 0.0625)]
        assert rows == pytest.approx(expected, abs=1.5)

    def test_fewer_classes_than_bars(self) -> None:
        assert (
            draw_top_classes(torch.zeros(1, 2), torch.zeros(1, 3, 8, 8), ["a", "b"]).shape[0] == 1
        )

    def test_long_names_stay_off_the_figures(self) -> None:
        images, short = torch.zeros(1, 3, 8, 8), ["a", "b"]
        long = ["w" * 200, "b"]
        difference = draw_top_classes(torch.zeros(1, 2), images, short) != draw_top_classes(
            torch.zeros(1, 2), images, long
        )
        assert difference[..., :144].sum() == 0
        assert difference[..., 288 - 8 - 26 :].sum() == 0

    def test_gradients_and_half_precision_do_no_harm(self) -> None:
        logits = self.logits.half().requires_grad_()
        images = torch.zeros(2, 3, 8, 8, requires_grad=True)
        assert not draw_top_classes(logits, images, NAMES).requires_grad
