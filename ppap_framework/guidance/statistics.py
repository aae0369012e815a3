"""Counts and gradient norms of guidance, for the record of a run."""

from __future__ import annotations

from collections.abc import Sequence

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
        self._forwards = self._backwards = 0
        self._skipped: Tensor | int = 0

    def guide(
        self, position: int, time: float, norms: Tensor, finite: Tensor, pulls: Tensor
    ) -> None:
        """Add one guide's gradients at one step, t / T = `time`. `norms`, the mask `finite` and
        `pulls` (root mean square change of eps) are (B, 1, 1, 1).
        """
        images, none = norms.new_full((), len(norms)), norms.new_zeros(())
        norm, pull = (torch.where(finite, figure, none).sum() for figure in (norms, pulls))
        figures = torch.stack([images, finite.sum().to(norms), norm, pull, none])
        steps = self._guides.setdefault(position, {})
        steps[time] = steps[time] + figures if time in steps else figures

    def conflicts(self, position: int, time: float, changed: Tensor) -> None:
        """Add a guide's pulls that lost a component in that step: a mask (B, 1, 1, 1)."""
        self._guides[position][time][-1] += changed.sum()

    def denoiser(self, forwards: int, backwards: int = 0, skipped: Tensor | int = 0) -> None:
        """Add calls of the denoiser, in images; of `skipped`, (), the gradient was left out."""
        self._forwards += forwards
        self._backwards += backwards
        self._skipped = self._skipped + skipped

    @classmethod
    def joined(cls, tallies: Sequence[Tally]) -> Tally:
        """The counts of several processes."""
        whole = cls()
        for tally in tallies:
            whole.denoiser(tally._forwards, tally._backwards, int(tally._skipped))
            for position, steps in tally._guides.items():
                own = whole._guides.setdefault(position, {})
                for time, figures in steps.items():
                    own[time] = own.get(time, 0) + figures.cpu()
        return whole

    def read(self, names: Sequence[str]) -> GuidanceStatistics:
        """The counts, for guides of these names."""
        return GuidanceStatistics(
            guides=tuple(self._read(name, self._guides.get(k, {})) for k, name in enumerate(names)),
            denoiser_forwards=self._forwards,
            denoiser_backwards=self._backwards,
            denoiser_skipped=int(self._skipped),
        )

    @staticmethod
    def _read(name: str, steps: dict[float, Tensor]) -> GuideStatistics:
        rows = torch.stack(list(steps.values())).tolist() if steps else []
        seen, finite, changed = (round(sum(row[k] for row in rows)) for k in (0, 1, 4))
        return GuideStatistics(
            name=name,
            forwards=seen,
            backwards=seen,
            skipped=seen - finite,
            conflicts=changed,
            times=tuple(steps),
            gradient_norms=tuple(norm / n if n else None for _, n, norm, *_ in rows),
            pulls=tuple(pull / n if n else 0.0 for _, n, _, pull, _ in rows),
        )
