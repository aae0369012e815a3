"""An experiment under way: what all rows share, and how one row becomes figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from ppap_framework.diagnosis.environment import environment, provenance
from ppap_framework.diagnosis.intervals import rounded
from ppap_framework.errors import UsageError
from ppap_framework.run import ChosenExperts, LoadedGuide, Plan
from ppap_plugin_bench.assessment import Assessment, Reference, difference
from ppap_plugin_bench.blocks import Counts, draw
from ppap_plugin_bench.examples import EXAMPLES
from ppap_plugin_bench.experiment import Experiment
from ppap_plugin_bench.files import FORMAT, digest
from ppap_plugin_bench.pictures import Pictures, Scenes, read_pictures, read_scenes
from ppap_plugin_bench.row import Row
from ppap_plugin_bench.sight import Sight
from ppap_plugin_bench.stand import Stand, Subject
from ppap_plugin_bench.training import training_of
from ppap_plugin_bench.tuning import Trial, choose, trial

__all__ = ["Measured", "Measurement", "Watch"]

Watch = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and of how much."""


@attrs.frozen(eq=False)
class Measured:
    """What came of a row.

    Attributes:
        record: Its figures, as JSON.
        examples: Some of its images, (E, H, W, 3).
        subject: What its cost can be measured on; None for pictures that were there already.
    """

    record: dict[str, Any]
    examples: NDArray[np.uint8]
    subject: Subject | None


