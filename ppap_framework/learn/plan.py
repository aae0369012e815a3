"""The plan of a training, checked before an image is drawn or read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import nn

from ppap_framework import diagnosis, run
from ppap_framework.components import DiffusionBackend, Stage, check_readable
from ppap_framework.data import Images, LabelledImages, SyntheticData
from ppap_framework.errors import AssetError, Problems, UsageError
from ppap_framework.experts import AdapterConfig, BundleFile, ExpertSet, NoiseRanges, bundle_by_name
from ppap_framework.experts.bundle import installed_adapter, load_bundle
from ppap_framework.experts.identity import Identity, backend_sha256, guide_sha256
from ppap_framework.files import core_version
from ppap_framework.guidance import Guide
from ppap_framework.learn.batches import first_and_last
from ppap_framework.learn.distillation import check_experts
from ppap_framework.learn.recipe import Phase, Recipe
from ppap_framework.origin import plain
from ppap_framework.registry import registry
from ppap_framework.run import FunctionLoss, GuideRequest, LoadedBackend, Loss, guide_origin

_IMAGES, _LEVELS = 256, 21  # with which boundaries are proposed


@attrs.frozen(eq=False)
class TransferPlan:
    """A training of experts, independent of its images. The guide is teacher and student, and its
    loss compares their answers; identities are those of "guide", untouched, and "backend". The
    recipe is resolved, but for boundaries "auto"; `measure` then makes the `curve`. The bundle
    `first` is what experts begin with.
    """

    backend: LoadedBackend
    guide: Guide
    identities: dict[str, Identity]
    recipe: Recipe
    adapters: tuple[AdapterConfig, ...]
    compute: run.Compute
    bundle_name: str | None
    first: BundleFile | None = None
    curve: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """Name of the bundle."""
        backend, guide = self.backend.origin.short_name, guide_origin(self.guide).short_name
        return self.bundle_name or f"{backend}-{guide}-{len(self.ranges)}"

    @property
    def stage(self) -> Stage:
        """The guided stage."""
        return self.backend.stages[0]

    @property
    def ranges(self) -> NoiseRanges:
        return self.first.ranges if self.first else self.recipe.ranges(self.stage.schedule)

    @property
    def phases(self) -> tuple[Phase, ...]:
        return self.recipe.phases(self.ranges.timesteps(self.stage.schedule))

    def attached(self) -> ExpertSet:
        """Experts, attached to the network; errors as `ExpertSet` and `load_bundle`."""
        if self.first is not None:
            path, others = self.first.path, ("backend", "resolution")
            return load_bundle(path, self.guide.model, self.backend, allow_mismatch=others)
        made = {config.name: installed_adapter(config) for config in self.adapters}
        return ExpertSet(self.guide.model, self.ranges, made)

    def settings(self, images: Images) -> dict[str, Any]:
        """Everything that determines the experts on one kind of machine, as JSON."""
        return {
            **{name: attrs.asdict(identity) for name, identity in self.identities.items()},
            "data": images.manifest_hash,
            "supervised": isinstance(images, LabelledImages),
            "recipe": self.recipe.record(),
            "loss": self.guide.loss_record,
            **{k: v for k, v in self.guide.compared_options(self.backend).items() if v is not None},
            "device": self.compute.place.type,
            "versions": {"torch": torch.__version__, "ppap-framework": core_version()},
            **({} if self.curve is None else {"proposal": self.curve}),
        }

    def measure(self, images: Images) -> dict[str, Any]:
        """The `disagreement` of the network, on its device and in evaluation mode, on the first
        images of a set, as JSON; PluginError if the loss is broken.
        """
        schedule, count = self.stage.schedule, min(len(images), _IMAGES)
        timesteps = diagnosis.evenly_spaced(schedule, min(_LEVELS, schedule.num_timesteps))
        pictures = [x.to(self.compute.place) for x in first_and_last(images, count)]
        how: Any = {"seed": self.recipe.seed, "batch": self.recipe.batch}
        given = self.guide.model, self.guide.loss, schedule, timesteps
        values = diagnosis.disagreement(*given, *pictures, **how)
        return {"images": count, "timesteps": timesteps, "disagreement": values}

    def with_boundaries(self, curve: Mapping[str, Any]) -> TransferPlan:
        """The plan with what a result of `measure` proposes; AssetError if it is damaged."""
        length = self.stage.schedule.num_timesteps
        try:
            timesteps = [int(t) for t in curve["timesteps"]]
            values = [float(value) for value in curve["disagreement"]]
        except (KeyError, TypeError, ValueError) as error:
            message = "the proposal in the record of the training cannot be read"
            raise AssetError(message, hint="--overwrite begins anew") from error
        n = self.recipe.num_experts or diagnosis.propose_number(timesteps, values, length)
        starts = diagnosis.propose_boundaries(timesteps, values, length, n)
        return attrs.evolve(self, recipe=self.recipe.beginning_at(starts), curve=curve)

    def check_images(self, images: Images) -> None:
        """Raise AssetError if experts cannot learn from these images."""
        shape, wanted, sha256 = images.image_shape(0), self.stage.image_shape, images.manifest_hash
        own = drawn = self.identities["backend"].sha256
        if isinstance(images, SyntheticData):
            drawn = images.manifest["settings"]["backend"]["weights_sha256"]
        component, known = self.backend.origin.component, re.fullmatch("[0-9a-f]{64}", sha256)
        faults = {
            f"the data are of {shape}, and {component!r} draws {wanted}": shape != wanted,
            f"experts cannot learn from {len(images)} image": len(images) < 2,
            f"the manifest_hash of the data is {sha256!r:.80}, and no SHA-256": known is None,
            "the data were drawn by a backend with other weights": drawn != own,
        }
        for words in (words for words, found in faults.items() if found):
            raise AssetError(words, hint="draw them with `ppap synthesize`")


def load_teacher(guide: Guide | GuideRequest | nn.Module | str, loss: Loss | None = None) -> Guide:
    """A guide whose network can teach experts, of a guide, a request, a guider's name or a network.

    It needs no target. UsageError if it reads noise or its loss is a function; else as of `guide`.
    """
    if not isinstance(guide, Guide | GuideRequest):
        guide = GuideRequest(source=guide, loss=loss)
    elif loss is not None:
        own = guide.loss_name if isinstance(guide, Guide) else guide.loss
        raise UsageError(f"the guide has a loss already, {own!r}", hint="leave out loss")
    if guide.noise_aware:
        name = guide.name if isinstance(guide, Guide) else guide.label
        hint = "experts are for networks that have only seen clean images"
        raise UsageError(f"guide {name!r} understands noise already", hint=hint)
    if isinstance(guide, GuideRequest):
        guide = guide.load(aim=False)
    if isinstance(guide.loss, FunctionLoss):
        guide.loss.transfer(None, None)  # raises
    return guide


def plan_transfer(
    backend: DiffusionBackend | str,
    guide: Guide | nn.Module | str,
    loss: Loss | None,
    recipe: Recipe,
    compute: run.Compute,
    name: str | None,
) -> TransferPlan:
    """The plan of `transfer` for its arguments; PpapError with all problems."""
    loaded, teacher = run.backend(backend), load_teacher(guide, loss)
    problems, stage, first = Problems(), loaded.stages[0], None
    if recipe.begin_with is not None:
        first = bundle_by_name(recipe.begin_with)
        if isinstance(first.info.reads, tuple):
            fault = "experts that read different images do not learn together"
            raise UsageError(fault, hint="begin with each of the bundles that were joined")
        recipe = attrs.evolve(recipe, begin_with=first.sha256, through=first.info.reads)
        adapters: tuple[AdapterConfig, ...] = tuple(first.info.adapters)
    else:
        adapters = problems.attempt(_configs, recipe, stage) or ()
    recipe = attrs.evolve(recipe, adapters=[(a.name, dict(a.options)) for a in adapters])
    with problems.collected():
        owned = (first.ranges if first else recipe.ranges(stage.schedule)).timesteps(stage.schedule)
        recipe.phases(owned)  # for "auto", with the largest possible number of experts
        if recipe.boundaries != "auto":
            recipe = recipe.beginning_at([timesteps.start for timesteps in owned[1:]])
        elif stage.latent_shape or recipe.through != "noisy":
            fault = "boundaries can be proposed for networks that read noisy images alone"
            raise UsageError(fault, hint="give boundaries or a number of experts")
    problems.check()
    origins = {
        "guide": (guide_origin(teacher), guide_sha256(teacher.model)),
        "backend": (loaded.origin, backend_sha256(loaded.inner)),
    }
    identities = {
        name: Identity(component=of.component, checkpoint=of.checkpoint, sha256=sha256)
        for name, (of, sha256) in origins.items()
    }
    plan = TransferPlan(loaded, teacher, identities, recipe, adapters, compute, name, first)
    with plan.attached() as experts:
        check_experts(experts, recipe)
    return plan


def _configs(recipe: Recipe, stage: Stage) -> tuple[AdapterConfig, ...]:
    problems, adapters = Problems(), recipe.adapters
    configs: dict[str, AdapterConfig] = {}
    given = [*(registry().default_adapters() if adapters is None else adapters)]
    if stage.latent_shape is not None and recipe.through == "noisy":
        readers = dict(registry().default_adapters(latents=True))
        if not readers:
            check_readable(stage, "no adapter that reads latents is installed")
        shapes = {"latents": [*stage.latent_shape], "images": [*stage.image_shape]}
        if not any(kind in readers for kind, _ in given):
            given.insert(0, (next(iter(readers)), {}))
        given = [(kind, {**shapes, **own} if kind in readers else own) for kind, own in given]
    for kind, options in given:
        with problems.collected():
            if kind in configs:
                raise UsageError(f"adapter {kind!r} is given twice", hint="give each adapter once")
            try:
                configs[kind] = AdapterConfig(name=kind, options=plain(options))
            except ValueError as error:
                raise UsageError(f"options of adapter {kind!r} are wrong: {error}") from error
            installed_adapter(configs[kind])
    problems.check()
    if not configs:
        raise UsageError("experts need an adapter", hint="such as lora, bias or full")
    return tuple(configs.values())
