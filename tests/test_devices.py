"""What can be known of other devices without having one: `meta`, whose tensors have no numbers,
stands for them.
"""

from __future__ import annotations

import contextlib
import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ppap_framework as ppap
from ppap_framework.diffusion import Step, ddim_step, ddpm_step, trajectory
from ppap_framework.errors import UsageError
from ppap_framework.guidance import EnergyGuidance
from ppap_framework.run import Sampling, plan
from ppap_framework.runtime import find_device

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
        for found, _ in trajectory(
            stage,
            run.process,
            x,
            torch.zeros,
            condition=condition,
            step=step,
            guidance=EnergyGuidance(looking) if looking else None,
        ):
            assert found.is_meta
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
