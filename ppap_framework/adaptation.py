"""Expert adapters made of parametrizations: for expert i, P_i(W) takes the place of W.

The author of an adapter says which parameters W of a network it changes, what P is for each, and
which buffers every expert has for itself. The rest follows. Merged and unmerged weights are bitwise
equal, because both evaluate the same P on the same W. Restoring copies the kept weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import final
from weakref import WeakKeyDictionary, WeakSet

import attrs
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ppap_framework.checkpoints import misfits
from ppap_framework.components import ExpertAdapter
from ppap_framework.errors import AssetError, UsageError

__all__ = ["Adaptation", "Parametrization", "ParametrizationAdapter"]

_Slots = list[tuple[str, nn.Module, str]]
"""The places that hold one tensor: full name, module, name in it. Tied tensors have several."""

_attached: WeakKeyDictionary[nn.Module, WeakSet[ParametrizationAdapter]] = WeakKeyDictionary()
"""The adapters of a network."""

_in_training: WeakSet[nn.Module] = WeakSet()
"""The networks in which an expert lives unmerged."""


class Parametrization(nn.Module):
    """A parametrization that can write P(W) without an intermediate tensor: see `Adaptation`."""

    def write(self, weight: Tensor, out: Tensor) -> None:
        """Write P(W) into a tensor with the layout of W; bitwise equal to `forward`."""
        out.copy_(self(weight))


@final
@attrs.frozen(kw_only=True, eq=False)
class Adaptation:
    """What an adapter changes in one network.

    Attributes:
        parametrizations: For the full name of each parameter W, a function from W to P for one
            expert: a module that takes W and returns a tensor of the same shape, dtype and device,
            at first equal to W. Its parameters are trained. A `Parametrization` may be faster. The
            functions are called for all of expert 0, then for all of expert 1, and so on.
        buffers: Full names of the buffers of which every expert has its own.
    """

    parametrizations: Mapping[str, Callable[[Tensor], nn.Module]]
    buffers: Sequence[str] = ()


@attrs.frozen(eq=False)
class _Expert:
    parametrizations: dict[str, nn.Module]
    buffers: dict[str, Tensor]

    def to(self, tensors: Mapping[str, Tensor]) -> None:
        """Follow a network that was moved to another device; parameters stay the same objects."""
        for name, parametrization in self.parametrizations.items():
            parametrization.to(tensors[name].device)
        for name, buffer in self.buffers.items():
            self.buffers[name] = buffer.to(tensors[name].device)


@final
class ParametrizationAdapter(ExpertAdapter):
    """An adapter defined by `adapt`, a function of a network to changes; UsageError for none."""

    def __init__(self, adapt: Callable[[nn.Module], Adaptation]) -> None:
        self._adapt = adapt
        self._network: nn.Module | None = None
        self._places: dict[str, _Slots] = {}
        self._experts: list[_Expert] = []
        self._kept: dict[str, Tensor] = {}  # the untouched tensors while an expert is merged
        self._trains = False

    def attach(self, network: nn.Module, experts: int) -> None:
        if self._network is not None:
            raise ValueError("the adapter is attached already; detach it first")
        if network in _in_training:
            raise RuntimeError("nothing can be attached while an expert is being trained")
        if experts < 1:
            raise UsageError(f"cannot make {experts} experts", hint="make at least one")
        if any(map(nn.parameter.is_lazy, chain(network.parameters(), network.buffers()))):
            fault = f"{type(network).__name__} has layers whose size is not known yet"
            raise UsageError(fault, hint="show it an image first")
        adaptation = self._adapt(network)
        places = _find(network, [*adaptation.parametrizations, *adaptation.buffers])
        others = _attached.setdefault(network, WeakSet())
        taken = {slot[0] for other in others for slots in other._places.values() for slot in slots}
        if both := [name for name in places if name in taken]:
            fault = f"another adapter of this network changes {both[0]} too ({len(both)} in all)"
            raise UsageError(fault, hint="use one of the two, or narrow its targets")
        tensors, makers, made = _tensors(places), adaptation.parametrizations, list[_Expert]()
        for _ in range(experts):
            own = {n: make(tensors[n].detach()) for n, make in makers.items() if n in places}
            buffers = {n: tensors[n].clone() for n in adaptation.buffers if n in places}
            made.append(_Expert(own, buffers))
        self._network, self._places, self._experts = network, places, made
        others.add(self)

    @torch.no_grad()
    def activate(self, index: int | None) -> None:
        if self._network in _in_training:
            raise RuntimeError("experts cannot be merged while one is being trained")
        if index is None:
            self._restore()
            return
        expert, tensors = self._expert(index), _tensors(self._places)
        self._kept = self._kept or {name: tensor.clone() for name, tensor in tensors.items()}
        expert.to(tensors)
        for name, parametrization in expert.parametrizations.items():
            given, out = self._kept[name].to(tensors[name].device), tensors[name]
            if isinstance(parametrization, Parametrization):
                parametrization.write(given, out)
            else:
                out.copy_(parametrization(given))
        for name, buffer in expert.buffers.items():
            tensors[name].copy_(buffer)

    @contextlib.contextmanager
    def training(self, index: int) -> Iterator[None]:
        """Also restores what other adapters of this kind have merged."""
        expert = self._expert(index)
        if self._trains:
            raise RuntimeError("the adapter trains an expert already")
        assert self._network is not None  # an adapter with experts is attached
        for adapter in _attached[self._network]:
            adapter._restore()
        with contextlib.ExitStack() as stack:
            expert.to(_tensors(self._places))
            stack.enter_context(_guarded(self._network))
            for name, parametrization in expert.parametrizations.items():
                for _, module, own in self._places[name]:
                    stack.enter_context(_parametrized(module, own, parametrization))
            for name, buffer in expert.buffers.items():
                for _, module, own in self._places[name]:
                    stack.enter_context(_exchanged(module, own, buffer))
            self._trains = True
            stack.callback(setattr, self, "_trains", False)
            yield

    def parameters(self, index: int) -> Iterator[nn.Parameter]:
        parametrizations = self._expert(index).parametrizations.values()
        return chain.from_iterable(module.parameters() for module in parametrizations)

    def state_dict(self) -> dict[str, Tensor]:
        """Buffers, and parametrizations' tensors as "NAME.KEY"; they share the experts' memory."""
        state: dict[str, Tensor] = {}
        for i, expert in enumerate(self._experts):
            for name, parametrization in expert.parametrizations.items():
                parametrization.state_dict(destination=state, prefix=f"{i}.{name}.")
            state |= {f"{i}.{name}": buffer for name, buffer in expert.buffers.items()}
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        own = self.state_dict()
        if faults := misfits(state, own):
            hint = "they are of another network, or the adapter has other options"
            raise AssetError(f"the experts do not fit: {faults}", hint=hint)
        self._restore()
        for name, tensor in own.items():
            tensor.copy_(state[name])

    def detach(self) -> None:
        self.activate(None)
        if self._network is not None:
            _attached[self._network].discard(self)
        self._network, self._places, self._experts = None, {}, []

    def _expert(self, index: int) -> _Expert:
        if not 0 <= index < len(self._experts):
            raise IndexError(f"there is no expert {index} of {len(self._experts)}")
        return self._experts[index]

    @torch.no_grad()
    def _restore(self) -> None:
        tensors = _tensors(self._places) if self._kept else {}
        for name, kept in self._kept.items():
            tensors[name].copy_(kept)
        self._kept = {}


def _find(network: nn.Module, wanted: Sequence[str]) -> dict[str, _Slots]:
    """The places of the wanted tensors. If a tensor has two names, the first counts."""
    held: dict[int, _Slots] = {}
    named: dict[str, _Slots] = {}
    for prefix, module in network.named_modules():
        for own, tensor in chain(module._parameters.items(), module._buffers.items()):
            if tensor is not None:
                name = f"{prefix}.{own}" if prefix else own
                named[name] = held.setdefault(id(tensor), [])
                named[name].append((name, module, own))
    found: dict[int, tuple[str, _Slots]] = {}
    for name in wanted:
        found.setdefault(id(named[name]), (name, named[name]))
    return dict(found.values())


def _tensors(places: Mapping[str, _Slots]) -> dict[str, Tensor]:
    """The network's current tensors. Moving a network makes new buffers."""
    return {name: getattr(module, own) for name, [(_, module, own), *_] in places.items()}


