"""Loaded networks of an experiment, and the plans of its rows."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch

from ppap_framework import run
from ppap_framework.files import digest
from ppap_framework.guidance import Guide
from ppap_plugin_bench.experiment import Experiment
from ppap_plugin_bench.row import Candidate, Row
from ppap_plugin_bench.targets import Targets


@attrs.frozen(eq=False)
class Setup:
    """An experiment with its backend and the guides of its rows.

    Attributes:
        experiment: The experiment.
        targets: Targets of the images.
        backend: The backend without a row's options.
        device: The device.
    """

    experiment: Experiment
    targets: Targets
    backend: run.LoadedBackend
    device: torch.device
    _backends: dict[str, run.LoadedBackend] = attrs.field(factory=dict, init=False)
    _guides: dict[Row, tuple[Guide, ...]] = attrs.field(factory=dict, init=False)

    @classmethod
    def load(cls, experiment: Experiment, names: Sequence[str], device: str = "auto") -> Setup:
        """Load the backend and any scenes; `names` are the classes of the reference.

        Raises:
            PpapError: As for `ppap_framework.backend` and `Targets.of`.
        """
        targets = Targets.of(experiment, tuple(names))
        backend = run.backend(experiment.backend, checkpoint=experiment.checkpoint)
        return cls(experiment, targets, backend, run.Compute(device=device).place)

    def guides(self, row: Row) -> tuple[Guide, ...]:
        """Guides of a row with experts and all K targets; loaded only once."""
        if row not in self._guides:
            pairs = zip(row.guides, row.guide_names, strict=True)
            self._guides[row] = tuple(self._guide(row, *pair) for pair in pairs)
        return self._guides[row]

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
        """Plan images of a row, for the reported targets or those for tuning."""
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
                assert guide.target is not None  # set by `guides`
                kind, scale = experiment.target_kind(request), candidate.scale
                guide = attrs.evolve(
                    guide,
                    target=attrs.evolve(guide.target, value=guide.target.value[indices]),
                    target_source=self.targets.source(kind, tuning=tuning),
                    scale=scale if scale == "auto" else guide.factor * scale,
                    interval=candidate.interval,
                )
                guides.append(guide)
        return run.plan(self._backend(row), guides, num, sampling, compute)

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
