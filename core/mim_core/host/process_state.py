"""What loading a plugin did to the process that others share: compared before and after, named, and put back where
that is safe.

Put back: torch's default dtype, default device, thread count, random state, gradient mode, determinism and cuDNN's
search; Python's and numpy's random state; level and handlers of the root logger; filters that hide or raise whole
categories of warnings; the working folder; environment variables that were set before. Named only: new environment
variables and ``sys.path``, which the plugin's own parts may need, and torch's threads between operations, which can be
set once.

Nothing is imported for this. A library that came with the plugin is compared with what it is like when fresh; thread
counts and the random states of numpy and torch, which differ from start to start, cannot be told then.
"""

from __future__ import annotations

import operator
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

OF_TORCH = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "DISABLE_CUPTI_LAZY_REINIT", "TEARDOWN_CUPTI")
"""Environment variables that torch itself sets when a part of it is first imported or used; no plugin's doing."""


@dataclass(frozen=True)
class Facet:
    """One thing that a process has once.

    Attributes:
        name: What people call it.
        module: Where it lives; read only when that is loaded.
        read: Its value, from the module.
        write: Gives it a value again; None where that is not safe.
        fresh: Its value when the module has just been imported; None where that is not known.
        change: What to say of a change, from the values before and after.
        same: Whether two values are the same to people.
    """

    name: str
    module: str
    read: Callable[[Any], Any]
    write: Callable[[Any, Any], object] | None = None
    fresh: Callable[[Any], Any] | None = None
    change: Callable[[Any, Any], str] = lambda before, after: f"{before} became {after}"
    same: Callable[[Any, Any], bool] = operator.eq


