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
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import attrs
import torch
from torch import Tensor

from ppap_framework.components import DiffusionBackend, Target, TargetInput
from ppap_framework.diagnosis import noised
from ppap_framework.diffusion import timesteps_for
from ppap_framework.errors import UsageError
from ppap_framework.experts import ExpertSet, load_bundle, read_bundle_info, rescale_bundle
from ppap_framework.files import write_json
from ppap_framework.guidance import Guide, RangeScales
from ppap_framework.learn.folder import calibration_path
from ppap_framework.learn.scale_search import Loss, Scales, Trial, most_trials, search
from ppap_framework.noise import NoiseLevel
from ppap_framework.pixels import to_pil
from ppap_framework.run import (
    Compute,
    LoadedBackend,
    Sampling,
    check,
    drawing,
    guide_origin,
    plan,
    settle,
)
from ppap_framework.run import backend as load_backend
from ppap_framework.runtime import Progress, Watch, frozen, isolated

if TYPE_CHECKING:
    from ppap_framework.learn.plan import TransferPlan

_log = logging.getLogger(__name__)

_NOISE = (5.0, 3.0)
"""The log-SNR of the little noise that is added to finished images."""

_FIRST_PULL = 0.01
"""Of the first scale: the change of eps, as a share of its norm."""

_NAME = "calibration"


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


@isolated()
def calibrate(
    backend: DiffusionBackend | str,
    guide: Guide,
    bundle: Path,
    *,
    num: int = 32,
    sampling: Sampling | None = None,
    compute: Compute | None = None,
    progress: Watch | None = None,
    **changes: Any,
) -> Calibration:
    """Find the scales of a bundle's experts and write them into it.

    The bundle is replaced at once when they are found, and every trial is recorded beside it, in
    NAME.calibration.json.

    Args:
        backend: The diffusion model that the experts steer.
        guide: The untouched network, and the loss whose energy guides.
        bundle: File of its experts.
        num: Trajectories of a trial, from 4.
        sampling: What determines pictures and trajectories; the same finds the same scales.
        compute: How they are computed, by default 32 at once.
        progress: Called after every trial.
        changes: Fields of `sampling` and `compute`.

    Raises:
        UsageError: If an argument cannot be used, the guide cannot be aimed at a picture, or the
            backend cannot be sampled from.
        AssetError: If the bundle is damaged, does not match, or cannot be written.
        PpapError: If the record cannot be written.
    """
    sampling, compute = settle(sampling, compute, changes, {"batch": 32})
    if type(num) is not int or num < 4:
        raise UsageError(f"num must be a whole number from 4, not {num}", hint="use 32, say")
    check(num, sampling, compute)
    seed, sampling = sampling.seed, attrs.evolve(sampling, seed=_seed(sampling.seed))
    loaded = load_backend(backend)
    networks = [guide.model, *(stage.network for stage in loaded.stages)]
    experts = load_bundle(bundle, guide.model, loaded.inner)
    try:
        with frozen(networks, compute.place):
            trials = _Trials.prepared(loaded, guide, experts, num, sampling, compute)
            n, done = len(experts), 0

            def run(scales: Scales) -> Loss:
                nonlocal done
                loss = trials.run(scales)
                done += 1
                if progress:
                    progress(Progress("calibrating", done, most_trials(n)))
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
        steps=sampling.steps,
        seed=seed,
    )
    write_json(calibration_path(bundle), found.record())
    rescale_bundle(bundle, scales)
    return found


def calibrate_if_possible(plan: TransferPlan, bundle: Path, progress: Watch | None) -> None:
    """Calibrate the experts of a training, unless they are; log why they cannot be, if so.

    Raises:
        PpapError: As `calibrate`, except for a guide or a backend with which it cannot be done.
    """
    if read_bundle_info(bundle).scales is not None:
        return
    try:
        calibrate(
            plan.backend,
            plan.guide,
            bundle,
            seed=plan.recipe.seed,
            compute=plan.compute,
            progress=progress,
        )
    except UsageError as error:
        _log.warning("%s; %s", error.message, error.hint)


