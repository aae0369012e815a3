"""Options have the types that their class declares, from the command line, ppap.toml and Python."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NewType, Optional

import attrs
import numpy as np
import pytest
from commands import Run, refused
from distributions import HEADER, plugin
from hypothesis import given
from hypothesis import strategies as st
from toy_distribution import install

import ppap_framework as ppap
from ppap_framework.errors import UsageError
from ppap_framework.registry import registry
from ppap_framework.registry.options import as_declared, read_options

if TYPE_CHECKING:
    from somewhere import Unknown  # type: ignore[import-not-found]  # as plugins do


class Colour(Enum):
    RED = "r"
    GREEN = 2


Name = NewType("Name", str)
NO = object()
HOME = Path.home()
TABLE: list[tuple[Any, Any, Any]] = [  # type, value, what it becomes
    (int, "3", 3),
    (int, 3, 3),
    (int, np.int64(3), 3),
    (int, "3.0", NO),
    (int, 3.0, NO),
    (int, True, NO),
    (int, "true", NO),
    (float, "3", 3.0),
    (float, 3, 3.0),
    (float, np.float32(0.5), 0.5),
    (float, "inf", math.inf),
    (float, "nan", NO),
    (float, "-NaN", NO),
    (float, math.nan, NO),
    (float, True, NO),
    (float, None, NO),
    (bool, "True", True),
    (bool, False, False),
    (bool, "yes", NO),
    (bool, 1, NO),
    (str, "3", "3"),
    (str, "none", "none"),
    (str, 3, NO),
    (str, Path("a"), "a"),
    (str | None, "none", None),
    (str | None, None, None),
    (Optional[int], "4", 4),  # noqa: UP045  # as authors write it
    (float | int, "3", 3),
    (int | float, 3.0, 3.0),
    (int | None, "x", NO),
    (Name, "x", "x"),
    (Name, 3, NO),
    (list[int], "1, 2", [1, 2]),
    (list[int], (1, 2), [1, 2]),
    (list[int], np.arange(2), [0, 1]),
    (list[int], "1,x", NO),
    (list[int], "", []),
    (list[int], 3, NO),
    (list[float], "nan", NO),
    (list, "a,b", ["a", "b"]),
    (set[int], "1,1", {1}),
    (Sequence[str], "a,b", ("a", "b")),
    (tuple[str, ...], "conv1*,layer1*", ("conv1*", "layer1*")),
    (tuple[str, ...], ["conv1*"], ("conv1*",)),
    (tuple[str, ...], [3], NO),
    (tuple[int, int], "1", NO),
    (tuple[int, str], "1,b", (1, "b")),
    (tuple[int, str], ["1", 2], NO),
    (list[int] | None, "none", None),
    (list[str] | None, "none", None),
    (list[int] | None, None, None),
    (str | list[str], "a", ["a"]),
    (Literal["plain", "reshaped"], "plain", "plain"),
    (Literal["plain", "reshaped"], "other", NO),
    (Literal[1, "auto"], "1", 1),
    (Literal[1, "auto"], True, NO),
    (Path, "a/b", Path("a/b")),
    (Path, "~/b", HOME / "b"),
    (Path, Path("a"), Path("a")),
    (Path, 3, NO),
    (os.PathLike, "a", Path("a")),
    (Colour, "RED", Colour.RED),
    (Colour, "2", Colour.GREEN),
    (Colour, 2, Colour.GREEN),
    (Colour, Colour.RED, Colour.RED),
    (Colour, "blue", NO),
    (list[Colour], "RED,2", [Colour.RED, Colour.GREEN]),
    (dict[str, int], {"a": "1"}, {"a": 1}),
    (dict[str, int], {"a": "x"}, NO),
    (dict[str, int], "a=1", NO),
    (Mapping[str, Any], {"a": 1}, {"a": 1}),
    (Decimal, Decimal(1), Decimal(1)),
    (Decimal, "1", NO),
    (Callable[[int], int], abs, abs),
    (Callable[[int], int], "abs", NO),
    (Any, "x", "x"),
    (object, "x", "x"),
]


@pytest.mark.parametrize(("declared", "value", "made"), TABLE)
def test_a_value_becomes_the_declared_type(declared: Any, value: Any, made: Any) -> None:
    if made is NO:
        with pytest.raises(ValueError, match=" is not "):
            as_declared(declared, value)
        return
    found = as_declared(declared, value)
    assert (type(found), found) == (type(made), made)
    assert as_declared(declared, found) == made


@given(st.floats(allow_nan=False) | st.integers() | st.booleans() | st.none())
def test_a_number_is_the_same_typed_and_from_python(value: Any) -> None:
    declared = type(value)
    found = as_declared(declared, value)
    assert as_declared(declared, str(value)) == found == value


def _even(instance: Any, attribute: Any, value: int) -> None:
    if value % 2:
        raise ValueError("must be even")


def _parts(given: str | Sequence[str]) -> tuple[str, ...]:
    return tuple(given.split("/") if isinstance(given, str) else given)


@attrs.frozen
class Loose:
    """Options whose converters take more than they make.

    Attributes:
        missing: May be NaN.
    """

    missing: float = attrs.field(default=1.0, metadata={"nan": True})
    alpha: float = attrs.field(default=1.0, converter=float)
    words: tuple[str, ...] = attrs.field(default="", converter=_parts)
    even: int = attrs.field(default=2, validator=_even)
    unknown: Unknown | None = None
    known: int = 3


@pytest.mark.parametrize(
    ("name", "value", "made"),
    [
        ("missing", "nan", math.nan),
        ("alpha", "3", 3.0),
        ("alpha", "nan", NO),
        ("alpha", math.nan, NO),
        ("words", "a/b", ("a/b",)),
        ("words", ["a", "b"], ("a", "b")),
        ("even", "4", 4),
        ("even", "3", NO),
        ("unknown", "x", "x"),
        ("known", "x", NO),
        ("known", "4", 4),
    ],
)
def test_converters_and_validators_have_their_say(name: str, value: Any, made: Any) -> None:
    values, problems = read_options(Loose, {name: value})
    if made is NO:
        assert [problem.split(":")[0] for problem in problems] == [f"option '{name}'"]
    else:
        assert problems == []
        assert getattr(Loose(**values), name) == pytest.approx(made, nan_ok=True)


# Through every door

OPTIONS = '''
import enum
from pathlib import Path
from typing import Literal
import attrs

class Tone(enum.Enum):
    LOW = "l"
    HIGH = "h"

@attrs.frozen
class Base:
    """
    Attributes:
        sizes: Sizes of two
            things.
    """
    sizes: list[int] = attrs.field(factory=list)

@attrs.frozen
class Options(Base):
    """What can be chosen.

    Attributes:
        pair: Two numbers.
        tone: How high.
    """
    pair: tuple[int, float] = (1, 1.0)
    tone: Tone = Tone.LOW
    kind: Literal["plain", "fine"] = "plain"
    file: Path | None = None
    gain: float = 1.0
'''
KINDS = {"backend": "toy", "guider": "light", "loss": "distance", "adapter": "thin"}
GOOD = {
    "sizes": ("1,2", [1, 2], "[1, 2]"),
    "pair": ("1,2", (1, 2), "(1, 2.0)"),
    "tone": ("HIGH", "h", "<Tone.HIGH: 'h'>"),
    "kind": ("fine", "fine", "'fine'"),
    "file": ("a/b", Path("a/b"), "PosixPath('a/b')"),
    "gain": ("2", 2, "2.0"),
}
BAD = {
    "sizes": ("1,x", [1, "x"]),
    "pair": ("1", (1,)),
    "tone": ("loud", 3),
    "kind": ("rough", "rough"),
    "file": (None, 3),
    "gain": ("nan", math.nan),
}


RECORDS = f"""{HEADER}
def spec(kind, name, **fields):
    return kind(name=name, summary=".", factory=f"acme_toy.parts:{{name}}",
                options="acme_toy.options:Options", **fields)

