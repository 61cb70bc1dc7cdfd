"""What a new run takes over from the weights of another: ``pretrain --init``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from mim_core.errors import MimError
from mim_core.methods.method import Method
from mim_core.methods.supervised import Supervised
from mim_core.parts.position import CoordinatePosition, TablePosition
from mim_core.parts.teacher import Teacher
from mim_core.text import times

PARTS = "tokenizer.parts."
"""Names of the weights of joined tokenizers begin so; the name of a segment follows."""


def take_weights(method: Method, other: nn.Module, path: Path) -> list[str]:
    """Copies another method's weights for those of this one with the same name and shape; at least the encoder's must
    all be there.

    Positions on another grid are moved to this one's, see `match_positions`. Of joined tokenizers, segments that the
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
    places = match_positions(method, other)
    if places.refused:
        raise MimError(f"--init {path}: " + " ".join(places.refused))
    shared = _segments(own) & _segments(theirs)
    taken: dict[str, Tensor] = {}
    notes: list[str] = [*places.notes]
    fresh: list[str] = []
    faults: list[str] = []
    for name, value in own.items():
        given = theirs.get(name)
        if name in places.kept:
            continue
        if name in places.tables:
            taken[name] = places.tables[name]
        elif given is not None and given.shape == value.shape:
            taken[name] = given
        elif given is not None and _has_more_rows(method, name, given):
            taken[name] = value.clone()
            taken[name][: len(given)] = given.to(value)
            notes.append(f"{name}: {len(given):,} of {len(value):,} vectors are from there, the others are fresh")
        else:
            (faults if _is_needed(name, shared) else fresh).append(name)
    if faults or (_segments(own) and not shared):
        raise _misfit(path, faults, own, theirs)
    method.load_state_dict({**own, **taken})
    _filled(method, set(taken) | places.kept)
    fresh = _without_copies(method, taken, fresh, notes)
    left = [name for name in theirs if name not in taken and name not in places.passed]
    notes += [f"starts fresh: {_grouped(fresh, set(own) - places.kept)}"] if fresh else []
    return notes + ([f"not used: {_grouped(left, set(theirs) - places.passed)}"] if left else [])


def copy_to_teachers(method: nn.Module, taken: Iterable[str]) -> list[str]:
    """Makes teachers that begin as copies of a student copies of it again, where none of their weights were taken.

    Args:
        method: Has its weights.
        taken: Names of those that were given to it.

    Returns:
        Their names.
    """
    taken = list(taken)
    teachers = {name: part for name, part in method.named_modules() if isinstance(part, Teacher)}
    free = {name: part for name, part in teachers.items() if not any(each.startswith(f"{name}.") for each in taken)}
    return [name for name, part in free.items() if part.copy_again(method)]


def _without_copies(method: nn.Module, taken: Iterable[str], fresh: list[str], notes: list[str]) -> list[str]:
    """What starts fresh, without teachers that are copies of the student; these are noted."""
    copied = copy_to_teachers(method, taken)
    notes += [f"{name}: a copy of the student that starts so" for name in copied]
    return [name for name in fresh if not name.startswith(tuple(f"{each}." for each in copied))]


@dataclass
class Places:
    """What a new run takes over of the positions of another.

    Attributes:
        tables: Values for this method's tables, by the names of its weights.
        kept: Its computed tables that stay as they are, by name.
        passed: The other's tables that are dealt with, or follow from its units, by name.
        notes: What is not simply the same table, in words.
        refused: Trained positions that this method has no place for, in words, with the way around.
        unlike: Computed positions of different kinds: path -> (here, there).
    """

    tables: dict[str, Tensor] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    passed: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    unlike: dict[str, tuple[str, str]] = field(default_factory=dict)


def match_positions(method: nn.Module, other: nn.Module) -> Places:
    """Puts the other method's positions beside those of this one. Tables of one kind are taken, and moved to this one's
    grid by their rule; trained tables start from computed ones too."""
    places = Places()
    here, other_tables = _positions(method), _positions(other)
    for path, own in here.items():
        if own.computed:
            places.kept |= {f"{path}.{name}" for name in own.state_dict()}
    for path, theirs in other_tables.items():
        if theirs.computed:
            places.passed |= {f"{path}.{name}" for name in theirs.state_dict()}
    for path in dict.fromkeys((*here, *other_tables)):
        if path in here and path in other_tables:
            _match(path, here[path], other_tables[path], places)
        else:
            _match_one(path, here.get(path), other_tables.get(path), (method, other), places)
    return places


