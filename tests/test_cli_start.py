"""How the command line starts, fails and ends; what a single command does is tested elsewhere."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from commands import Run
from distributions import REPOSITORY, Environment, plugin

from ppap_framework import cli
from ppap_framework.cli.groups import plugin_commands
from ppap_framework.cli.output import print_fields, print_table, progress
from ppap_framework.errors import AssetError, PluginError, PpapError, UsageError
from ppap_framework.runtime import Progress

HEAVY = ["torch", "transformers", "timm", "attr", "attrs", "pluggy", "rich", "numpy", "logging"]


@pytest.mark.parametrize(
    ("option", "heavy"), [("--help", [*HEAVY, "importlib.metadata"]), ("--version", HEAVY)]
)
def test_starting_imports_click_and_nothing_heavier(option: str, heavy: list[str]) -> None:
    probe = f"""
import atexit, json, sys
atexit.register(lambda: print(json.dumps([name for name in {heavy} if name in sys.modules])))
from ppap_framework.cli import main
main([{option!r}])
"""
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=600
    )
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_help_takes_less_than_twice_as_long_as_importing_click() -> None:
    """The least processor time of several: other programs on the machine lengthen it."""

    def seconds(*arguments: str) -> float:
        process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return usage.ru_utime + usage.ru_stime

    typed = [(seconds("-m", "ppap_framework", "--help"), seconds("-c", "import click"))
             for _ in range(7)]  # fmt: skip
    assert min(help_ for help_, _ in typed) < 2.0 * min(click_ for _, click_ in typed)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_of_the_table_exists(name: str) -> None:
    command = cli.core_command(name)
    assert isinstance(command, click.Command)
    assert command.get_short_help_str(limit=100) == cli.COMMANDS[name]


def test_version(tmp_path: Path) -> None:
    environment = Environment.create(tmp_path / "environment")
    assert environment.ppap("--version").stdout == "ppap 0.1.0\n"
    shutil.rmtree(next(environment.site.glob("ppap_framework-*")))
    assert environment.ppap("--version").stdout == "ppap unknown\n"


def test_the_doctor_on_this_very_installation(typed: Run) -> None:
    from ppap_framework.files import cache_dir

    report = json.loads(typed("doctor", "--json").out)
    assert report["caches"][0]["path"] == str(cache_dir())
    assert report["torch"]["version"].startswith(metadata.version("torch"))
    assert report["python"]["executable"] == sys.executable


# Commands of plugins


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Installs a distribution acme-NAME with entry points of the group `ppap.commands`."""
    monkeypatch.syspath_prepend(tmp_path)

    def made(name: str, source: str, **commands: str) -> None:
        entries = [
            f"{key.replace('_', '.')} = acme_{name}.plugin:{c}" for key, c in commands.items()
        ]
        text = "\n".join(
            ["[other]", "x = y:z", "[ppap.commands]", "# z = z", *entries, "", "=", "[m]", "a = b"]
        )
        plugin(name, source, replaced={"entry_points.txt": text.encode()}).install(tmp_path)

    yield made
    for module in [name for name in sys.modules if name.startswith("acme_")]:
        del sys.modules[module]


GO = """
import click
print("hello")
@click.command("go")
@click.option("--crash", is_flag=True)
def go(crash):
    click.echo("gone from " + __name__)
    return 1 // (not crash) * 7
"""


