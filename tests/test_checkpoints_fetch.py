"""From a card to a verified file."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from web import Web, serving

from ppap_framework.checkpoints import (
    fetch,
    location,
    noted_sha256,
    open_checkpoint,
    package_file,
    save_checkpoint,
)
from ppap_framework.errors import AssetError
from ppap_framework.files import cache_dir
from ppap_framework.plugin import Card

BLOCK = 1 << 16  # bytes that are written at a time
FIXTURE = HealthCheck.function_scoped_fixture


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PPAP_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    path = tmp_path / "origin.safetensors"
    save_checkpoint(path, {"a": torch.arange(5.0)}, {})
    return path.read_bytes()


def card(content: bytes, uri: str = "https://127.0.0.1:1/some/weights.safetensors?raw=1") -> Card:
    of: dict[str, Any] = {"component": "thing", "kind": "guider", "image_size": 32, "summary": ""}
    of |= {"uri": uri, "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    return Card(name="tiny", licence="CC0-1.0", architecture={"from": "card"}, **of)


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A server of one file, in the place of every host."""
    with serving() as web:
        monkeypatch.setenv("PPAP_MIRROR", web.address)
        yield web


class TestHttps:
    def test_no_network_and_then_by_hand(self, content: bytes, cache: Path) -> None:
        target = cache / "thing" / "tiny" / "weights.safetensors"
        with pytest.raises(AssetError) as caught:
            fetch(card(content))
        assert caught.value.message == (
            f"cannot download 'tiny' from {card(content).uri}: there is no connection"
        )
        assert f"download {card(content).uri} and put it at {target}, or" in caught.value.hint
        assert not target.exists()
        target.write_bytes(content)
        assert fetch(card(content), offline=True) == location(card(content)) == target
        checkpoint = open_checkpoint(card(content), offline=True)
        assert checkpoint.name == "tiny"
        assert checkpoint.sha256 == card(content).sha256

    def test_downloads_once_and_again_if_damaged(self, content: bytes, web: Web) -> None:
        web.content = content
        path = fetch(card(content))
        assert path.read_bytes() == content
        assert fetch(card(content)) == path
        assert web.asked == [("HEAD", None), ("GET", None)]
        assert web.paths == {"/some/weights.safetensors"}
        assert [file.name for file in path.parent.iterdir()] == [path.name]
        path.write_bytes(content[:-1] + b"!")
        assert fetch(card(content)).read_bytes() == content

    @pytest.mark.parametrize("sent", [b"", b"<html>Sign in</html>", None])
    def test_another_file_is_refused_and_not_kept(
        self, content: bytes, web: Web, cache: Path, sent: bytes | None
    ) -> None:
        web.content = content[:-1] + b"!" if sent is None else sent
        with pytest.raises(AssetError, match="is not the file of 'tiny'") as caught:
            fetch(card(content))
        assert "\n" not in str(caught.value)
        assert not any(path.is_file() for path in cache.rglob("*"))

    def test_refusals(self, content: bytes, web: Web) -> None:
        web.content = content + b"!"
        with pytest.raises(AssetError, match=f"{len(content) + 1} bytes instead of {len(content)}"):
            fetch(attrs.evolve(card(content), sha256=None))
        web.status = 404
        with pytest.raises(AssetError, match="404") as caught:
            fetch(card(content))
        assert f"{web.address}/some/weights.safetensors" in caught.value.hint

    def test_no_room(self, content: bytes, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
        web.content = content
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))
        with pytest.raises(AssetError, match=f"{len(content)} bytes are to come, 0 are free"):
            fetch(card(content))
        assert web.asked == [("HEAD", None)]

    @pytest.mark.parametrize("variable", [False, True])
    def test_offline(
        self, content: bytes, web: Web, monkeypatch: pytest.MonkeyPatch, variable: bool
    ) -> None:
        if variable:
            monkeypatch.setenv("PPAP_OFFLINE", "1")
        with pytest.raises(AssetError, match="downloads are off") as caught:
            open_checkpoint(card(content), offline=not variable)
        assert f"{web.address}/some/weights.safetensors" in caught.value.hint
        assert web.asked == []