@final
@attrs.frozen(kw_only=True, eq=False)
class _Trials:
    """Trajectories that are drawn again with every set of scales.

    Attributes:
        backend: The diffusion model.
        guide: The guide with experts, aimed, of scale 1.
        sampling: What determines the images of every trial.
        compute: How they are computed.
        pictures: (M, 3, H, W), what was drawn unguided.
        energies: E_own and E_other.
        usual: The mean of log10 e over the pictures.
    """

    backend: LoadedBackend
    guide: Guide
    sampling: Sampling
    compute: Compute
    pictures: Tensor
    energies: tuple[float, float]
    usual: float

    @classmethod
    def prepared(
        cls,
        backend: LoadedBackend,
        teacher: Guide,
        experts: ExpertSet,
        num: int,
        sampling: Sampling,
        compute: Compute,
    ) -> _Trials:
        """Draw the pictures, and aim at them.

        Raises:
            UsageError: If that is impossible.
        """
        # Refused at once, before any is drawn; in color, since grey may pass for a mask or a map.
        tinted = torch.tensor([-0.5, 0.0, 0.5])[None, :, None, None]
        probe = tinted.expand(2, *backend.stages[-1].image_shape)
        _energies(teacher, probe, _targets(teacher, probe))
        pictures = _drawn(backend, [], num, sampling, compute)
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
            guide=attrs.evolve(
                teacher,
                name=_NAME,
                target=Target(value=other, label="pictures"),
                scale=1.0,
                experts=experts,
            ),
            sampling=sampling,
            compute=compute,
            pictures=pictures,
            energies=(energies[0].item(), energies[1].item()),
            usual=_log_errors(backend, pictures, compute).mean().item(),
        )

    def first_scale(self) -> float:
        """The scale with which the guide changes eps, in the mean of all steps, by `_FIRST_PULL`
        of its norm.
        """
        schedule, batch = self.backend.stages[0].schedule, self.compute.fixed_batch
        pulls = []
        for t in timesteps_for(schedule.num_timesteps, self.sampling.steps):
            for start in range(0, len(self.pictures), batch):
                x0 = self.pictures[start : start + batch].to(self.compute.place)
                x_t, level = noised(x0, schedule, t, first=start)
                guide = self.guide.rows(start, start + len(x0))
                norms = torch.linalg.vector_norm(guide.gradient(x_t, level).flatten(1), dim=1)
                sigma = math.sqrt(1.0 - schedule.alphas_cumprod[t].item())
                pulls.append(sigma * norms.double().cpu() / math.sqrt(x0[0].numel()))
        pull = torch.cat(pulls)
        mean = pull[pull.isfinite()].mean().item()
        if not mean > 0.0:
            raise _uncalibrated(self.guide, "its energy has no gradient")
        return _FIRST_PULL / mean

    def run(self, scales: Scales) -> Loss:
        """The losses of M trajectories."""
        experts, target = self.guide.experts, self.guide.target
        assert isinstance(experts, ExpertSet)
        assert target is not None
        guide = attrs.evolve(self.guide, curve=RangeScales(experts.ranges, scales))
        count = len(self.pictures)
        images = _drawn(self.backend, [guide], count, self.sampling, self.compute)
        own, other = self.energies
        distance = (_energies(guide, images, target.value) - own) / (other - own)
        oddity = _log_errors(self.backend, images, self.compute) - self.usual
        return Loss(
            distance=distance.nan_to_num(nan=1.0).clamp(0.0, 1.0), oddity=oddity.clamp(0.0, 1.0)
        )


def _drawn(
    backend: LoadedBackend, guides: list[Guide], num: int, sampling: Sampling, compute: Compute
) -> Tensor:
    """The finished images, (M, 3, H, W), on the CPU. No expert is merged afterwards."""
    run, batch = plan(backend, guides, num, sampling, compute), compute.fixed_batch
    with drawing(run) as draw:
        parts = [
            draw(range(start, min(start + batch, num)))[run.stages[-1].name].cpu()
            for start in range(0, num, batch)
        ]
    return torch.cat(parts)


def _targets(teacher: Guide, pictures: Tensor) -> Tensor:
    """What a guide sees in each of M pictures, as targets: (M, ...).

    Raises:
        UsageError: Where a picture is no target, or not one of a single value.
    """
    values = []
    for image in to_pil(pictures):
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
def _energies(teacher: Guide, pictures: Tensor, targets: Tensor) -> Tensor:
    """Of the untouched network on M clean pictures: (M,), float64, on the CPU.

    Raises:
        UsageError: Where the targets are none that the loss could compare with.
    """
    try:
        device = next(teacher.model.parameters()).device
        answers = teacher.model(pictures.to(device), NoiseLevel.clean(len(pictures)))
        energies = teacher.loss.energy(answers, targets.to(device)).double().cpu()
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise _uncalibrated(teacher, f"its loss takes no picture as target: {said}") from error
    if energies.shape != (len(pictures),):
        shape = tuple(energies.shape)
        raise _uncalibrated(teacher, f"its loss gives {shape} for {len(pictures)} pictures")
    return energies


@torch.no_grad()
def _log_errors(backend: LoadedBackend, images: Tensor, compute: Compute) -> Tensor:
    """log10 e of M images, a mean over the two levels of noise: (M,), float64, on the CPU."""
    stage, device, batch = backend.stages[0], compute.place, compute.fixed_batch
    levels = NoiseLevel(torch.tensor(_NOISE, dtype=torch.float64))
    timesteps = stage.schedule.nearest_timestep(levels).tolist()
    logs = torch.empty(len(timesteps), len(images), dtype=torch.float64)
    for start in range(0, len(images), batch):
        x0 = images[start : start + batch].to(device)
        condition = backend.encode(None, len(x0))
        for k, t in enumerate(timesteps):
            x_t, _ = noised(x0, stage.schedule, t, first=start)
            abar = stage.schedule.alphas_cumprod[t].item()
            eps = (x_t - math.sqrt(abar) * x0) / math.sqrt(1.0 - abar)
            found = stage.denoise(x_t, torch.full((len(x0),), t, device=device), condition)
            error = (found.eps - eps).square().flatten(1).mean(1)
            logs[k, start : start + len(x0)] = error.double().cpu().log10()
    return logs.mean(0)


def _uncalibrated(teacher: Guide, why: str) -> UsageError:
    return UsageError(
        f"guide {guide_origin(teacher).component!r} cannot be calibrated: {why}",
        hint="give a scale where it guides, such as --scale 4",
    )


def _seed(seed: int) -> int:
    """Of pictures that are in no training set of the same seed."""
    digest = hashlib.blake2b(f"{_NAME}/{seed}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big")
