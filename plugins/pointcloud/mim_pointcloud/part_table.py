"""Which parts each category has, and what its files call them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from mim_core import BadSample
from numpy.typing import NDArray


@dataclass(frozen=True)
class PartTable:
    """What the files of each category call its parts.

    Attributes:
        parts: Category -> numbers of its parts, of which no two categories share one.
        ids: Category -> what its files call these, in the same order.
        width: Numbers a line, of `WIDTHS`.
        own: The ids come from the training files.
    """

    parts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ids: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    width: int = 7
    own: bool = False

    def numbers(self, name: str, ids: NDArray[np.float32]) -> NDArray[np.float32]:
        """The part numbers of a category's ids [n].

        Raises:
            BadSample: The category has no such ids.
        """
        known = np.array(self.ids[name], np.float32)
        strange = sorted({round(float(part), 3) for part in ids} - set(known.tolist()))
        if strange:
            message = f"it has the parts [{', '.join(f'{part:g}' for part in strange[:8])}]"
            whose = f"the training files of {name} have" if self.own else f"a {name} has"
            raise BadSample("", f"{message}, but {whose} {list(self.ids[name])}")
        return np.array(self.parts[name], np.float32)[np.searchsorted(known, ids)]

    def told(self, most: int = 8) -> str:
        """Categories and their parts, such as "5 of 2 categories: box 0 1 2; cone 3 4 (0 1 in its files)"."""
        rows = []
        for name, parts in list(self.parts.items())[:most]:
            same = parts == self.ids[name]
            rows.append(f"{name} {_listed(parts)}" + ("" if same else f" ({_listed(self.ids[name])} in its files)"))
        more = "; ..." if len(self.parts) > most else ""
        source = "ids of the training files" if self.own else "ShapeNetPart's numbers"
        count = sum(map(len, self.parts.values()))
        return f"{count:,} of {len(self.parts):,} categories, {source}: {'; '.join(rows)}{more}"


def _listed(numbers: tuple[int, ...]) -> str:
    return " ".join(map(str, numbers[:8])) + (" ..." if len(numbers) > 8 else "") or "none"
