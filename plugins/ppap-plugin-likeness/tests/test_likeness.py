"""Deep features of several networks, what is compared of them, and what they are aimed at."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

from ppap_framework.author import Preprocessing
from ppap_framework.checkpoints import Checkpoint, open_checkpoint, save_checkpoint
from ppap_framework.errors import AssetError, PpapError, UsageError
from ppap_framework.targets import decode_target
from ppap_plugin_likeness import guider
from ppap_plugin_likeness.guider import LikenessGuide, make_likeness, make_structure, make_style
from ppap_plugin_likeness.loss import Mean, Nearest
from ppap_plugin_likeness.options import FeatureOptions, LikenessOptions

SIZE = 32
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
_VIT: dict[str, Any] = {
    "img_size": SIZE,
    "patch_size": 8,
    "embed_dim": 16,
    "depth": 3,
    "num_heads": 2,
}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": ("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}),
    "convnext": ("convnext_tiny", {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}),
    "vit": ("vit_tiny_patch16_224", _VIT),
    "dino": ("vit_small_patch14_dinov2", _VIT),
    "dinov3": ("vit_small_patch16_dinov3", _VIT),
    "deit": ("deit_tiny_distilled_patch16_224", _VIT),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {
            "img_size": SIZE,
            "patch_size": 2,
            "window_size": 4,
            "embed_dim": 8,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 2, 2],
        },
    ),
    "efficientnet": ("test_efficientnet", {}),
}
LAYERS = {"resnet": ("layer1", "layer3"), "dino": ("blocks.0", "blocks.1")}
networks = pytest.mark.parametrize("kind", sorted(NETWORKS))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("networks")
    for kind, (model, arguments) in NETWORKS.items():
        stated = {"model": model, "model_args": arguments, "mean": [*MEAN], "std": [*STD]}
        stated["input_size"] = SIZE
        save_checkpoint(folder / f"{kind}.safetensors", network(kind).state_dict(), stated)
    return {kind: folder / f"{kind}.safetensors" for kind in NETWORKS}


def network(kind: str) -> Any:
    torch.manual_seed(0)
    model, arguments = NETWORKS[kind]
    made = timm.create_model(model, **arguments).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)  # so that attention differs
    return made


def made(file: Path, kind: Any = "perceptual", **options: Any) -> LikenessGuide:
    return make_likeness(LikenessOptions(kind=kind, **options), open_checkpoint(file))


def images(number: int = 2, side: int = SIZE, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(number, 3, side, side, generator=generator) * 2 - 1


def normalized(x: Tensor) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return ((x + 1) / 2 - mean) / std


def picture(seed: int, width: int = SIZE, height: int = SIZE) -> Image.Image:
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1


def features_by_hand(kind: str, x: Tensor) -> list[Tensor]:
    """(B, C, P) of the layers of `LAYERS`, from the whole network, step by step."""
    whole: Any = network(kind)
    x = normalized(x)
    if kind == "resnet":
        x = whole.maxpool(whole.act1(whole.bn1(whole.conv1(x))))
        first = whole.layer1(x)
        third = whole.layer3(whole.layer2(first))
        return [first.flatten(2), third.flatten(2)]
    tokens = whole.norm_pre(whole.patch_drop(whole._pos_embed(whole.patch_embed(x))))
    found = []
    for block in whole.blocks[:2]:
        tokens = block(tokens)
        found.append(tokens[:, whole.num_prefix_tokens :].transpose(1, 2))
    return found


def distance_by_hand(what: str, a: list[Tensor], b: list[Tensor]) -> float:
    """Of two images, by loops over layers and places, with vectors of numpy."""
    total = 0.0
    for f, g in zip(a, b, strict=True):
        f, g = f.double().numpy(), g.double().numpy()  # (C, P)
        if what == "perceptual":
            units = [m / np.linalg.norm(m, axis=0) for m in (f, g)]
            places = zip(units[0].T, units[1].T, strict=True)
            total += np.mean([np.sum((u - v) ** 2) for u, v in places])
        elif what == "style":
            grams = [sum(np.outer(m[:, p], m[:, p]) for p in range(m.shape[1])) for m in (f, g)]
            u, v = (gram / np.sqrt((gram**2).sum()) for gram in grams)
            total += float(((u - v) ** 2).sum())
        else:
            u, v = (
                np.array([[p @ q / np.sqrt((p @ p) * (q @ q)) for q in m.T] for p in m.T])
                for m in (f, g)
            )
            total += float(((u - v) ** 2).mean())
    return total / len(a)


@pytest.mark.parametrize("what", ["perceptual", "style", "structure"])
@pytest.mark.parametrize("kind", ["resnet", "dino"])
def test_distances_are_those_of_direct_computation(
    kind: str, what: str, files: dict[str, Path]
) -> None:
    facet = {"facet": "tokens"} if what == "structure" else {}
    model = made(files[kind], what, layers=LAYERS[kind], **facet)
    x, reference = images(2), picture(0)
    target = model.target(decode_target(reference))
    found = Mean().energy(model(x), target.value)
    with torch.no_grad():
        of_x = features_by_hand(kind, x)
        of_reference = features_by_hand(kind, tensor(reference))
    expected = [
        distance_by_hand(what, [f[row] for f in of_x], [f[0] for f in of_reference])
        for row in range(2)
    ]
    assert min(expected) > 1e-4
    torch.testing.assert_close(found, torch.tensor(expected).float(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["dino", "dinov3", "deit"])
def test_keys_are_those_of_the_attention(kind: str, files: dict[str, Path]) -> None:
    """Structure compares them by default, of the last layer, without class tokens."""
    model = make_structure(FeatureOptions(), open_checkpoint(files[kind]))
    x = images(1)
    whole: Any = network(kind)
    found: list[Tensor] = []
    attention = whole.blocks[-1].attn
    hook = attention.qkv.register_forward_hook(lambda _, __, output: found.append(output))
    with torch.no_grad():
        whole(normalized(x))
    hook.remove()
    keys = found[0][0, whole.num_prefix_tokens :, 16:32]  # of 16 queries, keys and values
    assert len(keys) == (SIZE // 8) ** 2
    units = keys / keys.norm(dim=1, keepdim=True)
    torch.testing.assert_close(model(x)[0], (units @ units.T).flatten() / 16, rtol=1e-3, atol=1e-5)
    tokens = make_structure(FeatureOptions(facet="tokens"), open_checkpoint(files[kind]))
    assert not torch.allclose(tokens(x), model(x), atol=1e-3)


@networks
@pytest.mark.parametrize("what", ["perceptual", "style", "structure"])
def test_any_network_image_by_image_with_a_gradient(
    kind: str, what: str, files: dict[str, Path]
) -> None:
    small = {"convnext": "stages.1", "efficientnet": "blocks.1", "resnet": "layer2"}.get(kind)
    layers = {"layers": small} if what == "structure" and small else {}
    model = made(files[kind], what, **layers)
    x = images(2, side=40).requires_grad_(True)
    phi = model(x)
    target = model.target(decode_target(picture(3)))
    energy = Mean().energy(phi, target.value)
    energy.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().amax((1, 2, 3)).min() > 0
    torch.testing.assert_close(model(x[1:]), phi[1:], atol=1e-4, rtol=1e-3)
    assert (energy > 0).all()
    assert (Mean().energy(model(tensor(picture(3))), target.value) < 1e-6).all()
    assert model.describe(phi) == []
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_what_is_not_compared_is_cut_off(files: dict[str, Path]) -> None:
    short, long = (made(files["resnet"], layers=names) for names in ("layer1", "layer1,layer4"))
    sizes = [sum(p.numel() for p in model.network.parameters()) for model in (short, long)]
    assert sizes[0] < 0.7 * sizes[1]
    assert "fc.weight" not in long.network.state_dict()
    assert short(images()).shape == (2, 8 * 8 * 8)


def test_style_ignores_places_and_structure_ignores_looks(files: dict[str, Path]) -> None:
    """Of features themselves: a permutation of places, and an orthogonal map of channels."""
    f = [torch.randn(1, 6, 9, generator=torch.Generator().manual_seed(0))]
    moved = [f[0][:, :, torch.randperm(9, generator=torch.Generator().manual_seed(1))]]
    turned = [torch.linalg.qr(torch.randn(6, 6)).Q @ f[0] * 3]
    described = guider._DESCRIBED
    torch.testing.assert_close(described["style"](moved), described["style"](f))
    torch.testing.assert_close(described["structure"](turned), described["structure"](f))
    for what, other in (("structure", moved), ("style", turned), ("perceptual", moved)):
        assert not torch.allclose(described[what](other), described[what](f), atol=1e-2)


class TestTargets:
    def test_several_with_weights(self, files: dict[str, Path], tmp_path: Path) -> None:
        model = made(files["resnet"])
        for name in "ab":
            picture(ord(name)).save(tmp_path / f"{name}.png")
        given = f"{tmp_path / 'a.png'} | {tmp_path / 'b.png'}:3"
        target = model.target(decode_target(given))
        assert target.value[0, :, 0].tolist() == [0.25, 0.75]
        assert target.label == "like a.png | b.png"
        assert target.picture is not None
        assert target.picture.shape == (3, SIZE, 2 * SIZE)
        phi = model(images())
        alone = [
            Mean().energy(phi, model.target(decode_target(tmp_path / f"{name}.png")).value)
            for name in "ab"
        ]
        both = Mean().energy(phi, target.value)
        torch.testing.assert_close(both, 0.25 * alone[0] + 0.75 * alone[1])
        nearest = torch.minimum(*alone)
        torch.testing.assert_close(Nearest().energy(phi, target.value), nearest)
        torch.testing.assert_close(Mean().metrics(phi, target.value)["nearest"], nearest)
        for loss in (Mean(), Nearest()):
            one = model.target(decode_target(picture(9)))
            transfer = loss.transfer(phi, one.value[:, 0, 1:].expand_as(phi))
            torch.testing.assert_close(transfer, loss.energy(phi, one.value))

    def test_the_middle_of_a_picture(self, files: dict[str, Path]) -> None:
        model = make_style(FeatureOptions(), open_checkpoint(files["resnet"]))
        wide = picture(0, width=3 * SIZE)
        middle = wide.crop((SIZE, 0, 2 * SIZE, SIZE))
        found = [model.target(decode_target(image)) for image in (wide, middle)]
        torch.testing.assert_close(found[0].value, found[1].value)
        assert found[0].label == "the style of picture"
        assert model.target(decode_target(picture(0, 900, 700))).picture.shape == (3, 512, 512)  # type: ignore[union-attr]  # has one

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ("red cube", "cannot aim at 'red cube'"),
            ("x" * 10_000, "cannot aim at 'xxx"),
            (np.zeros((8, 8)), "cannot aim at an array"),
            ("no.png | a.png", r"'no\.png' is not there"),
            ("{}:0", "has the weight 0"),
            ("{}:-1 | {}", "has the weight -1"),
            ("{} | broken.png", r"'broken\.png' is no picture"),
        ],
    )
    def test_others_are_refused_in_a_line(
        self,
        given: Any,
        message: str,
        files: dict[str, Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        picture(0).save("here.png")
        Path("broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        if isinstance(given, str):
            given = given.replace("{}", "here.png")
        with pytest.raises(PpapError, match=message) as caught:
            made(files["resnet"]).target(decode_target(given))
        assert "\n" not in str(caught.value)
        assert len(caught.value.message) < 300


class TestNetworks:
    def test_unknown_layers(self, files: dict[str, Path]) -> None:
        with pytest.raises(UsageError, match="ResNet has no layer 'layr2'") as caught:
            made(files["resnet"], layers="layer1,layr2")
        assert "did you mean layer" in caught.value.hint
        with pytest.raises(UsageError, match="has no layer 'zzz'") as caught:
            made(files["resnet"], layers="zzz")
        assert caught.value.hint == "there are act1, layer1, layer2, layer3, layer4"

    def test_facets(self, files: dict[str, Path]) -> None:
        with pytest.raises(UsageError, match="a guide of style compares no keys"):
            made(files["vit"], "style", facet="keys")
        with pytest.raises(UsageError, match=r"layer 'layer4' has no attention"):
            made(files["resnet"], "structure", facet="keys")
        for facet in (None, "tokens"):
            model = made(files["resnet"], "structure", facet=facet)
            with pytest.raises(UsageError, match="there is one place, which has no structure"):
                model.target(decode_target(picture(0)))

    def test_weights_without_their_architecture(
        self, files: dict[str, Path], tmp_path: Path
    ) -> None:
        path = tmp_path / "bare.safetensors"
        whole = timm.create_model("test_efficientnet", num_classes=7)
        save_checkpoint(path, whole.state_dict(), {})
        with pytest.raises(UsageError, match="does not say of which model"):
            made(path)
        model = made(path, model="test_efficientnet", size=64)
        assert model(images()).isfinite().all()
        with pytest.raises(UsageError, match=r"timm .* has no model 'resnt18'") as caught:
            made(path, model="resnt18")
        assert "resnet18" in caught.value.hint
        with pytest.raises(UsageError, match="is a resnet18, not a vit_tiny"):
            made(files["resnet"], model="vit_tiny_patch16_224")
        with pytest.raises(AssetError, match="does not fit"):
            made(path, model="resnet18")
        with pytest.raises(UsageError, match=r"timm has no weights 'resnet18\.mine'"):
            made(path, model="resnet18.mine")

    def test_nothing_named(self) -> None:
        with pytest.raises(UsageError, match="no network is named"):
            make_likeness(LikenessOptions(), None)
        with pytest.raises(ValueError, match="kind"):
            LikenessOptions(kind="look")  # type: ignore[arg-type]  # a fault

    def test_files_configure_networks_and_load_no_others(self, files: dict[str, Path]) -> None:
        checkpoint = open_checkpoint(files["resnet"])
        for stated in (
            {"model": "resnet18", "model_args": {"pretrained": True}},
            {"model": "resnet18", "mean": [1]},
            {"model": "resnet18", "model_args": {"layers": 3}},
        ):
            with pytest.raises(AssetError):
                make_likeness(LikenessOptions(), Checkpoint("x", checkpoint.files, stated))

    def test_weights_of_timm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        create, asked = timm.create_model, []

        def created(name: str, *, pretrained: bool, **arguments: Any) -> Any:
            asked.append((name, pretrained, arguments))
            return create(name, **arguments)

        monkeypatch.setattr(timm, "create_model", created)
        model = make_style(FeatureOptions(model="vit_tiny_patch16_224", size=48), None)
        assert asked == [("vit_tiny_patch16_224", True, {"img_size": 48})]
        assert model(images()).shape == (2, 3 * 192**2)

    def test_other_preprocessing(self, files: dict[str, Path]) -> None:
        model = made(files["resnet"])
        raw = Preprocessing(size=None, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
        other = model.preprocessed(raw)
        assert other.network is model.network
        x = images(1)
        torch.testing.assert_close(other(normalized(x)), model(x))


def test_copies_and_pickles(files: dict[str, Path]) -> None:
    model = made(files["dino"], "structure")
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(images()), model(images()))
