"""Loaded networks of an experiment, and the plans of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs
import torch

from ppap_framework import run
from ppap_framework.diffusion import Process, timesteps_for
from ppap_framework.experts import ScaleCurve
from ppap_framework.files import digest
from ppap_framework.guidance import Guide
from ppap_framework.runtime import Watch
from ppap_plugin_bench.curves import calibrated, elucd
from ppap_plugin_bench.experiment import Experiment
from ppap_plugin_bench.row import Row, RowScale, times
from ppap_plugin_bench.targets import Targets


@attrs.frozen(eq=False)
class Setup:
    """An experiment with its backend and the guides of its rows.

    Attributes:
        experiment: The experiment.
        targets: Targets of the images.
        backend: The backend without a row's options.
        device: The device.
        curves: Folder of calibrated curves; None if rows are drawn at absolute scales only.
        progress: Callback for progress.
    """

    experiment: Experiment
    targets: Targets
    backend: run.LoadedBackend
    device: torch.device
    curves: Path | None = None
    progress: Watch = lambda now: None
    _backends: dict[str, run.LoadedBackend] = attrs.field(factory=dict, init=False)
    _guides: dict[Row, tuple[Guide, ...]] = attrs.field(factory=dict, init=False)

    @classmethod
    def load(
        cls,
        experiment: Experiment,
        names: Sequence[str],
        device: str = "auto",
        curves: Path | None = None,
        progress: Watch = lambda now: None,
    ) -> Setup:
        """Load the backend and any scenes; `names` are the classes of the reference.

        Raises:
            PpapError: As for `ppap_framework.backend` and `Targets.of`.
        """
        targets = Targets.of(experiment, tuple(names))
        backend = run.backend(experiment.backend, checkpoint=experiment.checkpoint)
        place = run.Compute(device=device).place
        return cls(experiment, targets, backend, place, curves, progress)

    def guides(self, row: Row) -> tuple[Guide, ...]:
        """Guides of a row with experts and all K targets; loaded only once."""
        if row not in self._guides:
            pairs = zip(row.guides, row.guide_names, strict=True)
            self._guides[row] = tuple(self._guide(row, *pair) for pair in pairs)
        return self._guides[row]

    def plan(self, row: Row, scale: RowScale | None = None, *, num: int, batch: int) -> run.Plan:
        """Plan images of a row at a scale; None for an unguided row."""
        experiment = self.experiment
        prompt = None if row.prompt is None else self.targets.prompts(row.prompt, num)
        guides = []
        if scale is not None:
            indices = torch.from_numpy(self.targets.indices(num))
            curves = self.curves_of(row, scale)
            for request, guide, curve in zip(row.guides, self.guides(row), curves, strict=True):
                assert guide.target is not None  # set by `guides`
                guide = attrs.evolve(
                    guide,
                    target=attrs.evolve(guide.target, value=guide.target.value[indices]),
                    target_source=self.targets.source(experiment.target_kind(request)),
                    scale=times(guide.factor, scale),
                    curve=curve,
                    interval=row.interval,
                )
                guides.append(guide)
        sampling = experiment.sampling_of(row, prompt=prompt)
        compute = run.Compute(device=self.device, precision=experiment.precision, batch=batch)
        return run.plan(self._backend(row), guides, num, sampling, compute)

    def curves_of(self, row: Row, scale: RowScale | None) -> list[ScaleCurve | None]:
        """The curve of each guide that a scale multiplies; None for an absolute scale."""
        if scale is None or isinstance(scale, str):
            return [None] * len(row.guides)
        sampling = self.experiment.sampling_of(row)
        if row.schedule == "elucd":
            first = self.backend.stages[0]
            kept = timesteps_for(first.schedule.num_timesteps, sampling.steps)
            return [elucd(Process(first.schedule, kept, first.variance))] * len(row.guides)
        assert self.curves is not None
        # The pictures do not depend on how the row is sampled, so that rows share them.
        seed, stage = self.experiment.seed, self.experiment.stage
        usual = run.Sampling(steps=25, sampler="ddpm", seed=seed, stage=stage)
        compute = run.Compute(device=self.device, batch=self.experiment.batch)
        how = compute, self.curves, self.progress
        return [
            calibrated(self.backend, guide, attrs.evolve(usual, through=row.through), *how)
            for guide in self.guides(row)
        ]

    def _backend(self, row: Row) -> run.LoadedBackend:
        """The backend with a row's options."""
        if not (options := dict(row.backend_options)):
            return self.backend
        key = digest(options)
        if key not in self._backends:
            name, checkpoint = self.experiment.backend, self.experiment.checkpoint
            self._backends[key] = run.backend(name, checkpoint=checkpoint, options=options)
        return self._backends[key]

    def _guide(self, row: Row, request: run.GuideRequest, name: str) -> Guide:
        guide = attrs.evolve(request, target=None, name=name).load(aim=False)
        model = guide.model.to(self.device)
        guide = guide.with_experts(self.backend, row.through)
        target = self.targets.target(model, self.experiment.target_kind(request))
        return attrs.evolve(guide, target=target)
