"""Synthetic sets to and from a place, and joined from several.

The manifest of a set states the SHA-256 of every shard and of itself. It is written last, and what
is fetched is compared with it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ppap_framework import files
from ppap_framework.data import SyntheticData
from ppap_framework.data.shards import (
    Layout,
    end,
    member_names,
    read_index,
    read_member,
    shard_name,
)
from ppap_framework.errors import AssetError, UsageError
from ppap_plugin_hub.address import place_of
from ppap_plugin_hub.card import data_card
from ppap_plugin_hub.hub import HubPlace
from ppap_plugin_hub.places import Listed, Place, network_is_off
from ppap_plugin_hub.storage import FilePlace

_log = logging.getLogger("ppap_framework.hub")

_MANIFEST, _BEGUN, _CARD = "manifest.json", "manifest.json.begun", "README.md"
_OWN = ("seed", "num", "prompt", "merged")
"""Settings in which sets that are merged may differ."""

_LOW_ORDER = ("batch", "shard", "threads", "device", "precision", "compile", "versions")
"""Settings that change low-order bits of images at most; the merged set has those of the first."""


def local_copy(url: str) -> Path:
    """The folder of a set: that of a file:// URL, or a copy in the cache, fetched if it is not
    there. A copy is that of one manifest, whatever its URL, and lasts. AssetError if there is no
    set, or a shard is not what the manifest says; what came before is kept.
    """
    if url.partition("://")[0] in ("file", "local"):
        return Path(url.partition("://")[2])
    home = files.cache_dir() / "sets"
    note = home / f"{files.digest(url)[:16]}.json"
    if network_is_off() and (noted := files.read_json(note)):
        copy = home / str(noted["sha256"])
        if (copy / _MANIFEST).is_file():
            return copy
    place = place_of(url, "dataset")
    with tempfile.TemporaryDirectory(prefix="ppap-") as work:
        described = _described(place, Path(work))
        folder = home / described.manifest_hash
        with _alone(folder):
            if not (folder / _MANIFEST).is_file():
                _fetch(place, described, folder)
                with files.replacing(folder / _MANIFEST, AssetError) as draft:
                    draft.write_bytes((described.path / _MANIFEST).read_bytes())
            files.write_json(note, {"url": url, "sha256": described.manifest_hash})
    return folder


def _described(place: Place, work: Path) -> SyntheticData:
    """The set of a place without its shards: its manifest, checked, in a folder."""
    content = place.read(_MANIFEST)
    (work / _MANIFEST).write_bytes(content)
    try:
        found = SyntheticData(work)
        for number in Layout(*_sizes(found.manifest["settings"])).shards:
            _listed(found, number)
    except AssetError as error:
        fault = error.message.replace(str(work / _MANIFEST), f"{place.url}/{_MANIFEST}")
        raise AssetError(fault, hint="push the set again with --overwrite") from error
    except (ArithmeticError, KeyError, TypeError, ValueError, IndexError) as error:
        fault = f"{place.url}/{_MANIFEST} is no manifest of a synthetic set"
        raise AssetError(fault, hint="check the address") from error
    return found


def _sizes(settings: Mapping[str, Any]) -> tuple[int, int, int]:
    batch = settings["batch"] if "batch" in settings else settings["block"]
    return int(settings["num"]), int(batch), int(settings["shard"])


def _shards(data: SyntheticData) -> dict[str, Listed]:
    """What the manifest says of each shard."""
    return dict(_listed(data, n) for n in Layout(*_sizes(data.manifest["settings"])).shards)


def _listed(data: SyntheticData, number: int) -> tuple[str, Listed]:
    entry, name = data.manifest["shards"][number], shard_name(number)
    if entry["file"] != name:
        raise ValueError(f"shard {number} is called {entry['file']!r}, not {name!r}")
    return name, Listed(int(entry["bytes"]), sha256=str(entry["sha256"]))


def _fetch(place: Place, data: SyntheticData, folder: Path) -> None:
    """Fetch the shards that are not here yet."""
    wanted = _shards(data)
    missing = {
        name: listed
        for name, listed in wanted.items()
        if not (folder / name).is_file() or listed.difference(folder / name)
    }
    size = sum(listed.size or 0 for listed in missing.values()) / 1e6
    if missing:
        _log.warning("fetching %d shards (%.0f MB) of %s", len(missing), size, place.url)
    for name, listed in missing.items():
        place.fetch(name, folder / name, listed)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """A context that one process at a time is in; others wait, so that what one fetches serves
    all.
    """
    with contextlib.ExitStack() as stack:
        with files.refusals(folder, AssetError):
            folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(ImportError):  # Windows has no flock
                import fcntl

                file = stack.enter_context((folder / ".lock").open("ab"))
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def push(
    folder: Path, to: str, *, private: bool = False, overwrite: bool = False
) -> tuple[str, int]:
    """Write a finished set to a repository of data or a URL. What an interrupted call wrote is not
    written again.

    Returns:
        The address for `--data`, and the number of shards that were written.

    Raises:
        UsageError: If another set is there, and `overwrite` is not given.
        AssetError: If the set is damaged.
        PpapError: If the place refuses.
    """
    data = SyntheticData(folder)
    for name, listed in (shards := _shards(data)).items():
        path = data.path / name
        difference = listed.difference(path) if path.is_file() else "it is missing"
        if difference:
            fault = f"{str(path)!r} is damaged: {difference}"
            raise AssetError(fault, hint="`ppap synthesize` with the same settings draws it again")
    place = place_of(to, "dataset", private=private)
    place.prepare()
    there, manifest = place.listing(), data.path / _MANIFEST
    if _MANIFEST in there:
        if place.read(_MANIFEST) == manifest.read_bytes():
            return place.url, 0
        if not overwrite:
            fault = f"{place.url} has another set"
            raise UsageError(fault, hint="--overwrite replaces it, or give another address")
    if isinstance(place, HubPlace):  # one commit: all of it, or nothing
        with tempfile.TemporaryDirectory(prefix="ppap-") as work:
            about = Path(work, _CARD)
            before = place.read(_CARD).decode(errors="replace") if _CARD in there else ""
            about.write_text(data_card(data, place.url, before), encoding="utf-8")
            wanted = {name: data.path / name for name in shards}
            changed = {n: p for n, p in wanted.items() if not there.get(n, Listed()).is_file(p)}
            place.put({_CARD: about, **changed, _MANIFEST: manifest}, "Synthetic set")
        return place.url, len(changed)
    assert isinstance(place, FilePlace)
    return place.url, _put_in_turn(place, data, shards, there)


def _put_in_turn(
    place: FilePlace, data: SyntheticData, shards: Mapping[str, Listed], there: Mapping[str, Listed]
) -> int:
    """Write shard by shard, the manifest last. Until then, another file says whose shards they are,
    since only their sizes can be seen without reading them.
    """
    manifest, message = data.path / _MANIFEST, "Synthetic set"
    begun = _BEGUN in there and place.read(_BEGUN) == manifest.read_bytes()
    if _MANIFEST in there:
        place.remove(_MANIFEST)
    if not begun:
        place.put({_BEGUN: manifest}, message)
    written = 0
    for name, listed in shards.items():
        if not (begun and name in there and there[name].size == listed.size):
            place.put({name: data.path / name}, message)
            written += 1
    place.put({_MANIFEST: manifest}, message)
    place.remove(_BEGUN)
    return written


def merge(parts: Sequence[str | Path], out: Path) -> SyntheticData:
    """Join sets of one backend and one way of sampling, drawn from different seeds or prompts, into
    a new folder. Images keep their bytes and their seeds, and are numbered anew.

    Raises:
        UsageError: If the sets differ otherwise, two hold the same images, or `out` is not empty.
        AssetError: If a set is damaged.
    """
    sets = [SyntheticData(part) for part in parts]
    settings = _merged_settings(sets)
    out = files.expanded(out)
    files.check_content(out, lambda name: False)
    files.check_writable(out)
    layout = Layout(*_sizes(settings))
    images = _images(sets)
    with (
        files.refusals(out),
        tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=_made(out.parent)) as work,
    ):
        entries = []
        for shard in layout.shards:
            path, numbers = Path(work, shard_name(shard)), layout.shard_images(shard)
            with path.open("wb") as file:
                for number in numbers:
                    file.write(_members(number, *next(images)))
                file.write(end(file.tell()))
            entries.append(
                {
                    "file": path.name,
                    "sha256": files.file_sha256(path),
                    "bytes": path.stat().st_size,
                    "images": len(numbers),
                }
            )
        content: dict[str, Any] = {"format": 2, "settings": settings, "shards": entries}
        content["sha256"] = files.digest(content)
        files.write_json(Path(work, _MANIFEST), content)
        out.mkdir(exist_ok=True)
        for name in [*map(shard_name, layout.shards), _MANIFEST]:
            Path(work, name).replace(out / name)
    return SyntheticData(out)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _merged_settings(sets: Sequence[SyntheticData]) -> dict[str, Any]:
    first, *others = (data.manifest["settings"] for data in sets)
    kept = [name for name in first if name not in (*_OWN, *_LOW_ORDER, "block")]
    hint = "merge sets of one backend and one way of sampling"
    wanted = {name: first[name] for name in kept}
    for data, settings in zip(sets[1:], others, strict=True):
        if found := files.differences(wanted, {name: settings.get(name) for name in kept}):
            fault = f"{str(sets[0].path)!r} and {str(data.path)!r} differ: {'; '.join(found[:4])}"
            raise UsageError(fault, hint=hint)
    drawn: dict[str, Path] = {}
    for data in sets:
        for one in _origins(data):
            of = files.digest({key: one[key] for key in ("seed", "prompt")})
            if of in drawn:
                fault = f"{str(drawn[of])!r} and {str(data.path)!r} hold the same images"
                hint = f"both were drawn with seed {one['seed']}; draw one with another"
                raise UsageError(fault, hint=hint)
            drawn[of] = data.path
    origins = [one for data in sets for one in _origins(data)]
    sizes = dict(zip(("num", "batch", "shard"), _sizes(first), strict=True))
    sizes["num"] = sum(map(len, sets))
    prompts = [one["prompt"] for one in origins]
    same = all(prompt == prompts[0] for prompt in prompts)
    own = {"seed": [one["seed"] for one in origins], "prompt": prompts[0] if same else prompts}
    rest = {name: value for name, value in first.items() if name != "block"}
    return {**rest, **sizes, **own, "merged": origins}


def _origins(data: SyntheticData) -> list[dict[str, Any]]:
    """The sets that a set was merged from, or itself."""
    settings = data.manifest["settings"]
    own = {"sha256": data.manifest_hash, "num": len(data)}
    own |= {"seed": settings["seed"], "prompt": settings.get("prompt")}
    return list(settings.get("merged") or [own])


def _images(sets: Sequence[SyntheticData]) -> Iterator[tuple[Sequence[str], list[bytes]]]:
    """The stages and the contents of the members of every image, in order."""
    for data in sets:
        layout, shards = Layout(*_sizes(data.manifest["settings"])), _shards(data)
        for number, (name, listed) in enumerate(shards.items()):
            path = data.path / name
            difference = listed.difference(path) if path.is_file() else "it is missing"
            if difference:
                fault = f"{str(path)!r} is damaged: {difference}"
                hint = "`ppap synthesize` with the same settings draws it again"
                raise AssetError(fault, hint=hint)
            index = read_index(path)
            with path.open("rb") as file:
                for image in layout.shard_images(number):
                    names = member_names(image, data.stages)
                    yield data.stages, [read_member(file, index[n]) for n in names]


def _members(number: int, stages: Sequence[str], contents: Sequence[bytes]) -> bytes:
    """An image as members of a tar file, under another number."""
    *pictures, told = contents
    told = json.dumps({**json.loads(told), "index": number}).encode()
    made = b""
    for name, content in zip(member_names(number, stages), [*pictures, told], strict=True):
        info = tarfile.TarInfo(name)
        info.size = len(content)
        made += (
            info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)
        )
    return made
