"""Every adapter, and the recipe of several, on networks of many makes: one matrix."""

from __future__ import annotations

import contextlib
import copy
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import pytest
import tiny_networks
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torchvision import models
from transformers import DPTForDepthEstimation

from ppap_framework.adaptation import Adaptation, ParametrizationAdapter
from ppap_framework.components import ExpertAdapter
from ppap_framework.errors import AssetError, UsageError
from ppap_plugin_bias.adapter import make_bias, make_full
from ppap_plugin_lora.adapter import make_lora
from ppap_plugin_lora.options import LoraOptions

RANK, ALPHA = 2, 3.0
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def lora(**options: object) -> ExpertAdapter:
    return make_lora(LoraOptions(**{"rank": RANK, "alpha": ALPHA, **options}))


reshaped = partial(lora, variant="reshaped", targets="*")

RECIPES: dict[str, list[Callable[[], ExpertAdapter]]] = {
    "lora": [lora],
    "reshaped": [reshaped],
    "bias": [make_bias],
    "lora+bias": [lora, make_bias],
    "bias+lora": [make_bias, lora],
    "full": [make_full],
}


class Small(nn.Module):
    """Grouped, strided and dilated convolutions, three kinds of norm, attention, a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, (3, 1), padding=2, dilation=2, groups=4)
        self.group_norm = nn.GroupNorm(2, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.layer_norm = nn.LayerNorm(8)
        self.inner = nn.Linear(8, 8, bias=False)
        self.outer = nn.Linear(8, 8)
        self.outer.weight = self.inner.weight
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.stem(images)).relu()
        x = self.group_norm(self.grouped(x)).flatten(2).transpose(1, 2)  # (B, n, 8)
        x = self.layer_norm(x + self.attention(x, x, x)[0])
        return self.head(self.outer(self.inner(x).relu()).mean(1))


def depth_with_batch_norm() -> nn.Module:
    config = copy.deepcopy(tiny_networks.DEPTH["dpt"])
    config.use_batch_norm_in_fusion_residual = True
    return DPTForDepthEstimation(config)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "small": Small,
    **{name: partial(tiny_networks.made, name) for name in ("resnet", "vit", "segformer")},
    "mobilenet": partial(models.mobilenet_v2, width_mult=0.2, num_classes=5),
    "torchvision": partial(models.VisionTransformer, 32, 16, 2, 2, 16, 32, num_classes=5),
    "dpt": depth_with_batch_norm,
}


def made(build: Callable[[], nn.Module], dtype: torch.dtype = torch.float32) -> nn.Module:
    """A network whose every tensor is worth telling from another."""
    torch.manual_seed(0)
    network = build()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
        for name, buffer in network.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return network.to(dtype).eval()


def attached(network: nn.Module, recipe: str, experts: int = 3) -> list[ExpertAdapter]:
    adapters = [make() for make in RECIPES[recipe]]
    for adapter in adapters:
        adapter.attach(network, experts)
    return adapters


def tensors(network: nn.Module) -> dict[str, Tensor]:
    named = [*network.named_parameters(), *network.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


def held(adapter: ExpertAdapter) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in adapter.state_dict().items()}


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def assert_same_bits(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert list(given) == list(wanted)
    assert [name for name in wanted if bits(given[name]) != bits(wanted[name])] == []


def anatomy(network: nn.Module) -> list[object]:
    """Everything of a network but the values of its tensors."""
    return [
        (
            name,
            module,
            type(module),
            module.training,
            set(vars(module)),
            list(module._modules),
            [
                (key, id(value), value.stride(), value.requires_grad)
                for key, value in module._parameters.items()
                if value is not None
            ],
            [(key, id(value)) for key, value in module._buffers.items()],
            list(module._forward_hooks) + list(module._forward_pre_hooks),
        )
        for name, module in network.named_modules()
    ]


def as_found(network: nn.Module) -> Callable[[], None]:
    """Asserts later that a network is what it is now."""
    return partial(assert_untouched, network, tensors(network), anatomy(network))


def assert_untouched(network: nn.Module, before: Mapping[str, Tensor], whole: object) -> None:
    assert_same_bits(tensors(network), before)
    assert anatomy(network) == whole


def answer(network: nn.Module, images: Tensor) -> Tensor:
    output = network(images)
    return output if isinstance(output, Tensor) else output[0]


look = torch.no_grad()(answer)


def activate(adapters: Sequence[ExpertAdapter], index: int | None) -> None:
    for adapter in adapters:
        adapter.activate(index)


def detach(adapters: Sequence[ExpertAdapter]) -> None:
    for adapter in adapters:
        adapter.detach()


def trained(adapters: Sequence[ExpertAdapter], index: int = 0) -> list[nn.Parameter]:
    return [p for adapter in adapters for p in adapter.parameters(index)]


@contextlib.contextmanager
def training(adapters: Sequence[ExpertAdapter], index: int) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for adapter in adapters:
            stack.enter_context(adapter.training(index))
        yield


def images(count: int = 4, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)).to(dtype)


def train(
    network: nn.Module, adapters: Sequence[ExpertAdapter], index: int, steps: int, x: Tensor
) -> Tensor:
    """What the network answers at the end, in evaluation mode, unmerged."""
    with training(adapters, index):
        network.train()
        for _ in range(steps):
            (answer(network, x).float() - 1).square().mean().backward()
            descend(adapters, index)
        network.eval()
        return look(network, x)


@torch.no_grad()
def descend(adapters: Sequence[ExpertAdapter], index: int) -> None:
    for parameter in trained(adapters, index):
        if parameter.grad is None:  # of a layer that its network does not use; DPT has some
            continue
        parameter -= 0.05 * parameter.grad.sign()
        parameter.grad = None


@torch.no_grad()
def fill(adapter: ExpertAdapter) -> None:
    """Move every expert away from the untouched network, each elsewhere."""
    generator = torch.Generator().manual_seed(1)
    for tensor in adapter.state_dict().values():
        tensor.add_(torch.rand(tensor.shape, generator=generator).mul(3).to(tensor.dtype))


def oracle(name: str, untouched: Tensor, state: Mapping[str, Tensor], index: int) -> Tensor:
    """What a tensor is where an expert is merged, from what the expert's file says."""
    if (own := f"{index}.{name}") in state:
        return state[own]
    if (value := f"{own}.value") in state:
        return state[value].to(untouched.dtype)
    if f"{own}.lora_A" not in state:
        return untouched
    change = state[f"{own}.lora_B"].double() @ state[f"{own}.lora_A"].double()
    merged = untouched.double() + change.reshape(untouched.shape) * (ALPHA / RANK)
    return merged.to(untouched.dtype)


