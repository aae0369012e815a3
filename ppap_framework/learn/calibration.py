r"""Calibration: the guidance scale at each noise level, without labels and without trajectories.

The diffusion model draws M pictures x^i, unguided, and the untouched network's answer to each is a
target y^i. At noise level l, with one noised x_t^i a picture and E the energy that guides, softmax
over the pictures j of -s E(x_t^i, y^j) is a belief which of the pictures x_t^i is. The scale

    s(l) = argmax_s  mean_i log[ (1 - p) softmax_i(-s E(x_t^i, y^.)) + p / M ]

makes it as confident as it is right: the energy times s(l) is then an honest negative
log-likelihood. It is small if the guide cannot tell the pictures apart, and large if it can; a
classifier that is calibrated itself has about 1 where it misreads some. The share p = 0.05 allows
for pictures that are misread whatever the scale, such as broken ones: without it, they decide.

At little noise every belief is right, and more is always better. So one more picture counts, which
is misread by the margin m by which the median picture is read rightly: -s m / M is added. Scales
rise with the log-SNR: isotonic least squares on log s, weighted by the inverse variance. Its
standard error is that of an M-estimate, the spread of slopes over the curvature (Huber 1967).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from ppap_framework import run
from ppap_framework.components import DiffusionBackend, TargetInput, check_readable
from ppap_framework.diagnosis import evenly_spaced, noised, rising_fit
from ppap_framework.errors import PluginError, UsageError, one_line
from ppap_framework.experts import BundleFile, Present, ScaleCurve, check_wanted, same_loss
from ppap_framework.experts.bundle import load_bundle, write_curve
from ppap_framework.files import cache_dir, digest, read_json, write_json
from ppap_framework.guidance import Guide
from ppap_framework.learn.batches import predicted
from ppap_framework.noise import NoiseLevel
from ppap_framework.origin import Origin
from ppap_framework.pixels import to_pil
from ppap_framework.predictions import widened
from ppap_framework.run import Compute, LoadedBackend, Plan, Sampling, guide_origin
from ppap_framework.runtime import Progress, Watch, frozen, generator, isolated

_LEAST, _MOST = 1e-3, 1e4  # of s times the spread of the energies
_MISREAD = 0.05
_STEP = 0.05  # of log s, for finite differences
_ERRORS = (0.05, 2.0)  # least and largest standard error of log s in the fit


@isolated()
def calibrate(
    backend: DiffusionBackend | str,
    guide: Guide,
    bundle: Path | None = None,
    *,
    write: bool = True,
    num: int = 64,
    levels: int = 13,
    sampling: Sampling | None = None,
    compute: Compute | None = None,
    progress: Watch | None = None,
    **changes: Any,
) -> ScaleCurve:
    """Find the guidance scale at each noise level, and write it into a bundle.

    Args:
        backend: The diffusion model that is guided.
        guide: The untouched network, and the loss whose energy guides.
        bundle: File of its experts; None for a guide without experts.
        write: Whether the bundle gets the curve.
        num: M, the number of pictures, from 8.
        levels: Number of noise levels, evenly spaced over the timesteps.
        sampling: What determines the pictures, by default 25 steps, and through which image the
            guide looks; a bundle's experts have their own.
        compute: How they are computed, by default 32 at once.
        progress: Called after every level.
        **changes: Fields of `sampling` and `compute`.

    UsageError if an argument cannot be used, the guide takes no experts, or it cannot be aimed at a
    picture or tell pictures apart; AssetError if the bundle is unfit or cannot be written.
    """
    usual = sampling or Sampling(steps=25, sampler="ddpm"), compute or Compute(batch=32)
    sampling, compute = run.changed(changes, *usual)
    run.check(num, sampling, compute)
    if num < 8:
        raise UsageError(f"num must be a whole number from 8, not {num}", hint="use 64, say")
    asked: Any = {"noise_aware": guide.noise_aware, "through": sampling.through}
    found = check_wanted(bundle, guide.name, **asked)
    read: Any = found.info.reads if isinstance(found, BundleFile) else "noisy"
    # Pictures that are in no training set of the same seed.
    seed = int(torch.randint(2**48, (), generator=generator("calibration", sampling.seed)).item())
    sampling = attrs.evolve(sampling, seed=seed)
    loaded = run.backend(backend)
    stage, device = loaded.stages[0], compute.place
    if bundle is None and (sampling.through or read) == "noisy":
        check_readable(stage, "name their experts, or look through detached")
    every = stage.schedule.log_snr
    timesteps = [t for t in evenly_spaced(stage.schedule, levels) if every[t].isfinite()]
    here = Present(guide.model, loaded, guide.compared_options(loaded))
    experts = None if bundle is None else load_bundle(bundle, guide.model, present=here)
    with experts or contextlib.nullcontext(), frozen([guide.model], device):
        guide = attrs.evolve(guide, experts=experts, through=sampling.through or read)
        # A guide that cannot be aimed is refused before anything is drawn; the probe has
        # colors, since grey may pass for a mask or a map.
        probe = torch.tensor([-0.5, 0.0, 0.5])[None, :, None, None]
        probe = probe.expand(2, *loaded.stages[-1].image_shape).to(device)
        _energies(guide, probe, NoiseLevel.clean(2), _targets(guide, probe))
        drawn = _pictures(run.plan(loaded, (), num, sampling, compute))
        first, last = (pictures.to(device) for pictures in drawn)
        with torch.no_grad():
            parts = torch.split(first, compute.fixed_batch)
            first = torch.cat([stage.encode(x) for x in parts])
        targets = _targets(guide, last)
        scales, errors = [], []
        for done, t in enumerate(timesteps, start=1):
            rows = []
            for start in range(0, num, compute.fixed_batch):
                batch = range(start, min(start + compute.fixed_batch, num))
                x0 = first[batch.start : batch.stop]
                images, level = noised(x0, stage.schedule, t, first=start)
                if (through := guide.looks(level)) != "noisy":
                    at = images.new_full((len(images),), t, dtype=torch.int64)
                    images = predicted(loaded, images, at, sampling.prompts(batch))
                    images = images.clamp(-1, 1) if through == "detached" else images
                    level = NoiseLevel.clean(len(batch)) if experts is None else level
                rows.append(_energies(guide, images, level, targets))
            scale, error = honest_scale(torch.cat(rows))
            scales.append(scale)
            errors.append(error)
            if progress:
                progress(Progress("calibrating", done, len(timesteps)))
    if not any(scales):
        raise _refused(guide, "it does not tell pictures apart at any noise level")
    curve = _curve(every[timesteps].tolist(), scales, errors)
    curve = attrs.evolve(curve, loss=guide.loss_record)
    if bundle is not None and write:
        write_curve(bundle, curve)
    return curve


def kept_curve(
    backend: LoadedBackend,
    guide: Guide,
    sampling: Sampling,
    compute: Compute,
    folder: Path | None = None,
    progress: Watch | None = None,
) -> ScaleCurve:
    """A guide's calibrated curve: that of its experts' bundle if it is for this loss; else one that
    was kept in `folder`, by default in the cache; else a new one, which is kept there. Bundles are
    not changed. `guide` is one of `ppap_framework.guide` with its experts chosen; the other
    arguments and errors are those of `calibrate`.
    """
    bundle = guide.experts if isinstance(guide.experts, BundleFile) else None
    curve = None if bundle is None else bundle.calibration
    if curve is not None and same_loss(curve.loss, guide.loss_record):
        return curve
    assert guide.origin is not None
    # The code of a plugin that is not installed may change without a new version.
    lasting = guide.origin.version is not None and backend.origin.version is not None
    depends_on = {
        "backend": _identity(backend.origin),
        "guide": _identity(guide.origin),
        "experts": bundle and bundle.sha256,
        "loss": guide.loss_record,
        "sampling": sampling.record(),
        "precision": compute.precision,
        "device": compute.place.type,
    }
    path = (folder or cache_dir() / "curves") / f"{digest(depends_on)[:16]}.json"
    if lasting and (kept := read_json(path, "delete it")):
        return ScaleCurve(**kept["curve"])
    how: Any = {"sampling": sampling, "compute": compute, "progress": progress, "write": False}
    file = None if bundle is None else bundle.path
    curve = calibrate(backend, attrs.evolve(guide, experts=None), file, **how)
    write_json(path, {**depends_on, "curve": attrs.asdict(curve)})
    return curve


def _identity(origin: Origin) -> dict[str, Any]:
    """What a component computes, wherever its files are."""
    left_out = {"path", "load_seconds"}
    return {name: value for name, value in origin.record().items() if name not in left_out}


def honest_scale(energies: Tensor) -> tuple[float, float]:
    """s of the module's objective, and the standard error of log s, from energies E(x^i, y^j),
    (M, M), without rows that are not finite; s is 0 with error inf if they say nothing.
    """
    known = energies.isfinite().all(1)
    own, energies = energies.diagonal()[known].double(), energies[known].double()
    spread = (energies - energies.mean(1, keepdim=True)).square().mean().sqrt().item()
    if len(energies) < 2 or not spread > 0.0:
        return 0.0, math.inf
    misread = torch.tensor(math.log(_MISREAD / energies.shape[1]), dtype=torch.float64)
    nearest = energies.scatter(1, known.nonzero(), math.inf).amin(1)  # of the others' targets
    margin = max(0.0, (nearest - own).median().item()) / len(energies)

    def beliefs(log_s: float) -> Tensor:
        """The term of the objective of each picture."""
        s = math.exp(log_s)
        log_belief = -s * own - torch.logsumexp(-s * energies, 1)
        return torch.logaddexp(log_belief + math.log1p(-_MISREAD), misread) - s * margin

    def objective(log_s: float) -> float:
        return beliefs(log_s).mean().item()

    ends = math.log(_LEAST / spread), math.log(_MOST / spread)
    grid = torch.linspace(*ends, 160, dtype=torch.float64).tolist()
    values = [objective(log_s) for log_s in grid]
    best = max(range(len(grid)), key=values.__getitem__)
    if best == 0 or values[best] <= values[0] + 1e-12:
        return 0.0, math.inf
    low, high = grid[best - 1], grid[min(best + 1, len(grid) - 1)]
    for _ in range(50):  # the objective has a single maximum this near to it
        left, right = (2.0 * low + high) / 3.0, (low + 2.0 * high) / 3.0
        low, high = (left, high) if objective(left) < objective(right) else (low, right)
    below, at, above = (beliefs(high + step) for step in (-_STEP, 0.0, _STEP))
    slopes = ((above - below) / (2.0 * _STEP)).square().sum().sqrt().item()
    curvature = -((above - 2.0 * at + below) / _STEP**2).sum().item()
    return math.exp(high), slopes / curvature if curvature > 0.0 else math.inf


def _curve(
    log_snr: Sequence[float], scales: Sequence[float], errors: Sequence[float]
) -> ScaleCurve:
    """The curve that rises with the log-SNR, closest to the scales, some above 0; from noisy to
    clean. A scale of 0 has no logarithm; a thousandth of the least other pulls nothing.
    """
    order = sorted(range(len(log_snr)), key=lambda k: log_snr[k])
    faint = 1e-3 * min(filter(None, scales))
    logs = [math.log(scales[k] or faint) for k in order]
    least, most = _ERRORS
    weights = [min(max(errors[k], least), most) ** -2 for k in order]
    return ScaleCurve(
        [round(log_snr[k], 6) for k in order],
        [float(f"{math.exp(value):.4g}") for value in rising_fit(logs, weights)],
        [float(f"{min(errors[k], 99.0):.3g}") for k in order],
    )


def _pictures(plan: Plan) -> tuple[Tensor, Tensor]:
    """What the first and the last stage drew, (M, 3, H, W) each, on the CPU."""
    numbers, batch = range(plan.num), plan.compute.fixed_batch
    with run.drawing(plan) as draw:
        several = [draw(numbers[start : start + batch]).values() for start in numbers[::batch]]
    stages = [torch.cat(parts).cpu() for parts in zip(*several, strict=True)]
    return stages[0], stages[-1]


def _targets(guide: Guide, pictures: Tensor) -> Tensor:
    """What a guide sees in each of M pictures, as targets, (M, ...); UsageError if it sees none."""
    values = []
    for image in to_pil(pictures):
        try:
            target = guide.model.target(TargetInput(image=image, source="a picture"))
        except UsageError as error:
            raise _refused(guide, error.message) from error
        except (NotImplementedError, PluginError) as error:
            if not isinstance(error.__cause__ or error, NotImplementedError):
                raise
            raise _refused(guide, "it takes no pictures as targets") from error
        values.append(target.value)
    if {tuple(value.shape) for value in values} != {(1, *values[0].shape[1:])}:
        shapes = sorted({tuple(value.shape) for value in values})
        raise _refused(guide, f"targets of pictures have the shapes {shapes[:3]}")
    return torch.cat(values)


@torch.no_grad()
def _energies(guide: Guide, images: Tensor, level: NoiseLevel, targets: Tensor) -> Tensor:
    """E(x^i, y^j) of B images at their levels and M targets, (B, M), float64, on the CPU;
    UsageError if the loss cannot compare with such targets.
    """
    prediction = widened(guide.at(level)(images, level))
    columns = []
    for target in torch.split(targets.to(images.device), 1):
        try:
            column = guide.loss.energy(prediction, target)
        except (RuntimeError, ValueError, TypeError, IndexError, PluginError) as error:
            said = one_line(error.__cause__ or error)
            raise _refused(guide, f"its loss takes no picture as target: {said}") from error
        if column.shape != (len(images),):
            shape = tuple(column.shape)
            raise _refused(guide, f"its loss gives {shape} for {len(images)} pictures")
        columns.append(column.double().cpu())
    return torch.stack(columns, 1)


def _refused(guide: Guide, why: str) -> UsageError:
    return UsageError(
        f"guide {guide_origin(guide).component!r} cannot be calibrated: {why}",
        hint="give a scale where it guides, such as --scale 4",
    )
