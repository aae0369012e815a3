"""What experts with parameters and statistics of their own hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from ppap_framework.components import ExpertAdapter
from ppap_framework.errors import UsageError
from ppap_plugin_bias.adapter import make_bias, make_full

Make = Callable[[], ExpertAdapter]


class RMSNorm(nn.Module):
    """Some make that no library knows, with a buffer that is no running statistic."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(width))
        self.register_buffer("eps", torch.tensor(1e-6))

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(1, keepdim=True) + self.eps).rsqrt() * self.g[:, None, None]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3),
        nn.GroupNorm(2, 8),
        RMSNorm(8),
        nn.BatchNorm2d(8, affine=False, momentum=None),
        parametrizations.weight_norm(nn.Conv2d(8, 4, 1), dim=None),  # a scalar, but no scale
    ).eval()


def attached(module: nn.Module, experts: int = 2, make: Make = make_bias) -> ExpertAdapter:
    adapter = make()
    adapter.attach(module, experts)
    return adapter


def test_what_it_finds() -> None:
    parameters = ["1.weight", "1.bias", "2.bias", "3.weight", "3.bias", "4.g", "6.bias"]
    statistics = ["running_mean", "running_var", "num_batches_tracked"]
    buffers = [f"{norm}.{name}" for norm in (1, 5) for name in statistics]
    assert list(attached(network(), 1).state_dict()) == [
        *(f"0.{name}.value" for name in parameters),
        *(f"0.{name}" for name in buffers),
    ]


@pytest.mark.parametrize("make", [make_bias, make_full])
def test_experts_start_as_copies(make: Make) -> None:
    module = network()
    state = attached(module, make=make).state_dict()
    assert torch.equal(state["0.2.bias.value"], module[2].bias)
    assert torch.equal(state["1.1.running_var"], module[1].running_var)
    places = {tensor.data_ptr() for tensor in [*module.parameters(), *module.buffers()]}
    assert not places & {tensor.data_ptr() for tensor in state.values()}


@pytest.mark.parametrize("make", [make_bias, make_full])
@pytest.mark.parametrize("batches", [True, False])
def test_statistics_are_the_experts_own(batches: bool, make: Make) -> None:
    """The running statistics that a network of its own would have after the same batches."""
    module, alone = network(), network().train(batches)
    adapter = attached(module, make=make)
    with adapter.training(1):
        module.train(batches)
        for seed in range(3):
            x = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(seed)) + seed
            with torch.no_grad():
                module(x)
                alone(x)
        module.eval()
    state, expected = adapter.state_dict(), alone.state_dict()
    untouched = network().state_dict()
    for norm in (1, 5):
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            key = f"{norm}.{name}"
            assert torch.equal(state[f"1.{key}"], expected[key])
            assert torch.equal(state[f"0.{key}"], untouched[key])
            assert torch.equal(module.state_dict()[key], untouched[key])
            assert torch.equal(expected[key], untouched[key]) is not batches
    adapter.activate(1)
    assert torch.equal(module(x), alone.eval()(x))


def test_training_is_fine_tuning_of_just_those() -> None:
    module, alone = network(), network()
    adapter = attached(module)
    x = torch.randn(4, 3, 9, 9)
    with adapter.training(0):
        module(x).square().sum().backward()
    alone(x).square().sum().backward()
    own = dict(alone.named_parameters())
    for name, parameter in zip(
        ["1.weight", "1.bias", "2.bias", "3.weight", "3.bias", "4.g", "6.bias"],
        adapter.parameters(0),
        strict=True,
    ):
        torch.testing.assert_close(parameter.grad, own[name].grad)


def test_a_module_that_exchanges_its_statistics() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("num_batches_tracked", torch.tensor(0))

        def forward(self, x: Tensor) -> Tensor:
            self.num_batches_tracked = self.num_batches_tracked + 1
            return x

    module = nn.Sequential(Counter())
    adapter = attached(module)
    with adapter.training(1):
        module(module(torch.ones(1)))
    values = {name: tensor.item() for name, tensor in adapter.state_dict().items()}
    assert values == {"0.0.num_batches_tracked": 0, "1.0.num_batches_tracked": 2}
    assert module[0].num_batches_tracked == 0


class TestFull:
    def test_it_finds_everything_but_what_weights_are_computed_from(self) -> None:
        module = network()
        held = {
            *(name for name, _ in module.named_parameters() if "parametrizations" not in name),
            *(name for name, _ in module.named_buffers() if name != "4.eps"),
        }
        assert "0.weight" in held
        state = attached(module, 1, make_full).state_dict()
        assert {name.removeprefix("0.").removesuffix(".value") for name in state} == held

    def test_a_bundle_is_n_times_the_network(self) -> None:
        module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5))
        sizes = [tensor.numel() for tensor in module.state_dict().values()]
        for experts in (1, 4):
            adapter = attached(module, experts, make_full)
            held = [tensor.numel() for tensor in adapter.state_dict().values()]
            assert sum(held) == experts * sum(sizes)
            adapter.detach()

    def test_training_is_fine_tuning(self) -> None:
        """Adam, batch statistics and all: what a copy of the network becomes, to the last bit."""
        module, alone = network()[:6], network()[:6]
        adapter = attached(module, make=make_full)
        wanted = torch.optim.Adam(alone.parameters(), 0.01)
        alone.train()
        with adapter.training(1):
            module.train()
            optimizer = torch.optim.Adam(adapter.parameters(1), 0.01)
            for seed in range(4):
                x = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(seed))
                for network_, steps in ((module, optimizer), (alone, wanted)):
                    steps.zero_grad()
                    (network_(x) - 1).square().mean().backward()
                    steps.step()
            module.eval()
        adapter.activate(1)
        for name, tensor in alone.state_dict().items():
            assert torch.equal(module.state_dict()[name], tensor), name

    def test_it_leaves_room_for_no_other(self) -> None:
        module = network()
        adapter = attached(module, make=make_full)
        with pytest.raises(UsageError, match=r"changes 1\.weight too"):
            make_bias().attach(module, 2)
        adapter.detach()
        adapter = attached(module)
        with pytest.raises(UsageError, match=r"changes 1\.weight too"):
            make_full().attach(module, 2)

    def test_nothing_to_train(self) -> None:
        with pytest.raises(UsageError, match="ReLU has no parameters to train") as caught:
            make_full().attach(nn.ReLU(), 1)
        assert caught.value.hint == "give it a layer that experts can change"
