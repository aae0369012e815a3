"""Imported experts against the networks that the published PPAP code makes of the same files.

Files are built to the manifests, with values drawn at random: the frozen ones are a base network's,
all others an expert's own. The oracle is torchvision's or timm's network with the released formulas
written out.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import midas_oracle
import pytest
import torch
from experts_toy import Told
from torch import Tensor, nn
from torch.nn import functional as F

from ppap_framework.checkpoints import open_checkpoint
from ppap_framework.cli import main
from ppap_framework.components import GuidanceModel
from ppap_framework.experts import (
    Identity,
    guide_sha256,
    load_bundle,
    read_bundle_info,
)
from ppap_framework.noise import NoiseLevel, cosine_schedule, linear_schedule
from ppap_framework.preprocessing import Preprocessing
from ppap_plugin_classifier.guider import make_classifier
from ppap_plugin_classifier.options import ClassifierOptions
from ppap_plugin_midas.guider import make_depth
from ppap_plugin_midas.options import DepthOptions
from ppap_plugin_released.architectures import Architecture, find_architecture
from ppap_plugin_released.importer import import_experts

ROOT = Path(os.environ.get("PPAP_PARITY_DIR") or Path(__file__).parent)
SCHEDULE = linear_schedule(1000)
RAW = Preprocessing(size=None, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LAYER = Architecture(name="layer", guider="bare", model="", targets="", preprocessing=RAW)
"""A network in which one layer is adapted, if any."""

ARCHITECTURES = {
    "torchvision resnet50": ("resnet50", "resnet50.tv2_in1k"),
    "timm deit_small_patch16_224": ("deit-s", "deit_small_patch16_224"),
    "MiDaS_small (efficientnet_lite3": ("midas-small", "midas-small"),
}


def manifests() -> Iterator[Any]:
    """Those of networks whose experts can be imported; of each, one is enough for every day."""
    seen = set()
    for path in sorted(ROOT.rglob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or not {"gamma", "base", "state_dict"} <= set(record):
            continue
        base = " ".join(record["base"].split()[:2])
        if base in ARCHITECTURES:
            marks = [pytest.mark.slow] if base in seen else []
            seen.add(base)
            yield pytest.param(record, id=record["name"], marks=marks)


def own_name(key: str, record: dict[str, Any]) -> str:
    name = key.removeprefix(record["wrapper_attribute"].split(";")[0] + ".")
    for inner in (".conv.", ".linear."):
        if key.replace(inner + key.rpartition(".")[2], ".lora_A") in keys(record):
            name = name.replace(inner, ".")
    return name


def keys(record: dict[str, Any]) -> set[str]:
    return {row[0] for row in record["state_dict"]}


def drawn(key: str, shape: list[int], generator: torch.Generator) -> Tensor:
    """Values with which activations neither vanish nor grow."""
    if key.endswith("num_batches_tracked"):
        return torch.tensor(3)
    values = torch.rand(shape, generator=generator)
    if key.endswith(("running_var", "norm1.weight", "norm2.weight")) or ".bn" in key:
        return values + 0.5 if key.endswith(("weight", "running_var")) else values - 0.5
    bound = 0.3 if len(shape) < 2 else (3 / max(1, values[0].numel())) ** 0.5
    return (2 * values - 1) * bound


class Released:
    """A base network and two experts of it, as files."""

    def __init__(self, record: dict[str, Any], folder: Path) -> None:
        self.record = record
        self.architecture, self.model = ARCHITECTURES[" ".join(record["base"].split()[:2])]
        of_if = self.architecture == "midas-small"  # whose experts were trained for DeepFloyd-IF
        self.schedule = cosine_schedule(1000) if of_if else SCHEDULE
        self.drawn = (
            ("deepfloyd-if", "cosine", (64, 64)) if of_if else ("adm", "linear", (256, 256))
        )
        generator = torch.Generator().manual_seed(0)
        rows = [(key, shape) for key, shape, _, _ in record["state_dict"]]
        first = {key: drawn(key, shape, generator) for key, shape in rows}
        frozen = {key for key, _, _, kind in record["state_dict"] if kind == "frozen"}
        names = {key: own_name(key, record) for key, _ in rows if ".lora_" not in key}
        self.base = folder / "base.pth"
        torch.save({names[key]: first[key] for key in names}, self.base)
        self.states = [
            {k: first[k] if k in frozen else drawn(k, shape, generator) for k, shape in rows}
            for _ in range(2)
        ]
        (folder / "ppap_5").mkdir()
        self.files = [folder / "ppap_5" / f"{i}_max2.ckpt" for i in range(2)]
        for state, path in zip(self.states, self.files, strict=True):
            torch.save(state, path)

    def guide(self) -> GuidanceModel:
        if self.architecture == "midas-small":
            return make_depth(DepthOptions(model=self.model), open_checkpoint(self.base))
        return make_classifier(ClassifierOptions(model=self.model), open_checkpoint(self.base))


@pytest.fixture(scope="module", params=manifests())
def released(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Released:
    return Released(request.param, tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="module")
def bundle(released: Released) -> Path:
    out = released.base.with_name("made.experts.safetensors")
    arguments = ["experts", "import", *map(str, reversed(released.files)), "--json"]
    arguments += ["--architecture", released.architecture, "--out", str(out)]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--guider-checkpoint", str(released.base)])
    assert not ended.value.code
    return out


def merged(state: dict[str, Tensor], record: dict[str, Any]) -> dict[str, Tensor]:
    """W + (B A).view(W) alpha / r."""
    weights = {}
    for key, tensor in state.items():
        name = own_name(key, record)
        if key.endswith(".conv.weight"):
            a, b = (state[key.replace("conv.weight", part)] for part in ("lora_A", "lora_B"))
            tensor = tensor + (b @ a).view(tensor.shape) * record["scaling"]
        if ".lora_" not in key:
            weights[name] = tensor
    return weights


def resnet(state: dict[str, Tensor], record: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """The network is shown x itself."""
    with torch.device("meta"):
        network = importlib.import_module("torchvision.models").resnet50()
    network.load_state_dict(merged(state, record), assign=True)
    return network.eval()


def midas(state: dict[str, Tensor], record: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """Shown (x + 1) / 2, resized and then normalised."""
    transforms = importlib.import_module("torchvision.transforms")
    normalise = transforms.Normalize(MEAN, STD)
    resize = transforms.Resize((256, 256))
    weights = merged(state, record)
    return lambda x: midas_oracle.disparity(weights, normalise(resize((x + 1) / 2)))


class Unmerged(nn.Module):
    """x W^T + b + x A^T B^T."""

    def __init__(self, weight: Tensor, bias: Tensor, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.weight, self.bias, self.a, self.b = weight, bias, a, b

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) + x @ self.a.T @ self.b.T


def deit(state: dict[str, Tensor], record: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """Shown (x + 1) / 2, normalised and then resized."""
    with torch.device("meta"):
        network = importlib.import_module("timm").create_model("deit_small_patch16_224")
    transforms = importlib.import_module("torchvision.transforms")
    plain = {own_name(k, record): t for k, t in state.items() if ".lora_" not in k}
    network.load_state_dict(plain, assign=True)
    for key in state:
        if key.endswith(".lora_A"):
            layer = key.removesuffix(".lora_A")
            parts = ("linear.weight", "linear.bias", "lora_A", "lora_B")
            made = Unmerged(*(state[f"{layer}.{part}"] for part in parts))
            around, _, name = own_name(layer, record).rpartition(".")
            setattr(network.get_submodule(around), name, made)
    normalise = transforms.Normalize(MEAN, STD)
    resize = transforms.Resize((224, 224))
    network.eval()
    return lambda x: network(resize(normalise((x + 1) / 2)))


def test_predictions_and_gradients(released: Released, bundle: Path) -> None:
    oracles = {"resnet50": resnet, "deit-s": deit, "midas-small": midas}
    oracle = oracles[released.architecture]
    model = released.guide()
    untouched = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    experts = load_bundle(bundle, model)
    generator = torch.Generator().manual_seed(1)
    sides = (64, 128) if released.architecture == "resnet50" else (96, 256)
    for index, (t, side) in enumerate(zip((500, 501), sides, strict=True)):
        x = torch.randn(1, 3, side, side, generator=generator)
        level = NoiseLevel(released.schedule.log_snr[t : t + 1])
        results = []
        for look in (experts.at(level), oracle(released.states[index], released.record)):
            image = x.clone().requires_grad_()
            logits = look(image, level) if look is experts.student else look(image)
            said = logits.square().sum() if logits.ndim == 3 else logits.log_softmax(-1)[0, 7]
            (gradient,) = torch.autograd.grad(said, image)
            results.append((logits.detach(), gradient))
        (logits, gradient), (expected, expected_gradient) = results
        assert expected.std() > 0.01
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        if released.architecture == "midas-small":  # rounding moves pixels across kinks of ReLU6
            error = (gradient - expected_gradient).norm() / expected_gradient.norm()
            assert error < 0.02
            continue
        scale = expected_gradient.abs().max()
        torch.testing.assert_close(
            gradient / scale, expected_gradient / scale, rtol=1e-3, atol=1e-3
        )
    experts.detach()
    now = model.network.state_dict()
    assert all(torch.equal(now[name], tensor) for name, tensor in untouched.items())


def test_it_guides(released: Released, bundle: Path, tmp_path: Path) -> None:
    """With the preprocessing of the bundle, and no flag that says so."""
    pytest.importorskip("ppap_plugin_shapes", reason="brings a diffusion model, of small images")
    if released.architecture != "resnet50":
        pytest.skip("one is enough")
    arguments = ["run", "--backend", "adm", "--guider", "classifier", "--target", "goldfish"]
    arguments += ["--guider-model", "resnet50", "--guider-checkpoint", str(released.base)]
    arguments += ["--experts", str(bundle), "--allow-mismatch", "resolution", "--device", "cpu"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--steps", "2", "--num", "1", "--out", str(tmp_path / "out")])
    assert not ended.value.code
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert json.dumps(record).count('"num_experts": 2') == 1


def test_what_the_bundle_says(released: Released, bundle: Path) -> None:
    info, record = read_bundle_info(bundle), released.record
    assert info.timesteps == (0, 501, 1000)
    assert (info.backend.component, info.schedule, info.resolution) == released.drawn
    assert info.guide.sha256 == guide_sha256(released.guide())
    lora = info.adapters[0].options
    assert (lora["rank"], lora["variant"]) == (record["gamma"], "reshaped")
    conv = released.architecture != "deit-s"
    assert lora["alpha"] / lora["rank"] == (record["scaling"] if conv else 1.0)
    assert info.network_parameters == record["base_model_parameters"]
    assert info.expert_parameters[0] >= record["trainable_parameters"]
    assert info.input is not None
    assert info.input.shape == ((3, 256, 256) if conv else (3, 224, 224))
    assert info.recipe["method"] == "ppap"
    assert [file.split()[0] for file in info.recipe["files"]] == ["0_max2.ckpt", "1_max2.ckpt"]


@pytest.mark.slow
def test_whole_networks(released: Released, tmp_path: Path) -> None:
    """Without adapters there is none of their normalisation. DeiT-S lies within what resizes."""
    if released.architecture == "midas-small":
        pytest.skip("normalises in both cases")
    conv = released.architecture == "resnet50"
    torch.manual_seed(0)
    network = importlib.import_module("timm").create_model(released.model).eval()
    path = tmp_path / "network_finetune.ckpt"
    inner = "" if conv else "classifier."
    torch.save({inner + name: tensor for name, tensor in network.state_dict().items()}, path)
    model, out = released.guide(), tmp_path / "whole.experts.safetensors"
    architecture = find_architecture(released.architecture)
    import_experts([path], model, architecture, out, guide=identity(model))
    x = torch.randn(1, 3, 96, 96)
    resize = importlib.import_module("torchvision.transforms").Resize((224, 224))
    experts = load_bundle(out, model)
    level = NoiseLevel(SCHEDULE.log_snr[:1])
    with torch.no_grad():
        expected = network(x if conv else resize(x))
        torch.testing.assert_close(experts.at(level)(x, level), expected, rtol=1e-4, atol=1e-4)


def bare(network: nn.Module) -> Told:
    return Told(network, RAW).eval()


def identity(model: GuidanceModel) -> Identity:
    return Identity(component="bare", checkpoint=None, sha256=guide_sha256(model))


@pytest.mark.parity("lora")
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_goldens(
    record: dict[str, Any], tensors: dict[str, Tensor], tmp_path: Path, kind: str
) -> None:
    """The layer of the goldens as a network whose released expert is imported."""
    told = record[kind]
    layer = (
        nn.Conv2d(
            told["in_channels"],
            told["out_channels"],
            told["kernel"],
            stride=told["stride"],
            padding=told["padding"],
        )
        if kind == "conv"
        else nn.Linear(told["in_features"], told["out_features"])
    )
    weight, bias = tensors[f"{kind}.weight_base"], tensors[f"{kind}.bias"]
    layer.load_state_dict({"weight": weight, "bias": bias})
    model = bare(nn.Sequential(layer))
    state = {f"net.0.{part}": tensors[f"{kind}.{part}"] for part in ("lora_A", "lora_B")}
    state |= {f"net.0.{kind}.weight": weight, f"net.0.{kind}.bias": bias}
    torch.save(state, tmp_path / "only.ckpt")
    out = tmp_path / "only.experts.safetensors"
    import_experts(
        [tmp_path / "only.ckpt"],
        model,
        attrs.evolve(LAYER, targets="0", alpha=told["lora_alpha"] if kind == "conv" else None),
        out,
        guide=identity(model),
    )
    experts = load_bundle(out, model)
    experts.activate(0)
    result = model.network(tensors[f"{kind}.x"]).detach()
    torch.testing.assert_close(result, tensors[f"{kind}.out_unmerged"])


def routes() -> dict[int, dict[int, int]]:
    """By the number of experts: timesteps, and which expert the published code asks."""
    for path in sorted(ROOT.rglob("behaviour.json")):
        told = json.loads(path.read_text(encoding="utf-8"))
        tables = {5: told["expert index for t"], 3: told["3 experts index"]}
        return {n: {int(t): i for t, i in table.items()} for n, table in tables.items()}
    return {}


@pytest.mark.parametrize("number", routes())
def test_routes(tmp_path: Path, number: int) -> None:
    model = bare(nn.Sequential(nn.Linear(3, 2)))
    paths = [tmp_path / f"{i}_max{number}.ckpt" for i in range(number)]
    for i, path in enumerate(paths):
        torch.save({"0.weight": torch.full((2, 3), float(i)), "0.bias": torch.zeros(2)}, path)
    out = tmp_path / "all.experts.safetensors"
    import_experts(paths, model, LAYER, out, guide=identity(model))
    experts = load_bundle(out, model)
    for t, wanted in routes()[number].items():
        experts.at(NoiseLevel(SCHEDULE.log_snr[t : t + 1]))
        assert model.network[0].weight.data.eq(wanted).all(), t
