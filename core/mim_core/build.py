"""From a resolved run to a method: builds the parts in the order in which they need each other."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from mim_core.data import DataSource
from mim_core.decoder import Decoder
from mim_core.encoder import Encoder
from mim_core.errors import MimError, too_much, warn
from mim_core.masker import Masker
from mim_core.method import Method
from mim_core.plugins import installed
from mim_core.recipe import ResolvedPart, ResolvedRun, load_recipe
from mim_core.registry import Registry
from mim_core.target import Target
from mim_core.tokenizer import JoinedTokenizer, Tokenizer


class Parts:
    """A run's parts, handed to `Method.build`. Building one turns its ValueError into an error that names the role."""

    def __init__(self, parts: Mapping[str, ResolvedPart]) -> None:
        self._parts = parts

    def __contains__(self, role: str) -> bool:
        return role in self._parts

    def get(self, role: str) -> ResolvedPart:
        """The part in a role.

        Raises:
            MimError: The run has none.
        """
        if role not in self._parts:
            raise MimError(
                f"This method needs a {role}; the run has {', '.join(self._parts)}. Name one: --use {role}=NAME"
            )
        return self._parts[role]

    def make(self, role: str, *context: Any) -> Any:
        """Builds the part in a role: its class called with its options and the context."""
        part = self.get(role)
        with building(role, part):
            _check_call(role, part, context)
            made = part.cls(part.options, *context)
        if isinstance(made, Target):
            made.role = role
        return made

    def scopes(self, role: str) -> Iterator[tuple[str, str]]:
        """(scope, full role) of every part with that last name: ("", "target"), or ("depth", "depth.target") and so
        on."""
        for name in self._parts:
            scope, _, last = name.rpartition(".")
            if last == role:
                yield scope, name

    def tokenizer(self) -> Tokenizer:
        """The tokenizer, as wide as the encoder; joined where there are several."""
        encoder = self.get("encoder")
        with building("encoder", encoder):
            width = encoder.cls.width_for(encoder.options)
        found = {scope: self.make(role, width) for scope, role in self.scopes("tokenizer")}
        if not found:
            self.get("tokenizer")
        return found[""] if set(found) == {""} else JoinedTokenizer(found)

    def encoder(self, tokenizer: Tokenizer) -> Encoder:
        """The encoder, for that tokenizer's layout."""
        encoder: Encoder = self.make("encoder", tokenizer.layout)
        return encoder

    def masker(self, tokenizer: Tokenizer) -> Masker:
        """The masker, which must be able to serve that tokenizer's layout."""
        masker: Masker = self.make("masker")
        with building("masker", self.get("masker")):
            masker.count(tokenizer.layout)
        return masker

    def heads(
        self, tokenizer: Tokenizer, encoder: Encoder, segments: Mapping[str, str]
    ) -> Iterator[tuple[str, str | None, Decoder, Target]]:
        """(name, segment, decoder, target) of each head. A head's segment is the tokenizer of its name, unless
        ``segments`` says another."""
        for scope, role in self.scopes("target"):
            segment = segments.get(scope, scope if isinstance(tokenizer, JoinedTokenizer) else None)
            if segment is not None and (not isinstance(tokenizer, JoinedTokenizer) or segment not in tokenizer.parts):
                known = ", ".join(tokenizer.parts) if isinstance(tokenizer, JoinedTokenizer) else "none"
                raise MimError(f"The head {scope!r} asks for the segment {segment!r}; there are: {known}.")
            own = (
                tokenizer.part(segment) if segment is not None and isinstance(tokenizer, JoinedTokenizer) else tokenizer
            )
            target = self.make(role, own)
            decoder_role = f"{scope}.decoder" if f"{scope}.decoder" in self else "decoder"
            yield scope or "main", segment, self.make(decoder_role, encoder, tokenizer.layout, target.size), target


