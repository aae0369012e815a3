"""Options of `ppap run` from the environment and from files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from ppap_framework.checkpoints._fetch import downloads_are_off
from ppap_framework.cli import COMMANDS, core_command
from ppap_framework.cli.config import Command, Option, configured, find_config, problems_of
from ppap_framework.cli.config import command as config
from ppap_framework.cli.run import command as run
from ppap_framework.errors import UsageError

FILE = """
[run]
backend = "toy"
guider = ["depth=2", "colour=4:0.2-0.9"]
target = "colour=red cube"
steps = 40
compare = true
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one, with nothing above it that configures anything."""
    monkeypatch.chdir(tmp_path)
    found = find_config(tmp_path)
    assert found is None, f"{found} configures the tests"
    return tmp_path


def options(*arguments: str) -> dict[str, Any]:
    """What a command line means."""
    context = run.make_context("run", list(arguments))
    assert all("required" in problem.message for problem in problems_of(context).errors)
    return context.params


def write(path: Path, text: str = FILE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_flag_over_variable_over_file_over_default(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert options()["steps"] == 50
    write(folder / "ppap.toml")
    given = options()
    assert (given["backend"], given["steps"], given["compare"]) == ("toy", 40, True)
    assert given["guider"] == ("depth=2", "colour=4:0.2-0.9")
    assert given["target"] == ("colour=red cube",)
    assert given["num"] == 4
    for name, value in {
        "STEPS": "60",
        "GUIDER": "depth=2;colour",
        "TARGET": "blue cube",
        "COMPARE": "0",
        "GUIDER_CHECKPOINT": "",
    }.items():
        monkeypatch.setenv(f"PPAP_RUN_{name}", value)
    monkeypatch.setenv("PPAP_PLUGINS", "someone-elses-variable")
    given = options()
    assert (given["steps"], given["compare"]) == (60, False)
    assert given["guider"] == ("depth=2", "colour")
    assert given["target"] == ("blue cube",)
    assert given["guider_checkpoint"] == ()
    assert options("--steps", "70")["steps"] == 70


def test_the_nearest_file_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = folder / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    write(folder / "ppap.toml", "[run]\nsteps = 1")
    assert options()["steps"] == 1
    write(folder / "a" / "pyproject.toml", "[tool.ppap.run]\nsteps = 2\n[tool.other]\nx = 1")
    assert options()["steps"] == 2
    write(folder / "a" / "ppap.toml", "[run]\nsteps = 3")
    assert options()["steps"] == 3
    write(inner / "pyproject.toml", "[project]\nname = 'mentions tool.ppap'")
    assert options()["steps"] == 3
    write(inner / "pyproject.toml", "[tool.x\nbroken, but not ours")
    assert options()["steps"] == 3


@pytest.mark.parametrize(
    ("file", "text", "says", "hint"),
    [
        ("ppap.toml", "[run]\nstesp = 3", "'stesp' in [run]", "did you mean 'steps'"),
        ("ppap.toml", "[run]\nguider_modl = 'x'", "'guider_modl' in [run]", "'guider-model'"),
        ("ppap.toml", "[run]\nzzz = 3", "'zzz' in [run]", "ppap run --help"),
        ("ppap.toml", "[run]\nas-json = true", "'as-json' in [run]", ""),
        ("ppap.toml", "[rum]\nsteps = 3", "[rum]", "did you mean 'run'"),
        ("ppap.toml", "steps = 3", "[steps]", "write [run] or "),
        ("ppap.toml", "run = 3", "'run' in", "write [run]"),
        ("ppap.toml", "[run", "not valid TOML", ""),
        ("ppap.toml", "\xff", "not valid TOML", ""),
        ("pyproject.toml", "[tool.ppap.run]\nstesp = 3", "'stesp' in [run]", "'steps'"),
        ("pyproject.toml", "[tool.ppap", "not valid TOML", ""),
    ],
)
def test_wrong_files(folder: Path, file: str, text: str, says: str, hint: str) -> None:
    (folder / file).write_text(text, encoding="latin-1")
    with pytest.raises(UsageError) as caught:
        options()
    assert says in caught.value.message
    assert file in caught.value.message
    assert hint in caught.value.hint
    assert "\n" not in str(caught.value)
    with pytest.raises(click.exceptions.Exit) as left:  # what help does
        run.make_context("run", ["--help"])
    assert left.value.exit_code == 0


def test_unknown_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPAP_RUN_STESP", "3")
    with pytest.raises(UsageError, match="PPAP_RUN_STESP") as caught:
        options()
    assert "'PPAP_RUN_STEPS'" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "variable", "says"),
    [
        ("steps = 'many'", "", "--steps in the configuration file: 'many'"),
        ("sampler = 'euler'", "", "--sampler in the configuration file: 'euler'"),
        ("target = [['x']]", "", "--target in the configuration file: ['x']"),
        ("backend = true", "", "--backend in the configuration file: True"),
        ("batch = 'few'", "", "--batch in the configuration file: 'few' is neither a whole number"),
        ("scale = 'big'", "", "--scale in the configuration file: 'big' is neither a number, raw"),
        ("", "many", "--steps in PPAP_RUN_STEPS: 'many'"),
    ],
)
def test_wrong_values_say_where_they_are_and_are_replaced_by_defaults(
    folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, variable: str, says: str
) -> None:
    write(folder / "ppap.toml", f"[run]\n{text}")
    monkeypatch.setenv("PPAP_RUN_STEPS", variable)
    context = run.make_context("run", [])
    messages = [problem.message for problem in problems_of(context).errors]
    assert any(message.startswith(says) for message in messages), messages
    given = context.params
    assert (given["steps"], given["sampler"], given["target"]) == (50, "ancestral", ())
    assert (given["batch"], given["scale"], given["backend"]) == (8, None, None)


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What `ppap config` prints."""

    def show(*arguments: str) -> str:
        config.main(list(arguments), standalone_mode=False)
        return capsys.readouterr().out

    return show


