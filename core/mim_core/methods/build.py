"""From a resolved run to a method: builds the parts in the order in which they need each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from mim_core.data.source import DataSource
from mim_core.data.viewed import viewed
from mim_core.errors import MimError, warn
from mim_core.host.loading import installed
from mim_core.host.registry import Registry
from mim_core.methods.assembly import Parts, _check_call, building, under_scope
from mim_core.methods.method import Method
from mim_core.parts.masker import Masker
from mim_core.parts.target import Target
from mim_core.parts.teacher import Teacher
from mim_core.parts.tokenizer import JoinedTokenizer, Tokenizer
from mim_core.recipes.config import ResolvedRun
from mim_core.recipes.resolve import load_recipe


@contextmanager
def working(method: Method) -> Iterator[None]:
    """Names the part in what it refuses while a method works, in `prepare`, `forward` or `encode`.

    Raises:
        MimError: Instead of a ValueError of a part. Other errors are bugs and stay as they are.
    """
    try:
        yield
    except ValueError as error:
        role = _role_of(error, method)
        if role is None:
            raise
        raise MimError(f"{role} ({method.built_from[role].name}): {error}.") from error


def _role_of(error: ValueError, method: Method) -> str | None:
    """The role of the part that raised an error: the innermost that was at work."""
    innermost, trace = None, error.__traceback__
    names = {id(module): name.split(".") for name, module in method.named_modules()}
    while trace is not None:
        at_work = trace.tb_frame.f_locals.get("self")
        alike = [role for role, part in method.built_from.items() if type(at_work) is part.cls]
        own = names.get(id(at_work), [])
        scoped = [role for role in alike if role.rpartition(".")[0] in own]
        innermost = next(iter(scoped or alike), innermost)
        trace = trace.tb_next
    return innermost


def build_method(run: ResolvedRun | str, registry: Registry | None = None, seed: int | None = None) -> Method:
    """A method from a recipe's name or a resolved run, with weights drawn from its seed.

    Args:
        run: A recipe, such as ``"image:mae-vit-base"``, or what `mim_core.recipes.resolve` made of one.
        registry: Where names are looked up; what is installed by default.
        seed: Overrides the run's seed.

    Raises:
        MimError: An option that does not fit, with its role; a role that is missing.
    """
    if isinstance(run, str):
        run = load_recipe(run, registry or installed())
    parts = Parts(run.parts)
    part = parts.get("method")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.train.seed if seed is None else seed)
        with building("method", part):
            method: Method = part.cls.build(part.options, parts)
    method.built_from = run.parts
    return method


def check_teachers(method: Method) -> None:
    """Whether every teacher, and every tokenizer that was trained by another run, has the weights that are meant.

    Raises:
        MimError: The weights of one are gone.
    """
    asked: list[str] = []
    for name, module in method.named_modules():
        if isinstance(module, Teacher | Tokenizer) and not name.startswith(tuple(asked)):
            asked.append(f"{name}.")  # it answers for those within it, which came with its own weights
            try:
                module.check_filled()
            except ValueError as error:
                scope = name.rpartition(".")[2]
                text = (
                    under_scope(str(error), f"{scope}.teacher")
                    if f"{scope}.teacher" in method.built_from
                    else str(error)
                )
                raise MimError(f"{text[:1].upper()}{text[1:]}.") from error


def settled(run: ResolvedRun, method: Method, source: DataSource) -> ResolvedRun:
    """The run with the options of its teachers, tokenizers and data as they are once built: those that are taken from
    another run add the parts that they are made of, and data what was learned of them, so that the run can be opened
    where these are gone."""
    parts = dict(run.parts)
    for scope, role in (
        (role.rpartition(".")[0], role) for role in run.parts if role.rpartition(".")[2] == "tokenizer"
    ):
        whole = getattr(method, "tokenizer", None)
        own = whole.part(scope) if isinstance(whole, JoinedTokenizer) else whole
        if isinstance(own, Tokenizer) and hasattr(parts[role].options, "parts"):
            parts[role] = replace(parts[role], options=own.config)
    for name, teacher in getattr(method, "teachers", {}).items():
        role = "teacher" if name == "main" else f"{name}.teacher"
        if role in parts:
            parts[role] = replace(parts[role], options=teacher.config)
    if hasattr(own := parts["data"].options, "learned"):
        parts["data"] = replace(parts["data"], options=replace(own, learned=source.config.learned))
    return replace(run, parts=parts)


def make_source(config: ResolvedRun, method: Method) -> DataSource:
    """The data source of a run, told by the tokenizer what shapes it must give. For a method that is trained on labels
    it is the labelled training split, see `mim_core.data.labelled.LabelledSource`.

    Raises:
        MimError: There is no data, or an option of it does not fit the tokenizer or a target.
    """
    source = open_source(config, method.tokenizer)  # type: ignore[arg-type]
    for target in (module for module in method.modules() if isinstance(module, Target)):
        try:
            target.check(source)
        except ValueError as error:
            raise MimError(f"A target does not fit the data ({config.parts['data'].name}): {error}.") from error
    try:
        method.check(source)
        source = viewed(source, method.views())
    except ValueError as error:
        raise MimError(f"data ({config.parts['data'].name}): {error}.") from error
    return method.training_source(source)


def check_data(
    config: ResolvedRun, method: Method, source: DataSource, last: Callable[[], None] = lambda: None
) -> None:
    """Whether the masker can serve every item of the data. Warns of what is rarely meant in them, and of modalities
    that no item has; but first of all says what is wrong.

    Args:
        config: The run.
        method: Its method.
        source: Its data.
        last: What else is to be checked before anything is warned of.

    Raises:
        MimError: Some items lack so much that too little of them may be seen.
    """
    lines = list(source.advice())
    masker, tokenizer = getattr(method, "masker", None), getattr(method, "tokenizer", None)
    if isinstance(masker, Masker) and isinstance(tokenizer, Tokenizer):
        presence = source.presence()
        for modality in source.shapes:
            if presence and not any(modality in names for names in presence):
                lines += [f"no item of the data has {modality}: it is never seen, and its predictions learn nothing."]
        try:
            masker.check(source, tokenizer)
        except ValueError as error:
            raise MimError(f"masker ({config.parts['masker'].name}): {error}.") from error
    last()
    for line in lines:
        warn(line)


def open_source(config: ResolvedRun, tokenizer: Tokenizer) -> DataSource:
    """The data source of a run for a tokenizer, whatever the method.

    Raises:
        MimError: The run names no data.
    """
    part = config.parts.get("data")
    if part is None:
        raise MimError("This run has no data. Name a source: --use data=NAME. See: mim-core list data")
    with building("data", part):
        _check_call("data", part, (tokenizer.shapes,))
        source: DataSource = part.cls(part.options, tokenizer.shapes)
        source.take_ids(tokenizer.ids)
    source.item_seconds = config.train.item_timeout
    return source