@contextmanager
def building(role: str, part: ResolvedPart) -> Iterator[None]:
    """Names the part in whatever goes wrong while it is built.

    Raises:
        MimError: Instead of a ValueError, with which a part refuses what it is given. Other errors are bugs: they stay
            as they are, with a note that names the part and its plugin.
    """
    try:
        yield
    except ValueError as error:
        raise MimError(f"{role} ({part.name}): {too_much(error) or f'{error}.'}") from error
    except MimError:
        raise
    except Exception as error:
        if text := too_much(error):
            raise MimError(f"{role} ({part.name}): {text}") from error
        if not getattr(error, "__notes__", None):  # else the part that this one was building is named already
            error.add_note(f"This happened while the {_named(role, part)} was built; the fault is probably there.")
        raise


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
    found, trace = None, error.__traceback__
    names = {id(module): name.split(".") for name, module in method.named_modules()}
    while trace is not None:
        at_work = trace.tb_frame.f_locals.get("self")
        alike = [role for role, part in method.built_from.items() if type(at_work) is part.cls]
        own = names.get(id(at_work), [])
        scoped = [role for role in alike if role.rpartition(".")[0] in own]
        found = next(iter(scoped or alike), found)
        trace = trace.tb_next
    return found


def _check_call(role: str, part: ResolvedPart, context: tuple[Any, ...]) -> None:
    """Refuses a part that does not take what parts in its role are given."""
    try:
        signature = inspect.signature(part.cls)
    except ValueError:  # one that cannot be looked into
        return
    try:
        signature.bind(part.options, *context)
    except TypeError as error:
        given = ", ".join(["its Config", *(type(value).__name__ for value in context)])
        raise MimError(
            f"The {_named(role, part)} cannot be built: it is called with {given}, and takes {signature}: {error}."
        ) from error


def _named(role: str, part: ResolvedPart) -> str:
    """A part in a sentence."""
    origin = f" ({part.origin})" if part.origin else ""
    return f"{role} {part.name!r} of the plugin {part.name.partition(':')[0]!r}{origin}"


def build_method(run: ResolvedRun | str, registry: Registry | None = None, seed: int | None = None) -> Method:
    """A method from a recipe's name or a resolved run, with weights drawn from its seed.

    Args:
        run: A recipe, such as ``"image:mae-vit-base"``, or what `mim_core.recipe` made of one.
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


def make_source(config: ResolvedRun, method: Method) -> DataSource:
    """The data source of a run, told by the tokenizer what shapes it must give. For a method that is trained on labels
    it is the labelled training split, see `mim_core.data.LabelledSource`.

    Raises:
        MimError: There is no data, or an option of it does not fit the tokenizer or a target.
    """
    source = open_source(config, method.tokenizer)  # type: ignore[arg-type]
    for target in (module for module in method.modules() if isinstance(module, Target)):
        try:
            target.check(source)
        except ValueError as error:
            raise MimError(f"A target does not fit the data ({config.parts['data'].name}): {error}.") from error
    return method.training_source(source)


def check_data(config: ResolvedRun, method: Method, source: DataSource) -> None:
    """Whether the masker can serve every item of the data. Warns of what is rarely meant in them, and of modalities
    that no item has.

    Raises:
        MimError: Some items lack so much that too little of them may be seen.
    """
    for text in source.advice():
        warn(text)
    masker, tokenizer = getattr(method, "masker", None), getattr(method, "tokenizer", None)
    if not isinstance(masker, Masker) or not isinstance(tokenizer, Tokenizer):
        return
    there = source.presence()
    for modality in source.shapes:
        if there and not any(modality in names for names in there):
            warn(f"no item of the data has {modality}: it is never seen, and its predictions learn nothing.")
    try:
        masker.check(source, tokenizer)
    except ValueError as error:
        raise MimError(f"masker ({config.parts['masker'].name}): {error}.") from error


def open_source(config: ResolvedRun, tokenizer: Tokenizer) -> DataSource:
    """The data source of a run for a tokenizer, whatever the method."""
    part = config.parts.get("data")
    if part is None:
        raise MimError("This run has no data. Name a source: --use data=NAME. See: mim-core list data")
    with building("data", part):
        _check_call("data", part, (tokenizer.shapes,))
        source: DataSource = part.cls(part.options, tokenizer.shapes)
    source.ids = tokenizer.ids
    source.item_seconds = config.train.item_timeout
    return source
