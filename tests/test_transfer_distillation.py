"""What experts learn, what they learn it from, and what is left as it was."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
from experts_toy import SCHEDULE
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transfer_toy import (
    Convolutions,
    Means,
    Pictures,
    Square,
    anatomy,
    attached,
    bits,
    pictures,
    seen,
    trained,
    untrained,
)

from ppap_framework.components import TaskLoss
from ppap_framework.errors import AssetError, PluginError, PpapError, UsageError
from ppap_framework.experts import ExpertSet
from ppap_framework.learn import Recipe, distillation
from ppap_framework.learn.batches import Batch, TrainingSet, training_batch, validation_batch
from ppap_framework.learn.distillation import Report, check_experts
from ppap_framework.learn.recipe import Phase
from ppap_framework.noise import NoiseLevel

ALPHAS = SCHEDULE.alphas_cumprod.sqrt()

SHORT = Recipe(iterations=12, shared=0.25, batch=6, held_out=0.25, validate_every=2)
"""With two experts: 3 iterations for all, then 5 and 4."""


@pytest.fixture(autouse=True)
def few_batches_for_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation, "_STATISTICS_BATCHES", 4)


def own(experts: ExpertSet, expert: int) -> dict[str, bytes]:
    """What an expert holds, by names without its number."""
    found = {}
    for key, value in bits(experts.state_dict()).items():
        adapter, _, rest = key.partition("/")
        number, _, name = rest.partition(".")
        if number == str(expert):
            found[f"{adapter}/{name}"] = value
    return found


def held(experts: ExpertSet, name: str) -> Tensor:
    return experts.state_dict()[name].clone()


def coloured(count: int, *colour: float, size: int = 8) -> Tensor:
    """Images of one mean colour, (N, 3, H, W), though no two pixels are equal."""
    x0 = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 0.2
    return x0 - x0.mean((2, 3), keepdim=True) + torch.tensor(colour)[:, None, None]


class TestClosedForms:
    """W and b of a linear network are known, and so is what its bias must become.

    The student says W(alpha m + sigma e) + b' of an image with mean colours m, and the teacher W m
    + b. With e of mean 0 and independent of all, E|W((alpha - 1) m + sigma e) + b' - b|^2 is least
    for b' = b + (1 - E alpha) W m.
    """

    recipe = Recipe(iterations=450, shared=0.0, batch=16, learning_rate=0.03, held_out=0.5)
    x0 = coloured(200, 0.3, -0.4, 0.5, size=16)

    def test_experts_find_the_best_bias(self) -> None:
        experts = attached(Means(), 3)
        layer = experts.model.network
        wm = layer.weight.detach() @ torch.tensor([0.3, -0.4, 0.5])
        start = layer.bias.detach().clone()
        training = untrained(experts, self.recipe, self.x0)
        list(training.run())
        for i, owned in enumerate((range(33), range(33, 66), range(66, 100))):
            best = start + (1 - ALPHAS[list(owned)].mean()).float() * wm
            found = held(experts, f"bias/{i}.bias.value")
            torch.testing.assert_close(found, best, rtol=0, atol=0.04)
            assert (found - start).abs().max() > 0.1
        assert all(score["held_out"] < 0.9 * score["untouched"] for score in training.scores)

    def test_labels(self) -> None:
        """E|W(alpha m + sigma e) + b' - y|^2 is least for b' = E y - E alpha W m."""
        experts = attached(Means(), 1)
        labels = torch.tensor([[0.0, 1.0], [2.0, 1.0]]).repeat(100, 1)
        looked: list[Tensor] = []

        def answers(rows: Tensor) -> Tensor:
            looked.append(rows)
            return labels[rows]

        trained(experts, self.recipe, self.x0, answers=answers, supervised=True)
        wm = experts.model.network.weight.detach() @ torch.tensor([0.3, -0.4, 0.5])
        best = labels.mean(0) - ALPHAS.mean().float() * wm
        torch.testing.assert_close(held(experts, "bias/0.bias.value"), best, rtol=0, atol=0.1)
        assert set(torch.cat(looked).tolist()) == set(range(200))

    def test_a_whole_network(self) -> None:
        """`full` learns W' and b', at nearly one level of noise.

        Least squares: W' = W (alpha S) (alpha^2 S + sigma^2 / n I)^-1, with S the covariance of the
        colours and n the number of pixels that noise is averaged over.
        """
        experts = attached(Means(), 1, full={})
        timesteps = range(40, 43)
        m = torch.rand(60, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
        x0 = torch.cat([m, m])[:, :, None, None].expand(120, 3, 8, 8)  # held out are the same
        recipe = Recipe(iterations=500, batch=60, learning_rate=0.05, held_out=0.5)
        layer = experts.model.network
        weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
        trained(experts, recipe, x0, phases=recipe.phases([timesteps]))
        alpha = ALPHAS[list(timesteps)].mean()
        spread = torch.cov(m.double().T, correction=0)
        noisy = alpha**2 * spread + (1 - alpha**2) / 64 * torch.eye(3, dtype=torch.float64)
        best = weight @ (alpha * spread) @ noisy.inverse()
        shift = bias + (weight - alpha * best) @ m.double().mean(0)
        found = held(experts, "full/0.weight.value")
        torch.testing.assert_close(found, best.float(), rtol=0, atol=0.05)
        torch.testing.assert_close(
            held(experts, "full/0.bias.value"), shift.float(), rtol=0, atol=0.05
        )
        assert (found - weight).abs().max() > 0.1


class TestScores:
    def test_are_those_of_the_experts_that_are_left(self) -> None:
        """Computed again by hand, with the experts merged."""
        x0 = seen(pictures())
        experts = attached(Convolutions(), 2, bias={}, lora={"rank": 2, "targets": ["1", "7"]})
        with torch.no_grad():
            answers = experts.model(x0)
        training = untrained(experts, SHORT, x0)
        reports = list(training.run())
        assert training.held_out == 5
        for expert, (score, phase) in enumerate(zip(training.scores, (1, 2), strict=True)):
            timesteps = training.phases[phase].timesteps
            batch = validation_batch((0, phase), 5, timesteps, (3, 8, 8))
            abar = SCHEDULE.alphas_cumprod[batch.timesteps][:, None, None, None]
            x_t = (abar.sqrt() * x0[15:] + (1 - abar).sqrt() * batch.noise).float()
            for merged, said in ((expert, score["held_out"]), (None, score["untouched"])):
                experts.activate(merged)
                with torch.no_grad():
                    answer = experts.model(x_t)
                assert said == pytest.approx((answer - answers[15:]).square().mean().item())
            found = {r.step: r.held_out for r in reports if r.held_out and r.phase == phase}
            assert list(found) == ([2, 4, 5] if phase == 1 else [2, 4])
            assert score["held_out"] <= min(found.values())
            assert min(found, key=lambda step: found[step]) == score["best_iteration"]

    def test_the_best_parameters_are_kept(self) -> None:
        """A rate far too high makes them worse and worse; the first look was the best."""
        recipe = Recipe(iterations=20, shared=0, batch=8, learning_rate=50.0, validate_every=1)
        experts = attached(Means(), 1)
        training = untrained(experts, recipe)
        states, scores = [], []
        for report in training.run():
            states.append(own(experts, 0))
            scores.append(report.held_out)
        best = scores.index(min(scores))
        assert best < 19
        assert own(experts, 0) == states[best]
        assert training.scores[0]["held_out"] == scores[best]
        assert training.scores[0]["best_iteration"] == best + 1

    def test_early_stopping(self) -> None:
        recipe = Recipe(
            iterations=60, shared=0, batch=4, learning_rate=1e-30, validate_every=3, patience=2
        )
        training = untrained(attached(Means(), 2), recipe)
        steps = [
            (report.phase, report.step, report.held_out is None, training.done)
            for report in training.run()
        ]
        # A best validation, and two that are no better.
        assert steps == [
            (phase, step, step % 3 > 0, 30 * phase + step)
            for phase in (0, 1)
            for step in range(1, 10)
        ]
        assert training.phase == len(training.phases)
        assert training.done == 60

    def test_a_network_that_says_infinity_of_noise(self) -> None:
        class Overflow(Square):
            def transfer(self, student: Any, teacher: Any) -> Tensor:
                far = (student - teacher).abs().amax(1)
                return torch.where(far < 1e-3, far.square(), far * (math.inf if stuck else 1))

        stuck = False
        training = untrained(attached(Means(), 1), SHORT, loss=Overflow())
        for report in training.run():
            stuck = report.step == 12
        assert training.scores[0]["untouched"] is None
        assert math.isfinite(training.scores[0]["held_out"] or math.nan)


class TestWhoLearns:
    def test_an_expert_moves_in_its_own_phase_alone(self) -> None:
        experts = attached(Convolutions(), 3, bias={}, lora={"rank": 2, "targets": ["1", "7"]})
        network = dict(experts.model.network.named_parameters())
        recipe = Recipe(iterations=9, shared=0.0, batch=4, validate_every=2)
        before, phase = [own(experts, i) for i in range(3)], 0
        for report in untrained(experts, recipe).run():
            now = [own(experts, i) for i in range(3)]
            if report.phase != phase:  # what ended has taken its best parameters
                before[phase], phase = now[phase], report.phase
            others = [i for i in range(3) if i != report.phase]
            assert [now[i] for i in others] == [before[i] for i in others]
            assert now[report.phase] != before[report.phase]
            before = now
            assert all(parameter.grad is None for parameter in network.values())
            asking = {id(p) for p in experts.model.network.parameters() if p.requires_grad}
            assert asking == {id(p) for p in experts.parameters(report.phase)}
            assert all(p.grad is not None for p in experts.parameters(report.phase))

    def test_every_parameter_and_statistic_of_an_expert_moves(self) -> None:
        experts = attached(Convolutions(), 2, bias={}, lora={"rank": 2, "targets": ["1", "7"]})
        before = [own(experts, i) for i in range(2)]
        trained(experts, SHORT)
        for i in range(2):
            now = own(experts, i)
            assert [name for name in now if now[name] == before[i][name]] == []
        assert own(experts, 0) != own(experts, 1)

    @pytest.mark.parametrize("chain", [False, True])
    def test_what_others_learn_matters_to_a_chain_alone(self, chain: bool) -> None:
        """Expert 1 beside a neighbour that learns much, little, or something else."""
        recipe = Recipe(iterations=12, shared=0.0, chain=chain, batch=6, validate_every=3)
        results = []
        for iterations, timesteps in ((6, range(50)), (1, range(50)), (6, range(3, 20))):
            experts = attached(Convolutions(), 2, bias={}, lora={"rank": 2, "targets": ["1", "7"]})
            first, second = recipe.phases([timesteps, range(50, 100)])
            first = attrs.evolve(first, iterations=iterations)
            trained(experts, recipe, phases=(first, second))
            results.append(own(experts, 1))
        equal = [result == results[0] for result in results[1:]]
        assert equal == [not chain] * 2

    @pytest.mark.parametrize("chain", [False, True])
    def test_what_a_phase_begins_with(self, chain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where those that begin with something stand still, they end with it."""
        monkeypatch.setattr(
            Recipe, "rate", lambda _, phase, step: 1e-2 if phase.begins_with is None else 0.0
        )
        recipe = Recipe(iterations=12, chain=chain, batch=6, held_out=0.2, validate_every=6)
        experts = attached(Convolutions(), 3, bias={}, lora={"rank": 2, "targets": ["1", "7"]})
        fresh = parameters(experts, 0)
        start: dict[str, bytes] = {}
        training = untrained(experts, recipe)
        for report in training.run():
            if report.phase == 1 and not start:
                start = parameters(experts, 0)
        assert start != fresh
        assert [parameters(experts, i) == start for i in range(3)] == [True] * 3

    def test_the_shared_start_learns_from_all_levels(self) -> None:
        levels: dict[int, list[float]] = {}
        experts = attached(Means(), 2)
        forward = experts.model.forward

        def watched(images: Tensor, level: NoiseLevel | None = None) -> Any:
            if level is not None and torch.is_grad_enabled():
                levels.setdefault(training.phase, []).extend(level.log_snr.tolist())
            return forward(images, level)

        experts.model.forward = watched  # type: ignore[method-assign]  # a spy
        training = untrained(experts, Recipe(iterations=60, batch=32))
        list(training.run())
        border = (SCHEDULE.log_snr[49] + SCHEDULE.log_snr[50]).item() / 2
        above = {phase: sum(x > border for x in found) for phase, found in levels.items()}
        assert [len(levels[phase]) for phase in range(3)] == [30 * 32, 15 * 32, 15 * 32]
        assert above == {0: 15 * 32, 1: 15 * 32, 2: 0}  # halves, since timesteps are stratified


