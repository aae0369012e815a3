"""The image loop of runs, synthetic sets, tables and diagnoses: see `drawing`."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, final

import attrs
import torch
from torch import Tensor, nn

from ppap_framework.border import maker
from ppap_framework.diffusion import NoiseSource, cascade, noised, trajectory
from ppap_framework.errors import PluginError, PpapError, one_line
from ppap_framework.experts import ExpertSet
from ppap_framework.guidance import EnergyGuidance, GuidanceStatistics, Guide, Tally
from ppap_framework.known import Known
from ppap_framework.processes import Processes
from ppap_framework.run.plan import Kind, Plan
from ppap_framework.runtime import Progress, Watch, computing_in, frozen, isolated

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def drawing(plan: Plan, watch: Watch | None = None) -> Iterator[Drawing]:
    """A context in which images of a plan are drawn; `watch` is called after every step.

    Networks are on the device and frozen, experts attached, threads set. All is restored on exit,
    except that networks stay on the device. AssetError if a bundle changed since it was chosen,
    PpapError if networks are to be compiled and cannot be.
    """
    compute, threads = plan.compute, torch.get_num_threads()
    networks = [*(stage.network for stage in plan.stages), *(guide.model for guide in plan.guides)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(isolated())
        if compute.threads is not None:
            torch.set_num_threads(compute.threads)
            stack.callback(torch.set_num_threads, threads)
        stack.enter_context(frozen(networks, plan.device, move=not compute.offload))
        guides, sets = [], dict[nn.Module, ExpertSet]()  # guides of a model share its experts
        for guide in plan.guides:
            experts, model = guide.chosen, guide.model
            if experts is not None:
                if model not in sets:
                    sets[model] = stack.enter_context(experts.attached(model))
                guide = attrs.evolve(guide, experts=sets[model])
            guides.append(guide)
        stepped = stack.enter_context(compiled(plan)) if compute.compile else None
        draw = Drawing(plan, guides, watch, stepped)
        stack.callback(draw.place)  # nothing is needed any more
        yield draw


@final
@attrs.define(eq=False)
class Drawing:
    """Draws batches of a plan and counts what guidance did. Make it with `drawing`.

    Attributes:
        guides: The plan's guides, attached to their experts.
        broken: Number of unchecked images that were not finite.
    """

    _plan: Plan
    guides: Sequence[Guide]
    _watch: Watch | None
    _stepped: Callable[[], None] | None
    broken: int = 0
    _done: int = 0
    _tally: Tally = attrs.field(factory=Tally)
    _there: set[nn.Module] = attrs.field(factory=set)

    @property
    def statistics(self) -> GuidanceStatistics:
        """Guidance statistics of the "guided" images so far."""
        return self._tally.read([guide.name for guide in self.guides])

    def gather(self, processes: Processes) -> None:
        """Count what all processes did."""
        self._tally = Tally.joined(processes.gathered([self._tally]))

    @contextlib.contextmanager
    def atomic(self) -> Iterator[None]:
        """A context whose work is not counted if it ends with an error."""
        tally, done = copy.deepcopy(self._tally), self._done
        try:
            yield
        except BaseException:
            self._tally, self._done = tally, done
            raise

    def place(self, *networks: nn.Module) -> None:
        """Move networks to the device; if networks are offloaded, move the others off it."""
        if self._plan.compute.offload:
            for network in self._there - set(networks):
                network.to("cpu")
            self._there = set(networks)
        for network in networks:
            network.to(self._plan.device)

    def __call__(
        self, images: range, kind: Kind = "guided", *, check: bool = True
    ) -> dict[str, Tensor]:
        """Draw consecutive images: (B, 3, H, W) in [-1, 1], on the device, by stage name, in order.

        PpapError if one is not finite; without `check`, `broken` counts it.
        """
        plan, sampling, count = self._plan, self._plan.sampling, len(images)
        noise = NoiseSource(sampling.seed, images.start)
        x = noise((count, *plan.stage.shape)).to(plan.device)
        condition = plan.backend.encode(sampling.prompts(images), count)
        guidance = self._guidance(images, kind, plan.stage.evaluations(condition))
        self.place(plan.stage.network, *(models(guidance.guides) if guidance else ()))
        picture = known = None
        if plan.begun is not None:
            picture, known = (Known(*(x.to(plan.device) for x in part)) for part in plan.begun)
            condition = plan.backend.inner.inpainting(condition, picture)
            if sampling.share < 1.0:
                x = noised(known.x0, x, plan.process.alphas_cumprod[-1])
        more: dict[str, Any] = {"condition": condition, "indices": plan.indices}
        more["known"] = known if sampling.mask else None
        walk = partial(trajectory, plan.stage, plan.process, x, noise, **more)
        with computing_in(plan.compute.precision, plan.device):
            for state, _ in walk(step=sampling.step, guidance=guidance):
                x = state
                self._count(count)
            if check and (broken := _broken(x)):
                # If the first step is finite without guides, they are at fault.
                guided = guidance is not None and not _broken(next(walk())[0])
                raise self._failure(images[broken[0]], guided)
            with torch.no_grad():
                x = plan.stage.decode(x)
            if picture is not None:
                x = picture.sized(*plan.stage.image_shape[1:]).kept(x)
            drawn = [x.clamp(-1.0, 1.0)]
            more = {"seed": sampling.seed, "start": images.start, "watch": self._count}
            more |= {"ready": lambda stage: self.place(stage.network)}
            drawn += cascade(plan.later, drawn[0], condition, **more)
        last = drawn[-1] if plan.later else x  # not clamped, and so infinite if it was
        broken = _broken(last)
        if check and broken:
            raise self._failure(images[broken[0]])
        self.broken += len(broken)
        return {stage.name: x for stage, x in zip(plan.stages, drawn, strict=True)}

    def _guidance(self, images: range, kind: Kind, evaluations: int) -> EnergyGuidance | None:
        """The plan's guidance of these images, made only here; None if they are unguided."""
        if kind == "unguided" or not self.guides:
            return None
        guides = [guide.rows(images.start, images.stop) for guide in self.guides]
        if kind == "naive":
            for guide in guides:  # the next call with experts merges one again
                if isinstance(guide.experts, ExpertSet):
                    guide.experts.activate(None)
            guides = [attrs.evolve(guide, experts=None, through="noisy") for guide in guides]
        sampling, tally = self._plan.sampling, self._tally if kind == "guided" else Tally()
        how: dict[str, Any] = {"normalize": sampling.normalize, "conflicts": sampling.conflicts}
        how |= {"moments": sampling.moments, "every": sampling.guide_every}
        how |= {"evaluations": evaluations, "tally": tally, "decode": self._plan.stage.decode}
        return EnergyGuidance(guides, **how)

    def _failure(self, number: int, guided: bool = False) -> PpapError:
        fault = f"image {number} came out not finite"
        if guided:
            return PpapError(fault, hint="lower the scale, or use more steps")
        who = maker(self._plan.backend.inner)
        hint = "its network or weights are broken, or float16 is too narrow for them"
        return PluginError(f"{who} failed in denoise: {fault}", hint=hint)

    def _count(self, images: int) -> None:
        if self._stepped:
            self._stepped()
        self._done += images
        if self._watch:
            plan = self._plan
            total = plan.num * plan.steps * (1 + len(plan.compared))
            self._watch(Progress("drawing", self._done, total))


