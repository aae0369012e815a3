"""Loaded networks of an experiment, and the plans of its rows."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch

from ppap_framework import run
from ppap_framework.experts import choose_experts
from ppap_framework.guidance import Guide
from ppap_plugin_bench.experiment import Experiment
from ppap_plugin_bench.images import short_digest
from ppap_plugin_bench.row import Candidate, Row
from ppap_plugin_bench.targets import Targets

__all__ = ["Setup"]


@attrs.frozen(eq=False)
class Setup:
    """An experiment with its backend and the guides of its rows.

    Attributes:
        experiment: The experiment.
        targets: What images aim at.
        backend: The backend without a row's options.
        device: Where networks compute.
    """

    experiment: Experiment
    targets: Targets
    backend: run.LoadedBackend
    device: torch.device
    _backends: dict[str, run.LoadedBackend] = attrs.field(factory=dict, init=False)
    _guides: dict[str, tuple[Guide, ...]] = attrs.field(factory=dict, init=False)

    @classmethod
    def load(cls, experiment: Experiment, names: Sequence[str], device: str = "auto") -> Setup:
        """Load the backend, and scenes if the experiment has them.

        Args:
            experiment: The experiment.
            names: Names of the reference's classes.
            device: The device.

        Raises:
            PpapError: As `ppap_framework.backend` and `Targets.of`.
        """
        targets = Targets.of(experiment, tuple(names))
        backend = run.backend(experiment.backend, checkpoint=experiment.checkpoint)
        return cls(experiment, targets, backend, run.Compute(device=device).place)

    def guides(self, row: Row) -> tuple[Guide, ...]:
        """The guides of a row, loaded once, with all K targets, and their experts chosen.

        Raises:
            PpapError: As `ppap_framework.guide`, and if experts do not match.
        """
        if row.name not in self._guides:
            pairs = zip(row.guides, row.guide_names, strict=True)
            self._guides[row.name] = tuple(self._guide(row, *pair) for pair in pairs)
        return self._guides[row.name]

    def plan(
        self,
        row: Row,
        candidate: Candidate | None = None,
        *,
        num: int,
        seed: int,
        batch: int,
        tuning: bool = False,
    ) -> run.Plan:
        """Plan images of a row.

        Args:
            row: The row.
            candidate: Scale and interval; None for a row without guides.
            num: Number of images.
            seed: Seed of their noise.
            batch: Batch size.
            tuning: Whether they aim at the targets for tuning.

        Raises:
            PpapError: If the guides cannot be loaded, or the backend cannot be sampled so.
        """
        experiment, prompt = self.experiment, None
        if row.prompt is not None:
            prompt = self.targets.prompts(row.prompt, num, tuning=tuning)
        sampling = run.Sampling(
            steps=experiment.steps,
            seed=seed,
            through=row.through,
            normalize=row.normalize,
            prompt=prompt,
            stage=experiment.stage,
        )
        compute = run.Compute(device=self.device, precision=experiment.precision, batch=batch)
        guides = []
        if candidate is not None:
            indices = torch.from_numpy(self.targets.indices(num, tuning=tuning))
            for request, guide in zip(row.guides, self.guides(row), strict=True):
                kind = experiment.target_kind(request)
                aimed = attrs.evolve(
                    guide,
                    target=attrs.evolve(guide.target, value=guide.target.value[indices]),
                    target_source=self.targets.source(kind, tuning=tuning),
                    scale=candidate.scale
                    if candidate.scale == "auto"
                    else request.scale * candidate.scale,
                    interval=candidate.interval,
                )
                guides.append(aimed)
        return run.plan(self.backend_of(row), guides, num, sampling, compute)

    def backend_of(self, row: Row) -> run.LoadedBackend:
        """The backend with a row's options.

        Raises:
            PpapError: As `ppap_framework.backend`.
        """
        if not (options := dict(row.backend_options)):
            return self.backend
        key = short_digest(options)
        if key not in self._backends:
            name, checkpoint = self.experiment.backend, self.experiment.checkpoint
            self._backends[key] = run.backend(name, checkpoint=checkpoint, options=options)
        return self._backends[key]

    def _guide(self, row: Row, request: run.GuideRequest, name: str) -> Guide:
        guide = attrs.evolve(request, target=None, name=name).load(aim=False)
        model = guide.model.to(self.device)
        experts = choose_experts(
            guide.experts,
            name,
            model,
            self.backend.inner,
            noise_aware=guide.noise_aware,
            through=row.through,
        )
        target = self.targets.target(model, self.experiment.target_kind(request))
        return attrs.evolve(guide, target=target, experts=experts)