def test_config_shows_values_and_where_they_come_from(
    folder: Path, monkeypatch: pytest.MonkeyPatch, shown: Callable[..., str]
) -> None:
    path = write(folder / "ppap.toml")
    monkeypatch.setenv("PPAP_RUN_NUM", "7")
    told = json.loads(shown("--json"))
    assert told["file"] == str(path)
    assert told["run"]["steps"] == {"value": 40, "from": str(path)}
    assert told["run"]["num"] == {"value": 7, "from": "environment"}
    assert told["run"]["seed"] == {"value": 0, "from": "default"}
    assert told["run"]["guider"]["value"] == ["depth=2", "colour=4:0.2-0.9"]
    monkeypatch.setenv("COLUMNS", "400")  # no long path is wrapped
    table = shown()
    assert str(path) in table
    assert any({"steps", "40", str(path)} <= {*line.split()} for line in table.splitlines())


def test_every_command_that_reads_files_is_shown(
    folder: Path, monkeypatch: pytest.MonkeyPatch, shown: Callable[..., str]
) -> None:
    commands = configured()
    core = {name: core_command(name) for name in COMMANDS}
    reads = {name for name, command in core.items() if isinstance(command, Command)}
    assert reads | {"diagnose"} == {*commands}
    path = write(folder / "ppap.toml", "[run]\nnum = 5\n[synthesize]\nblock = 32\n")
    monkeypatch.setenv("PPAP_SYNTHESIZE_NUM", "640")
    told = json.loads(shown("--json"))
    assert {*told} == {"file", *commands}
    for name in commands:
        options = {p.name for p in commands[name].params if isinstance(p, Option)}
        assert {option.replace("-", "_") for option in told[name]} == options
    assert told["run"]["num"] == {"value": 5, "from": str(path)}
    assert told["synthesize"]["num"] == {"value": 640, "from": "environment"}
    assert told["synthesize"]["batch"] == {"value": 32, "from": str(path)}  # an older name
    assert told["synthesize"]["shard"] == {"value": 512, "from": "default"}

    tables = shown()
    assert all(f"option of {name}" in tables for name in commands)
    _, _, table = tables.partition("option of synthesize")
    assert any(line.split() == ["num", "640", "environment"] for line in table.splitlines())
    only = shown("synthesize")
    assert "option of synthesize" in only
    assert "option of run" not in only


def test_config_without_a_file(shown: Callable[..., str]) -> None:
    assert "file: none" in shown()
    assert json.loads(shown("--json"))["file"] is None


def test_config_refuses_the_wrong_values_of_all_commands_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, shown: Callable[..., str]
) -> None:
    write(folder / "ppap.toml", "[run]\nsteps = 'many'")
    with pytest.raises(UsageError, match=r"^run --steps in the configuration file: 'many'"):
        shown()
    assert "steps" in shown("synthesize")
    monkeypatch.setenv("PPAP_SYNTHESIZE_NUM", "few")
    with pytest.raises(UsageError) as caught:
        shown()
    assert "run --steps in the configuration file: 'many'" in caught.value.message
    assert "synthesize --num in PPAP_SYNTHESIZE_NUM: 'few'" in caught.value.message
    assert caught.value.hint == "ppap run --help; ppap synthesize --help"


def test_what_a_command_does_not_know_is_listed_by_its_own_help(
    folder: Path, monkeypatch: pytest.MonkeyPatch, shown: Callable[..., str]
) -> None:
    write(folder / "ppap.toml", "[synthesize]\nzzz = 1")
    with pytest.raises(UsageError, match=r"'zzz' in \[synthesize\]") as caught:
        shown()
    assert caught.value.hint == "`ppap synthesize --help`"
    (folder / "ppap.toml").unlink()
    monkeypatch.setenv("PPAP_SYNTHESIZE_QQQQ", "1")
    with pytest.raises(UsageError, match="PPAP_SYNTHESIZE_QQQQ") as caught:
        shown()
    assert "synthesize" in caught.value.hint.lower()


@pytest.mark.parametrize(
    "line",
    [
        *(f"{name} = {value}" for name in ("steps", "seed", "threads") for value in (
            "3.5", "true", "[1]", "{a = 1}", "1979-05-27", "nan",
        )),
        *("eta = true", "eta = [1]", "batch = true", "batch = 2.5", "scale = true"),
        *("compare = [1]", "compare = 7", "sampler = [1]", "backend = true", "prompt = {}"),
    ],
)  # fmt: skip
def test_values_of_files_are_as_strict_as_typed_ones(folder: Path, line: str) -> None:
    write(folder / "ppap.toml", f"[run]\n{line}\n")
    ctx = core_command("run").make_context("ppap run", [], auto_envvar_prefix="PPAP_RUN")
    flag = f"--{line.partition(' ')[0]} in the configuration file: "
    assert any(problem.message.startswith(flag) for problem in problems_of(ctx).errors)


@pytest.mark.parametrize(("value", "off"), [("no", False), ("0", False), ("", False), ("1", True)])
def test_offline_by_a_variable(monkeypatch: pytest.MonkeyPatch, value: str, off: bool) -> None:
    monkeypatch.setenv("PPAP_OFFLINE", value)
    assert downloads_are_off() == off


def test_an_unreadable_file_is_not_ignored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(folder / "ppap.toml")

    def refused(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refused)  # root may read everything
    with pytest.raises(UsageError, match=f"cannot read '{path}': Permission denied"):
        find_config(folder)
