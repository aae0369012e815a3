"""Synthetic sets at a URL: what is read, what is kept, what is refused, and how sets are joined."""

from __future__ import annotations

import gc
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import hub_server
import numpy as np
import pytest
import yaml
from commands import Run, refused
from hub_server import Hub
from PIL import Image

from ppap_framework.data import SyntheticData, synthesize
from ppap_framework.errors import PluginError, PpapError
from ppap_framework.files import digest, local_folder
from ppap_plugin_hub import sets
from ppap_plugin_hub.places import Place
from ppap_plugin_hub.storage import FilePlace

SHARDS = [f"shard-{number:05d}.tar" for number in range(3)]


@pytest.fixture
def memory() -> Iterator[Any]:
    """The memory of fsspec, empty."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of fetched files, in order."""
    names: list[str] = []
    fetch = Place.fetch

    def watched(place: Place, name: str, *given: Any) -> None:
        fetch(place, name, *given)
        names.append(name)

    monkeypatch.setattr(Place, "fetch", watched)
    return names


def pictures(path: Path | str) -> np.ndarray[Any, Any]:
    return np.asarray(SyntheticData(path).load())


@pytest.mark.parametrize("url", ["memory://sets/a", "file://{}/a", "hf://datasets/ada/a"])
def test_a_set_is_read_from_where_it_was_pushed(
    typed: Run,
    hub: Hub,
    memory: Any,
    drawn: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    url: str,
) -> None:
    url = url.format(tmp_path)
    assert typed("data", "push", drawn, url) == (0, f"{url}\n", "")
    assert typed("data", "verify", url) == (0, "10 images in 3 shards are whole\n", "")
    assert ("fetching 3 shards" in caplog.text) is not url.startswith("file")
    np.testing.assert_array_equal(pictures(url), pictures(drawn))
    assert SyntheticData(url).manifest_hash == SyntheticData(drawn).manifest_hash
    assert json.loads(typed("data", "stats", url, "--json").out)["images"] == 10


@pytest.mark.slow
def test_experts_of_a_set_at_a_url_are_those_of_the_folder(
    typed: Run, memory: Any, drawn: Path, tmp_path: Path
) -> None:
    typed("data", "push", drawn, "memory://set")
    made = []
    for data in (drawn, "memory://set"):
        out = tmp_path / f"{len(made)}"
        code, _, err = typed(
            *("transfer", "--backend", "toy", "--guider", "colour", "--adapter", "toy-shift"),
            *("--data", data, "--out", out, "--name", "mine", "--num-experts", 2, "--no-keep"),
            *("--iterations", 4, "--learn-batch", 2, "--held-out", 0.3, "--no-calibrate"),
        )
        assert code == 0, err
        made.append((out / "mine.experts.safetensors").read_bytes())
    assert made[0] == made[1]


def test_a_copy_is_fetched_once(
    typed: Run, memory: Any, drawn: Path, cache: Path, fetched: list[str]
) -> None:
    typed("data", "push", drawn, "memory://a")
    typed("data", "push", drawn, "memory://b")
    first = local_folder("memory://a")
    assert fetched == SHARDS
    assert local_folder("memory://a") == local_folder("memory://b") == first
    assert first.parent == cache / "sets"
    assert fetched == SHARDS


def test_processes_that_begin_together_fetch_once(
    typed: Run, memory: Any, drawn: Path, fetched: list[str]
) -> None:
    typed("data", "push", drawn, "memory://a")
    with ThreadPoolExecutor(4) as pool:
        folders = {*pool.map(local_folder, ["memory://a"] * 4)}
    assert len(folders) == 1
    assert fetched == SHARDS