def models(guides: Sequence[Guide]) -> list[nn.Module]:
    """The modules that guides read with: each one's model, and its experts' if that differs."""
    experts = [guide.experts for guide in guides if isinstance(guide.experts, ExpertSet)]
    return list(dict.fromkeys([*(g.model for g in guides), *(each.student for each in experts)]))


def _broken(images: Tensor) -> list[int]:
    """The positions of images that are not finite."""
    return (~images.isfinite().flatten(1).all(1)).nonzero()[:, 0].tolist()


@contextlib.contextmanager
def compiled(run: Plan) -> Iterator[Callable[[], None]]:
    """A context in which each network's `forward` is compiled at its first call.

    Weights are inputs of the compiled code, not constants, so merged experts take effect. Call the
    yielded function after a step: it warns if the first stage's network was not called as a module
    and so not compiled. Others are checked on exit. PpapError if a network cannot be compiled.
    """
    from torch._dynamo.exc import TorchDynamoException  # it takes seconds to import

    named = {stage.network: f"stage {stage.name!r}" for stage in run.stages}
    named |= {guide.model.network: f"guide {guide.name!r}" for guide in run.guides}
    called: set[nn.Module] = set()

    def recorded(network: nn.Module, forward: Callable[..., Any], *given: Any, **more: Any) -> Any:
        called.add(network)
        return forward(*given, **more)

    def check(*networks: nn.Module) -> None:
        for network in networks:
            if network not in called and (name := named.pop(network, None)):
                _log.warning("%s is not compiled: its network is used otherwise than called", name)

    with contextlib.ExitStack() as stack, warnings.catch_warnings():
        # Tracing asks every tensor for its gradient, those in the middle of a graph as well.
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
        for network in named:
            if "forward" in vars(network):
                stack.callback(setattr, network, "forward", network.forward)
            else:
                stack.callback(delattr, network, "forward")
            network.forward = partial(recorded, network, torch.compile(network.forward))
        try:
            yield lambda: check(run.stage.network)
        except TorchDynamoException as error:
            reason = f"the networks cannot be compiled: {one_line(error)}"
            hint = "torch.compile wants a C++ compiler such as g++; or leave out --compile"
            raise PpapError(reason, hint=hint) from error
    check(*list(named))
