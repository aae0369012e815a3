"""Calibration: what is judged, what is written, and what cannot be calibrated."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from reaper import Death, Reaper
from safetensors.torch import load_file
from torch import Tensor, nn
from toy_distribution import MEANS, install, plugged
from toy_experts import write_experts
from transfer_toy import Means, Pictures, Square, anatomy, pictures

import ppap_framework as ppap
from ppap_framework.checkpoints import save_checkpoint
from ppap_framework.cli import main
from ppap_framework.components import Target, TargetInput
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.experts import read_bundle_info, rescale_bundle, verify_bundle
from ppap_framework.learn import Recipe, adapt, calibrate, load_teacher, transfer
from ppap_framework.learn import calibration as module
from ppap_framework.registry import registry
from ppap_framework.run import Compute, LoadedBackend
from ppap_framework.runtime import Progress

QUICK = {"num": 8, "steps": 5, "device": "cpu"}
RECIPE = Recipe(iterations=12, shared=0.0, batch=4, held_out=0.2, validate_every=6)
NAME = "toybackend-seen-2"


class Seen(Means):
    """Two numbers; a picture stands for what is seen in it."""

    def target(self, given: TargetInput) -> Target:
        with torch.no_grad():
            return Target(value=self(given.pixels()[None]), label="seen")


@pytest.fixture(scope="module", autouse=True)
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with plugged(install(tmp_path_factory.mktemp("toy") / "site")) as folder:
        yield folder


@pytest.fixture(autouse=True)
def place(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPAP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PPAP_PLUGINS", "ppap-plugin-toy,ppap-plugin-bias")
    monkeypatch.setattr(
        sys.modules["ppap_framework.learn.transfer"], "plot_losses", lambda *_: None
    )
    registry.cache_clear()
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def toy(site: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedBackend:
    """A backend whose pictures are of all colours."""
    state = load_file(site / "ppap_plugin_toy" / "toy-8.safetensors")
    state = {"mean": state["mean"], "spread": torch.tensor(1.0)}
    path = tmp_path_factory.mktemp("wide") / "wide.safetensors"
    save_checkpoint(path, state, {"size": 8, "timesteps": 100})
    return ppap.backend("toy", checkpoint=path)


def learned(backend: Any, out: Path, model: nn.Module | None = None, **changes: Any) -> Path:
    """A bundle of two experts."""
    settings: dict[str, Any] = {
        "num_experts": 2,
        "adapters": (("bias", {}),),
        "recipe": RECIPE,
        "device": "cpu",
        "keep": False,
        **changes,
    }
    data = Pictures({"base": pictures()})
    return transfer(
        backend, load_teacher(model or Seen(), Square()), data, out=out, **settings
    ).path


@pytest.fixture
def bundle(toy: Any, tmp_path: Path) -> Path:
    return learned(toy, tmp_path / "out")


def seen() -> Any:
    return load_teacher(Seen(), Square())


class TestResult:
    def test_scales_are_in_the_bundle_and_its_trials_beside_it(
        self, toy: Any, bundle: Path
    ) -> None:
        info, state = verify_bundle(bundle)
        assert info.scales is None
        reports: list[Progress] = []
        model = Seen().train()
        before = anatomy(model)
        found = calibrate(
            toy, load_teacher(model, Square()), bundle, progress=reports.append, **QUICK
        )
        assert anatomy(model) == before
        after, same = verify_bundle(bundle)
        assert after.scales == found.scales
        assert len(found.scales) == 2
        assert {**json.loads(after.to_json()), "scales": None} == json.loads(info.to_json())
        assert all(torch.equal(state[name], same[name]) for name in {*state, *same})
        said = json.loads(
            bundle.with_name(
                bundle.name.replace("experts.safetensors", "calibration.json")
            ).read_text()
        )
        assert said == found.record()
        assert said["scales"] == list(found.scales)
        assert [report.done for report in reports] == [*range(1, len(found.trials) + 1)]
        assert {(report.task, report.total) for report in reports} == {("calibrating", 17)}
        [*_, last] = [trial for trial in said["trials"] if trial["kept"]]
        assert last["scales"] == pytest.approx(found.scales, rel=1e-3)
        # An expert of this world sees what it is aimed at, and so guidance leads there.
        assert last["distance"] < 0.7

    def test_equal_seeds_find_equal_scales(self, toy: Any, bundle: Path) -> None:
        calibrate(toy, seen(), bundle, seed=3, **QUICK)
        once = bundle.read_bytes()
        rescale_bundle(bundle, None)
        assert bundle.read_bytes() != once
        again = calibrate(toy, seen(), bundle, seed=3, batch=3, num=8, steps=5, device="cpu")
        assert bundle.read_bytes() == once
        other = calibrate(toy, seen(), bundle, seed=4, **QUICK)
        assert other.record()["trials"] != again.record()["trials"]

    def test_run_takes_them(self, toy: Any, bundle: Path) -> None:
        found = calibrate(toy, seen(), bundle, **QUICK)
        guide = ppap.guide(
            Seen(), loss=Square(), target=Image.new("RGB", (8, 8), "green"), experts=bundle
        )
        settings = {"num": 2, "steps": 5}
        calibrated = ppap.sample(toy, [guide], **settings)
        [given] = calibrated.plan.guides
        assert given.curve is not None
        assert (given.scale, given.curve.values) == (1.0, found.scales)


class TestJudgement:
    def test_oddity_is_the_error_of_the_denoiser(self) -> None:
        """That of the posterior mean of a Gaussian, worked out by hand."""
        backend = ppap.backend("toy")
        images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
        found = module._log_errors(backend, images, Compute(batch=2))
        schedule = backend.stages[0].schedule
        mean = torch.tensor(MEANS, dtype=torch.float64)[:, None, None]
        wanted = torch.zeros(3, dtype=torch.float64)
        for log_snr in (5.0, 3.0):
            t = int((schedule.log_snr - log_snr).abs().argmin())
            abar = schedule.alphas_cumprod[t].item()
            for i in range(3):
                x_t, _ = module.noised(images[i : i + 1], schedule, t, first=i)
                x_t, x0 = x_t[0].double(), images[i].double()
                eps = (x_t - abar**0.5 * x0) / (1 - abar) ** 0.5
                variance = abar * 0.25**2 + 1 - abar  # of x_t
                score = -(x_t - abar**0.5 * mean) / variance
                error = (-((1 - abar) ** 0.5) * score - eps).square().mean()
                wanted[i] += error.log10() / 2
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)

    def test_pictures_that_nobody_draws_are_odd(self) -> None:
        backend, compute = ppap.backend("toy"), Compute()
        drawn = ppap.sample(backend, num=4, steps=25).images
        noise = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
        usual = module._log_errors(backend, drawn, compute).mean()
        assert module._log_errors(backend, noise, compute).mean() > usual + 0.2

    def test_it_is_aimed_at_other_pictures(self, toy: Any, bundle: Path) -> None:
        found = calibrate(toy, seen(), bundle, **QUICK)
        own, other = found.energies
        assert own < 1e-4  # but for the rounding of pictures to bytes
        assert other > 100 * own


class Unmoved(Seen):
    """Sees the same in everything."""

    def forward(self, images: Tensor, level: Any = None) -> Any:
        return 0.0 * self.network(images.mean((2, 3)))


class TestWhatCannotBe:
    @pytest.mark.parametrize(
        ("make", "said"),
        [
            (lambda: Bare(), "its loss takes no picture as target"),
            (Unmoved, "a picture is no closer to what it sees in it"),
        ],
    )
    def test_is_a_line(self, toy: Any, tmp_path: Path, make: Callable[[], Any], said: str) -> None:
        model = make()
        bundle = learned(toy, tmp_path / "out", Seen())
        content = bundle.read_bytes()
        with pytest.raises(UsageError, match=said) as caught:
            calibrate(toy, load_teacher(model, Square()), bundle, **QUICK)
        assert "--scale" in caught.value.hint
        assert bundle.read_bytes() == content
        assert not list(bundle.parent.glob("*.calibration.json"))

    def test_adapt_says_why_and_goes_on(self, toy: Any, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            found = adapt(
                toy,
                load_teacher(Bare(), Square()),
                out="out",
                num=8,
                steps=2,
                num_experts=2,
                adapters=(("bias", {}),),
                recipe=RECIPE,
                device="cpu",
            )
        assert found.info.scales is None
        [line] = caplog.messages
        assert "'Bare' cannot be calibrated" in line

    @pytest.mark.parametrize("num", [0, 3, 2.5, True])
    def test_numbers(self, toy: Any, bundle: Path, num: Any) -> None:
        with pytest.raises(UsageError, match="num must be a whole number from 4"):
            calibrate(toy, seen(), bundle, num=num)
        with pytest.raises(UsageError, match="101"):
            calibrate(toy, seen(), bundle, num=4, steps=101)

    def test_another_guide(self, toy: Any, bundle: Path) -> None:
        other = Seen()
        with torch.no_grad():
            other.network.bias.add_(1.0)
        with pytest.raises(AssetError, match="guide"):
            calibrate(toy, load_teacher(other, Square()), bundle, **QUICK)


class Bare(Means):
    """Takes a picture for the answer itself, as a bare network does."""

    def target(self, given: TargetInput) -> Target:
        return Target(value=given.pixels()[None], label="pixels")


class TestTraining:
    def test_transfer_and_adapt(
        self, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seeds = []

        def quick(*arguments: Any, **named: Any) -> Any:
            seeds.append(named["seed"])
            return calibrate(*arguments, **{**named, "num": 8, "steps": 5})

        monkeypatch.setattr(module, "calibrate", quick)
        plain = learned(toy, tmp_path / "plain")
        assert read_bundle_info(plain).scales is None
        whole = learned(toy, tmp_path / "whole", calibrate=True)
        assert read_bundle_info(whole).scales is not None
        # Of one that was trained before, they are found as if they had been asked for at once.
        assert learned(toy, tmp_path / "plain", calibrate=True).read_bytes() == whole.read_bytes()
        assert seeds == [0, 0]
        learned(toy, tmp_path / "plain", calibrate=True)
        assert len(seeds) == 2  # they are there
        files = {path.name for path in (tmp_path / "plain").iterdir()}
        assert f"{whole.name.removesuffix('.experts.safetensors')}.calibration.json" in files
        learned(toy, tmp_path / "plain", overwrite=True)
        assert not list((tmp_path / "plain").glob("*.calibration.json"))
        kept = learned(toy, tmp_path / "kept", calibrate=True, keep=True)
        assert kept.is_relative_to(tmp_path / "cache")
        assert kept.read_bytes() == whole.read_bytes()

    def test_ended_at_any_change_of_the_file_system(self, toy: Any, bundle: Path) -> None:
        old = bundle.read_bytes()
        calibrate(toy, seen(), bundle, **QUICK)
        new = bundle.read_bytes()
        record = next(bundle.parent.glob("*.calibration.json"))
        trials = record.read_bytes()
        reaper, deaths = Reaper(), 0
        for changes in range(100):
            bundle.write_bytes(old)
            record.unlink()
            try:
                with reaper.after(changes):
                    calibrate(toy, seen(), bundle, num=4, steps=2, device="cpu")
            except Death:
                deaths += 1
                assert verify_bundle(bundle)[0].scales is None or record.exists()
                for left in bundle.parent.glob(".*.[td]*"):
                    left.unlink(missing_ok=True)
                record.touch()
                continue
            break
        assert deaths >= 4
        bundle.write_bytes(old)
        calibrate(toy, seen(), bundle, **QUICK)
        assert (bundle.read_bytes(), record.read_bytes()) == (new, trials)


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Types `ppap experts calibrate ...`."""

    def typed(*arguments: str) -> Outcome:
        with pytest.raises(SystemExit) as caught:
            main(("experts", "calibrate", *arguments))
        assert isinstance(caught.value.code, int)
        return Outcome(caught.value.code, *capsys.readouterr())

    return typed


