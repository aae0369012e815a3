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
from ppap_framework.components import DiffusionBackend, GuidanceModel
from ppap_framework.errors import PluginError, calling
from ppap_framework.noise import NoiseSchedule
from ppap_framework.predictions import tensors_of

T = TypeVar("T")


def guarded(component: T, who: str) -> T:
    """The same object; its errors name `who`, such as "guider 'depth' of ppap-plugin-midas"."""
    if not hasattr(component, "_made_by"):  # stages may be shared
        object.__setattr__(component, "__class__", _guarded_class(type(component), who))
    if isinstance(component, DiffusionBackend):
        with calling(who, "its stages"):
            for stage in component.stages:
                for name, (must, test) in _STAGE.items():
                    if name == "sampling" and not isinstance(stage, components.CascadedStage):
                        continue
                    if not test(found := getattr(stage, name)):
                        fault = f"{name} must be {must}, not {found!r:.60}"
                        raise PluginError(f"{who} failed in its stages: {fault}")
                guarded(stage, who)
    return component


def maker(component: object) -> str:
    """Who made a component: `who` of `guarded`; the class of an object of the user's own."""
    return str(getattr(component, "_made_by", type(component).__name__))


@functools.cache
def _guarded_class(kind: type, who: str) -> type:
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
                    must = _MUST[name].format(count)
                    fault = f"it must return {must}, not {_words(found)}"
                    raise PluginError(f"{who} failed in {name}: {fault}")
            return guarded(found, who) if isinstance(found, GuidanceModel) else found

        return method

    def reduced(self: Any, protocol: Any) -> tuple[Any, ...]:
        make, given, *state = super(own, self).__reduce_ex__(protocol)
        return _copied, (who, make, tuple(kind if x is own else x for x in given)), *state

    names = [name for base in _METHODS if issubclass(kind, base) for name in _METHODS[base]]
    body = {name: checked(name) for name in names if hasattr(kind, name)}
    body |= {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__slots__": ()}
    body |= {"_made_by": who, "__reduce_ex__": reduced}
    own: type = type(kind)(kind.__name__, (kind,), body)
    return own


def _copied(who: str, make: Callable[..., Any], given: tuple[Any, ...]) -> Any:
    component = make(*given)
    object.__setattr__(component, "__class__", _guarded_class(type(component), who))
    return component


def _words(found: object) -> str:
    if isinstance(found, Tensor):
        return f"a tensor {tuple(found.shape)} of {str(found.dtype).removeprefix('torch.')}"
    count = f" of {len(found)}" if isinstance(found, list | tuple) else ""
    return "None" if found is None else f"a {type(found).__name__}{count}"


_METHODS = {
    GuidanceModel: ("forward", "target", "render", "describe", "preprocessed"),
    components.TaskLoss: ("energy", "transfer", "metrics"),
    DiffusionBackend: ("encode",),
    components.Stage: ("denoise", "evaluations", "conditioned"),
    components.ExpertAdapter: (
        *("attach", "activate", "training", "parameters"),
        *("state_dict", "load_state_dict", "detach"),
    ),
}
_MUST = {
    "forward": "tensors of {0} rows, one for each image",
    "target": "a Target with values (B, ...) that are not all NaN, and a picture (3, H, W)",
    "render": "finite pictures ({0}, 3, h, w)",
    "describe": "a list of {0} texts, or an empty one",
    "energy": "a tensor ({0},), one number for each image",
    "transfer": "a tensor ({0},), one number for each image",
    "metrics": "a dict of names and tensors ({0},)",
    "denoise": "a Prediction in float32 with the shape of x_t, alpha and sigma ({0}, 1, 1, 1), and "
    "a variance if and only if its stage says learned_range",
    "evaluations": "an int from 1",
    "training": "a context",
    "parameters": "parameters",
    "state_dict": "a dict of INDEX.NAME and tensors",
}
"""What methods must return; {0} is the number of images."""


def _fits(self: Any, method: str, found: Any, count: int, given: tuple[Any, ...]) -> Any:
    """Whether a method returned what it must; else this may raise."""
    match method:
        case "forward":
            tensors = tensors_of(found)
            return tensors and all(len(tensor) == count for tensor in tensors)
        case "target":
            shown = found.picture is None or found.picture.shape[:-2] == (3,)
            return shown and found.value.ndim and not found.value.isnan().all() and found.label + ""
        case "render":
            fits = found.ndim == 4 and found.shape[:2] == (count, 3)
            return fits and found.is_floating_point() and found.isfinite().all()
        case "describe":
            fits = type(found) in (list, tuple) and len(found) in (0, count)
            return fits and all(isinstance(words, str) for words in found)
        case "energy" | "transfer":
            return found.shape == (count,) and found.is_floating_point()
        case "metrics":
            return all(name + "" and x.shape == (count,) for name, x in found.items())
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
            return all(
                re.match(r"\d+\..", name) and isinstance(x, Tensor) for name, x in found.items()
            )
    return True


_KINDS = get_args(components.VarianceKind)
_STAGE: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "name": ("a text", lambda name: isinstance(name, str) and name),
    "image_shape": ("(3, H, W)", lambda s: [*map(type, s)] == [int] * 3 and s[0] == 3 <= min(s)),
    "schedule": ("a NoiseSchedule", lambda schedule: isinstance(schedule, NoiseSchedule)),
    "variance": (f"one of {', '.join(_KINDS)}", _KINDS.__contains__),
    "network": ("a module", lambda network: isinstance(network, nn.Module)),
    "sampling": ("a CascadeSampling", lambda x: isinstance(x, components.CascadeSampling)),
}
