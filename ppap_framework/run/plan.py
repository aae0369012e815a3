"""Plans: runs whose images and cost are settled before drawing."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias, final

import attrs
import torch

from ppap_framework.components import CascadedStage, Stage, check_readable
from ppap_framework.diffusion import Process, repeated, timesteps_for
from ppap_framework.errors import Problems, UsageError
from ppap_framework.experts import (
    BundleFile,
    guide_sha256,
    has_experts,
    same_experts,
    same_loss,
    warn_of_idle,
)
from ppap_framework.guidance import Guide, Through, raw_scale
from ppap_framework.known import Known
from ppap_framework.noise import NoiseLevel
from ppap_framework.origin import Origin
from ppap_framework.run.backend import LoadedBackend, backend
from ppap_framework.run.init_image import begun
from ppap_framework.run.settings import Compute, Sampling, check
from ppap_framework.runtime import isolated

_log = logging.getLogger(__name__)

Kind: TypeAlias = Literal["guided", "unguided", "naive"]
"""Guided as planned, without guides, or by the same guides and scales without experts."""

DEFAULT_SCALE = 4.0
"""Guidance scale if none is given and no experts are calibrated."""

DEFAULT_MULTIPLIER = 8.0
"""Multiplier of a calibrated curve if none is given."""

_OTHER_LOSS = "guide %r: the calibrated scales are for %s, and are not used for %s; find a scale"
_NO_CURVE = "experts %r have no curve; try `ppap experts calibrate %s --backend %s --guider %s`"
_FILE_NAME = re.compile(r"\w[\w.-]*")


@final
@attrs.frozen(eq=False)
class Plan:
    """A run with all settings resolved.

    Attributes:
        guides: The guides, with scales and experts settled.
        compare: Draw the same noise also without guides and, if there are any, without experts.
        sampling: What determines the images.
        compute: How they are computed.
        process: Reverse process of the backend's first stage over the kept timesteps that are
            walked; an init image is noised to the last of them.
        indices: Indices of this process in the order of the walk.
        begun: The init image and its mask, of the last stage's size, and for x_t of the first.
        later: Later stages that run, with their processes.
    """

    backend: LoadedBackend
    guides: tuple[Guide, ...]
    num: int
    compare: bool
    sampling: Sampling
    compute: Compute
    process: Process
    indices: tuple[int, ...]
    begun: tuple[Known, Known] | None
    later: tuple[tuple[CascadedStage, Process], ...]
    device: torch.device

    @property
    def stage(self) -> Stage:
        """The stage that guides steer: the backend's first."""
        return self.backend.stages[0]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages that run, in order."""
        return (self.stage, *(stage for stage, _ in self.later))

    @property
    def processes(self) -> tuple[Process, ...]:
        """Reverse process of each of `stages`."""
        return (self.process, *(process for _, process in self.later))

    @property
    def looks(self) -> set[Through]:
        """The images that guides look at."""
        return {look for guide in self.guides for look in guide.each_through}

    @property
    def walks(self) -> tuple[int, ...]:
        """Steps of an image in each of `stages`."""
        return (len(self.indices), *map(len, self.processes[1:]))

    @property
    def steps(self) -> int:
        """Steps of an image in all stages together."""
        return sum(self.walks)

    @property
    def compared(self) -> tuple[Kind, ...]:
        """Compared kinds: "unguided" and, if experts guide, "naive"."""
        if not self.compare:
            return ()
        experts = any(guide.chosen is not None for guide in self.guides)
        experts = experts and self.stage.latent_shape is None  # nothing else reads latents
        return ("unguided", "naive") if experts else ("unguided",)

    def record(self) -> dict[str, Any]:
        """The resolved configuration, JSON."""
        return {
            "backend": self.backend.origin.record(resolved=True),
            "guides": [_guide_record(guide) for guide in self.guides],
            "num": self.num,
            "compare": self.compare,
            **self.sampling.record(),
            **self.compute.record(),
            "device": str(self.device),
            "threads": self.compute.threads or torch.get_num_threads(),
            **{name: value for name, value in self.stages_record()[0].items() if name != "name"},
            "stages": self.stages_record(),
        }

    def stages_record(self) -> list[dict[str, Any]]:
        """Shape, schedule and timesteps of each stage, JSON."""
        return [
            {
                "name": stage.name,
                "image_shape": list(stage.image_shape),
                "schedule": process.schedule.name,
                "timesteps": list(process.timesteps),
            }
            for stage, process in zip(self.stages, self.processes, strict=True)
        ]


def _guide_record(guide: Guide) -> dict[str, Any]:
    assert guide.target is not None  # a run's guides are aimed
    return {
        "name": guide.name,
        "target": guide.target.label,
        "target_given": guide.target_source or guide.target.label,
        "target_is_default": guide.target_is_default,
        "scale": guide.scale,
        "curve": attrs.asdict(guide.curve) if guide.curve else None,
        "scales": _ends(guide),
        "interval": list(guide.interval),
        "through": guide.through,
        "loss": guide.loss_name or type(guide.loss).__name__,
        "experts": guide.chosen.record() if guide.chosen else None,
        **guide_origin(guide).record(resolved=True),
    }


def _ends(guide: Guide) -> tuple[float, float]:
    """The resulting scales in pure noise and without any."""
    clean = NoiseLevel.clean(1)
    levels = NoiseLevel(-clean.log_snr), clean
    low, high = (float(f"{float(guide.scale_at(level)):.4g}") for level in levels)
    return low, high


def guide_origin(guide: Guide) -> Origin:
    """The guide's origin; made of its model if it is the user's own."""
    if guide.origin is not None:
        return guide.origin
    sha256 = None if has_experts(guide.model.network) else guide_sha256(guide.model)
    return Origin(component=type(guide.model).__qualname__, weights_sha256=sha256)


@isolated()
def plan(
    source: object,
    guides: Sequence[Guide] = (),
    num: int = 4,
    sampling: Sampling | None = None,
    compute: Compute | None = None,
    *,
    compare: bool = False,
) -> Plan:
    """Settle everything about a run; see `sample` for the arguments. UsageError with all settings
    that are invalid, alone or for this backend and guides; PpapError as of `choose_experts`.
    """
    sampling, compute = sampling or Sampling(), compute or Compute()
    check(num, sampling, compute)
    loaded, aimed, settled, problems = backend(source), _checked(guides), [], Problems()
    stage = loaded.stages[0]
    with problems.collected():
        later = tuple(_later_stages(loaded, sampling.stage))
    with problems.collected():
        length, steps = stage.schedule.num_timesteps, sampling.steps
        kept = stage.timesteps(steps) or timesteps_for(length, steps)
        kept = kept[: max(1, round(sampling.share * len(kept)))]
    start = None
    with problems.collected():
        different = list(dict.fromkeys(sampling.prompts(range(num)) or ()))
        condition = loaded.encode(different or None, len(different) or 1)
        if sampling.init_image is not None:
            start = begun(sampling.init_image, sampling.mask, loaded)
            if sampling.mask is not None and sampling.resample is None:
                reads = loaded.inner.inpainting(condition, start[0]) is not condition
                sampling = attrs.evolve(sampling, resample=1 if reads else 5)
    if compare and not aimed:
        problems.add("there is nothing to compare without a guide", "give a guide")
    for name, count in Counter(guide.name for guide in aimed).items():
        if not _FILE_NAME.fullmatch(name):
            problems.add(f"a guide cannot be called {name!r}", "its name goes into file names")
        if count > 1:
            problems.add(f"there are {count} guides called {name!r}", "rename one")
    for guide in aimed:
        rows = 0 if guide.target is None else len(guide.target.value)
        if rows not in (1, num):
            hint = "give one target, or one for each image"
            problems.add(f"guide {guide.name!r} has {rows} targets for {num} images", hint)
        with problems.collected():
            settled.append(_settled(guide, loaded, sampling))
            if settled[-1].through == "noisy" and settled[-1].chosen is None:
                check_readable(stage, "--through detached decodes; `ppap adapt` makes experts")
    problems.check()
    _check_shared(settled)
    process = Process.of(stage, kept)
    indices = repeated(len(process), sampling.resample or 1, sampling.jump_length)
    for guide in settled:
        if guide.chosen is not None and sampling.share == 1.0:
            warn_of_idle(guide.name, guide.chosen.ranges, process)
    looks = {guide.through for guide in settled} or {sampling.through or "noisy"}
    if len(looks) == 1 and isinstance(look := looks.pop(), str):
        # As in records from before each guide had its own.
        sampling = attrs.evolve(sampling, through=look)
    here = (compute.device == "auto" and loaded.inner.device) or compute.place
    how = int(num), compare, sampling, compute
    return Plan(loaded, tuple(settled), *how, process, indices, start, later, here)


def _later_stages(
    loaded: LoadedBackend, last: str | None
) -> Iterator[tuple[CascadedStage, Process]]:
    """The stages after the first, in order, up to the one named, and their processes."""
    names = [stage.name for stage in loaded.stages]
    whose = f"backend {loaded.origin.component!r}"
    if last not in (None, *names):
        hint = f"choose one of {', '.join(names)}"
        raise UsageError(f"{whose} has no stage {last!r}", hint=hint)
    for stage in loaded.stages[1 : None if last is None else names.index(last) + 1]:
        if not isinstance(stage, CascadedStage):
            reason = f"stage {stage.name!r} of {whose} does not say how it goes on"
            raise UsageError(reason, hint=f"make it a CascadedStage, or stop at {names[0]!r}")
        yield stage, Process.following(stage)


def option_words(options: Mapping[str, Any]) -> str:
    """A component's options, for people; without those that are None."""
    return ", ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in options.items()
        if value is not None
    )


