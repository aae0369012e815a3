"""Counts and gradient norms of guidance, for the record of a run."""

from __future__ import annotations

import copy

import attrs
import torch
from torch import Tensor


@attrs.frozen(kw_only=True)
class GuideStatistics:
    """One guide's part in a run. Images count once for each step.

    Attributes:
        name: Name of the guide.
        forwards: Images that it saw.
        backwards: Images for which it was differentiated.
        skipped: Gradients that were not finite and were left out.
        conflicts: Pulls that lost a component opposing another guide's; 0 if conflicts are kept.
        times: t / T of each step at which it acted, in order.
        gradient_norms: Mean norm of dE/dx over images at each of these, unscaled, x being the image
            that the guide saw; None if no norm was finite.
        pulls: Mean change of the predicted noise at each of these, sigma s |dE/dx| / sqrt(D), a
            root mean square to compare with the noise's own 1.
    """

    name: str
    forwards: int
    backwards: int
    skipped: int
    conflicts: int
    times: tuple[float, ...]
    gradient_norms: tuple[float | None, ...]
    pulls: tuple[float, ...]


@attrs.frozen(kw_only=True)
class GuidanceStatistics:
    """A run's guidance.

    Attributes:
        guides: Each guide's part.
        denoiser_forwards: Images that the denoiser's network saw in all steps and forward passes
            (classifier-free guidance takes two).
        denoiser_backwards: Images for which it was differentiated.
        denoiser_skipped: Gradients that were infinite behind the denoiser and were left out.
    """

    guides: tuple[GuideStatistics, ...]
    denoiser_forwards: int
    denoiser_backwards: int
    denoiser_skipped: int


class Tally:
    """Counts of a run, kept on their device until they are read."""

    def __init__(self) -> None:
        self._guides: dict[int, dict[float, Tensor]] = {}
        self._conflicts: dict[int, Tensor] = {}
        self._denoiser_forwards = 0
        self._denoiser_backwards = 0
        self._denoiser_skipped: Tensor | int = 0

    def copy(self) -> Tally:
        """An independent copy."""
        return copy.deepcopy(self)

    def guide(
        self, position: int, time: float, norms: Tensor, finite: Tensor, pulls: Tensor
    ) -> None:
        """Add one guide's gradients at one step, t / T = `time`.

        `norms`, the mask `finite` and `pulls` (root mean square change of eps) are (B, 1, 1, 1).
        """
        zero = norms.new_zeros(())
        kept, pull = (torch.where(finite, figure, zero).sum() for figure in (norms, pulls))
        figures = torch.stack([kept, finite.sum().to(norms), zero + len(norms), pull])
        steps = self._guides.setdefault(position, {})
        steps[time] = steps[time] + figures if time in steps else figures

    def conflicts(self, position: int, images: Tensor) -> None:
        """Add the number of changed pulls of one guide: (), integer."""
        before = self._conflicts.get(position)
        self._conflicts[position] = images if before is None else before + images

    def denoiser(self, images: int, *, differentiated: bool = False) -> None:
        """Add one call of the denoiser on a number of images."""
        self._denoiser_forwards += images
        self._denoiser_backwards += images * differentiated

    def denoiser_lost(self, images: Tensor) -> None:
        """Add the number of gradients that the denoiser made infinite: (), integer."""
        self._denoiser_skipped = self._denoiser_skipped + images

    def read(self, names: list[str]) -> GuidanceStatistics:
        """The counts, for guides of these names."""
        return GuidanceStatistics(
            guides=tuple(self._read_guide(k, name) for k, name in enumerate(names)),
            denoiser_forwards=self._denoiser_forwards,
            denoiser_backwards=self._denoiser_backwards,
            denoiser_skipped=int(self._denoiser_skipped),
        )

    def _read_guide(self, position: int, name: str) -> GuideStatistics:
        steps = self._guides.get(position, {})
        rows = torch.stack(list(steps.values())).tolist() if steps else []
        looked = round(sum(images for _, _, images, _ in rows))
        return GuideStatistics(
            name=name,
            forwards=looked,
            backwards=looked,
            skipped=looked - round(sum(finite for _, finite, _, _ in rows)),
            conflicts=int(self._conflicts.get(position, 0)),
            times=tuple(steps),
            gradient_norms=tuple(total / n if n else None for total, n, _, _ in rows),
            pulls=tuple(pull / n if n else 0.0 for _, n, _, pull in rows),
        )