def test_plugins_add_commands_and_subcommands(install: Any, typed: Run) -> None:
    install("tools", GO, go="go", experts_go="go", experts_list="go", run="go", run_x="go")
    assert {"go", "experts.go"} <= plugin_commands().keys()
    assert not {"a", "x", "z", "# z"} & plugin_commands().keys()
    assert typed("go", "-v") == (7, "gone from acme_tools.plugin\n", "hello\n")
    assert typed("experts", "go", "-q")[:2] == (7, "gone from acme_tools.plugin\n")
    assert "bundles that are found" in typed("experts", "list", "--help").out  # the core's own
    assert "Draw images" in typed("run", "--help").out
    for words, names in ((), ["go"]), (("experts",), ["go", "list"]):
        lines = typed(*words, "--help").out.splitlines()
        for name in names:
            assert sum(line.split()[:1] == [name] for line in lines) == 1
        assert any(line.split() == ["go", "from", "acme-tools"] for line in lines)
    assert typed("experts", "goo").err.startswith(
        "ppap: error: There is no command 'goo'. Did you mean 'go'?\nhint: ppap experts --help"
    )
    code, _, err = typed("go", "--crash")
    assert code == 1
    assert "this is a bug in acme-tools: ZeroDivisionError" in err


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise ImportError('lib')", "ImportError: lib"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("import flux_capacitor", "No module named 'flux_capacitor'"),
        ("", "has no attribute 'go'"),
        ("go = print", "acme_bad.plugin:go is no click command"),
    ],
)
def test_a_broken_command_names_its_distribution(
    install: Any, typed: Run, source: str, said: str
) -> None:
    install("bad", source, go="go", experts_go="go")
    assert "from acme-bad" in typed("--help").out
    for words in (), ("experts",):
        code, out, err = typed(*words, "go")
        message, hint = err.splitlines()
        assert (code, out) == (3, "")
        assert message.startswith("ppap: error: command 'go' of acme-bad is broken: ")
        assert said in message
        assert hint == "hint: pip install --upgrade acme-bad; --debug shows the traceback"
    assert "Traceback" in typed("--debug", "go").err


def test_a_command_that_two_claim_is_typed_with_its_distribution(
    install: Any, typed: Run, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        install(name, GO, go="go")
    damaged = plugin("bad", "", replaced={"entry_points.txt": b"\xff[ppap.commands\nx"})
    damaged.install(tmp_path)
    assert "from acme-one and acme-two" in typed("--help").out
    code, out, err = typed("go")
    assert (code, out) == (3, "")
    assert err.splitlines() == [
        "ppap: error: command 'go' is claimed by acme-one and acme-two",
        "hint: type acme-one:go or acme-two:go",
    ]
    assert typed("acme-two:go").out == "gone from acme_two.plugin\n"
    code, out, _ = typed("doctor")
    assert code == 3
    assert "conflict: command 'go' of acme-one, acme-two; asking for it is an error" in out


# One command in the place of all, in this process


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, typed: Run) -> Run:
    """Types `ppap ARGUMENTS`, where `try` is a command that does `body`."""
    monkeypatch.delenv("FORCE_COLOR", raising=False)

    def ppap(*arguments: str, body: Callable[[], object] = lambda: None) -> Any:
        module = types.ModuleType("try")
        module.command = click.command("try")(body)  # type: ignore[attr-defined]  # made here
        monkeypatch.setitem(sys.modules, "ppap_framework.cli.try", module)
        monkeypatch.setattr(cli, "COMMANDS", {"try": "Try."})
        return typed(*arguments)

    return ppap


def raising(error: BaseException) -> Callable[[], object]:
    def body() -> None:
        raise error

    return body


TRACE = "--debug shows the traceback"
SMALLER = "a smaller --batch takes less"
DOCTOR = "`ppap doctor` looks into it"
NO_TORCH = ModuleNotFoundError("no 'torch'", name="torch")
NO_PART = ModuleNotFoundError("no 'x'", name="ppap_framework.x")
BUG = "this is a bug in ppap: "
REPORT = f"please report it; {TRACE}"


@pytest.mark.parametrize(
    ("error", "code", "message", "hint"),
    [
        (PpapError("full"), 1, "full", ""),
        (
            UsageError("no depth", hint="did you mean\n'dpeth'?"),
            2,
            "no depth",
            "did you mean 'dpeth'?",
        ),
        (PluginError("full"), 3, "full", ""),
        (AssetError("full", hint="empty it"), 4, "full", "empty it"),
        (ZeroDivisionError("oh\nno"), 1, f"{BUG}ZeroDivisionError: oh no", REPORT),
        (NO_PART, 1, f"{BUG}ModuleNotFoundError: no 'x'", REPORT),
        (NO_TORCH, 1, "the installation is not complete: no 'torch'", DOCTOR),
        (OSError(28, "No space left", "out/000.png"), 1, "No space left: 'out/000.png'", TRACE),
        (OSError(5, "Input/output error"), 1, "Input/output error", TRACE),
        (OSError("a word"), 1, "a word", TRACE),
        (MemoryError("no 3 GB"), 1, "out of memory: no 3 GB", SMALLER),
        (torch.cuda.OutOfMemoryError("no 3 GB"), 1, "out of memory: no 3 GB", SMALLER),
    ],
)
def test_an_error_is_two_lines_and_an_exit_code(
    run: Run, error: Exception, code: int, message: str, hint: str
) -> None:
    expected = f"ppap: error: {message}\n" + (f"hint: {hint}\n" if hint else "")
    assert run("try", body=raising(error)) == (code, "", expected)


