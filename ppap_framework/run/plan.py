"""What a run will do and what it will cost, settled before the first image."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, final

import attrs
import torch

from ppap_framework.components import DiffusionBackend, Stage
from ppap_framework.diffusion import (
    Continuation,
    Process,
    Step,
    ddim_step,
    ddpm_step,
    timesteps_for,
)
from ppap_framework.errors import UsageError
from ppap_framework.experts import ExpertSet
from ppap_framework.guidance import Guide
from ppap_framework.run.backend import LoadedBackend, backend
from ppap_framework.run.cost import Cost, cost_of
from ppap_framework.run.experts import ChosenExperts, ExpertRequest
from ppap_framework.run.found_guide import LoadedGuide
from ppap_framework.run.origin import Origin, own_sha256
from ppap_framework.run.problems import Problems
from ppap_framework.run.settings import Settings, find_device
from ppap_framework.run.stages import later_stages

__all__ = ["Plan", "check_backend", "option_words", "plan", "scale_words"]

_FILE_NAME = re.compile(r"\w[\w.-]*")


@final
@attrs.frozen(kw_only=True, eq=False)
class Plan:
    """A run about which everything is settled.

    Attributes:
        backend: That draws.
        guides: That steer.
        experts: Those of each guide, or None.
        settings: How.
        process: The reverse process of the backend's first stage over the kept timesteps.
        later: The stages that go on from there, as far as it was asked for.
        device: Where.
    """

    backend: LoadedBackend
    guides: tuple[LoadedGuide, ...]
    experts: tuple[ChosenExperts | None, ...]
    settings: Settings
    process: Process
    later: tuple[Continuation, ...] = ()
    device: torch.device

    @property
    def stage(self) -> Stage:
        """The stage that guides steer: the backend's first."""
        return self.backend.stages[0]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All that will run, in their order."""
        return (self.stage, *(following.stage for following in self.later))

    @property
    def processes(self) -> tuple[Process, ...]:
        """Of each of `stages`."""
        return (self.process, *(following.process for following in self.later))

    @property
    def steps(self) -> int:
        """That an image takes, of all stages together."""
        return sum(map(len, self.processes))

    @property
    def step(self) -> Step:
        """The sampler."""
        if self.settings.sampler == "ddpm":
            return ddpm_step
        return partial(ddim_step, eta=self.settings.eta)

    @property
    def compared(self) -> tuple[str, ...]:
        """What the images are drawn in besides: "unguided", and "naive" for the same guides without
        their experts, at the same scales.
        """
        if not self.settings.compare:
            return ()
        return ("unguided", "naive") if any(self.experts) else ("unguided",)

    @property
    def cost(self) -> Cost:
        """What it will take."""
        return cost_of(self)

    @contextlib.contextmanager
    def attached(self) -> Iterator[tuple[Guide, ...]]:
        """A context in which the guides look through their experts; their networks are at its end
        as they were found.

        Raises:
            AssetError: Where a bundle is not what it was when it was chosen.
        """
        sets: dict[int, ExpertSet] = {}  # guides may share a model, and then share its experts
        guides = []
        with contextlib.ExitStack() as stack:
            for loaded, experts in zip(self.guides, self.experts, strict=True):
                guide = loaded.guide
                if experts is not None:
                    if id(guide.model) not in sets:
                        attached = experts.attached(guide.model)
                        sets[id(guide.model)] = stack.enter_context(attached)
                    guide = attrs.evolve(guide, experts=sets[id(guide.model)])
                guides.append(guide)
            yield tuple(guides)

    def record(self) -> dict[str, Any]:
        """The resolved configuration, as JSON."""
        return {
            "backend": self.backend.origin.resolved_record(),
            "guides": [
                {
                    "name": loaded.guide.name,
                    "target": loaded.guide.target.label,
                    "target_given": loaded.target_source,
                    "target_is_default": loaded.target_is_default,
                    "scale": loaded.guide.scale if loaded.guide.scales is None else "auto",
                    "interval": list(loaded.guide.interval),
                    "loss": loaded.loss_name,
                    "experts": None if experts is None else experts.record(),
                    **loaded.origin.resolved_record(),
                }
                for loaded, experts in zip(self.guides, self.experts, strict=True)
            ],
            **attrs.asdict(self.settings),
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "image_shape": list(self.stage.image_shape),
            "schedule": self.process.schedule.name,
            "timesteps": list(self.process.timesteps),
            "stages": [
                {
                    "name": stage.name,
                    "image_shape": list(stage.image_shape),
                    "schedule": process.schedule.name,
                    "timesteps": list(process.timesteps),
                }
                for stage, process in zip(self.stages, self.processes, strict=True)
            ],
        }


def plan(
    source: DiffusionBackend | str, guides: Sequence[LoadedGuide | Guide], settings: Settings
) -> Plan:
    """Settle everything about a run.

    Args:
        source: A backend, or what `backend` makes one of.
        guides: Any number, of different names.
        settings: How to sample.

    Raises:
        UsageError: For everything that is wrong with the settings and for this backend and guides.
        PpapError: Where experts cannot be used: see `ExpertRequest.choose`.
    """
    settings.check()
    loaded = backend(source)
    check_backend(loaded, settings)
    aimed = _aimed(guides)
    problems = Problems()
    if settings.compare and not aimed:
        problems.errors.append(
            UsageError("there is nothing to compare without a guide", hint="give a guide")
        )
    names = [g.guide.name for g in aimed]
    for name in names:
        if not _FILE_NAME.fullmatch(name):
            problems.errors.append(
                UsageError(
                    f"a guide cannot be called {name!r}",
                    hint="its name goes into file names: letters, digits, hyphens and dots",
                )
            )
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.errors.append(
            UsageError(f"there are {names.count(name)} guides called {name!r}", hint="rename one")
        )
    for g in aimed:
        if (rows := g.guide.target.value.shape[0]) not in (1, settings.num):
            problems.errors.append(
                UsageError(
                    f"guide {g.guide.name!r} has {rows} targets for {settings.num} images",
                    hint=f"give one target, or num={rows}",
                )
            )
    manned = []
    for g in aimed:
        with problems.collected():
            manned.append(_with_experts(g, loaded, settings))
    problems.check()
    _check_shared(manned)
    stage = loaded.stages[0]
    process = Process(
        stage.schedule,
        timesteps_for(stage.schedule.num_timesteps, settings.steps),
        stage.variance,
    )
    for g, experts in manned:
        if experts is not None:
            experts.warn_of_idle(g.guide.name, process)
    return Plan(
        backend=loaded,
        guides=tuple(g for g, _ in manned),
        experts=tuple(experts for _, experts in manned),
        settings=settings,
        process=process,
        later=later_stages(loaded, settings.stage),
        device=find_device(settings.device),
    )


def check_backend(loaded: LoadedBackend, settings: Settings) -> None:
    """Accept a backend that can be sampled from with these settings.

    Raises:
        UsageError: Where it has fewer timesteps than there shall be steps, no stage of the name at
            which to stop, a later stage that cannot go on from the one before it, or does not
            understand the prompt.
    """
    problems = Problems()
    with problems.collected():
        later_stages(loaded, settings.stage)
    with problems.collected():
        timesteps_for(loaded.stages[0].schedule.num_timesteps, settings.steps)
    with problems.collected():
        prompts = settings.prompts(slice(0, settings.num))
        different = None if prompts is None else list(dict.fromkeys(prompts))
        loaded.encode(different, len(different or ["none"]))
    problems.check()


def option_words(options: Mapping[str, Any]) -> str:
    """A component's options, for people; those that are None are left out."""
    return ", ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in options.items()
        if value is not None
    )


