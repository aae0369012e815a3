"""Two-tower networks of several families, and what they are aimed at."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_towers
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from tiny_towers import SIZE, TOWERS
from torch import Tensor, nn

from ppap_framework.checkpoints import open_checkpoint, save_checkpoint
from ppap_framework.errors import AssetError, PpapError, UsageError
from ppap_framework.targets import decode_target
from ppap_plugin_clip.guider import ClipTextGuide, make_clip_text
from ppap_plugin_clip.options import ClipTextOptions

TEXTS = ("a red cube", "a photo of a blue sphere", "of")
kinds = pytest.mark.parametrize("kind", sorted(TOWERS))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {kind: tmp_path_factory.mktemp(kind) for kind in TOWERS}
    for kind, folder in made.items():
        tiny_towers.saved(kind, folder)
    return made


@pytest.fixture(scope="module")
def clip(folders: dict[str, Path]) -> ClipTextGuide:
    return guide(folders["clip"])


def guide(folder: Path) -> ClipTextGuide:
    return make_clip_text(ClipTextOptions(model=str(folder)), None)


def picture(seed: int = 0, width: int = SIZE, height: int = SIZE) -> Image.Image:
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1


def embedding(model: ClipTextGuide, given: Any) -> Tensor:
    """(K, D), each times its weight."""
    (value,) = model.target(decode_target(given)).value
    return value


def logits_of_the_library(kind: str, folder: Path) -> tuple[Tensor, nn.Module]:
    """Of a picture and `TEXTS`, from the inputs that transformers' own processor makes."""
    theirs: Any = transformers.AutoModel.from_pretrained(folder).eval()
    processor = transformers.IMAGE_PROCESSOR_MAPPING[type(TOWERS[kind])]["pil"]
    inputs = processor.from_pretrained(folder)(picture(), return_tensors="pt")
    tokens = tiny_towers.tokenizer(kind)
    inputs |= tokens(list(TEXTS), padding="max_length", max_length=12, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        return theirs(**inputs).logits_per_image, theirs


@kinds
def test_similarities_are_the_logits_of_transformers(kind: str, folders: dict[str, Path]) -> None:
    expected, theirs = logits_of_the_library(kind, folders[kind])
    assert expected.std() > 1e-3
    model = guide(folders[kind])
    texts = torch.cat([embedding(model, text) for text in TEXTS])
    images = model(tensor(picture()))
    torch.testing.assert_close(images.norm(dim=1), torch.ones(1))
    bias = theirs.logit_bias if kind == "siglip" else 0.0
    torch.testing.assert_close(
        images @ texts.T * theirs.logit_scale.exp() + bias, expected, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_processor_of_transformers_makes_the_same_inputs(
    kind: str, folders: dict[str, Path]
) -> None:
    """As a whole, with images that it resizes; they are smooth, since Pillow rounds to 8 bits."""
    both = {"clip": transformers.CLIPProcessor, "siglip": transformers.SiglipProcessor}[kind]
    parts = transformers.IMAGE_PROCESSOR_MAPPING[type(TOWERS[kind])]["pil"]
    processor = both(parts.from_pretrained(folders[kind]), tiny_towers.tokenizer(kind))
    grid = np.linspace(0, 3, 64)
    waves = [np.sin(grid[:, None] * (k + 1) + grid * (3 - k)) for k in range(3)]
    image = Image.fromarray(np.uint8(np.round(127 + 100 * np.stack(waves, -1))))
    inputs = processor(
        text=[*TEXTS], images=[image], padding="max_length", max_length=12, return_tensors="pt"
    )
    theirs: Any = transformers.AutoModel.from_pretrained(folders[kind]).eval()
    with torch.no_grad():
        expected = theirs(**inputs).logits_per_image
    model = guide(folders[kind])
    texts = torch.cat([embedding(model, text) for text in TEXTS])
    found = model(tensor(image)) @ texts.T * theirs.logit_scale.exp()
    found = found + (theirs.logit_bias if kind == "siglip" else 0.0)
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)


@kinds
def test_any_size_image_by_image_with_a_gradient(kind: str, folders: dict[str, Path]) -> None:
    model = guide(folders[kind])
    for height, width in ((SIZE, SIZE), (20, 50)):
        images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1))
        images = (2 * images - 1).requires_grad_(True)
        said = model(images)
        said[:, 0].sum().backward()
        assert images.grad is not None
        assert images.grad.isfinite().all()
        assert images.grad.abs().amax((1, 2, 3)).min() > 0
        torch.testing.assert_close(model(images[1:]), said[1:], atol=1e-4, rtol=1e-4)
    assert model.describe(said) == []
    assert torch.equal(model.render(said, images), images)