@pytest.mark.parametrize("recipe", ["lora+bias", "reshaped", "full"])
@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_a_life(build: Callable[[], nn.Module], recipe: str) -> None:
    network = made(build)
    x = images()
    bare = look(network, x)  # transformers prepares its modules at their first call
    whole, check = anatomy(network), as_found(network)
    adapters = attached(network, recipe)
    check()

    activate(adapters, 2)
    torch.testing.assert_close(look(network, x), bare)

    unmerged = train(network, adapters, 1, 3, x)
    check()
    activate(adapters, 1)
    merged = look(network, x)
    torch.testing.assert_close(merged, unmerged)
    assert (merged - bare).abs().max() > 1e-3
    assert anatomy(network) == whole  # plain modules: a guided step costs what it did

    detach(adapters)
    check()


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_merged_is_unmerged(dtype: torch.dtype, recipe: str) -> None:
    network = made(Small, dtype)
    adapters = attached(network, recipe)
    unmerged = train(network, adapters, 0, 2, images(dtype=dtype))
    with training(adapters, 0):
        weights = {
            f"{name}.{key}": getattr(module, key).detach().clone()
            for name, module in network.named_modules()
            if not name.startswith("parametrizations") and ".parametrizations" not in name
            for key in ("weight", "bias", "in_proj_weight", "in_proj_bias", "running_mean")
            if isinstance(getattr(module, key, None), Tensor)
        }
    activate(adapters, 0)
    merged = tensors(network)
    merged["outer.weight"] = merged["inner.weight"]
    assert_same_bits({name: merged[name] for name in weights}, weights)
    torch.testing.assert_close(look(network, images(dtype=dtype)), unmerged)
    wanted = {torch.float64: torch.float64}.get(dtype, torch.float32)
    assert {p.dtype for p in trained(adapters)} == {wanted}


