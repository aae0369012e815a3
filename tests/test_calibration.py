"""Calibration: the honest scale, the curve, what a bundle gets, and what cannot be calibrated."""

from __future__ import annotations

import json
import logging
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from reaper import Death, Reaper
from safetensors.torch import load_file
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from toy_distribution import install, plugged, write_experts
from transfer_toy import Means, Pictures, Square, anatomy, pictures

import ppap_framework as ppap
from ppap_framework.checkpoints import save_checkpoint
from ppap_framework.cli import main
from ppap_framework.components import Target, TargetInput
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.experts import (
    ScaleCurve,
    has_experts,
    read_bundle_info,
    verify_bundle,
    write_bundle,
    write_curve,
)
from ppap_framework.learn import Recipe, adapt, calibrate, load_teacher, transfer
from ppap_framework.learn import calibration as module
from ppap_framework.learn.calibration import honest_scale
from ppap_framework.noise import NoiseLevel, NoiseSchedule
from ppap_framework.registry import registry
from ppap_framework.run import LoadedBackend, Sampling, plan
from ppap_framework.runtime import Progress

QUICK: dict[str, Any] = {"num": 12, "steps": 5, "levels": 5, "device": "cpu"}
CALIBRATE = ("experts", "calibrate")
RECIPE = Recipe(iterations=12, shared=0.0, batch=4, held_out=0.2, validate_every=6)


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
    monkeypatch.setattr(sys.modules["ppap_framework.learn.transfer"], "draw_figures", lambda *_: [])
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
        "calibrate": False,
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