def scale_words(guide: Guide) -> str:
    """A guide's scale, for people."""
    if guide.curve is None:
        return f"{guide.factor:g}"
    low, high = _ends(guide)
    return f"{guide.factor:g} x calibrated ({low:.3g} in noise to {high:.3g} without)"


def _settled(guide: Guide, loaded: LoadedBackend, sampling: Sampling) -> Guide:
    """The guide with its experts chosen and its scale known."""
    guide = guide.with_experts(loaded, sampling.through)
    experts, scale, curve = guide.chosen, guide.scale, guide.curve
    if raw_scale(scale) is not None:
        curve = None
    elif curve is None and experts is not None:
        curve = experts.calibration
    if curve is not None and not same_loss(curve.loss, guide.loss_record):
        both = (curve.loss or {}, guide.loss_record)
        told = [f"{it.get('name')} {option_words(it.get('options') or {})}" for it in both]
        _log.warning(_OTHER_LOSS, guide.name, *map(str.rstrip, told))
        curve = None
    if scale == "auto" and curve is None:
        reason = f"guide {guide.name!r} has no calibrated curve for its loss"
        hint = "give a scale, such as 4; `ppap run` and `ppap experts calibrate` find a curve"
        raise UsageError(reason, hint=hint)
    if scale in (None, "auto"):
        scale = DEFAULT_SCALE if curve is None else DEFAULT_MULTIPLIER
    if isinstance(experts, BundleFile) and experts.info.curve is guide.curve is None:
        trained = experts.info.backend.component, experts.info.guide.component
        _log.info(_NO_CURVE, experts.name, experts.name, *trained)
    return attrs.evolve(guide, scale=scale, curve=curve)


def _check_shared(guides: Sequence[Guide]) -> None:
    """Raise UsageError if guides of one network do not share its experts."""
    first: dict[int, Guide] = {}
    for guide in guides:
        other = first.setdefault(id(guide.model.network), guide)
        same = same_experts(other.chosen, guide.chosen)
        if not same or (guide.chosen is not None and guide.model is not other.model):
            both = f"guides {other.name!r} and {guide.name!r}"
            hint = "make both of one GuidanceModel, with the same experts or with none"
            raise UsageError(f"{both} share a network, and not its experts", hint=hint)


def _checked(guides: Any) -> list[Guide]:
    """The guides of a run; UsageError if `guides` is no sequence of guides."""
    lone = isinstance(guides, str) or not isinstance(guides, Iterable)
    given = [guides] if lone else list(guides)
    for guide in given:
        if lone or not isinstance(guide, Guide):
            what = repr(guide) if isinstance(guide, str) else f"a {type(guide).__name__}"
            reason = f"{what} is {'one' if isinstance(guide, Guide) else 'none'}"
            hint = 'as in guides=[ppap.guide("depth")]'
            raise UsageError(f"guides must be a list of guides, and {reason}", hint=hint)
    return given
