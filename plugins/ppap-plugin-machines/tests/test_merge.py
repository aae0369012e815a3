"""Experts that are trained in parts, or of two bundles, and the bundle that they become."""

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
from toy_distribution import write_experts
from transfer_toy import Convolutions, Pictures, Square, pictures

from ppap_framework.errors import AssetError, UsageError
from ppap_framework.experts import (
    AdapterConfig,
    experts_dir,
    keep_bundle,
    load_bundle,
    read_bundle_info,
    verify_bundle,
    write_bundle,
)
from ppap_framework.learn import Recipe, distillation, load_teacher, transfer
from ppap_framework.pixels import scaled
from ppap_framework.registry import registry
from ppap_plugin_machines.joining import join
from ppap_plugin_machines.merging import merge

SCHEDULE = Backend().stages[0].schedule
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


def changed(bundle: Path, path: Path, **fields: Any) -> Path:
    """A copy with another description."""
    info, state = verify_bundle(bundle)
    write_bundle(path, state, attrs.evolve(info, **fields))
    return path


@pytest.mark.parametrize(
    ("at", "timesteps", "kept"),
    [
        (50, (0, 33, 50, 66, 100), [(0, 0), (0, 1), (1, 1), (1, 2)]),
        (66, (0, 33, 66, 100), [(0, 0), (0, 1), (1, 2)]),
        (1, (0, 1, 33, 66, 100), [(0, 0), (1, 0), (1, 1), (1, 2)]),
        (99, (0, 33, 66, 99, 100), [(0, 0), (0, 1), (0, 2), (1, 2)]),
    ],
)
def test_joined_experts_read_each_noise_level_as_before(
    trained: Any, tmp_path: Path, every_plugin: None, at: int, timesteps: Any, kept: Any
) -> None:
    # Said only: the diffusion model of this test cannot draw.
    predicted = {"recipe": {"through": "detached"}}
    files = changed(trained(seed=1), tmp_path / "predicted", **predicted), trained()
    out = tmp_path / "out"
    info = join(Backend(), *files, at, out)
    assert (info.timesteps, info.curve) == (timesteps, None)
    assert info == read_bundle_info(out)
    assert info.reads == tuple(("detached", "noisy")[of] for of, _ in kept)
    known = [read_bundle_info(file) for file in files]
    assert info.metrics["experts"] == [known[of].metrics["experts"][k] for of, k in kept]
    x = scaled(pictures()[:2]).float()
    for t in {*timesteps[:-1], *(t - 1 for t in timesteps[1:]), at}:
        level = SCHEDULE.level(torch.tensor([t, t]))
        source = load_bundle(files[t >= at], Convolutions(), Backend())
        with torch.no_grad():
            wanted = source.at(level)(x, level)
            model = Convolutions()
            assert torch.equal(load_bundle(out, model, Backend()).at(level)(x, level), wanted)


def test_what_cannot_be_joined(trained: Any, tmp_path: Path) -> None:
    one, two, out = trained(), trained(seed=1), tmp_path / "out"
    other = changed(two, tmp_path / "other", resolution=(16, 16))
    damaged = Path(shutil.copy(two, tmp_path / "damaged.experts.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    for files, at, fault, kind in (
        ((one, two), 0, "joined at timestep 0", UsageError),
        ((one, two), 100, "joined at timestep 100", UsageError),
        ((one, other), 50, "cannot be joined: resolution was", AssetError),
        ((one, damaged), 50, "damaged", AssetError),
        ((one, trained(experts_of=(1, 2))), 50, "cannot be joined: part was", AssetError),
    ):
        with pytest.raises(kind, match=fault):
            join(Backend(), *files, at, out)
    assert not out.exists()


def test_the_command_that_joins(site: Path, run: Run, tmp_path: Path, every_plugin: None) -> None:
    low = write_experts(tmp_path, "low", through="detached")
    high = write_experts(tmp_path, "high", number=1, seed=3)
    out, how = tmp_path / "both.experts.safetensors", ("--at", "60", "--backend", "toy")
    named = ("experts", "join", low, high, *how, "--out", out)
    assert run(*named) == (0, f"{out}\n", "")
    assert read_bundle_info(out).timesteps == (0, 33, 60, 100)
    refused(run(*named), 2, "is there already", "--overwrite")
    assert '"experts": 3' in run(*named, "--overwrite", "--json").out
    refused(run("experts", "join", low, "no-such-bundle", *how), 4, "no-such-bundle")
    refused(run("experts", "join", low, high, "--at", "60", "--backend", "no"), 3, "'no'")
    kept = experts_dir() / "low-joined.experts.safetensors"
    assert run("experts", "join", keep_bundle(low), high, *how) == (0, f"{kept}\n", "")
    named = ("experts", "join", "low", high, "--at", "0", "--backend", "toy", "--overwrite")
    refused(run(*named), 2, "at timestep 0")
