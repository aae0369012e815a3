"""Several processes of a launch compute what one computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from ppap_framework.errors import PluginError, UsageError
from ppap_framework.processes import Processes, normalized

SCRIPT = Path(__file__).parent / "launched.py"


class TestShares:
    @given(st.integers(1, 40), st.integers(1, 8))
    def test_of_a_batch(self, length: int, count: int) -> None:
        parts = [range(length)[Processes(k, count).share(length)] for k in range(count)]
        assert [i for part in parts for i in part] == list(range(length))
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1

    @given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 8))
    def test_of_batches(self, num: int, size: int, count: int) -> None:
        turns = [turn for k in range(count) for turn in Processes(k, count).turns(num, size)]
        assert sorted(i for turn in turns for i in turn) == list(range(num))
        if count > 1:  # the batches of one process
            assert all(turn.start % size == 0 and len(turn) <= size for turn in turns)


class TestNormalization:
    @pytest.mark.parametrize("momentum", [0.1, None])
    @pytest.mark.parametrize("affine", [True, False])
    @pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5), (4, 3, 5, 2)])
    def test_of_one_process_is_torchs(
        self, shape: tuple[int, ...], affine: bool, momentum: float | None
    ) -> None:
        torch.manual_seed(0)
        kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)]
        one, two = (kind(3, momentum=momentum, affine=affine) for _ in range(2))
        weight = torch.randn(shape)
        for step in range(3):
            x = torch.randn(shape) * 2.0 + step
            a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
            expected, found = one(a), normalized(two, Processes(), b)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            (expected * weight).square().sum().backward()
            (found * weight).square().sum().backward()
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-4)
        for name, value in one.state_dict().items():
            torch.testing.assert_close(two.state_dict()[name], value, rtol=1e-5, atol=1e-6)


class TestRefusals:
    def test_a_launch_without_accelerate(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setitem(sys.modules, "accelerate", None)
        with pytest.raises(PluginError, match="one of 2 processes, and accelerate") as caught:
            Processes.of_launch("cpu")
        assert "ppap-framework[machines]" in caught.value.hint

    def test_more_processes_than_images(self) -> None:
        with pytest.raises(UsageError, match="a batch of 3 cannot be divided among 4"):
            Processes(0, 4).check_batch(3)


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node")
# Without --multi_gpu it starts one process on a machine without GPUs, whatever the number. The
# usual port may be another test's.
ACCELERATE = ("accelerate.commands.launch", "--multi_gpu", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no",
              "--main_process_port", "0", "--num_processes")  # fmt: skip


def launch(
    site: Path,
    out: Path,
    count: int,
    *arguments: str,
    status: int = 0,
    launcher: Sequence[str] = TORCHRUN,
) -> subprocess.CompletedProcess[str]:
    """Start processes by a launcher, or one without; `arguments` are those of Python."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(site), str(SCRIPT.parent), *filter(None, sys.path)]),
        "PPAP_PLUGINS": "ppap-plugin-toy,ppap-plugin-bias,ppap-plugin-lora",
        "OMP_NUM_THREADS": "1",
    }
    if count > 1 and arguments[0] == "-m" and launcher is TORCHRUN:  # or it takes --num for its own
        arguments = ("-m", "--", *arguments[1:])
    done = subprocess.run(
        [sys.executable, *(("-m", *launcher, str(count)) if count > 1 else ()), *arguments],
        cwd=out,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode == 0) == (status == 0), done.stderr
    return done


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def difference(one: Path, other: Path) -> float:
    """The largest relative difference between the losses of two trainings, of 200 iterations and
    of the validations.
    """
    losses, expected = log(other), log(one)
    assert [line.keys() for line in losses] == [line.keys() for line in expected]
    pairs = [
        (line[key], wanted[key])
        for line, wanted in zip(losses, expected, strict=True)
        for key in ("loss", "held_out")
        if key in wanted
    ]
    assert len(pairs) == 220
    return max(abs(loss - wanted) / wanted for loss, wanted in pairs)