class TestResuming:
    @pytest.fixture
    def content(self, tmp_path: Path) -> bytes:
        """Several blocks of what is written at a time."""
        path = tmp_path / "long.safetensors"
        save_checkpoint(path, {"a": torch.arange(60_000.0)}, {})
        return path.read_bytes()

    def cut_off(self, content: bytes, web: Web) -> Path:
        """A first attempt, of which one block arrives."""
        web.content, web.cut = content, BLOCK + 100
        with pytest.raises(AssetError, match="cannot download"):
            fetch(card(content))
        path = location(card(content))
        assert not path.exists()
        assert path.with_name(f"{path.name}.part").read_bytes() == content[:BLOCK]
        web.cut, web.asked = None, []
        return path

    def test_continues_more_than_once(self, content: bytes, web: Web) -> None:
        path = self.cut_off(content, web)
        web.cut = BLOCK + 5
        with pytest.raises(AssetError):
            fetch(card(content))
        web.cut = None
        assert fetch(card(content)).read_bytes() == content
        gets = [("GET", f"bytes={BLOCK}-"), ("GET", f"bytes={2 * BLOCK}-")]
        assert [asked for asked in web.asked if asked[0] == "GET"] == gets
        assert [file.name for file in path.parent.iterdir()] == [path.name]

    @pytest.mark.parametrize("why", ["another file by now", "no ranges"])
    def test_starts_again(self, content: bytes, web: Web, why: str) -> None:
        self.cut_off(content if why == "no ranges" else bytes(len(content)), web)
        web.content, web.ranges = content, why != "no ranges"
        web.tag = web.tag if why == "no ranges" else '"two"'
        assert fetch(card(content)).read_bytes() == content
        assert web.asked == [("HEAD", None), ("GET", None)]

    def test_a_server_that_lies_about_ranges(self, content: bytes, web: Web) -> None:
        path = self.cut_off(content, web)
        web.lies = True
        with pytest.raises(AssetError, match=f"{len(content) + BLOCK} of {len(content)} bytes"):
            fetch(card(content))
        assert not path.exists()
        assert fetch(card(content)).read_bytes() == content

    def test_a_damaged_part_is_noticed_and_thrown_away(self, content: bytes, web: Web) -> None:
        path = self.cut_off(content, web)
        path.with_name(f"{path.name}.part").write_bytes(bytes(BLOCK))
        with pytest.raises(AssetError, match="its SHA-256 is"):
            fetch(card(content))
        assert fetch(card(content)).read_bytes() == content


class TestFirstUse:
    """A card without a hash: what is used first is what holds."""

    def bare(self, content: bytes) -> Card:
        return attrs.evolve(card(content), sha256=None, size=None)

    @pytest.mark.parametrize("by_hand", [False, True])
    def test_is_noted_as_sha256sum_writes_it(self, content: bytes, web: Web, by_hand: bool) -> None:
        web.content = content
        path = location(self.bare(content))
        if by_hand:
            path.parent.mkdir(parents=True)
            path.write_bytes(content)
        assert fetch(self.bare(content), offline=by_hand) == path
        digest = hashlib.sha256(content).hexdigest()
        assert noted_sha256(path) == digest
        note = path.with_name(f"{path.name}.sha256")
        assert note.read_text() == f"{digest}  {path.name}\n"

    @pytest.mark.parametrize("offline", [False, True])
    def test_a_change_is_refused_and_not_fetched_over(
        self, content: bytes, web: Web, offline: bool
    ) -> None:
        web.content = content
        path = fetch(self.bare(content))
        path.write_bytes(content[:-1] + b"!")
        with pytest.raises(AssetError, match="not what it was when it was used first") as caught:
            fetch(self.bare(content), offline=offline)
        assert str(path) in str(caught.value)
        assert path.read_bytes() == content[:-1] + b"!"
        path.with_name(f"{path.name}.sha256").unlink()
        assert fetch(self.bare(content)) == path

    def test_a_published_hash_needs_no_note(self, content: bytes, web: Web) -> None:
        web.content = content
        assert noted_sha256(fetch(card(content))) is None


