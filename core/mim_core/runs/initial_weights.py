"""What a new run takes over from the weights of another: ``pretrain --init``."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
from mim_core.errors import MimError
from mim_core.methods.method import Method
from mim_core.methods.supervised import Supervised
from mim_core.parts.position import FlatPosition
from mim_core.parts.position import LearnedPosition
from mim_core.parts.position import SinCosPosition
from mim_core.parts.position import resampled
from pathlib import Path
from torch import Tensor
from torch import nn



PARTS = "tokenizer.parts."
"""Names of the weights of joined tokenizers begin so; the name of a segment follows."""


def take_weights(method: Method, other: nn.Module, path: Path) -> list[str]:
    """Copies another method's weights for those of this one with the same name and shape; at least the encoder's must
    all be there.

    Positions on another grid are interpolated. Of joined tokenizers, segments that the
    other lacks start from their drawn values, as heads do. A table of vectors, one per id, may have more rows here:
    the further ones stay as drawn.

    Args:
        method: Takes the weights.
        other: Gives them.
        path: Where they are from, for errors.

    Returns:
        What starts fresh, and what of the other is not used, in words.

    Raises:
        MimError: A weight of the encoder, or of a tokenizer that both have, is missing or has another shape.
    """
    own, theirs = method.state_dict(), other.state_dict()
    fixed = _computed(method)
    trained = [name for name in fixed if name in theirs and name not in _computed(other)]
    if trained:
        raise MimError(
            f"--init {path}: its positions are trained, and this recipe computes its own, in: {', '.join(trained)}. "
            "To take them: --encoder.position learned (for a decoder's, --decoder.position learned)."
        )
    fixed |= _computed(other) - set(own)
    kept = {name for name in fixed if name in own}
    moved = positions_at(method, other, own, theirs)
    shared = _segments(own) & _segments(theirs)
    taken: dict[str, Tensor] = {}
    said: list[str] = []
    fresh: list[str] = []
    faults: list[str] = []
    for name, value in own.items():
        if name in kept:
            if name in moved:
                taken[name] = moved[name]
                said.append(f"{name}: interpolated to this recipe's grid")
            continue
        given = theirs.get(name)
        if given is not None and given.shape == value.shape:
            taken[name] = given
        elif name in moved:
            taken[name] = moved[name]
            said.append(f"{name}: interpolated to this recipe's grid")
        elif given is not None and _has_more_rows(method, name, given):
            taken[name] = value.clone()
            taken[name][: len(given)] = given.to(value)
            said.append(f"{name}: {len(given):,} of {len(value):,} vectors are from there, the others are fresh")
        else:
            (faults if _is_needed(name, shared) else fresh).append(name)
    if faults or (_segments(own) and not shared):
        raise _misfit(path, faults, own, theirs)
    method.load_state_dict({**own, **taken})
    left = [name for name in theirs if name not in taken and name not in fixed]
    said += [f"starts fresh: {_grouped(fresh, set(own) - fixed)}"] if fresh else []
    return said + ([f"not used: {_grouped(left, set(theirs) - fixed)}"] if left else [])


def _computed(method: nn.Module) -> set[str]:
    """Names of tables of positions that follow from the units, and are no weights."""
    kinds = (SinCosPosition, FlatPosition)
    return {f"{name}.table" for name, module in method.named_modules() if isinstance(module, kinds)}


def positions_at(
    method: nn.Module, other: nn.Module, own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Tables of positions that both methods have on different grids: the other's, interpolated to this one's."""
    found: dict[str, Tensor] = {}
    for name, value in own.items():
        if name in theirs and theirs[name].shape != value.shape:
            table = _on_our_grid(method, other, name, theirs[name])
            found |= {} if table is None else {name: table}
    return found


def _on_our_grid(method: nn.Module, other: nn.Module, name: str, given: Tensor) -> Tensor | None:
    """The other's table of positions, interpolated to the grid of this method's; None where that cannot be."""
    place, _, last = name.rpartition(".")
    here, there = method.get_submodule(place), other.get_submodule(place)
    kinds = (SinCosPosition, LearnedPosition)
    if last != "table" or not isinstance(here, kinds) or not isinstance(there, kinds):
        return None
    own, new = _grid(there), _grid(here)
    if own is None or new is None or len(own) != len(new) or given.shape[-1] != here.table.shape[-1]:
        return None
    return resampled(given, own, new)


def _grid(position: SinCosPosition | LearnedPosition) -> tuple[int, ...] | None:
    """The only grid of a table; None where units of several, or of none, share it."""
    if isinstance(position, LearnedPosition):
        return position.grid
    return position.grids[0] if len(position.grids) == 1 else None


