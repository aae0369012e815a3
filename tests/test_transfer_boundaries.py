"""Experts that begin where the data propose it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from experts_toy import SCHEDULE, Backend
from transfer_toy import Convolutions, Pictures, Square, anatomy, pictures, stopping

from ppap_framework.diagnosis import disagreement, evenly_spaced, propose_boundaries, propose_number
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.experts import BundleFile, NoiseRanges
from ppap_framework.learn import Recipe, distillation, load_teacher, transfer
from ppap_framework.learn.plan import TransferPlan

MODULE = sys.modules["ppap_framework.learn.transfer"]
RECIPE = Recipe(iterations=24, batch=6, held_out=0.25, validate_every=4, seed=3)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(distillation, "_STATISTICS_BATCHES", 2)
    monkeypatch.setattr(MODULE, "plot_losses", lambda *_: None)
    monkeypatch.setenv("PPAP_CACHE_DIR", str(tmp_path / "cache"))


def run(out: Path, model: Convolutions | None = None, **changes: Any) -> BundleFile:
    settings: dict[str, Any] = {
        "backend": Backend(),
        "guide": load_teacher(model or Convolutions(), Square()),
        "data": Pictures({"base": pictures()}),
        "boundaries": "auto",
        "adapters": (("bias", {}),),
        "recipe": RECIPE,
        "keep": False,
        "device": "cpu",
        **changes,
    }
    return transfer(out=out, **settings)


def settings(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "transfer.json").read_text())["settings"]
    return found


def curve() -> tuple[list[int], list[float]]:
    """As the training should find it."""
    timesteps = evenly_spaced(SCHEDULE, 21)
    model = Convolutions()
    return timesteps, disagreement(model, Square(), SCHEDULE, timesteps, pictures(), seed=3)


@pytest.mark.parametrize("number", [None, 2, 6])
def test_they_begin_where_the_curve_proposes(tmp_path: Path, number: int | None) -> None:
    timesteps, values = curve()
    model = Convolutions().train()
    before = anatomy(model)
    bundle = run(tmp_path, model, num_experts=number)
    assert anatomy(model) == before
    experts = number or propose_number(timesteps, values, 100)
    starts = propose_boundaries(timesteps, values, 100, experts)
    assert starts != [k * 100 // experts for k in range(1, experts)]  # which would prove nothing
    info = bundle.info
    assert info.timesteps == (0, *starts, 100)
    assert info.ranges == NoiseRanges.from_timesteps(SCHEDULE, starts)
    assert bundle.name == f"backend-convolutions-{experts}"
    said = settings(tmp_path)
    assert said["proposal"]["timesteps"] == timesteps
    assert said["proposal"]["disagreement"] == pytest.approx(values, rel=1e-5)
    assert said["proposal"]["images"] == 20


def test_the_teacher_looks_at_the_last_stage(tmp_path: Path) -> None:
    small, large = pictures(), pictures(seed=1)
    run(tmp_path, data=Pictures({"base": small, "large": large}))
    timesteps = evenly_spaced(SCHEDULE, 21)
    wanted = disagreement(Convolutions(), Square(), SCHEDULE, timesteps, small, large, seed=3)
    assert settings(tmp_path)["proposal"]["disagreement"] == pytest.approx(wanted, rel=1e-5)


class TestResuming:
    def test_keeps_the_curve_without_another_look(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = run(tmp_path / "whole").path.read_bytes()

        out = tmp_path / "out"
        with pytest.raises(KeyboardInterrupt):
            run(out, progress=stopping(15))
        said = settings(out)

        def measured(*_: Any, **__: Any) -> None:
            raise AssertionError("it was measured before")

        monkeypatch.setattr(TransferPlan, "measure", measured)
        assert run(out).path.read_bytes() == whole
        assert settings(out) == said
        assert run(out).path.read_bytes() == whole  # complete

    def test_of_another_kind_is_refused(self, tmp_path: Path) -> None:
        run(tmp_path, num_experts=2)
        for changes in (
            {"boundaries": None, "num_experts": 2},
            {"num_experts": 3},
            {"data": Pictures({"base": pictures(seed=5)}), "num_experts": 2},
        ):
            with pytest.raises(UsageError, match="other settings"):
                run(tmp_path, **changes)
        assert run(tmp_path, boundaries=[50], overwrite=True).info.timesteps == (0, 50, 100)
        with pytest.raises(UsageError, match="other settings"):
            run(tmp_path, num_experts=2)

    def test_of_a_record_that_makes_no_sense(self, tmp_path: Path) -> None:
        run(tmp_path)
        path = tmp_path / "transfer.json"
        said = json.loads(path.read_text())
        said["settings"]["proposal"] = {"images": 3}
        path.write_text(json.dumps(said))
        with pytest.raises(AssetError, match="proposal"):
            run(tmp_path)
        run(tmp_path, overwrite=True)


def test_too_few_iterations_for_as_many_experts_as_there_may_be(tmp_path: Path) -> None:
    few = Recipe(iterations=12, batch=6, held_out=0.25)
    with pytest.raises(UsageError, match="6 iterations cannot be shared out among 10 experts"):
        run(tmp_path / "out", recipe=few)
    assert not (tmp_path / "out").exists()
    assert len(run(tmp_path / "out", recipe=few, num_experts=4).info) == 4


def test_a_word_that_is_no_boundary(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="boundaries must be timesteps or auto, not even"):
        run(tmp_path, boundaries="even")


def test_labels_do_not_matter(tmp_path: Path) -> None:
    """What a supervised expert has to learn is measured by the untouched network as well."""
    import numpy as np

    from ppap_framework.data import LabelledImages

    images = pictures().permute(0, 2, 3, 1).numpy()
    labels = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).numpy()
    np.savez(tmp_path / "set.npz", images=images, labels=labels)
    run(tmp_path / "out", data=LabelledImages(tmp_path / "set.npz"))
    _, values = curve()
    said = settings(tmp_path / "out")["proposal"]["disagreement"]
    assert said == pytest.approx(values, rel=1e-5)