def parameters(experts: ExpertSet, expert: int) -> dict[str, bytes]:
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return {name: b for name, b in own(experts, expert).items() if not name.endswith(statistics)}


class TestWhatIsLookedAt:
    def test_held_out_images_are_never_learned_from(self) -> None:
        x0 = seen(pictures(23))
        experts = attached(Convolutions(), 2)
        norms = [m for m in experts.model.network if isinstance(m, nn.BatchNorm2d)]
        learned: list[int] = []
        examined: list[int] = []

        def images(rows: Tensor) -> Tensor:
            kinds = {norm.training for norm in norms}
            assert len(kinds) == 1
            assert not torch.is_grad_enabled() or kinds == {True}
            (learned if kinds == {True} else examined).extend(rows.tolist())
            return x0[rows]

        recipe = Recipe(iterations=30, batch=5, held_out=0.3, validate_every=4)
        training = untrained(experts, recipe, x0, images=images)
        assert training.held_out == 7
        reports = list(training.run())
        assert set(learned) == set(range(16))
        assert set(examined) == set(range(16, 23))
        looks = sum(report.held_out is not None for report in reports)
        # Besides, one for the estimated statistics of each phase, one for each bare network.
        assert len(examined) == 7 * (looks + 3 + 2)
        assert len(learned) == 5 * (30 + 3 * 4)

    @pytest.mark.parametrize(
        ("count", "share", "held_out"), [(2, 0.9, 1), (2, 0.01, 1), (10, 0.25, 2), (10, 0.99, 9)]
    )
    def test_how_many_are_held_out(self, count: int, share: float, held_out: int) -> None:
        recipe = Recipe(iterations=2, held_out=share)
        assert untrained(attached(Means(), 1), recipe, seen(pictures(count))).held_out == held_out

    def test_the_network_is_in_evaluation_mode_but_for_its_own_norms(self) -> None:
        model = Convolutions()
        found: list[list[bool]] = []
        model.network[4].register_forward_pre_hook(
            lambda *_: found.append([module.training for module in model.network])
        )
        for options, norms in (({"bias": {}}, True), ({"lora": {"rank": 1}}, False)):
            experts = attached(model, 1, **options)
            found.clear()
            for _ in untrained(experts, SHORT).run():
                # Before a report the network saw a training batch, perhaps a validation after it.
                assert [norms, False, norms, *[False] * 5] in found[-2:]
            experts.detach()
            assert found[-1] == [False] * 8