@pytest.fixture
def network() -> nn.Module:
    return made(Small)


@pytest.fixture
def before(network: nn.Module) -> dict[str, Tensor]:
    """The network's tensors before anything is attached."""
    return tensors(network)


@pytest.fixture
def adapters(network: nn.Module, before: dict[str, Tensor], recipe: str) -> list[ExpertAdapter]:
    return attached(network, recipe)


Network, Tensors, Adapters = nn.Module, dict[str, Tensor], list[ExpertAdapter]


@pytest.mark.parametrize("recipe", RECIPES)
class TestContract:
    def test_trainable_are_the_parameters(self, network: Network, adapters: Adapters) -> None:
        frozen = next(network.parameters()).requires_grad_(False)
        with training(adapters, 2):
            asking = [p for p in network.parameters() if p.requires_grad]
        own = trained(adapters, 2)
        assert {id(p) for p in asking} == {id(p) for p in own}
        assert len(own) == len({id(p) for p in own}) > 0
        assert [p for p in network.parameters() if not p.requires_grad] == [frozen]

    def test_one_after_another(self, network: Network, before: Tensors, adapters: Adapters) -> None:
        """Fresh is no change, and whatever was merged before leaves nothing behind."""
        activate(adapters, 1)
        assert all(torch.equal(now, before[name]) for name, now in tensors(network).items())
        for adapter in adapters:
            fill(adapter)
        for index in (0, 2, 2, 1):
            activate(adapters, index)
        wanted = dict(before)
        for adapter in adapters:
            file = adapter.state_dict()
            wanted = {name: oracle(name, tensor, file, 1) for name, tensor in wanted.items()}
        for name, tensor in tensors(network).items():
            torch.testing.assert_close(tensor, wanted[name])

    def test_two_looks_before_one_backward(self, network: Network, adapters: Adapters) -> None:
        with training(adapters, 0):
            losses = [answer(network, images(seed=seed)).square().sum() for seed in (1, 2)]
            sum(losses).backward()
            together = [p.grad.clone() for p in trained(adapters)]
            for parameter in trained(adapters):
                parameter.grad = None
            for seed in (1, 2):
                answer(network, images(seed=seed)).square().sum().backward()
        for parameter, wanted in zip(trained(adapters), together, strict=True):
            torch.testing.assert_close(parameter.grad, wanted)
        assert all(p.grad is None for p in [*network.parameters(), *trained(adapters, 1)])

    def test_order_of_contexts(self, recipe: str) -> None:
        answers = []
        for turn in (1, -1):
            network = made(Small)
            before = tensors(network)
            adapters = attached(network, recipe)
            answers.append(train(network, adapters[::turn], 0, 3, images()))
            assert_same_bits(tensors(network), before)
            statistics = [
                s for a in adapters for n, s in a.state_dict().items() if n == "0.norm.running_mean"
            ]
            assert len(statistics) == ("bias" in recipe or recipe == "full")
            assert all(bits(s) != bits(before["norm.running_mean"]) for s in statistics)
        assert bits(answers[0]) == bits(answers[1])

    def test_untouched_after_an_error(self, network: Network, adapters: Adapters) -> None:
        check = as_found(network)
        with pytest.raises(KeyboardInterrupt), training(adapters, 0):
            answer(network.train(), images()).sum().backward()
            raise KeyboardInterrupt
        network.eval()
        check()

    def test_file(self, recipe: str, network: Network, adapters: Adapters) -> None:
        train(network, adapters, 1, 2, images())
        saved = [held(adapter) for adapter in adapters]
        other, loaded = made(Small), []
        names = {name for name, _ in [*network.named_parameters(), *network.named_buffers()]}
        for adapter, state in zip(attached(other, recipe), saved, strict=True):
            fill(adapter)
            known = [f"{i}.{name}." for i in range(3) for name in names]
            assert all(f"{name}.".startswith(tuple(known)) for name in state)
            adapter.activate(0)
            adapter.load_state_dict({name: state[name] for name in reversed(state)})
            assert_same_bits(held(adapter), state)
            assert_same_bits(tensors(other), tensors(network))  # nothing is merged
            loaded.append(adapter)
        for adapter in (*adapters, *loaded):
            adapter.activate(1)
        assert_same_bits(tensors(other), tensors(network))

    def test_strict(self, recipe: str) -> None:
        [adapter, *_] = attached(made(Small), recipe)
        before = held(adapter)
        first, *rest = before
        short = {name: before[name] for name in rest}
        wrong = {**before, first: before[first].new_zeros(3, 3, 3)}
        whole = {**before, first: before[first].long()}
        more = {**before, "3.nonsense": torch.ones(1)}
        for said, state in {
            rf"1 missing \('{first}'\)": short,
            r"1 unexpected \('3.nonsense'\)": more,
            rf"'{first}' \(3, 3, 3\) instead of \(": wrong,
            rf"'{first}' .* of int64 instead of \(": whole,
            r"[0-9]+ missing \(.*, \.\.\.\)": {},
        }.items():
            with pytest.raises(AssetError, match=said) as caught:
                adapter.load_state_dict(state)
            assert "\n" not in str(caught.value)
        assert_same_bits(held(adapter), before)

    def test_misuse(self, recipe: str, network: Network) -> None:
        [adapter, *_] = adapters = attached(network, recipe, experts=2)
        another = RECIPES[recipe][0]()
        for index in (-1, 2):
            with pytest.raises(IndexError, match=f"no expert {index} of 2"):
                adapter.activate(index)
            with pytest.raises(IndexError), adapter.training(index):
                pass
            with pytest.raises(IndexError):
                adapter.parameters(index)
        with pytest.raises(ValueError, match="attached already"):
            adapter.attach(network, 2)
        with pytest.raises(UsageError, match=r"changes .* too"):
            another.attach(network, 2)
        with training(adapters, 0):
            with pytest.raises(RuntimeError, match="cannot be merged"):
                adapter.activate(1)
            with pytest.raises(RuntimeError, match="already"), adapter.training(1):
                pass
            with pytest.raises(RuntimeError, match="being trained"):
                another.attach(network, 2)
        with pytest.raises(UsageError, match="make 0 experts"):
            another.attach(made(Small), 0)
        with pytest.raises(UsageError, match="not known yet"):
            another.attach(nn.LazyLinear(3), 1)
        with pytest.raises(UsageError):
            another.attach(nn.Sequential(nn.ReLU()), 1)
        for one in adapters:
            one.detach()
            one.detach()
            one.attach(made(Small), 1)
        attached(network, recipe)

    def test_a_graph_from_before_is_refused(self, recipe: str) -> None:
        """Merging is in place, so that nobody can differentiate through other weights unawares."""
        network = made(Small).requires_grad_(False)
        adapters = attached(network, recipe)
        x = images().requires_grad_()
        output = answer(network, x).square().sum()
        activate(adapters, 0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.backward()

    def test_autocast_changes_no_weights(self, recipe: str) -> None:
        merged = []
        for enabled in (False, True):
            network = made(Small)
            adapters = attached(network, recipe)
            train(network, adapters, 0, 2, images())
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                activate(adapters, 0)
            merged.append(tensors(network))
        assert_same_bits(*merged)

    def test_moving(self, network: Network, before: Tensors, adapters: Adapters) -> None:
        """Moving gives buffers other objects and parameters other memory."""
        unmerged = train(network, adapters, 0, 2, images())
        network._apply(torch.clone)
        activate(adapters, 0)
        torch.testing.assert_close(look(network, images()), unmerged)
        network._apply(torch.clone)
        activate(adapters, None)
        assert_same_bits(tensors(network), before)

    def test_channels_last(self, recipe: str) -> None:
        network = made(Small).to(memory_format=torch.channels_last)
        check, adapters = as_found(network), attached(network, recipe)
        unmerged = train(network, adapters, 0, 2, images())
        activate(adapters, 0)
        torch.testing.assert_close(look(network, images()), unmerged)
        detach(adapters[::-1])
        check()


@pytest.mark.parametrize("recipe", ["lora+bias", "full"])
@pytest.mark.parametrize("experts", [1, 7])
def test_memory(experts: int, recipe: str) -> None:
    network = made(Small)
    sizes = {name: tensor.nbytes for name, tensor in tensors(network).items()}
    bare = memory()
    adapters = attached(network, recipe, experts)
    state = [item for adapter in adapters for item in adapter.state_dict().items()]
    own = sum(tensor.nbytes for _, tensor in state)
    adapted = {
        name for name in sizes if any(f"{key}.".startswith(f"0.{name}.") for key, _ in state)
    }
    copy = sum(sizes[name] for name in adapted)
    del state
    for index in range(experts):
        activate(adapters, index)
    assert memory() == bare + own + copy
    activate(adapters, None)
    assert memory() == bare + own
    detach(adapters)
    assert memory() == bare


def memory() -> int:
    """The bytes of all tensors that are alive."""
    gc.collect()
    alive = {
        x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
        for x in gc.get_objects()
        if type(x) in (Tensor, nn.Parameter) and x.layout is torch.strided
    }
    return sum(alive.values())


@pytest.mark.parametrize("make", [lora, make_bias, make_full])
def test_computed_weights_and_counters_are_left_alone(make: Callable[[], ExpertAdapter]) -> None:
    network = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(8, 8)),
        parametrizations.spectral_norm(nn.Conv2d(8, 8, 1)),
        nn.Linear(8, 8),
        Counter(),
    ).eval()
    adapter = make()
    adapter.attach(network, 1)
    assert not [name for name in adapter.state_dict() if "parametrizations" in name]
    check = as_found(network)
    with adapter.training(0):
        network.train()
        with torch.no_grad():
            network[1](torch.ones(2, 8, 3, 3))  # moves the vectors of the power iteration
            network[3](torch.ones(1))
        network.eval()
    check()
    adapter.activate(0)
    adapter.detach()
    check()