def scale_words(guide: Guide) -> str:
    """How hard a guide pulls, for people."""
    if guide.scales is None:
        return f"{guide.scale:g}"
    return ", ".join(f"{guide.scale * factor:.3g}" for factor in guide.scales.values)


def _with_experts(
    loaded: LoadedGuide, backend: LoadedBackend, settings: Settings
) -> tuple[LoadedGuide, ChosenExperts | None]:
    guide, wanted = loaded.guide, loaded.experts
    chosen = wanted.choose(guide.name, guide.model, backend.inner, settings.through)
    if chosen is not None and chosen.calibration is not None and wanted.calibrated is not False:
        guide = attrs.evolve(guide, scale=1.0, scales=chosen.calibration)
    settled = attrs.evolve(wanted, source=chosen or "none", calibrated=False)
    return attrs.evolve(loaded, guide=guide, experts=settled), chosen


def _check_shared(guides: Sequence[tuple[LoadedGuide, ChosenExperts | None]]) -> None:
    """Accept guides of one network if they look through the same experts, or all through none.

    Raises:
        UsageError: Where one would look through the experts of another.
    """
    first: dict[int, tuple[Guide, ChosenExperts | None]] = {}
    for loaded, experts in guides:
        guide = loaded.guide
        other, others = first.setdefault(id(guide.model.network), (guide, experts))
        same = experts is not None and others is not None and experts.same_as(others)
        if not (experts is others or (same and guide.model is other.model)):
            raise UsageError(
                f"guides {other.name!r} and {guide.name!r} share a network, and not its experts",
                hint="make both of one GuidanceModel, with the same experts or with none",
            )


def _aimed(guides: Any) -> tuple[LoadedGuide, ...]:
    """The guides of a run.

    Raises:
        UsageError: Where it is no sequence of guides.
    """
    lone = isinstance(guides, str) or not isinstance(guides, Iterable)
    aimed = []
    for given in (guides,) if lone else guides:
        if lone or not isinstance(given, LoadedGuide | Guide):
            what = repr(given) if isinstance(given, str) else f"a {type(given).__name__}"
            raise UsageError(
                f"guides must be a list of guides, and {what} is "
                + ("one" if isinstance(given, LoadedGuide | Guide) else "none"),
                hint='as in guides=[ppap.guide("depth")]',
            )
        aimed.append(given if isinstance(given, LoadedGuide) else _bare(given))
    return tuple(aimed)


def _bare(guide: Guide) -> LoadedGuide:
    return LoadedGuide(
        guide=guide,
        origin=Origin(
            component=type(guide.model).__qualname__, weights_sha256=own_sha256(guide.model)
        ),
        loss_name=type(guide.loss).__name__,
        target_source=guide.target.label,
        experts=ExpertRequest(source=guide.experts or "none"),
    )
