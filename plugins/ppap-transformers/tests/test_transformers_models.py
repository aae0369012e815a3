"""Folders of transformers against transformers itself: the same outputs, the same pixels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub.errors import EntryNotFoundError
from PIL import Image
from tiny_networks import DEPTH, SEGMENTATION
from torch import nn

from ppap_framework.checkpoints import Checkpoint, open_checkpoint, save_checkpoint
from ppap_framework.errors import AssetError, PpapError, UsageError
from ppap_framework.preprocessing import ImageInput
from ppap_transformers import (
    Task,
    find_model,
    load_network,
    make_input,
)

DPT, GLPN, SEGFORMER = DEPTH["dpt"], DEPTH["glpn"], SEGMENTATION["segformer"]
VIT, MOBILE = transformers.ViTConfig(), transformers.MobileViTConfig()
SMALL: dict[str, Any] = {"size": {"height": 48, "width": 48}}
GLPN_CLASS = transformers.GLPNForDepthEstimation
KINDS: list[tuple[Task, Any, Any]] = [
    ("depth-estimation", transformers.DPTForDepthEstimation, DPT),
    ("depth-estimation", GLPN_CLASS, GLPN),
    ("semantic-segmentation", transformers.SegformerForSemanticSegmentation, SEGFORMER),
]
kinds = pytest.mark.parametrize(
    ("task", "family", "config"), KINDS, ids=["dpt", "glpn", "segformer"]
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **named: Any) -> Any:
        raise AssertionError(f"the network was asked: {given}")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


def saved(folder: Path, family: Any, config: Any, **named: Any) -> tuple[Path, nn.Module]:
    torch.manual_seed(0)
    network = family(config).eval()
    network.save_pretrained(folder, **named)
    return folder, network


def check_same(ours: nn.Module, theirs: nn.Module) -> None:
    """Two networks say the same."""
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(*(next(iter(n(images).values())) for n in (ours, theirs)))


def dpt(folder: Path) -> Path:
    return saved(folder / "dpt", transformers.DPTForDepthEstimation, DPT)[0]


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


class TestLoading:
    @kinds
    def test_a_folder_is_the_network_that_was_saved(
        self, task: Task, family: Any, config: Any, tmp_path: Path, capfd: Any
    ) -> None:
        folder, network = saved(tmp_path / "tiny", family, config)
        capfd.readouterr()
        files = find_model(str(folder), None)
        loaded = load_network(files, task)
        check_same(loaded, network)
        assert files.name == "tiny"
        assert not loaded.training
        assert capfd.readouterr() == ("", "")

    def test_shards_and_pickles_are_read_as_well(self, tmp_path: Path) -> None:
        folder, network = saved(tmp_path / "sharded", GLPN_CLASS, GLPN, max_shard_size="20KB")
        files = find_model(str(folder), None)
        assert len(files.files) == len(list(folder.glob("*.safetensors"))) > 1
        pickled = tmp_path / "pickled"
        pickled.mkdir()
        shutil.copy(folder / "config.json", pickled)
        torch.save(network.state_dict(), pickled / "pytorch_model.bin")
        for each in (files, find_model(str(pickled), None)):
            check_same(load_network(each, "depth-estimation"), network)

    def test_a_checkpoint_states_the_same_or_lies_in_the_folder(self, tmp_path: Path) -> None:
        folder, network = saved(tmp_path / "tiny", GLPN_CLASS, GLPN)
        config = json.loads((folder / "config.json").read_text())
        halves = {
            name: value.half() if value.is_floating_point() else value
            for name, value in network.state_dict().items()
        }
        alone, bare = tmp_path / "alone.safetensors", tmp_path / "bare.safetensors"
        save_checkpoint(alone, halves, {"config": config, "preprocessor": {"size_divisor": 16}})
        shutil.copy(folder / "model.safetensors", bare)
        lying = find_model(None, open_checkpoint(folder / "model.safetensors"))
        for files in (lying, find_model(str(folder), open_checkpoint(bare))):
            check_same(load_network(files, "depth-estimation"), network)
        stating = find_model(None, open_checkpoint(alone))
        assert stating.architecture["preprocessor"] == {"size_divisor": 16}
        loaded = load_network(stating, "depth-estimation")
        assert {value.dtype for value in loaded.parameters()} == {torch.float32}
        for name, value in loaded.state_dict().items():
            assert torch.equal(value, halves[name].to(value.dtype))

    def test_what_save_checkpoint_wrote_is_an_ordinary_file_of_transformers(
        self, tmp_path: Path
    ) -> None:
        folder, network = saved(tmp_path / "tiny", GLPN_CLASS, GLPN)
        save_checkpoint(folder / "model.safetensors", network.state_dict(), {"config": {}})
        check_same(GLPN_CLASS.from_pretrained(folder), network)

    def test_parameters_that_are_never_used_may_be_missing(self, tmp_path: Path) -> None:
        folder, network = saved(tmp_path / "tiny", GLPN_CLASS, GLPN)
        state = network.state_dict()
        del state["decoder.stages.0.convolution.weight"]
        save_checkpoint(folder / "model.safetensors", state, {})
        files = find_model(str(folder), None)
        with pytest.raises(AssetError, match=r"1 missing \(decoder.stages.0.convolution.weight\)"):
            load_network(files, "depth-estimation", unused=r"decoder\.stages\.1\.")
        loaded = load_network(files, "depth-estimation", unused=r"decoder\.stages\.0\.")
        assert not loaded.state_dict()["decoder.stages.0.convolution.weight"].any()


class TestRefusals:
    def test_foreign_code_is_not_run(self, tmp_path: Path) -> None:
        folder = dpt(tmp_path)
        (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
        stated = {"AutoConfig": "evil.Config", "AutoModelForDepthEstimation": "evil.Model"}
        edit(folder / "config.json", auto_map=stated)
        load_network(find_model(str(folder), None), "depth-estimation")  # by transformers' own code
        edit(folder / "config.json", model_type="evil")
        with pytest.raises(AssetError, match="wants code of its own to be run; nothing was run"):
            load_network(find_model(str(folder), None), "depth-estimation")
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"model_type": "nonsense"}, "model type 'nonsense', which transformers .* not know"),
            ({"model_type": None}, "model type None"),
            ({"model_type": "vit"}, "is a vit, which does no depth estimation"),
            ({"backbone": "owner/name"}, "names backbone 'owner/name' instead of describing it"),
            ({"hidden_size": "wide"}, "cannot be built as its config says"),
            ({"hidden_size": 24}, r"do not fit DPTForDepthEstimation: \d+ of another shape"),
            ({"num_hidden_layers": 5}, r"\d+ missing \(dpt\.encoder\.layer\.4\."),
        ],
    )
    def test_configs(self, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
        folder = dpt(tmp_path)
        edit(folder / "config.json", **changes)
        with pytest.raises(AssetError, match=message) as caught:
            load_network(find_model(str(folder), None), "depth-estimation")
        assert "\n" not in str(caught.value)
        assert caught.value.hint

    @pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b'{"a":' * 100_000])
    def test_files_that_are_no_json(self, content: bytes, tmp_path: Path) -> None:
        folder = dpt(tmp_path)
        (folder / "config.json").write_bytes(content)
        with pytest.raises(AssetError, match=r"config\.json"):
            find_model(str(folder), None)

    def test_damaged_and_missing_weights(self, tmp_path: Path) -> None:
        folder = dpt(tmp_path)
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-8])
        with pytest.raises(AssetError, match="truncated or damaged checkpoint"):
            find_model(str(folder), None)
        weights.unlink()
        with pytest.raises(AssetError, match=r"has a config\.json and no weights"):
            find_model(str(folder), None)
        index = folder / "model.safetensors.index.json"
        for named in ("../dpt/config.json", ["model.safetensors"], 1):
            index.write_text(json.dumps({"weight_map": {"a": named}}))
            with pytest.raises(AssetError, match="does not say in which files beside it"):
                find_model(str(folder), None)

    def test_names_that_are_neither_folder_nor_of_the_hub(self, tmp_path: Path) -> None:
        folder = dpt(tmp_path)
        (tmp_path / "empty").mkdir()
        for name, message in (
            (str(tmp_path / "absent"), "neither a folder that exists nor a name of the hub"),
            ("long" * 100, "neither a folder that exists nor a name of the hub"),
            ("./models/dpt", "neither a folder"),
            ("dpt", "neither a folder"),
            (str(folder / "model.safetensors"), "is a file"),
            (None, "no model is named"),
            (str(tmp_path / "empty"), r"there is no file .*config\.json'"),
        ):
            with pytest.raises(PpapError, match=message):
                find_model(name, None)

    def test_checkpoints_that_contradict_or_say_nothing(self, tmp_path: Path) -> None:
        folder = dpt(tmp_path)
        alone = tmp_path / "alone.safetensors"
        shutil.copy(folder / "model.safetensors", alone)
        with pytest.raises(UsageError, match="does not state which model it is"):
            find_model(None, open_checkpoint(alone))
        save_checkpoint(alone, {"a": torch.zeros(1)}, {"config": {"model_type": "dpt"}})
        with pytest.raises(UsageError, match="states which model it is"):
            find_model(str(folder), open_checkpoint(alone))
        save_checkpoint(alone, {"a": torch.zeros(1)}, {"model": "resnet18"})
        with pytest.raises(AssetError, match="of another architecture"):
            find_model(None, open_checkpoint(alone))

    def test_only_what_is_read_is_fetched_from_the_hub(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder, asked = dpt(tmp_path), []

        def download(repository: str, name: str, revision: str | None) -> str:
            asked.append((repository, name, revision))
            if not (folder / name).exists():
                raise EntryNotFoundError("no such file")
            return str(folder / name)

        monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
        assert find_model("owner/name@v1", None).name == "owner/name@v1"
        names = ["config.json", "preprocessor_config.json", "model.safetensors"]
        assert asked == [("owner/name", name, "v1") for name in names]


def files_of(config: Any, preprocessor: dict[str, Any]) -> Checkpoint:
    stated = {"config": json.loads(config.to_json_string()), "preprocessor": preprocessor}
    return Checkpoint("tiny", {}, stated)


class TestInput:
    @pytest.mark.parametrize(
        ("config", "preprocessor"),
        [
            (DPT, {}),
            (DPT, {"size": {"height": 32, "width": 32}, "image_mean": [0.4, 0.5, 0.6]}),
            (DPT, {"size": 48, "do_normalize": False, "resample": 2}),
            (DPT, {"size": {"height": 48, "width": 48}, "do_rescale": False}),
            (GLPN, {}),
            (GLPN, {"size_divisor": 16}),
            (SEGFORMER, {"size": {"height": 40, "width": 40}}),
            (MOBILE, {"size": {"shortest_edge": 40}, "do_center_crop": False}),
            (MOBILE, {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}),
            (MOBILE, {"size": {"shortest_edge": 32}, "crop_size": {"height": 40, "width": 40}}),
            (VIT, {**SMALL, "do_resize": False}),
            *((VIT, {**SMALL, "resample": number}) for number in range(6)),
            (
                VIT,
                {
                    "size": {"height": 54, "width": 54},
                    "do_center_crop": True,
                    "crop_size": {"height": 48, "width": 48},
                },
            ),
            (transformers.EfficientNetConfig(), SMALL),
            (transformers.EfficientNetConfig(), {**SMALL, "include_top": False}),
            (
                transformers.EfficientNetConfig(),
                {**SMALL, "rescale_offset": True, "rescale_factor": 1 / 127.5},
            ),
            (transformers.ConvNextConfig(), {"size": {"shortest_edge": 40}, "resample": 1}),
            (transformers.ZoeDepthConfig(), SMALL),
            (transformers.Mask2FormerConfig(), {"size": {"shortest_edge": 40, "longest_edge": 90}}),
        ],
    )
    @pytest.mark.parametrize("side", [32, 75])
    def test_pixels_are_those_of_transformers(
        self, config: Any, preprocessor: dict[str, Any], side: int
    ) -> None:
        processor = transformers.IMAGE_PROCESSOR_MAPPING[type(config)]["pil"]
        theirs = processor.from_dict(dict(preprocessor))
        # Smooth, since Pillow rounds to 8 bits where we do not.
        grid = np.linspace(0, 3, side)
        waves = [np.sin(grid[:, None] * (k + 1) + grid * (3 - k)) for k in range(3)]
        pixels = np.uint8(np.round(127 + 100 * np.stack(waves, -1)))
        expected = theirs(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
        images = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
        ours = make_input(files_of(config, preprocessor))(images)
        steps = (expected.max() - expected.min()) / 255
        torch.testing.assert_close(ours, expected, atol=2 * float(steps), rtol=0)

    def test_sizes(self) -> None:
        def size(feed: ImageInput, height: int, width: int) -> tuple[int, ...]:
            return tuple(feed(torch.zeros(1, 3, height, width)).shape[2:])

        assert size(ImageInput(size=32), 5, 50) == (32, 32)
        assert size(ImageInput(size=None), 20, 100) == (20, 100)
        assert size(make_input(files_of(DPT, {})), 32, 32) == (384, 384)
        assert size(make_input(files_of(DPT, {}), size=64, multiple=8), 32, 32) == (64, 64)
        assert size(make_input(files_of(GLPN, {})), 100, 70) == (96, 64)
        assert size(make_input(files_of(GLPN, {})), 20, 70) == (32, 64)  # theirs would be empty
        assert size(make_input(files_of(GLPN, {}), size=60), 100, 70) == (64, 64)
        assert size(make_input(files_of(DPT, {"do_resize": False})), 33, 40) == (33, 40)
        assert make_input(files_of(DPT, {"ensure_multiple_of": 14}), size=48, multiple=8).size == 56
        cropped = {"size": {"shortest_edge": 54}, "crop_size": {"height": 48, "width": 48}}
        feed = make_input(files_of(MOBILE, cropped))
        assert (feed.size, feed.kept) == (48, 48 / 54)
        whole = make_input(files_of(MOBILE, cropped), size=40)
        assert (whole.size, whole.kept) == (40, 1)

    def test_the_right_size_passes_untouched_and_nothing_is_clipped(self) -> None:
        images = 10 * torch.randn(2, 3, 32, 32)
        feed = ImageInput(size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
        torch.testing.assert_close(feed(images), images)

    def test_gradients_reach_every_pixel(self) -> None:
        images = torch.zeros(1, 3, 70, 70, requires_grad=True)
        make_input(files_of(DPT, {"size": 32}))(images).sum().backward()
        assert images.grad is not None and (images.grad > 0).all()

    @pytest.mark.parametrize(
        "preprocessor",
        [
            {"image_std": [0, 0, 0]},
            {"rescale_factor": 0},
            {"size": {"height": "x"}},
            {"size": -3},
            {"size": {"colour": 3}},
            {"image_mean": "abc"},
        ],
    )
    def test_nonsense_is_refused(self, preprocessor: dict[str, Any]) -> None:
        with pytest.raises(AssetError, match="the preprocessing of 'tiny' is invalid"):
            make_input(files_of(DPT, preprocessor))

    @pytest.mark.parametrize(
        ("config", "preprocessor", "message"),
        [
            (
                transformers.ImageGPTConfig(),
                {"clusters": [[0, 0, 0], [0.5, 0.5, 0.5]]},
                "ImageGPTImageProcessor, which guidance cannot pass: it makes input_ids",
            ),
            (transformers.Siglip2Config(), {}, "and no pictures"),
            (transformers.HGNetV2Config(), {}, "does not say what images a hgnet_v2 wants"),
        ],
    )
    def test_what_has_no_gradient_is_said(
        self, config: Any, preprocessor: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(AssetError, match=message) as caught:
            make_input(files_of(config, preprocessor))
        assert "\n" not in str(caught.value)

    def test_sizes_of_the_user_that_cannot_be(self) -> None:
        with pytest.raises(PpapError, match="cannot be resized to 0 pixels"):
            make_input(files_of(DPT, {}), size=0)