@hookimpl
def ppap_backends():
    return [spec(BackendSpec, "toy", needs_checkpoint=False)]

@hookimpl
def ppap_guiders():
    return [spec(GuiderSpec, "light", task="brightness", default_loss="distance",
                 needs_checkpoint=False)]

@hookimpl
def ppap_task_losses():
    return [spec(TaskLossSpec, "distance", task="brightness")]

@hookimpl
def ppap_expert_adapters():
    return [spec(AdapterSpec, "thin")]
"""
PARTS = """
import torch
from ppap_framework.author import *
from ppap_plugin_toy import parts

class Light(parts.Grey):
    def target(self, given):
        return Target(value=torch.full((1, 8, 8), given.number()), label=given.text)

def toy(options, checkpoint):
    print("toy", options)
    return parts.ToyBackend(parts.ToyStage(parts.Gaussian(8), 50))

def light(options, checkpoint):
    print("light", options)
    return Light()

def distance(options):
    print("distance", options)
    return parts.Distance()

def thin(options):
    print("thin", options)
    raise UsageError("made")
"""


@pytest.fixture(scope="module")
def plugged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A plugin whose components all take the same options, and print them."""
    site = install(tmp_path_factory.mktemp("options") / "site")
    project = plugin("toy", RECORDS)
    files = {**project.files, "acme_toy/parts.py": PARTS, "acme_toy/options.py": OPTIONS}
    attrs.evolve(project, files=files).install(site)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PPAP_PLUGINS", "acme-toy")
        patch.syspath_prepend(str(site))
        registry.cache_clear()
        yield
    registry.cache_clear()
    for module in [n for n in sys.modules if n.startswith(("acme_toy", "ppap_plugin_toy"))]:
        del sys.modules[module]


