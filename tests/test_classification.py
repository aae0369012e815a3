"""Finding classes by name, and words on the likeliest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ppap_framework.classification import class_target, describe_top_class, find_class
from ppap_framework.components import TargetInput
from ppap_framework.errors import UsageError
from ppap_framework.targets import decode_target

COLOURS, SHAPES = ("red", "light blue"), ("sphere", "cube", "cylinder")
NAMES = [f"{colour} {shape}" for shape in SHAPES for colour in COLOURS]
BIRDS = ["hen-of-the-woods, Polyporus", "cock", "hen", "crane", "crane, machine", "prairie_chicken"]


class TestFindClass:
    @pytest.mark.parametrize(
        ("text", "names", "index"),
        [
            ("red cube", NAMES, 2),
            (" RED  Cube ", NAMES, 2),
            ("light-blue_cube", NAMES, 3),
            ("3", NAMES, 3),
            (" 0 ", NAMES, 0),
            ("d cube", NAMES, 2),
            ("blue sph", NAMES, 1),
            ("hen", BIRDS, 2),
            ("polyporus", BIRDS, 0),
            ("woods", BIRDS, 0),
            ("machine", BIRDS, 4),
            ("prairie chicken", BIRDS, 5),
            ("hen", ["kitchen", "hen house"], 1),  # whole words go before other parts
            ("tche", ["kitchen", "hen house"], 0),
            ("7", ["3", "7"], 1),  # a name goes before a number
            ("0", ["3", "7"], 0),
            ("1", ["crane", "crane"], 1),  # equal names are told apart by number
        ],
    )
    def test_found(self, text: str, names: list[str], index: int) -> None:
        assert find_class(text, names) == index

    def test_ambiguous(self) -> None:
        with pytest.raises(UsageError, match="2 of 6 classes") as caught:
            find_class("cube", NAMES)
        assert "'red cube' (2), 'light blue cube' (3)" in caught.value.hint
        assert "sphere" not in caught.value.hint
        with pytest.raises(UsageError, match="ambiguous") as caught:
            find_class("class", [f"class {i} of many" for i in range(100)])
        assert caught.value.hint.endswith("'class 7 of many' (7) and 92 more")
        with pytest.raises(UsageError, match="ambiguous"):
            find_class("crane", ["crane", "crane"])

    @pytest.mark.parametrize(
        ("text", "message", "hint"),
        [
            *((text, "numbered from 0 to 5", "") for text in ("6", "-1", "+99", "1" + "0" * 17)),
            ("red kube", "there is no class", "did you mean 'red cube'"),
            ("cilinder", "there is no class", "cylinder"),
            ("spehre", "there is no class", "sphere"),
            *((text, None, "'red sphere'") for text in ("", "  ", "@@@", "(", "a\nb", "9" * 5000)),
        ],
    )
    def test_rubbish(self, text: str, message: str | None, hint: str) -> None:
        with pytest.raises(UsageError, match=message) as caught:
            find_class(text, NAMES)
        assert "\n" not in str(caught.value)
        assert hint in caught.value.hint

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
    @pytest.mark.parametrize(
        ("given", "value", "label"),
        [
            ({"text": "red cyl"}, [4], "red cylinder"),
            ({"array": torch.tensor([1, 1])}, [1, 1], "light blue sphere"),
            ({"array": torch.tensor([1.0, 1.0])}, [1, 1], "light blue sphere"),
            ({"array": torch.arange(4)}, [0, 1, 2, 3], "4 classes"),
        ],
    )
    def test_text_and_one_for_each_image(self, given, value, label) -> None:
        target = class_target(TargetInput(**given), NAMES)
        assert target.value.tolist() == value
        assert target.value.dtype == torch.int64
        assert target.label == label
        assert target.rows(1, 2).value.tolist() == (value[1:2] or value)
        assert class_target(TargetInput(text="0"), BIRDS).label == "hen-of-the-woods"

    @pytest.mark.parametrize(
        "array", [[0.5], [6], [-1], [float("nan")], [float("inf")], [[0, 0], [0, 0]], []]
    )
    def test_arrays_that_are_no_classes(self, array: list[Any]) -> None:
        with pytest.raises(UsageError):
            class_target(TargetInput(array=torch.tensor(array)), NAMES)

    def test_a_picture_stands_for_what_is_seen_in_it(self) -> None:
        seen = []

        def look(images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            return torch.tensor([[0.0, 1.0, 0.0, 7.0, 2.0, 0.0]], requires_grad=True)

        given = TargetInput(image=Image.new("RGB", (3, 2), (255, 0, 51)), source="ref.png")
        with pytest.raises(UsageError, match=r"a picture \(ref.png\)"):
            class_target(given, NAMES)
        target = class_target(given, NAMES, look)
        assert target.value.tolist() == [3]
        assert target.value.dtype == torch.int64
        assert target.label == "light blue cube, as in ref.png"
        assert target.picture is not None
        torch.testing.assert_close(target.picture[:, 1, 2], torch.tensor([1.0, -1.0, -0.6]))
        assert seen[0].shape == (1, 3, 2, 3)
        assert not class_target(TargetInput(text="0"), NAMES, look).picture


def test_the_likeliest_class_has_its_first_name() -> None:
    logits = torch.tensor([[0.0, 9.0, 1.0], [5.0, 0.0, 5.0]], dtype=torch.float16)
    said = describe_top_class(logits.requires_grad_(), ["tench, Tinca", "cock", "hen"])
    assert said == ["cock 1.00", "tench 0.50"]


@pytest.mark.parametrize("three", [3, np.int64(3), torch.tensor(3), np.array(3)])
def test_a_number_is_an_index_even_if_classes_are_called_by_numbers(three: Any) -> None:
    digits = [*"1234567890"]
    assert class_target(decode_target(three), digits).value.tolist() == [3]
    assert class_target(decode_target("3"), digits).value.tolist() == [2]
    with pytest.raises(UsageError):
        class_target(decode_target(10), digits)
