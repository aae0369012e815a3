"""What `--guider` and the options with `guide=value` mean."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppap_framework.cli.guide_options import guide_of, parse_guides, typed_pairs
from ppap_framework.errors import Problems, UsageError
from ppap_framework.run import GuideRequest

pytestmark = pytest.mark.usefixtures("site")


def parsed(*guiders: str, **values: list[str]) -> tuple[list[GuideRequest], list[str]]:
    problems = Problems()
    guides = parse_guides({"guider": guiders, **values}, problems)
    return guides, [error.message for error in problems.errors]


EVERYWHERE = (0.0, 1.0)


@pytest.mark.parametrize(
    ("text", "source", "scale", "interval"),
    [
        ("depth", "depth", None, EVERYWHERE),
        (" depth ", "depth", None, EVERYWHERE),
        ("depth=2", "depth", 2.0, EVERYWHERE),
        ("depth=auto", "depth", "auto", EVERYWHERE),
        ("depth=-1.5e2", "depth", -150.0, EVERYWHERE),
        ("depth=raw:64", "depth", "raw:64", EVERYWHERE),
        ("depth=raw:64:0.2-0.8", "depth", "raw:64", (0.2, 0.8)),
        ("acme-x:depth=raw:-1e-3:0.2-0.8", "acme-x:depth", "raw:-1e-3", (0.2, 0.8)),
        ("depth:0.2-0.9", "depth", None, (0.2, 0.9)),
        ("depth=2:0-1", "depth", 2.0, (0.0, 1.0)),
        ("depth=.5:.25-1.", "depth", 0.5, (0.25, 1.0)),
        ("depth=2:1e-3-5e-1", "depth", 2.0, (1e-3, 0.5)),
        ("depth=2:-0.1-0.5", "depth", 2.0, (-0.1, 0.5)),
        ("acme-x:depth", "acme-x:depth", None, EVERYWHERE),
        ("acme-x:depth=2:0.2-0.9", "acme-x:depth", 2.0, (0.2, 0.9)),
        ("acme-x:3d-depth", "acme-x:3d-depth", None, EVERYWHERE),
    ],
)
def test_guiders(text: str, source: str, scale: object, interval: tuple[float, float]) -> None:
    (guide,), problems = parsed(text)
    assert problems == []
    assert (guide.source, guide.scale, guide.interval) == (source, scale, interval)
    assert guide.label == source.rpartition(":")[2]


def test_the_scale_of_those_that_have_none() -> None:
    requests = parse_guides({"guider": ["depth=2", "grey"], "scale": "auto"}, Problems())
    assert [guide.scale for guide in requests] == [2.0, "auto"]


@pytest.mark.parametrize(
    "text",
    [
        *("", "=2", ":0-1", "depth=", "depth=2:", "depth=2:0.5", "depth=2:a-b", "a b", "depth=2=3"),
        *("depth:0.1-0.2-0.3", "Depth", "depth=2:0.1", "depth:.", "depth=1:2:3", "depth:0.1-0.2x"),
        *("depth=raw", "depth=raw:", "depth=raw:auto", "depth=raw:0.2-0.9", "depth=raw:2:"),
    ],
)
def test_guiders_that_cannot_be_read(text: str) -> None:
    guides, (problem,) = parsed(text)
    assert guides == []
    assert f"--guider {text!r}" in problem


@given(st.floats(allow_nan=False), st.floats(0, 1), st.floats(0, 1))
def test_numbers_arrive_as_they_were_typed(scale: float, low: float, high: float) -> None:
    guides, problems = parsed(f"depth={scale!r}:{low!r}-{high!r}")
    assert problems == []
    assert guides[0].scale == scale
    assert guides[0].interval == (low, high)


@given(st.text(max_size=20))
def test_whatever_is_typed_is_read_or_refused(text: str) -> None:
    guides, problems = parsed(text, target=[text])
    assert text.strip() == "none" or bool(guides) or bool(problems)
    for guide in guides:
        assert guide.scale is None or not math.isnan(guide.scale) or "nan" in text.lower()


def test_none_is_no_guide() -> None:
    assert parsed("none") == ([], [])
    assert parsed() == ([], [])


def test_values_find_their_guides() -> None:
    guides, problems = parsed(
        "ppap-plugin-toy:grey=2",
        "colour",
        target=["colour= red cube", "ppap-plugin-toy:grey=a=b.png"],
        guider_model=["grey=dpt-large"],
        guider_checkpoint=["colour=w.pt"],
        loss=["colour=toy-margin"],
        experts=["grey=none"],
        guider_option=["colour.upside-down=true", "ppap-plugin-toy:grey.x=a=b", "grey.other="],
        loss_option=["colour.x-y=1"],
        allow_mismatch=["backend"],
    )
    assert problems == []
    grey, colour = guides
    assert (grey.target, grey.model, grey.experts) == ("a=b.png", "dpt-large", "none")
    assert grey.options == {"x": "a=b", "other": ""}
    assert (colour.target, colour.checkpoint) == ("red cube", "w.pt")
    assert (colour.loss, colour.experts) == ("toy-margin", "auto")
    assert (colour.options, colour.loss_options) == ({"upside_down": True}, {"x_y": "1"})
    assert grey.allow_mismatch == colour.allow_mismatch == ("backend",)


def test_an_option_of_one_value() -> None:
    (guide,) = parse_guides({"guider": "colour", "target": "blue", "loss": None}, Problems())
    assert (guide.target, guide.loss) == ("blue", None)


@pytest.mark.parametrize("text", ["red cube", "a photo = good", "path/to=x.png", "7", "E=mc2"])
def test_a_bare_value_is_for_the_only_guide(text: str) -> None:
    guides, problems = parsed("classifier", target=[text])
    assert problems == []
    assert guides[0].target == text


def test_several_guides_of_one_name() -> None:
    guides, problems = parsed("depth=2", "acme:depth=3")
    assert len(guides) == 1
    assert problems == ["--guider depth is given twice"]


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("sharpness", "3", 3.0),
        ("sharpness", "1e-3", 1e-3),
        ("upside_down", "true", True),
        ("upside_down", "False", False),
        ("model", "3", "3"),
        ("model", "none", None),
    ],
)
def test_options_are_read_as_their_class_declares(key: str, text: str, value: object) -> None:
    read = typed_pairs("--guider-option", [f"{key}={text}"], "colour", "guider")
    assert read == {key: value}
    assert type(read[key]) is type(value)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("sharpness=much", "option 'sharpness': 'much' is not a number"),
        ("sharpness=nan", "option 'sharpness': 'nan' is not a number"),
        ("upside_down=yes", "option 'upside_down': 'yes' is not true or false"),
        ("sharpnes=3", "unknown option 'sharpnes' (did you mean 'sharpness'?)"),
    ],
)
def test_options_of_another_type(option: str, said: str) -> None:
    guides, _ = parsed("colour", guider_option=[option])
    with pytest.raises(UsageError, match=re.escape(f"guider 'colour' of ppap-plugin-toy: {said}")):
        guides[0].check()


@pytest.mark.parametrize(
    ("guider", "said"),
    [
        ("none", "--guider none names no network"),
        ("Colour!", "'Colour!' cannot be read"),
        ("colour=4", "colour takes no scale and no interval"),
        ("colour:0-0.5", "colour takes no scale and no interval"),
    ],
)
def test_commands_that_do_not_guide_take_a_name_alone(guider: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        guide_of({"guider": guider})
    assert guide_of({"guider": "colour", "target": "blue"}).target == "blue"
