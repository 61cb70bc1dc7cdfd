"""The kinds of parts: how hooks and the command line spell them, the role that one of them plays in a recipe, and what
a class of that kind must be. Base classes are named by reference, so that this imports no torch."""

from __future__ import annotations

import dataclasses
import importlib
from dataclasses import dataclass
from typing import Any

from mim_core.errors import MimError, did_you_mean


@dataclass(frozen=True)
class Kind:
    """One kind of parts.

    Attributes:
        plural: As hooks and ``mim-core list`` spell it.
        one: What one of them is called.
        role: What it is in a recipe; empty where a recipe holds none.
        base: Reference to the class that its parts inherit; empty where a part is a function.
        required: Methods that a class must define itself.
    """

    plural: str
    one: str
    role: str = ""
    base: str = ""
    required: tuple[str, ...] = ()


TABLE = (
    Kind("tokenizers", "tokenizer", "tokenizer", "mim_core.parts.tokenizer:Tokenizer", ("split", "embed")),
    Kind("maskers", "masker", "masker", "mim_core.parts.masker:Masker", ("count", "hide")),
    Kind("targets", "target", "target", "mim_core.parts.target:Target", ("make", "loss")),
    Kind("encoders", "encoder", "encoder", "mim_core.parts.encoder:Encoder", ("forward",)),
    Kind("decoders", "decoder", "decoder", "mim_core.parts.decoder:Decoder", ("forward",)),
    Kind("teachers", "teacher", "teacher", "mim_core.parts.teacher:Teacher"),
    Kind("scorers", "scorer", "scorer", "mim_core.parts.scorer:Scorer", ("forward",)),
    Kind("methods", "method", "method", "mim_core.methods.method:Method", ("build", "prepare", "forward", "encode")),
    Kind("recipes", "recipe"),
    Kind("finetunings", "fine-tuning recipe"),
    Kind("data", "data source", "data", "mim_core.data.source:DataSource", ("__len__", "read")),
    Kind("evaluations", "evaluation"),
    Kind("importers", "import format"),
    Kind("exporters", "export format"),
)


KINDS = {kind.plural: kind.one for kind in TABLE}
"""Kinds of parts, as hooks and ``mim-core list`` spell them, and what one of them is called."""


_OF_ROLE = {kind.role: kind.plural for kind in TABLE}


ROLES = {
    role: _OF_ROLE[role]
    for role in ("method", "tokenizer", "masker", "encoder", "decoder", "target", "teacher", "scorer", "data")
}
"""Role of a part in a recipe -> kind of part. A role may have a scope in front: ``depth.tokenizer``."""


INSTEAD = {("maskers", "hide"): "forward"}
"""What else may be defined for one of the required methods."""


def base_of(kind: str) -> type | None:
    """The class that parts of a kind inherit; None where a part is a function. Imports torch."""
    reference = next(known.base for known in TABLE if known.plural == kind)
    if not reference:
        return None
    module, _, name = reference.partition(":")
    base: type = getattr(importlib.import_module(module), name)
    return base


def fault_of(kind: str, part: Any) -> str | None:
    """Why this is no part of that kind, as the end of a sentence that begins with its reference; None where it is
    one."""
    base = base_of(kind)
    if base is None:
        return None if callable(part) else f"is a {type(part).__name__}, not callable"
    if not isinstance(part, type):
        return f"is a {type(part).__name__}, no class"
    if not issubclass(part, base):
        article = "an" if base.__name__[0] in "AEIOU" else "a"
        return f"is not {article} {base.__name__} subclass: it must inherit mim_core.{base.__name__}"
    lacking = [
        name
        for name in next(known.required for known in TABLE if known.plural == kind)
        if _inherited(part, base, name) and _inherited(part, base, INSTEAD.get((kind, name), name))
    ]
    if lacking:
        return f"must define {' and '.join(lacking)}"
    return _options_fault(getattr(part, "Config", None))


def _inherited(part: type, base: type, name: str) -> bool:
    """Whether the class has nothing of its own under that name; class methods are made anew at each look."""
    own, theirs = (getattr(getattr(cls, name, None), "__func__", getattr(cls, name, None)) for cls in (part, base))
    return own is theirs


def _options_fault(config: Any) -> str | None:
    if not isinstance(config, type) or not dataclasses.is_dataclass(config):
        return "has no Config, a frozen dataclass of its options"
    for option in dataclasses.fields(config):
        missing = dataclasses.MISSING
        if option.init and option.default is missing and option.default_factory is missing:
            return f"has an option {option.name!r} that has no default"
    return None


def role_kind(role: str) -> str:
    """The kind of part that fills a role.

    Raises:
        MimError: No such role.
    """
    last = role.rpartition(".")[2]
    if last not in ROLES:
        guess = did_you_mean(last, ROLES)
        raise MimError(
            f"Unknown role {role!r}.{guess}\nRoles: {', '.join(ROLES)}; with a scope in front, such as depth.tokenizer."
        )
    return ROLES[last]
