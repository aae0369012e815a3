"""Measures the rows of an experiment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from ppap_framework.diagnosis.intervals import Interval, rounded
from ppap_framework.diagnosis.record import environment, provenance
from ppap_framework.errors import UsageError
from ppap_framework.experts import BundleFile
from ppap_framework.files import digest
from ppap_framework.guidance import Guide
from ppap_framework.run import Plan, counts_of
from ppap_framework.runtime import Progress, Watch
from ppap_plugin_bench.assessment import Assessment, Reference, Trial, choose, difference, mean
from ppap_plugin_bench.cost import training_of
from ppap_plugin_bench.experiment import Experiment
from ppap_plugin_bench.images import draw_images
from ppap_plugin_bench.judges import Judges
from ppap_plugin_bench.pictures import read_pictures
from ppap_plugin_bench.plots import EXAMPLES
from ppap_plugin_bench.results import FORMAT
from ppap_plugin_bench.row import Candidate, Row
from ppap_plugin_bench.setup import Setup


@attrs.frozen(eq=False)
class Measured:
    """A measured row: figures as JSON, example images (E, H, W, 3), and the chosen candidate."""

    record: dict[str, Any]
    examples: NDArray[np.uint8]
    candidate: Candidate | None = None


@attrs.frozen(eq=False)
class Measurement:
    """Common state of all rows.

    Attributes:
        setup: The loaded experiment.
        judges: Judges of the experiment.
        reference: Features and accuracy of the class judge on the reference.
        images: Folder of saved images.
        progress: Callback for progress.
    """

    setup: Setup
    judges: Judges
    reference: Reference
    images: Path
    progress: Watch

    @classmethod
    def begin(
        cls, experiment: Experiment, images: Path, device: str, progress: Watch
    ) -> Measurement:
        """Load backend and judges, and evaluate the class judge on the reference."""
        progress(Progress("reference", 0, 1))
        pictures = read_pictures(Path(experiment.reference))
        if len(pictures) < experiment.num:
            raise UsageError(
                f"the reference holds {len(pictures)} pictures for rows of {experiment.num} images",
                hint="render as many at least",
            )
        setup = Setup.load(experiment, pictures.names, device)
        judges = Judges.load(setup)
        reference = Reference.of(pictures, judges.of_classes, experiment.parts)
        progress(Progress("reference", 1, 1))
        return cls(setup, judges, reference, images, progress)

    @property
    def experiment(self) -> Experiment:
        """The experiment."""
        return self.setup.experiment

    @property
    def protocol(self) -> dict[str, Any]:
        """Required common settings of comparable rows."""
        return {
            "backend": self.setup.backend.origin.sha256,
            "judge": self.judges.of_classes.origin.sha256,
            "reference": self.reference.pictures.sha256,
            "num": self.experiment.num,
            "steps": self.experiment.steps,
            "seed": self.experiment.seed,
            "tuning": attrs.asdict(self.experiment.tuning),
            "precision": self.experiment.precision,
            **self.judges.protocol,
        }

    def describe(self) -> dict[str, Any]:
        """Common record of all rows, as JSON."""
        experiment, targets = self.experiment, self.setup.targets
        columns = None
        if targets.scenes is None:
            columns = [targets.names[k] for k in targets.examples(EXAMPLES)]
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
            "backend": provenance(self.setup.backend.origin),
            "judge": provenance(self.judges.of_classes.origin),
            "judges": self.judges.describe(),
            "examples": columns,
        }

    def describe_judges(self) -> dict[str, Any]:
        """Accuracy of the judges, as JSON."""
        targets, scenes = self.setup.targets, None
        if targets.scenes is not None:
            figures = {n: mean(values) for n, values in self.judges.figures_of_scenes().items()}
            scenes = {"num": targets.reported, "figures": _record(figures)}
        return self.reference.record | {"format": FORMAT, "scenes": scenes}

    def measure(self, row: Row) -> Measured:
        """Choose a row's scale, draw its images, and measure them.

        Raises:
            UsageError: If a judge is one of its guides, or existing pictures cannot be compared.
            PpapError: If a component is missing or does not fit.
        """
        record = {
            "format": FORMAT,
            "name": row.name,
            "title": row.title or row.name,
            "text": row.text,
            "protocol": self.protocol,
        }
        if row.images is not None:
            return self._measure_pictures(record, row.name, Path(row.images))
        told = {"prompt": row.prompt, "backend_options": dict(row.backend_options)}
        record |= {name: value for name, value in told.items() if value}
        guides = self.setup.guides(row)
        origins = [guide.origin for guide in guides if guide.origin]
        judging = {origin.sha256 for origin in self.judges.origins} - {None}
        if judging & {origin.sha256 for origin in origins}:
            raise UsageError(
                f"row {row.name!r} is guided by the judge, which would judge itself",
                hint="guide with other weights",
            )
        training = training_of(row, guides)  # before drawing
        trials = [self._try(row, number) for number in range(len(row.candidates))]
        names = row.objective or self.experiment.objective
        objective = {name: self.experiment.fidelity[name] for name in names}
        candidate = choose(trials, objective).candidate if trials else None
        plan = self._plan(row, candidate)
        images, lost = self._draw(plan, row.name)
        assessment = self.reference.assess(self.judges.look(images))
        assessment.save(self._kept(row))
        record |= {
            **_guides(row, guides),
            "chosen": attrs.asdict(candidate) if candidate else None,
            "objective": list(names),
            "tuning": [made.record() for made in trials],
            "figures": _record(assessment.figures),
            "per_image": _per_image(plan),
            "training": training,
            "skipped": lost["skipped"],
            "broken": lost["broken"],
            "environment": environment([self.setup.backend.origin, *self.judges.origins, *origins]),
        }
        return Measured(record, images[self.setup.targets.examples(EXAMPLES)], candidate)

    def differences(self) -> dict[str, Any]:
        """Differences of each measured row from each baseline, as JSON."""
        paths = {row.name: self._kept(row) for row in self.experiment.rows}
        rows = {name: Assessment.load(path) for name, path in paths.items() if path.is_file()}
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

    def _measure_pictures(self, record: dict[str, Any], name: str, path: Path) -> Measured:
        """Measure existing pictures, whose targets are their own content."""
        experiment, reference = self.experiment, self.reference.pictures
        pictures = read_pictures(path, {judge.truth for judge in experiment.judges} or None)
        if pictures.names != reference.names or len(pictures) < experiment.num:
            raise UsageError(
                f"row {name!r} has {len(pictures)} pictures of {len(pictures.names)} classes",
                hint=f"it needs {experiment.num} at least, of the classes of the reference",
            )
        if pictures.sha256 == reference.sha256:
            raise UsageError(
                f"the pictures of row {name!r} are the reference itself",
                hint="render others, of another seed",
            )
        part = pictures.part(0, experiment.num)
        assessment = self.reference.assess(self.judges.look_at(part))
        record |= {"pictures": {"sha256": pictures.sha256}, "figures": _record(assessment.figures)}
        wanted = self.setup.targets.examples(EXAMPLES)
        if self.setup.targets.scenes is None:  # of the classes that drawn examples show
            found = [np.flatnonzero(part.labels == label) for label in wanted]
            if all(len(members) for members in found):
                wanted = [int(members[0]) for members in found]
        return Measured(record, part.images[wanted])

    def _try(self, row: Row, number: int) -> Trial:
        candidate = row.candidates[number]
        task = f"{row.name}, candidate {number + 1} of {len(row.candidates)}"
        images, _ = self._draw(self._plan(row, candidate, tuning=True), task)
        return self.reference.trial(candidate, self.judges.look(images, tuning=True))

    def _plan(self, row: Row, candidate: Candidate | None, *, tuning: bool = False) -> Plan:
        part = self.experiment.tuning if tuning else self.experiment
        batch, plan = self.experiment.batch, self.setup.plan
        return plan(row, candidate, num=part.num, seed=part.seed, batch=batch, tuning=tuning)

    def _draw(self, plan: Plan, task: str) -> tuple[NDArray[np.uint8], Counter[str]]:
        return draw_images(plan, self.images / "batches", task, self.progress)

    def _kept(self, row: Row) -> Path:
        """File of a row's resampled figures, for paired differences."""
        return self.images / "resampled" / digest(self.protocol)[:16] / f"{row.name}.npz"


