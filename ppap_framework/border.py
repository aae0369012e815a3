"""The border to plugins: whatever goes wrong in a component is an error that names its plugin.

The registry passes each component that it makes through `guarded`. A method that the core calls
then raises `PpapError`s only, and returns what its docstring in `ppap_framework.components` states.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor, nn

from ppap_framework.components import (
    CascadedStage,
    CascadeSampling,
    DiffusionBackend,
    ExpertAdapter,
    GuidanceModel,
    Prediction,
    Stage,
    Target,
    TaskLoss,
    VarianceKind,
)
from ppap_framework.errors import PluginError, PpapError, calling
from ppap_framework.noise import NoiseSchedule
from ppap_framework.predictions import tensors_of

T = TypeVar("T")


def guarded(component: T, who: str) -> T:
    """The same object; its errors name `who`, such as "guider 'depth' of ppap-plugin-midas"."""
    if not hasattr(component, "_made_by"):  # stages may be shared
        object.__setattr__(component, "__class__", _guarded_class(type(component), who))
    if isinstance(component, DiffusionBackend):
        with calling(who, "stages"):
            stages = component.stages
            fault = "" if isinstance(stages, tuple) and stages else "it is no tuple of stages"
            if fault := fault or "; ".join(fault for stage in stages for fault in _faults(stage)):
                raise PluginError(f"{who} failed in stages: {fault}")
        for stage in stages:
            guarded(stage, who)
    return component


def maker(component: object) -> str:
    """Who made a component: `who` of `guarded`; the class of an object of the user's own."""
    return str(getattr(component, "_made_by", type(component).__name__))


