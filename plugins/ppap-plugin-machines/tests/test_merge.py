"""Experts that are trained in parts, and the bundle that they become."""

from __future__ import annotations

import functools
import shutil
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from commands import Run, refused
from experts_toy import Backend
from safetensors.torch import load_file
from transfer_toy import Convolutions, Pictures, Square, pictures

from ppap_framework.errors import AssetError, UsageError
from ppap_framework.experts import (
    AdapterConfig,
    load_bundle,
    read_bundle_info,
    verify_bundle,
    write_bundle,
)
from ppap_framework.learn import Recipe, distillation, load_teacher, transfer
from ppap_framework.registry import registry
from ppap_plugin_machines.merging import merge

MODULE = sys.modules["ppap_framework.learn.transfer"]  # the package calls the function so
DATA = Pictures({"base": pictures()})
LEARN: dict[str, Any] = {
    "num_experts": 3,
    "iterations": 24,
    "batch": 4,
    "validate_every": 4,
    "adapters": [("lora", {"rank": 2, "targets": ("1", "7")}), ("bias", {})],
    "keep": False,
    "calibrate": False,
    "device": "cpu",
}


def learn(out: Path, **changes: Any) -> Path:
    guide = load_teacher(Convolutions(), Square())
    return transfer(Backend(), guide, DATA, out=out, **{**LEARN, **changes}).path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The file of a training, with its settings."""
    folder = tmp_path_factory.mktemp("parts")

    @functools.cache
    def bundle(**changes: Any) -> Path:
        with pytest.MonkeyPatch.context() as patched:
            patched.delenv("PPAP_PLUGINS", raising=False)  # of other tests of the module
            registry.cache_clear()
            patched.setattr(distillation, "_STATISTICS_BATCHES", 2)
            patched.setattr(MODULE, "draw_figures", lambda *_: [])  # takes longer than a training
            made = learn(folder / repr(changes).replace("/", ""), **changes)
        registry.cache_clear()
        return made

    return bundle


class TestMerging:
    @pytest.mark.parametrize("shared", [0.5, 0.0])
    @pytest.mark.parametrize("parts", [1, 2, 3])
    def test_is_what_one_machine_makes(
        self, trained: Any, tmp_path: Path, shared: float, parts: int
    ) -> None:
        files = [trained(shared=shared, experts_of=(k + 1, parts)) for k in range(parts)]
        whole, merged = trained(shared=shared), tmp_path / "all.experts.safetensors"
        merge(files[::-1], merged)
        assert merged.read_bytes() == whole.read_bytes()
        one, other = load_file(whole), load_file(files[0])
        assert any(not torch.equal(one[name], other[name]) for name in one) == (parts > 1)

    def test_a_part_steers_nothing(self, every_plugin: None, trained: Any) -> None:
        part = trained(experts_of=(2, 2))
        assert read_bundle_info(part).part == (1,)
        with pytest.raises(AssetError, match="only 1 of 3 trained experts") as caught:
            load_bundle(part, Convolutions())
        assert "ppap experts merge" in caught.value.hint

    def test_of_other_trainings(self, trained: Any, tmp_path: Path) -> None:
        one, two, out = trained(experts_of=(1, 2)), trained(experts_of=(2, 2)), tmp_path / "out"
        other = trained(experts_of=(2, 2), seed=1)
        for files, fault in (
            ([one, other], "different trainings: recipe.seed was 0, is now 1"),
            ([one], "no part holds 1"),
            ([one, two, one], "expert 0 is in both"),
            ([one, trained()], "is a whole bundle"),
        ):
            with pytest.raises(AssetError, match=fault):
                merge(files, out)
        damaged = Path(shutil.copy(two, tmp_path / "damaged.experts.safetensors"))
        content = bytearray(damaged.read_bytes())
        content[-1] ^= 1
        damaged.write_bytes(content)
        with pytest.raises(AssetError, match="damaged"):
            merge([one, damaged], out)
        assert not out.exists()

    def test_names_whose_numbers_begin_alike(self, trained: Any, tmp_path: Path) -> None:
        """Expert 1's tensors are not expert 10's."""
        info, _ = verify_bundle(trained(experts_of=(1, 1)))
        n, parts = 12, []
        many = attrs.evolve(
            info,
            boundaries=[-float(k) for k in range(n - 1)],
            timesteps=range(n + 1),
            expert_parameters=[1] * n,
            metrics={"experts": [{"held_out": float(k)} for k in range(n)]},
            adapters=[AdapterConfig(name="full", options={})],
        )
        for part in ((1,), tuple(k for k in range(n) if k != 1)):
            tensors = {
                f"full/{k}.a": torch.tensor([float(k if k in part else -1)]) for k in range(n)
            }
            parts.append(tmp_path / f"{len(parts)}.experts.safetensors")
            write_bundle(parts[-1], tensors, attrs.evolve(many, part=part))
        merge(parts, tmp_path / "all.experts.safetensors")
        _, state = verify_bundle(tmp_path / "all.experts.safetensors")
        assert {name: x.item() for name, x in state.items()} == {f"full/{k}.a": k for k in range(n)}


class TestRecipe:
    @pytest.mark.parametrize("part", [(0, 2), (3, 2), (1,), 2, ("1", "2"), (1.0, 2)])
    def test_what_is_no_part(self, part: Any) -> None:
        [error] = Recipe(experts_of=part).problems()
        assert "experts_of must be k of n" in error.message

    def test_a_chain_has_no_parts(self) -> None:
        [error] = Recipe(experts_of=(1, 2), chain=True).problems()
        assert "chain" in error.message

    def test_more_parts_than_experts(self, trained: Any) -> None:
        with pytest.raises(UsageError, match="3 experts have no part 4/5"):
            trained(experts_of=(4, 5))

    def test_a_part_goes_on_as_the_same_part(
        self, every_plugin: None, trained: Any, tmp_path: Path
    ) -> None:
        folder = shutil.copytree(trained(experts_of=(1, 2)).parent, tmp_path / "part")
        with pytest.raises(UsageError, match="experts_of was"):
            learn(folder, experts_of=(2, 2))


class TestCommand:
    def test_merges_folders(self, trained: Any, run: Run) -> None:
        folders = [trained(experts_of=(k, 2)).parent for k in (1, 2)]
        out = "all.experts.safetensors"
        assert run("experts", "merge", *folders, "--out", out) == (0, f"{out}\n", "")
        assert Path(out).read_bytes() == trained().read_bytes()
        refused(run("experts", "merge", *folders, "--out", out), 2, "already", "--overwrite")
        assert run("experts", "merge", *folders, "--out", out, "--overwrite").code == 0
        refused(run("experts", "merge", *folders, "--out", "all"), 2, "cannot be called 'all'")
        refused(run("experts", "merge", "."), 4, "is a whole bundle")
        refused(run("experts", "merge", "/none"), 4, "there is no part '/none'")

    def test_experts_of_that_cannot_be_read(self, run: Run) -> None:
        named = ("--backend", "toy", "--guider", "colour", "--data", "x", "--out", "y")
        refused(run("transfer", *named, "--experts-of", "two"), 2, "--experts-of 'two'", "2/5")

    def test_five_machines_that_share_nothing_but_what_is_carried(
        self, every_plugin: None, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each has a folder and a cache of its own; three are given the set, two draw it."""
        monkeypatch.setattr(MODULE, "draw_figures", lambda *_: [])
        named = ("--backend", "toy")
        draw = ("--num", "24", "--steps", "2")
        learn = ("--guider", "colour", "--adapter", "full", "--num-experts", "5")
        learn = (*named, *learn, "--iterations", "40", "--learn-batch", "4", "--no-keep")

        def machine(name: str) -> Path:
            home = tmp_path / name
            home.mkdir()
            monkeypatch.chdir(home)
            monkeypatch.setenv("PPAP_CACHE_DIR", str(home / "cache"))
            return home

        whole = machine("whole")
        assert run("synthesize", *named, *draw, "--out", "data").code == 0
        train = ("transfer", *learn, "--data", "data", "--out", "experts")
        assert run(*train, "--no-calibrate").code == 0
        for k in range(1, 6):
            home, part = machine(f"machine-{k}"), ("--experts-of", f"{k}/5")
            if k > 3:
                assert run("adapt", *learn, *draw, *part, "--out", "experts").code == 0
                continue
            shutil.copytree(whole / "data", home / "data")
            assert run(*train, *part).code == 0
        collected = machine("collected")
        for k in range(1, 6):
            shutil.move(tmp_path / f"machine-{k}" / "experts", collected / f"part-{k}")
        parts, out = [f"part-{k}" for k in (3, 1, 5, 2, 4)], "all.experts.safetensors"
        assert run("experts", "merge", *parts, "--out", out) == (0, f"{out}\n", "")
        [one] = (whole / "experts").glob("*.experts.safetensors")
        merged = Path(out).read_bytes()
        assert merged == one.read_bytes()
        state = load_file(out)
        experts = {name.split("/")[1].split(".")[0] for name in state}
        assert experts == set("01234")
        assert len({torch.cat([x.flatten() for n, x in sorted(state.items()) if f"/{k}." in n])
                    .numpy().tobytes() for k in range(5)}) == 5  # fmt: skip
        refused(run("experts", "merge", *parts[1:], "--out", "four"), 2, "cannot be called")
        missing = run("experts", "merge", *parts[1:], "--out", "four.experts.safetensors")
        refused(missing, 4, "no part holds 2")
