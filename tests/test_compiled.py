"""Compiled networks draw what the others draw."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import ppap_framework as ppap
from ppap_framework.errors import PpapError
from ppap_framework.run import plan
from ppap_framework.run.drawing import compiled

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
