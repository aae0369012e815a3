"""How the command line starts, fails and ends; what a single command does is tested elsewhere."""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import statistics
import subprocess
import sys
import types
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import attrs
import click
import pytest
import torch
from distributions import REPOSITORY, Environment, plugin

from ppap_framework import cli
from ppap_framework.errors import AssetError, PluginError, PpapError, UsageError

HEAVY = ["torch", "transformers", "timm", "attr", "attrs", "pluggy", "rich", "numpy", "logging"]


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_starting_imports_click_and_nothing_heavier(option: str) -> None:
    probe = f"""
import atexit, json, sys
atexit.register(lambda: print(json.dumps([name for name in {HEAVY} if name in sys.modules])))
from ppap_framework.cli import main
main([{option!r}])
"""
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=600
    )
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_help_takes_less_than_150_ms() -> None:
    """Of processor time, which other programs on the machine do not lengthen."""
    seconds = []
    for _ in range(7):
        process = subprocess.Popen(
            [sys.executable, "-m", "ppap_framework", "--help"], stdout=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        seconds.append(usage.ru_utime + usage.ru_stime)
    assert statistics.median(seconds) < 0.150


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_of_the_table_exists(name: str) -> None:
    module, summary = cli.COMMANDS[name]
    command = importlib.import_module(module).command
    assert isinstance(command, click.Command)
    assert command.get_short_help_str(limit=100) == summary


def test_version(tmp_path: Path) -> None:
    environment = Environment.create(tmp_path / "environment")
    assert environment.ppap("--version").stdout == "ppap unknown (not installed)\n"
    core = attrs.evolve(
        plugin("core", ""), name="ppap-framework", entry_points={}, version="12.3", files={}
    )
    core.install(environment.site)
    assert environment.ppap("--version").stdout == "ppap 12.3\n"


def test_the_doctor_on_this_very_installation(capsys: pytest.CaptureFixture[str]) -> None:
    from ppap_framework.checkpoints import cache_dir

    with pytest.raises(SystemExit):
        cli.main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["caches"][0]["path"] == str(cache_dir())
    assert report["torch"]["version"].startswith(metadata.version("torch"))
    assert report["python"]["executable"] == sys.executable


def test_a_plugin_may_add_a_subcommand_to_a_group(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = types.ModuleType("acme_commands")
    module.command = click.command("go", help="Go.")(lambda: click.echo("gone"))  # type: ignore[attr-defined]  # made here
    monkeypatch.setitem(sys.modules, "acme_commands", module)
    offered = metadata.EntryPoints(
        metadata.EntryPoint(name, "acme_commands:command", "ppap.commands")
        for name in ("experts.go", "experts.list", "other.stay")
    )
    distribution = types.SimpleNamespace(entry_points=offered)
    monkeypatch.setattr(cli, "distributions", lambda: [distribution])
    cli.plugin_commands.cache_clear()
    try:
        for typed in (
            ["experts", "go", "-v"],
            ["experts", "--help"],
            ["experts", "list", "--help"],
        ):
            with pytest.raises(SystemExit) as ended:
                cli.main(typed)
            assert not ended.value.code
        assert not {"go", "experts.go", "stay"} & cli.plugin_commands().keys()
    finally:
        cli.plugin_commands.cache_clear()
    out = capsys.readouterr().out
    assert out.startswith("gone\n")
    assert "go         Go." in out
    assert out.count("\n  list ") == 1
    assert "List the bundles that are found." in out.rpartition("Usage")[2]


# One command in the place of all, in this process

Try = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Try:
    """Type `ppap ARGUMENTS`, where `try` is a command that does `body`."""
    monkeypatch.delenv("FORCE_COLOR", raising=False)

    def ppap(*arguments: str, body: Callable[[], object] = lambda: None) -> tuple[int, str, str]:
        module = types.ModuleType("acme_commands")
        module.command = click.command("try")(body)  # type: ignore[attr-defined]  # made here
        monkeypatch.setitem(sys.modules, "acme_commands", module)
        monkeypatch.setattr(cli, "COMMANDS", {"try": ("acme_commands", "Try.")})
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capsys.readouterr()

    return ppap


def raising(error: BaseException) -> Callable[[], object]:
    def body() -> None:
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "exit_code"), [(PpapError, 1), (UsageError, 2), (PluginError, 3), (AssetError, 4)]
)
def test_an_error_for_people_is_two_lines_and_an_exit_code(
    run: Try, error: type[PpapError], exit_code: int
) -> None:
    body = raising(error("no guider is called 'dpeth'", hint="did you mean\n'depth'?"))
    assert run("try", body=body) == (
        exit_code,
        "",
        "ppap: error: no guider is called 'dpeth'\nhint: did you mean 'depth'?\n",
    )
    assert run("try", body=raising(error("full"))) == (exit_code, "", "ppap: error: full\n")


@pytest.mark.parametrize("arguments", [["--debug", "try"], ["try", "--debug"]])
def test_debug_shows_the_traceback_and_its_causes(run: Try, arguments: list[str]) -> None:
    def body() -> None:
        try:
            raise OSError("disk")
        except OSError as error:
            raise AssetError("weights") from error

    code, _, err = run(*arguments, body=body)
    assert code == 4
    assert "OSError: disk" in err
    assert err.endswith("ppap: error: weights\n")


