"""How images are computed: batches that memory has room for, networks that make room for
others or are compiled, and devices. `meta`, whose tensors have no numbers, stands for devices.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from glide_files import glide
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toy_distribution import green
from toy_guides import guide_of

import ppap_framework as ppap
from ppap_framework.components import DiffusionBackend, Prediction
from ppap_framework.diffusion import Step, ddim_step, ddpm_step, trajectory
from ppap_framework.errors import PpapError, UsageError, is_out_of_memory
from ppap_framework.guidance import EnergyGuidance
from ppap_framework.run import Compute, Sampling, first_batch, plan
from ppap_framework.run.drawing import compiled
from ppap_framework.run.estimate import available_memory, estimate
from ppap_framework.run.sample import in_batches
from ppap_framework.runtime import Progress, find_device
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

        done = list(in_batches(11, 16, draw, halve=True))
        assert drawn == [11, 5, 2, 2, 2, 2, 2, 1]
        assert [n for images in done for n in images] == list(range(11))

    def test_says_so_where_it_may_not(self, error: Exception) -> None:
        def draw(images: range) -> None:
            raise error

        with pytest.raises(PpapError, match="out of memory with 8 images at once") as caught:
            list(in_batches(11, 8, draw, halve=False))
        assert "--batch auto" in caught.value.hint
        with pytest.raises(PpapError, match="out of memory with 1 image at once") as caught:
            list(in_batches(11, 8, draw, halve=True))
        assert "--batch" not in caught.value.hint


def test_other_errors_are_not_taken_for_it() -> None:
    def draw(images: range) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        list(in_batches(2, 2, draw, halve=True))


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

    assert list(in_batches(2, 2, draw, halve=True)) == [0, 0]


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
        with pytest.raises(PpapError, match="out of memory with 7 images at once: no more"):
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


ASKED: dict[str, Any] = {"num": 3, "batch": 3, "steps": 8, "seed": 1, "device": "cpu"}


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Calls of networks that are compiled, which here is noting that they are called."""
    calls: list[str] = []

    def noting(forward: Any) -> Any:
        def noted(*given: Any, **more: Any) -> Any:
            calls.append(type(forward.__self__).__name__)
            return forward(*given, **more)

        return noted

    monkeypatch.setattr(torch, "compile", noting)
    return calls


def test_both_networks_are_compiled_and_left_as_they_were(called, caplog) -> None:
    backend, guide = ppap.backend("adm"), ppap.guide("classifier", target="red cube")
    result = ppap.sample(backend, [guide], **ASKED, compile=True)
    assert called.count("UNetModel") == 8
    assert called.count("ResNet") == 8 + 1  # and the last look
    assert "not compiled" not in caplog.text
    for network in (backend.stages[0].network, guide.model.network):
        assert "forward" not in vars(network)
    assert torch.equal(result.images, ppap.sample(backend, [guide], **ASKED).images)
    assert len(called) == 8 + 8 + 1


def test_both_networks_of_glide(called: list[str], caplog: pytest.LogCaptureFixture) -> None:
    backend, asked = ppap.backend("glide"), {**ASKED, "prompt": "a red cube"}
    result = ppap.sample(backend, **asked, compile=True)
    assert called.count("Text2ImUNet") == 8
    assert called.count("SuperResText2ImUNet") > 0
    assert "not compiled" not in caplog.text
    assert torch.equal(result.images, ppap.sample(backend, **asked).images)


def test_says_after_a_step_where_it_has_no_effect(called, monkeypatch, caplog) -> None:
    backend = ppap.backend("adm")
    stage = backend.stages[0]

    def uncalled(x_t: Any, t: Any, condition: Any) -> Any:
        network: Any = stage.network
        return stage._meaning(type(network).forward(network, x_t, t, None), x_t, t)  # type: ignore[attr-defined]

    monkeypatch.setattr(stage, "denoise", uncalled)
    told: list[int] = []
    ppap.sample(
        backend,
        **ASKED,
        compile=True,
        progress=lambda _: told.append(caplog.text.count("stage 'base' is not compiled")),
    )
    assert told == [1] * 8
    assert called == []
    assert caplog.text.count("is not compiled") == 1


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    backend = ppap.backend("adm")
    network = backend.stages[0].network
    monkeypatch.setattr(config.cpp, "cxx", ("/nowhere/g++",))
    small = nn.Linear(2, 2)
    monkeypatch.setattr(type(network), "forward", lambda self, x, t, y: small(x.mT).mT)
    torch._dynamo.reset()
    with pytest.raises(PpapError, match="cannot be compiled") as caught, compiled(plan(backend)):
        network(torch.zeros(1, 2, 2), None, None)
    assert "--compile" in caught.value.hint
    assert "forward" not in vars(network)


