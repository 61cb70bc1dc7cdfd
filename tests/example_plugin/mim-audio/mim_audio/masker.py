"""Masks that know which axis is time."""

from dataclasses import dataclass

import torch
from mim_core import Masker, bits, check_ratio, hide_first


class TimeSpanMasker(Masker):
    """Hides all frequencies during whole spans of time; the first starts anywhere, and one may wrap around."""

    @dataclass(frozen=True)
    class Config:
        """Options of the time span masker."""

        ratio: float = 0.5
        """Share of the spans that is hidden, rounded to a whole number of them, never none and never all."""
        span: int = 2
        """Units of time in a span; it must divide those of the layout."""

    def __init__(self, config):
        super().__init__(config)
        check_ratio(config.ratio)

    def spans(self, layout):
        """How many there are, and how many are hidden."""
        span = self.config.span
        if layout.grid is None or span < 1 or layout.grid[0] % span or layout.grid[0] == span:
            where = "free units" if layout.grid is None else f"{layout.grid[0]} units of time"
            raise ValueError(f"spans of {span} do not divide {where} into two or more")
        count = layout.grid[0] // span
        return count, min(max(1, round(count * self.config.ratio)), count - 1)

    def count(self, layout):
        """Units that each row hides."""
        total, hidden = self.spans(layout)
        return layout.count // total * hidden

    def hide(self, layout, draw, scores):
        """bool [B, N]."""
        total, hidden = self.spans(layout)
        times, span = layout.grid[0], self.config.span
        spans = hide_first(bits(draw.key, "audio.spans", total), hidden)
        start = bits(draw.key, "audio.start", 1) % times
        which = (torch.arange(times, device=draw.key.device) - start) % times // span
        return spans.gather(1, which).repeat_interleave(layout.count // times, dim=1)