def _positions(method: nn.Module) -> dict[str, TablePosition]:
    return {name: module for name, module in method.named_modules() if isinstance(module, TablePosition)}


def _match(path: str, own: TablePosition, theirs: TablePosition, places: Places) -> None:
    """One path that both have."""
    a, b = own.state_dict(), theirs.state_dict()
    if any(name in b and value.shape[-1] != b[name].shape[-1] for name, value in a.items()):
        return  # another width: they belong to parts that are not taken
    if own.computed and not theirs.computed:
        places.refused.append(
            f"{path} is trained there ({theirs.kind}), and this recipe computes its own ({own.kind}). "
            f"To take them: {_option(path)} {theirs.kind}."
        )
    elif own.computed and own.kind != theirs.kind:
        places.unlike[path] = (own.kind, theirs.kind)
        places.notes.append(
            f"{path}: this recipe's positions are {own.kind}; the {theirs.kind} ones there are not used. To take them: "
            f"{_option(path)} {theirs.kind}"
        )
    elif own.kind == theirs.kind or (theirs.computed and set(a) == set(b)):
        _move(path, own, theirs, places)


def _move(path: str, own: TablePosition, theirs: TablePosition, places: Places) -> None:
    """Tables that fit: as they are, or moved to this method's units. Those that have no way there are left, and are
    found missing."""
    try:
        moved = {name: value.detach() for name, value in theirs.tables_at(own.units).items()}
    except ValueError:
        return
    state = own.state_dict()
    if any(state[name].shape != value.shape for name, value in moved.items()):
        return
    places.tables |= {f"{path}.{name}": value for name, value in moved.items()}
    places.kept -= {f"{path}.{name}" for name in moved}
    grids = {name: (old, here) for name, old, here in _other_grids(theirs, own)}
    for name, (old, here) in grids.items():
        where = f"{path} of {name}" if name else path
        places.notes.append(f"{where}: trained at a grid of {old}, here {here}; they {theirs.moved(own.units)}")
    alike = all(torch.allclose(state[name].float(), value.float(), atol=1e-4) for name, value in moved.items())
    if own.computed and not grids and theirs.units.names == own.units.names and not alike:
        places.notes.append(f"{path}: taken as they are there, interpolated from another grid")
    if own.kind != theirs.kind:
        places.notes.append(f"{path}: {own.kind} here, and start from the {theirs.kind} ones there")


def _other_grids(theirs: TablePosition, own: TablePosition) -> Iterator[tuple[str, str, str]]:
    """The segments of both whose grids differ: name, grid there, grid here."""
    here = dict(zip(own.units.names, own.units.grids, strict=True))
    for name, grid in zip(theirs.units.names, theirs.units.grids, strict=True):
        if name in here and here[name] != grid:
            yield name, times(grid or ()), times(here[name] or ())


def _match_one(
    path: str,
    own: TablePosition | None,
    theirs: TablePosition | None,
    methods: tuple[nn.Module, nn.Module],
    places: Places,
) -> None:
    """One path at which only this method, or only the other, has a table."""
    parent, _, _ = path.rpartition(".")
    module = _at(methods[1] if own is not None else methods[0], path)
    if _at(methods[1], parent) is None or _at(methods[0], parent) is None:
        return  # the whole part is new, or is not used: said of the part
    if own is not None and own.computed:
        kinds = {part.kind for part in module.modules() if isinstance(part, TablePosition)} if module else set()
        kinds |= {"coordinates"} if isinstance(module, CoordinatePosition) else set()
        if module is not None and kinds - {"sincos", "sincos-first", "flat"}:
            places.refused.append(
                f"{path} is trained there ({', '.join(sorted(kinds))}), and this recipe computes its own ({own.kind}). "
                f"To take them: {_option(path)} {sorted(kinds)[0]}."
            )
        elif module is None:
            places.notes.append(f"{path}: {own.kind} here; there were none")
    if theirs is not None and theirs.computed and module is None:
        places.notes.append(f"{path}: {theirs.kind} there; none here")


def _at(method: nn.Module, path: str) -> nn.Module | None:
    """The module at a path; None where there is none."""
    return dict(method.named_modules()).get(path)


