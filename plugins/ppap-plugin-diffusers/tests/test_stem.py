"""Experts that read noisy latents: stems, their training, and what they guide."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from commands import Run, refused, typed
from tiny_pipelines import TINY, dit, pixel, stable_diffusion, stable_diffusion_3
from torch import Tensor, nn
from torch.testing import assert_close
from toy_latents import LatentBackend, Mean
from transfer_toy import Means

import ppap_framework as ppap
from ppap_framework.components import ExpertAdapter, Target
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.experts import BundleFile, ExpertSet, load_bundle
from ppap_framework.guidance import Guide
from ppap_framework.learn import calibrate
from ppap_framework.noise import NoiseLevel, cosine_schedule
from ppap_framework.registry import registry
from ppap_plugin_diffusers.options import StemOptions
from ppap_plugin_diffusers.stem import Stem, StemAdapter

SCHEDULE = cosine_schedule(1000)
TOY = StemOptions(latents=(2, 4, 4), images=(3, 8, 8), width=8)
BIAS = (("bias", {}),)
SHORT: dict[str, Any] = {"num": 64, "batch": 16, "adapters": BIAS, "validate_every": 20}


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Few batches for the statistics of batch norms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ppap_framework.learn.distillation._STATISTICS_BATCHES", 2)
        yield


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def level(*timesteps: int) -> NoiseLevel:
    return SCHEDULE.level(torch.tensor(timesteps))


class TestStem:
    @pytest.mark.parametrize(
        ("latents", "images"),
        [
            ((4, 8, 8), (3, 64, 64)),
            ((4, 8, 8), (3, 16, 16)),
            ((16, 4, 6), (3, 16, 24)),
            ((3, 6, 8), (3, 20, 24)),
            ((1, 5, 5), (3, 5, 5)),
            ((8, 8, 8), (3, 4, 4)),
        ],
        ids=str,
    )
    def test_any_latents_become_images(self, latents: Any, images: Any) -> None:
        stem = Stem(StemOptions(latents=latents, images=images, width=4), 0)
        nn.init.normal_(stem.correction[-1].weight)
        x = noise(2, *latents).requires_grad_()
        made = stem(x, level(10, 900))
        assert made.shape == (2, *images)
        (gradient,) = torch.autograd.grad(made.square().sum(), x)
        assert gradient.norm() > 0.0

    def test_a_linear_decoder_is_found(self) -> None:
        """K then is that decoder, applied to alpha x_t, and the correction is nothing at first."""
        decoder = nn.ConvTranspose2d(2, 3, 2, stride=2)
        nn.init.normal_(decoder.weight, generator=torch.Generator().manual_seed(1))
        stem, z = Stem(TOY, 0), noise(64, 2, 4, 4)
        with torch.no_grad():
            stem.fit(z, decoder(z))
            x = noise(2, 2, 4, 4, seed=5)
            for at in (level(0, 0), level(300, 900)):
                expected = decoder(at.alpha.float()[:, None, None, None] * x)
                assert_close(stem(x, at), expected, atol=5e-3, rtol=5e-3)
                assert_close(stem(x, at, corrected=False), stem(x, at))

    def test_few_flat_images_have_a_solution(self) -> None:
        stem = Stem(TOY, 0)
        stem.fit(torch.zeros(1, 2, 4, 4), torch.full((1, 3, 8, 8), 0.5))
        made = stem(noise(1, 2, 4, 4), level(0))
        assert_close(made, torch.full_like(made, 0.5), atol=1e-2, rtol=0.0)

    def test_its_parameters_come_from_the_seed_alone(self) -> None:
        torch.manual_seed(1)
        one = Stem(TOY, 3)
        torch.manual_seed(2)
        for a, b in zip(one.parameters(), Stem(TOY, 3).parameters(), strict=True):
            assert torch.equal(a, b)
        assert not torch.equal(one.correction[0].weight, Stem(TOY, 4).correction[0].weight)


@pytest.fixture
def adapter() -> StemAdapter:
    made = StemAdapter(TOY)
    made.attach(nn.Linear(3, 2), 3)
    return made


class TestAdapter:
    def test_the_registry_offers_it_for_latents_alone(self) -> None:
        assert [name for name, _ in registry().default_adapters(latents=True)] == ["stem"]
        assert "stem" not in dict(registry().default_adapters())
        spec = registry().spec("adapter", "stem")
        for wrong in ({"latents": [4, 8]}, {"images": [3, 0, 8]}, {"width": 0}, {"latents": "x"}):
            with pytest.raises(UsageError):
                registry().make(spec, wrong)

    def test_only_the_expert_in_training_learns(self, adapter: StemAdapter) -> None:
        with adapter.training(1):
            assert adapter.active == 1
            assert all(p.requires_grad for p in adapter.parameters(1))
            assert not any(p.requires_grad for p in adapter.parameters(2))
            for refused_then in (lambda: adapter.activate(0), lambda: adapter.activate(None)):
                with pytest.raises(RuntimeError):
                    refused_then()
            with pytest.raises(RuntimeError), adapter.training(2):
                pass
        assert adapter.active is None
        assert not any(p.requires_grad for p in adapter.parameters(1))

    def test_states_are_loaded_whole_or_not_at_all(self, adapter: StemAdapter) -> None:
        other = StemAdapter(TOY)
        other.attach(nn.Linear(3, 2), 3)
        for parameter in other.parameters(2):
            nn.init.normal_(parameter)
        state = {name: x.clone() for name, x in other.state_dict().items()}
        adapter.load_state_dict(state)
        for name, tensor in adapter.state_dict().items():
            assert torch.equal(tensor, state[name])
        name = "0.correction.0.weight"
        for wrong in (
            {k: v for k, v in state.items() if k != name},
            {**state, "3.weight": torch.zeros(1)},
            {**state, name: torch.zeros(8, 5, 3, 3)},
        ):
            with pytest.raises(AssetError, match="do not fit"):
                adapter.load_state_dict({k: torch.zeros_like(v) for k, v in wrong.items()})
        for name, tensor in adapter.state_dict().items():
            assert torch.equal(tensor, state[name])

    def test_wrong_calls(self, adapter: StemAdapter) -> None:
        for call in (adapter.activate, adapter.training, adapter.parameters):
            for index in (-1, 3):
                with pytest.raises(IndexError):
                    call(index)
        with pytest.raises(ValueError, match="attached already"):
            adapter.attach(nn.Linear(3, 2), 1)
        adapter.detach()
        adapter.attach(nn.Linear(3, 2), 1)
        with pytest.raises(UsageError):
            StemAdapter(TOY).attach(nn.Linear(3, 2), 0)

    def test_other_adapters_are_not_concerned(self) -> None:
        """By default an adapter changes nothing of how a guide reads, and prepares nothing."""
        bias: ExpertAdapter = registry().make(registry().spec("adapter", "bias"), {})
        model = Means()
        bias.attach(model.network, 1)
        assert bias.student(model) is model
        before = {k: v.clone() for k, v in bias.state_dict().items()}
        bias.prepare(noise(2, 2, 4, 4), noise(2, 3, 8, 8))
        assert all(torch.equal(v, before[k]) for k, v in bias.state_dict().items())
        bias.detach()


class Contrasts(Means):
    """W m + b with m the mean and the mean square of each channel: noise changes the latter."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(6, 2)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.network.parameters():
            nn.init.normal_(parameter, generator=generator)

    def forward(self, images: Tensor, level: NoiseLevel | None = None) -> Any:
        means = [power.mean((2, 3)) for power in (images, images.square())]
        return self.network(torch.cat(means, 1))