def test_a_copy_serves_without_the_network(
    typed: Run, hub: Hub, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "hf://datasets/ada/a"
    typed("data", "push", drawn, url)
    monkeypatch.setenv("PPAP_OFFLINE", "1")
    refused(typed("data", "verify", url), 4, "downloads are off")
    monkeypatch.delenv("PPAP_OFFLINE")
    typed("data", "verify", url)
    before = len(hub.asked)
    monkeypatch.setenv("PPAP_OFFLINE", "1")
    assert typed("data", "verify", url).code == 0
    assert len(hub.asked) == before


def test_a_damaged_shard_is_named_and_the_rest_is_kept(
    typed: Run, memory: Any, drawn: Path, cache: Path, fetched: list[str]
) -> None:
    typed("data", "push", drawn, "memory://a")
    whole = memory.cat_file("/a/shard-00001.tar")
    memory.pipe_file("/a/shard-00001.tar", whole[:-1] + b"\1")
    code, out, err = typed("data", "verify", "memory://a")
    assert (code, out) == (4, "")
    assert "'shard-00001.tar' of memory://a did not come as it is there" in err
    assert not [*cache.rglob("shard-00001.tar")] and not [*cache.rglob("manifest.json")]
    memory.pipe_file("/a/shard-00001.tar", whole)
    assert typed("data", "verify", "memory://a").code == 0
    assert fetched == SHARDS


def test_a_damaged_copy_is_said(typed: Run, memory: Any, drawn: Path) -> None:
    typed("data", "push", drawn, "memory://a")
    copy = local_folder("memory://a")
    (copy / SHARDS[0]).write_bytes(b"")
    refused(typed("data", "verify", "memory://a"), 4, str(copy / SHARDS[0]), "has 0 bytes")


def rewritten(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    """A change of a manifest that leaves its own hash right."""

    def changed(content: bytes) -> bytes:
        manifest = json.loads(content)
        manifest.pop("sha256")
        change(manifest)
        return json.dumps({**manifest, "sha256": digest(manifest)}).encode()

    return changed


@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"",
        lambda content: b"[]",
        lambda content: content.replace(b'"num": 10', b'"num": 12'),
        rewritten(lambda m: m.update(format=9)),
        rewritten(lambda m: m.pop("settings")),
        rewritten(lambda m: m["settings"].pop("num")),
        rewritten(lambda m: m["settings"].update(num="many")),
        rewritten(lambda m: m["settings"].update(num=10**6)),
        rewritten(lambda m: m["settings"].update(shard=0)),
        rewritten(lambda m: m["shards"].pop()),
        rewritten(lambda m: m["shards"][0].update(file="../../../evil")),
        rewritten(lambda m: m["shards"][0].update(bytes=None)),
        rewritten(lambda m: m.update(shards={})),
    ],
)
def test_a_manifest_that_is_none_is_refused(
    typed: Run, memory: Any, drawn: Path, cache: Path, change: Callable[[bytes], bytes]
) -> None:
    typed("data", "push", drawn, "memory://a")
    memory.pipe_file("/a/manifest.json", change(memory.cat_file("/a/manifest.json")))
    refused(typed("data", "verify", "memory://a"), 4, "memory://a/manifest.json")
    assert not [*cache.rglob("*.tar")]


@pytest.mark.parametrize(
    "url, code, said",
    [
        ("memory://nowhere", 4, ["memory://nowhere", "is not there"]),
        ("hf://datasets/ada/nothing", 4, ["no such repository"]),
        ("file:///nowhere", 4, ["there is no synthetic set in '/nowhere'"]),
        ("nothing://a", 2, ["nothing here reads"]),
    ],
)
def test_a_url_without_a_set(
    typed: Run, hub: Hub, memory: Any, url: str, code: int, said: list[str]
) -> None:
    refused(typed("data", "stats", url), code, *said)


def test_a_url_needs_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    from ppap_framework import files

    monkeypatch.setattr(files.metadata, "entry_points", lambda **_: ())
    with pytest.raises(PluginError, match="pip install ppap-plugin-hub"):
        local_folder("memory://a")