@kinds
def test_experts_are_of_the_image_tower_alone(kind: str, folders: dict[str, Path]) -> None:
    model = guide(folders[kind])
    names = {name for name, _ in model.network.named_parameters()}
    whole: Any = transformers.AutoModel.from_pretrained(folders[kind])
    assert names == {name for name, _ in whole.named_parameters() if name.startswith("vis")}
    assert not any(parameter.requires_grad for parameter in model.parameters())


class TestTargets:
    def test_a_text(self, clip: ClipTextGuide) -> None:
        target = clip.target(decode_target("  a red cube "))
        assert target.value.shape == (1, 1, 8)
        assert target.label == "a red cube"
        assert target.picture is None
        torch.testing.assert_close(target.value.norm(), torch.tensor(1.0))

    def test_a_picture_is_what_the_network_sees_in_it(self, clip: ClipTextGuide) -> None:
        target = clip.target(decode_target(picture()))
        torch.testing.assert_close(target.value[0], clip(tensor(picture())))
        assert target.picture is not None
        torch.testing.assert_close(target.picture, tensor(picture())[0])
        wide = picture(width=3 * SIZE)
        middle = wide.crop((SIZE, 0, 2 * SIZE, SIZE))
        torch.testing.assert_close(embedding(clip, wide), embedding(clip, middle))

    def test_several_with_weights(self, clip: ClipTextGuide, tmp_path: Path) -> None:
        file = tmp_path / "mood.png"
        picture().save(file)
        given = f"a red cube | {file}:0.5 | a blue sphere: -1.5"
        target = clip.target(decode_target(given))
        expected = [
            embedding(clip, "a red cube") / 3,
            embedding(clip, picture()) / 6,
            embedding(clip, "a blue sphere") / -2,
        ]
        torch.testing.assert_close(target.value[0], torch.cat(expected))
        assert target.label == "a red cube | mood.png:0.5 | a blue sphere:-1.5"
        assert target.picture is not None
        assert target.picture.shape == (3, SIZE, SIZE)
        two = clip.target(decode_target(f"{file} | {file}"))
        assert two.picture is not None
        assert two.picture.shape == (3, SIZE, 2 * SIZE)

    def test_only_the_last_number_is_a_weight(self, clip: ClipTextGuide) -> None:
        assert clip.target(decode_target("a cube of 16:9:1")).label == "a cube of 16:9"
        assert clip.target(decode_target("a cube of 16:9")).label == "a cube of 16:9"
        weighted = clip.target(decode_target("a cube of 16:9 | a"))
        torch.testing.assert_close(weighted.value.norm(dim=2), torch.tensor([[0.9, 0.1]]))

    def test_embeddings(self, clip: ClipTextGuide) -> None:
        row = torch.arange(1.0, 9.0)
        torch.testing.assert_close(embedding(clip, row), F.normalize(row, dim=0)[None])
        each = clip.target(decode_target(torch.stack([row, -row])))
        assert each.value.shape == (2, 1, 8)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ("a " * 5_000, r"the text 'a a .*\.\.\.' has 5002 tokens, and .* reads at most 12"),
            ("x" * 6_000 + ". " + "y/" * 2_000, "tokens"),
            ("a | ", "the target is empty"),
            ("a | b:0", "has the weight 0"),
            ("a | no.png:2", r"'no\.png' is not there"),
            (torch.zeros(8), "is no embedding"),
            (torch.ones(7), "is no embedding"),
            (torch.ones(2, 2, 8), "is no embedding"),
        ],
    )
    def test_others_are_refused_in_a_line(
        self, given: Any, message: str, clip: ClipTextGuide
    ) -> None:
        with pytest.raises(PpapError, match=message) as caught:
            clip.target(decode_target(given))
        assert "\n" not in str(caught.value)
        assert len(caught.value.message) < 400
        assert caught.value.hint

    def test_a_picture_that_does_not_load(self, clip: ClipTextGuide, tmp_path: Path) -> None:
        (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        with pytest.raises(AssetError, match=r"broken\.png' is no picture"):
            clip.target(decode_target(f"a red cube | {tmp_path / 'broken.png'}:0.5"))


class TestRefusals:
    def test_a_checkpoint_without_a_text_tower(
        self, folders: dict[str, Path], tmp_path: Path
    ) -> None:
        transformers.CLIPVisionModel(TOWERS["clip"].vision_config).save_pretrained(tmp_path)
        with pytest.raises(AssetError, match="is a clip_vision_model, which has no text tower"):
            guide(tmp_path)
        (tmp_path / "config.json").write_text((folders["clip"] / "config.json").read_text())
        with pytest.raises(AssetError, match="has no text tower: it has only the weights"):
            guide(tmp_path)

    def test_models_of_other_kinds(self, folders: dict[str, Path], tmp_path: Path) -> None:
        for kind in ("vit", "siglip2", "align"):
            config = {"model_type": kind} | ({} if kind == "vit" else {"vision_config": {}})
            (tmp_path / "config.json").write_text(json.dumps(config))
            weights = (folders["clip"] / "model.safetensors").read_bytes()
            (tmp_path / "model.safetensors").write_bytes(weights)
            with pytest.raises(AssetError, match=f"is a {kind}, which ") as caught:
                guide(tmp_path)
            assert "siglip" in caught.value.hint

    def test_without_a_tokenizer(self, folders: dict[str, Path], tmp_path: Path) -> None:
        for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
            (tmp_path / name).write_bytes((folders["clip"] / name).read_bytes())
        with pytest.raises(AssetError, match="has no tokenizer beside it"):
            guide(tmp_path)
        (tmp_path / "tokenizer.json").write_text("{")
        with pytest.raises(AssetError, match=r"the tokenizer of .* cannot be loaded") as caught:
            guide(tmp_path)
        assert "\n" not in str(caught.value)

    def test_a_tokenizer_of_another_model(self, folders: dict[str, Path], tmp_path: Path) -> None:
        for file in folders["clip"].iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        text = (tmp_path / "tokenizer.json").read_text()
        (tmp_path / "tokenizer.json").write_text(text.replace('"cube": 7', '"cube": 700'))
        with pytest.raises(AssetError, match="knows more words than its text tower"):
            guide(tmp_path).target(decode_target("a cube"))

    def test_nothing_named(self, folders: dict[str, Path], tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no model is named"):
            make_clip_text(ClipTextOptions(), None)
        save_checkpoint(tmp_path / "a.safetensors", {"a": torch.zeros(1)}, {})
        with pytest.raises(UsageError, match="does not state which model"):
            make_clip_text(ClipTextOptions(), open_checkpoint(tmp_path / "a.safetensors"))


def test_weights_in_a_folder_and_of_ones_own(folders: dict[str, Path], tmp_path: Path) -> None:
    file = folders["clip"] / "model.safetensors"
    (tmp_path / "own.safetensors").write_bytes(file.read_bytes())
    expected = embedding(guide(folders["clip"]), "a red cube")
    beside = make_clip_text(ClipTextOptions(), open_checkpoint(file))
    own = make_clip_text(
        ClipTextOptions(model=str(folders["clip"])), open_checkpoint(tmp_path / "own.safetensors")
    )
    for model in (beside, own):
        assert torch.equal(embedding(model, "a red cube"), expected)


def test_copies_and_pickles(clip: ClipTextGuide) -> None:
    for twin in (copy.deepcopy(clip), pickle.loads(pickle.dumps(clip))):
        for given in ("a red cube", picture()):
            torch.testing.assert_close(embedding(twin, given), embedding(clip, given))