@contextlib.contextmanager
def _guarded(network: nn.Module) -> Iterator[None]:
    """A context without gradients of the network, which undoes changes of buffers before each call;
    entered before any expert's tensors take the place of the network's.
    """
    if network in _in_training:
        yield
        return
    with contextlib.ExitStack() as stack:
        for module in network.modules():
            if found := {name: b for name, b in module._buffers.items() if b is not None}:
                stack.callback(module._buffers.update, found)
                reset = partial(_reset, [(buffer, buffer.clone()) for buffer in found.values()])
                stack.callback(reset)
                stack.callback(module.register_forward_pre_hook(reset).remove)
        _in_training.add(network)
        stack.callback(_in_training.discard, network)
        for parameter in network.parameters():
            stack.callback(parameter.requires_grad_, parameter.requires_grad)
        network.requires_grad_(False)
        yield


def _reset(buffers: Sequence[tuple[Tensor, Tensor]], *_: object) -> None:
    """Restore buffers without autograd noticing: earlier graphs may still be backpropagated."""
    for buffer, value in buffers:
        buffer.data.copy_(value)


@contextlib.contextmanager
def _parametrized(module: nn.Module, name: str, parametrization: nn.Module) -> Iterator[None]:
    order = list(module._parameters)
    parametrize.register_parametrization(module, name, parametrization)
    try:
        yield
    finally:
        parametrize.remove_parametrizations(module, name, leave_parametrized=False)
        for key in order:  # a removed parametrization appends its parameter
            module._parameters[key] = module._parameters.pop(key)


@contextlib.contextmanager
def _exchanged(module: nn.Module, name: str, buffer: Tensor) -> Iterator[None]:
    found = module._buffers[name]
    module._buffers[name] = buffer
    try:
        yield
    finally:
        moved = module._buffers[name]
        if moved is not buffer and moved is not None:  # a module may put a new one in its place
            buffer.copy_(moved)
        module._buffers[name] = found
