"""Files that were changed at random: one line says what is wrong, or the result is what it says.

Bundles, checkpoints, run folders, synthetic sets, targets and configuration files. No traceback, no
picture that is not the one that the file asks for, and no file of the user's that is changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Outcome
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load
from toy_distribution import write_backend, write_experts

import ppap_framework as ppap
from ppap_framework.cli import main
from ppap_framework.data import synthesize
from ppap_framework.experts.bundle import _SEAL_ENTRY, _ZEROS

tomllib: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

Draw = Any
USERS = {
    "holiday.png": b"not even a picture",
    "000-mine.png": b"mine",
    "notes/run.json": b"{}",
    "seen/depth.txt": b"seen",
}
"""Files of the user's, which lie in every folder that a command writes to."""

VALUES = st.sampled_from(
    [
        *(None, True, False, 0, 1, -1, 3, 10**30, -0.5, 1e308, math.nan, math.inf),
        *("", "x", "none", "../x", "/", "\0", "5" * 5000, "auto", "é\n", "0" * 64),
        *([], {}, [[]], {"a": 1}, [1, 2, 3]),
    ]
)


# What is changed


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every part of a JSON value."""
    yield path
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(part, (*path, key))


def altered(draw: Draw, value: Any) -> Any:
    """A JSON value with one part replaced, left out, doubled or added."""
    *above, last = (None, *draw(st.sampled_from([*places(value)][1:] or [()])))[-99:]
    if last is None:
        return draw(VALUES)
    whole = json.loads(json.dumps(value))
    part = whole
    for key in above[1:]:
        part = part[key]
    how = draw(st.sampled_from(["replace", "replace", "drop", "add", "nest"]))
    if how == "drop":
        del part[last]
    elif how == "add" and isinstance(part, dict):
        part[draw(st.text(max_size=3))] = draw(VALUES)
    elif how == "add":
        part.insert(last, draw(VALUES))
    elif how == "nest":
        part[last] = [part[last]]
    else:
        part[last] = draw(VALUES)
    return whole


def torn(draw: Draw, content: bytes) -> bytes:
    """Bytes with some of them changed, left out, doubled, or others between."""
    begin = draw(st.integers(0, len(content)))
    end = draw(st.integers(begin, min(len(content), begin + 40)))
    between = draw(st.binary(max_size=20))
    how = draw(st.sampled_from(["cut", "splice", "splice", "double", "zero", "other"]))
    if how == "cut":
        return content[:begin]
    if how == "double":
        return content[:end] + content[begin:]
    if how == "zero":
        return content[:begin] + bytes(end - begin) + content[end:]
    if how == "other":
        return between
    return content[:begin] + between + content[end:]


def header_altered(draw: Draw, content: bytes) -> bytes:
    """A safetensors file with another header, or another JSON text in its metadata."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    inner = [key for key, text in header.get("__metadata__", {}).items() if text.startswith("{")]
    if inner and draw(st.booleans()):
        key = draw(st.sampled_from(inner))
        header["__metadata__"][key] = json.dumps(
            altered(draw, json.loads(header["__metadata__"][key]))
        )
    else:
        header = altered(draw, header)
    written = json.dumps(header, separators=(",", ":")).encode()
    return len(written).to_bytes(8, "little") + written + content[8 + length :]


def sealed(content: bytes) -> bytes:
    """A bundle whose SHA-256 of itself is right."""
    before, entry, rest = content.partition(_SEAL_ENTRY)
    if not entry:
        return content
    blank = before + entry + _ZEROS.encode() + rest[len(_ZEROS) :]
    digest = hashlib.sha256(blank).hexdigest().encode()
    return before + entry + digest + rest[len(_ZEROS) :]


def replaced(draw: Draw, path: Path) -> bool:
    """Whether a file was replaced by what is no file."""
    how = draw(st.sampled_from(["kept"] * 12 + ["missing", "folder", "dangling", "loop"]))
    if how == "kept":
        return False
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how != "missing":
        path.symlink_to(path.name if how == "loop" else "nowhere")
    return True


# What is typed


@pytest.fixture
def ppap_run(
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Outcome]:
    """Types a command in this process, and checks how it failed, if it did."""

    def run(*words: object) -> Outcome:
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in words])
        outcome = Outcome(int(str(caught.value.code)), *capsys.readouterr())
        code, out, err = outcome
        assert "Traceback" not in err
        assert "bug in" not in err
        assert code in (0, 1, 2, 3, 4), err
        errors = [line for line in err.splitlines() if line.startswith("ppap: error: ")]
        assert len(errors) == (code != 0), err
        assert code == 0 or out == "" or words[0] == "config"  # which shows what it can
        return outcome

    return run


