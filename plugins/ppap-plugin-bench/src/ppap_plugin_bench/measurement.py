"""Measures the rows of an experiment."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from ppap_framework.errors import UsageError
from ppap_framework.experts import BundleFile
from ppap_framework.files import digest
from ppap_framework.guidance import Guide
from ppap_framework.processes import Processes
from ppap_framework.run import Plan, counts_of
from ppap_framework.runtime import Progress, Watch
from ppap_plugin_bench.assessment import Assessment, Reference, difference, mean
from ppap_plugin_bench.comparison import at_equal
from ppap_plugin_bench.cost import training_of
from ppap_plugin_bench.experiment import Experiment
from ppap_plugin_bench.images import batches, draw_images
from ppap_plugin_bench.judges import Judges
from ppap_plugin_bench.pictures import read_pictures, sized
from ppap_plugin_bench.plots import EXAMPLES
from ppap_plugin_bench.results import FORMAT
from ppap_plugin_bench.row import Row, RowScale
from ppap_plugin_bench.setup import Setup
from ppap_plugin_diagnose.diagnosis import environment, provenance
from ppap_plugin_diagnose.intervals import as_json, rounded

_WAYS = ("sampler", "steps", "eta", "through", "normalize", "moments", "guide_every")


@attrs.frozen(eq=False)
class Measured:
    """A measured row: figures as JSON, and example images (E, H, W, 3) at its default scale."""

    record: dict[str, Any]
    examples: NDArray[np.uint8]


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
        setup = Setup.load(experiment, pictures.names, device, images / "curves", progress)
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
            "sampler": self.experiment.sampler,
            "eta": self.experiment.sampling.stochasticity,
            "seed": self.experiment.seed,
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
            "fidelity": list(experiment.fidelity),
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
            found = self.judges.figures_of_scenes().items()
            figures = {name: as_json(mean(values)) for name, values in found}
            scenes = {"num": len(targets.scenes), "figures": figures}
        return self.reference.record | {"format": FORMAT, "scenes": scenes}

    def measure(self, row: Row) -> Measured:
        """Draw a row at each of its scales, and measure the images.

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
        guides = self._guides_of(row)
        origins = [guide.origin for guide in guides if guide.origin]
        training = training_of(row, guides)  # before drawing
        experiment, default = self.experiment, self.experiment.default_of(row)
        points: list[dict[str, Any]] = []
        for scale in experiment.scales_of(row) or (None,):
            plan = self._plan(row, scale)
            images, lost = draw_images(plan, self._batches, _task(row, scale), self.progress)
            images = sized(images, *self.reference.pictures.images.shape[1:3])
            assessment = self.reference.assess(self.judges.look(images))
            assessment.save(self._kept(row, scale))
            points.append({"scale": scale, "figures": assessment.record(), **lost})
            if scale == default:
                examples = images[self.setup.targets.examples(EXAMPLES)]
                per_image = _per_image(plan)
        sampling = plan.sampling.record()
        curves = self.setup.curves_of(row, default)
        record |= {
            **_guides(row, guides),
            "sampling": {name: sampling[name] for name in _WAYS if name in sampling},
            "interval": list(row.interval),
            "schedule": row.schedule,
            "curves": [curve and attrs.asdict(curve) for curve in curves],
            "default": default,
            "points": points,
            "figures": next(point["figures"] for point in points if point["scale"] == default),
            "per_image": per_image,
            "training": training,
            "environment": environment([self.setup.backend.origin, *self.judges.origins, *origins]),
        }
        return Measured(record, examples)

    def draw_share(self, rows: Sequence[Row], processes: Processes) -> None:
        """Draw a share of the batches of rows, at which processes take turns, and wait until all
        are drawn. The first process calibrates guides that have no curve.

        Raises:
            PpapError: As for `measure`.
        """
        number = itertools.count()

        def own() -> bool:
            return next(number) % processes.count == processes.rank

        for row in rows:
            if row.images is None:
                self._guides_of(row)
                for scale in self.experiment.scales_of(row) or (None,):
                    processes.once(partial(self.setup.curves_of, row, scale))  # kept in files
                    task = _task(row, scale)
                    for _ in batches(
                        self._plan(row, scale), self._batches, own, task, self.progress
                    ):
                        pass
        processes.gathered([None])

    def differences(self) -> dict[str, Any]:
        """Differences of each measured row from each baseline, as JSON: of their figures at the
        default scales, and at equal FID and fidelity (see `comparison`).
        """
        experiment, found, equal = self.experiment, dict[str, Any](), dict[str, Any]()
        curves = {row: self._curve(row) for row in experiment.rows if row.images is None}
        rows = {row: curve.get(experiment.default_of(row)) for row, curve in curves.items()}
        known = {row: assessment for row, assessment in rows.items() if assessment}
        for other in known:
            compared = [row for row in known if other.name in experiment.baselines_of(row)]
            if not compared:
                continue
            found[other.name] = {row.name: difference(known[row], known[other]) for row in compared}
            if other.guides:
                start = experiment.start_of(other)
                along = [*(curves[start].values() if start else ()), *curves[other].values()]
                equal[other.name] = {
                    row.name: {
                        name: at_equal(known[row], along, name, experiment.figures[name])
                        for name in experiment.fidelity
                    }
                    for row in compared
                    if row.guides
                }
        return {"format": FORMAT, "protocol": self.protocol, "from": found, "equal": equal}

    def _curve(self, row: Row) -> dict[RowScale | None, Assessment]:
        """What was measured of a row by scale, in the order of its scales."""
        scales = self.experiment.scales_of(row) or (None,)
        paths = {scale: self._kept(row, scale) for scale in scales}
        return {scale: Assessment.load(path) for scale, path in paths.items() if path.is_file()}

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
        record |= {"pictures": {"sha256": pictures.sha256}, "figures": assessment.record()}
        wanted = self.setup.targets.examples(EXAMPLES)
        if self.setup.targets.scenes is None:  # of the classes that drawn examples show
            found = [np.flatnonzero(part.labels == label) for label in wanted]
            if all(len(members) for members in found):
                wanted = [int(members[0]) for members in found]
        return Measured(record, part.images[wanted])

    def _plan(self, row: Row, scale: RowScale | None) -> Plan:
        experiment = self.experiment
        return self.setup.plan(row, scale, num=experiment.num, batch=experiment.batch)

    @property
    def _batches(self) -> Path:
        return self.images / "batches"

    def _guides_of(self, row: Row) -> tuple[Guide, ...]:
        """The guides of a row; UsageError if a judge is one of them."""
        guides = self.setup.guides(row)
        judging = {origin.sha256 for origin in self.judges.origins} - {None}
        if judging & {guide.origin.sha256 for guide in guides if guide.origin}:
            raise UsageError(
                f"row {row.name!r} is guided by the judge, which would judge itself",
                hint="guide with other weights",
            )
        return guides

    def _kept(self, row: Row, scale: RowScale | None) -> Path:
        """File of a row's figures at a scale, for differences."""
        depends_on = self.experiment.sampling_of(row).record()
        folder = self.images / "resampled" / digest(self.protocol)[:16]
        return folder / f"{row.name}-{digest([depends_on, scale])[:16]}.npz"


def _task(row: Row, scale: RowScale | None) -> str:
    return row.name if scale is None else f"{row.name} at {scale}"


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
        experts = None
        if isinstance(guide.experts, BundleFile):
            experts = guide.experts.record()
            del experts["path"]  # differs between machines
            scores = [score or {} for score in guide.experts.info.metrics.get("experts", ())]
            for name in ("held_out", "untouched"):
                experts[name] = [rounded(score[name]) for score in scores if score.get(name)]
        found = provenance(guide.origin) | {
            "loss": guide.loss_name,
            "through": guide.through,
            "experts": experts,
        }
        if request.target is not None:
            found["aim"] = request.target
        if len(guides) > 1 or request.scale != 1.0:
            found["scale"] = request.scale
        described.append(found)
    if len(described) > 1:
        return {"guide": None, "guides": described}
    return {"guide": described[0] if described else None}
