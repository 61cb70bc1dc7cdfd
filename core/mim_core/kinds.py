"""What a part of each kind must be, looked at when it is first needed: what is missing is said of the part, by name,
and not of the line where it would be missed."""

from __future__ import annotations

import dataclasses
from typing import Any

from mim_core.data import DataSource
from mim_core.decoder import Decoder
from mim_core.encoder import Encoder
from mim_core.masker import Masker
from mim_core.method import Method
from mim_core.target import Target
from mim_core.tokenizer import Tokenizer

BASES: dict[str, type] = {
    "tokenizers": Tokenizer,
    "maskers": Masker,
    "targets": Target,
    "encoders": Encoder,
    "decoders": Decoder,
    "methods": Method,
    "data": DataSource,
}
"""Kinds whose parts are classes, and what they inherit."""
GIVEN: dict[str, tuple[str, ...]] = {
    "tokenizers": ("split", "embed"),
    "maskers": ("count", "hide"),
    "targets": ("make", "loss"),
    "encoders": ("forward",),
    "decoders": ("forward",),
    "methods": ("build", "prepare", "forward", "encode"),
    "data": ("__len__", "read"),
}
"""What a class of each kind must give itself."""
INSTEAD = {("maskers", "hide"): "forward"}
"""What else may be given for one of these."""


def fault_of(kind: str, part: Any) -> str | None:
    """Why this is no part of that kind, as the end of a sentence that begins with its reference; None where it is
    one."""
    if kind not in BASES:
        return None if callable(part) else f"is a {type(part).__name__}, nothing to call"
    base = BASES[kind]
    if not isinstance(part, type):
        return f"is a {type(part).__name__}, no class"
    if not issubclass(part, base):
        return f"is no {base.__name__}: it must inherit mim_core.{base.__module__.rpartition('.')[2]}.{base.__name__}"
    lacking = [
        name
        for name in GIVEN[kind]
        if _inherited(part, base, name) and _inherited(part, base, INSTEAD.get((kind, name), name))
    ]
    if lacking:
        return f"gives no {' and no '.join(lacking)}, which every {base.__name__} must"
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