class TestCommand:
    NAMED = ("--backend", "toy", "--guider", "colour", "--device", "cpu")
    SMALL = ("--num", "8", "--steps", "5")

    def test_the_table_and_the_record(self, toy: Any, run: Callable[..., Outcome]) -> None:
        bundle = write_experts(Path("mine"), backend=toy.inner)
        given = (str(bundle), *self.NAMED, *self.SMALL, "--checkpoint", str(toy.origin.path))
        code, out, err = run(*given)
        assert (code, err) == (0, "")
        *table, last = out.splitlines()
        assert last == "mine/mine.calibration.json"
        said = json.loads(Path(last).read_text())
        assert read_bundle_info(bundle).scales == tuple(said["scales"])
        assert sum("±" in line for line in table) == len(said["trials"])
        assert sum("kept" in line for line in table) == sum(t["kept"] for t in said["trials"])
        code, out, err = run(*given, "--json")
        assert (code, err) == (0, "")
        assert json.loads(out) == {"name": "mine", "path": "mine/mine.experts.safetensors", **said}

    def test_faults_are_told_at_once(self, run: Callable[..., Outcome]) -> None:
        code, out, err = run(
            *("nowhere.experts.safetensors", "--backend", "toi", "--guider", "color"),
        )
        assert (code, out) == (3, "")
        for word in ("toi", "color"):
            assert word in err
        assert run("x.experts.safetensors", "--guider", "colour").code == 2
        code, _, err = run("x.experts.safetensors", *self.NAMED, "--num", "many")
        assert code == 2
        assert "--num: 'many'" in err

    def test_of_a_distribution(
        self, run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        from ppap_framework import experts
        from ppap_framework.experts import BundleFile

        owned = BundleFile("theirs", tmp_path / "theirs.experts.safetensors", "ppap-plugin-toy")
        monkeypatch.setattr(experts, "bundle_by_name", lambda source: owned)
        code, _, err = run("theirs", *self.NAMED)
        assert code == 2
        assert "belong to ppap-plugin-toy" in err
        assert "copy" in err


def test_rescaling(bundle: Path) -> None:
    rescale_bundle(bundle, (2.0, 0.5))
    assert read_bundle_info(bundle).scales == (2.0, 0.5)
    for scales in ((1.0,), (1.0, math.inf)):
        content = bundle.read_bytes()
        with pytest.raises(ValueError, match=r"scales|finite"):
            rescale_bundle(bundle, scales)
        assert bundle.read_bytes() == content
