"""Features of files as tables of numbers, and what lies near what."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mim_core.data.source import Sample
from mim_core.disk import replaced
from mim_core.errors import MimError
from mim_core.evaluation.features import pooled
from mim_core.methods.method import Method
from mim_core.text import shown

FORMATS = (".npz", ".parquet")


def question(method: Method, pool: str, units: bool) -> Callable[[Sample], dict[str, Tensor]]:
    """What a method is asked for features: one vector for each sample [B, D], and with ``units`` one for each unit
    [B, N, D]."""

    def ask(sample: Sample) -> dict[str, Tensor]:
        encoded = method.encode(sample)
        return {"features": pooled(encoded, pool), **({"units": encoded.tokens} if units else {})}

    return ask


def check_format(path: Path) -> None:
    """Raises MimError for a file that cannot be written: its ending, or a library that is missing."""
    if path.suffix not in FORMATS:
        raise MimError(f"--out {path}: features are written as {' or '.join(FORMATS)}; the ending says which.")
    if path.is_dir():
        raise MimError(f"--out {path} is a folder. Name a file, such as {path / 'features.npz'}.")
    if path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise MimError('Parquet needs pyarrow: pip install "mim-core[parquet]"; or write an .npz.') from error


def write(path: Path, names: Sequence[str], values: dict[str, Tensor], skipped: dict[str, str]) -> None:
    """Names and features, whole or not at all.

    Args:
        path: ``.npz``: arrays "names" [n], "features" float32 [n, D], "units" [n, N, D], and "skipped" [k, 2], the
            names of files that cannot be used and why. ``.parquet``: a row for each sample, columns of these names,
            "units" as one list with N and D in the schema's metadata.
        names: Of the samples.
        values: Their features.
        skipped: Files that cannot be used.

    Raises:
        OSError: It cannot be written.
    """
    arrays = {name: value.numpy() for name, value in values.items()}
    with replaced(path) as file:
        if path.suffix == ".npz":
            left = np.array(list(skipped.items()), dtype=np.str_).reshape(-1, 2)
            np.savez(file, names=np.array(names, dtype=np.str_), skipped=left, **arrays)  # type: ignore[arg-type]
        else:
            _parquet(file, names, arrays, skipped)


def _parquet(file: Any, names: Sequence[str], arrays: dict[str, Any], skipped: dict[str, str]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    columns: dict[str, Any] = {"name": pa.array(list(map(shown, names)), pa.string())}
    shapes = {}
    for name, array in arrays.items():
        flat = pa.array(np.ascontiguousarray(array).reshape(-1), pa.float32())
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(array.shape[1:])))
        shapes[f"{name}.shape"] = " ".join(map(str, array.shape[1:]))
    metadata = {**shapes, "skipped": "\n".join(f"{shown(name)}\t{shown(why)}" for name, why in skipped.items())}
    parquet.write_table(pa.table(columns).replace_schema_metadata(metadata), file)


def neighbours(features: Tensor, count: int, rows: int = 1024) -> Iterator[tuple[int, list[tuple[int, float]]]]:
    """Of each sample the nearest others by cosine similarity, the nearest first.

    Args:
        features: [n, D].
        count: How many; fewer where there are not so many others.
        rows: Samples at once.
    """
    unit = F.normalize(features.float(), dim=1)
    count = min(count, len(unit) - 1)
    for first in range(0, len(unit), rows):
        alike = unit[first : first + rows] @ unit.T
        own = torch.arange(len(alike))
        alike[own, own + first] = -torch.inf
        values, ids = alike.topk(count, dim=1)
        for row in range(len(alike)):
            yield first + row, list(zip(ids[row].tolist(), values[row].tolist(), strict=True))