@pytest.fixture
def here(plugged: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


RUN = ("run", "--backend", "toy", "--guider", "light", "--target", "0.5", "--dry-run")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("kind", ["backend", "guider", "loss"])
def test_good_values_are_the_same_from_everywhere(typed: Run, capsys, kind: str, name: str) -> None:
    text, value, shown = GOOD[name]
    words = f"{KINDS[kind]} Options("
    outcome = typed(*RUN, f"--{kind}-option", f"{name}={text}")
    assert outcome.code == 0, outcome.err
    said = [outcome.err]
    Path("ppap.toml").write_text(f'[run]\n{kind}-option = ["{name}={text}"]\n')
    said.append(typed(*RUN).err)
    if kind == "backend":
        ppap.backend("toy", options={name: value})
    else:
        more = {"options" if kind == "guider" else "loss_options": {name: value}}
        ppap.guide("light", target="0.5", **more)
    said.append(capsys.readouterr().err)
    for each in said:
        assert f"{name}={shown}" in each.partition(words)[2].splitlines()[0]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("kind", ["backend", "guider", "loss"])
def test_bad_values_are_refused_from_everywhere(typed: Run, kind: str, name: str) -> None:
    text, value = BAD[name]
    said = f"{kind} {KINDS[kind]!r} of acme-toy: option {name!r}: "
    if text is not None:
        refused(typed(*RUN, f"--{kind}-option", f"{name}={text}"), 2, said)
        Path("ppap.toml").write_text(f'[run]\n{kind}-option = ["{name}={text}"]\n')
        refused(typed(*RUN), 2, said)
    with pytest.raises(UsageError) as caught:
        if kind == "backend":
            ppap.backend("toy", options={name: value})
        else:
            more: Any = {"options" if kind == "guider" else "loss_options": {name: value}}
            ppap.guide("light", target="0.5", **more)
    assert said in caught.value.message


TRAIN = ("adapt", "--backend", "toy", "--guider", "light", "--num", "4", "--out", "out")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("typed_text", "said"),
    [
        ("thin:sizes=1,2,tone=HIGH", "made"),
        ("thin:sizes=1,x,tone=HIGH", "option 'sizes': 'x' is not a whole number"),
        ("thin:gain=nan", "option 'gain': 'nan' is not a number"),
    ],
)
def test_adapters_take_options_that_hold_commas(typed: Run, typed_text: str, said: str) -> None:
    outcome = typed(*TRAIN, "--adapter", typed_text)
    assert outcome.code == 2
    assert said in outcome.err
    if said != "made":
        refused(outcome, 2)  # before the networks are made, which print their options


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "command",
    [
        RUN,
        ("diagnose", "--backend", "toy", "--guider", "light", "--out", "d"),
        TRAIN,
        ("transfer", "--backend", "toy", "--guider", "light", "--data", "set", "--out", "out"),
        ("experts", "calibrate", "x", "--backend", "toy", "--guider", "light"),
    ],
)
def test_wherever_there_is_a_loss_it_takes_options(typed: Run, command: tuple[str, ...]) -> None:
    code, out, err = typed(*command, "--loss-option", "pair=1")
    assert (code, out) != (0, "")
    assert "loss 'distance' of acme-toy: option 'pair': '1' is not of type tuple[int, float]" in err


@pytest.mark.usefixtures("here")
def test_plugins_info_says_what_options_are_for(typed: Run) -> None:
    code, out, _ = typed("plugins", "info", "light", "--json")
    rows = json.loads(out)["components"][0]["options"]
    assert code == 0
    assert {row["name"]: (row["type"], row["help"]) for row in rows} == {
        "sizes": ("list[int]", "Sizes of two things."),
        "pair": ("tuple[int, float]", "Two numbers."),
        "tone": ("Tone", "How high."),
        "kind": ("Literal['plain', 'fine']", ""),
        "file": ("pathlib.Path | None", ""),
        "gain": ("float", ""),
    }
