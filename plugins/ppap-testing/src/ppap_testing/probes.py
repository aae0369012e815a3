"""What the suites compute: images, comparisons, slopes, copies, and what a network consists of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from ppap_framework.predictions import tensors_of
from ppap_testing.suite import require


def pictures(batch: int, size: tuple[int, int], *, seed: int = 0) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1], different ones, coarse and fine."""
    generator = torch.Generator("cpu").manual_seed(seed)
    coarse = torch.rand(batch, 3, 4, 4, generator=generator)
    fine = torch.rand(batch, 3, *size, generator=generator)
    smooth = nn.functional.interpolate(coarse, size, mode="bilinear")
    return 1.2 * (smooth + 0.3 * fine) - 0.78


def same(one: Any, other: Any) -> bool:
    """Whether two predictions are bitwise equal."""
    pairs = zip(tensors_of(one), tensors_of(other), strict=True)
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def close(one: Any, other: Any, tolerance: float) -> bool:
    """Whether two predictions differ by at most a share of their largest number."""
    for a, b in zip(tensors_of(one), tensors_of(other), strict=True):
        if a.shape != b.shape:
            return False
        a, b = a.double(), b.double()
        if not bool((a - b).abs().max() <= tolerance * a.abs().max().clamp_min(1e-3)):
            return False
    return True


def finite(value: Any) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors_of(value))


def slope_fault(
    function: Callable[[Tensor], Tensor], at: Tensor, step: float, tolerance: float
) -> str:
    """How the gradient of a function of (B, ...) to a scalar differs from central differences.

    Compared along the gradient and a random direction; empty if by at most `tolerance` times the
    gradient's norm. `step` is a share of the norm of `at`. ZeroDivisionError without a gradient.
    """
    at = at.detach().requires_grad_()
    value = function(at)
    if not value.requires_grad or not bool((gradient := torch.autograd.grad(value, at)[0]).any()):
        raise ZeroDivisionError
    generator = torch.Generator("cpu").manual_seed(1)
    random = torch.randn(at.shape, generator=generator, dtype=torch.float64).to(at)
    length = gradient.norm()
    with torch.no_grad():
        for name, direction in (("itself", gradient), ("a random direction", random)):
            direction = direction / direction.norm()
            h = step * at.norm()
            rise = (function(at + h * direction) - function(at - h * direction)) / (2 * h)
            stated = (gradient * direction).sum()
            if not bool((rise - stated).abs() <= tolerance * length):
                return f"along {name} it is {stated:.4g}, and the function changes by {rise:.4g}"
    return ""


def safetensors_copy(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """A state dict, saved as safetensors and loaded again; NotConformingError if it cannot be."""
    advice = "keep only tensors in the state dict: register_buffer, and no get_extra_state"
    others = [name for name, value in state.items() if not isinstance(value, Tensor)]
    require(not others, f"the state dict has {others[:1]}, which is no tensor", advice)
    return load(
        save({name: tensor.detach().clone().contiguous() for name, tensor in state.items()})
    )


def tensors_in(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Copies of the tensors of a state dict."""
    return {name: x.clone() for name, x in state.items() if isinstance(x, Tensor)}


def scrambled(network: nn.Module) -> None:
    """Change all floating parameters and buffers of a network."""
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                tensor.add_(1.0)


def facts(network: nn.Module) -> dict[str, Any]:
    """What a network consists of: values, names, flags, hooks."""
    hooks: Sequence[str] = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return {
        "names": [*network.state_dict()],
        "weights": {name: tensor.clone() for name, tensor in network.state_dict().items()},
        "gradient flags": [p.requires_grad for p in network.parameters()],
        "modules": [type(module) for module in network.modules()],
        "hooks": [len(getattr(module, hook)) for module in network.modules() for hook in hooks],
        "modes": [module.training for module in network.modules()],
    }


def changed_facts(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The names of the facts that differ."""
    weights = before["weights"], after["weights"]
    same = weights[0].keys() == weights[1].keys() and all(
        torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items()
    )
    others = [name for name in before if name != "weights" and before[name] != after[name]]
    return others + ([] if same else ["weights"])
