"""One network and its experts: which of them looks at an image is decided by its noise level."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias, final
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ppap_framework.components import ExpertAdapter, GuidanceModel
from ppap_framework.errors import AssetError, UsageError
from ppap_framework.experts.ranges import NoiseRanges
from ppap_framework.noise import NoiseLevel
from ppap_framework.predictions import each_tensor, joined
from ppap_framework.preprocessing import Preprocessing, PreprocessingGuide

__all__ = ["ExpertSet", "Look", "has_experts", "student_of"]

Look: TypeAlias = Callable[[Tensor, NoiseLevel], Any]
"""From B images and their noise levels to a prediction, as `GuidanceModel.forward`."""

_CLEAN = -1
_UNSETTLED = -2

_owned: WeakSet[nn.Module] = WeakSet()


def has_experts(network: nn.Module) -> bool:
    """Whether adapters are attached to a network, which then may have other names and weights."""
    return network in _owned


def student_of(model: GuidanceModel, preprocessing: Preprocessing | None) -> GuidanceModel:
    """What experts look through: the guide, or another around the same network that feeds it so.

    Raises:
        UsageError: Where the guide cannot be told how to feed its network.
    """
    if preprocessing is None:
        return model
    if not isinstance(model, PreprocessingGuide):
        raise UsageError(
            f"these experts were shown images otherwise, and {type(model).__name__} shows them in "
            "its own way alone",
            hint="use a guider whose preprocessing can be exchanged, such as `classifier`",
        )
    return model.preprocessed(preprocessing)


@final
class ExpertSet:
    """N experts that share one network, of which one at a time is merged into its weights.

    Each noise level belongs to one expert, and clean images (log-SNR inf) to none: the untouched
    network looks at those. The set owns the network until `detach`.

    Args:
        model: Around the network.
        ranges: Of the N experts.
        adapters: By name. They are attached here, in this order, and must not share tensors.
        preprocessing: What experts are fed, where that is not what the model feeds.

    Attributes:
        model: As given.
        ranges: As given.
        adapters: As given.
        preprocessing: As given.
        student: What experts look through: the model, unless they are fed otherwise.
        network_parameters: Of the untouched network.

    Raises:
        ValueError: Where the network has experts already, or there are no adapters.
        UsageError: Where an adapter finds nothing to adapt, or the model cannot be told how to feed
            its network.
    """

    name: None = None
    path: None = None
    sha256: None = None
    scales: None = None
    """A bundle has these: see `BundleFile`."""

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
        self.model = model
        self.student = student_of(model, preprocessing)
        self.preprocessing = preprocessing
        self.ranges = ranges
        self.adapters = dict(adapters)
        self.network_parameters = sum(p.numel() for p in model.network.parameters())
        self._active: int | None = None
        with contextlib.ExitStack() as undo:
            for adapter in self.adapters.values():
                adapter.attach(model.network, len(ranges))
                undo.callback(adapter.detach)
            undo.pop_all()
        _owned.add(model.network)

    def __len__(self) -> int:
        """N."""
        return len(self.ranges)

    @property
    def expert_parameters(self) -> tuple[int, ...]:
        """N numbers of trainable parameters."""
        return tuple(sum(p.numel() for p in self.parameters(k)) for k in range(len(self)))

    def record(self) -> dict[str, Any]:
        """The ranges as JSON, under the keys of `BundleFile.record`."""
        return {
            "name": None,
            "path": None,
            "sha256": None,
            "num_experts": len(self),
            "boundaries": list(self.ranges.boundaries),
            "scales": None,
        }

    @contextlib.contextmanager
    def attached(self, model: GuidanceModel) -> Iterator[ExpertSet]:
        """A context in which experts are merged as needed; the untouched network is active again at
        its end.

        Args:
            model: The set's own model.
        """
        try:
            yield self
        finally:
            self.activate(None)

    @property
    def active(self) -> int | None:
        """The expert that is merged into the network's weights; None for the untouched network."""
        return self._active

    def activate(self, index: int | None) -> None:
        """Merge an expert into the network's weights; None restores the untouched network.

        A graph that was built before must have been differentiated: merging changes the weights in
        place, of which autograd takes notice and refuses.

        Raises:
            IndexError: Where there is no such expert.
        """
        if index == self._active:
            return
        if index is not None and not 0 <= index < len(self):
            raise IndexError(f"there is no expert {index} of {len(self)}")
        self._active = _UNSETTLED  # for whoever interrupts this
        for adapter in self.adapters.values():
            adapter.activate(index)
        self._active = index

    def at(self, level: NoiseLevel) -> Look:
        """What looks at images of these noise levels, until the next call.

        Args:
            level: B levels. Where they belong to one expert, it is merged and the model itself
                returned, or the student, so that looking costs what it costs without experts.
        """
        owners = set(self._owners(level))
        if len(owners) > 1:
            return self._grouped
        look: Look = self.model
        for owner in owners:  # none of no images
            look = self._merged(owner)
        return look

    def forward(self, images: Tensor, level: NoiseLevel) -> Any:
        """Look at each image with the expert that owns its noise level.

        Args:
            images: (B, 3, H, W), in the variance-preserving form.
            level: Their B noise levels, mixed in any way.

        Returns:
            The model's prediction: a tensor whose first dimension is B, or tuples, lists and
            mappings of such. It can be differentiated in the images at any time if the levels are
            of several experts, and otherwise until another expert is merged.
        """
        return self.at(level)(images, level)

    @contextlib.contextmanager
    def training(self, index: int) -> Iterator[None]:
        """A context in which one expert lives unmerged and gradients reach its `parameters`."""
        self.activate(None)
        with contextlib.ExitStack() as stack:
            for adapter in self.adapters.values():
                stack.enter_context(adapter.training(index))
            yield

    def parameters(self, index: int) -> Iterator[nn.Parameter]:
        """The trainable parameters of one expert."""
        for adapter in self.adapters.values():
            yield from adapter.parameters(index)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the experts hold, as "adapter/expert.name"."""
        return {
            f"{name}/{key}": tensor
            for name, adapter in self.adapters.items()
            for key, tensor in adapter.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state_dict` gave; the untouched network is active afterwards.

        Raises:
            AssetError: Where names or shapes differ.
        """
        parts: dict[str, dict[str, Tensor]] = {name: {} for name in self.adapters}
        for key, tensor in state.items():
            name, _, rest = key.partition("/")
            if name not in parts:
                raise AssetError(
                    f"tensor {key!r} belongs to none of the adapters {', '.join(parts)}",
                    hint="the file is damaged or of another make",
                )
            parts[name][rest] = tensor
        self.activate(None)
        for name, adapter in self.adapters.items():
            adapter.load_state_dict(parts[name])

    def detach(self) -> None:
        """Leave the network as it was found; the set is of no use afterwards."""
        self.activate(None)
        for adapter in reversed(self.adapters.values()):
            adapter.detach()
        _owned.discard(self.model.network)

    def _owners(self, level: NoiseLevel) -> list[int]:
        return [
            _CLEAN if log_snr == math.inf else self.ranges.owner(log_snr)
            for log_snr in level.log_snr.tolist()
        ]

    def _merged(self, owner: int) -> GuidanceModel:
        self.activate(None if owner == _CLEAN else owner)
        return self.model if owner == _CLEAN else self.student

    def _grouped(self, images: Tensor, level: NoiseLevel) -> Any:
        owners = torch.tensor(self._owners(level))  # (B,)
        differentiable = torch.is_grad_enabled() and images.requires_grad
        parts, places = [], []
        for owner in sorted(set(owners.tolist())):
            rows = (owners == owner).nonzero()[:, 0]
            own = images[rows.to(images.device)], NoiseLevel(level.log_snr[rows])
            # When a graph is walked backwards, other weights have taken the place of these. So each
            # part is computed again then, with its own.
            part = (
                checkpoint(self._look, owner, *own, use_reentrant=False, preserve_rng_state=False)
                if differentiable
                else self._look(owner, *own)
            )
            parts.append(part)
            places.append(rows)
        order = torch.cat(places).argsort()
        return each_tensor(lambda tensor: tensor[order.to(tensor.device)], joined(parts))

    def _look(self, owner: int, images: Tensor, level: NoiseLevel) -> Any:
        return self._merged(owner)(images, level)
