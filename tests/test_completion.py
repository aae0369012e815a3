"""Completion in a shell: what is offered, by real bash too, how soon, and in spite of faults."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.shell_completion import CompletionItem, ShellComplete
from distributions import REPOSITORY

from ppap_framework.cli import COMMANDS, ppap

COMPLETE = "_PPAP_COMPLETE"
LOSSES = ["toy-cross-entropy", "toy-distance", "toy-margin", "toy-square"]


def offered(line: str) -> list[CompletionItem]:
    """What is offered for the last word of a line."""
    *before, last = line.split(" ")
    return ShellComplete(ppap, {}, "ppap", COMPLETE).get_completions(before, last)


@pytest.fixture
def cache(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PPAP_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("run --backend ", ["toy"]),
        ("run --guider ", ["colour", "grey"]),
        ("run --seed 3 --guider=c", ["colour"]),
        ("transfer --guider g", ["grey"]),
        ("run --loss ", LOSSES),
        ("diagnose --loss toy-s", ["toy-square"]),
        ("adapt --adapter ", ["toy-shift"]),
        ("run --checkpoint ", ["colour-3", "grey-1", "toy-8"]),
        ("run --sampler ", ["ancestral", "ddpm", "ddim"]),
        ("run --experts ", ["auto", "none", "mine"]),
        ("transfer --begin-with ", ["mine"]),
        ("config tr", ["transfer"]),
        ("sy", ["synthesize"]),
        ("experts i", ["inspect", "import"]),
        ("run --guider nothing", []),
        ("nothing --zzz", []),
    ],
)
def test_names_that_are_offered(cache: Path, line: str, names: list[str]) -> None:
    (cache / "experts").mkdir()
    (cache / "experts" / "mine.experts.safetensors").touch()
    assert [item.value for item in offered(line) if item.type == "plain"] == names


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("run --out x", "dir"),
        ("run --checkpoint ./x", "file"),
        ("run --target x", "file"),
        ("run --experts x/", "file"),
        ("run --plugin-file x", "file"),
    ],
)
def test_what_is_no_name_is_a_path(cache: Path, line: str, kind: str) -> None:
    assert [(item.value, item.type) for item in offered(line)] == [(line.split()[-1], kind)]


def test_every_command_is_offered_with_its_summary(site: Path) -> None:
    found = {item.value: item.help for item in offered("")}
    assert found.items() >= COMMANDS.items()
    assert found["bench"] == "from ppap-plugin-bench"
    assert {item.value for item in offered("run --dry")} == {"--dry-run"}


def test_faults_of_files_and_variables_do_not_matter(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(cache)
    (cache / "ppap.toml").write_text("[run")
    (cache / "mine.py").write_text("raise SystemExit('imported')")
    monkeypatch.setenv("PPAP_RUN_STESP", "3")
    line = "run --plugin-file mine.py --steps many --backend "
    assert [item.value for item in offered(line)] == ["toy"]


@pytest.fixture(scope="module")
def shell(site: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables of a shell in which `ppap` is typed, with the toy plugin alone."""
    folder = tmp_path_factory.mktemp("bin")
    program = folder / "ppap"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m ppap_framework "$@"\n')
    program.chmod(0o755)
    return {
        "PATH": os.pathsep.join([str(folder), os.environ["PATH"]]),
        "HOME": str(folder),
        "TERM": "dumb",
        "PS1": "> ",
        "PYTHONPATH": os.pathsep.join([str(site), str(REPOSITORY)]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PPAP_PLUGINS": "ppap-plugin-toy",
        "PPAP_CACHE_DIR": str(folder / "cache"),
    }


def test_the_tab_key_in_bash(shell: dict[str, str]) -> None:
    ours, its = pty.openpty()
    bash = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"], stdin=its, stdout=its, stderr=its, env=shell
    )
    os.close(its)
    heard = b""

    def hears(wanted: bytes, typed: bytes) -> bool:
        """Whether it answers this to what is typed; tried for a minute."""
        nonlocal heard
        os.write(ours, typed)
        end = time.monotonic() + 60
        while wanted not in heard and time.monotonic() < end:
            if select.select([ours], [], [], 1)[0]:
                heard += os.read(ours, 4096)
        return wanted in heard

    try:
        ready = b'eval "$(_PPAP_COMPLETE=bash_source ppap)"; echo rea""dy\n'
        assert hears(b"\nready", ready), heard
        assert hears(b"run --guider colour ", b"ppap run --guider co\t"), heard
        assert hears(b"--backend toy ", b"--backend \t"), heard
    finally:
        bash.kill()
        bash.wait()
        os.close(ours)


@pytest.mark.parametrize("kind", ["bash", "zsh", "fish"])
def test_scripts_ask_this_program(kind: str, shell: dict[str, str]) -> None:
    script = subprocess.run(
        ["ppap"], env={**shell, COMPLETE: f"{kind}_source"}, capture_output=True, check=True
    )
    assert f"{COMPLETE}={kind}_complete" in script.stdout.decode()
    words = {"COMP_WORDS": "ppap run --guider co", "COMP_CWORD": "3" if kind != "fish" else "co"}
    process = subprocess.run(
        ["ppap"],
        env={
            **shell,
            **words,
            COMPLETE: f"{kind}_complete",
            "PPAP_PLUGINS": "nobody,ppap-plugin-toy",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    told = {"bash": "plain,colour", "zsh": "plain\ncolour\n_", "fish": "plain,colour"}
    assert process.stdout == f"{told[kind]}\n"
    assert process.stderr == ""  # not even that no plugin is called nobody


def test_it_answers_soon_and_without_torch(shell: dict[str, str]) -> None:
    """The least processor time of several: other programs on the machine lengthen it."""
    probe = """
import atexit, json, sys, time
heavy = ["torch", "numpy", "timm", "transformers", "PIL"]
atexit.register(lambda: print(json.dumps([time.process_time(), *set(heavy) & {*sys.modules}])))
from ppap_framework.cli import main
main([])
"""
    words = {"COMP_WORDS": "ppap run --guider c", "COMP_CWORD": "3", COMPLETE: "bash_complete"}
    times = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", probe], env={**shell, **words}, capture_output=True, check=True
        )
        answer, said = done.stdout.splitlines()
        seconds, *imported = json.loads(said)
        assert (answer, imported) == (b"plain,colour", [])
        times.append(seconds)
    assert min(times) < 1