def _record(figures: Mapping[str, Interval]) -> dict[str, Any]:
    return {name: figure.record() for name, figure in figures.items()}


def _per_image(plan: Plan) -> dict[str, float | None]:
    """Forward and backward passes per image."""
    counts = counts_of(plan)
    guides = sum(counts.guide_forwards.values())  # one backward pass for each
    totals = {
        "denoiser_forwards": counts.denoiser_forwards,
        "denoiser_backwards": counts.denoiser_backwards,
        "guide_forwards": guides,
        "guide_backwards": guides,
    }
    return {name: rounded(total / plan.num) for name, total in totals.items()}


def _guides(row: Row, guides: Sequence[Guide]) -> dict[str, Any]:
    """The guides as JSON: `guide` for a single one, `guides` for several."""
    described: list[dict[str, Any]] = []
    for request, guide in zip(row.guides, guides, strict=True):
        assert guide.origin is not None  # it was requested by name
        found = provenance(guide.origin) | {
            "loss": guide.loss_name,
            "through": row.through,
            "normalize": row.normalize,
            "experts": _experts(guide),
        }
        if request.target is not None:
            found["aim"] = request.target
        if len(guides) > 1 or request.scale != 1.0:
            found["scale"] = request.scale
        described.append(found)
    if len(described) > 1:
        return {"guide": None, "guides": described}
    return {"guide": described[0] if described else None}


def _experts(guide: Guide) -> dict[str, Any] | None:
    """Record of a guide's experts, without the path of their file."""
    if not isinstance(guide.experts, BundleFile):
        return None
    return {name: value for name, value in guide.experts.record().items() if name != "path"}