class TestHub:
    @pytest.mark.parametrize(
        ("uri", "expected"),
        [
            ("hf://owner/name/w.pt", ("owner/name", "w.pt", "main")),
            ("hf://owner/name@v2/a/b/w.pt", ("owner/name", "a/b/w.pt", "v2")),
        ],
    )
    def test_parts(
        self, content: bytes, monkeypatch: pytest.MonkeyPatch, uri: str, expected: tuple[str, ...]
    ) -> None:
        asked = []

        def download(repository: str, file: str, *, revision: str, local_dir: Path) -> None:
            asked.append((repository, file, revision))
            (local_dir / file).parent.mkdir(parents=True, exist_ok=True)
            (local_dir / file).write_bytes(content)

        monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
        assert fetch(card(content, uri)).read_bytes() == content
        assert fetch(card(content, uri)).name == "w.pt"
        assert asked == [expected]

    def test_refusals(self, content: bytes) -> None:
        with pytest.raises(AssetError) as caught:
            fetch(card(content, "hf://owner/name/w.pt"), offline=True)
        assert "https://huggingface.co/owner/name/resolve/main/w.pt" in caught.value.hint
        with pytest.raises(AssetError, match="hf://owner/name/file"):
            fetch(card(content, "hf://owner/name"))


class TestPackage:
    @pytest.fixture
    def package(self, tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = tmp_path / "site" / "embedded_weights" / "inner"
        folder.mkdir(parents=True)
        (folder.parent / "__init__.py").touch()
        (folder / "w.safetensors").write_bytes(content)
        monkeypatch.syspath_prepend(tmp_path / "site")
        monkeypatch.delitem(sys.modules, "embedded_weights", raising=False)
        return folder / "w.safetensors"

    uri = "package://embedded_weights/inner/w.safetensors"

    def test_found(self, package: Path, content: bytes) -> None:
        assert package_file(self.uri).samefile(package)
        checkpoint = open_checkpoint(card(content, self.uri))
        assert checkpoint.architecture == {}  # the file's own statement goes before the card's
        assert checkpoint.state_dict()["a"].tolist() == [0, 1, 2, 3, 4]
        bare = save({"a": torch.zeros(1)})
        package.write_bytes(bare)
        assert open_checkpoint(card(bare, self.uri)).architecture == {"from": "card"}

    @settings(max_examples=40, deadline=None, suppress_health_check=[FIXTURE])
    @given(st.data())
    def test_any_changed_byte_is_noticed(
        self, package: Path, content: bytes, data: st.DataObject
    ) -> None:
        index = data.draw(st.integers(0, len(content) - 1))
        byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[index]))
        package.write_bytes(content[:index] + bytes([byte]) + content[index + 1 :])
        with pytest.raises(AssetError, match="SHA-256") as caught:
            open_checkpoint(card(content, self.uri))
        assert "\n" not in str(caught.value)

    def test_missing(self, package: Path) -> None:
        with pytest.raises(AssetError, match="has no file 'inner/other'"):
            package_file("package://embedded_weights/inner/other")
        with pytest.raises(AssetError, match="pip install no-such-package"):
            package_file("package://no_such_package/w")


def test_cache_dir_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PPAP_CACHE_DIR")
    assert cache_dir().name == "ppap"


def test_importing_loads_no_downloader() -> None:
    program = (
        "import sys; sys.path[:0] = sys.argv[1:]; import ppap_framework.checkpoints; "
        "sys.exit({'pooch', 'huggingface_hub', 'requests'} & sys.modules.keys() or 0)"
    )
    subprocess.run([sys.executable, "-c", program, *filter(None, sys.path)], check=True)
