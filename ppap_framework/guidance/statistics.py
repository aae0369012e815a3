"""What guidance did and what it cost, for the record of a run."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

__all__ = ["GuidanceStatistics", "GuideStatistics", "Tally"]


@attrs.frozen(kw_only=True)
class GuideStatistics:
    """One guide's part in a run.

    Attributes:
        name: The guide's.
        forwards: Images that it looked at, steps counted singly.
        backwards: Images that it was differentiated for, likewise.
        skipped: Gradients that were not finite and therefore left out.
        times: t / T of each step at which it acted, in the order of the steps.
        conflicts: Pulls that lost the component against another guide's; 0 where conflicts were
            kept.
        gradient_norms: Mean over images of the norm of dE/dx at each of these, unscaled and where
            finite, x being what the guide saw; None where no image's was.
    """

    name: str
    forwards: int
    backwards: int
    skipped: int
    conflicts: int
    times: tuple[float, ...]
    gradient_norms: tuple[float | None, ...]


@attrs.frozen(kw_only=True)
class GuidanceStatistics:
    """A run's guidance.

    Attributes:
        guides: Each guide's part.
        denoiser_forwards: Images that the denoiser's network looked at, steps counted singly, and
            so is each look where a step takes several, as with classifier-free guidance.
        denoiser_backwards: Images that it was differentiated for, likewise.
        denoiser_skipped: Gradients that the denoiser made infinite, and which were left out.
    """

    guides: tuple[GuideStatistics, ...]
    denoiser_forwards: int
    denoiser_backwards: int
    denoiser_skipped: int


class Tally:
    """Counts as a run goes on. Figures stay on their device until somebody reads them."""

    def __init__(self) -> None:
        self._guides: dict[int, dict[float, Tensor]] = {}
        self._conflicts: dict[int, Tensor] = {}
        self._denoiser_forwards = 0
        self._denoiser_backwards = 0
        self._denoiser_skipped: Tensor | int = 0

    def guide(self, position: int, time: float, norms: Tensor, finite: Tensor) -> None:
        """Add one guide's gradients at one step.

        Args:
            position: Of the guide among the guides.
            time: t / T.
            norms: (B, 1, 1, 1).
            finite: (B, 1, 1, 1), bool.
        """
        zero = norms.new_zeros(())
        kept = torch.where(finite, norms, zero).sum()
        figures = torch.stack([kept, finite.sum().to(norms), zero + len(norms)])
        steps = self._guides.setdefault(position, {})
        steps[time] = steps[time] + figures if time in steps else figures

    def conflicts(self, position: int, images: Tensor) -> None:
        """Add pulls of one guide that were changed: (), integer."""
        before = self._conflicts.get(position)
        self._conflicts[position] = images if before is None else before + images

    def denoiser(self, images: int, *, differentiated: bool = False) -> None:
        """Add one call of the denoiser, whose network looks at so many images."""
        self._denoiser_forwards += images
        self._denoiser_backwards += images * differentiated

    def denoiser_lost(self, images: Tensor) -> None:
        """Add gradients that the denoiser made infinite: (), integer."""
        self._denoiser_skipped = self._denoiser_skipped + images

    def read(self, names: list[str]) -> GuidanceStatistics:
        """What was counted, for guides of these names."""
        return GuidanceStatistics(
            guides=tuple(self._read_guide(k, name) for k, name in enumerate(names)),
            denoiser_forwards=self._denoiser_forwards,
            denoiser_backwards=self._denoiser_backwards,
            denoiser_skipped=int(self._denoiser_skipped),
        )

    def _read_guide(self, position: int, name: str) -> GuideStatistics:
        steps = self._guides.get(position, {})
        rows = torch.stack(list(steps.values())).tolist() if steps else []
        looked = round(sum(images for _, _, images in rows))
        return GuideStatistics(
            name=name,
            forwards=looked,
            backwards=looked,
            skipped=looked - round(sum(finite for _, finite, _ in rows)),
            conflicts=int(self._conflicts.get(position, 0)),
            times=tuple(steps),
            gradient_norms=tuple(total / n if n else None for total, n, _ in rows),
        )