def guide(**changed: Any) -> Guide:
    target = Target(value=torch.tensor([[2.0, -2.0]]), label="there")
    given = {"name": "contrasts", "loss": Mean(), "scale": 8.0, "target": target, **changed}
    return Guide(model=given.pop("model", None) or Contrasts(), **given)


@pytest.fixture(
    scope="module", params=[1, pytest.param(5, marks=pytest.mark.slow)], ids=["one", "five"]
)
def taught(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BundleFile:
    out, count = tmp_path_factory.mktemp("experts"), request.param
    how = {**SHORT, "iterations": 80 + 40 * count, "num_experts": count}
    return ppap.adapt(LatentBackend(), guide(), out=out, keep=False, calibrate=False, **how)


@pytest.fixture
def experts(taught: BundleFile) -> Iterator[ExpertSet]:
    found = load_bundle(taught.path, Contrasts(), LatentBackend())
    yield found
    found.detach()


class TestExperts:
    def test_they_learn(self, taught: BundleFile) -> None:
        scores = taught.info.metrics["experts"]
        shares = [score["held_out"] / score["untouched"] for score in scores]
        assert len(shares) == len(taught.ranges)
        assert shares[-1] < 0.5
        assert taught.info.mean_loss() < 0.5 * taught.info.mean_loss("untouched")

    def test_the_bundle_says_what_they_read(self, taught: BundleFile) -> None:
        info = taught.info
        assert (info.latents, info.resolution) == ((2, 4, 4), (8, 8))
        assert [adapter.name for adapter in info.adapters] == ["stem", "bias"]
        assert info.adapters[0].options["latents"] == [2, 4, 4]
        assert json.loads(info.to_json())["latents"] == [2, 4, 4]

    def test_each_level_has_its_own_stem(self, experts: ExpertSet) -> None:
        x, t = noise(6, 2, 4, 4), (5, 250, 450, 650, 850, 999)
        together = experts.at(level(*t))(x, level(*t))
        alone = [experts.at(level(k))(x[n : n + 1], level(k)) for n, k in enumerate(t)]
        assert_close(together, torch.cat(alone))
        if len(experts) > 1:
            outer = [experts.at(level(k))(x, level(*[500] * 6)).clone() for k in (5, 999)]
            assert (outer[0] - outer[1]).abs().max() > 1e-2

    def test_clean_images_are_for_the_untouched_network(self, experts: ExpertSet) -> None:
        images, clean = noise(2, 3, 8, 8), NoiseLevel.clean(2)
        assert_close(experts.at(clean)(images, clean), Contrasts()(images))

    def test_gradients_against_differences(self, experts: ExpertSet) -> None:
        attached = guide(model=experts.model, experts=experts)
        x, at = noise(2, 2, 4, 4), level(400, 400)
        direction = noise(2, 2, 4, 4, seed=4)
        gradient = (attached.gradient(x, at) * direction).sum().double()
        with torch.no_grad():
            ends = [attached.energy(x + step * direction, at).sum() for step in (1e-2, -1e-2)]
        assert_close(gradient, ((ends[0] - ends[1]) / 2e-2).double(), rtol=1e-2, atol=1e-4)
        assert all(p.grad is None for p in experts.student.parameters())

    def test_sampling_needs_no_decoder_and_no_gradient_of_the_denoiser(
        self, taught: BundleFile
    ) -> None:
        backend, events = LatentBackend(), []
        stage = backend.stages[0]
        decode, denoise = stage.decode, stage.denoise
        stage.decode = lambda x0: events.append("decode") or decode(x0)

        def watched(x_t: Tensor, t: Tensor, condition: Any) -> Any:
            assert not (torch.is_grad_enabled() and x_t.requires_grad)
            events.append("denoise")
            return denoise(x_t, t, condition)

        stage.denoise = watched
        told = guide(experts=taught)
        result = ppap.sample(backend, [told], num=8, steps=20, compare=True)
        assert events == (["denoise"] * 20 + ["decode"]) * 2
        assert result.stats.guidance.denoiser_backwards == 0
        assert list(result.pictures) == ["guided", "unguided"]
        energies = [kind.seen["contrasts"].figures["energy"] for kind in result.pictures.values()]
        assert (energies[0] < energies[1]).all()

    def test_curves_are_found_and_used(self, taught: BundleFile, tmp_path: Path) -> None:
        own = BundleFile("own", tmp_path / "own.experts.safetensors")
        own.path.write_bytes(taught.path.read_bytes())
        with pytest.raises(UsageError, match="draws latents") as caught:
            calibrate(LatentBackend(), aimable(), num=8)
        assert "detached" in caught.value.hint
        how: dict[str, Any] = {"num": 16, "levels": 4}
        curve = calibrate(LatentBackend(), aimable(), own.path, **how)
        assert min(curve.scales) > 0.0
        assert BundleFile("own", own.path).calibration == curve
        through = calibrate(LatentBackend(), aimable(), through="detached", **how)
        assert through.scales != curve.scales


def aimable() -> Guide:
    class Aimable(Contrasts):
        def target(self, given: Any) -> Target:
            with torch.no_grad():
                return Target(value=self(given.pixels()[None]), label="a picture")

    return guide(model=Aimable())


class TestRefusals:
    def test_latents_and_images_do_not_mix(self, taught: BundleFile) -> None:
        with pytest.raises(AssetError, match=r"latents: they read latents \(2, 4, 4\)"):
            ppap.sample(pixel(), [guide(experts=taught.path)], num=1, steps=2)
        images = attrs.evolve(taught.info, latents=None)
        assert images.from_json(images.to_json()).latents is None
        assert "latents" not in json.loads(images.to_json())

    def test_proposed_boundaries(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="boundaries can be proposed"):
            ppap.adapt(LatentBackend(), guide(), out=tmp_path, boundaries="auto", **SHORT)

    def test_no_adapter_for_latents(self, tmp_path: Path, monkeypatch: Any) -> None:
        own = registry().default_adapters
        monkeypatch.setattr(
            type(registry()), "default_adapters", lambda _, latents=False: [] if latents else own()
        )
        with pytest.raises(UsageError, match="draws latents") as caught:
            ppap.adapt(LatentBackend(), guide(), out=tmp_path, **SHORT)
        assert "no adapter that reads latents" in caught.value.hint


class TestPipelines:
    @pytest.mark.parametrize("name", TINY)
    def test_encoding_is_as_decoding(self, name: str) -> None:
        """Of its own images, what the decoder's encoder says, on the network's scale."""
        pipe = TINY[name]()
        (stage,) = ppap.backend(pipe).stages
        images = noise(2, *stage.image_shape).clamp(-1.0, 1.0)
        with torch.no_grad():
            z = stage.encode(images)
            if stage.latent_shape is None:
                assert z is images
                return
            assert (z.shape, z.dtype) == ((2, *stage.latent_shape), torch.float32)
            vae = stage.decoder
            found = vae.encode(images)
            raw = found.latents if name.startswith("latent") else found.latent_dist.mode()
            decoded = vae.decode(raw).sample
            torch.testing.assert_close(stage.decode(z), decoded, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize(
        "make", [stable_diffusion_3, pytest.param(dit, marks=pytest.mark.slow)], ids=["flow", "DiT"]
    )
    def test_experts_are_made_and_guide(self, make: Any, tmp_path: Path) -> None:
        pytest.importorskip("ppap_plugin_classifier", reason="the guide")
        pipe = make()
        stage = ppap.backend(pipe).stages[0]
        weights = {name: x.clone() for name, x in stage.network.state_dict().items()}
        how = {"num": 8, "steps": 2, "iterations": 4, "batch": 4, "num_experts": 2}
        bundle = ppap.adapt(pipe, "classifier", out=tmp_path, keep=False, calibrate=False, **how)
        guide = ppap.guide("classifier", target="red cube", scale="raw:300", experts=bundle)
        result = ppap.sample(pipe, [guide], num=2, steps=3, compare=True)
        assert (result.images - result.unguided.images).abs().max() > 1e-3
        assert bundle.info.latents == stage.latent_shape
        for name, tensor in stage.network.state_dict().items():
            assert torch.equal(tensor, weights[name])

    @pytest.mark.slow
    def test_from_the_command_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
    ) -> None:
        monkeypatch.setenv("PPAP_CACHE_DIR", str(tmp_path / "cache"))
        run: Run = typed(capsys)
        folder, images, out = (tmp_path / name for name in ("latent", "set", "out"))
        stable_diffusion().save_pretrained(folder)
        capsys.readouterr()
        of = ("--backend", "diffusers", "--checkpoint", folder)
        guided = ("run", *of, "--guider", "classifier", "--target", "red cube", "--num", "1")
        refused(run(*guided, "--out", out), 2, "draws latents", "ppap adapt")
        drawn = run("synthesize", *of, "--num", 8, "--batch", 4, "--steps", 2, "--out", images)
        assert drawn.code == 0, drawn.err
        assert run("data", "verify", images).code == 0
        how = ("--iterations", 6, "--learn-batch", 4, "--num-experts", 2, "--no-calibrate")
        what = ("--guider", "classifier", "--data", images, "--adapter", "bias")
        learned = run("transfer", *of, *what, *how, "--out", tmp_path / "made")
        assert learned.code == 0, learned.err
        done = run(*guided, "--experts", "auto", "--scale", "raw:30", "--steps", 3, "--out", out)
        assert done.code == 0, done.err
        record = json.loads((out / "run.json").read_text())["config"]
        assert record["through"] == "noisy"
        assert record["guides"][0]["experts"]["num_experts"] == 2
        dry = run(*guided, "--experts", "auto", "--scale", "raw:30", "--dry-run", "--json")
        assert json.loads(dry.out)["estimate"]["stages"]["base"]["backward"] == 0
