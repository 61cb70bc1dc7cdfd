"""Every other unit of the grid, like the fields of a chessboard."""

from dataclasses import dataclass

from mim_core import Masker, bits


class CheckerMasker(Masker):
    """Hides one colour of the board; the sample's key tells which."""

    @dataclass(frozen=True)
    class Config:
        """Has no options."""

    def count(self, layout):
        """Half of the units."""
        if layout.grid is None or layout.grid[-1] % 2:
            raise ValueError("the checker needs a grid whose last axis is even")
        return layout.count // 2

    def hide(self, layout, draw, scores):
        """bool [B, N]."""
        return layout.coordinates(draw.key.device).long().sum(dim=1) % 2 == bits(draw.key, "checker", 1) % 2
