"""Tokenizers of folders, of checkpoints, and of the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_towers
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from ppap_framework.checkpoints import open_checkpoint
from ppap_framework.errors import AssetError
from ppap_transformers import load_tokenizer

TEXT = "a red cube"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("clip")
    tiny_towers.saved("clip", made)
    return made


def hub(folder: Path, monkeypatch: pytest.MonkeyPatch, *absent: str) -> list[str]:
    """Stands for the hub, which has the files of a folder; `absent` are those it cannot fetch."""
    asked: list[str] = []

    def download(repository: str, name: str, revision: str | None) -> str:
        asked.append(name)
        assert (repository, revision) == ("owner/name", "v1")
        if name in absent:
            raise LocalEntryNotFoundError("no connection")
        if not (folder / name).exists():
            raise EntryNotFoundError("no such file")
        return str(folder / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return asked


def ids(tokenizer: Any) -> list[int]:
    return [*tokenizer(TEXT)["input_ids"]]


def test_of_a_folder_of_a_checkpoint_and_of_the_hub(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ids(tiny_towers.tokenizer("clip"))
    assert ids(load_tokenizer(str(folder), None)) == expected
    checkpoint = open_checkpoint(folder / "model.safetensors")
    assert ids(load_tokenizer(None, checkpoint)) == expected
    asked = hub(folder, monkeypatch)
    assert ids(load_tokenizer("owner/name@v1", None)) == expected
    assert {"tokenizer.json", "tokenizer_config.json", "merges.txt"} < set(asked)
    assert "model.safetensors" not in asked


def test_a_hub_out_of_reach_is_no_missing_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub(folder, monkeypatch, "merges.txt")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    with pytest.raises(AssetError, match="the tokenizer of 'owner/name@v1'") as caught:
        load_tokenizer("owner/name@v1", None)
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PPAP_OFFLINE", "1")
    assert ids(load_tokenizer("owner/name@v1", None)) == ids(tiny_towers.tokenizer("clip"))


def test_code_of_its_own_is_not_run(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = tmp_path / "tokenizer_config.json"
    text = config.read_text().strip().removesuffix("}")
    config.write_text(text + ', "auto_map": {"AutoTokenizer": ["evil.Evil", null]}}')
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    try:
        load_tokenizer(str(tmp_path), None)
    except AssetError as error:
        assert "\n" not in str(error)
    assert not (tmp_path / "ran").exists()