def test_an_interrupted_push_goes_on(
    typed: Run, memory: Any, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, done = FilePlace.put, []

    def failing(place: FilePlace, files: dict[str, Path], message: str) -> None:
        if len(done) == 3:
            raise PpapError("the network is gone")
        put(place, files, message)
        done.extend(files)

    monkeypatch.setattr(FilePlace, "put", failing)
    refused(typed("data", "push", drawn, "memory://a"), 1, "the network is gone")
    assert done == ["manifest.json.begun", *SHARDS[:2]]
    refused(typed("data", "verify", "memory://a"), 4, "memory://a")
    monkeypatch.setattr(FilePlace, "put", put)
    made = json.loads(typed("data", "push", drawn, "memory://a", "--json").out)
    assert made == {"address": "memory://a", "shards_written": 1}
    assert typed("data", "verify", "memory://a").code == 0
    assert {Path(name).name for name in memory.find("/a")} == {*SHARDS, "manifest.json"}


def test_another_set_is_replaced_on_request_only(
    typed: Run, hub: Hub, memory: Any, drawn: Path, tmp_path: Path
) -> None:
    other = synthesize("toy", out=tmp_path / "other", num=6, steps=2, batch=2, shard=4).path
    for url in ("memory://a", "hf://datasets/ada/a"):
        typed("data", "push", drawn, url)
        refused(typed("data", "push", other, url), 2, "another set", "--overwrite")
        np.testing.assert_array_equal(pictures(url), pictures(drawn))
        assert typed("data", "push", other, url, "--overwrite").code == 0
        np.testing.assert_array_equal(pictures(url), pictures(other))


@pytest.mark.parametrize("url", ["memory://a", "hf://datasets/ada/a"])
def test_a_set_that_is_there_is_left_alone(
    typed: Run, hub: Hub, memory: Any, drawn: Path, url: str
) -> None:
    typed("data", "push", drawn, url)
    assert typed("data", "push", drawn, url).err.endswith("has these shards already\n")
    if url.startswith("hf"):
        assert len(hub.repositories["datasets/ada/a"].commits) == 2


def test_a_damaged_set_is_not_pushed(typed: Run, hub: Hub, drawn: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(drawn, tmp_path / "copy"))
    (copy / SHARDS[2]).unlink()
    refused(typed("data", "push", copy, "ada/a"), 4, SHARDS[2], "is missing")
    (copy / SHARDS[2]).write_bytes(b"x")
    refused(typed("data", "push", copy, "ada/a"), 4, SHARDS[2], "it has 1 bytes")
    refused(typed("data", "push", tmp_path, "ada/a"), 4, "there is no synthetic set")
    assert not hub.asked


def test_the_card_of_a_set(typed: Run, hub: Hub, drawn: Path) -> None:
    """datasets reads the shards, and not the manifest beside them."""
    typed("data", "push", drawn, "ada/a")
    text = hub.files("ada/a", "datasets")["README.md"].decode()
    _, front, body = text.split("---\n", 2)
    config = {"config_name": "default", "data_files": "shard-*.tar"}
    assert yaml.safe_load(front)["configs"] == [config]
    for words in ("10 images", "--data hf://datasets/ada/a", SyntheticData(drawn).manifest_hash):
        assert words in body
    assert {*hub.files("ada/a", "datasets")} == {"README.md", "manifest.json", *SHARDS}


def test_a_private_set_needs_a_token(
    typed: Run, hub: Hub, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed("data", "push", drawn, "ada/a", "--private")
    monkeypatch.delenv("HF_TOKEN")
    refused(typed("data", "stats", "hf://datasets/ada/a"), 4, "or it is private", "HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", hub_server.READ)
    assert typed("data", "stats", "hf://datasets/ada/a").code == 0


# What others read


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_webdataset_reads_the_shards(drawn: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    shards = sorted(map(str, drawn.glob("*.tar")))
    read = [*webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8")]
    assert [sample["__key__"] for sample in read] == [f"{number:08d}" for number in range(10)]
    assert [sample["json"]["index"] for sample in read] == [*range(10)]
    found = np.stack([sample["png"] for sample in read]).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(found, pictures(drawn))
    gc.collect()  # it leaves files open


def test_datasets_reads_the_shards(drawn: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    shards = sorted(map(str, drawn.glob("*.tar")))
    read = datasets.load_dataset(
        "webdataset", data_files=shards, split="train", cache_dir=str(tmp_path)
    )
    assert [row["json"]["index"] for row in read] == [*range(10)]
    found = np.stack([np.asarray(row["png"]) for row in read]).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(found, pictures(drawn))


# Joining


def part(out: Path, **changes: Any) -> Path:
    settings = {"num": 5, "steps": 2, "batch": 2, "shard": 4, "seed": 7, **changes}
    return synthesize("toy", out=out, **settings).path


def members(path: Path) -> dict[str, bytes]:
    found = {}
    for shard in sorted(path.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for info in tar:
                file = tar.extractfile(info)
                assert file is not None
                found[info.name] = file.read()
    return found


def test_sets_are_joined(typed: Run, drawn: Path, tmp_path: Path) -> None:
    second, third = part(tmp_path / "second"), part(tmp_path / "third", seed=8, num=3, shard=2)
    out = tmp_path / "all"
    assert typed("data", "merge", drawn, second, third, "--out", out) == (0, f"{out}\n", "")
    assert typed("data", "verify", out) == (0, "18 images in 5 shards are whole\n", "")
    parts = [drawn, second, third]
    np.testing.assert_array_equal(pictures(out), np.concatenate([*map(pictures, parts)]))
    found, settings = members(out), SyntheticData(out).manifest["settings"]
    assert found["00000012.png"] == members(second)["00000002.png"]
    assert json.loads(found["00000012.json"]) == {"index": 12, "seed": 7}
    assert (settings["num"], settings["seed"], settings["shard"]) == (18, [5, 7, 8], 4)
    hashes = [SyntheticData(path).manifest_hash for path in parts]
    assert [one["sha256"] for one in settings["merged"]] == hashes
    assert {path.name for path in tmp_path.iterdir()} == {"second", "third", "all"}


def test_a_joined_set_is_that_of_its_parts_whatever_the_steps(tmp_path: Path, drawn: Path) -> None:
    second, third = part(tmp_path / "second"), part(tmp_path / "third", seed=8)
    at_once = sets.merge([drawn, second, third], tmp_path / "at-once")
    pair = sets.merge([drawn, second], tmp_path / "pair")
    assert sets.merge([pair.path, third], tmp_path / "in-turn").manifest == at_once.manifest


def test_a_joined_set_is_not_continued(typed: Run, drawn: Path, tmp_path: Path) -> None:
    sets.merge([drawn, part(tmp_path / "second")], tmp_path / "all")
    again = ("synthesize", "--backend", "toy", "--num", 15, "--steps", 2, "--batch", 2)
    outcome = typed(*again, "--shard", 4, "--seed", 5, "--out", tmp_path / "all")
    refused(outcome, 2, "was begun with other settings")


def test_prompts_may_differ(tmp_path: Path) -> None:
    first = part(tmp_path / "1", prompt=["darker"] * 5)
    second = part(tmp_path / "2", prompt=["brighter"] * 5)
    out = sets.merge([first, second], tmp_path / "all")
    said = [json.loads(v)["prompt"] for k, v in members(out.path).items() if k.endswith("json")]
    assert said == ["darker"] * 5 + ["brighter"] * 5


@pytest.mark.parametrize(
    "changes, said",
    [
        ({}, ["hold the same images", "seed 7"]),
        ({"seed": 8, "steps": 3}, ["differ: ", "steps was 2, is now 3"]),
        ({"seed": 8, "eta": 0.5}, ["differ: ", "eta was 0.0, is now 0.5"]),
    ],
)
def test_sets_that_do_not_belong_together(
    typed: Run, tmp_path: Path, changes: dict[str, Any], said: list[str]
) -> None:
    first, second = part(tmp_path / "1"), part(tmp_path / "2", **changes)
    refused(typed("data", "merge", first, second, "--out", tmp_path / "all"), 2, *said)
    assert not (tmp_path / "all").exists()


def test_a_folder_that_holds_something_stays(typed: Run, drawn: Path, tmp_path: Path) -> None:
    second = part(tmp_path / "second")
    refused(typed("data", "merge", drawn, second, "--out", second), 2, "holds other files")
    damaged = Path(shutil.copytree(second, tmp_path / "damaged"))
    (damaged / SHARDS[0]).write_bytes(b"x" * 512)
    out = tmp_path / "all"
    refused(typed("data", "merge", drawn, damaged, "--out", out), 4, SHARDS[0], "is damaged")
    assert not out.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"second", "damaged"}


def test_pictures_of_a_joined_set_can_be_decoded(drawn: Path, tmp_path: Path) -> None:
    out = sets.merge([drawn, part(tmp_path / "second")], tmp_path / "all").path
    for name, content in members(out).items():
        if name.endswith("png"):
            assert Image.open(io.BytesIO(content)).size == (8, 8)