def gaussian(count: int, noise: float = 1.0, seed: int = 0) -> Tensor:
    """-log N(x^i; y^j, noise^2), but for a constant: the honest scale of it is 1."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    x = y + noise * torch.randn(count, 2, generator=generator, dtype=torch.float64)
    return torch.cdist(x, y).square() / (2 * noise**2)


class TestHonestScale:
    @pytest.mark.parametrize("noise", [0.3, 1.0])
    def test_of_a_likelihood_is_one(self, noise: float) -> None:
        scale, error = honest_scale(gaussian(400, noise))
        assert abs(math.log(scale)) < 3 * error < 0.5

    def test_of_a_categorical_distribution(self) -> None:
        """Of beliefs p from which the pictures were drawn, E = -s0 log p has the scale 1 / s0."""
        generator = torch.Generator().manual_seed(0)
        logs = torch.log_softmax(torch.randn(600, 600, generator=generator).double() * 2, 1)
        drawn = torch.multinomial(logs.exp(), 1, generator=generator)[:, 0].tolist()
        energies = torch.stack([-logs[i].roll(i - own) for i, own in enumerate(drawn)])
        scale, error = honest_scale(5.0 * energies)
        assert abs(math.log(5.0 * scale)) < 3 * error < 0.3

    @given(st.floats(0.01, 100.0), st.integers(0, 20))
    def test_follows_the_unit_of_the_energy(self, unit: float, seed: int) -> None:
        energies = gaussian(20, seed=seed)
        scale, error = honest_scale(energies)
        found, its = honest_scale(unit * energies + 7.0)  # nor does a constant matter
        assert found == pytest.approx(scale / unit, rel=1e-6)
        assert its == pytest.approx(error, rel=1e-4)

    def test_error_is_that_of_a_bootstrap(self) -> None:
        energies = gaussian(100)
        _, error = honest_scale(energies)
        generator = torch.Generator().manual_seed(1)
        logs = []
        for _ in range(200):
            rows = torch.randint(100, (100,), generator=generator).tolist()
            again = torch.stack([energies[i].roll(k - i) for k, i in enumerate(rows)])
            logs.append(math.log(honest_scale(again)[0]))
        assert error == pytest.approx(torch.tensor(logs).std().item(), rel=0.25)

    @pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
    def test_if_every_belief_is_right_one_more_picture_is_misread(self, unit: float) -> None:
        def loss(s: float) -> float:
            return s / 8 - math.log(0.95 / (1 + 7 * math.exp(-s)) + 0.05 / 8)

        apart = 1.0 - torch.eye(8, dtype=torch.float64)
        wanted = minimize_scalar(loss, bounds=(0.0, 50.0), method="bounded").x
        assert honest_scale(unit * apart)[0] == pytest.approx(wanted / unit, rel=1e-4)

    def test_of_what_says_nothing(self) -> None:
        apart = 1.0 - torch.eye(8, dtype=torch.float64)
        for nothing in (torch.ones(8, 8), -apart, apart[:1, :1], torch.full((8, 8), torch.nan)):
            assert honest_scale(nothing) == (0.0, math.inf)

    def test_misread_pictures_do_not_decide(self) -> None:
        energies = gaussian(200, 0.3)
        scale, _ = honest_scale(energies)
        energies[:4] = energies[:4].roll(1, 1)  # four pictures pass for others
        found, _ = honest_scale(energies)
        assert found == pytest.approx(scale, rel=0.1)

    def test_leaves_out_rows_that_are_not_finite(self) -> None:
        energies = gaussian(30)
        energies[4, 7], energies[9, 9] = math.inf, math.nan
        kept = [i for i in range(30) if i not in (4, 9)]
        own = torch.stack([energies[i].roll(k - i) for k, i in enumerate(kept)])
        assert honest_scale(energies) == pytest.approx(honest_scale(own), rel=1e-6)


SCALES = st.just(0.0) | st.floats(1e-42, 300)  # energies are float32: none is fainter


class TestCurve:
    @given(
        st.lists(
            st.tuples(SCALES, st.floats(0.01, 9) | st.just(math.inf)),
            min_size=2,
            max_size=9,
        ).filter(lambda found: any(scale > 0.0 for scale, _ in found))
    )
    def test_rises(self, found: list[tuple[float, float]]) -> None:
        scales, errors = zip(*found, strict=True)
        noisy_last = list(range(len(found), 0, -1))
        curve = module._curve(noisy_last, scales, errors)
        assert list(curve.scales) == sorted(curve.scales)
        assert curve.log_snr == tuple(range(1, len(found) + 1))
        least = min(scales) or 1e-3 * min(filter(None, scales))
        most = max(scales)
        assert all(least * 0.999 <= scale <= most * 1.001 for scale in curve.scales)

    def test_trusts_what_is_known_better(self) -> None:
        curve = module._curve((0.0, 1.0), (8.0, 2.0), (0.1, 1.0))
        assert curve.scales == pytest.approx((8.0 * 0.25 ** (1 / 101),) * 2, rel=1e-3)

    def test_between_and_beyond_its_knots(self) -> None:
        curve = ScaleCurve((-2.0, 0.0, 4.0), (0.1, 10.0, 40.0), (0.1, 0.1, 0.1))
        levels = [-math.inf, -9.0, -2.0, -1.0, 0.0, 2.0, 4.0, math.inf]
        found = curve.at(NoiseLevel(torch.tensor(levels, dtype=torch.float64)))
        assert found.shape == (8, 1, 1, 1)
        assert found.flatten().tolist() == pytest.approx([0.1, 0.1, 0.1, 1, 10, 20, 40, 40])

    @pytest.mark.parametrize(
        "columns",
        [
            ((), (), ()),
            ((0.0, 1.0), (1.0,), (0.1, 0.1)),
            ((1.0, 0.0), (1.0, 1.0), (0.1, 0.1)),
            ((0.0,), (0.0,), (0.1,)),
            ((0.0,), (math.inf,), (0.1,)),
            ((-math.inf,), (1.0,), (0.1,)),
        ],
    )
    def test_of_other_numbers_is_none(self, columns: tuple[tuple[float, ...], ...]) -> None:
        with pytest.raises(ValueError, match="curve"):
            ScaleCurve(*columns)


class TestBundle:
    def test_has_the_curve_and_is_the_same_otherwise(self, toy: Any, bundle: Path) -> None:
        info, state = verify_bundle(bundle)
        assert info.curve is None
        reports: list[Progress] = []
        model = Seen().train()
        before = anatomy(model)
        watched = {"progress": reports.append, **QUICK}
        curve = calibrate(toy, load_teacher(model, Square()), bundle, **watched)
        assert anatomy(model) == before
        assert not has_experts(model.network)
        after, same = verify_bundle(bundle)
        assert after.curve == curve
        known = json.loads(after.to_json())
        assert known.pop("curve") == json.loads(json.dumps(attrs.asdict(curve)))
        assert known == json.loads(info.to_json())
        assert all(torch.equal(state[name], same[name]) for name in {*state, *same})
        assert len(curve.scales) == QUICK["levels"]
        assert curve.scales[0] < curve.scales[-1]  # noise hides colours
        said = [(report.task, report.done, report.total) for report in reports]
        assert said == [("calibrating", k, 5) for k in range(1, 6)]

    @pytest.mark.parametrize("through", ["noisy", "detached"])
    def test_of_the_images_that_its_experts_read(
        self, toy: Any, tmp_path: Path, through: Any
    ) -> None:
        """Experts that learned next to nothing have the curve of the untouched network."""
        bundle = learned(toy, tmp_path / "out", through=through, learning_rate=1e-12)
        bare = calibrate(toy, seen(), through=through, **QUICK)
        assert calibrate(toy, seen(), bundle, **QUICK).scales == pytest.approx(bare.scales, 1e-3)
        other = calibrate(
            toy, seen(), through="noisy" if through == "detached" else "detached", **QUICK
        )
        assert bare.scales != pytest.approx(other.scales, 1e-1)

    def test_of_experts_that_read_different_images(self, toy: Any, tmp_path: Path) -> None:
        """At each level, the error is that of the image that the level's expert reads."""
        bundle = learned(toy, tmp_path / "out", learning_rate=1e-12)
        info, state = verify_bundle(bundle)
        recipe = {**info.recipe, "through": ["detached", "noisy"]}
        write_bundle(bundle, state, attrs.evolve(info, recipe=recipe))
        curve = calibrate(toy, seen(), bundle, **QUICK)
        noisy, detached = (
            calibrate(toy, seen(), through=x, **QUICK) for x in ("noisy", "detached")
        )
        [boundary] = read_bundle_info(bundle).boundaries
        first = [x >= boundary for x in curve.log_snr]
        assert {*first} == {False, True}
        columns = zip(first, detached.errors, noisy.errors, strict=True)
        wanted = [clean if own else noise for own, clean, noise in columns]
        assert curve.errors == pytest.approx(wanted, 1e-2)

    def test_equal_seeds_give_equal_bytes(self, toy: Any, bundle: Path) -> None:
        bare = bundle.read_bytes()
        once = calibrate(toy, seen(), bundle, seed=3, **QUICK)
        written = bundle.read_bytes()
        bundle.write_bytes(bare)
        assert calibrate(toy, seen(), bundle, write=False, seed=3, **QUICK) == once
        assert bundle.read_bytes() == bare
        calibrate(toy, seen(), bundle, seed=3, **QUICK)
        assert bundle.read_bytes() == written
        calibrate(
            toy,
            seen(),
            bundle,
            sampling=Sampling(seed=3, steps=5, sampler="ddpm"),
            num=12,
            levels=5,
        )
        assert bundle.read_bytes() == written  # also if there is a curve
        parts = calibrate(toy, seen(), seed=3, batch=5, **QUICK)
        assert parts.log_snr == once.log_snr
        assert calibrate(toy, seen(), bundle, seed=4, **QUICK) != once

    def test_ended_at_any_change_of_the_file_system(self, toy: Any, bundle: Path) -> None:
        old = bundle.read_bytes()
        curve = calibrate(toy, seen(), bundle, **QUICK)
        new, reaper, deaths = bundle.read_bytes(), Reaper(), 0
        for changes in range(100):
            bundle.write_bytes(old)
            try:
                with reaper.after(changes):
                    write_curve(bundle, curve)
            except Death:
                deaths += 1
                assert bundle.read_bytes() in (old, new)
                continue
            break
        assert deaths >= 2
        assert bundle.read_bytes() == new

    def test_damaged_is_refused(self, toy: Any, bundle: Path) -> None:
        content = bytearray(bundle.read_bytes())
        content[-1] ^= 1
        bundle.write_bytes(content)
        with pytest.raises(AssetError, match="damaged"):
            calibrate(toy, seen(), bundle, **QUICK)
        assert bundle.read_bytes() == content