@pytest.mark.slow  # compiles for minutes
def test_images_are_the_same_with_experts_merged_meanwhile() -> None:
    backend = ppap.backend("adm")
    guide = ppap.guide("classifier", target="red cube", experts="auto")
    asked = {**ASKED, "num": 4}  # the last batch is smaller
    plain = ppap.sample(backend, [guide], **asked, compare=True)
    found = ppap.sample(backend, [guide], **asked, compare=True, compile=True)
    assert (found.images - plain.images).abs().max() < 2 / 255
    assert plain.naive is not None
    # What experts see differs from what the network without them sees by far more than that.
    assert (plain.images - plain.naive.images).abs().max() > 0.1


NAMES = ("classifier", "adm-classifier", "depth", "segmentation")


class Wide(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Which operations gave float64 on the device: MPS has none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        on_device = [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.is_meta]
        self.seen += len(on_device)
        self.found += [str(func) for t in on_device if t.dtype == torch.float64]
        return out


@pytest.mark.parametrize(
    ("backend", "prompt", "guides"), [("adm", None, NAMES), ("glide", "a red cube", ())]
)
@pytest.mark.parametrize(
    ("through", "step"), [("noisy", ddpm_step), ("clean", partial(ddim_step, eta=0.5))]
)
def test_devices_do_not_mix_and_schedules_stay_on_the_cpu(
    backend: str,
    prompt: str | None,
    guides: tuple[str, ...],
    through: Any,
    step: Step,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # not on meta
    aimed = [ppap.guide(name, experts="none") for name in guides]
    sampling = Sampling(steps=2, prompt=prompt, through=through, stage="base")
    run = plan(ppap.backend(backend), aimed, 2, sampling)
    stage, looking = copy.deepcopy((run.stage, run.guides))
    stage.network.to("meta")
    for guide in looking:
        guide.model.to("meta")
    # As it is kept on MPS; elsewhere it is float64.
    stage._meaning._alpha_sigma = stage._meaning._alpha_sigma.to("meta", torch.float32)  # type: ignore[attr-defined]
    condition = run.backend.encode(sampling.prompts(range(2)), 2)
    with Wide() as wide:
        x = torch.zeros(2, *stage.image_shape, device="meta")
        for state in trajectory(
            stage,
            run.process,
            x,
            torch.zeros,
            condition=condition,
            step=step,
            guidance=EnergyGuidance(looking, through) if looking else None,
        ):
            assert state.x.is_meta
    assert wide.seen > 100
    assert wide.found == []


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("cude", "device 'cude' cannot be used", "use auto"),
        ("cuda:x", "device 'cuda:x' cannot be used", "use auto"),
        ("", "device '' cannot be used", "use auto"),
        ("meta", "device 'meta' cannot be used: it is not here, or computes nothing", " or cpu"),
        ("hpu", "device 'hpu' cannot be used: it is not here, or computes nothing", " or cpu"),
        pytest.param(
            *("mps", "device 'mps' cannot be used: it is not here", " or cpu"),
            marks=pytest.mark.skipif(torch.backends.mps.is_available(), reason="it is here"),
        ),
        ("cuda:99", "device 'cuda:99' cannot be used", " or cpu"),
        ("xla", "device 'xla' cannot be used", " or cpu"),
    ],
)
def test_a_device_that_is_not_there(name: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_device(name)
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("cuda", "mps", "wanted"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_takes_the_quickest(cuda: bool, mps: bool, wanted: str, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert find_device("auto") == torch.device(wanted)
    assert find_device(torch.device("cpu")) == torch.device("cpu")