def test_an_unexpected_error_is_called_a_bug(run: Try) -> None:
    code, out, err = run("try", body=raising(ZeroDivisionError("oh\nno")))
    assert (code, out) == (1, "")
    assert err.splitlines() == [
        "ppap: error: this is a bug in ppap: ZeroDivisionError: oh no",
        "hint: please report it; --debug shows the traceback",
    ]
    assert "in body" in run("try", "--debug", body=raising(ZeroDivisionError()))[2]


def test_a_missing_library_is_no_bug(run: Try) -> None:
    error = ModuleNotFoundError("No module named 'torch'", name="torch")
    code, _, err = run("try", body=raising(error))
    assert code == 1
    assert err.startswith("ppap: error: the installation is not complete: No module named 'torch'")
    ours = ModuleNotFoundError("No module named 'ppap_framework.x'", name="ppap_framework.x")
    assert "bug" in run("try", body=raising(ours))[2]


@pytest.mark.parametrize(
    ("error", "said", "hint"),
    [
        (OSError(28, "No space left on device", "out/000.png"), "device: 'out/000.png'", "--debug"),
        (OSError(5, "Input/output error"), "Input/output error", "--debug"),
        (OSError("a word"), "a word", "--debug"),
        (MemoryError("no 3 GB"), "out of memory: no 3 GB", "--batch"),
        (torch.cuda.OutOfMemoryError("no 3 GB"), "out of memory: no 3 GB", "--batch"),
    ],
)
def test_what_the_machine_lacks_is_no_bug(run: Try, error: Exception, said: str, hint: str) -> None:
    code, out, err = run("try", body=raising(error))
    assert (code, out) == (1, "")
    first, second = err.splitlines()
    assert first.startswith("ppap: error: ")
    assert first.endswith(said)
    assert hint in second


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tyr"], "There is no command 'tyr'. Did you mean 'try'?"),
        (["zzz"], "There is no command 'zzz'."),
        (["--zzz"], "--zzz"),
        (["try", "--zzz"], "--zzz"),
        (["try", "superfluous"], "superfluous"),
    ],
)
def test_usage_errors_exit_with_2(run: Try, arguments: list[str], said: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    error, hint = err.splitlines()
    assert error.startswith("ppap: error: ")
    assert said in error
    assert hint == f"hint: ppap{' try' if arguments[0] == 'try' else ''} --help"


def test_nothing_typed_shows_the_help(run: Try) -> None:
    code, out, err = run()
    assert (code, out) == (2, "")
    assert "Usage: ppap" in err


@pytest.mark.parametrize(
    ("body", "code"),
    [(lambda: None, 0), (lambda: 3, 3), (lambda: "text", 0), (raising(SystemExit(7)), 7)],
)
def test_a_command_may_return_its_exit_code(
    run: Try, body: Callable[[], object], code: int
) -> None:
    assert run("try", body=body) == (code, "", "")


def test_interruption_exits_with_130(run: Try) -> None:
    code, out, err = run("try", body=raising(KeyboardInterrupt()))
    assert (code, out) == (130, "")
    assert err.split() == ["ppap:", "interrupted"]


def test_a_true_interruption(tmp_path: Path) -> None:
    (tmp_path / "acme_sleep.py").write_text(
        "import click, time\n"
        "@click.command()\n"
        "def command():\n"
        "    print('asleep', flush=True)\n"
        "    time.sleep(60)\n"
    )
    start = (
        "from ppap_framework import cli; cli.COMMANDS = {'sleep': ('acme_sleep', '')}; "
        "cli.main(['sleep'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", start],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"},
        # A shell may have started these tests in the background, where interrupts are ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "asleep\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "level"),
    [
        (["-v", "try"], logging.INFO),
        (["try", "-vv"], logging.DEBUG),
        (["-v", "try", "-v"], logging.DEBUG),
        (["try", "-q"], logging.ERROR),
        (["-q", "try", "-v"], logging.WARNING),
        (["-qqq", "try"], logging.ERROR),
    ],
)
def test_how_much_is_logged(run: Try, arguments: list[str], level: int) -> None:
    seen = []

    def body() -> None:
        seen.append(logging.getLogger("ppap_framework").level)

    assert run(*arguments, body=body)[0] == 0
    assert seen == [level]


@pytest.mark.parametrize(
    "arguments", [["try"], ["-q", "try"], ["-v", "try", "-v"], ["-v", "try", "--zzz"]]
)
def test_logging_is_put_back(
    run: Try, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, ours = logging.getLogger(), logging.getLogger("ppap_framework")
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(ours, "level", logging.CRITICAL)
    streams = []

    def body() -> None:
        streams.extend(handler.stream is sys.stderr for handler in root.handlers)
        ours.critical("lost %d", 3)

    code, _, err = run(*arguments, body=body)
    assert (code, streams) in [(0, [True]), (2, [])]
    assert ("ppap: lost 3\n" in err) == (code == 0)
    assert (ours.level, root.handlers) == (logging.CRITICAL, [])


def test_a_commands_own_options_go_before_the_global_ones(run: Try) -> None:
    seen = []

    @click.option("-v", "--volume", type=int)
    def body(volume: int) -> None:
        seen.append(volume)

    assert run("try", "-v", "11", body=body)[0] == 0
    assert seen == [11]


def test_commands_do_not_repeat_the_global_options_in_their_help(run: Try) -> None:
    code, out, _ = run("try", "--help")
    assert code == 0
    assert "--debug" not in out
    assert "--debug" in run("--help")[1]


def test_examples_in_help_keep_their_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    out = capsys.readouterr().out
    assert "\\b" not in out
    assert '\n  ppap run --backend adm --guider classifier --target "red cube" --num 8\n' in out
