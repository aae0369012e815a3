"""Adapters that add a matrix to each weight."""

import contextlib
import copy

import torch
from torch import nn

from ppap_framework.author import (
    Adaptation,
    AssetError,
    ParametrizationAdapter,
    UsageError,
)


class Shift(nn.Module):
    start, share = 0.0, 1.0

    def __init__(self, weight):
        super().__init__()
        self.shift = nn.Parameter(torch.full_like(weight, self.start))

    def forward(self, weight):
        return weight + self.share * self.shift


class Sound(ParametrizationAdapter):
    parametrization = Shift

    def __init__(self, options=None):
        super().__init__(self.adaptation)

    def names(self, network):
        return [name for name, weight in network.named_parameters() if weight.ndim > 1]

    def adaptation(self, network):
        names = self.names(network)
        if not names:
            raise UsageError("there is nothing to adapt", hint="give it a network with weights")
        return Adaptation(parametrizations=dict.fromkeys(names, self.parametrization))


class Unmakeable(Sound):
    def __init__(self, options=None):
        raise RuntimeError("no such adapter")


class Touching(Sound):
    def attach(self, network, experts):
        super().attach(network, experts)
        self.hook = network.register_forward_hook(lambda *_: None)

    def activate(self, index):
        self.hook.remove()
        super().activate(index)


class Random(Sound):
    class parametrization(Shift):  # noqa: N801
        start = 1e-3


class Unfrozen(Sound):
    @contextlib.contextmanager
    def training(self, index):
        with super().training(index):
            self._network.requires_grad_(True)
            yield


class Idle(Sound):
    class parametrization(Shift):  # noqa: N801
        share = 0.0


class Common(Sound):
    def adaptation(self, network):
        made = {}
        for name in super().adaptation(network).parametrizations:
            made[name] = self.once(name)
        return Adaptation(parametrizations=made)

    def once(self, name):
        cache = {}
        return lambda weight: cache.setdefault(name, Shift(weight))


class Doubled(Sound):
    @torch.no_grad()
    def activate(self, index):
        super().activate(index)
        if index is not None:
            for name, kept in self._kept.items():
                weight = self._network.get_parameter(name)
                weight.add_(weight - kept)


class Subtracting(Sound):
    def attach(self, network, experts):
        super().attach(network, experts)
        self.before = copy.deepcopy(network.state_dict())

    @torch.no_grad()
    def activate(self, index):
        merged = bool(self._kept)
        super().activate(index)
        if index is None and merged:
            self._network.get_parameter("0.weight").mul_(1.0 + 1e-6)

    def detach(self):
        network = self._network
        super().detach()
        if network is not None:
            network.load_state_dict(self.before)


class Leaving(Sound):
    def detach(self):
        if self._network is not None:
            self._network.register_forward_hook(lambda *_: None)
        super().detach()


class Nameless(Sound):
    def state_dict(self):
        return {name.replace(".", ".tensor.", 1): x for name, x in super().state_dict().items()}


class Forgetful(Sound):
    def state_dict(self):
        state = super().state_dict()
        return {**state, next(iter(state)): torch.zeros_like(next(iter(state.values())))}


class Eager(Sound):
    @torch.no_grad()
    def load_state_dict(self, state):
        for name, tensor in self.state_dict().items():
            if name not in state or state[name].shape != tensor.shape:
                raise AssetError(f"{name} does not fit", hint="use another file")
            tensor.copy_(state[name])


class Modular(Sound):
    def _expert(self, index):
        return self._experts[index % len(self._experts)]


class Content(Sound):
    def adaptation(self, network):
        return Adaptation(parametrizations=dict.fromkeys(self.names(network), Shift))


class Evaluating(Sound):
    @contextlib.contextmanager
    def training(self, index):
        with super().training(index):
            self._network.eval()
            yield


class Widening(Sound):
    def attach(self, network, experts):
        super().attach(network.float(), experts)


class Renewing(Sound):
    @contextlib.contextmanager
    def training(self, index):
        with super().training(index):
            yield
        own = self._experts[index].parametrizations
        own.update({name: copy.deepcopy(module) for name, module in own.items()})