@functools.cache
def _guarded_class(kind: type, who: str) -> type:
    """A subclass whose methods are checked."""

    def checked(name: str, rule: Callable[..., str]) -> Callable[..., Any]:
        def method(self: Any, *given: Any, **more: Any) -> Any:
            with calling(who, name, given):
                found = getattr(super(own, self), name)(*given, **more)
                if isinstance(found, Iterator):  # while errors are caught
                    found = list(found)
                if not more and (must := rule(self, found, *given)):
                    fault = f"it must return {must}, not {_words(found)}"
                    raise PluginError(f"{who} failed in {name}: {fault}")
            if isinstance(found, GuidanceModel):
                return guarded(found, who)
            return _entered(who, name, found) if name == "training" else found

        return method

    def reduced(self: Any, protocol: Any) -> tuple[Any, ...]:
        make, given, *state = super(own, self).__reduce_ex__(protocol)
        return _copied, (who, make, tuple(kind if x is own else x for x in given)), *state

    rules = {
        name: r for base in _RULES if issubclass(kind, base) for name, r in _RULES[base].items()
    }
    body: dict[str, Any] = {
        name: checked(name, r) for name, r in rules.items() if hasattr(kind, name)
    }
    body |= {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__slots__": ()}
    own: type = type(kind)(
        kind.__name__, (kind,), body | {"_made_by": who, "__reduce_ex__": reduced}
    )
    return own


def _copied(who: str, make: Callable[..., Any], given: tuple[Any, ...]) -> Any:
    component = make(*given)
    object.__setattr__(component, "__class__", _guarded_class(type(component), who))
    return component


@contextlib.contextmanager
def _entered(who: str, name: str, context: AbstractContextManager[None]) -> Iterator[None]:
    stack = contextlib.ExitStack()
    with calling(who, name):
        stack.enter_context(context)
    try:
        yield
    finally:
        with calling(who, name):
            stack.close()


def _words(found: object) -> str:
    if isinstance(found, Tensor):
        return f"a tensor {tuple(found.shape)} of {str(found.dtype).removeprefix('torch.')}"
    count = f" of {len(found)}" if isinstance(found, list | tuple) else ""
    return "None" if found is None else f"a {type(found).__name__}{count}"


def _unless(right: object, must: str) -> str:
    return "" if right else must


def _is_tensor(found: object, *shape: int | None, dtype: torch.dtype | None = None) -> bool:
    """Whether this is a tensor of numbers of this shape, in which None is any size."""
    return (
        isinstance(found, Tensor)
        and len(shape) == found.ndim
        and all(a in (None, b) for a, b in zip(shape, found.shape, strict=True))
        and (found.is_floating_point() if dtype is None else found.dtype == dtype)
    )


def _count(prediction: Any) -> int:
    return len(tensors_of(prediction)[0])


def _forward(self: Any, found: Any, images: Tensor, level: Any = None) -> str:
    try:
        right = [x.ndim and len(x) == len(images) for x in tensors_of(found)]
    except PpapError:
        right = []
    return _unless(right and all(right), f"tensors of {len(images)} predictions, one for an image")


def _target(self: Any, found: Any, given: Any) -> str:
    right = isinstance(found, Target) and isinstance(found.value, Tensor) and found.value.ndim
    right = right and isinstance(found.label, str) and not bool(found.value.isnan().all())
    right = right and (found.picture is None or _is_tensor(found.picture, 3, None, None))
    return _unless(right, "a Target with values (B, ...), not all NaN, and a picture (3, H, W)")


def _render(self: Any, found: Any, prediction: Any, images: Tensor) -> str:
    right = _is_tensor(found, len(images), 3, None, None) and bool(found.isfinite().all())
    return _unless(right, f"finite pictures ({len(images)}, 3, h, w)")


def _describe(self: Any, found: Any, prediction: Any) -> str:
    count = _count(prediction)
    right = isinstance(found, list | tuple) and len(found) in (0, count)
    right = right and all(isinstance(words, str) for words in found)
    return _unless(right, f"a list of {count} texts, or an empty one")


def _energies(self: Any, found: Any, prediction: Any, other: Any) -> str:
    count = _count(prediction)
    return _unless(_is_tensor(found, count), f"a tensor ({count},), one number for each image")


def _metrics(self: Any, found: Any, prediction: Any, target: Tensor) -> str:
    count = _count(prediction)
    right = isinstance(found, Mapping) and all(isinstance(name, str) for name in found)
    right = right and all(isinstance(x, Tensor) and x.shape == (count,) for x in found.values())
    return _unless(right, f"a dict of names and tensors ({count},)")


def _denoise(self: Any, found: Any, x_t: Tensor, t: Tensor, condition: Any) -> str:
    learned, shape = self.variance == "learned_range", tuple(x_t.shape)
    must = f"a Prediction of float32 {shape}{' with its variance' if learned else ''}"
    if not isinstance(found, Prediction) or (found.variance is not None) != learned:
        return must if learned else f"{must} without a variance"
    parts = [found.x_t, found._x0 if found._eps is None else found._eps]
    parts += [found.variance] if learned else []
    right = all(_is_tensor(part, *shape, dtype=torch.float32) for part in parts)
    right = right and all(_is_tensor(x, len(x_t), 1, 1, 1) for x in (found.alpha, found.sigma))
    return _unless(right, f"{must}, alpha and sigma ({len(x_t)}, 1, 1, 1)")


def _state(self: Any, found: Any) -> str:
    right = isinstance(found, Mapping) and all(isinstance(x, Tensor) for x in found.values())
    right = right and all(re.match(r"\d+\..", str(name)) for name in found)
    return _unless(right, 'a dict of "INDEX.NAME" and tensors')


def _anything(self: Any, found: Any, *given: Any) -> str:
    return ""


def _must_be(words: str, test: Callable[[Any], bool]) -> Callable[..., str]:
    return lambda self, found, *given: _unless(test(found), words)


_RULES: dict[type, dict[str, Callable[..., str]]] = {
    GuidanceModel: {
        "forward": _forward,
        "target": _target,
        "render": _render,
        "describe": _describe,
        "preprocessed": _must_be("a GuidanceModel", lambda x: isinstance(x, GuidanceModel)),
    },
    TaskLoss: {"energy": _energies, "transfer": _energies, "metrics": _metrics},
    DiffusionBackend: {"encode": _anything},
    Stage: {
        "denoise": _denoise,
        "evaluations": _must_be("a whole number from 1", lambda x: type(x) is int and x > 0),
        "conditioned": _anything,
    },
    ExpertAdapter: {
        **dict.fromkeys(("attach", "activate", "load_state_dict", "detach"), _anything),
        "training": _must_be("a context", lambda x: isinstance(x, AbstractContextManager)),
        "parameters": _must_be(
            "parameters",
            lambda found: all(isinstance(parameter, nn.Parameter) for parameter in found),
        ),
        "state_dict": _state,
    },
}
"""What each method must return, or "" if it did: from component, result and arguments."""

_STAGE: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "name": ("a text", lambda name: isinstance(name, str) and name != ""),
    "image_shape": ("(3, H, W)", lambda s: [*map(type, s)] == [int] * 3 and s[0] == 3 <= min(s)),
    "schedule": ("a NoiseSchedule", lambda schedule: isinstance(schedule, NoiseSchedule)),
    "variance": (
        f"one of {', '.join(get_args(VarianceKind))}",
        get_args(VarianceKind).__contains__,
    ),
    "network": ("a module", lambda network: isinstance(network, nn.Module)),
}


def _faults(stage: Any) -> Iterator[str]:
    """What is wrong with the attributes of a stage."""
    if not isinstance(stage, Stage):
        yield f"one is {_words(stage)}"
        return
    for name, (must, test) in _STAGE.items():
        if not test(found := getattr(stage, name, None)):
            yield f"{name} must be {must}, not {found!r:.60}"
    if isinstance(stage, CascadedStage) and not isinstance(stage.sampling, CascadeSampling):
        yield f"sampling must be a CascadeSampling, not {_words(stage.sampling)}"