@pytest.fixture(scope="module")
def origin(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file or folder of each kind, unharmed."""
    folder = tmp_path_factory.mktemp("origin")
    backend = write_backend(folder / "toy.safetensors")
    torch.save(load(backend.read_bytes()), folder / "toy.pt")
    write_experts(folder, scales=[1.0, 2.0, 3.0])
    synthesize("toy", out=folder / "set", num=8, steps=1, batch=4, shard=4)
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / "target.png")
    np.save(folder / "target.npy", generator.uniform(-1, 1, (8, 8)).astype(np.float32))
    with pytest.raises(SystemExit):
        main([*RUN, *GUIDED, "--out", str(folder / "run")])
    return folder


RUN = ("run", "--backend", "toy", "--num", "1", "--steps", "2", "-q")
GUIDED = ("--guider", "colour", "--target", "green", "--scale", "4")
GREY = ("--guider", "grey", "--scale", "raw:4")


def pixels(folder: str | Path = "out") -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(Path(folder) / "000.png"))


def drawn(guides: Any = (), backend: Any = "toy") -> np.ndarray[Any, Any]:
    """The picture that Python draws."""
    found = ppap.sample(backend, guides, num=1, steps=2, seed=0).images[0]
    return ((found.permute(1, 2, 0).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()


@contextlib.contextmanager
def working(origin: Path, tmp: Path, *names: str) -> Iterator[Path]:
    """A folder with copies of these files and with the user's own, which are as they were at the
    end.
    """
    here = tmp / "here"
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir()
    for name in names:
        copy = shutil.copytree if (origin / name).is_dir() else shutil.copy
        copy(origin / name, here / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        users = [here / name for name in USERS]
        for path, content in zip(users, USERS.values(), strict=True):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        yield here
        assert [path.read_bytes() for path in users] == [*USERS.values()]


def bundle(draw: Draw, here: Path, run: Callable[..., Outcome]) -> None:
    path = here / "mine.experts.safetensors"
    content = path.read_bytes()
    change = draw(st.sampled_from([torn, header_altered]))
    changed = change(draw, content)
    whole = change is header_altered
    path.write_bytes(sealed(changed) if whole else changed)
    gone = replaced(draw, path)
    verified = run("experts", "verify", path)
    run("experts", "inspect", path)
    outcome = run(*RUN, *GUIDED, "--experts", path, "--out", "out")
    if gone or (not whole and changed != content):
        assert (verified.code, outcome.code) == (4, 4)
    elif outcome.code == 0 and verified.code == 0:
        # Another description may be as good; then the pictures are those of its experts.
        guide = ppap.guide("colour", target="green", scale=4.0, experts=path)
        assert np.array_equal(pixels(), drawn([guide]))
        recorded = json.loads(Path("out/run.json").read_text())["config"]["guides"][0]["experts"]
        assert recorded["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def checkpoint(draw: Draw, here: Path, run: Callable[..., Outcome]) -> None:
    path = here / draw(st.sampled_from(["toy.safetensors", "toy.pt"]))
    content = path.read_bytes()
    how = draw(st.sampled_from(["torn", "altered"]))
    if how == "torn":
        path.write_bytes(torn(draw, content))
    elif path.suffix == ".pt":
        state: dict[str, Any] = torch.load(path)
        name = draw(st.sampled_from([*state, "more", "state_dict"]))
        value = state.get(name, torch.ones(2))
        changed = [
            value.double(),
            value.int(),
            value * torch.nan,
            value[None],
            value + 1,
            None,
            "x",
        ]
        state[name] = draw(st.sampled_from(changed))
        torch.save(state, path)
    else:
        path.write_bytes(header_altered(draw, content))
    gone = replaced(draw, path)
    outcome = run(*RUN, "--checkpoint", path, "--out", "out")
    if gone:
        assert outcome.code == 4
    elif outcome.code == 0:
        state = load(path.read_bytes()) if path.suffix != ".pt" else torch.load(path)
        state = state.get("state_dict", state)
        backend = ppap.backend("toy")
        backend.stages[0].network.load_state_dict(state)
        assert np.array_equal(pixels(), drawn(backend=backend))


def target(draw: Draw, here: Path, run: Callable[..., Outcome]) -> None:
    path = here / draw(st.sampled_from(["target.png", "target.npy"]))
    how = draw(st.sampled_from(["torn", "other"]))
    if how == "torn":
        path.write_bytes(torn(draw, path.read_bytes()))
    elif path.suffix == ".png":
        mode = draw(st.sampled_from(["1", "L", "LA", "P", "RGBA", "I;16"]))
        with Image.open(path) as image:
            image.convert(mode).save(path)
    else:
        kind = draw(
            st.sampled_from(["?", "i1", ">i4", "u8", "f2", ">f8", "c8", "O", "U3", "V2", "M8[D]"])
        )
        shape = draw(st.sampled_from([(8, 8), (), (0,), (1, 8, 8), (3, 8, 8), (8, 8, 3), (2,)]))
        value = np.zeros(shape, kind)
        if draw(st.booleans()) and kind in ("f2", ">f8"):
            value[...] = draw(st.sampled_from([np.nan, np.inf, 1e4]))
        np.save(path, value)
    gone = replaced(draw, path)
    outcome = run(*RUN, *GREY, "--target", path, "--out", "out")
    if gone:
        assert outcome.code != 0
    elif outcome.code == 0:
        if path.suffix == ".png":
            value = Image.open(path)
            value.load()
        else:
            value = np.load(path, allow_pickle=False)
        guide = ppap.guide("grey", target=value, scale="raw:4")
        assert np.array_equal(pixels(), drawn([guide]))


def run_folder(draw: Draw, here: Path, run: Callable[..., Outcome]) -> None:
    out = here / "run"
    ours = sorted(path for path in out.rglob("*") if path.is_file())
    path = draw(st.sampled_from([*ours, *[out / "run.json"] * 5]))
    content = path.read_bytes()
    if path.suffix == ".json" and draw(st.booleans()):
        record = json.loads(content)
        part = draw(st.sampled_from([None, "config", "status"]))
        found = altered(draw, record[part] if part else record)
        path.write_text(json.dumps(record | {part: found} if part else found))
    else:
        path.write_bytes(torn(draw, content))
    replaced(draw, path)
    for name, text in USERS.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(text)
    outcome = run(*RUN, *GUIDED, "--out", out, "--overwrite")
    assert {name: (out / name).read_bytes() for name in USERS} == USERS
    if outcome.code == 0:
        guide = ppap.guide("colour", target="green", scale=4.0, experts="none")
        assert np.array_equal(pixels(out), drawn([guide]))


def synthetic_set(draw: Draw, here: Path, run: Callable[..., Outcome]) -> None:
    folder = here / "set"
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    path = draw(st.sampled_from([*before, folder / "manifest.json"]))
    if path.suffix == ".json" and draw(st.booleans()):
        path.write_text(json.dumps(altered(draw, json.loads(before[path]))))
    else:
        path.write_bytes(torn(draw, before[path]))
    gone = replaced(draw, path)
    verified = run("data", "verify", folder)
    run("data", "stats", folder)
    if path.suffix == ".tar":
        same = not gone and path.read_bytes() == before[path]
        assert verified.code == (0 if same else 4)
    for name, text in USERS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(text)
    again = ("synthesize", "--backend", "toy", "--num", "8", "--steps", "1", "--batch", "4")
    outcome = run(*again, "--shard", "4", "--workers", "1", "--out", folder)
    assert {name: (folder / name).read_bytes() for name in USERS} == USERS
    if outcome.code == 0:
        shards = [one for one in before if one.suffix == ".tar"]
        assert [one.read_bytes() for one in shards] == [before[one] for one in shards]


OPTIONS: dict[str, list[Any]] = {
    "steps": [1, 2, 3.5, True, "2", [1], -1, 0, "x", {"a": 1}, 10**30],
    "num": [1, 2, "1", 0, -1, 1.0, [], False],
    "seed": [0, 7, -1, "7", 10**30, 1e3, True],
    "eta": [0, 0.5, 1, 2, "0.5", math.nan, math.inf, False, "x"],
    "sampler": ["ddim", "ddpm", "euler", 1, []],
    "scale": [4, "raw:4", "auto", math.nan, "x", -1, True],
    "guider": ["colour", ["colour"], ["colour=4:0-0.5"], ["colour", "grey"], [], [1], "none", {}],
    "target": ["green", ["green"], 1, True, ["colour=blue"], [["green"]], ""],
    "batch": [1, "auto", 0, 1.5, "x", True],
    "through": ["noisy", "clean", "thick"],
    "normalize": [True, False, "yes", 1],
    "compare": [True, False, 0],
    "prompt": ["brighter", "x", 3, ["brighter"]],
    "stage": ["base", "", "x", 3],
    "step": [1],
}


def configuration(draw: Draw, here: Path, run: Callable[..., Outcome]) -> None:
    """Values in ppap.toml do what they do as flags."""
    names = draw(st.lists(st.sampled_from([*OPTIONS]), max_size=3, unique=True))
    table = {name: draw(st.sampled_from(OPTIONS[name])) for name in names}
    lines = [f"{name} = {toml(value)}" for name, value in table.items()]
    text = "\n".join(["[run]", *lines, ""]).encode()
    if damaged := draw(st.integers(0, 3)) == 0:
        text = torn(draw, text)
    path = here / "ppap.toml"
    path.write_bytes(text)
    gone = draw(st.integers(0, 9)) == 0 and replaced(draw, path)
    base = ("run", "--backend", "toy", "-q")
    outcome = run(*base, "--out", "out")
    run("config", "run", "--json")
    if outcome.code or gone:
        return
    if damaged:
        table = tomllib.loads(text.decode()).get("run", {})
    path.unlink()
    flags: list[str] = []
    for name, value in table.items():
        for each in value if isinstance(value, list) else [value]:
            if name in ("normalize", "compare"):
                flags += [f"--{name}"] * bool(each)
            else:
                flags += [f"--{name}", str(each)]
    assert run(*base, *flags, "--out", "flags").code == 0
    for picture in sorted(Path("flags").glob("*.png")):
        assert picture.read_bytes() == (here / "out" / picture.name).read_bytes()


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(part)}" for key, part in value.items()) + "}"
    return str(value) if isinstance(value, float) else json.dumps(value)


KINDS: dict[Any, tuple[str, ...]] = {
    bundle: ("mine.experts.safetensors",),
    checkpoint: ("toy.safetensors", "toy.pt"),
    target: ("target.png", "target.npy"),
    run_folder: ("run",),
    synthetic_set: ("set",),
    configuration: (),
}


@pytest.mark.parametrize("number", [34, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.filterwarnings("ignore")  # of libraries, about damaged files
def test_random_changes(
    origin: Path, tmp_path: Path, ppap_run: Callable[..., Outcome], kind: Any, number: int
) -> None:
    @settings(
        max_examples=number,
        derandomize=True,
        database=None,
        phases=[Phase.generate],  # nothing is shrunk, which would take minutes
        suppress_health_check=[*HealthCheck],
    )
    @given(st.data())
    def change(data: st.DataObject) -> None:
        with working(origin, tmp_path, *KINDS[kind]) as here:
            kind(data.draw, here, ppap_run)

    change()
