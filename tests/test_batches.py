"""As many images at once as memory has room for, and networks that make room for one another."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from glide_files import glide
from torch import Tensor, nn
from toy_distribution import green
from toy_guides import guide_of

import ppap_framework as ppap
from ppap_framework.components import DiffusionBackend, Prediction
from ppap_framework.errors import PpapError, UsageError, is_out_of_memory
from ppap_framework.run import Compute, first_batch, plan
from ppap_framework.run.estimate import available_memory, estimate
from ppap_framework.run.sample import in_batches
from ppap_framework.runtime import Progress
from ppap_plugin_glide.backend import make_glide
from ppap_plugin_glide.options import GlideOptions

AVAILABLE = "ppap_framework.run.estimate.available_memory"
NO_MEMORY = (
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 18.00 GB)"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory"
    ),
)


def test_the_cpu_says_so_in_words() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**62, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("error", NO_MEMORY, ids=str)
class TestHalving:
    def test_goes_on_with_half_as_many(self, error: Exception) -> None:
        drawn = []

        def draw(images: range) -> range:
            drawn.append(len(images))
            if drawn[-1] > 3:
                raise error
            return images

        done = list(in_batches(range(11), 16, draw, halve=True))
        assert drawn == [11, 5, 2, 2, 2, 2, 2, 1]
        assert [n for images in done for n in images] == list(range(11))

    def test_says_so_where_it_may_not(self, error: Exception) -> None:
        def draw(images: range) -> None:
            raise error

        with pytest.raises(PpapError, match="out of memory with 8 images at once") as caught:
            list(in_batches(range(11), 8, draw, halve=False))
        assert "--batch auto" in caught.value.hint
        with pytest.raises(PpapError, match="out of memory with 1 image at once") as caught:
            list(in_batches(range(11), 8, draw, halve=True))
        assert "--batch" not in caught.value.hint


def test_other_errors_are_not_taken_for_it() -> None:
    def draw(images: range) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        list(in_batches(range(2), 2, draw, halve=True))


def test_what_failed_is_gone_before_it_is_tried_again() -> None:
    class Large:
        pass

    left: list[weakref.ref[Large]] = []

    def draw(images: range) -> int:
        if left:
            gc.collect()
            assert left[0]() is None
            return 0
        large = Large()
        left.append(weakref.ref(large))
        raise MemoryError

    assert list(in_batches(range(2), 2, draw, halve=True)) == [0, 0]


class TestAuto:
    def test_images_and_counts_are_those_of_any_batch(self, toy, monkeypatch) -> None:
        """Memory runs out in the middle of a walk; what was done until then counts for nothing."""
        stage: Any = toy.stages[0]
        denoise = type(stage).denoise

        def hungry(self: Any, x_t: Tensor, t: Tensor, condition: Any) -> Prediction:
            if len(x_t) > 2 and int(t[0]) < 50:
                raise torch.OutOfMemoryError("no more")
            return denoise(self, x_t, t, condition)

        guide = green()
        asked: dict[str, Any] = {"num": 7, "steps": 6, "seed": 2, "compare": True}
        wanted = ppap.sample(toy, [guide], **asked, batch=2)
        monkeypatch.setattr(type(stage), "denoise", hungry)
        steps: list[Progress] = []
        found = ppap.sample(toy, [guide], **asked, batch="auto", progress=steps.append)
        assert (found.images - wanted.images).abs().max() < 2 / 255
        assert found.stats.largest_batch < 3
        assert found.stats.guidance.denoiser_forwards == 7 * 6
        assert found.stats.guidance.guides[0].forwards == 7 * 6
        assert steps[-1] == Progress("drawing", 2 * 7 * 6, 2 * 7 * 6)
        with pytest.raises(PpapError, match="with 7 images at once: OutOfMemoryError: no more"):
            ppap.sample(toy, [guide], **asked, batch=7)

    def test_begins_with_what_fits(self, toy, monkeypatch) -> None:
        run = plan(toy, (), 100, compute=Compute(batch="auto", device="cpu"))
        taken = estimate(run)

        def with_free(size: float | None) -> int:
            monkeypatch.setattr(AVAILABLE, lambda device: size)
            return first_batch(run)

        assert with_free((taken.weights + 12.5 * taken.memory) / 0.7) == 12
        assert with_free(0) == 1
        assert with_free(2**40) == 32
        assert with_free(None) == 8
        gpu = attrs.evolve(run, device=torch.device("cuda"))  # which nothing is put on here
        monkeypatch.setattr(AVAILABLE, lambda device: 2**40)
        assert first_batch(gpu) == 100
        assert first_batch(plan(toy, (), 5, compute=Compute(batch=8))) == 5

    def test_the_machine_says_what_is_free(self) -> None:
        free = available_memory(torch.device("cpu"))
        assert free is not None
        assert 2**20 < free < 2**50

    def test_not_if_low_order_bits_matter(self, toy: DiffusionBackend, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="cannot be 'auto' here"):
            ppap.synthesize(toy, out=tmp_path / "set", num=4, batch="auto")


class TestOffload:
    def test_what_is_idle_is_elsewhere(self, tmp_path, monkeypatch) -> None:
        backend = make_glide(GlideOptions(), glide(tmp_path))
        base, upsampler = (stage.network for stage in backend.stages)
        guide = guide_of(
            lambda images, level: images.mean((2, 3)),
            lambda seen, wanted: (seen - wanted).square().mean(1),
            torch.zeros(1, 3),
        )
        asked: dict[str, Any] = {"num": 3, "batch": 2, "steps": 2, "prompt": "a cat"}
        plain = ppap.sample(backend, [guide], **asked, device="cpu")
        names: dict[nn.Module, str] = {base: "base", upsampler: "upsampler", guide.model: "guide"}
        there: set[str] = set()
        seen: list[tuple[str, frozenset[str]]] = []

        def moved(network: nn.Module, place: Any) -> nn.Module:
            (there.discard if place == "cpu" else there.add)(names[network])
            return network

        def looking(name: str, call: Any) -> Any:
            def looked(*given: Any, **more: Any) -> Any:
                seen.append((name, frozenset(there)))
                return call(*given, **more)

            return looked

        monkeypatch.setattr(nn.Module, "to", moved)  # where "cpu" is away, and the device is not
        for network, name in names.items():
            call = "forward" if name == "guide" else "predict"
            monkeypatch.setattr(network, call, looking(name, getattr(network, call)))
        offloaded = ppap.sample(backend, [guide], **asked, offload=True, device="cpu")
        assert torch.equal(plain.images, offloaded.images)
        assert all(name in at_once for name, at_once in seen)
        assert {at_once for _, at_once in seen} == {
            frozenset({"base", "guide"}), frozenset({"upsampler"}), frozenset({"guide"}),
        }  # fmt: skip
        assert there == set()