class Counter(nn.Module):
    """Exchanges its buffer at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return x


def test_adapters_of_others_share_the_contract() -> None:
    """An adapter is what it changes, in a few lines; here a scale for every output (IA3)."""

    class Scale(nn.Module):
        def __init__(self, weight: Tensor) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(len(weight), 1))

        def forward(self, weight: Tensor) -> Tensor:
            return self.scale * weight

    def scales(network: nn.Module) -> Adaptation:
        return Adaptation(parametrizations={"inner.weight": Scale, "outer.weight": Scale})

    network = made(Small)
    check = as_found(network)
    adapter = ParametrizationAdapter(scales)
    adapter.attach(network, 2)
    assert list(adapter.state_dict()) == ["0.inner.weight.scale", "1.inner.weight.scale"]
    unmerged = train(network, [adapter], 1, 2, images())
    adapter.activate(1)
    torch.testing.assert_close(look(network, images()), unmerged)
    adapter.detach()
    check()


class AnySequence(RuleBasedStateMachine):
    """Whatever is done in whatever order: what is not merged is untouched, what is merged is what
    the expert's file says, and no expert moves but the one that is trained.
    """

    experts = 3
    index = st.integers(0, experts - 1)
    which = st.sampled_from([(0,), (1,), (0, 1), (1, 0)])

    @initialize(dtype=st.sampled_from([torch.float32, torch.bfloat16]), first=st.booleans())
    def begin(self, dtype: torch.dtype, first: bool) -> None:
        self.dtype = dtype
        self.network = made(Small, dtype)
        self.before, self.whole = tensors(self.network), anatomy(self.network)
        self.adapters = attached(self.network, "lora+bias" if first else "bias+lora", self.experts)
        for adapter in self.adapters:
            fill(adapter)
        self.active: list[int | None] = [None, None]
        self.files = [held(adapter) for adapter in self.adapters]
        self.seed = 0

    @rule(index=index, which=which, batches=st.booleans(), fails=st.booleans())
    def train(self, index: int, which: tuple[int, ...], batches: bool, fails: bool) -> None:
        chosen = [self.adapters[i] for i in which]
        self.seed += 1
        with contextlib.suppress(KeyboardInterrupt), training(chosen, index):
            self.network.train(batches)
            answer(self.network, images(4, self.dtype, self.seed)).float().square().sum().backward()
            descend(chosen, index)
            if fails:
                raise KeyboardInterrupt
        self.network.eval()
        self.active = [None, None]
        for i in which:
            now = held(self.adapters[i])
            moved = {name for name in now if bits(now[name]) != bits(self.files[i][name])}
            assert moved
            assert {name.partition(".")[0] for name in moved} == {str(index)}
            if not batches:
                assert not [name for name in moved if "running" in name or "tracked" in name]
            self.files[i] = now

    @rule(which=which, index=st.none() | index)
    def activate(self, which: tuple[int, ...], index: int | None) -> None:
        for i in which:
            self.adapters[i].activate(index)
            self.active[i] = index

    @rule(i=st.integers(0, 1))
    def reload(self, i: int) -> None:
        with torch.no_grad():
            for tensor in self.adapters[i].state_dict().values():
                tensor.add_(1)
        self.adapters[i].load_state_dict(self.files[i])
        self.active[i] = None

    @rule(index=index)
    def look(self, index: int) -> None:
        """Merged and unmerged, both adapters."""
        x = images(2, self.dtype)
        with torch.no_grad(), training(self.adapters, index):
            unmerged = answer(self.network, x)
        self.activate((0, 1), index)
        with torch.no_grad():
            close = TOLERANCE[self.dtype]
            torch.testing.assert_close(answer(self.network, x), unmerged, atol=close, rtol=close)

    @invariant()
    def experts_stay(self) -> None:
        for adapter, file in zip(self.adapters, self.files, strict=True):
            assert_same_bits(held(adapter), file)

    @invariant()
    def network_is_what_is_merged(self) -> None:
        assert anatomy(self.network) == self.whole
        wanted = dict(self.before)
        for file, index in zip(self.files, self.active, strict=True):
            if index is not None:
                wanted = {n: oracle(n, tensor, file, index) for n, tensor in wanted.items()}
        now = tensors(self.network)
        for name, tensor in now.items():
            if bits(wanted[name]) == bits(self.before[name]):
                continue
            close = TOLERANCE[self.dtype]
            torch.testing.assert_close(tensor, wanted[name], atol=close, rtol=close)
        if self.active == [None, None]:
            assert_same_bits(now, self.before)

    def teardown(self) -> None:
        if hasattr(self, "adapters"):
            detach(self.adapters)
            assert_untouched(self.network, self.before, self.whole)


AnySequence.TestCase.settings = settings(
    max_examples=10, stateful_step_count=25, deadline=None, derandomize=True
)
TestAnySequence = AnySequence.TestCase
