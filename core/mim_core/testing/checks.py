"""What the contracts share: batches, comparisons, and switching shape checks off for a tracer."""

from __future__ import annotations

import functools
import inspect
import os
import unittest
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import jaxtyping
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mim_core import randomness
from mim_core.data.source import Sample
from mim_core.errors import one_line, unknown
from mim_core.host.kinds import KINDS
from mim_core.host.loading import installed
from mim_core.host.registry import Registry
from mim_core.recipes.config import Part
from mim_core.recipes.resolve import load_recipe, resolve_part


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


def near(actual: Tensor, wanted: Tensor, what: str, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """The same up to rounding: |found - wanted| <= atol + rtol |wanted| everywhere.

    Args:
        actual: What the part gives.
        wanted: What it should give.
        what: What is broken where they differ, in words.
        rtol: Share of the value that it may be off.
        atol: What it may be off by besides.
    """
    assert actual.shape == wanted.shape, f"{what}: shape {tuple(actual.shape)}, not {tuple(wanted.shape)}"
    assert actual.dtype == wanted.dtype, f"{what}: {actual.dtype}, not {wanted.dtype}"
    actual, wanted = actual.detach(), wanted.detach()
    apart = (actual.double() - wanted.double()).abs()
    far = ~(apart <= atol + rtol * wanted.double().abs()) & (actual != wanted)  # a NaN is far from everything
    assert not bool(far.any()), (
        f"{what}: {int(far.sum())} of {far.numel()} values are off, by up to {float(apart[far].max()):.3g} where "
        f"{rtol:g} of the value and {atol:g} are allowed"
    )


@contextmanager
def saying(what: str) -> Iterator[None]:
    """Whatever is raised inside becomes an AssertionError that begins with these words, and repeats the other's.

    Raises:
        AssertionError: Something else than an AssertionError or a SkipTest was raised; these two stay as they are.
    """
    try:
        yield
    except (AssertionError, unittest.SkipTest):
        raise
    except Exception as error:
        raise AssertionError(f"{what}: {one_line(error)}") from error


def on_gpu(check: Callable[[Any], None]) -> Callable[[Any], None]:
    """A check that is ignored, and said to be, where there is no GPU. Its ``needs_gpu`` is for a ``conftest.py``
    that marks such checks."""

    @functools.wraps(check)
    def guarded(self: Any) -> None:
        if not torch.cuda.is_available():
            raise unittest.SkipTest("no CUDA device")
        check(self)

    guarded.needs_gpu = True  # type: ignore[attr-defined]
    return guarded


def takes_seconds(check: Callable[[Any], None]) -> Callable[[Any], None]:
    """A check that is ignored, and said to be, where the environment says ``MIM_QUICK``: it compiles, trains or
    starts processes."""

    @functools.wraps(check)
    def guarded(self: Any) -> None:
        if os.environ.get("MIM_QUICK"):
            raise unittest.SkipTest("MIM_QUICK is set")
        check(self)

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
    """Full names of registered parts of a kind that no contract among ``classes`` covers: none has it as its ``part``.
    A `MethodContract` with a ``recipe`` covers that recipe, its method, and its encoders and decoders, which have no
    contract of their own.

    A test file ends with ``assert not uncovered("maskers", globals().values(), plugin="mine")``.

    Raises:
        MimError: There is no such kind, or no such plugin is in use; names the nearest.
    """
    registry = installed()
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    if plugin is not None and registry.plugin(plugin) is None:
        used = [record.name for record in registry.plugins if registry.plugin(record.name) is record]
        raise unknown("plugin", plugin, used, registry.absent(f"{plugin}:"))
    covered: set[str] = set()
    for cls in classes:
        if isinstance(cls, type) and getattr(cls, "kind", "") in ("", kind, "methods"):
            covered |= _covered(kind, cls, registry)
    return [entry.full_name for entry in registry.of_kind(kind, plugin) if entry.full_name not in covered]


def _covered(kind: str, cls: Any, registry: Registry) -> set[str]:
    """Full names of the parts of a kind that one contract covers."""
    part, recipe = getattr(cls, "part", ""), getattr(cls, "recipe", "")
    if recipe and kind == "recipes":
        return {registry.get("recipes", recipe).full_name}
    if recipe and kind in ("methods", "encoders", "decoders"):
        parts = load_recipe(recipe, registry, twin=True).parts
        return {part.name for role, part in parts.items() if f"{role.rpartition('.')[2]}s" == kind}
    if not part or getattr(cls, "kind", "") not in ("", kind):
        return set()
    return {entry.full_name for entry in registry.of_kind(kind) if part in (entry.full_name, entry.name)}


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


class Broken(AssertionError):
    """A check that failed, with the part's name before what is broken."""


def _named(check: Callable[..., None]) -> Callable[..., None]:
    """A check whose failure names the part, and says in words that another error came up, if one did."""

    @functools.wraps(check)
    def named(self: Any, *arguments: Any) -> None:
        try:
            with saying(f"{check.__name__} stopped before it could judge"):
                check(self, *arguments)
        except Broken:
            raise  # an override called this check, and it has the name
        except AssertionError as error:
            raise Broken(f"{self.about()}: {error}") from error

    return named


class Contract:
    """Attributes of all contracts: the part as registered, and options that differ from its defaults.

    Attributes:
        kind: Kind of the part, as `uncovered` asks for it.
        part: Its name, as registered.
        options: Options that differ from its defaults.
    """

    kind: ClassVar[str] = ""
    part: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if cls.__module__.startswith(__package__):
            for name, check in list(vars(cls).items()):
                if name.startswith("test_") and inspect.isfunction(check):
                    setattr(cls, name, _named(check))

    def about(self) -> str:
        """What a failed check is about: the part, or the class of its contract where it is made otherwise."""
        return self.part or getattr(self, "recipe", "") or type(self).__name__

    def _make(self, role: str, *context: Any) -> Any:
        assert self.part, f"say which part: part = 'plugin:name', or override make_{role}"
        resolved = resolve_part(role, Part(self.part, self.options), installed())
        return resolved.cls(resolved.options, *context)
