"""How well scores tell where something is abnormal: of more places than memory holds, AUROC and average precision; of
regions, their overlap (PRO); of frames, AUROC. Scores are higher where something is more abnormal; ties count as ties.
Of whole samples: `mim_core.ranking_scores`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mim_core.errors import MimError
from mim_core.ranking_scores import DIVERGED, area, auroc, descending, from_zero, precision
from mim_core.standard_errors import grouped_error


class ScoreCounts:
    """AUROC and average precision of more scores than memory holds: counted by score, as far as its upper 20 bits of
    float32 tell, which is to 1 part in 2,048. Scores within one bin are ties."""

    BINS = 2**20

    def __init__(self) -> None:
        self.counts = torch.zeros(2, self.BINS, dtype=torch.int64)

    def add(self, scores: Tensor, abnormal: Tensor) -> None:
        """Counts these too.

        Args:
            scores: Of any shape.
            abnormal: Of the same shape, bool, or 0 and others.

        Raises:
            MimError: A score is not finite, or the shapes differ.
        """
        if scores.shape != abnormal.shape:
            raise MimError(f"Scores {tuple(scores.shape)} and answers {tuple(abnormal.shape)} differ in shape.")
        if not bool(scores.isfinite().all()):
            raise MimError(DIVERGED)
        bits = (scores.float().flatten().cpu() + 0.0).view(torch.int32)  # + 0.0 makes -0.0 the same as 0.0
        ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative floats have the opposite order
        place = (ordered >> 12).long() + self.BINS // 2
        flags = abnormal.flatten().cpu().bool()
        for row, which in enumerate((flags, ~flags)):
            self.counts[row] += place[which].bincount(minlength=self.BINS)

    @property
    def share(self) -> float:
        """Of abnormal ones among all."""
        return float(self.counts[0].sum() / self.counts.sum().clamp(min=1))

    @property
    def both(self) -> bool:
        """Whether there are normal and abnormal ones."""
        return bool((self.counts.sum(dim=1) > 0).all())

    def auroc(self) -> float:
        """See `auroc`."""
        return area(*self._curve())

    def average_precision(self) -> float:
        """See `average_precision`."""
        return precision(*self._curve())

    def _curve(self) -> tuple[Tensor, Tensor]:
        if not self.both:
            raise MimError("AUROC and average precision need both kinds.")
        used = self.counts[:, self.counts.sum(dim=0) > 0].flip(1).double().cumsum(1)
        return used[0], used[1]


def pro_curve(maps: Tensor, masks: Tensor, connectivity: int = 8) -> tuple[Tensor, Tensor]:
    """The per-region overlap against the false positives (Bergmann et al., arXiv 2005.02359, section 5.1).

    Args:
        maps: [n, h, w], scores of all places of all samples, normal ones too.
        masks: [n, h, w], bool, or 0 and others: where something is abnormal. Regions are connected places;
            each weighs alike, whatever its size.
        connectivity: 8, or 4 where corners do not connect.

    Returns:
        Share of all normal places that are taken for abnormal, and the mean share of a region that is found, float64,
        from (0, 0) on, at each distinct score.

    Raises:
        MimError: Nothing is abnormal, or nothing normal; a score is not finite; scipy is missing.
    """
    if maps.shape != masks.shape:
        raise MimError(f"Score maps {tuple(maps.shape)} and masks {tuple(masks.shape)} differ in shape.")
    weight, count = region_weights(masks, connectivity)
    abnormal = masks.bool().flatten()
    normal = int((~abnormal).sum())
    if count == 0 or normal == 0:
        raise MimError(
            f"The overlap of regions needs abnormal and normal places; the masks have {count} abnormal regions and "
            f"{normal:,} normal places."
        )
    order, last = descending(maps.flatten())
    overlap = weight[order].cumsum(0)[last]
    false = (~abnormal)[order].double().cumsum(0)[last] / normal
    return from_zero(false), from_zero(overlap)


def aupro(maps: Tensor, masks: Tensor, limit: float = 0.3, connectivity: int = 8) -> float:
    """Area under `pro_curve` up to a share of false positives, divided by it: 1 is perfect.

    Args:
        maps: See `pro_curve`.
        masks: See `pro_curve`.
        limit: The largest share of false positives; the curve is cut there by interpolation.
        connectivity: See `pro_curve`.

    Raises:
        MimError: As `pro_curve`, or a limit outside (0, 1].
    """
    if not 0 < limit <= 1:
        raise MimError(f"The limit of false positives must lie in (0, 1], got {limit}.")
    return area_up_to(*pro_curve(maps, masks, connectivity), limit)


def place_errors(maps: Tensor, masks: Tensor, limit: float, groups: int) -> tuple[float | None, ...]:
    """Standard errors of `auroc` and `average_precision` of all places and of `aupro`, by the jackknife over samples,
    see `mim_core.standard_errors.jackknife_error`. Places are sorted once, and those of a part are then left out of
    the sums.

    Args:
        maps: See `pro_curve`.
        masks: See `pro_curve`.
        limit: See `aupro`.
        groups: Parts that the samples fall into.
    """
    groups, each = min(groups, len(maps)), maps[0].numel()
    order, last = descending(maps.flatten())
    part = (torch.arange(len(maps), device=maps.device) % groups).repeat_interleave(each)[order]
    overlap, flags = region_weights(masks, 8)[0][order], masks.bool().flatten()[order]
    without: list[tuple[float, float, float]] = []
    for one in range(groups):
        kept = part != one
        hits, misses = ((kept & wanted).double().cumsum(0)[last] for wanted in (flags, ~flags))
        covered = (overlap * kept).cumsum(0)[last]
        true, false = hits / hits[-1], misses / misses[-1]
        below = float(torch.trapezoid(from_zero(true), from_zero(false)))
        exact = (hits / (hits + misses)).nan_to_num(nan=0.0)
        steps = true.diff(prepend=true.new_zeros(1))
        curve = area_up_to(from_zero(false), from_zero(covered / covered[-1]), limit)
        without.append((below, float((steps * exact).sum()), curve))
    return tuple(grouped_error(list(values)) for values in zip(*without, strict=True))


def area_up_to(false: Tensor, overlap: Tensor, limit: float) -> float:
    """Area under a curve from 0 to a limit, divided by the limit."""
    inside = false <= limit
    x, y = false[inside], overlap[inside]
    if not bool(inside.all()):
        after = int(inside.sum())
        share = (limit - false[after - 1]) / (false[after] - false[after - 1])
        at = overlap[after - 1] + share * (overlap[after] - overlap[after - 1])
        x, y = torch.cat([x, x.new_full((1,), limit)]), torch.cat([y, at[None]])
    return float(torch.trapezoid(y, x)) / limit


def frame_auroc(scores: Sequence[Tensor], abnormal: Sequence[Tensor]) -> tuple[float, float | None]:
    """AUROC of the frames of several sequences: of all frames together (micro), and the mean over the sequences that
    hold both kinds (macro; None where none does).

    Args:
        scores: Of each sequence's frames, [t] each.
        abnormal: [t] each, bool, or 0 and 1.

    Raises:
        MimError: All frames together are of one kind.
    """
    micro = auroc(torch.cat(list(scores)), torch.cat(list(abnormal)))
    mixed = [auroc(s, a) for s, a in zip(scores, abnormal, strict=True) if 0 < int(a.bool().sum()) < len(a)]
    return micro, sum(mixed) / len(mixed) if mixed else None


def region_weights(masks: Tensor, connectivity: int) -> tuple[Tensor, int]:
    """What each place adds to the mean overlap when it is found, float64 [n * h * w]; and how many regions there
    are.

    Raises:
        MimError: scipy is missing, or the connectivity is neither 4 nor 8.
    """
    try:
        from scipy import ndimage
    except ImportError as error:
        raise MimError('Regions of masks need scipy: pip install "mim-core[anomaly]"') from error
    if connectivity not in (4, 8):
        raise MimError(f"Places connect to 4 or 8 others, not {connectivity}.")
    structure = ndimage.generate_binary_structure(2, 1 if connectivity == 4 else 2)
    weights, total = [], 0
    for mask in masks.bool().cpu().numpy():
        labels, count = ndimage.label(mask, structure=structure)
        numbers = torch.from_numpy(labels).long().flatten()
        sizes = numbers.bincount(minlength=count + 1).double()
        share = 1 / sizes.clamp(min=1)
        share[0] = 0
        weights.append(share[numbers])
        total += count
    return torch.cat(weights).to(masks.device) / max(total, 1), total