def _option(path: str) -> str:
    """The option that chooses the kind of positions of a part."""
    return "--encoder.position" if path.startswith("encoder.") else "--decoder.position"


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
        others, here = (", ".join(sorted(_segments(names))) for names in (theirs, own))
        return MimError(f"--init {path}: it has no tokenizer of this recipe's. It has {others or 'one'}; here: {here}.")
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
    grouped: dict[str, None] = {}
    for name in named:
        parts = name.split(".")
        groups = [".".join(parts[:depth]) for depth in range(1, len(parts))]
        whole = (group for group in groups if all(n in named for n in every if n.startswith(f"{group}.")))
        grouped[next(whole, name)] = None
    more = f" and {len(grouped) - 12} more" if len(grouped) > 12 else ""
    return ", ".join(list(grouped)[:12]) + more


# ---- weights and data ------------------------------------------------------------------------------------------------


def take_encoder(method: Supervised, other: nn.Module, path: Path) -> list[str]:
    """Copies tokenizer and encoder of another method into this one, by name and strictly. Positions on another grid are
    moved to this one's, see `match_positions`; learned tokens that only one of them has, such as a class token, are
    left as they are, and so is what the method does without (`Supervised.replaces`) and a tokenizer that it has not.

    Returns:
        What was left, in words, for the screen.

    Raises:
        MimError: A weight is missing, not wanted, or of another shape; names it.
    """
    own, theirs = ({n: v for n, v in m.state_dict().items() if _is_kept(n)} for m in (method, other))
    places = match_positions(method, other)
    refused = [line for line in places.refused if _is_kept(line)]
    theirs.update({name: value for name, value in places.tables.items() if name in own})
    faults = [
        f"{name} is {tuple(theirs[name].shape)} there and {tuple(value.shape)} here"
        for name, value in own.items()
        if name in theirs and theirs[name].shape != value.shape
    ]
    faults += [f"{path}: {a} here, {b} there" for path, (a, b) in places.unlike.items() if _is_kept(path)] + refused
    added = [name for name in own if name not in theirs]
    dropped = [name for name in theirs if name not in own]
    faults += [f"{name} is not there" for name in added if not _is_token(own[name])]
    spare = _segments(theirs) - _segments(own) if _segments(own) else set()
    faults += [
        f"{name} is not wanted here"
        for name in dropped
        if not _is_token(theirs[name]) and not name.startswith(method.replaces) and not _is_of(name, spare)
    ]
    if faults:
        more = f"\n  ... and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise MimError(
            f"The weights of {path} do not fit:\n  " + "\n  ".join(faults[:8]) + more + "\nTokenizer and encoder must "
            "be those of pre-training; their input size alone may be another."
        )
    taken = {name: value for name, value in theirs.items() if name in own}
    method.load_state_dict(taken, strict=False)
    _filled(method, {*taken, *places.kept})
    notes = [f"new, and trained from its drawn values: {', '.join(added)}"] if added else []
    notes += [line for line in places.notes if _is_kept(line)]
    return notes + ([f"in {path} and not used: {', '.join(dropped)}"] if dropped else [])


def _filled(method: nn.Module, names: set[str]) -> None:
    """Parts whose weights should be those of a run that is gone have them, where all of them are among the names."""
    for path, module in method.named_modules():
        own = {f"{path}.{name}" for name in module.state_dict()}
        if getattr(module, "filled", None) is False and own <= names:
            module.filled = True


def take_standing(method: nn.Module, other: nn.Module) -> list[str]:
    """Copies into parts that stand still and whose weights are gone, such as a tokenizer that names units, what another
    method holds of them; nothing that learns. Which they are, in words."""
    theirs, taken = other.state_dict(), list[str]()
    learned = {name for name, value in method.named_parameters() if value.requires_grad}
    for path, module in method.named_modules():
        own = {f"{path}.{name}": value.shape for name, value in module.state_dict().items()}
        if getattr(module, "filled", None) is False and all(
            name in theirs and theirs[name].shape == shape for name, shape in own.items()
        ):
            method.load_state_dict({name: theirs[name] for name in own if name not in learned}, strict=False)
            module.filled = True
            taken.append(path)
    return [f"stands still, as the run holds it: {', '.join(taken)}"] if taken else []


def _is_of(name: str, segments: set[str]) -> bool:
    """Whether a weight belongs to one of these segments: its tokenizer, or its positions."""
    starts = (PARTS, "encoder.position.parts.")
    return any(name.startswith(start) and name.removeprefix(start).partition(".")[0] in segments for start in starts)


def _is_kept(name: str) -> bool:
    return name.startswith(("tokenizer.", "encoder."))


def _is_token(value: Tensor) -> bool:
    """A learned token [1, 1, D]: every axis but the last has length 1, as `Method.parameter_groups` has it."""
    return value.ndim > 2 and value.numel() == value.shape[-1]
