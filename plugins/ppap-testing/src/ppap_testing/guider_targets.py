"""Checks of what a guider is aimed at, a part of its suite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import nn

from ppap_framework.components import TargetInput
from ppap_framework.errors import AssetError, PpapError, UsageError
from ppap_framework.guidance import Guide
from ppap_framework.noise import NoiseLevel
from ppap_framework.pixels import to_pil
from ppap_framework.predictions import widened
from ppap_framework.run import GuideRequest
from ppap_framework.runtime import evaluating, isolated
from ppap_framework.targets import decode_target
from ppap_testing.probes import finite, pictures
from ppap_testing.suite import Conformance, NotConformingError, require, shared, skip

LONGEST = 80
"""Characters of a label or a description."""


def _odd_targets() -> list[object]:
    """What a user may give by mistake, or in a form that a guider's author did not think of."""
    grey = np.linspace(0, 65535, 48).astype(np.uint16).reshape(6, 8)
    return [
        "no such thing, surely",
        "-1",
        10**9,
        Image.new("RGB", (1, 1)),
        Image.new("P", (5, 3)),
        Image.fromarray(grey),
        torch.arange(7.0),
        torch.full((4, 6), 0.5),
        np.full((2, 4, 6), 0.25, np.float32),
    ]


class TargetChecks(Conformance):
    """Checks of a guider's targets, a part of `GuiderConformance`."""

    kind = "guider"
    checkpoint: ClassVar[str | None] = None
    target: ClassVar[object] = None
    takes_pictures: ClassVar[bool] = False
    bad_targets: ClassVar[Sequence[object]] = ()

    @shared
    def guide(self) -> Guide:
        request = {"options": self.options, "checkpoint": self.checkpoint, "experts": "none"}
        return GuideRequest(source=self.component, **request).load(aim=False)  # type: ignore[arg-type]  # by name

    @shared
    def made(self) -> Any:
        return self.guide(first=True).model

    @shared
    def aim(self) -> Any:
        """The target."""
        if self.target is not None:
            return self.made().target(decode_target(self.target))
        request = {"options": self.options, "checkpoint": self.checkpoint, "experts": "none"}
        try:
            return GuideRequest(source=self.component, **request).load().target  # type: ignore[arg-type]  # by name
        except UsageError:
            skip("it has no default target; set `target` in the suite, or give one with --target")

    def test_it_is_made_in_evaluation_mode(self) -> None:
        """no batch norm and no dropout is in training mode after it was made"""
        kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
        layers = [
            name
            for name, module in self.made().named_modules()
            if module.training and isinstance(module, kinds)
        ]
        require(
            not layers,
            f"the layers {layers[:3]} are in training mode, and `target` may look at a picture",
            "call self.eval() at the end of __init__",
        )

    def test_the_target(self) -> None:
        """a target has one row or one for each image, a short label, and a picture or none"""
        aim = self.aim(first=True)
        require(
            aim.value.ndim > 0 and len(aim.value) == 1,
            f"the target's value has the shape {tuple(aim.value.shape)}",
            "return Target(value=value[None], ...): one row serves every image",
        )
        require(
            0 < len(aim.label) <= LONGEST and "\n" not in aim.label,
            f"the target's label is {aim.label!r:.100}",
            f"give it a line of at most {LONGEST} characters, which grids show",
        )
        picture = aim.picture
        shown = picture is None or (
            picture.ndim == 3 and finite(picture) and picture.abs().max() <= 1.001
        )
        require(shown, "the target's picture is not in [-1, 1]", "convert bytes by x / 127.5 - 1")

    def test_pictures_as_targets(self) -> None:
        """pictures are targets that the loss compares with, as calibration needs them"""
        model, loss, seen = self.made(), self.guide().loss, pictures(2, (64, 64))
        try:
            aims = [
                model.target(TargetInput(image=one, source="a picture")) for one in to_pil(seen)
            ]
        except PpapError as error:
            require(
                not self.takes_pictures,
                f"a picture as target is refused: {error.message}",
                "if `given.image` is not None, let `target` measure it: self(given.pixels()[None])",
            )
            skip("it takes no pictures, so experts get no curve, and --scale is absolute")
        shapes = [tuple(aim.value.shape) for aim in aims]
        require(
            shapes == [(1, *shapes[0][1:])] * len(aims),
            f"targets of pictures have the shapes {shapes}",
            "return Target(value=value[None], ...), of one shape for every picture",
        )
        with isolated(), evaluating(model), torch.no_grad():
            aware = getattr(self.spec, "noise_aware", False)
            prediction = widened(model(seen, NoiseLevel.clean(len(seen)) if aware else None))
            energies = [loss.energy(prediction, aim.value) for aim in aims]
        require(
            all(energy.shape == (len(seen),) and finite(energy) for energy in energies),
            f"for targets of pictures the energies of {len(seen)} images are {energies}",
            "let `target` make of a picture what the default loss compares with a prediction",
        )

    def test_any_target_ends_in_one_line(self) -> None:
        """an odd target is accepted or refused with a hint, whatever it is"""
        model = self.made()
        for given in _odd_targets():
            decoded = decode_target(given)
            try:
                model.target(decoded)
            except (UsageError, AssetError) as error:
                require(
                    error.hint,
                    f"the target {decoded.source!r} is refused without a hint: {error.message}",
                    'raise UsageError(fault, hint="what to type instead")',
                )
            except PpapError as error:
                raise NotConformingError(
                    f"a {decoded.source or 'picture'} as target: {error.message}",
                    "raise UsageError with a hint for what `target` cannot use",
                ) from error

    def test_bad_targets_are_refused(self) -> None:
        """targets that make no sense are refused"""
        if not self.bad_targets:
            skip("no `bad_targets` are set")
        for given in self.bad_targets:
            try:
                made = self.made().target(decode_target(given))
            except PpapError:
                continue
            raise NotConformingError(
                f"the target {given!r:.60} is accepted, as {made.label!r}",
                "raise UsageError in `target`, and say what would do",
            )
