r"""Calibration: how hard experts should pull, found without labels.

The diffusion model draws pictures, unguided. Each is what another trajectory is to lead to: what
the guide sees in it becomes that trajectory's target. A set of scales is judged by

    distance   (E(x) - E_own) / (E_other - E_own), clamped to [0, 1]
    oddity     log10 e(x) - mean over pictures of log10 e, clamped to [0, 1]

with E(x) the energy of the untouched network on the finished clean image, E_own and E_other the
medians of what it says of a picture and that picture's own or another's target, and e(x) the error
of the denoiser where a little noise is added to x,

    e(x) = |eps - eps_theta(alpha_t x + sigma_t eps)|^2 / D,

a term of the bound on -log p(x) (Ho et al. 2020, arXiv 2006.11239, eq. 14). The distance alone
would never warn of too large a scale: the network that guides is the one that judges, and is fooled
by pictures that have long got worse. The diffusion model is not. In decades, since an error that is
a quarter larger is nothing that a person sees, and one ten times as large is no picture of the
model's any more.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import attrs
import torch
from torch import Tensor

from ppap_framework.components import DiffusionBackend, Target, TargetInput
from ppap_framework.data.files import write_json
from ppap_framework.diagnosis import noised
from ppap_framework.diagnosis.disagreement import clean_level
from ppap_framework.diffusion import timesteps_for
from ppap_framework.errors import UsageError
from ppap_framework.experts import ExpertSet, load_bundle, read_bundle_info, rescale_bundle
from ppap_framework.guidance import Guide, RangeScales
from ppap_framework.learn.folder import calibration_path
from ppap_framework.learn.scale_search import Loss, Scales, Trial, most_trials, search
from ppap_framework.learn.teacher import Teacher
from ppap_framework.noise import NoiseLevel
from ppap_framework.run import (
    ChosenExperts,
    ExpertRequest,
    LoadedBackend,
    LoadedGuide,
    Origin,
    Result,
    Settings,
    draw,
    find_device,
    frozen,
    plan,
    to_pictures,
)
from ppap_framework.run import backend as load_backend

__all__ = ["Calibrated", "Calibration", "calibrate", "calibrate_if_possible"]

_log = logging.getLogger(__name__)

_NOISE = (5.0, 3.0)
"""The log-SNR of the little noise that is added to finished images."""

_FIRST_PULL = 0.01
"""Of the first scale: the change of eps, as a share of its norm."""

_NAME = "calibration"


@final
@attrs.frozen(kw_only=True)
class Calibrated:
    """How far a calibration is.

    Attributes:
        trials: That are done.
        most: As many as there can be; fewer may do.
    """

    trials: int
    most: int


@final
@attrs.frozen(kw_only=True, eq=False)
class Calibration:
    """What a calibration found.

    Attributes:
        scales: One for each expert.
        trials: In the order in which they were made.
        energies: E_own and E_other.
        num: Trajectories of a trial.
        steps: Of a trajectory.
        seed: Of pictures and trajectories.
    """

    scales: Scales
    trials: tuple[Trial, ...]
    energies: tuple[float, float]
    num: int
    steps: int
    seed: int

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "format": 1,
            "scales": list(self.scales),
            "num": self.num,
            "steps": self.steps,
            "seed": self.seed,
            "energy": {"own_picture": self.energies[0], "other_picture": self.energies[1]},
            "trials": [trial.record() for trial in self.trials],
        }


def calibrate(
    backend: DiffusionBackend | str,
    guide: Teacher,
    bundle: Path,
    *,
    num: int = 32,
    steps: int = 25,
    seed: int = 0,
    batch: int = 32,
    device: str = "auto",
    progress: Callable[[Calibrated], None] | None = None,
) -> Calibration:
    """Find the scales of a bundle's experts and write them into it.

    The bundle is replaced at once when they are found, and every trial is recorded beside it, in
    NAME.calibration.json.

    Args:
        backend: That the experts steer.
        guide: The untouched network, and the loss whose energy guides.
        bundle: Of its experts.
        num: Trajectories of a trial, from 4.
        steps: Of a trajectory.
        seed: Of pictures and trajectories; the same seed finds the same scales.
        batch: How many images at once.
        device: "auto", or as torch calls it.
        progress: Called after every trial.

    Raises:
        UsageError: For arguments that cannot be used, a guide that cannot be aimed at a picture, or
            a backend that cannot be sampled from.
        AssetError: Where the bundle is damaged, or does not match; or cannot be written.
        PpapError: Where the record cannot be written.
    """
    settings = Settings(num=num, steps=steps, seed=_seed(seed), batch=batch, device=device)
    if type(num) is not int or num < 4:
        raise UsageError(f"num must be a whole number from 4, not {num}", hint="use 32, say")
    loaded = load_backend(backend)
    settings.check()
    place = find_device(device)
    networks = [guide.model, *(stage.network for stage in loaded.stages)]
    experts = load_bundle(bundle, guide.model, loaded.inner)
    try:
        with frozen(networks, place):
            trials = _Trials.prepared(loaded, guide, experts, settings)
            n, done = len(experts), 0

            def run(scales: Scales) -> Loss:
                nonlocal done
                loss = trials.run(scales)
                done += 1
                if progress:
                    progress(Calibrated(trials=done, most=most_trials(n)))
                return loss

            scales, tried = search(run, trials.first_scale(), n)
    finally:
        experts.detach()
    scales = tuple(float(f"{scale:.4g}") for scale in scales)
    found = Calibration(
        scales=scales,
        trials=tried,
        energies=trials.energies,
        num=num,
        steps=steps,
        seed=seed,
    )
    write_json(calibration_path(bundle), found.record())
    rescale_bundle(bundle, scales)
    return found


def calibrate_if_possible(
    backend: DiffusionBackend,
    guide: Teacher,
    bundle: Path,
    *,
    seed: int,
    device: str,
    progress: Callable[[Calibrated], None] | None = None,
) -> None:
    """Calibrate experts that are not calibrated; log in a line why they cannot be, if so.

    Raises:
        PpapError: As `calibrate`, but for a guide or a backend with which it cannot be done.
    """
    if read_bundle_info(bundle).scales is not None:
        return
    try:
        calibrate(backend, guide, bundle, seed=seed, device=device, progress=progress)
    except UsageError as error:
        _log.warning("%s; %s", error.message, error.hint)


@final
@attrs.frozen(kw_only=True, eq=False)
class _Trials:
    """Trajectories that are drawn again with every set of scales.

    Attributes:
        backend: That draws.
        teacher: The untouched network, and the loss.
        guide: The same with experts, aimed, of scale 1.
        settings: Of every trial.
        pictures: (M, 3, H, W), what was drawn unguided.
        energies: E_own and E_other.
        usual: The mean of log10 e over the pictures.
    """

    backend: LoadedBackend
    teacher: Teacher
    guide: Guide
    settings: Settings
    pictures: Tensor
    energies: tuple[float, float]
    usual: float

    @classmethod
    def prepared(
        cls, backend: LoadedBackend, teacher: Teacher, experts: ExpertSet, settings: Settings
    ) -> _Trials:
        """Draw the pictures, and aim at them.

        Raises:
            UsageError: Where that cannot be.
        """
        # Refused at once, before any is drawn; in colour, since grey may pass for a mask or a map.
        tinted = torch.tensor([-0.5, 0.0, 0.5])[None, :, None, None]
        probe = tinted.expand(2, *backend.stages[-1].image_shape)
        _energies(teacher, probe, _targets(teacher, probe))
        pictures = _drawn(backend, [], settings).images
        own = _targets(teacher, pictures)
        # Picture i came from the noise that trajectory i starts from, and is not its target.
        other = own.roll(-1, dims=0)
        energies = tuple(_energies(teacher, pictures, target).median() for target in (own, other))
        if not energies[0] < energies[1]:
            raise _uncalibrated(
                teacher,
                "a picture is no closer to what it sees in it than to what it sees in others",
            )
        return cls(
            backend=backend,
            teacher=teacher,
            guide=Guide(
                name=_NAME,
                model=teacher.model,
                loss=teacher.loss,
                target=Target(value=other, label="pictures"),
                experts=experts,
            ),
            settings=settings,
            pictures=pictures,
            energies=(energies[0].item(), energies[1].item()),
            usual=_log_errors(backend, pictures, settings).mean().item(),
        )

    def first_scale(self) -> float:
        """The scale with which the guide changes eps, in the mean of all steps, by `_FIRST_PULL`
        of its norm.
        """
        schedule = self.backend.stages[0].schedule
        pulls = []
        for t in timesteps_for(schedule.num_timesteps, self.settings.steps):
            for start in range(0, len(self.pictures), self.settings.block):
                x0 = self.pictures[start : start + self.settings.block].to(self._device)
                x_t, level = noised(x0, schedule, t, first=start)
                guide = self.guide.rows(start, start + len(x0))
                norms = torch.linalg.vector_norm(guide.gradient(x_t, level).flatten(1), dim=1)
                sigma = math.sqrt(1.0 - schedule.alphas_cumprod[t].item())
                pulls.append(sigma * norms.double().cpu() / math.sqrt(x0[0].numel()))
        pull = torch.cat(pulls)
        mean = pull[pull.isfinite()].mean().item()
        if not mean > 0.0:
            raise _uncalibrated(self.teacher, "its energy has no gradient")
        return _FIRST_PULL / mean

    def run(self, scales: Scales) -> Loss:
        """The losses of M trajectories."""
        experts = self.guide.experts
        assert experts is not None
        guide = attrs.evolve(self.guide, scales=RangeScales(experts.ranges, scales))
        chosen = ChosenExperts.of_set(experts)
        loaded = LoadedGuide(
            guide=guide,
            origin=Origin(component=_NAME),
            loss_name=_NAME,
            target_source=_NAME,
            experts=ExpertRequest(source=chosen, calibrated=False),
        )
        result = _drawn(self.backend, [loaded], self.settings)
        own, other = self.energies
        distance = (result.seen[_NAME].figures["energy"].double() - own) / (other - own)
        oddity = _log_errors(self.backend, result.images, self.settings) - self.usual
        return Loss(
            distance=distance.nan_to_num(nan=1.0).clamp(0.0, 1.0), oddity=oddity.clamp(0.0, 1.0)
        )

    @property
    def _device(self) -> torch.device:
        return find_device(self.settings.device)


def _drawn(backend: LoadedBackend, guides: list[LoadedGuide], settings: Settings) -> Result:
    result = draw(plan(backend, guides, settings))
    if result.interrupted:
        raise KeyboardInterrupt
    return result


def _targets(teacher: Teacher, pictures: Tensor) -> Tensor:
    """What a guide sees in each of M pictures, as targets: (M, ...).

    Raises:
        UsageError: Where a picture is no target, or not one of a single value.
    """
    values = []
    for image in to_pictures(pictures):
        try:
            target = teacher.model.target(TargetInput(image=image, source="a picture"))
        except UsageError as error:
            raise _uncalibrated(teacher, error.message) from error
        except NotImplementedError as error:
            raise _uncalibrated(teacher, "it takes no pictures as targets") from error
        values.append(target.value)
    if {tuple(value.shape) for value in values} != {(1, *values[0].shape[1:])}:
        shapes = sorted({tuple(value.shape) for value in values})
        raise _uncalibrated(teacher, f"targets of pictures have the shapes {shapes[:3]}")
    return torch.cat(values)


@torch.no_grad()
def _energies(teacher: Teacher, pictures: Tensor, targets: Tensor) -> Tensor:
    """Of the untouched network on M clean pictures: (M,), float64, on the CPU.

    Raises:
        UsageError: Where the targets are none that the loss could compare with.
    """
    try:
        device = next(teacher.model.parameters()).device
        answers = teacher.model(pictures.to(device), clean_level(len(pictures)))
        energies = teacher.loss.energy(answers, targets.to(device)).double().cpu()
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise _uncalibrated(teacher, f"its loss takes no picture as target: {said}") from error
    if energies.shape != (len(pictures),):
        shape = tuple(energies.shape)
        raise _uncalibrated(teacher, f"its loss gives {shape} for {len(pictures)} pictures")
    return energies


@torch.no_grad()
def _log_errors(backend: LoadedBackend, images: Tensor, settings: Settings) -> Tensor:
    """log10 e of M images, a mean over the two levels of noise: (M,), float64, on the CPU."""
    stage, device = backend.stages[0], find_device(settings.device)
    levels = NoiseLevel(torch.tensor(_NOISE, dtype=torch.float64))
    timesteps = stage.schedule.nearest_timestep(levels).tolist()
    logs = torch.empty(len(timesteps), len(images), dtype=torch.float64)
    for start in range(0, len(images), settings.block):
        x0 = images[start : start + settings.block].to(device)
        condition = backend.encode(None, len(x0))
        for k, t in enumerate(timesteps):
            x_t, _ = noised(x0, stage.schedule, t, first=start)
            abar = stage.schedule.alphas_cumprod[t].item()
            eps = (x_t - math.sqrt(abar) * x0) / math.sqrt(1.0 - abar)
            found = stage.denoise(x_t, torch.full((len(x0),), t, device=device), condition)
            error = (found.eps - eps).square().flatten(1).mean(1)
            logs[k, start : start + len(x0)] = error.double().cpu().log10()
    return logs.mean(0)


def _uncalibrated(teacher: Teacher, why: str) -> UsageError:
    return UsageError(
        f"guide {teacher.origin.component!r} cannot be calibrated: {why}",
        hint="give a scale where it guides, such as --scale 4",
    )


def _seed(seed: int) -> int:
    """Of pictures that are in no training set of the same seed."""
    digest = hashlib.blake2b(f"{_NAME}/{seed}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big")