@pytest.mark.parametrize("arguments", [["--debug", "try"], ["try", "--debug"]])
def test_debug_shows_the_traceback_and_its_causes(run: Run, arguments: list[str]) -> None:
    def body() -> None:
        try:
            raise OSError("disk")
        except OSError as error:
            raise AssetError("weights") from error

    code, _, err = run(*arguments, body=body)
    assert code == 4
    assert "OSError: disk" in err
    assert err.endswith("ppap: error: weights\n")
    assert "in body" in run(*arguments, body=raising(ZeroDivisionError()))[2]


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
def test_usage_errors_exit_with_2(run: Run, arguments: list[str], said: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    error, hint = err.splitlines()
    assert error.startswith("ppap: error: ")
    assert said in error
    assert hint == f"hint: ppap{' try' if arguments[0] == 'try' else ''} --help"


def test_nothing_typed_shows_the_help(run: Run) -> None:
    code, out, err = run()
    assert (code, out) == (2, "")
    assert "Usage: ppap" in err


@pytest.mark.parametrize(
    ("body", "code"),
    [(lambda: None, 0), (lambda: 3, 3), (lambda: "text", 0), (raising(SystemExit(7)), 7)],
)
def test_a_command_may_return_its_exit_code(
    run: Run, body: Callable[[], object], code: int
) -> None:
    assert run("try", body=body) == (code, "", "")


def test_interruption_exits_with_130(run: Run) -> None:
    code, out, err = run("try", body=raising(KeyboardInterrupt()))
    assert (code, out) == (130, "")
    assert err.split() == ["ppap:", "interrupted"]

    def long() -> None:
        with progress("the same command goes on in out"):
            raise KeyboardInterrupt

    assert run("try", body=long) == (
        *(130, "", "ppap: interrupted; the same command goes on in out\n"),
    )


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_true_interruption(tmp_path: Path, how: signal.Signals) -> None:
    (tmp_path / "acme_sleep.py").write_text(
        "import click, time\n"
        "@click.command()\n"
        "def command():\n"
        "    print('asleep', flush=True)\n"
        "    time.sleep(60)\n"
    )
    start = (
        "import sys, acme_sleep; from ppap_framework import cli; cli.COMMANDS = {'sleep': ''}; "
        "sys.modules['ppap_framework.cli.sleep'] = acme_sleep; cli.main(['sleep'])"
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
    process.send_signal(how)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_results_go_to_stdout_wherever_an_interrupt_came(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(click.Abort), progress():
        sys.stdout = sys.stderr  # as between the two lines that end a redirection
        raise KeyboardInterrupt
    click.echo("out/grid.png")
    assert capsys.readouterr() == ("out/grid.png\n", "")


def progressing() -> None:
    with progress() as watch:
        for task in ("drawing", "learning"):
            for done in (1, 2) if watch else ():
                watch(Progress(task, done, 2, f"loss {done}"))


@pytest.mark.parametrize(
    ("arguments", "terminal", "seen"),
    [
        (["try"], False, ""),
        (["try", "-q"], True, ""),
        (["try"], True, "drawing learning loss 2 100 %"),
    ],
)
def test_progress(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    terminal: bool,
    seen: str,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    code, out, err = run(*arguments, body=progressing)
    assert (code, out) == (0, "")
    if not terminal or "-q" in arguments:
        assert err == seen
    else:
        assert all(word in err for word in seen.split())


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
def test_how_much_is_logged(run: Run, arguments: list[str], level: int) -> None:
    seen = []

    def body() -> None:
        seen.append(logging.getLogger("ppap_framework").level)

    assert run(*arguments, body=body)[0] == 0
    assert seen == [level]


@pytest.mark.parametrize(
    "arguments", [["try"], ["-q", "try"], ["-v", "try", "-v"], ["-v", "try", "--zzz"]]
)
def test_logging_is_put_back(
    run: Run, arguments: list[str], monkeypatch: pytest.MonkeyPatch
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


def test_a_commands_own_options_go_before_the_global_ones(run: Run) -> None:
    seen = []

    @click.option("-v", "--volume", type=int)
    def body(volume: int) -> None:
        seen.append(volume)

    assert run("try", "-v", "11", body=body)[0] == 0
    assert seen == [11]


def test_commands_do_not_repeat_the_global_options_in_their_help(run: Run) -> None:
    code, out, _ = run("try", "--help")
    assert code == 0
    assert "--debug" not in out
    assert "--debug" in run("--help")[1]


def test_examples_in_help_keep_their_lines(typed: Run) -> None:
    out = typed("run", "--help").out
    assert "\\b" not in out
    assert '\n  ppap run --backend adm --guider classifier --target "red cube" --num 8\n' in out


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams_are_no_error(tmp_path: Path, closed: str) -> None:
    command = f"{sys.executable} -m ppap_framework plugins list --json {closed}"
    done = subprocess.run(command, shell=True, cwd=tmp_path, env=os.environ, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert bool(done.stdout) == ("1>&-" not in closed)


@pytest.mark.parametrize("columns", ["0", "-1", "1", "x", ""])
def test_tables_are_never_empty(typed: Run, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    out = typed("plugins", "list")[1]
    assert "kind" in out
    assert "guider" in out


@pytest.mark.parametrize("columns", [None, 60, 80, 200])
def test_tables_are_as_wide_as_stdout_and_keep_every_character(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int | None
) -> None:
    """In a pipe, 120 columns. Cells wrap; those of short columns stay in one piece."""
    monkeypatch.setenv("COLUMNS", "" if columns is None else str(columns))
    rows = [("backend", f"plugin-{'x' * 20}:{k}", "a word " * 40, 3.5, None) for k in range(3)]
    headings = ("kind", "plugin", "summary", "size", "empty")
    print_table(headings, rows)
    lines = capsys.readouterr().out.splitlines()
    assert {*map(len, lines)} == {columns or 120}
    starts = [lines[1].index(heading) for heading in headings]
    parts = [slice(*ends) for ends in zip(starts, [*starts[1:], None], strict=True)]
    cells = ["".join(line[part].strip() for line in lines[3:]) for part in parts]
    assert cells[0] == "backend" * 3
    assert cells[1] == "".join(row[1] for row in rows)
    assert cells[2].replace(" ", "") == "aword" * 120
    assert cells[3:] == ["3.5" * 3, ""]
    whole = sum(row[1] in line for row in rows for line in lines)
    assert whole == (0 if columns == 60 else 3)


def test_fields_wrap_between_words_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    print_fields("title", {"a": "x-" * 50, "of": {"it": "one two " * 10}, "none": None})
    path, *lines = capsys.readouterr().out.splitlines()[1:]
    assert path == f"  a      {'x-' * 50}"
    assert [line[:9] for line in lines] == ["  of.it  ", " " * 9]
    assert " ".join(line[9:] for line in lines) == ("one two " * 10).strip()
    assert max(map(len, lines)) <= 60


def test_an_interrupt_while_a_plugin_is_loaded_names_it(run: Run) -> None:
    said = "plugin a:b was being loaded"
    code, _, err = run("try", body=raising(KeyboardInterrupt(said)))
    assert code == 130
    assert err.strip() == f"ppap: interrupted; {said}"


def test_the_home_of_nobody_is_not_there(typed: Run, tmp_path: Path) -> None:
    code, out, err = typed("checkpoints", "info", "~nosuch/x.safetensors")
    assert (code, out) == (4, "")
    assert "~nosuch" in err
    assert "bug" not in err
