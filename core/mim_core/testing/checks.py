"""What the contracts share: batches, comparisons, and switching shape checks off for a tracer."""

from __future__ import annotations

import functools
import unittest
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import jaxtyping
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mim_core import randomness
from mim_core.layout import Sample
from mim_core.plugins import installed
from mim_core.recipe import Part, resolve_part


def keys(rows: int, seed: int = 0) -> Tensor:
    """Keys of that many samples, int64 [rows]."""
    return randomness.make_key(seed, 0, torch.arange(rows))


def tensors(tree: Any) -> list[Tensor]:
    """All tensors in a pytree, in order."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def equal(one: Any, other: Any) -> bool:
    """The same tensors, to the bit."""
    left, right = tensors(one), tensors(other)
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def shapes(tree: Any) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of every tensor in a pytree."""
    return [(tuple(leaf.shape), leaf.dtype) for leaf in tensors(tree)]


def on_gpu(check: Callable[[Any], None]) -> Callable[[Any], None]:
    """A check that is passed over, and said to be, where there is no GPU. Its ``needs_gpu`` is for a ``conftest.py``
    that marks such checks."""

    @functools.wraps(check)
    def guarded(self: Any) -> None:
        if not torch.cuda.is_available():
            raise unittest.SkipTest("no CUDA device")
        check(self)

    guarded.needs_gpu = True  # type: ignore[attr-defined]
    return guarded


def to_gpu(tree: Any) -> Any:
    """The same pytree with its tensors on the GPU."""
    return pytree.tree_map_only(Tensor, lambda value: value.cuda(), tree)


def refusal(function: Callable[..., Any], *arguments: Any) -> str:
    """The message of the ValueError that a call must raise."""
    try:
        function(*arguments)
    except ValueError as error:
        return str(error)
    raise AssertionError(f"{getattr(function, '__qualname__', function)} took what it must refuse with a ValueError")


def uncovered(kind: str, classes: Iterable[Any], plugin: str | None = None) -> list[str]:
    """Full names of registered parts of a kind that no contract among ``classes`` has as its ``part``.

    A test file ends with ``assert not uncovered("maskers", globals().values(), plugin="mine")``.
    """
    parts = {getattr(cls, "part", "") for cls in classes if isinstance(cls, type)}
    return [entry.full_name for entry in installed().of_kind(kind, plugin) if entry.full_name not in parts]


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Torch's own generator at this seed, restored afterwards: drop path and initial weights draw from it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def unchecked() -> Iterator[None]:
    """Switches off jaxtyping's checks at run time, where a test suite installs them: a tracer cannot look into them.

    Its wrappers step aside when disabled, save those around the constructors of dataclasses, which Dynamo takes apart
    before it calls them; those of pytrees are what a forward pass makes.
    """
    wrapped = {cls: cls.__init__ for cls in pytree.SUPPORTED_NODES if _is_wrapped(getattr(cls, "__init__", None))}
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    for cls, init in wrapped.items():
        cls.__init__ = init.__wrapped__
    try:
        yield
    finally:
        for cls, init in wrapped.items():
            cls.__init__ = init
        jaxtyping.config.update("jaxtyping_disable", before)


def _is_wrapped(init: Any) -> bool:
    module = getattr(init, "__globals__", {}).get("__name__", "")
    return hasattr(init, "__wrapped__") and str(module).startswith("jaxtyping")


def noise(
    wanted: Mapping[str, tuple[int, ...]], rows: int, seed: int = 0, ids: Mapping[str, int] | None = None
) -> Sample:
    """A batch of normal noise of these shapes, or of ids below those counts, with keys and indices."""
    generator, ids = torch.Generator().manual_seed(seed), ids or {}
    sample = {
        name: torch.randint(ids[name], (rows, *shape), generator=generator)
        if name in ids
        else torch.randn(rows, *shape, generator=generator)
        for name, shape in wanted.items()
    }
    return {**sample, "key": keys(rows, seed), "index": torch.arange(rows)}


class Contract:
    """Attributes of all contracts: the part as registered, and options that differ from its defaults."""

    part: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Any]] = {}

    def _make(self, role: str, *context: Any) -> Any:
        found = resolve_part(role, Part(self.part, self.options), installed())
        return found.cls(found.options, *context)
