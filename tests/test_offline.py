"""With downloads off nothing is asked for, whoever would, and caches are used all the same."""

from __future__ import annotations

import logging
import shutil
import socket
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
import torchvision
import transformers
from huggingface_hub import constants
from tiny_networks import DEPTH
from torchvision.models import SqueezeNet1_1_Weights

from ppap_framework.checkpoints import downloading, downloads_are_off, without_downloads
from ppap_framework.cli import main
from ppap_framework.errors import AssetError
from ppap_framework.run import GuideRequest
from ppap_transformers import find_model

COMMIT = "0" * 40
MODELS = [
    ("classifier", "torchvision/resnet50"),
    ("classifier", "resnet50"),
    ("classifier", "hf-hub:owner/name"),
    ("classifier", "owner/name"),
    ("depth", "owner/name@v1"),
    ("segmentation", "deeplabv3_resnet50"),
    ("segmentation", "owner/name"),
]


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Empty caches, and every host that was asked for."""
    found: list[Any] = []

    def refuse(*given: Any, **named: Any) -> Any:
        found.append(given)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return found


def cached(tmp_path: Path, repository: str, files: Path) -> None:
    """The files of a folder, as the hub's cache has those of a repository."""
    folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
    shutil.copytree(files, folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)


@pytest.mark.parametrize("variable", [True, False], ids=["PPAP_OFFLINE", "offline"])
@pytest.mark.parametrize(("guider", "model"), MODELS)
def test_no_network_of_a_guide_is_downloaded(
    guider: str, model: str, variable: bool, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        monkeypatch.setenv("PPAP_OFFLINE", "1")
    found = GuideRequest(source=guider, model=model, target="0", offline=not variable)
    with pytest.raises(AssetError, match=", and downloads are off") as caught:
        found.load()
    assert repr(model) in caught.value.message
    assert "https://" in caught.value.hint
    assert "\n" not in str(caught.value)
    assert not asked
    assert downloads_are_off() == variable
    assert not constants.HF_HUB_OFFLINE


def test_the_command_says_so_in_a_line_and_a_hint(
    asked: list[Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = f"run --backend adm --guider depth --guider-model owner/name --out {tmp_path / 'out'}"
    with pytest.raises(SystemExit) as caught:
        main([*given.split(), "--offline"])
    assert caught.value.code == 4
    message, hint = capsys.readouterr().err.splitlines()
    assert message == "ppap: error: there is no copy of model 'owner/name', and downloads are off"
    assert hint.startswith("hint: download https://huggingface.co/owner/name")
    assert not asked


class TestCaches:
    @pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
    def test_of_the_hub(self, tmp_path: Path, asked: list[Any], weights: str) -> None:
        network = transformers.DPTForDepthEstimation(DEPTH["dpt"])
        network.save_pretrained(tmp_path / "dpt")
        if weights.endswith(".bin"):
            (tmp_path / "dpt" / "model.safetensors").unlink()
            torch.save(network.state_dict(), tmp_path / "dpt" / weights)
        (tmp_path / "dpt" / "preprocessor_config.json").write_text("{}")
        cached(tmp_path, "owner/name", tmp_path / "dpt")
        with without_downloads():
            files = find_model("owner/name", None)
        assert files.state_dict().keys() == network.state_dict().keys()
        assert not asked

    def test_what_may_be_on_the_hub_is_not_left_out(self, tmp_path: Path) -> None:
        transformers.DPTForDepthEstimation(DEPTH["dpt"]).save_pretrained(tmp_path / "dpt")
        cached(tmp_path, "owner/name", tmp_path / "dpt")  # nobody asked for its preprocessing
        with without_downloads():
            with pytest.raises(AssetError, match=", and downloads are off"):
                find_model("owner/name", None)
            absent = tmp_path / "hub" / "models--owner--name" / ".no_exist" / COMMIT
            absent.mkdir(parents=True)
            (absent / "preprocessor_config.json").touch()  # somebody did, and there is none
            assert find_model("owner/name", None).architecture["preprocessor"] == {}

    @pytest.mark.parametrize("model", ["test_resnet", "torchvision/squeezenet1_1"])
    def test_of_timm_and_torchvision(self, tmp_path: Path, asked: list[Any], model: str) -> None:
        if model == "test_resnet":
            network = timm.create_model("test_resnet.r160_in1k", pretrained=False)
            (tmp_path / "timm").mkdir()
            torch.save(network.state_dict(), tmp_path / "timm" / "pytorch_model.bin")
            cached(tmp_path, "timm/test_resnet.r160_in1k", tmp_path / "timm")
        else:
            network = torchvision.models.squeezenet1_1()
            folder = tmp_path / "torch" / "hub" / "checkpoints"
            folder.mkdir(parents=True)
            url = SqueezeNet1_1_Weights.DEFAULT.url
            torch.save(network.state_dict(), folder / url.rpartition("/")[2])
        request = GuideRequest(source="classifier", model=model, target="0", offline=True)
        loaded = request.load().model.network.state_dict()
        assert all(torch.equal(loaded[name], own) for name, own in network.state_dict().items())
        assert not asked


def test_what_fails_at_the_hub_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log, other = (logging.getLogger(f"huggingface_hub.{name}") for name in ("utils._http", "other"))
    heard: list[logging.LogRecord] = []
    listener = logging.Handler()
    monkeypatch.setattr(listener, "emit", heard.append)
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "handlers", [listener])

    def unreachable(*given: Any, **named: Any) -> str:
        for retry in range(3):
            log.warning("no answer to HEAD")
            log.warning(f"Retrying in 1s [Retry {retry}/5].")
            other.warning("no answer")
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    log.warning("before")
    with pytest.raises(AssetError, match="cannot download model 'owner/name'") as caught:
        find_model("owner/name", None)
    assert "https://huggingface.co/owner/name" in caught.value.hint
    log.warning("after")
    assert [record.getMessage() for record in heard] == ["before", "after"]
    ours = [record.getMessage() for record in caplog.records if "ppap" in record.name]
    assert ours == ["the hub cannot be reached; trying again for a while"]


def test_contexts_leave_nothing_behind() -> None:
    with pytest.raises(KeyError), without_downloads():
        with without_downloads(False), downloading("x", ""):
            assert downloads_are_off()
            assert constants.HF_HUB_OFFLINE
        raise KeyError
    assert not downloads_are_off()
    assert not constants.HF_HUB_OFFLINE
    with downloading("x", ""):
        assert not constants.HF_HUB_OFFLINE
