"""LoRA against the definition of a low-rank layer, and what it finds in networks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from ppap_framework.components import ExpertAdapter
from ppap_framework.errors import UsageError
from ppap_plugin_lora.adapter import make_lora
from ppap_plugin_lora.options import LoraOptions


def attached(network: nn.Module, experts: int = 1, **options: object) -> ExpertAdapter:
    adapter = make_lora(LoraOptions(**options))
    adapter.attach(network, experts)
    return adapter


@torch.no_grad()
def filled(adapter: ExpertAdapter) -> dict[str, Tensor]:
    """An adapter's tensors, B no longer 0."""
    generator = torch.Generator().manual_seed(1)
    for tensor in adapter.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return dict(adapter.state_dict())


def found(network: nn.Module, **options: object) -> list[str]:
    names = attached(network, **options).state_dict()
    return [name[2:-7] for name in names if name.endswith(".lora_A")]


@settings(max_examples=40, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 4]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    rank=st.integers(1, 3),
    alpha=st.sampled_from([0.5, 4.0]),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_convolution_is_two_convolutions(
    groups: int,
    kernel: tuple[int, int],
    stride: int,
    dilation: int,
    rank: int,
    alpha: float,
    layout: torch.memory_format,
) -> None:
    """Each group: first into r channels with A, then 1 x 1 into its outputs with its rows of B."""
    layer = nn.Conv2d(
        4, 8, kernel, stride=stride, padding=2, dilation=dilation, groups=groups
    ).double()
    network = nn.Sequential(layer).to(memory_format=layout)
    adapter = attached(network, rank=rank, alpha=alpha, targets="0")
    state = filled(adapter)
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    expected = layer(x)
    a = state["0.0.weight.lora_A"].view(rank, 4 // groups, *kernel)
    rows = state["0.0.weight.lora_B"].chunk(groups)
    expected = expected + alpha / rank * torch.cat(
        [
            F.conv2d(F.conv2d(part, a, None, stride, 2, dilation), b[:, :, None, None])
            for part, b in zip(x.chunk(groups, 1), rows, strict=True)
        ],
        1,
    )
    with adapter.training(0):
        torch.testing.assert_close(network(x), expected)
    adapter.activate(0)
    torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize("variant", ["plain", "reshaped"])
def test_linear_is_two_linears(variant: str) -> None:
    layer = nn.Linear(6, 5).double()
    network = nn.Sequential(layer)
    adapter = attached(network, rank=2, alpha=3, targets="0", variant=variant)
    state = filled(adapter)
    x = torch.randn(4, 6, dtype=torch.float64)
    a, b = state["0.0.weight.lora_A"], state["0.0.weight.lora_B"]
    expected = layer(x) + 1.5 * F.linear(F.linear(x, a), b)
    adapter.activate(0)
    torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize("kernel, inner", [(1, 2), (3, 6), ((1, 3), 2), ((3, 1), 2), ((2, 3), 4)])
def test_reshaped_rank_grows_with_the_smaller_side(kernel: object, inner: int) -> None:
    network = nn.Conv2d(8, 8, kernel, groups=2)
    adapter = attached(network, rank=2, alpha=2, targets="*", variant="reshaped")
    before = network.weight.detach().clone()
    state = filled(adapter)
    a, b = state["0.weight.lora_A"], state["0.weight.lora_B"]
    assert len(a) == b.shape[1] == inner
    adapter.activate(0)
    torch.testing.assert_close(network.weight.data.flatten(), before.flatten() + (b @ a).flatten())


def test_gradient_is_that_of_full_fine_tuning_projected() -> None:
    """dL/dB = s dL/dW A^T, dL/dA = s B^T dL/dW."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).double()
    adapter = attached(network, rank=2, alpha=3, targets="0")
    state = filled(adapter)
    a, b = state["0.0.weight.lora_A"], state["0.0.weight.lora_B"]
    x = torch.randn(3, 3, 4, 4, dtype=torch.float64)
    with adapter.training(0):
        network(x).square().sum().backward()
    adapter.activate(0)
    network(x).square().sum().backward()
    full = network[0].weight.grad.flatten(1)
    grad_a, grad_b = (p.grad for p in adapter.parameters(0))
    torch.testing.assert_close(grad_a, 1.5 * b.T @ full)
    torch.testing.assert_close(grad_b, 1.5 * full @ a.T)


def test_attention_projects_with_what_was_added() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True).double()
    adapter = attached(attention, rank=2, alpha=4, targets="*")
    assert found(nn.MultiheadAttention(8, 2), targets="*") == ["in_proj_weight", "out_proj.weight"]
    state = filled(adapter)
    other = nn.MultiheadAttention(8, 2, batch_first=True).double()
    weights = attention.state_dict()
    for name in ("in_proj_weight", "out_proj.weight"):
        change = state[f"0.{name}.lora_B"] @ state[f"0.{name}.lora_A"]
        weights[name] = weights[name] + 2 * change
    other.load_state_dict(weights)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    expected = other(x, x, x)[0]
    with adapter.training(0):
        torch.testing.assert_close(attention(x, x, x)[0], expected)
    adapter.activate(0)
    for module in (attention, other):
        module.eval()
    with torch.no_grad():  # the fused kernel
        torch.testing.assert_close(attention(x, x, x)[0], other(x, x, x)[0])


def test_separate_projections() -> None:
    names = found(nn.MultiheadAttention(8, 2, kdim=6, vdim=4), rank=2, targets="*")
    assert names == ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"]


class TestInitialValues:
    def test_kaiming_uniform(self) -> None:
        state = attached(nn.Linear(400, 300), rank=16).state_dict()
        a = state["0.weight.lora_A"]
        assert a.abs().max() <= 400**-0.5
        assert a.std().item() == pytest.approx(400**-0.5 / 3**0.5, rel=0.03)
        assert not state["0.weight.lora_B"].any()

    def test_come_from_the_seed_alone(self) -> None:
        one = attached(nn.Linear(64, 64), experts=3, rank=4).state_dict()
        network = nn.Linear(64, 64)
        before = torch.get_rng_state()
        two = attached(network, experts=2, rank=4).state_dict()
        assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(two[name], one[name]) for name in two)
        assert not torch.equal(one["0.weight.lora_A"], one["1.weight.lora_A"])
        other = attached(nn.Linear(64, 64), rank=4, seed=1).state_dict()
        assert not torch.equal(other["0.weight.lora_A"], one["0.weight.lora_A"])


class Parts(nn.Module):
    """No call is made of it; only its layers are looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 7)
        self.depthwise = nn.Conv2d(256, 256, 3, groups=256)
        self.up = nn.ConvTranspose2d(64, 64, 2)
        self.narrow = nn.Linear(8, 256)
        self.wide = nn.Linear(256, 256)
        self.normed = parametrizations.weight_norm(nn.Linear(256, 256))
        self.coarse = nn.Linear(256, 256)
        self.coarse.weight = nn.Parameter(
            torch.zeros(256, 256, dtype=torch.int8), requires_grad=False
        )