class TestWithoutExperts:
    @pytest.mark.parametrize("through", ["noisy", "clean"])
    def test_a_plan_keeps_the_curve_of_the_guide(self, toy: Any, through: Any) -> None:
        curve = calibrate(toy, seen(), through=through, **QUICK)
        target = Image.new("RGB", (8, 8), "green")
        guide = ppap.guide(Seen(), loss=Square(), target=target, scale=2, experts="none")
        given = {"through": through, "num": 1, "steps": 3}
        run = ppap.sample(toy, [attrs.evolve(guide, curve=curve)], **given).plan
        assert (run.guides[0].scale, run.guides[0].curve) == (2, curve)
        said = run.record()["guides"][0]
        assert ScaleCurve(**said["curve"]) == curve
        ends = [2 * curve.scales[0], 2 * curve.scales[-1]]
        assert list(said["scales"]) == pytest.approx(ends, rel=1e-3)
        replanned = plan(toy, run.guides, 1, run.sampling)
        assert replanned.guides[0].curve == curve

    def test_at_zero_terminal_snr(self, toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """The level of pure noise has no log-SNR that a knot could have."""
        every = toy.stages[0].schedule
        ends = NoiseSchedule("ends", torch.cat([every.betas[:-1], torch.ones(1).double()]))
        monkeypatch.setattr(toy.stages[0], "schedule", ends)
        assert len(calibrate(toy, seen(), **QUICK).scales) == QUICK["levels"] - 1


class Unmoved(Seen):
    """Sees the same in everything."""

    def forward(self, images: Tensor, level: Any = None) -> Any:
        return 0.0 * self.network(images.mean((2, 3)))


class TestWhatCannotBe:
    @pytest.mark.parametrize(
        ("make", "said"),
        [
            (lambda: Bare(), "its loss takes no picture as target"),
            (Unmoved, "it does not tell pictures apart at any noise level"),
            (Means, "it takes no pictures as targets"),
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
        assert found.info.curve is None
        [line] = caplog.messages
        assert "'Bare' cannot be calibrated" in line

    def test_numbers(self, toy: Any) -> None:
        for num in (0, 7, 2.5, True):
            with pytest.raises(UsageError, match="num must be a whole number from "):
                calibrate(toy, seen(), num=num)
        for wrong in ({"steps": 101}, {"levels": 101}, {"levels": 1}):
            with pytest.raises(UsageError, match=r"101|at 1 levels"):
                calibrate(toy, seen(), num=8, **wrong)

    def test_experts_read_noise(self, toy: Any, bundle: Path) -> None:
        content = bundle.read_bytes()
        with pytest.raises(
            UsageError, match="looks through clean, and its experts learned through noisy"
        ):
            calibrate(toy, seen(), bundle, through="clean", **QUICK)
        with pytest.raises(UsageError, match="reads noise by itself"):
            calibrate(toy, attrs.evolve(seen(), noise_aware=True), bundle, **QUICK)
        assert bundle.read_bytes() == content

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
    def test_transfer_ends_with_it(
        self, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seeds = []

        def quick(*arguments: Any, **named: Any) -> Any:
            seeds.append(named["seed"])
            return calibrate(*arguments, **{**named, "num": 8, "levels": 3, "steps": 5})

        monkeypatch.setattr(module, "calibrate", quick)
        plain, asked = learned(toy, tmp_path / "plain"), {"calibrate": True}
        assert read_bundle_info(plain).curve is None
        whole = learned(toy, tmp_path / "whole", **asked)
        assert read_bundle_info(whole).curve is not None
        # Of one that was trained before, it is found as if it had been asked for at once.
        assert learned(toy, tmp_path / "plain", **asked).read_bytes() == whole.read_bytes()
        assert seeds == [0, 0]
        learned(toy, tmp_path / "plain", **asked)
        assert len(seeds) == 2  # it is there
        kept = learned(toy, tmp_path / "kept", keep=True, **asked)
        assert kept.is_relative_to(tmp_path / "cache")
        assert kept.read_bytes() == whole.read_bytes()

    def test_overwriting_removes_the_record_of_earlier_versions(
        self, toy: Any, bundle: Path
    ) -> None:
        record = bundle.with_name(bundle.name.replace("experts.safetensors", "calibration.json"))
        record.write_text("{}")
        learned(toy, bundle.parent)
        assert record.exists()
        learned(toy, bundle.parent, overwrite=True)
        assert not record.exists()


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Types `ppap ...`."""

    def typed(*arguments: str) -> Outcome:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert isinstance(caught.value.code, int)
        return Outcome(caught.value.code, *capsys.readouterr())

    return typed


class TestCommand:
    NAMED = ("--backend", "toy", "--guider", "colour", "--device", "cpu")

    def test_the_table_and_the_record(self, toy: Any, run: Callable[..., Outcome]) -> None:
        bundle = write_experts(Path("mine"), backend=toy.inner, scales=(1.0, 2.0, 3.0))
        checkpoint = ("--checkpoint", str(toy.origin.path), "--num", "8", "--steps", "5")
        given = ("experts", "calibrate", str(bundle), *self.NAMED, *checkpoint)
        code, out, err = run(*given)
        assert (code, err) == (0, "")
        *table, last = out.splitlines()
        assert last == str(bundle)
        info = read_bundle_info(bundle)
        assert info.curve is not None
        cells = [line.split() for line in table if re.match(r"\s*-?\d", line)]
        knots = zip(info.curve.log_snr, info.curve.scales, strict=True)
        assert [row[:2] for row in cells] == [[f"{x:.3f}", f"{s:.4g}"] for x, s in knots]
        shown = run("experts", "inspect", str(bundle)).out
        assert "\n".join(table[1:-1]) in shown  # without the empty lines around it
        code, out, err = run(*given, "--json")
        assert (code, err) == (0, "")
        curve = json.loads(json.dumps(attrs.asdict(info.curve)))
        assert json.loads(out) == {"name": "mine", "path": str(bundle), "curve": curve}
        assert json.loads(run("experts", "inspect", str(bundle), "--json").out)["curve"] == curve

    def test_faults_are_told_at_once(self, run: Callable[..., Outcome]) -> None:
        code, out, err = run(
            *(*CALIBRATE, "nowhere.experts.safetensors", "--backend", "toi", "--guider", "color"),
        )
        assert (code, out) == (3, "")
        for word in ("toi", "color"):
            assert word in err
        assert run(*CALIBRATE, "x.experts.safetensors", "--guider", "colour").code == 2
        code, _, err = run(*CALIBRATE, "x.experts.safetensors", *self.NAMED, "--num", "many")
        assert code == 2
        assert "--num: 'many'" in err

    def test_of_a_distribution(
        self, run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        from ppap_framework import experts
        from ppap_framework.experts import BundleFile

        owned = BundleFile("theirs", tmp_path / "theirs.experts.safetensors", "ppap-plugin-toy")
        monkeypatch.setattr(experts, "bundle_by_name", lambda source: owned)
        code, _, err = run(*CALIBRATE, "theirs", *self.NAMED)
        assert code == 2
        assert "belong to ppap-plugin-toy" in err
        assert "copy" in err
