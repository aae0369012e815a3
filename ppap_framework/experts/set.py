"""One network and its experts, chosen by noise level."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, final
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ppap_framework.border import maker
from ppap_framework.components import ExpertAdapter, GuidanceModel
from ppap_framework.errors import AssetError, UsageError, calling
from ppap_framework.experts.levels import NoiseRanges
from ppap_framework.noise import NoiseLevel
from ppap_framework.predictions import each_tensor, joined
from ppap_framework.preprocessing import Preprocessing, PreprocessingGuide

_CLEAN = -1  # owner of clean images: the untouched network
_UNSETTLED = -2  # active while adapters switch; an interrupt may leave it

_owned: WeakSet[nn.Module] = WeakSet()


def has_experts(network: nn.Module) -> bool:
    """Whether adapters, which may change weights and their names, are attached to a network."""
    return network in _owned


def student_of(model: GuidanceModel, preprocessing: Preprocessing | None) -> GuidanceModel:
    """The guide with this preprocessing; UsageError if its own, as with None, is its only one."""
    if preprocessing is None:
        return model
    if not isinstance(model, PreprocessingGuide):
        how = f"{type(model).__name__} shows them in its own way"
        hint = "use a guider whose preprocessing can be exchanged, such as `classifier`"
        raise UsageError(f"the experts saw images otherwise: {how}", hint=hint)
    return model.preprocessed(preprocessing)


@final
class ExpertSet(contextlib.AbstractContextManager["ExpertSet"]):
    """N experts that share one network; one at a time is merged into its weights.

    Each noise level belongs to one expert. The untouched network reads clean images (log-SNR inf).
    The set owns the network until `detach`, which leaving it as a context calls, too.

    Args:
        model: The guide around the network; ValueError if that has experts already.
        ranges: The noise levels of each of the N experts.
        adapters: Adapters by name, attached in this order. They must not share tensors. UsageError
            if one finds nothing to adapt.
        preprocessing: Preprocessing for experts; None for the model's. UsageError if that is fixed.

    Attributes:
        active: Index of the merged expert; None for the untouched network.
        student: The model with the experts' preprocessing, which reads latents if they do.
        network_parameters: Number of parameters of the untouched network.
    """

    name = path = sha256 = calibration = None
    """Only a bundle has these: see `BundleFile`."""

    def __init__(
        self,
        model: GuidanceModel,
        ranges: NoiseRanges,
        adapters: Mapping[str, ExpertAdapter],
        preprocessing: Preprocessing | None = None,
    ) -> None:
        if has_experts(model.network):
            raise ValueError("the network has experts already; detach them first")
        if not adapters:
            raise ValueError("experts need an adapter")
        self.model, self.student = model, student_of(model, preprocessing)
        self.ranges, self.adapters, self.preprocessing = ranges, dict(adapters), preprocessing
        self.network_parameters = sum(p.numel() for p in model.network.parameters())
        self.active: int | None = None
        with contextlib.ExitStack() as undo:
            for adapter in self.adapters.values():
                adapter.attach(model.network, len(ranges))
                undo.callback(adapter.detach)
                self.student = adapter.student(self.student)
            undo.pop_all()
        _owned.add(model.network)

    def __len__(self) -> int:
        return len(self.ranges)

    @property
    def expert_parameters(self) -> tuple[int, ...]:
        """N numbers of trainable parameters."""
        return tuple(sum(p.numel() for p in self.parameters(k)) for k in range(len(self)))

    def record(self) -> dict[str, Any]:
        """The ranges as JSON, under the keys of `BundleFile.record`."""
        return {"name": None, "path": None, "sha256": None, **self.ranges.record()}

    @contextlib.contextmanager
    def attached(self, model: GuidanceModel) -> Iterator[ExpertSet]:
        """A context that ends with the untouched network; `model` is the set's own."""
        try:
            yield self
        finally:
            self.activate(None)

    def activate(self, index: int | None) -> None:
        """Merge an expert, IndexError if there is none; None restores the untouched network.
        Merging changes weights in place, so autograd rejects earlier graphs.
        """
        if index == self.active:
            return
        if index is not None and not 0 <= index < len(self):
            raise IndexError(f"there is no expert {index} of {len(self)}")
        self.active = _UNSETTLED
        for adapter in self.adapters.values():
            adapter.activate(index)
        self.active = index

    def at(self, level: NoiseLevel) -> Callable[[Tensor, NoiseLevel], Any]:
        """A function that reads B images, each with the expert of its noise level.

        It is valid until the next call. If one expert owns all levels, it is merged: reading costs
        nothing extra, and predictions are differentiable in the images until another expert is
        merged. Predictions of several experts are always differentiable; they must be tensors whose
        first dimension is B, or tuples, lists and mappings of such.
        """
        owners = set(self._owners(level)) or {_CLEAN}
        return self._grouped if len(owners) > 1 else self._merged(owners.pop())

    @contextlib.contextmanager
    def training(self, index: int) -> Iterator[None]:
        """A context in which one expert is unmerged and its `parameters` receive gradients."""
        self.activate(None)
        with contextlib.ExitStack() as stack:
            for adapter in self.adapters.values():
                with calling(maker(adapter), "training"):
                    stack.enter_context(adapter.training(index))
            yield

    def parameters(self, index: int) -> Iterator[nn.Parameter]:
        """The trainable parameters of one expert."""
        for adapter in self.adapters.values():
            yield from adapter.parameters(index)

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors of the experts by "adapter/expert.name"."""
        return {
            f"{name}/{key}": tensor
            for name, adapter in self.adapters.items()
            for key, tensor in adapter.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load a `state_dict`, AssetError if names or shapes differ, and deactivate experts."""
        parts: dict[str, dict[str, Tensor]] = {name: {} for name in self.adapters}
        for key, tensor in state.items():
            name, _, rest = key.partition("/")
            if name not in parts:
                raise AssetError(f"tensor {key!r} belongs to none of {', '.join(parts)}")
            parts[name][rest] = tensor
        self.activate(None)
        for name, adapter in self.adapters.items():
            adapter.load_state_dict(parts[name])

    def __exit__(self, *_: object) -> None:
        self.detach()

    def detach(self) -> None:
        """Restore the original network. The set cannot be used afterwards."""
        self.activate(None)
        for adapter in reversed(self.adapters.values()):
            adapter.detach()
        _owned.discard(self.model.network)

    def _owners(self, level: NoiseLevel) -> list[int]:
        owner = self.ranges.owner
        return [_CLEAN if x == math.inf else owner(x) for x in level.log_snr.tolist()]

    def _merged(self, owner: int) -> GuidanceModel:
        self.activate(None if owner == _CLEAN else owner)
        return self.model if owner == _CLEAN else self.student

    def _grouped(self, images: Tensor, level: NoiseLevel) -> Any:
        owners = torch.tensor(self._owners(level))  # (B,)
        read: Callable[..., Any] = self._read
        if torch.is_grad_enabled() and images.requires_grad:
            # In the backward pass another expert is merged, so each part is recomputed.
            read = partial(checkpoint, read, use_reentrant=False, preserve_rng_state=False)
        parts, places = [], []
        for owner in sorted(set(owners.tolist())):
            rows = (owners == owner).nonzero()[:, 0]
            seen = images[rows.to(images.device)]
            parts.append(read(owner, seen, NoiseLevel(level.log_snr[rows])))
            places.append(rows)
        order = torch.cat(places).argsort()
        return each_tensor(lambda tensor: tensor[order.to(tensor.device)], joined(parts))

    def _read(self, owner: int, images: Tensor, level: NoiseLevel) -> Any:
        return self._merged(owner)(images, level)