class TestTargets:
    def test_those_worth_it(self) -> None:
        assert found(Parts()) == ["stem.weight", "wide.weight"]

    def test_the_limit_is_half(self) -> None:
        # rank (64 + 64) against 64 * 64: 16 takes half of it
        assert found(nn.Linear(64, 64), rank=16) == ["weight"]
        with pytest.raises(UsageError, match=r"Linear has no .* rank 17"):
            found(nn.Linear(64, 64), rank=17)

    def test_a_share_of_large_networks(self) -> None:
        """A few percent of all, and never more than half of any layer."""
        timm = pytest.importorskip("timm", reason="only used to have large networks at hand")
        for name in ("resnet50", "deit_small_patch16_224", "convnext_tiny"):
            with torch.device("meta"):
                network = timm.create_model(name)
            total = sum(p.numel() for p in network.parameters())
            own = sum(p.numel() for p in attached(network).parameters(0))
            assert 0.03 < own / total < 0.07

    @pytest.mark.parametrize(
        "targets, names",
        [
            ("narrow", ["narrow.weight"]),
            ("narrow, stem", ["stem.weight", "narrow.weight"]),
            (["n*", "depth*"], ["depthwise.weight", "narrow.weight"]),
            ("*e*", ["stem.weight", "depthwise.weight", "wide.weight"]),
        ],
    )
    def test_named(self, targets: object, names: list[str]) -> None:
        assert found(Parts(), targets=targets) == names

    @pytest.mark.parametrize(
        "targets, said",
        [
            ("stems", "'stems' names no .*there are stem"),
            ("stem,up", "'up' names no "),
            ("normed", "'normed', .* computed from other"),
            ("coarse", "'coarse', .* quantised"),
        ],
    )
    def test_named_wrongly(self, targets: str, said: str) -> None:
        network = Parts()
        with pytest.raises(UsageError, match=said) as caught:
            attached(network, targets=targets)
        assert "\n" not in str(caught.value)
        attached(network)  # as if nothing had been tried

    def test_tied_weights_are_adapted_once(self) -> None:
        network = nn.Sequential(nn.Embedding(64, 64), nn.Linear(64, 64), nn.Linear(64, 64))
        network[1].weight = network[2].weight = network[0].weight
        adapter = attached(network, rank=2)
        state = filled(adapter)
        assert list(state) == ["0.1.weight.lora_A", "0.1.weight.lora_B"]
        with adapter.training(0):
            tied = [module.weight for module in network]
        adapter.activate(0)
        assert all(torch.equal(network[0].weight, weight) for weight in tied)
        assert network[1].weight is network[2].weight is network[0].weight


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0},
        {"rank": 1.5},
        {"alpha": 0},
        {"alpha": float("nan")},
        {"variant": "other"},
        {"seed": -1},
        {"targets": "a,,b"},
        {"targets": [1]},
    ],
)
def test_options_that_are_none(wrong: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError)):
        LoraOptions(**wrong)


@pytest.mark.parametrize(
    "network, hint",
    [
        (nn.Linear(40, 40), "use a rank of at most 10, or name targets"),
        (nn.Conv2d(1, 2, 3), "use the adapter `full`"),
        (nn.ReLU(), "it has no parameters: give it a layer that experts can change"),
    ],
)
def test_the_hint_is_one_that_helps(network: nn.Module, hint: str) -> None:
    with pytest.raises(UsageError, match="large enough for LoRA of rank 16") as caught:
        attached(network)
    assert caught.value.hint == hint


def test_the_highest_rank_of_the_hint_fits() -> None:
    attached(nn.Linear(40, 40), rank=10)
    with pytest.raises(UsageError, match="large enough for LoRA of rank 11"):
        attached(nn.Linear(40, 40), rank=11)
