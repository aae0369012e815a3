"""Two distributions that claim one guider, each with weights and a default target of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from distributions import HEADER, Project, plugin
from safetensors.torch import save
from toy_distribution import install

from ppap_framework.cli import main
from ppap_framework.registry import registry

DRY = ("run", "--backend", "toy", "--dry-run")
BORROWED = (
    *("--guider", "acme-one:lamp", "--guider-checkpoint", "acme-two:bulb"),
    *("--target", "green"),
)
TARGETS = {"one": "green", "two": "blue"}
PARTS = """
from ppap_plugin_toy.parts import Colour, ColourOptions

class Lamp(Colour):
    def __init__(self, options, checkpoint):
        super().__init__(ColourOptions())
        self.register_buffer("of", checkpoint.state_dict()["of"])
"""


def claimant(name: str) -> Project:
    """A distribution `acme-NAME` with the guider `lamp` and, for it, the checkpoint `bulb`."""
    package = f"acme_{name}"
    source = f"""{HEADER}
@hookimpl
def ppap_guiders():
    return [GuiderSpec(name="lamp", summary="Colours.", factory="{package}.parts:Lamp",
                       task="colour", default_loss="toy-cross-entropy")]

@hookimpl
def ppap_assets():
    return [Card(name="bulb", component="lamp", kind="guider", summary="Glass.", default=True,
                 uri="package://{package}/bulb.safetensors", sha256=None, size=None,
                 licence="CC0-1.0", image_size=8),
            DefaultTarget(guider="lamp", checkpoint="bulb", text="{TARGETS[name]}")]
"""
    made = plugin(name, source)
    weights = save({"of": torch.tensor(float(len(TARGETS[name])))})
    own = {f"{package}/parts.py": PARTS, f"{package}/bulb.safetensors": weights}
    return attrs.evolve(made, files={**made.files, **own})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    site = install(tmp_path_factory.mktemp("contested") / "site")
    for name in TARGETS:
        claimant(name).install(site)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        patch.setenv("PPAP_PLUGINS", "ppap-plugin-toy,acme-one,acme-two")
        registry.cache_clear()
        yield site
    registry.cache_clear()
    for module in [name for name in sys.modules if name.startswith(("acme_", "ppap_plugin_toy"))]:
        del sys.modules[module]


Ask = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def ask(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Ask:
    """Types `ppap ... --json`: the exit code, the answer and what was said on stderr."""
    monkeypatch.chdir(tmp_path)

    def typed(*arguments: str) -> tuple[int, dict[str, Any], str]:
        with pytest.raises(SystemExit) as left:
            main([*arguments, "--json"])
        out, said = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return left.value.code, json.loads(out or "{}"), said

    return typed


def test_the_bare_name_says_how_to_choose(ask: Ask) -> None:
    code, _, said = ask(*DRY, "--guider", "lamp")
    assert code == 3
    assert "type --guider acme-one:lamp or --guider acme-two:lamp" in said


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("checkpoint", [None, "bulb", "acme-NAME:bulb", "lamp=bulb"])
def test_the_qualified_name_brings_its_own_weights_and_target(
    site: Path, ask: Ask, name: str, checkpoint: str | None
) -> None:
    asked = [] if checkpoint is None else ["--guider-checkpoint", checkpoint.replace("NAME", name)]
    code, planned, said = ask(*DRY, "--guider", f"acme-{name}:lamp=3:0.2-0.9", *asked)
    assert code == 0, said
    (guide,) = planned["config"]["guides"]
    assert guide["distribution"] == f"acme-{name}"
    assert guide["path"] == str(site / f"acme_{name}" / "bulb.safetensors")
    assert (guide["name"], guide["target"]) == ("lamp", TARGETS[name])
    assert guide["target_is_default"]


def test_a_checkpoint_that_is_asked_for_by_its_distribution_may_be_the_rivals(
    site: Path, ask: Ask
) -> None:
    code, planned, said = ask(*DRY, *BORROWED)
    assert code == 0, said
    (guide,) = planned["config"]["guides"]
    assert guide["distribution"] == "acme-one"
    assert guide["path"] == str(site / "acme_two" / "bulb.safetensors")


def test_the_record_of_a_run_names_whoever_supplied_a_part_of_it(ask: Ask) -> None:
    code, record, said = ask("run", "--backend", "toy", *BORROWED, "--steps", "1", "--num", "1")
    assert code == 0, said
    supplied = record["versions"]["plugins"]
    # Of the guider, of the weights, and of loss and backend.
    assert sorted(supplied) == ["acme-one", "acme-two", "ppap-plugin-toy"]
    assert all(supplied.values())
    assert "suppliers" not in record["config"]["guides"][0]


def test_info_shows_each_its_own(ask: Ask) -> None:
    code, info, said = ask("plugins", "info", "lamp")
    assert code == 0, said
    shown = {
        lamp["plugin"]: [(card["plugin"], card["default_target"]) for card in lamp["checkpoints"]]
        for lamp in info["components"]
    }
    assert shown == {
        "acme-one:one": [("acme-one:one", "green")],
        "acme-two:two": [("acme-two:two", "blue")],
    }
