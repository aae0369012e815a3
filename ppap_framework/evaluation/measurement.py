"""An experiment under way: what all rows share, and how one row becomes figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from ppap_framework.api import ChosenExperts, LoadedGuide
from ppap_framework.errors import UsageError
from ppap_framework.evaluation.aim import Stand, Subject, balanced
from ppap_framework.evaluation.assessment import Assessment, Reference, difference
from ppap_framework.evaluation.blocks import Counts, draw
from ppap_framework.evaluation.environment import environment, provenance
from ppap_framework.evaluation.experiment import Candidate, Experiment, Row
from ppap_framework.evaluation.files import FORMAT, digest
from ppap_framework.evaluation.intervals import rounded
from ppap_framework.evaluation.judge import Judge
from ppap_framework.evaluation.pictures import Pictures, read_pictures
from ppap_framework.evaluation.tuning import OBJECTIVE, Trial, choose, trial

__all__ = ["Measurement", "Watch"]

Watch = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and of how much."""


@attrs.frozen(eq=False)
class Measurement:
    """What all rows share.

    Attributes:
        experiment: What is measured.
        pictures: The reference.
        stand: The backend, and what guides aim at.
        judge: That looks at images.
        reference: What it sees in the reference.
        images: The folder that images are kept in.
        watch: Whom to tell how far it is.
    """

    experiment: Experiment
    pictures: Pictures
    stand: Stand
    judge: Judge
    reference: Reference
    images: Path
    watch: Watch

    @classmethod
    def begin(cls, experiment: Experiment, images: Path, device: str, watch: Watch) -> Measurement:
        """Load backend and judge, and let it look at the reference.

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
        for num in (experiment.num, experiment.tuning.num):
            balanced(num, len(pictures.names))
        stand = Stand.load(experiment, pictures.names, device)
        judge = stand.judge()
        reference = Reference.of(pictures, judge, experiment.parts)
        watch("reference", 1, 1)
        return cls(experiment, pictures, stand, judge, reference, images, watch)

    @property
    def protocol(self) -> dict[str, Any]:
        """What rows must have in common to be compared."""
        return {
            "backend": self.stand.backend.origin.sha256,
            "judge": self.judge.origin.sha256,
            "reference": self.pictures.sha256,
            "num": self.experiment.num,
            "steps": self.experiment.steps,
            "seed": self.experiment.seed,
            "tuning": attrs.asdict(self.experiment.tuning),
            "precision": self.experiment.precision,
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
            "objective": OBJECTIVE,
            "protocol": self.protocol,
            "backend": provenance(backend),
            "judge": provenance(self.judge.origin),
        }

    def measure(self, row: Row) -> tuple[dict[str, Any], Subject | None]:
        """A row's figures as JSON, and what its cost can be measured on."""
        record = {
            "format": FORMAT,
            "name": row.name,
            "title": row.label,
            "text": row.text,
            "protocol": self.protocol,
        }
        if row.images is not None:
            return record | self._given(row, row.images), None
        guide = self.stand.guide(row)
        origins = [self.stand.backend.origin, self.judge.origin]
        origins += [guide.origin] if guide else []
        if guide and guide.origin.sha256 and guide.origin.sha256 == self.judge.origin.sha256:
            raise UsageError(
                f"row {row.name!r} is guided by the judge, which would judge itself",
                hint="guide with other weights",
            )
        trials = self._tune(row, guide)
        candidate = choose(trials).candidate if trials else None
        num, seed = self.experiment.num, self.experiment.seed
        images, counts = self._draw(row, guide, candidate, num, seed, row.name)
        targets = balanced(num, len(self.pictures.names))
        assessment = self.reference.assess(self.judge.look(images), targets)
        assessment.save(self._kept(row))
        return record | {
            "guide": provenance(guide.origin)
            | {
                "loss": guide.loss_name,
                "through": row.through,
                "normalize": row.normalize,
                "experts": _experts(guide),
            }
            if guide
            else None,
            "chosen": attrs.asdict(candidate) if candidate else None,
            "tuning": [made.record() for made in trials],
            "figures": assessment.record(),
            "per_image": {
                name: rounded(count / num)
                for name, count in attrs.asdict(counts).items()
                if name.endswith(("forwards", "backwards"))
            },
            "skipped": counts.skipped,
            "broken": counts.broken,
            "environment": environment(origins),
        }, Subject(row, guide, candidate)

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

    def _given(self, row: Row, path: str) -> dict[str, Any]:
        """The figures of pictures that are there already."""
        pictures, num = read_pictures(Path(path)), self.experiment.num
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
        verdict = self.judge.look(pictures.images[:num])
        return {
            "pictures": {"sha256": pictures.sha256},
            "figures": self.reference.assess(verdict, pictures.labels[:num]).record(),
        }

    def _tune(self, row: Row, guide: LoadedGuide | None) -> list[Trial]:
        num, seed = self.experiment.tuning.num, self.experiment.tuning.seed
        targets = balanced(num, len(self.pictures.names))
        trials = []
        for number, candidate in enumerate(row.candidates, 1):
            what = f"{row.name}, candidate {number} of {len(row.candidates)}"
            images, _ = self._draw(row, guide, candidate, num, seed, what)
            trials.append(trial(candidate, self.judge.look(images), targets, self.reference))
        return trials

    def _draw(
        self,
        row: Row,
        guide: LoadedGuide | None,
        candidate: Candidate | None,
        num: int,
        seed: int,
        what: str,
    ) -> tuple[NDArray[np.uint8], Counts]:
        run = self.stand.run(row, guide, candidate, num=num, seed=seed, batch=self.experiment.block)
        return draw(run, self.images / "blocks", lambda done, of: self.watch(what, done, of))

    def _kept(self, row: Row) -> Path:
        """Where a row's resampled figures are kept, for differences from other rows."""
        return self.images / "resampled" / digest(self.protocol) / f"{row.name}.npz"


def _experts(guide: LoadedGuide) -> dict[str, Any] | None:
    """Which they are, wherever their file lies."""
    chosen = guide.experts.source
    if not isinstance(chosen, ChosenExperts):
        return None
    return {name: value for name, value in chosen.record().items() if name != "path"}
