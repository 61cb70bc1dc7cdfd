"""A role taken out of a run: a head, or one of several tokenizers with all that asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from typing import TYPE_CHECKING, Any

from mim_core.errors import MimError, nearest

if TYPE_CHECKING:
    from mim_core.recipe import ResolvedRun

DROPPED = ("tokenizer", "target", "decoder")
"""Roles that may be taken out, each with a scope in front."""


def drop(run: ResolvedRun, role: str) -> ResolvedRun:
    """The run without a role: ``depth.target`` is one head less; ``depth.tokenizer`` takes the modality out, and the
    heads that ask for it; ``depth.decoder`` gives the head the decoder that the others have.

    Raises:
        MimError: No such role, one that a run cannot do without, or the last tokenizer or target.
    """
    scope, _, last = role.rpartition(".")
    if role not in run.parts:
        near = nearest(role, run.parts)
        guess = f" Did you mean {near!r}?" if near else ""
        raise MimError(f"There is no role {role!r} to take out.{guess}\nThis run has: {', '.join(run.parts)}.")
    if last not in DROPPED or (last == "decoder" and not scope):
        raise MimError(f"A run cannot do without {role!r}. Only tokenizers, targets and decoders of a scope can go.")
    gone = {role}
    segments: Mapping[str, str] = getattr(run.parts["method"].options, "segments", {}) if "method" in run.parts else {}
    heads = [name.rpartition(".")[0] for name in run.parts if name.rpartition(".")[2] == "target"]
    lost = {name for name in heads if last == "tokenizer" and segments.get(name, name) == scope}
    lost |= {scope} if last == "target" else set()
    gone |= {
        f"{name}.{part}".lstrip(".") for name in lost for part in ("target", "decoder") if name or part == "target"
    }
    parts = {name: part for name, part in run.parts.items() if name not in gone}
    for needed in ("tokenizer", "target"):
        if not any(name.rpartition(".")[2] == needed for name in parts):
            raise MimError(f"Without {role} this run has no {needed} left; it needs one.")
    if "method" in parts:
        parts["method"] = replace(parts["method"], options=_without(parts["method"].options, lost))
    dropped = tuple(dict.fromkeys([*run.dropped, *(name for name in run.parts if name in gone)]))
    return replace(run, parts=parts, dropped=dropped)


def _without(options: Any, heads: set[str]) -> Any:
    """The method's options without what they say of these heads."""
    if not is_dataclass(options):
        return options
    said = {name: getattr(options, name, None) for name in ("segments", "weights")}
    kept = {
        name: {head: value for head, value in values.items() if head not in heads}
        for name, values in said.items()
        if isinstance(values, Mapping)
    }
    return replace(options, **kept)  # type: ignore[type-var]
