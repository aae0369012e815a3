"""Which files of released experts are imported, and which are refused without a trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from experts_toy import TinyGuide, Told
from torch import Tensor

from ppap_framework.cli import main
from ppap_framework.errors import AssetError, PpapError, UsageError
from ppap_framework.experts import (
    BundleInfo,
    Identity,
    guide_sha256,
    has_experts,
    load_bundle,
    verify_bundle,
)
from ppap_framework.preprocessing import Preprocessing
from ppap_plugin_released.architectures import ARCHITECTURES, Architecture, find_architecture
from ppap_plugin_released.importer import import_experts

State = dict[str, Tensor]
Capsys, Patch = pytest.CaptureFixture[str], pytest.MonkeyPatch

RAW = Preprocessing(size=None, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
TOY = Architecture(
    name="toy", guider="look", model="toy", targets="0,5", alpha=8.0, preprocessing=RAW
)


def guide(seed: int = 0, width: int = 4) -> Told:
    return Told(TinyGuide(seed, width=width).network, RAW).eval()


def drawn(shapes: dict[str, tuple[int, ...]], seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=generator) + 0.1 for name, shape in shapes.items()}


def whole(index: int, width: int = 4) -> State:
    """A network that was trained, within two wrappers."""
    state = guide(10 + index, width).network.state_dict()
    state["1.running_var"] += 0.5 * index
    return {f"module.net.{name}": tensor for name, tensor in state.items()}


def low_rank(index: int, rank: int = 2, seed: int = 0) -> State:
    """One expert of the toy, as the published code would save it."""
    state = guide(seed).network.state_dict()
    own = drawn({name: state[name].shape for name in state if state[name].ndim == 1}, index)
    names = {"0.weight": "0.conv.weight", "0.bias": "0.conv.bias", "5.weight": "5.linear.weight"}
    names["5.bias"] = "5.linear.bias"
    found = {names.get(name, name): tensor for name, tensor in {**state, **own}.items()}
    shapes = {"0.lora_A": (3 * rank, 9), "0.lora_B": (12, 3 * rank)}
    shapes |= {"5.lora_A": (rank, 16), "5.lora_B": (5, rank)}
    found |= drawn(shapes, 100 + index)
    return {f"net.{name}": tensor for name, tensor in found.items()}


def save(folder: Path, states: list[State], name: str = "{}_max{}.ckpt") -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name.format(i, len(states)) for i in range(len(states))]
    for state, path in zip(states, paths, strict=True):
        torch.save(state, path)
    return paths


def imported(
    paths: list[Path],
    model: Told | None = None,
    architecture: Architecture = TOY,
    **said: Any,
) -> BundleInfo:
    model = model or guide()
    identity = Identity(component="look", checkpoint=None, sha256=guide_sha256(model))
    out = paths[0].parent / "made.experts.safetensors"
    return import_experts(paths, model, architecture, out, guide=identity, **said)


def refusal(paths: list[Path], model: Told | None = None, **said: Any) -> PpapError:
    model = model or guide()
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    with pytest.raises((AssetError, UsageError)) as caught:
        imported(paths, model, **said)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    assert not has_experts(model.network)
    assert all(torch.equal(t, before[name]) for name, t in model.network.state_dict().items())
    assert not list(paths[0].parent.glob("*.safetensors"))
    return caught.value


class TestWhatIsImported:
    def test_whole_networks(self, tmp_path: Path) -> None:
        states = [whole(0), whole(1)]
        info = imported(save(tmp_path / "multi_experts", states))
        assert info.recipe["method"] == "multi-experts"
        assert [adapter.name for adapter in info.adapters] == ["full"]
        model = guide()
        experts = load_bundle(tmp_path / "multi_experts" / "made.experts.safetensors", model)
        for index, state in enumerate(states):
            experts.activate(index)
            for name, tensor in model.network.state_dict().items():
                assert torch.equal(tensor, state[f"module.net.{name}"]), name

    def test_low_rank_changes(self, tmp_path: Path) -> None:
        states = [low_rank(0), low_rank(1)]
        info = imported(save(tmp_path, states, "{}.pth"))
        assert info.recipe["method"] == "ppap"
        model = guide()
        base = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
        experts = load_bundle(tmp_path / "made.experts.safetensors", model)
        for index, state in enumerate(states):
            experts.activate(index)
            now = model.network.state_dict()
            for layer, inner in (("0", "conv"), ("5", "linear")):
                change = state[f"net.{layer}.lora_B"] @ state[f"net.{layer}.lora_A"]
                weight = base[f"{layer}.weight"]
                expected = weight + 4 * change.view(weight.shape)
                torch.testing.assert_close(now[f"{layer}.weight"], expected)
                assert torch.equal(now[f"{layer}.bias"], state[f"net.{layer}.{inner}.bias"])
            for part in ("weight", "bias", "running_mean", "running_var"):
                assert torch.equal(now[f"1.{part}"], state[f"net.1.{part}"])

    def test_whole_networks_may_be_fed_otherwise(self, tmp_path: Path) -> None:
        shown = attrs.evolve(RAW, mean=(0.1, 0.2, 0.3))
        other = attrs.evolve(TOY, network_preprocessing=shown)
        paths = save(tmp_path / "whole", [whole(0)])
        assert imported(paths).preprocessing == RAW
        assert imported(paths, architecture=other).preprocessing == shown
        paths = save(tmp_path / "ppap", [low_rank(0)])
        assert imported(paths, architecture=other).preprocessing == RAW

    def test_one_network_for_all(self, tmp_path: Path) -> None:
        info = imported(save(tmp_path, [whole(0)], "toy_finetune.ckpt"))
        assert (len(info), info.recipe["method"], info.timesteps) == (1, "finetune", (0, 1000))

    def test_numbers_order_files_and_otherwise_their_order_does(self, tmp_path: Path) -> None:
        numbered = save(tmp_path / "a", [whole(i) for i in range(11)])
        files = imported(sorted(numbered)).recipe["files"]  # 0, 1, 10, 2, ...
        assert [name.split()[0] for name in files] == [path.name for path in numbered]
        named = save(tmp_path / "b", [whole(0), whole(1)], "{}.ckpt")[::-1]
        files = imported(named).recipe["files"]
        assert [name.split()[0] for name in files] == ["1.ckpt", "0.ckpt"]

    def test_the_bundle_is_whole_and_the_same_every_time(self, tmp_path: Path) -> None:
        paths = save(tmp_path, [low_rank(0), low_rank(1)])
        made = tmp_path / "made.experts.safetensors"
        imported(paths)
        first = made.read_bytes()
        verify_bundle(made)
        imported(paths)
        assert made.read_bytes() == first


class TestMislabelled:
    @pytest.mark.parametrize(
        ("folder", "name", "states", "words"),
        [
            ("multi_experts", "{}_max{}.ckpt", (low_rank, low_rank), "'multi-experts', and it"),
            ("multi-experts-5", "{}_max{}.ckpt", (low_rank, low_rank), "'multi-experts', and it"),
            ("MultiExperts", "{}_max{}.ckpt", (low_rank, low_rank), "'multi-experts', and it"),
            ("any", "toy_finetune.ckpt", (low_rank,), "'finetune', and it"),
            ("ppap_5", "{}_max{}.ckpt", (whole, whole), "'ppap', and it holds no low-rank changes"),
        ],
    )
    def test_tensors_that_a_name_does_not_state(
        self,
        tmp_path: Path,
        folder: str,
        name: str,
        states: tuple[Callable[[int], State], ...],
        words: str,
    ) -> None:
        error = refusal(save(tmp_path / folder, [make(i) for i, make in enumerate(states)], name))
        assert f"is not what its name says: {words}" in error.message
        assert ("--method ppap" in error.hint) == (low_rank in states)

    def test_one_file_among_others(self, tmp_path: Path) -> None:
        error = refusal(save(tmp_path / "ppap_5", [low_rank(0), whole(1)]))
        assert "1_max2.ckpt' is not what its name says" in error.message
        error = refusal(save(tmp_path / "other", [low_rank(0), whole(1)]))
        assert "of different kinds: 0_max2.ckpt (low-rank changes)" in error.message
        assert error.exit_code == 4

    def test_a_file_s_own_name_goes_before_its_folder_s(self, tmp_path: Path) -> None:
        paths = save(tmp_path / "ppap", [whole(0)], "toy_finetune.ckpt")
        assert imported(paths).recipe["method"] == "finetune"

    def test_what_is_said_goes_before_names(self, tmp_path: Path) -> None:
        paths = save(tmp_path / "multi_experts", [low_rank(0), low_rank(1)])
        assert imported(paths, method="ppap").recipe["method"] == "ppap"
        paths = save(tmp_path / "files", [whole(0), whole(1)])
        error = refusal(paths, method="ppap")
        assert "is not asked for: 'ppap', and it holds no low-rank" in error.message

    def test_a_layer_without_its_change(self, tmp_path: Path) -> None:
        state = low_rank(1)
        state = {name: t for name, t in state.items() if not name.startswith("net.5.lora")}
        error = refusal(save(tmp_path / "ppap", [low_rank(0), state]))
        assert "1_max2.ckpt' does not fit: 4 missing" in error.message


def changed(**change: Tensor | None) -> Callable[[State], State]:
    def apply(state: State) -> State:
        state = {**state, **{f"net.{name}": t for name, t in change.items() if t is not None}}
        return {name: t for name, t in state.items() if change.get(name[4:], t) is not None}

    return apply


class TestTensors:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (changed(**{"1.running_mean": None}), "1 missing ('1.running_mean')"),
            (changed(**{"0.lora_A": None}), "1 missing ('0.weight.lora_A')"),
            (changed(**{"5.linear.weight": None}), "1 missing ('5.weight')"),
            (changed(**{"6.weight": torch.ones(2)}), "1 unexpected ('6.weight')"),
            (changed(**{"1.lora_A": torch.ones(2, 4)}), "unexpected"),
            (changed(**{"1.bias": torch.ones(5)}), "'1.bias' (5,) instead of (4,)"),
            (changed(**{"5.lora_B": torch.ones(5, 3)}), "(5, 3) instead of (5, 2)"),
            (changed(**{"5.linear.bias": torch.full((5,), torch.inf)}), "'5.bias' of"),
            (changed(**{"5.weight": torch.ones(5, 16)}), "'5.weight' within an adapter and"),
            (changed(**{"0.conv.weight": torch.ones(4, 3, 3, 3)}), "made of other weights: 1 of 2"),
        ],
    )
    def test_that_do_not_fit(
        self, tmp_path: Path, change: Callable[[State], State], words: str
    ) -> None:
        error = refusal(save(tmp_path, [low_rank(0), change(low_rank(1))]))
        assert words in error.message
        assert "1_max2.ckpt" in error.message
        assert error.exit_code == 4

    @pytest.mark.parametrize(
        ("states", "words"),
        [
            ([low_rank(0, seed=1)], "2 of 2 frozen tensors are not the guide's"),
            ([whole(0, width=8)], "of another shape"),
            (
                [{"vit.cls_token": torch.ones(1, 1, 8)}],
                "holds none of the 9 tensors of the network",
            ),
            ([low_rank(0), low_rank(1, rank=3)], "of another shape"),
            ([low_rank(0) | {"net.0.lora_A": torch.ones(7, 9)}], "7 rows, which is of no rank"),
        ],
    )
    def test_of_others(self, tmp_path: Path, states: list[State], words: str) -> None:
        error = refusal(save(tmp_path, states))
        assert words in error.message
        assert ("--guider-checkpoint" in error.hint) == ("frozen" in words)

    def test_a_pickle_that_wants_code_to_run(self, tmp_path: Path) -> None:
        path = tmp_path / "0_max1.ckpt"
        torch.save({"net.0.weight": Path("x")}, path)
        assert "nothing was run" in refusal([path]).message

    def test_no_file(self, tmp_path: Path) -> None:
        assert "0_max1.ckpt" in refusal([tmp_path / "0_max1.ckpt"]).message


class TestNumberOfFiles:
    @pytest.mark.parametrize("left", [[0, 1, 3], [0, 1, 2, 2], [1, 2, 3], []])
    def test_too_few_or_twice(self, tmp_path: Path, left: list[int]) -> None:
        paths = save(tmp_path, [whole(i) for i in range(4)])
        chosen = [paths[i] for i in left] or [*paths, tmp_path / "0_max3.ckpt"]
        error = refusal(chosen)
        assert "are not the files of 4 experts" in error.message
        assert error.exit_code == 2

    def test_a_number_and_none(self, tmp_path: Path) -> None:
        paths = save(tmp_path, [whole(0), whole(1)])
        other = paths[1].rename(tmp_path / "second.ckpt")
        assert "are not the files of 2 experts" in refusal([paths[0], other]).message

    def test_a_file_twice(self, tmp_path: Path) -> None:
        [path] = save(tmp_path, [whole(0)], "{}.ckpt")
        assert "given twice" in refusal([path, path]).message

    def test_several_fine_tuned_ones(self, tmp_path: Path) -> None:
        paths = save(tmp_path / "finetune", [whole(0), whole(1)], "{}.ckpt")
        assert "is one file, and these are 2" in refusal(paths).message


def test_architectures_are_found_by_name() -> None:
    for name, architecture in ARCHITECTURES.items():
        assert find_architecture(name) is architecture
        assert architecture.name == name
    for name, hint in (
        ("resnet5", "did you mean 'resnet50'?"),
        ("vgg", "there are resnet50, deit-s, midas-small"),
    ):
        with pytest.raises(UsageError, match=repr(name)) as caught:
            find_architecture(name)
        assert hint in caught.value.hint


class TestCommand:
    def ends(self, *arguments: str) -> object:
        with pytest.raises(SystemExit) as ended:
            main(["experts", "import", *arguments])
        return ended.value.code

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("--architecture", "midas-smal"), "did you mean 'midas-small'?"),
            (("--architecture", "resnet50", "--out", "mine"), "--overwrite"),
            ((), "--architecture is required"),
        ],
    )
    def test_wrong_input(
        self,
        tmp_path: Path,
        monkeypatch: Patch,
        capsys: Capsys,
        arguments: tuple[str, ...],
        words: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("mine").write_text("mine")
        assert self.ends("0_max5.ckpt", *arguments) == 2
        assert words in capsys.readouterr().err
        assert Path("mine").read_text() == "mine"

    @pytest.mark.parametrize(
        ("file", "message"),
        [("reference.png", "is neither a safetensors file"), ("no/*.ckpt", "there is no file")],
    )
    def test_files_are_looked_at_before_their_network(
        self, file: str, message: str, tmp_path: Path, monkeypatch: Patch, capsys: Capsys
    ) -> None:
        pytest.importorskip("ppap_plugin_classifier", reason="builds the network")
        monkeypatch.setattr("ppap_framework.run.GuideRequest", None)  # which cannot be called
        (tmp_path / "reference.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        assert self.ends(str(tmp_path / file), "--architecture", "resnet50") == 4
        error, _ = capsys.readouterr().err.splitlines()
        assert message in error

    def test_offline(self, tmp_path: Path, monkeypatch: Patch, capsys: Capsys) -> None:
        constants = pytest.importorskip("huggingface_hub.constants")
        pytest.importorskip("ppap_plugin_classifier", reason="builds the network")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        torch.save(low_rank(0), tmp_path / "0_max1.ckpt")
        file = str(tmp_path / "0_max1.ckpt")
        assert self.ends(file, "--architecture", "resnet50", "--offline") == 4
        assert ", and downloads are off" in capsys.readouterr().err