def _names(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """Variables that differ. Their values stay unsaid: some are secrets."""
    after = _without_torchs(before, after)
    return ", ".join(sorted(name for name in {*before, *after} if before.get(name) != after.get(name)))


def _without_torchs(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in after.items() if name in before or name not in OF_TORCH}


def _same_environ(before: Mapping[str, str], after: Mapping[str, str]) -> bool:
    return before == _without_torchs(before, after)


def _folder(module: Any) -> str | None:
    """The working folder; None where it is gone."""
    try:
        return str(module.getcwd())
    except OSError:
        return None


def _set_folder(module: Any, before: str | None) -> None:
    if before is not None and module.path.isdir(before):
        module.chdir(before)


def _set_filters(module: Any, before: tuple[Any, ...]) -> None:
    module.resetwarnings()  # also tells Python that what it remembers of them is old
    module.filters[:] = before


def _same_filters(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    """Whether warnings are as loud as before. Filters of one message, module or category of a library are its own
    affair: many set some."""

    def wide(filters: tuple[Any, ...]) -> list[Any]:
        return [f for f in filters if f[1] is None and f[3] is None and f[2].__module__ == "builtins"]

    return wide(before) == wide(after)


def _entries(before: list[str], after: list[str]) -> str:
    new, lost = [p for p in after if p not in before], [p for p in before if p not in after]
    changes = [f"added {', '.join(map(repr, new))}"] if new else []
    changes += [f"took away {', '.join(map(repr, lost))}"] if lost else []
    return "; ".join(changes) or "another order"


def _restore_environ(module: Any, before: Mapping[str, str]) -> None:
    module.environ.update(before)  # what is new stays


def _silent(before: object, after: object) -> str:
    return ""


def _set_device(torch: Any, before: str) -> None:
    torch.set_default_device(None if before == "cpu" else before)


def _set_handlers(logging: Any, before: tuple[Any, ...]) -> None:
    logging.root.handlers[:] = before


def _drawn_from(before: Any, after: Any) -> bool:
    """Whether Python's generator was at most drawn from a little, as libraries do, and not seeded or set: its 624
    numbers are those of before, or follow from them."""
    generator = random.Random()
    generator.setstate(before)
    for _ in range(64):  # other threads may draw meanwhile
        if generator.getstate()[1][:-1] == after[1][:-1]:
            return True
        generator.getrandbits(32 * 624)
    return False


def _numpy_state(module: Any) -> tuple[Any, ...]:
    kind, numbers, *rest = module.get_state()
    return (kind, numbers.tobytes(), *rest)


def _set_numpy(module: Any, state: tuple[Any, ...]) -> None:
    kind, numbers, *rest = state
    module.set_state((kind, sys.modules["numpy"].frombuffer(numbers, dtype="uint32"), *rest))


def _torch_state(torch: Any) -> bytes:
    return bytes(torch.default_generator.get_state().tolist())


def _set_torch(torch: Any, state: bytes) -> None:
    torch.default_generator.set_state(torch.tensor(list(state), dtype=torch.uint8, device="cpu"))


FACETS = (
    Facet("torch's default dtype", "torch", lambda t: t.get_default_dtype(), lambda t, v: t.set_default_dtype(v),
          fresh=lambda t: t.float32),
    Facet("torch's default device", "torch", lambda t: str(t.get_default_device()), _set_device,
          fresh=lambda t: "cpu"),
    Facet("torch's threads", "torch", lambda t: t.get_num_threads(), lambda t, v: t.set_num_threads(v)),
    Facet("torch's threads between operations", "torch", lambda t: t.get_num_interop_threads()),
    Facet("torch's gradient mode", "torch", lambda t: t.is_grad_enabled(), lambda t, v: t.set_grad_enabled(v),
          fresh=lambda t: True),
    Facet("torch's determinism", "torch", lambda t: t.are_deterministic_algorithms_enabled(),
          lambda t, v: t.use_deterministic_algorithms(v), fresh=lambda t: False),
    Facet("cuDNN's search for fast algorithms", "torch.backends.cudnn", lambda c: bool(c.benchmark),
          lambda c, v: setattr(c, "benchmark", v), fresh=lambda c: False),
    Facet("torch's random state", "torch", _torch_state, _set_torch, change=_silent),
    Facet("numpy's random state", "numpy.random", _numpy_state, _set_numpy, change=_silent),
    Facet("Python's random state", "random", lambda r: r.getstate(), lambda r, v: r.setstate(v), change=_silent,
          same=_drawn_from),
    Facet("the working folder", "os", _folder, _set_folder),
    Facet("the warnings' filters", "warnings", lambda w: tuple(w.filters), _set_filters, change=_silent,
          same=_same_filters),
    Facet("os.environ", "os", lambda m: dict(m.environ), _restore_environ, change=_names, same=_same_environ),
    Facet("sys.path", "sys", lambda m: list(m.path), change=_entries),
    Facet("the root logger's level", "logging", lambda m: m.root.level, lambda m, v: m.root.setLevel(v),
          fresh=lambda m: m.WARNING),
    Facet("the root logger's handlers", "logging", lambda m: tuple(m.root.handlers), _set_handlers,
          fresh=lambda m: (), change=lambda before, after: f"{len(before)} became {len(after)}"),
)  # fmt: skip


def read() -> dict[str, Any]:
    """The values of all facets whose module is loaded, by name."""
    return {f.name: f.read(module) for f in FACETS if (module := sys.modules.get(f.module)) is not None}


def settle(before: Mapping[str, Any]) -> list[str]:
    """What is no longer as `read` found it, such as "torch's default dtype (torch.float32 became torch.float64; put
    back)"; and puts back what can be."""
    changes = []
    for facet in FACETS:
        module = sys.modules.get(facet.module)
        if module is None or (facet.name not in before and facet.fresh is None):
            continue
        then = before[facet.name] if facet.name in before else facet.fresh(module)  # type: ignore[misc]
        now = facet.read(module)
        if facet.same(then, now):
            continue
        if facet.write is not None:
            facet.write(module, then)
        left = facet.write is None or not facet.same(then, facet.read(module))
        note = "; ".join(text for text in (facet.change(then, now), "left" if left else "put back") if text)
        changes.append(f"{facet.name} ({note})")
    return changes
