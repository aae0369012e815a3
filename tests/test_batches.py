"""As many images at once as memory has room for, and networks that make room for one another."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from glide_files import glide
from torch import Tensor, nn
from toy_distribution import install, plugged

import ppap_framework as ppap
from ppap_framework.components import DiffusionBackend, Prediction
from ppap_framework.data import synthesize
from ppap_framework.errors import PpapError, UsageError, is_out_of_memory
from ppap_framework.run import Progress, Settings, estimate, first_batch, plan
from ppap_framework.run import _batches as batches
from ppap_framework.run.batches import in_batches
from ppap_framework.run.in_use import Placement
from ppap_plugin_glide.backend import make_glide
from ppap_plugin_glide.options import GlideOptions

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

        def draw(rows: slice) -> slice:
            drawn.append(rows.stop - rows.start)
            if drawn[-1] > 3:
                raise error
            return rows

        done = list(in_batches(11, 16, draw, halve=True))
        assert drawn == [11, 5, 2, 2, 2, 2, 2, 1]
        assert [n for rows in done for n in range(rows.start, rows.stop)] == list(range(11))

    def test_says_so_where_it_may_not(self, error: Exception) -> None:
        def draw(rows: slice) -> None:
            raise error

        with pytest.raises(PpapError, match="out of memory with 8 images at once") as caught:
            list(in_batches(11, 8, draw, halve=False))
        assert "--batch auto" in caught.value.hint
        with pytest.raises(PpapError, match="out of memory with 1 image at once") as caught:
            list(in_batches(11, 8, draw, halve=True))
        assert "--batch" not in caught.value.hint


def test_other_errors_are_not_taken_for_it() -> None:
    def draw(rows: slice) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        list(in_batches(2, 2, draw, halve=True))


def test_what_failed_is_gone_before_it_is_tried_again() -> None:
    class Large:
        pass

    left: list[weakref.ref[Large]] = []

    def draw(rows: slice) -> int:
        if left:
            gc.collect()
            assert left[0]() is None
            return 0
        large = Large()
        left.append(weakref.ref(large))
        raise MemoryError

    assert list(in_batches(2, 2, draw, halve=True)) == [0, 0]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DiffusionBackend]:
    with plugged(install(tmp_path_factory.mktemp("toy") / "site")):
        yield ppap.backend("toy")


class TestAuto:
    def test_images_and_counts_are_those_of_any_batch(
        self, toy: DiffusionBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Memory runs out in the middle of a walk; what was done until then counts for nothing."""
        stage: Any = toy.stages[0]
        denoise = type(stage).denoise

        def hungry(self: Any, x_t: Tensor, t: Tensor, condition: Any) -> Prediction:
            if len(x_t) > 2 and int(t[0]) < 50:
                raise torch.OutOfMemoryError("no more")
            return denoise(self, x_t, t, condition)

        guide = ppap.guide("colour", target="green", scale=40.0)
        asked: dict[str, Any] = {"num": 7, "steps": 6, "seed": 2, "compare": True}
        wanted = ppap.sample(toy, [guide], **asked, batch=2)
        monkeypatch.setattr(type(stage), "denoise", hungry)
        steps: list[Progress] = []
        found = ppap.sample(toy, [guide], **asked, batch="auto", progress=steps.append)
        assert (found.images - wanted.images).abs().max() < 2 / 255
        assert found.stats.most_at_once < 3
        assert found.stats.guidance.denoiser_forwards == 7 * 6
        assert found.stats.guidance.guides[0].forwards == 7 * 6
        assert steps[-1] == Progress(steps=2 * 7 * 6, of=2 * 7 * 6)
        with pytest.raises(PpapError, match="out of memory with 7 images at once: no more"):
            ppap.sample(toy, [guide], **asked, batch=7)

    def test_begins_with_what_fits(
        self, toy: DiffusionBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = plan(toy, (), Settings(num=100, batch="auto", device="cpu"))
        taken = estimate(run)

        def with_free(size: float | None) -> int:
            monkeypatch.setattr(batches, "available_memory", lambda device: size)
            return first_batch(run)

        assert with_free((taken.weights + 12.5 * taken.memory) / 0.7) == 12
        assert with_free(0) == 1
        assert with_free(2**40) == 32
        assert with_free(None) == 8
        gpu = attrs.evolve(run, device=torch.device("cuda"))  # which nothing is put on here
        monkeypatch.setattr(batches, "available_memory", lambda device: 2**40)
        assert first_batch(gpu) == 100
        assert first_batch(attrs.evolve(run, settings=Settings(num=5, batch=8))) == 5

    def test_the_machine_says_what_is_free(self) -> None:
        free = batches.available_memory(torch.device("cpu"))
        assert free is not None
        assert 2**20 < free < 2**50

    def test_not_where_last_bits_matter(self, toy: DiffusionBackend, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="in blocks of 'auto'"):
            synthesize(toy, out=tmp_path / "set", num=4, block="auto")  # type: ignore[arg-type]


class TestOffload:
    def test_what_is_idle_is_elsewhere(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        backend = make_glide(GlideOptions(), glide(tmp_path))
        base, upsampler = (stage.network for stage in backend.stages)
        model = ppap.guide(_Brightness(), loss=_distance, target=torch.zeros(1, 3))
        names = {id(base): "base", id(upsampler): "upsampler", id(model.guide.model): "guide"}
        where: dict[str, str] = dict.fromkeys(names.values(), "cpu")
        seen: list[tuple[str, set[str]]] = []
        move = nn.Module.to

        def moved(self: nn.Module, device: Any) -> nn.Module:
            where[names[id(self)]] = str(device)
            return self

        def looking(name: str, call: Any) -> Any:
            def looked(*given: Any, **more: Any) -> Any:
                seen.append((name, {n for n, place in where.items() if place == "device"}))
                return call(*given, **more)

            return looked

        monkeypatch.setattr(nn.Module, "to", moved)
        for network, name in ((base, "base"), (upsampler, "upsampler")):
            monkeypatch.setattr(network, "predict", looking(name, network.predict))
        monkeypatch.setattr(
            model.guide.model, "forward", looking("guide", model.guide.model.forward)
        )
        real = Placement.__init__

        def elsewhere(self: Any, device: Any, *, offload: bool) -> None:
            real(self, "device", offload=offload)  # type: ignore[arg-type]  # nothing goes there

        monkeypatch.setattr(Placement, "__init__", elsewhere)
        offloaded = ppap.sample(
            backend, [model], num=3, batch=2, steps=2, prompt="a cat", offload=True, device="cpu"
        )
        assert {name for name, _ in seen} == {"base", "upsampler", "guide"}
        for name, there in seen:
            assert there in ({"base", "guide"}, {"upsampler"}, {"guide"})
            assert name in there
        assert ("base", {"base", "guide"}) in seen
        assert set(where.values()) == {"cpu"}
        monkeypatch.setattr(nn.Module, "to", move)
        monkeypatch.setattr(Placement, "__init__", real)
        plain = ppap.sample(backend, [model], num=3, batch=2, steps=2, prompt="a cat", device="cpu")
        assert torch.equal(plain.images, offloaded.images)


def _distance(seen: Tensor, wanted: Tensor) -> Tensor:
    return (seen - wanted).square().mean(1)


class _Brightness(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))
