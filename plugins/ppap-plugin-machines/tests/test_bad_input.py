"""Folders and settings that do not fit a job: refused with what differs, and left as they were."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import Run, refused

from ppap_framework.checkpoints import save_checkpoint
from ppap_framework.cli import main
from ppap_framework.registry import registry

TOY = ("--backend", "toy")
DRAW = ("synthesize", *TOY, "--num", "8", "--steps", "2", "--batch", "4", "--shard", "4",
        "--workers", "1")  # fmt: skip
LEARN = ("transfer", *TOY, "--guider", "colour", "--adapter", "full", "--num-experts", "2",
         "--iterations", "4", "--learn-batch", "4", "--no-calibrate", "--no-keep")  # fmt: skip
TRAIN = (*LEARN, "--data", "set")
RUN = ("run", *TOY, "--num", "1", "--steps", "2")


@pytest.fixture(scope="module")
def finished(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a set, one that is begun, a training and a run."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(io.StringIO()):
        patched.chdir(home)
        patched.setenv("PPAP_PLUGINS", "ppap-plugin-toy,ppap-plugin-bias")
        registry.cache_clear()
        patched.setattr(sys.modules["ppap_framework.learn.transfer"], "draw_figures", lambda *_: [])
        for command, out in ((DRAW, "set"), (TRAIN, "training"), (RUN, "run")):
            with pytest.raises(SystemExit) as ended:
                main([*command, "--out", out])
            assert ended.value.code == 0
    registry.cache_clear()
    shutil.copytree(home / "set", home / "begun")
    settings = json.loads((home / "begun" / "manifest.json").read_text())["settings"]
    (home / "begun" / ".partial").mkdir()
    (home / "begun" / ".partial" / "settings.json").write_text(json.dumps(settings))
    (home / "begun" / "manifest.json").unlink()
    (home / "begun" / "shard-00001.tar").unlink()
    return home


@pytest.fixture
def home(finished: Path, run: Run, tmp_path: Path, every_plugin: None) -> Path:
    """A copy of it, in which commands are typed."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def read_only(home: Path) -> Iterator[Path]:
    """The same in a folder "fixed", which nobody can write to, be it the superuser."""
    place = home / "fixed"
    place.mkdir()
    superuser = os.geteuid() == 0
    if superuser:
        mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
        if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("the superuser may not mount file systems here")
    try:
        for name in ("set", "begun", "training", "run"):
            shutil.copytree(home / name, place / name)
        if superuser:
            subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        else:
            for folder in (place, *place.glob("**/")):
                folder.chmod(0o500)
        yield place
    finally:
        if superuser:
            subprocess.run(["umount", str(place)], check=True)
        else:
            for folder in (place, *place.glob("**/")):
                folder.chmod(0o700)


def test_a_read_only_folder(read_only: Path, run: Run) -> None:
    for command, earlier in ((DRAW, ("set", "begun")), (TRAIN, ("training",)), (RUN, ("run",))):
        for name in ("new", *earlier):
            out = f"fixed/{name}"
            place = "fixed" if name == "new" else out
            for more in ((), ("--overwrite",)):
                told = f"cannot write to '{out}': '{place}' is read-only"
                refused(run(*command, "--out", out, *more), 2, told, "give another folder")
    assert run("data", "verify", "fixed/set").code == 0
    code, out, _ = run("jobs", "fixed", "--json")
    jobs = {Path(job["folder"]).name: (job["status"], job["done"]) for job in json.loads(out)}
    done = {name: ("complete", n) for name, n in {"set": 8, "training": 4, "run": 1}.items()}
    assert (code, jobs) == (0, {**done, "begun": ("stopped", 0)})


@pytest.mark.parametrize("more", [(), ("--overwrite",)])
@pytest.mark.parametrize(
    ("command", "folder"),
    [
        pytest.param(command, folder, id=f"{command[0]}-{folder}")
        for command, folders in (
            (DRAW, ("training", "run")),
            (TRAIN, ("set", "begun", "run")),
            (RUN, ("set", "begun", "training")),
        )
        for folder in folders
    ],
)
def test_a_folder_of_another_job(
    home: Path, run: Run, command: tuple[str, ...], folder: str, more: tuple[str, ...]
) -> None:
    before = content(home / folder)
    done = run(*command, "--out", folder, *more)
    refused(done, 2, f"'{folder}", "folder")
    assert "holds other files" in done.err or "is not the record of a run" in done.err
    assert content(home / folder) == before


def test_data_of_another_job(home: Path, run: Run) -> None:
    for folder in ("training", "run"):
        told = f"there is no synthetic set in '{folder}'"
        refused(run(*LEARN, "--data", folder, "--out", "new"), 4, told)
    refused(run(*LEARN, "--data", "begun", "--out", "new"), 4, "no finished set in 'begun'")
    refused(run("experts", "merge", "set"), 4, "'set' holds 0 bundles")
    refused(run("experts", "merge", "training"), 4, "is a whole bundle")
    assert not Path("new").exists()


def test_a_manifest_of_a_future_version(home: Path, run: Run) -> None:
    path = home / "set" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    before = content(home / "set")
    for command in (
        (*DRAW, "--out", "set"),
        (*TRAIN, "--out", "new"),
        ("data", "verify", "set"),
        ("data", "stats", "set"),
    ):
        refused(run(*command), 4, "'set/manifest.json' has format 99", "a newer one may read it")
    assert not Path("new").exists()
    assert content(home / "set") == before


def test_another_seed_or_backend_on_resume(home: Path, run: Run) -> None:
    tensors = {"mean": torch.zeros(3, 8, 8), "spread": torch.tensor(0.5)}
    save_checkpoint(home / "other.safetensors", tensors, {"size": 8, "timesteps": 100})
    before = content(home)
    for folder in ("set", "begun"):
        told = f"'{folder}' was begun with other settings: ", "begin anew with --overwrite"
        refused(run(*DRAW, "--out", folder, "--seed", "1"), 2, *told, "seed was 0, is now 1")
        other = run(*DRAW, "--out", folder, "--checkpoint", "other.safetensors")
        refused(other, 2, *told, "backend.checkpoint was toy-8, is now other")
    told = "'training' was begun with other settings: recipe.seed was 0, is now 1"
    refused(run(*TRAIN, "--out", "training", "--seed", "1"), 2, told)
    other = run(*TRAIN, "--out", "training", "--checkpoint", "other.safetensors")
    refused(other, 4, "the data were drawn by a backend with other weights")
    assert content(home) == before


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_launch_without_accelerate(
    home: Path, run: Run, monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    for command in (DRAW, TRAIN, RUN):
        told = "this is one of 2 processes, and accelerate is not installed"
        refused(run(*command, "--out", "new"), 3, told, "pip install ppap-framework[machines]")
        assert not Path("new").exists()
