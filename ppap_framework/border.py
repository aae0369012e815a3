"""The border to plugins: whatever goes wrong in a component is an error that names its plugin.

The registry passes each component that it makes through `guarded`. A method that the core calls
then raises `PpapError`s only, and returns what its docstring in `ppap_framework.components` states.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor, nn

from ppap_framework import components
from ppap_framework.errors import PluginError, calling
from ppap_framework.predictions import tensors_of

T = TypeVar("T")

_BASES = (
    *(components.GuidanceModel, components.TaskLoss, components.ExpertAdapter),
    *(components.DiffusionBackend, components.Stage, components.CascadedStage),
)
_VARIANCES = get_args(components.VarianceKind)


def guarded(component: T, who: str) -> T:
    """The same object; its errors name `who`, such as "guider 'depth' of ppap-plugin-midas"."""
    if not hasattr(component, "_made_by"):  # stages may be shared
        _guard(component, who)
    if isinstance(component, components.DiffusionBackend):
        with calling(who, "its stages"):
            for stage in component.stages:
                kind, shape = stage.variance, tuple(stage.image_shape)
                if kind not in _VARIANCES or len(shape) != 3 or shape[0] != 3:
                    has = f"has the image_shape {shape} and the variance {kind!r}"
                    raise ValueError(f"{stage.name} {has}; see `Stage`")
                guarded(stage, who)
    return component


def maker(component: object) -> str:
    """Who made a component: `who` of `guarded`; the class of an object of the user's own."""
    return str(getattr(component, "_made_by", type(component).__name__))


@functools.cache
def _guarded_class(kind: Any, who: str) -> Any:
    """A subclass whose methods are checked; its objects can be copied and pickled."""

    def checked(name: str) -> Callable[..., Any]:
        def method(self: Any, *given: Any, **more: Any) -> Any:
            with calling(who, name, given):
                found = getattr(super(own, self), name)(*given, **more)
                if isinstance(found, Iterator):  # while errors are caught
                    found = list(found)
                count, right = 0, bool(more)
                with suppress(Exception):  # what has no such attributes is wrong
                    count = len(tensors_of(given[0])[0]) if given else 0
                with suppress(Exception):
                    right = right or bool(_fits(self, name, found, count, given))
                if not right:
                    fault = f"it returned {_words(found)}" + f" for {count} images" * bool(count)
                    hint = f"the docstring of `{name}` in ppap_framework.components says what fits"
                    raise PluginError(f"{who} failed in {name}: {fault}", hint=hint)
            made = name == "preprocessed" and isinstance(found, components.GuidanceModel)
            return guarded(found, who) if made else found

        return method

    def reduced(self: Any, protocol: Any) -> tuple[Any, ...]:
        make, given, *state = super(own, self).__reduce_ex__(protocol)
        return _copied, (who, make, tuple(kind if x is own else x for x in given)), *state

    stated = [vars(base) for base in _BASES if issubclass(kind, base)]
    names = {name for each in stated for name in each if name[0] != "_" and callable(each[name])}
    there = (name for name in {*names, "preprocessed"} if hasattr(kind, name))
    body: dict[str, Any] = {name: checked(name) for name in there}
    body |= {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__slots__": ()}
    body |= {"_made_by": who, "__reduce_ex__": reduced}
    own: Any = type(kind)(kind.__name__, (kind,), body)
    return own


def _copied(who: str, make: Callable[..., Any], given: tuple[Any, ...]) -> Any:
    return _guard(make(*given), who)


def _guard(component: Any, who: str) -> Any:
    kind: Any = type(component)
    object.__setattr__(component, "__class__", _guarded_class(kind, who))
    return component


def _words(found: object) -> str:
    if isinstance(found, Tensor):
        finite = "" if found.isfinite().all() else ", not finite"
        return f"a tensor {tuple(found.shape)} of {str(found.dtype).removeprefix('torch.')}{finite}"
    return f"a {type(found).__name__}" + (f" of {len(found)}" if hasattr(found, "__len__") else "")


def _fits(self: Any, method: str, found: Any, count: int, given: tuple[Any, ...]) -> Any:
    """Whether a method returned what it must; else this may raise."""
    match method:
        case "forward":
            tensors = tensors_of(found)
            return tensors and all(len(tensor) == count for tensor in tensors)
        case "target":
            shown = found.picture is None or found.picture.shape[:-2] == (3,)
            known = found.value.ndim and not found.value.isnan().all()
            return shown and known and isinstance(found.label, str)
        case "render":
            fits = found.ndim == 4 and found.shape[:2] == (count, 3)
            return fits and found.is_floating_point() and found.isfinite().all()
        case "describe":
            fits = type(found) in (list, tuple) and len(found) in (0, count)
            return fits and all(isinstance(words, str) for words in found)
        case "energy" | "transfer":
            return found.shape == (count,) and found.is_floating_point()
        case "metrics":
            named = all(isinstance(name, str) for name in found)
            return named and all(figure.shape == (count,) for figure in found.values())
        case "decode":
            return found.shape[:2] == (count, 3) and found.dtype == torch.float32
        case "encode" if isinstance(self, components.Stage):
            return found.shape == (count, *self.shape) and found.dtype == torch.float32
        case "denoise":
            learned = self.variance == "learned_range"
            parts = [found.x_t, found._x0 if found._eps is None else found._eps]
            parts += [found.variance] if learned else []
            return (
                all(x.shape == given[0].shape and x.dtype == torch.float32 for x in parts)
                and all(x.shape == (count, 1, 1, 1) for x in (found.alpha, found.sigma))
                and (found.variance is None) != learned
            )
        case "evaluations":
            return type(found) is int and found > 0
        case "training":
            return isinstance(found, AbstractContextManager)
        case "parameters":
            return all(isinstance(parameter, nn.Parameter) for parameter in found)
        case "state_dict":
            named = all(re.match(r"\d+\..", name) for name in found)
            return named and all(isinstance(tensor, Tensor) for tensor in found.values())
    return True