class TestStatistics:
    def inputs(self, x0: Tensor, iterations: int, phase: int, timesteps: range) -> list[Tensor]:
        """What the first batch norm sees while statistics are estimated, float64."""
        batches = []
        for step in range(4):
            drawn = training_batch((0, phase), iterations + step, 6, 15, timesteps, (3, 8, 8))
            abar = SCHEDULE.alphas_cumprod[drawn.timesteps][:, None, None, None]
            batches.append(abar.sqrt() * x0[drawn.images] + (1 - abar).sqrt() * drawn.noise)
        return batches

    def test_are_averages_over_known_batches(self) -> None:
        model, x0 = Convolutions(), seen(pictures()).double()
        norm = model.network[0]
        norm.running_mean.fill_(3.0)  # so that the estimate is sure to be better
        norm.momentum = 1e-9
        experts = attached(model, 2)
        recipe = attrs.evolve(SHORT, shared=0.0)
        trained(experts, recipe, x0.float(), answers=lambda rows: torch.zeros(len(rows), 4))
        for expert, timesteps in enumerate((range(50), range(50, 100))):
            batches = self.inputs(x0, 6, expert, timesteps)
            pixels = [batch.transpose(0, 1).flatten(1) for batch in batches]
            mean = sum(batch.mean(1) for batch in pixels) / 4
            variance = sum(batch.var(1, correction=1) for batch in pixels) / 4
            name = f"bias/{expert}.0"
            for found, wanted in (("running_mean", mean), ("running_var", variance)):
                torch.testing.assert_close(held(experts, f"{name}.{found}"), wanted.float())
            assert held(experts, f"{name}.num_batches_tracked") == 4
        assert norm.running_mean.tolist() == [3.0] * 3
        assert norm.momentum == 1e-9

    def test_what_was_gathered_stays_where_an_estimate_is_worse(self) -> None:
        """The teacher's own statistics are best for what is hardly noisy."""
        model = Convolutions()
        norm = model.network[0]
        norm.running_mean.fill_(0.5)
        norm.running_var.fill_(9.0)
        norm.momentum = model.network[2].momentum = 1e-9
        experts = attached(model, 1)
        recipe = Recipe(iterations=3, batch=6, learning_rate=1e-20, validate_every=1)
        training = untrained(experts, recipe, phases=recipe.phases([range(2)]))
        looks = [r.held_out for r in training.run() if r.held_out is not None]
        assert training.scores[0]["held_out"] == min(looks)
        kept = held(experts, "bias/0.0.running_mean")
        torch.testing.assert_close(kept, torch.full((3,), 0.5))

    def test_gathered_ones_are_those_of_the_batches_that_were_learned_from(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(distillation, "averaging", lambda norms: contextlib.nullcontext())
        monkeypatch.setattr(distillation, "_STATISTICS_BATCHES", 0)
        model, x0 = Convolutions(), seen(pictures()).double()
        experts = attached(model, 1)
        recipe = Recipe(iterations=4, batch=6, held_out=0.25, validate_every=4)
        trained(experts, recipe, x0.float())
        mean = torch.zeros(3, dtype=torch.float64)
        for batch in self.inputs(x0, 0, 0, range(100)):
            mean = 0.9 * mean + 0.1 * batch.mean((0, 2, 3))
        torch.testing.assert_close(held(experts, "bias/0.0.running_mean").double(), mean)

    def test_without_own_statistics_the_networks_are_used(self) -> None:
        model = Convolutions()
        before = bits(dict(model.named_buffers()))
        experts = attached(model, 2, lora={"rank": 2, "targets": ["1", "7"]})
        trained(experts, SHORT)
        assert bits(dict(model.named_buffers())) == before
        assert not [name for name in experts.state_dict() if "running" in name]


class TestUntouched:
    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize(
        "adapters",
        [{"bias": {}}, {"lora": {"rank": 2, "targets": ["1"]}, "bias": {}}, {"full": {}}],
        ids=["bias", "lora+bias", "full"],
    )
    def test_the_network_is_left_as_it_was(self, training: bool, adapters: dict[str, Any]) -> None:
        model = Convolutions().train(training)
        next(model.network.parameters()).requires_grad_(False)
        before = anatomy(model)
        experts = attached(model, 2, **adapters)
        trained(experts, SHORT)
        assert anatomy(model) == before
        experts.detach()
        assert anatomy(model) == before

    @pytest.mark.parametrize("call", [0, 1, 4, 9, 15, 30])
    def test_also_by_whoever_leaves(self, call: int) -> None:
        """After a report, or by an error in the middle."""
        model, x0 = Convolutions(), seen(pictures())
        before = anatomy(model)
        experts = attached(model, 2)
        with contextlib.closing(untrained(experts, SHORT).run()) as reports:
            for _ in range(1 + call % 12):
                next(reports)
        assert anatomy(model) == before
        calls = iter(range(1000))

        def images(rows: Tensor) -> Tensor:
            if next(calls) == call:
                raise KeyboardInterrupt
            return x0[rows]

        with pytest.raises(KeyboardInterrupt):
            trained(experts, SHORT, x0, images=images)
        assert anatomy(model) == before
        experts.detach()
        assert anatomy(model) == before

    def test_nobody_elses_random_numbers_are_used(self) -> None:
        training = untrained(attached(Convolutions(), 2), SHORT)
        torch.manual_seed(3)
        state = torch.get_rng_state()
        list(training.run())
        assert torch.equal(torch.get_rng_state(), state)


class Odd(Square):
    """A loss that something is wrong with."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        self._change = change

    def energy(self, prediction: Any, target: Tensor) -> Tensor:
        return self._change(super().energy(prediction, target))


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda losses: losses.mean(), r"gave \(\) for 6 images"),
            (lambda losses: losses[:, None], r"gave \(6, 1\) for 6 images"),
            (lambda losses: losses[1:], r"gave \(5,\) for 6 images"),
            (lambda losses: losses.detach(), "cannot be differentiated"),
        ],
    )
    def test_losses_of_another_make(self, change: Callable[[Tensor], Tensor], said: str) -> None:
        with pytest.raises(PluginError, match=said) as caught:
            trained(attached(Means(), 2), SHORT, loss=Odd(change))
        assert caught.value.hint

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_loss_that_is_not_finite(self, value: float) -> None:
        model = Means()
        before = anatomy(model)
        experts = attached(model, 2)
        calls = iter(range(1000))

        def change(losses: Tensor) -> Tensor:
            # After 3 iterations and 2 validations of the start, and an iteration of expert 0.
            return losses * value if next(calls) == 6 else losses

        reports: list[Report] = []
        with pytest.raises(PpapError) as caught:
            reports.extend(untrained(experts, SHORT, loss=Odd(change)).run())
        assert caught.value.message == f"the loss of expert 0 is {value} at iteration 2"
        assert "learning rate" in caught.value.hint
        assert anatomy(model) == before

    def test_held_out_images_of_which_nothing_finite_can_be_said(self) -> None:
        def change(losses: Tensor) -> Tensor:
            return losses if torch.is_grad_enabled() else losses * math.nan

        with pytest.raises(PpapError, match="of shared on held-out images was never finite"):
            trained(attached(Means(), 2), SHORT, loss=Odd(change))

    def test_one_bad_look_is_forgotten(self) -> None:
        calls = iter(range(1000))

        def change(losses: Tensor) -> Tensor:
            first = not torch.is_grad_enabled() and next(calls) == 0
            return losses * math.nan if first else losses

        recipe = Recipe(iterations=4, batch=6, validate_every=1)
        training = untrained(attached(Means(), 1), recipe, loss=Odd(change))
        looks = [r.held_out for r in training.run() if r.held_out is not None]
        assert looks[0] == math.inf
        assert training.scores[0]["held_out"] == min(looks) < math.inf

    def test_labels_that_do_not_fit(self) -> None:
        class Classes(Square):
            def energy(self, prediction: Any, target: Tensor) -> Tensor:
                return nn.functional.cross_entropy(prediction, target, reduction="none")

        answers = torch.full((20,), 7).__getitem__
        with pytest.raises(AssetError, match=r"labels do not fit .*out of bounds") as caught:
            trained(attached(Means(), 1), SHORT, loss=Classes(), answers=answers, supervised=True)
        assert "\n" not in str(caught.value)

    def test_experts_that_hold_nothing_to_train(self) -> None:
        model = Convolutions()
        model.network = nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.Flatten())
        with pytest.raises(UsageError, match="bias find no parameter to train in Sequential"):
            check_experts(attached(model, 1), SHORT)

    def test_batch_norms_and_single_images(self) -> None:
        recipe = Recipe(iterations=2, batch=1)
        with pytest.raises(UsageError, match="batch of one image says nothing"):
            check_experts(attached(Convolutions(), 1), recipe)
        check_experts(attached(Means(), 1), recipe)
        trained(attached(Means(), 1), recipe)

    def test_predictions_that_are_no_tensors(self) -> None:
        class Worded(Means):
            def forward(self, images: Tensor, level: NoiseLevel | None = None) -> Any:
                return {"answer": super().forward(images), "words": "so so"}

        with pytest.raises(PluginError, match="prediction has a str in it"):
            trained(attached(Worded(), 1), SHORT, answers=lambda rows: torch.zeros(len(rows)))


class TestPrecision:
    def test_bfloat16_products_and_float32_losses(self) -> None:
        dtypes: set[tuple[torch.dtype, torch.dtype]] = set()

        class Watched(Square):
            def transfer(self, student: Any, teacher: Any) -> Tensor:
                dtypes.add((student.dtype, teacher.dtype))
                return super().transfer(student, teacher)

        results = {}
        for precision in ("float32", "bfloat16"):
            experts = attached(Convolutions(), 2)
            products = set()
            experts.model.network[1].register_forward_hook(
                lambda module, given, out, products=products: products.add(out.dtype)
            )
            recipe = attrs.evolve(SHORT, precision=precision)
            training = untrained(experts, recipe, loss=Watched())
            list(training.run())
            results[precision] = training.scores
            assert products == {getattr(torch, precision), torch.float32}  # the teacher's
            state = experts.state_dict()
            assert {state[n].dtype for n in state if "tracked" not in n} == {torch.float32}
        assert dtypes == {(torch.float32, torch.float32)}
        for rough, exact in zip(results["bfloat16"], results["float32"], strict=True):
            assert rough["untouched"] == pytest.approx(exact["untouched"], rel=0.05)
            assert rough["untouched"] != exact["untouched"]

    def test_nested_predictions(self) -> None:
        """A mapping of tuples learns as its one tensor does."""

        class Nested(Means):
            def forward(self, images: Tensor, level: NoiseLevel | None = None) -> Any:
                return {"answer": (super().forward(images), None)}

        class Unpacked(Square):
            def transfer(self, student: Any, teacher: Any) -> Tensor:
                assert student["answer"][1] is teacher["answer"][1] is None
                return super().transfer(student["answer"][0], teacher["answer"][0])

        plain, nested = attached(Means(), 2), attached(Nested(), 2)
        trained(plain, SHORT)
        stage: Any = SimpleNamespace(latent_shape=None, shape=(3, 8, 8))
        drawn, place = Pictures({"base": pictures()}), torch.device("cpu")
        data = TrainingSet.of(drawn, nested.model, 6, place, stage)
        trained(nested, SHORT, loss=Unpacked(), answers=data.answers)
        assert bits(nested.state_dict()) == bits(plain.state_dict())


def gone_on(reports: int, recipe: Recipe, number: int) -> tuple[list[Report], Any, Any]:
    """A training that is left after so many reports, then twice as many, and so on, each time by
    another process.
    """
    state: dict[str, Any] | None = None
    found: list[Report] = []
    while True:
        experts = attached(Convolutions(), number, bias={}, lora={"rank": 2, "targets": ["1", "7"]})
        training = untrained(experts, recipe)
        if state is not None:
            training.load_state_dict(state)
        with contextlib.closing(training.run()) as run:
            for report in run:
                found.append(report)
                if len(found) >= reports:
                    file = io.BytesIO()
                    torch.save(training.state_dict(), file)
                    file.seek(0)
                    state = torch.load(file, weights_only=True)
                    reports += reports
                    break
            else:
                return found, bits(experts.state_dict()), training.scores


class TestGoingOn:
    @pytest.mark.parametrize(
        ("recipe", "number"),
        [
            (SHORT, 2),
            (attrs.evolve(SHORT, patience=1), 2),
            (attrs.evolve(SHORT, chain=True, shared=0.0), 3),
        ],
        ids=["", "patience", "chain"],
    )
    def test_from_a_state_after_any_report(self, recipe: Recipe, number: int) -> None:
        whole = gone_on(1000, recipe, number)
        for reports in range(1, len(whole[0]) + 1):
            assert gone_on(reports, recipe, number) == whole

    def test_the_state_of_other_experts(self) -> None:
        state = untrained(attached(Means(), 2), SHORT).state_dict()
        with pytest.raises(AssetError, match="do not fit"):
            untrained(attached(Means(), 3), SHORT).load_state_dict(state)


def test_every_loss_learns_by_its_name() -> None:
    """Nothing of a loss is asked but `transfer`."""

    class Transfer(TaskLoss):
        def energy(self, prediction: Any, target: Tensor) -> Tensor:
            raise NotImplementedError

        def transfer(self, student: Any, teacher: Any) -> Tensor:
            return (student - teacher).abs().sum(1)

    training = untrained(
        attached(Means(), 2),
        Recipe(iterations=200, learning_rate=0.02),
        coloured(100, 0.5, -0.5, 0.0, size=16),
        loss=Transfer(),
    )
    list(training.run())
    assert all(score["held_out"] < 0.9 * score["untouched"] for score in training.scores)


SEEDS = st.integers(-(2**63), 2**64)
RANGES = st.tuples(st.integers(0, 50), st.integers(1, 200)).map(lambda p: range(p[0], sum(p)))


def drawn(step: int = 3, *, seed: int = 0, phase: int = 0, **changes: Any) -> Batch:
    settings = {"size": 4, "count": 10, "timesteps": range(10, 50), "shape": (3, 2, 2), **changes}
    return training_batch((seed, phase), step, **settings)


def same(one: Batch, other: Batch) -> bool:
    return (
        torch.equal(one.images, other.images)
        and torch.equal(one.timesteps, other.timesteps)
        and torch.equal(one.noise, other.noise)
    )


class TestTrainingBatch:
    @given(SEEDS, st.integers(0, 9), st.integers(1, 12), st.integers(1, 12), st.integers(1, 4))
    def test_every_image_once_in_each_epoch(
        self, seed: int, phase: int, batch: int, count: int, epochs: int
    ) -> None:
        steps = range(math.ceil(count * epochs / batch))
        settings: dict[str, Any] = {"seed": seed, "phase": phase, "size": batch, "count": count}
        images = torch.cat([drawn(step, **settings).images for step in steps]).tolist()
        for epoch in range(epochs):
            assert sorted(images[epoch * count : (epoch + 1) * count]) == list(range(count))

    def test_in_another_order_each_time(self) -> None:
        orders = {
            tuple(drawn(step, phase=phase, size=30, count=30).images.tolist())
            for step in range(5)
            for phase in range(5)
        }
        assert len(orders) == 25
        assert tuple(range(30)) not in orders

    @given(SEEDS, st.integers(0, 10**6), st.integers(1, 64), RANGES)
    def test_a_timestep_from_each_of_equal_parts(
        self, seed: int, step: int, batch: int, timesteps: range
    ) -> None:
        found = drawn(step, seed=seed, size=batch, timesteps=timesteps).timesteps
        assert found.dtype == torch.int64
        assert found.shape == (batch,)
        width = len(timesteps)
        for part, offset in enumerate((found - timesteps.start).tolist()):
            assert part * width // batch <= offset < math.ceil((part + 1) * width / batch)

    def test_every_timestep_is_as_likely(self) -> None:
        counts = torch.zeros(10)
        for step in range(2000):
            found = drawn(step, size=3, timesteps=range(5, 15)).timesteps - 5
            counts += torch.bincount(found, minlength=10)
        expected, spread = 600, (6000 * 0.1 * 0.9) ** 0.5
        assert (counts - expected).abs().max() < 5 * spread

    def test_noise_is_standard_normal(self) -> None:
        noise = drawn(size=64, shape=(3, 20, 20)).noise
        assert noise.shape == (64, 3, 20, 20)
        assert noise.mean().abs() < 5 / noise.numel() ** 0.5
        assert (noise.var() - 1).abs() < 5 * (2 / noise.numel()) ** 0.5
        assert len({row.sum().item() for row in noise}) == 64

    def test_a_function_of_its_arguments_alone(self) -> None:
        first = drawn()
        for other in range(4):
            torch.manual_seed(other)
            drawn(other)
            state = torch.get_rng_state()
            assert same(drawn(), first)
            assert torch.equal(torch.get_rng_state(), state)  # and it takes nothing from others

    @given(
        st.lists(
            st.tuples(SEEDS.filter(lambda s: abs(s) < 2**32), *[st.integers(0, 2**20)] * 2),
            min_size=2,
            max_size=2,
            unique=True,
        )
    )
    def test_other_streams_differ(self, words: list[tuple[int, int, int]]) -> None:
        one, other = (drawn(step, seed=seed, phase=phase) for seed, phase, step in words)
        assert not torch.equal(one.noise, other.noise)


class TestValidationBatch:
    @given(SEEDS, st.integers(0, 9), st.integers(1, 60), RANGES)
    def test_every_image_once_over_the_whole_range(
        self, seed: int, phase: int, count: int, timesteps: range
    ) -> None:
        exam = validation_batch((seed, phase), count=count, timesteps=timesteps, shape=(3, 1, 1))
        assert exam.images.tolist() == list(range(count))
        offsets = sorted((exam.timesteps - timesteps.start).tolist())
        # In the middle of each of `count` equal parts.
        assert offsets == [(2 * i + 1) * len(timesteps) // (2 * count) for i in range(count)]
        assert exam.noise.shape == (count, 3, 1, 1)

    def test_is_always_the_same_and_no_training_batch(self) -> None:
        settings: dict[str, Any] = {"timesteps": range(90), "shape": (3, 2, 2), "count": 10}
        one = validation_batch((1, 2), **settings)
        torch.manual_seed(5)
        assert same(validation_batch((1, 2), **settings), one)
        assert not torch.equal(validation_batch((1, 3), **settings).noise, one.noise)
        assert not torch.equal(validation_batch((2, 2), **settings).timesteps, one.timesteps)
        assert not torch.equal(training_batch((1, 2), 0, 10, **settings).noise, one.noise)


class TestPhases:
    @given(
        st.lists(st.integers(1, 9), min_size=1, max_size=9),
        st.integers(1, 300),
        st.floats(0, 1, exclude_max=True),
        st.booleans(),
    )
    def test_iterations_add_up(
        self, widths: list[int], iterations: int, shared: float, chain: bool
    ) -> None:
        ends = [sum(widths[:i]) for i in range(len(widths) + 1)]
        owned = [range(first, end) for first, end in pairwise(ends)]
        recipe = Recipe(iterations=iterations, shared=shared, chain=chain)
        n = len(owned)
        common = 0 if chain or n == 1 else round(iterations * shared)
        if iterations - common < n:
            with pytest.raises(UsageError, match=f"cannot be shared out among {n} experts"):
                recipe.phases(owned)
            return
        phases = recipe.phases(owned)
        assert sum(phase.iterations for phase in phases) == iterations
        own = [phase for phase in phases if not phase.shared]
        assert [(phase.expert, phase.timesteps) for phase in own] == list(enumerate(owned))
        assert max(p.iterations for p in own) - min(p.iterations for p in own) <= 1
        if common:
            first = Phase(0, range(ends[-1]), common, None, shared=True)
            assert phases == (first, *own)
            assert {phase.begins_with for phase in own} == {-1}
        else:
            assert phases == tuple(own)
            before = [None, *range(n - 1)] if chain else [None] * n
            assert [phase.begins_with for phase in own] == before

    def test_names(self) -> None:
        phases = Recipe(iterations=10).phases([range(3), range(3, 5)])
        assert [phase.name for phase in phases] == ["shared", "expert 0", "expert 1"]

    def test_an_expert_without_timesteps(self) -> None:
        with pytest.raises(UsageError, match="expert 1 owns no timestep"):
            Recipe().phases([range(3), range(3, 3), range(3, 5)])


class TestRate:
    @given(st.integers(1, 3000), st.floats(1e-6, 1))
    def test_it_rises_and_then_falls_to_nothing(self, iterations: int, highest: float) -> None:
        phase = Phase(0, range(1), iterations, None)
        recipe = Recipe(learning_rate=highest)
        rates = [recipe.rate(phase, step) for step in range(iterations)]
        rising = max(1, min(100, iterations // 10))
        assert max(rates) == pytest.approx(highest)
        assert rates[:rising] == pytest.approx([highest * (i + 1) / rising for i in range(rising)])
        left = max(1, iterations - rising)
        falling = [highest * (left - i) / left for i in range(iterations - rising)]
        assert rates[rising:] == pytest.approx(falling)
        assert min(rates) > 0


BAD: list[tuple[str, Any]] = [
    *((name, value) for name in ("iterations", "batch", "validate_every") for value in (0, -1)),
    *((name, value) for name in ("iterations", "batch", "seed") for value in (1.5, True, "7")),
    *(("patience", value) for value in (-1, 0.5)),
    *(("shared", value) for value in (1.0, -0.1, math.nan, "half", None)),
    *(("held_out", value) for value in (0.0, 1.0, math.nan, "some")),
    *(("learning_rate", value) for value in (0.0, -1.0, math.inf, math.nan, "fast")),
    *(("weight_decay", value) for value in (-1.0, math.inf, math.nan)),
    *(("precision", value) for value in ("float16", None)),
    ("chain", "yes"),
    *(("num_experts", value) for value in (0, True, 2.0)),
    ("boundaries", "even"),
]


class TestProblems:
    @pytest.mark.parametrize(("name", "value"), BAD)
    def test_a_bad_value(self, name: str, value: Any) -> None:
        [error] = Recipe(**{name: value}).problems()
        assert error.message.startswith(name)
        assert repr(value).strip("'") in error.message
        assert error.hint

    def test_all_bad_values_at_once(self) -> None:
        bad = dict(BAD)
        errors = [str(error) for error in Recipe(**bad).problems()]
        assert not any("\n" in error for error in errors)
        assert {error.split()[0] for error in errors} == set(bad)

    def test_good_ones(self) -> None:
        assert not [*Recipe().problems()]
        good = {"shared": 0, "patience": 3, "seed": -5, "held_out": 0.5, "batch": 1}
        assert not [*Recipe(**good, precision="bfloat16", boundaries=[3, 9]).problems()]
