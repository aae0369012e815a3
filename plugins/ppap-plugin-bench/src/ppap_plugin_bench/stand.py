"""From rows of an experiment to networks that are loaded and runs that are settled."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np
import torch
from numpy.typing import NDArray

from ppap_framework import run as api
from ppap_plugin_bench.aim import Aims
from ppap_plugin_bench.experiment import DenseJudge, Experiment
from ppap_plugin_bench.files import digest
from ppap_plugin_bench.judge import Judge
from ppap_plugin_bench.row import Candidate, Row, RowGuide
from ppap_plugin_bench.scene_judge import SceneJudge

__all__ = ["Stand", "Subject"]


@attrs.frozen(eq=False)
class Stand:
    """An experiment on a device: its backend, and what its guides aim at.

    Attributes:
        experiment: What is measured.
        aims: What images aim at.
        device: As torch calls it, or "auto".
        backend: Loaded, frozen.
    """

    experiment: Experiment
    aims: Aims
    device: str
    backend: api.LoadedBackend
    _told: dict[str, api.LoadedBackend] = attrs.field(factory=dict, init=False)

    @classmethod
    def load(cls, experiment: Experiment, names: Sequence[str], device: str) -> Stand:
        """Load the backend, and scenes where there are some.

        Args:
            experiment: What is measured.
            names: Of the classes of the reference.
            device: As torch calls it, or "auto".

        Raises:
            PpapError: As `ppap_framework.backend`, or as `Aims.of`.
        """
        aims = Aims.of(experiment, tuple(names))
        loaded = api.backend(experiment.backend, checkpoint=experiment.checkpoint)
        stand = cls(experiment, aims, device, loaded)
        _placed(loaded, stand.place)
        return stand

    @property
    def place(self) -> torch.device:
        """Where networks are."""
        return self.run(None, (), num=1, seed=0, batch=1).device

    def judge(self) -> Judge:
        """Load the judge.

        Raises:
            PpapError: As `ppap_framework.guide`.
        """
        guider, _, checkpoint = self.experiment.judge.rpartition(":")
        name = self.aims.names[0]
        loaded = api.guide(guider, target=name, checkpoint=checkpoint, name="judge")
        return Judge(loaded, self.aims.names, self.place)

    def scene_judges(self) -> list[SceneJudge]:
        """Load the judges of scenes, each with the truth of all of them.

        Raises:
            PpapError: As `ppap_framework.guide`, and where they cannot be aimed at the truth.
        """
        return [self._scene_judge(judge) for judge in self.experiment.judges]

    def guides(self, row: Row) -> tuple[api.LoadedGuide, ...]:
        """Load a row's guides, each aimed at every target in turn, their experts chosen.

        Raises:
            PpapError: As `ppap_framework.guide`, and where the experts do not match.
        """
        pairs = zip(row.steering, row.names, strict=True)
        return tuple(self._guide(row, given, name) for given, name in pairs)

    def run(
        self,
        row: Row | None,
        guides: Sequence[api.LoadedGuide],
        candidate: Candidate | None = None,
        *,
        num: int,
        seed: int,
        batch: int,
        tuning: bool = False,
    ) -> api.Plan:
        """Settle a run of a row's images.

        Args:
            row: Whose; None for unguided.
            guides: Of the row, as `guides` gives them.
            candidate: Scale and interval; None for those of the guides.
            num: How many images.
            seed: Of their noise.
            batch: How many at once.
            tuning: Whether they aim at what rows are tuned with.

        Raises:
            UsageError: Where the backend cannot be sampled so.
        """
        settings = api.Settings(
            num=num,
            steps=self.experiment.steps,
            seed=seed,
            through=row.through if row else "noisy",
            normalize=row.normalize if row else False,
            batch=batch,
            prompt=self._prompts(row, num, tuning),
            stage=self.experiment.stage,
            device=self.device,
            precision=self.experiment.precision,
        )
        aimed = []
        if row is not None and guides:
            indices = self.aims.indices(num, tuning=tuning)
            for given, loaded in zip(row.steering, guides, strict=True):
                words = self.aims.words(self.experiment.aim(given), tuning=tuning)
                aimed.append(_pulling(_aimed(loaded, indices, words), given, candidate))
        return api.plan(self.backend if row is None else self.told(row), aimed, settings)

    def told(self, row: Row) -> api.LoadedBackend:
        """The backend with a row's options.

        Raises:
            PpapError: As `ppap_framework.backend`.
        """
        if not (options := dict(row.backend_options)):
            return self.backend
        key = digest(options)
        if key not in self._told:
            asked = self.experiment
            loaded = api.backend(asked.backend, checkpoint=asked.checkpoint, options=options)
            self._told[key] = _placed(loaded, self.place)
        return self._told[key]

    def _prompts(self, row: Row | None, num: int, tuning: bool) -> list[str] | None:
        if row is None or row.prompt is None:
            return None
        return self.aims.texts(row.prompt, num, tuning=tuning)

    def _guide(self, row: Row, given: RowGuide, name: str) -> api.LoadedGuide:
        aim = self.experiment.aim(given)
        loaded = api.guide(
            given.guider,
            target=self.aims.first(aim),
            loss=given.loss,
            model=given.model,
            checkpoint=given.checkpoint,
            options=given.options,
            experts=given.experts,
            name=name,
        )
        model = loaded.guide.model.to(self.place).eval().requires_grad_(False)
        target = self.aims.target(model, aim)
        chosen = loaded.experts.choose(name, model, self.backend.inner, row.through)
        return attrs.evolve(
            loaded,
            guide=attrs.evolve(loaded.guide, target=target),
            experts=attrs.evolve(loaded.experts, source=chosen or "none"),
        )

    def _scene_judge(self, judge: DenseJudge) -> SceneJudge:
        assert self.aims.scenes is not None  # an experiment with judges has scenes
        guider, _, checkpoint = judge.guider.rpartition(":")
        loaded = api.guide(
            guider,
            target=self.aims.first("scene"),
            loss=judge.loss,
            checkpoint=checkpoint,
            experts="none",
            name=judge.name,
        )
        return SceneJudge(loaded, judge, self.place)


@attrs.frozen(eq=False)
class Subject:
    """A row with its guides, and the scale and interval that it draws with.

    Attributes:
        row: Of the experiment.
        guides: As `Stand.guides` gives them.
        candidate: None for a row without guides.
    """

    row: Row
    guides: tuple[api.LoadedGuide, ...]
    candidate: Candidate | None


def _placed(backend: api.LoadedBackend, device: torch.device) -> api.LoadedBackend:
    """The backend, its networks frozen on a device."""
    for stage in backend.stages:
        stage.network.to(device).eval().requires_grad_(False)
    return backend


def _aimed(loaded: api.LoadedGuide, indices: NDArray[np.int64], words: str) -> api.LoadedGuide:
    """The guide with one target for each image."""
    value = loaded.guide.target.value
    chosen = torch.from_numpy(indices).to(value.device)
    target = attrs.evolve(loaded.guide.target, value=value[chosen])
    guide = attrs.evolve(loaded.guide, target=target)
    return attrs.evolve(loaded, guide=guide, target_source=words)


def _pulling(
    loaded: api.LoadedGuide, given: RowGuide, candidate: Candidate | None
) -> api.LoadedGuide:
    """The guide with the scale and interval of a candidate."""
    if candidate is None:
        return loaded
    calibrated = candidate.scale == "auto"
    scale = loaded.guide.scale if candidate.scale == "auto" else given.scale * candidate.scale
    return attrs.evolve(
        loaded,
        guide=attrs.evolve(loaded.guide, scale=scale, interval=candidate.interval),
        experts=attrs.evolve(loaded.experts, calibrated=calibrated),
    )
