"""Bundles of experts to and from a place.

A bundle is verified before it leaves and before it gets its name here: against the listing of the
place, and by its own SHA-256, description and tensors. A safetensors file runs no code.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppap_framework.errors import AssetError, UsageError, did_you_mean
from ppap_framework.experts import SUFFIX, BundleFile, experts_dir, verify_bundle
from ppap_framework.files import expanded, file_sha256, replacing
from ppap_plugin_hub.address import place_of
from ppap_plugin_hub.card import card
from ppap_plugin_hub.hub import HubPlace
from ppap_plugin_hub.places import Listed, Place
from ppap_plugin_hub.storage import SUMS


def push(
    bundle: BundleFile,
    to: str,
    *,
    picture: Path | None = None,
    licence: str | None = None,
    private: bool = False,
    overwrite: bool = False,
) -> tuple[str, bool]:
    """Write a bundle, its card and a picture to a repository or a URL of a folder.

    Returns:
        The address that `ppap experts pull` takes, and whether anything was written: what is there
        already is left alone.

    Raises:
        UsageError: If another bundle of this name, or another picture, is there and `overwrite` is
            not given.
        AssetError: If the bundle is damaged, or the picture is none.
        PpapError: If the place refuses.
    """
    info, _ = verify_bundle(bundle.path)
    file, suffix = f"{bundle.name}{SUFFIX}", picture and _picture_suffix(picture)
    place = place_of(to, private=private)
    on_hub = isinstance(place, HubPlace)
    place.prepare()
    listing = place.listing()
    sha256 = file_sha256(bundle.path)
    card_file = "README.md" if on_hub else f"{bundle.name}.md"
    shown = f"{bundle.name}{suffix}" if suffix else _picture_there(listing, bundle.name)
    with tempfile.TemporaryDirectory(prefix="ppap-") as folder:
        text = card(
            bundle.name,
            info,
            sha256,
            source=_source(place, file),
            picture=shown,
            licence=licence,
            before=place.read(card_file).decode(errors="replace") if card_file in listing else "",
        )
        files = {card_file: _written(folder, card_file, text)}
        if picture:
            files[f"{bundle.name}{suffix}"] = picture
        files[file] = bundle.path
        if not on_hub:  # the Hub's listing states hashes itself
            files[f"{file}{SUMS}"] = _written(folder, f"{file}{SUMS}", f"{sha256}  {file}\n")
        changed = {
            name: path for name, path in files.items() if not _is_there(place, listing, name, path)
        }
        for name in changed.keys() & listing.keys() - {card_file, f"{file}{SUMS}"}:
            if not overwrite:
                fault = f"{place.url} has another {name!r}"
                raise UsageError(
                    fault, hint="--overwrite replaces it, or give another name to yours"
                )
        if changed:
            place.put(changed, f"Experts {bundle.name}")
    return _source(place, file), bool(changed)


def pull(source: str, out: Path | None = None, *, overwrite: bool = False) -> BundleFile:
    """Fetch a bundle from a repository, from the URL of a folder that holds one, or from its own
    URL, to `out` or to the folder of the user's own bundles.

    Raises:
        UsageError: If another file of this name is here, and `overwrite` is not given.
        AssetError: If there is no bundle, several, or what came is damaged.
    """
    folder, slash, last = source.rpartition("/")
    named = last if last.endswith(SUFFIX) and slash else None
    place = place_of(folder if named else source)
    listing = place.listing()
    found = sorted(name for name in listing if name.endswith(SUFFIX))
    name = named or (found[0] if len(found) == 1 else None)
    if name is None and found:
        hint = f"give one of them, such as {place.url}/{found[0]}"
        raise AssetError(f"{place.url} holds {len(found)} bundles of experts", hint=hint)
    if name is None or name not in listing:
        advice = did_you_mean(name, found) if name else f"a bundle is called NAME{SUFFIX}"
        missing = f"no {name!r}" if name else "no bundle of experts"
        raise AssetError(f"{place.url} holds {missing}", hint=advice or "check the address")
    path = expanded(out) if out else experts_dir()
    path = path / Path(name).name if path.is_dir() or not out else path
    if not path.name.endswith(SUFFIX) or path.name == SUFFIX:
        raise UsageError(f"a bundle cannot be called {path.name!r}", hint=f"use NAME{SUFFIX}")
    here = BundleFile(path.name.removesuffix(SUFFIX), path)
    if path.exists() and listing[name].is_file(path):
        verify_bundle(path)
        return here
    with tempfile.TemporaryDirectory(prefix="ppap-") as work:
        draft = Path(work, Path(name).name)
        place.fetch(name, draft, listing[name])
        verify_bundle(draft)
        if path.exists() and not overwrite and file_sha256(path) != file_sha256(draft):
            hint = "--overwrite replaces it, or give another place with --out"
            raise UsageError(f"{str(path)!r} is there already, and is another file", hint=hint)
        with replacing(path, AssetError) as temporary:
            shutil.copyfile(draft, temporary)
    return here


def _source(place: Place, file: str) -> str:
    """What `ppap experts pull` is given to get a bundle of a place."""
    return f"{place.url}/{file}"


def _written(folder: str, name: str, text: str) -> Path:
    path = Path(folder, name)
    path.write_text(text, encoding="utf-8")
    return path


def _is_there(place: Place, listing: Mapping[str, Listed], name: str, path: Path) -> bool:
    """Whether a place has this very file."""
    listed = listing.get(name)
    if listed is None:
        return False
    if listed.sha256 or listed.git_sha1:
        return listed.is_file(path)
    return listed.size == path.stat().st_size and place.read(name) == path.read_bytes()


def _picture_there(listing: Mapping[str, Any], name: str) -> str | None:
    """The picture that an earlier push left."""
    return next((n for s in _PICTURES.values() if (n := f"{name}{s}") in listing), None)


_PICTURES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "GIF": ".gif"}


def _picture_suffix(path: Path) -> str:
    from PIL import Image

    hint = f"give a file of {', '.join(_PICTURES)}"
    try:
        with Image.open(path, formats=list(_PICTURES)) as picture:
            picture.verify()
            return _PICTURES[str(picture.format)]
    except FileNotFoundError as error:
        raise AssetError(f"there is no picture {str(path)!r}", hint=hint) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise AssetError(f"{str(path)!r} is no picture: {error}", hint=hint) from error