@attrs.frozen(eq=False)
class Measurement:
    """What all rows share.

    Attributes:
        experiment: What is measured.
        pictures: The reference.
        stand: The backend, and what guides aim at.
        sight: What judges see, and what they were to see.
        reference: What the judge sees in the reference.
        images: The folder that images are kept in.
        watch: Whom to tell how far it is.
    """

    experiment: Experiment
    pictures: Pictures
    stand: Stand
    sight: Sight
    reference: Reference
    images: Path
    watch: Watch

    @classmethod
    def begin(cls, experiment: Experiment, images: Path, device: str, watch: Watch) -> Measurement:
        """Load backend and judges, and let the judge look at the reference.

        Raises:
            PpapError: Where any of them is missing, or they do not go together.
        """
        watch("reference", 0, 1)
        pictures = read_pictures(Path(experiment.reference))
        if len(pictures) < experiment.num:
            raise UsageError(
                f"the reference holds {len(pictures)} pictures for rows of {experiment.num} images",
                hint="render as many at least",
            )
        stand = Stand.load(experiment, pictures.names, device)
        stand.aims.check(experiment)
        sight = Sight.of(stand)
        reference = Reference.of(pictures, sight.judge, experiment.parts)
        watch("reference", 1, 1)
        return cls(experiment, pictures, stand, sight, reference, images, watch)

    @property
    def protocol(self) -> dict[str, Any]:
        """What rows must have in common to be compared."""
        return {
            "backend": self.stand.backend.origin.sha256,
            "judge": self.sight.judge.origin.sha256,
            "reference": self.pictures.sha256,
            "num": self.experiment.num,
            "steps": self.experiment.steps,
            "seed": self.experiment.seed,
            "tuning": attrs.asdict(self.experiment.tuning),
            "precision": self.experiment.precision,
            **self.sight.protocol,
        }

    def describe(self) -> dict[str, Any]:
        """What is true of all rows, as JSON."""
        experiment, backend = self.experiment, self.stand.backend.origin
        return {
            "format": FORMAT,
            "name": experiment.name,
            "title": experiment.title or experiment.name,
            "text": experiment.text,
            "rows": [row.name for row in experiment.rows],
            "baselines": list(experiment.baselines),
            "parts": list(experiment.parts),
            "objective": list(experiment.objective),
            "shown": experiment.shown,
            "protocol": self.protocol,
            "backend": provenance(backend),
            "judge": provenance(self.sight.judge.origin),
            "judges": self.sight.describe(),
            "examples": self._columns(),
        }

    def describe_judges(self) -> dict[str, Any]:
        """How well the judges do, as JSON."""
        of_scenes = self.sight.of_scenes()
        return self.reference.record | {"format": FORMAT, "scenes": of_scenes}

    def measure(self, row: Row) -> Measured:
        """Draw a row's images and measure them."""
        record = {
            "format": FORMAT,
            "name": row.name,
            "title": row.label,
            "text": row.text,
            "protocol": self.protocol,
        }
        if row.images is not None:
            found, examples = self._given(row, row.images)
            return Measured(record | found, examples, None)
        told = {"prompt": row.prompt, "backend_options": dict(row.backend_options)}
        record |= {name: value for name, value in told.items() if value}
        guides = self.stand.guides(row)
        self._check_independent(row, guides)
        training = training_of(row, guides)
        origins = [self.stand.backend.origin, *self.sight.origins]
        origins += [guide.origin for guide in guides]
        trials = self._tune(row, guides)
        objective = {name: self.experiment.fidelity[name] for name in self._objective(row)}
        candidate = choose(trials, objective).candidate if trials else None
        num, seed = self.experiment.num, self.experiment.seed
        run = self.stand.run(
            row, guides, candidate, num=num, seed=seed, batch=self.experiment.block
        )
        images, counts = self._draw(run, row.name)
        verdict, of_scenes = self.sight.look(images)
        assessment = self.reference.assess(verdict, self.stand.aims.classes(num), of_scenes)
        assessment.save(self._kept(row))
        figures = record | {
            **_guides(row, guides),
            "chosen": attrs.asdict(candidate) if candidate else None,
            "objective": list(objective),
            "tuning": [made.record() for made in trials],
            "figures": assessment.record(),
            "per_image": {
                name: rounded(count / num)
                for name, count in attrs.asdict(counts).items()
                if name.endswith(("forwards", "backwards"))
            },
            "training": training,
            "skipped": counts.skipped,
            "broken": counts.broken,
            "environment": environment(origins),
        }
        examples = images[self.stand.aims.examples(EXAMPLES)]
        return Measured(figures, examples, Subject(row, guides, candidate))

    def differences(self) -> dict[str, Any]:
        """How far each row that was measured is from each baseline, as JSON."""
        rows = {
            row.name: Assessment.load(self._kept(row))
            for row in self.experiment.rows
            if self._kept(row).is_file()
        }
        return {
            "format": FORMAT,
            "protocol": self.protocol,
            "from": {
                baseline: {
                    name: difference(assessment, rows[baseline])
                    for name, assessment in rows.items()
                    if name != baseline
                }
                for baseline in self.experiment.baselines
                if baseline in rows
            },
        }

    def _columns(self) -> list[str] | None:
        """The classes that examples are to show; None for scenes."""
        aims = self.stand.aims
        return None if aims.scenes is not None else [aims.names[k] for k in aims.examples(EXAMPLES)]

    def _objective(self, row: Row) -> tuple[str, ...]:
        return row.objective or self.experiment.objective

    def _check_independent(self, row: Row, guides: tuple[LoadedGuide, ...]) -> None:
        judging = {origin.sha256 for origin in self.sight.origins} - {None}
        if judging & {guide.origin.sha256 for guide in guides}:
            raise UsageError(
                f"row {row.name!r} is guided by the judge, which would judge itself",
                hint="guide with other weights",
            )

    def _given(self, row: Row, path: str) -> tuple[dict[str, Any], NDArray[np.uint8]]:
        """The figures of pictures that are there already; each was to show what it shows."""
        scenes, num = self._read(Path(path)), self.experiment.num
        pictures = scenes.pictures
        if pictures.names != self.pictures.names or len(pictures) < num:
            raise UsageError(
                f"row {row.name!r} has {len(pictures)} pictures of {len(pictures.names)} classes",
                hint=f"it wants {num} at least, of the classes that the reference has",
            )
        if pictures.sha256 == self.pictures.sha256:
            raise UsageError(
                f"the pictures of row {row.name!r} are the reference itself",
                hint="render others, of another seed",
            )
        first = scenes.part(0, num)
        verdict, of_scenes = self.sight.look_at(first)
        assessment = self.reference.assess(verdict, first.pictures.labels, of_scenes)
        record = {"pictures": {"sha256": pictures.sha256}, "figures": assessment.record()}
        return record, self._examples(first.pictures)

    def _examples(self, pictures: Pictures) -> NDArray[np.uint8]:
        """Of pictures that are there already: of the classes that drawn ones show, if they can."""
        wanted = self.stand.aims.examples(EXAMPLES)
        if self.stand.aims.scenes is None:
            found = [np.flatnonzero(pictures.labels == label) for label in wanted]
            if all(len(members) for members in found):
                wanted = [int(members[0]) for members in found]
        return pictures.images[wanted]

    def _read(self, path: Path) -> Scenes:
        if judges := self.experiment.judges:
            return read_scenes(path, {judge.truth for judge in judges})
        return Scenes(read_pictures(path), {})

    def _tune(self, row: Row, guides: tuple[LoadedGuide, ...]) -> list[Trial]:
        num, seed = self.experiment.tuning.num, self.experiment.tuning.seed
        targets = self.stand.aims.classes(num, tuning=True)
        trials = []
        for number, candidate in enumerate(row.candidates, 1):
            run = self.stand.run(
                row, guides, candidate, num=num, seed=seed, batch=self.experiment.block, tuning=True
            )
            what = f"{row.name}, candidate {number} of {len(row.candidates)}"
            images, _ = self._draw(run, what)
            verdict, of_scenes = self.sight.look(images, tuning=True)
            trials.append(trial(candidate, verdict, targets, self.reference, of_scenes))
        return trials

    def _draw(self, run: Plan, what: str) -> tuple[NDArray[np.uint8], Counts]:
        return draw(run, self.images / "blocks", lambda done, of: self.watch(what, done, of))

    def _kept(self, row: Row) -> Path:
        """Where a row's resampled figures are kept, for differences from other rows."""
        return self.images / "resampled" / digest(self.protocol) / f"{row.name}.npz"


def _guides(row: Row, guides: tuple[LoadedGuide, ...]) -> dict[str, Any]:
    """What steers, as JSON: `guide` where it is one, `guides` where they are several."""
    described = [
        provenance(loaded.origin)
        | {
            "loss": loaded.loss_name,
            "through": row.through,
            "normalize": row.normalize,
            "experts": _experts(loaded),
        }
        | ({} if given.aim is None else {"aim": given.aim})
        for given, loaded in zip(row.steering, guides, strict=True)
    ]
    if not row.guides:
        return {"guide": described[0] if described else None}
    pairs = zip(row.guides, described, strict=True)
    return {"guide": None, "guides": [{**guide, "scale": given.scale} for given, guide in pairs]}


def _experts(guide: LoadedGuide) -> dict[str, Any] | None:
    """Which they are, wherever their file lies."""
    chosen = guide.experts.source
    if not isinstance(chosen, ChosenExperts):
        return None
    return {name: value for name, value in chosen.record().items() if name != "path"}
