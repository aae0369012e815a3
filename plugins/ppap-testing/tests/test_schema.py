"""The schema of ppap.toml: it takes what the commands take, and refuses what they refuse."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from toy_distribution import install, plugged

from ppap_framework.cli import core_command
from ppap_framework.cli.config import Option, configured, problems_of
from ppap_framework.cli.config import command as config
from ppap_framework.errors import UsageError
from ppap_framework.registry import plugin_file
from ppap_testing.commands import schema as command
from ppap_testing.schema import schema_of

jsonschema: Any = pytest.importorskip("jsonschema", reason="in the extra dev")
tomllib = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The toy plugin, and no other."""
    with plugged(install(tmp_path_factory.mktemp("toy") / "site")) as folder:
        yield folder


@pytest.fixture
def faults(site: Path) -> Any:
    """Faults of a file by the schema."""
    schema = schema_of()
    jsonschema.Draft7Validator.check_schema(schema)
    validator = jsonschema.Draft7Validator(schema)
    return lambda text: [error.message for error in validator.iter_errors(tomllib.loads(text))]


VALID = [
    'backend = "toy"',
    'backend = "ppap-plugin-toy:toy"',
    'guider = ["colour=2", "grey=raw:4:0.2-0.9", "none"]',
    'guider = "ppap-plugin-toy:grey:0-1"',
    'target = ["colour=green", "0.3"]',
    "target = 3",
    'loss = ["toy-margin", "colour=ppap-plugin-toy:toy-square"]',
    'guider_option = ["colour.sharpness=2", "upside-down=true"]\nbackend-option = []',
    "steps = 40\neta = 0.5\nseed = 0\nnum = 2\ncfg = 3.5",
    'eta = 1\nbatch = 4\nscale = 3\nprecision = "bfloat16"',
    'batch = "auto"\nscale = "auto"',
    'scale = "raw:64.5"\nmoments = [0.5, 0.9]',
    "compare = true\ndry-run = false\ndry_run = true",
]
INVALID = [
    'backend = "tyo"',
    "backend = true",
    'guider = ["colours"]',
    'guider = "colour 2"',
    'loss = "colour"',
    'guider_option = ["colour.sharpnes=2"]',
    'guider_option = "sharpness"',
    'backend-option = ["sharpness=2"]',
    'steps = "many"',
    "steps = 3.5",
    "steps = [3]",
    'batch = "few"',
    'scale = "big"',
    "moments = [0.5]",
    "moments = 0.5",
    'sampler = "euler"',
    "compare = 2",
    "stesp = 3",
    "target = [[3]]",
]


def accepted(text: str, folder: Path) -> bool:
    """Whether the command finds nothing wrong with a file; names are looked up by the command."""
    (folder / "ppap.toml").write_text(f"[run]\n{text}\n")
    try:
        context = core_command("run").make_context("run", ["--backend", "toy"])
    except UsageError:
        return False
    from ppap_framework.cli.guide_options import backend_of, parse_guides

    problems = problems_of(context)
    given = {**context.params, "backend": tomllib.loads(text).get("backend", "toy")}
    problems.attempt(backend_of, given)
    if given["guider"]:
        parse_guides(given, problems)
    return not [e for e in problems.errors if not re.search("none goes with|not used", e.message)]


@pytest.mark.parametrize("text", VALID)
def test_valid_files(
    faults: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert faults(f"[run]\n{text}") == []
    if "option" not in text and "target" not in text and "loss" not in text:
        assert accepted(text, tmp_path)


@pytest.mark.parametrize("text", INVALID)
def test_invalid_files(
    faults: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    assert len(faults(f"[run]\n{text}")) == 1


def test_other_tables(faults: Any) -> None:
    adapt = '[adapt]\nadapter = ["toy-shift:a=1,b=2", "toy-shift"]\nkeep = false\nguider = "grey"'
    assert faults(f"{adapt}\nnum-experts = 3\nloss_option = []\n[synthesize]\nblock = 3") == []
    for wrong in ("[rum]", "run = 3", '[adapt]\nguider = "grey=2"'):
        assert len(faults(wrong)) == 1


def test_the_table_of_a_plugins_command(faults: Any) -> None:
    pytest.importorskip("ppap_plugin_diagnose", reason="the command")
    assert faults("[diagnose]\nnum = 2") == []
    assert len(faults("[diagnose]\nnum = 1")) == 1


def test_every_option_is_described(site: Path) -> None:
    done = CliRunner().invoke(command)
    tables = json.loads(done.stdout)["properties"]
    [commands] = [p.type for p in config.params if p.name == "commands"]
    installed = {"diagnose"} if find_spec("ppap_plugin_diagnose") else set()
    assert {*tables} == {*commands.choices} - {"diagnose"} | installed
    for name, table in tables.items():
        own = [o for o in configured()[name].params if isinstance(o, Option)]
        assert {*table["properties"]} == {flag[2:] for option in own for flag in option.opts}
        assert all(rule["description"] for rule in table["properties"].values())
    assert tables["transfer"]["properties"]["learn-batch"]["default"] == 64
    assert "default" not in tables["transfer"]["properties"]["out"]


ODD = """
from ppap_framework.plugin import *
PPAP_API = (1, 0)

@hookimpl
def ppap_guiders():
    return [GuiderSpec(name="odd", summary="Odd.", factory="odd:x", options="odd:Nothing",
                       task="colour", default_loss="toy-square")]
"""


def test_options_that_cannot_be_read_stop_nothing(site: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(ODD)
    with plugin_file(str(tmp_path / "odd.py")):
        table = schema_of()["properties"]["run"]["properties"]
    assert "odd" in table["guider"]["anyOf"][0]["anyOf"][0]["enum"]
    assert "sharpness" in json.dumps(table["guider-option"])