def _segments(names: Iterable[str]) -> set[str]:
    """Segments of joined tokenizers that have weights."""
    return {name.removeprefix(PARTS).partition(".")[0] for name in names if name.startswith(PARTS)}


def _is_needed(name: str, shared: set[str]) -> bool:
    """Whether a run cannot start without this weight: the encoder's, and those of tokenizers that both have; not the
    positions of a segment that is new."""
    for prefix in (PARTS, "encoder.position.parts."):
        if name.startswith(prefix):
            return name.removeprefix(prefix).partition(".")[0] in shared
    return name.startswith(("encoder.", "tokenizer."))


def _has_more_rows(method: nn.Module, name: str, given: Tensor) -> bool:
    """Whether this is a table of vectors by id, and the other has the first of its rows."""
    module, _, last = name.rpartition(".")
    table = method.get_submodule(module)
    if not isinstance(table, nn.Embedding) or last != "weight" or given.ndim != 2:
        return False
    return len(given) < len(table.weight) and given.shape[1] == table.weight.shape[1]


def _misfit(path: Path, faults: list[str], own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> MimError:
    if not faults:
        there, here = (", ".join(sorted(_segments(names))) for names in (theirs, own))
        return MimError(f"--init {path}: it has no tokenizer of this recipe's. It has {there or 'one'}; here: {here}.")
    shown = [
        f"{name} is {tuple(theirs[name].shape)} there and {tuple(own[name].shape)} here" if name in theirs else name
        for name in faults[:5]
    ]
    parts = sorted(_segments(faults))
    if len(parts) == 1 and all(name.startswith(PARTS) for name in faults) and len(_segments(own)) > 1:
        return MimError(
            f"--init {path}: its tokenizer of {parts[0]} does not fit this recipe's, in: {', '.join(shown)}.\n"
            f"To start without that modality: --use {parts[0]}.tokenizer=none"
        )
    return MimError(f"--init {path}: its encoder does not fit this recipe's, in: {', '.join(shown)}.")


def _grouped(names: Iterable[str], every: Iterable[str]) -> str:
    """Names of weights; one name for all of a tokenizer, a head, or another part, where all of it is named."""
    named, every = dict.fromkeys(names), list(every)
    found: dict[str, None] = {}
    for name in named:
        parts = name.split(".")
        groups = [".".join(parts[:depth]) for depth in range(1, len(parts))]
        whole = (group for group in groups if all(n in named for n in every if n.startswith(f"{group}.")))
        found[next(whole, name)] = None
    more = f" and {len(found) - 12} more" if len(found) > 12 else ""
    return ", ".join(list(found)[:12]) + more


# ---- weights and data ------------------------------------------------------------------------------------------------


def take_encoder(method: Supervised, other: Method, path: Path) -> list[str]:
    """Copies tokenizer and encoder of another method into this one, by name and strictly; learned tokens that only one
    of them has, such as a class token, are left as they are.

    Returns:
        What was left, in words, for the screen.

    Raises:
        MimError: A weight is missing, not wanted, or of another shape; names it.
    """
    own, theirs = ({n: v for n, v in m.state_dict().items() if _is_kept(n)} for m in (method, other))
    resized = positions_at(method, other, own, theirs)
    theirs.update(resized)
    faults = [
        f"{name} is {tuple(theirs[name].shape)} there and {tuple(value.shape)} here"
        for name, value in own.items()
        if name in theirs and theirs[name].shape != value.shape
    ]
    added = [name for name in own if name not in theirs]
    dropped = [name for name in theirs if name not in own]
    faults += [f"{name} is not there" for name in added if not _is_token(own[name])]
    faults += [f"{name} is not wanted here" for name in dropped if not _is_token(theirs[name])]
    if faults:
        more = f"\n  ... and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise MimError(
            f"The weights of {path} do not fit:\n  " + "\n  ".join(faults[:8]) + more + "\nTokenizer and encoder must "
            "have the sizes that they were pre-trained with."
        )
    method.load_state_dict({name: value for name, value in theirs.items() if name in own}, strict=False)
    said = [f"new, and trained from its drawn values: {', '.join(added)}"] if added else []
    said += [f"interpolated to the grid of this input size: {', '.join(resized)}"] if resized else []
    return said + ([f"in {path} and not used: {', '.join(dropped)}"] if dropped else [])


def _is_kept(name: str) -> bool:
    return name.startswith(("tokenizer.", "encoder."))


def _is_token(value: Tensor) -> bool:
    """A learned token [1, 1, D]: every axis but the last has length 1, as `Method.parameter_groups` has it."""
    return value.ndim > 2 and value.numel() == value.shape[-1]
