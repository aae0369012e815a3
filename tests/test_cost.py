"""What a run is said to take, before anything is computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Run
from glide_files import glide
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from toy_guides import guide_of

import ppap_framework as ppap
from ppap_framework.components import DiffusionBackend
from ppap_framework.errors import PpapError
from ppap_framework.guidance import Guide
from ppap_framework.run import Compute, Counts, Plan, Sampling, changed, counts_of, drawing, plan
from ppap_framework.run.estimate import Estimate, _copy, _measured, _Meter, estimate
from ppap_plugin_glide.backend import make_glide
from ppap_plugin_glide.options import GlideOptions

KIB = 1024


@pytest.fixture(scope="module")
def adm() -> DiffusionBackend:
    return ppap.backend("adm")


@pytest.fixture(scope="module")
def guided(tmp_path_factory: pytest.TempPathFactory) -> DiffusionBackend:
    return make_glide(GlideOptions(cfg=3.0), glide(tmp_path_factory.mktemp("glide")))


@pytest.fixture
def fake() -> FakeTensorMode:
    return FakeTensorMode(allow_non_fake_inputs=True)


def planned(
    backend: DiffusionBackend, *guides: Guide, num: int = 3, compare: bool = False, **changes: Any
) -> Plan:
    sampling, compute = changed(changes, Sampling(steps=4), Compute())
    return plan(backend, guides, num, sampling, compute, compare=compare)


def estimated(backend: DiffusionBackend, *guides: Guide, **changes: Any) -> Estimate:
    return estimate(planned(backend, *guides, **changes))


def counted(backend: DiffusionBackend, *guides: Guide, **changes: Any) -> Counts:
    return counts_of(planned(backend, *guides, **changes))


def red_cube(**changes: Any) -> Guide:
    return ppap.guide("classifier", target="red cube", **changes)


def colorless() -> Guide:
    return guide_of(
        lambda images, level: images.mean((2, 3)),
        lambda seen, wanted: (seen - wanted).square().mean(1),
        torch.zeros(1, 3),
    )


class TestMeter:
    def test_counts_products_and_not_what_goes_with_them(self, fake: FakeTensorMode) -> None:
        layer, x = _copy(fake, (nn.Linear(16, 4), torch.zeros(3, 16)))
        _, flops, _ = _measured(fake, lambda: layer(x).relu())
        assert flops == 2 * 3 * 16 * 4

    def test_memory_is_that_of_what_is_there_at_once(self, fake: FakeTensorMode) -> None:
        def chain() -> Tensor:
            x = torch.zeros(KIB // 4)  # 1 KiB
            for _ in range(5):
                x = x + 1.0  # the old one is there until the new one is
            return x.view(2, -1).mul_(2.0)  # neither takes anything

        assert _measured(fake, chain)[2] == 2 * KIB

    def test_what_a_graph_keeps_is_there(self, fake: FakeTensorMode) -> None:
        def chain() -> None:
            y = torch.zeros(KIB // 4).requires_grad_()
            for _ in range(5):
                y = y.exp()  # whose derivative is itself
            torch.autograd.grad(y.sum(), y)

        # The image and five powers; then their sum, and what flows back to each.
        assert 6 * KIB < _measured(fake, chain)[2] < 9 * KIB

    def test_agrees_with_torch_on_a_network_that_computes(self, adm: DiffusionBackend) -> None:
        stage = adm.stages[0]
        plain = sdpa_kernel(SDPBackend.MATH)  # fused attention is not counted on the CPU
        with torch.no_grad(), plain, FlopCounterMode(display=False) as counter:
            stage.denoise(torch.zeros(1, *stage.image_shape), torch.tensor([3]), None)
        assert estimated(adm).stages["base"].forward == counter.get_total_flops()

    def test_what_is_copied_stays_as_it_is(self, fake: FakeTensorMode) -> None:
        layer = nn.Linear(2, 2)
        weight = layer.weight
        assert isinstance(_copy(fake, layer).weight, FakeTensor)
        assert layer.weight is weight
        assert not isinstance(weight, FakeTensor)


class TestEstimate:
    def test_a_whole_run(self, adm: DiffusionBackend) -> None:
        found = estimated(adm, red_cube(interval=(0.5, 1.0)), compare=True)
        base, look = found.stages["base"], found.guides["classifier"]
        assert look.forward == look.backward > 0  # of a product only the image's part flows back
        assert base.backward == base.before == 0
        # 4 steps at t / T = 0, 1/4, 2/4 and 3/4, with experts, without them, and without a guide.
        assert found.flops == 3 * (3 * 4 * base.forward + 2 * 2 * 2 * look.forward)
        assert found.memory == max(base.memory, look.memory)

    def test_through_the_denoiser(self, adm: DiffusionBackend) -> None:
        noisy, clean = (estimated(adm, red_cube(), through=t) for t in ("noisy", "clean"))
        base = clean.stages["base"]
        assert base.forward <= base.backward <= 1.1 * base.forward
        assert clean.flops == noisy.flops + 3 * 4 * base.backward
        assert clean.memory > 3 * noisy.memory  # the graph of the denoiser

    def test_is_no_less_than_what_a_step_takes(self, adm: DiffusionBackend) -> None:
        """Every tensor that lives at once, counted while a batch is truly computed."""
        stage = adm.stages[0]
        with torch.no_grad(), _Meter() as meter:
            stage.denoise(torch.zeros(5, *stage.image_shape), torch.zeros(5, dtype=int), None)
        assert 0.8 * 5 * (memory := estimated(adm).memory) < meter.peak <= 5 * memory

    def test_weights_are_those_of_networks_and_experts(self, adm: DiffusionBackend) -> None:
        run = planned(adm, red_cube())
        cost = counts_of(run)
        network, experts = cost.guide_parameters["classifier"], cost.expert_parameters["classifier"]
        assert len(experts) == 5
        with drawing(run) as draw:
            attached: Any = draw.guides[0].experts
            sizes = (sum(p.numel() for p in attached.parameters(k)) for k in range(5))
            assert experts == tuple(sizes)
        wanted = cost.denoiser_parameters + 2 * network + sum(experts)
        assert 4 * wanted <= estimate(run).weights <= 4.02 * wanted  # with running statistics

    def test_leaves_all_as_it_was(self, guided: DiffusionBackend) -> None:
        network = guided.stages[0].network.train()
        network.requires_grad_(True)
        before = {name: p.clone() for name, p in network.state_dict().items()}
        estimated(guided, prompt="a cat")
        assert network.training
        assert all(p.requires_grad and type(p) is nn.Parameter for p in network.parameters())
        assert all(torch.equal(before[name], p) for name, p in network.state_dict().items())
        first, second = (ppap.sample(guided, num=1, steps=2, prompt="a cat") for _ in range(2))
        assert torch.equal(first.images, second.images)

    def test_what_depends_on_numbers_is_not_known(self, adm: DiffusionBackend) -> None:
        class Fickle(nn.Module):
            def forward(self, images: Tensor) -> Tensor:
                return images.mean((2, 3)) * (2.0 if images.sum() > 0 else 3.0)

        guide = ppap.guide(Fickle(), loss="cross-entropy", target=1)
        with pytest.raises(PpapError, match="what a step takes cannot be counted"):
            estimated(adm, guide)


class TestEvaluations:
    def test_guidance_without_a_classifier_looks_twice(self, guided: DiffusionBackend) -> None:
        base, later = 3 * 4, 3 * 5
        assert counted(guided, prompt="a cat").denoiser_forwards == 2 * base + later
        assert counted(guided).denoiser_forwards == base + later
        assert counted(guided, prompt="").denoiser_forwards == base + later
        compared = counted(guided, colorless(), prompt="a cat", compare=True)
        assert compared.denoiser_forwards == 2 * (2 * base + later)

    @pytest.mark.parametrize(("batch", "evaluations"), [(1, 1 + 1 + 2), (2, 2 + 2), (3, 6)])
    def test_depends_on_who_shares_a_batch(self, guided, batch: int, evaluations: int) -> None:
        asked = {"prompt": ["", "", "a cat"], "batch": batch, "stage": "base", "steps": 4}
        assert counted(guided, **asked).denoiser_forwards == 4 * evaluations
        result = ppap.sample(guided, [colorless()], num=3, **asked)
        assert result.stats.guidance.denoiser_forwards == 4 * evaluations

    def test_is_counted_where_it_happens(self, guided, monkeypatch) -> None:
        seen = []
        for stage in guided.stages:
            predict = stage.network.predict

            def watched(x: Tensor, *rest: Any, predict: Any = predict) -> Tensor:
                seen.append(len(x))
                predicted: Tensor = predict(x, *rest)
                return predicted

            monkeypatch.setattr(stage.network, "predict", watched)
        run = planned(guided, colorless(), prompt="a cat", through="clean")
        with drawing(run) as draw:
            draw(range(3))
            spent = draw.statistics
        cost = counts_of(run)
        assert cost.denoiser_forwards == sum(seen) == 2 * 3 * 4 + 3 * 5
        assert cost.denoiser_backwards == spent.denoiser_backwards == 2 * 3 * 4
        assert spent.denoiser_forwards == 2 * 3 * 4  # guidance sees the first stage only


class TestCommandLine:
    def test_dry_run(self, typed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        asked = ("run", "--backend", "adm", "--guider", "classifier", "--target", "red cube")
        out, told = typed(*asked, "--dry-run"), typed(*asked, "--dry-run", "--json")
        assert (out.code, told.code) == (0, 0)
        for name in ("base forward", "classifier backward", "of the whole run", "of a step"):
            assert name in out.out
        assert f"{json.loads(told.out)['estimate']['flops'] / 1e9:.4g}" in out.out

    def test_run_records_its_cost(self, typed: Run, tmp_path: Path) -> None:
        asked = ("--num", "2", "--steps", "3", "--out", tmp_path / "out")
        assert typed("run", "--backend", "adm", *asked).code == 0
        cost = json.loads((tmp_path / "out" / "run.json").read_text())["cost"]
        assert cost["denoiser_forwards"] == 6
