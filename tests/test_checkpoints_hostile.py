"""Files that mean harm, at the command line: none is run, each is refused in one line."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ppap_framework.cli import main
from ppap_framework.runtime import peak_memory

COMMANDS: dict[str, tuple[str, ...]] = {
    "convert": ("checkpoints", "convert", "{}", "out.safetensors"),
    "backend": ("run", "--backend", "adm", "--checkpoint", "{}", "--out", "out"),
    "as a card's": ("run", "--backend", "adm", "--checkpoint", "adm-64={}", "--out", "out"),
    "guider": (
        *("run", "--backend", "adm", "--guider", "adm-classifier", "--target", "0"),
        *("--guider-checkpoint", "{}", "--out", "out"),
    ),
}


class Wicked:
    """Pickles to a call of os.system."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def zipped_pickle(path: Path) -> None:
    torch.save({"a": torch.zeros(1), "payload": Wicked()}, path)


def old_pickle(path: Path) -> None:
    torch.save({"payload": Wicked()}, path, _use_new_zipfile_serialization=False)


def bare_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Wicked()))


def lying_header(path: Path) -> None:
    entry = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
    header = json.dumps({"a": entry}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))


def endless_header(path: Path) -> None:
    path.write_bytes((2**62).to_bytes(8, "little") + b"{")


def bomb(path: Path) -> None:
    """32 MiB of zeros in 32 KiB."""
    torch.save({"a": torch.zeros(4)}, path)
    with zipfile.ZipFile(path) as source:
        members = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in members.items():
            if "/data/" not in name:
                target.writestr(name, content)
                continue
            with target.open(name, "w", force_zip64=True) as file:
                for _ in range(32):
                    file.write(bytes(1 << 20))


def many_in_one(path: Path) -> None:
    """Members of an archive that are all the same bytes of it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data/0", bytes(1 << 20))
        archive.filelist *= 1000


def expanded(path: Path) -> None:
    """A tensor of a terabyte, all of whose numbers are one."""
    torch.save({"a": torch.zeros(1).expand(2**38)}, path)


def repeated(path: Path) -> None:
    """A thousand tensors that are all the same bytes."""
    weight = torch.zeros(1 << 18)
    torch.save({str(index): weight for index in range(1000)}, path)


FILES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "pickle": ("x.pt", zipped_pickle, "wants posix.system to be called"),
    "pickle by another name": ("x.bin", zipped_pickle, "wants posix.system to be called"),
    "pickle without a name": ("x", zipped_pickle, "wants posix.system to be called"),
    "old pickle": ("x.pt", old_pickle, "wants posix.system to be called"),
    "bare pickle": ("x.pt", bare_pickle, "its pickle is damaged or holds more than tensors"),
    "pickle as safetensors": ("x.safetensors", zipped_pickle, "a pickle under a false name"),
    "old pickle as safetensors": ("x.safetensors", old_pickle, "a pickle under a false name"),
    "lying header": ("x.safetensors", lying_header, "file not fully covered"),
    "endless header": ("x.safetensors", endless_header, "header too large"),
    "bomb": ("x.pt", bomb, "is a compressed archive, 33554"),
    "expanded": ("x.pt", expanded, "would take 1099511627776 bytes"),
    "repeated": ("x.pt", repeated, "would take 1048576000 bytes"),
    "many in one": ("x.pt", many_in_one, "is a compressed archive, 1048576000 bytes in"),
}


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command says, which must be an error in a line, and a hint in one."""
    before = peak_memory(torch.device("cpu"))
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (4, "")
    message, hint = err.splitlines()
    assert message.startswith("ppap: error: ")
    assert hint.startswith("hint: ")
    after = peak_memory(torch.device("cpu"))
    assert before is None or after is None or after - before < 2**29
    assert not Path("ran").exists()
    assert not Path("out").exists()
    assert not Path("out.safetensors").exists()
    return message


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", FILES)
def test_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], kind: str, command: str
) -> None:
    name, write, expected = FILES[kind]
    write(Path(name))
    typed = [argument.format(name) for argument in COMMANDS[command]]
    assert expected in refusal(capsys, *typed)


@pytest.mark.parametrize("write", [zipped_pickle, old_pickle, bare_pickle])
def test_the_payload_would_have_run(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path], None],
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # changes nothing
    write(Path("x.pt"))
    refusal(capsys, "checkpoints", "convert", "x.pt", "out.safetensors")
    if write is bare_pickle:
        pickle.loads(Path("x.pt").read_bytes())
    else:
        torch.load("x.pt", weights_only=False)
    assert Path("ran").exists()