@pytest.fixture(scope="module")
def alone(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    assert launch(site, out, 1, str(SCRIPT), str(out), "-1").stdout.startswith("1 22 ")
    return out


def check(out: Path, alone: Path) -> None:
    """The same set and images to the byte; losses, and tensors of experts, but for rounding."""
    for name in ("manifest.json", *(f"shard-0000{k}.tar" for k in range(3))):
        assert (out / "set" / name).read_bytes() == (alone / "set" / name).read_bytes()
    assert (np.load(out / "images.npy") == np.load(alone / "images.npy")).all()
    # Training with both adapters amplifies the rounding of sums, in one process, too.
    rounding = difference(alone / "experts", alone / "reversed")
    together = difference(alone / "experts", out / "experts")
    one_adapter = difference(alone / "lora", out / "lora")
    print(f"{one_adapter:.1e} with one adapter; with two {together:.1e}, rounding {rounding:.1e}")
    assert one_adapter < 1e-4
    assert 0 < rounding < 1e-2
    assert together < 5 * rounding
    [one], [other] = (list((o / "experts").glob("*.experts.safetensors")) for o in (alone, out))
    found = load_file(other)
    assert any("running_var" in name for name in found)
    for name, tensor in load_file(one).items():
        torch.testing.assert_close(found[name], tensor, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("launcher", "count"),
    [
        pytest.param(ACCELERATE, 2, id="accelerate-2"),  # starts torchrun
        pytest.param(TORCHRUN, 2, id="torchrun-2", marks=pytest.mark.slow),
        pytest.param(TORCHRUN, 4, id="torchrun-4", marks=pytest.mark.slow),
    ],
)
def test_as_one_process(
    site: Path, alone: Path, tmp_path: Path, launcher: Sequence[str], count: int
) -> None:
    pytest.importorskip("accelerate")
    done = launch(site, tmp_path, count, str(SCRIPT), str(tmp_path), "-1", launcher=launcher)
    _, _, name, forwards = done.stdout.split(maxsplit=3)
    assert done.stdout.startswith(f"{count} 22 ")
    assert forwards.strip() == "[21]"  # 7 images at 3 steps, whoever drew them
    check(tmp_path, alone)
    assert (tmp_path / "experts" / name).exists()
    calls = json.loads((tmp_path / "set" / "run.json").read_text())["calls"]
    assert sum(call["images"] for call in calls) == 22
    assert len(calls) <= count
    assert json.loads((tmp_path / "experts" / "transfer.json").read_text())["calls"][0][
        "processes"
    ] == (count)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 3)])
def test_the_number_of_processes_may_change(
    site: Path, alone: Path, tmp_path: Path, first: int, then: int
) -> None:
    pytest.importorskip("accelerate")
    launch(site, tmp_path, first, str(SCRIPT), str(tmp_path), "130", status=3)
    assert not list((tmp_path / "experts").glob("*.safetensors"))
    launch(site, tmp_path, then, str(SCRIPT), str(tmp_path), "-1")
    check(tmp_path, alone)


@pytest.mark.slow
def test_commands(site: Path, tmp_path: Path) -> None:
    """One process speaks, and one writes."""
    pytest.importorskip("accelerate")
    ppap = ("-m", "ppap_framework")
    named = ("--backend", "toy", "--num", "10", "--steps", "2", "--batch", "2")
    draw = (*ppap, "synthesize", *named, "--shard", "4", "--out", "set")
    assert launch(site, tmp_path, 2, *draw).stdout == "set\n"
    assert launch(site, tmp_path, 3, *draw, "--overwrite").stdout == "set\n"
    refused = launch(site, tmp_path, 2, *draw, "--seed", "1", status=2)
    assert refused.stderr.count("seed was 0, is now 1") == 1
    guided = (*ppap, "run", *named, "--guider", "colour", "--target", "green", "--threads", "1")
    assert launch(site, tmp_path, 2, *guided, "--out", "two").stdout == "two/grid.png\n"
    assert launch(site, tmp_path, 1, *guided, "--out", "one").stdout == "one/grid.png\n"
    names = sorted(path.name for path in (tmp_path / "one").glob("*.png"))
    assert len(names) == 11
    for name in names:
        one, two = ((tmp_path / folder / name).read_bytes() for folder in ("one", "two"))
        assert one == two
    learn = ("--backend", "toy", "--guider", "colour", "--data", "set", "--learn-batch", "4")
    train = (*ppap, "transfer", *learn, "--adapter", "full", "--iterations", "10", "--out", "x")
    done = launch(site, tmp_path, 2, *train, "--no-keep", "--num-experts", "2")
    assert done.stdout.count(".experts.safetensors") == 1
    assert launch(site, tmp_path, 2, *train, "--no-keep", "--num-experts", "1", status=2)
