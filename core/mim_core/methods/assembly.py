"""Building parts from their options, with errors that name the part's role."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from mim_core.errors import MimError, too_much
from mim_core.parts.decoder import Decoder
from mim_core.parts.decoder_joint import JointDecoder
from mim_core.parts.encoder import Encoder
from mim_core.parts.masker import Masker
from mim_core.parts.scorer import Scorer
from mim_core.parts.target import Target
from mim_core.parts.teacher import Student, Teacher
from mim_core.parts.tokenizer import JoinedTokenizer, Tokenizer
from mim_core.recipes.config import ResolvedPart


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
        tokenizers = {scope: self.make(role, width) for scope, role in self.scopes("tokenizer")}
        if not tokenizers:
            self.get("tokenizer")
        tokenizer = tokenizers[""] if set(tokenizers) == {""} else JoinedTokenizer(tokenizers)
        if encoder.cls.takes == "values":
            with building("encoder", encoder):
                tokenizer.leave_values()
        return tokenizer

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

    def teachers(
        self, tokenizer: Tokenizer, encoder: Encoder, segments: Mapping[str, str] | None = None
    ) -> dict[str, Teacher]:
        """The teachers by scope; "" is the one without. That of a head is told which of several modalities the head
        asks for: the one of its name, unless ``segments`` says another."""
        built, joined = {}, tokenizer.parts if isinstance(tokenizer, JoinedTokenizer) else ()
        for scope, role in self.scopes("teacher"):
            segment = (segments or {}).get(scope, scope)
            student = self._student(tokenizer, encoder)
            built[scope] = self.make(role, replace(student, segment=segment if segment in joined else ""))
        return built

    def scorer(self, tokenizer: Tokenizer, encoder: Encoder, teachers: Mapping[str, Teacher]) -> Scorer | None:
        """The scorer, bound to the teacher that it reads; None where the run has none.

        Raises:
            MimError: The teacher that it reads looks at what is hidden, and so comes too late.
        """
        if "scorer" not in self:
            return None
        scorer: Scorer = self.make("scorer", self._student(tokenizer, encoder))
        if scorer.needs_teacher:
            teacher = self._teacher_of("scorer", "", teachers)
            with building("scorer", self.get("scorer")):
                if teacher.needs_mask:
                    raise ValueError("it reads a teacher before there is a mask, and this one looks at what is hidden")
                scorer.bind(teacher)
        return scorer

    def _student(self, tokenizer: Tokenizer, encoder: Encoder) -> Student:
        def fresh() -> tuple[Tokenizer, Encoder]:
            other = self.tokenizer()
            return other, self.encoder(other)

        return Student(tokenizer, encoder, fresh)

    def _teacher_of(self, role: str, scope: str, teachers: Mapping[str, Teacher]) -> Teacher:
        """The teacher of a scope, or the one without.

        Raises:
            MimError: There is none.
        """
        teacher = teachers.get(scope, teachers.get(""))
        if teacher is None:
            raise MimError(
                f"{role} ({self.get(role).name}): it reads what a teacher says, and this run has none. Name one: "
                "--use teacher=core:ema. See: mim-core list teachers"
            )
        return teacher

    def joint_decoder(self, tokenizer: Tokenizer, encoder: Encoder) -> JointDecoder | None:
        """The decoder that answers for all heads; None where each has its own.

        Raises:
            MimError: A decoder for all heads is named for one of them.
        """
        for scope, role in self.scopes("decoder"):
            if scope and self.get(role).cls.joint:
                raise MimError(
                    f"{role} ({self.get(role).name}): it is one decoder for all heads, so it is named without a head: "
                    f"--use decoder={self.get(role).name}"
                )
        if "decoder" not in self or not self.get("decoder").cls.joint:
            return None
        made: JointDecoder = self.make("decoder", encoder, tokenizer.layout)
        return made

    def heads(
        self,
        tokenizer: Tokenizer,
        encoder: Encoder,
        segments: Mapping[str, str],
        teachers: Mapping[str, Teacher] | None = None,
        joint: JointDecoder | None = None,
    ) -> Iterator[tuple[str, str | None, Decoder, Target]]:
        """(name, segment, decoder, target) of each head. A head's segment is the tokenizer of its name, unless
        ``segments`` says another; its teacher is that of its name, or the only one; its decoder its own, that of all
        heads anew, or its part of the ``joint`` one.

        Raises:
            MimError: A head asks for a segment that there is not.
        """
        for scope, role in self.scopes("target"):
            segment = segments.get(scope, scope if isinstance(tokenizer, JoinedTokenizer) else None)
            if segment is not None and (not isinstance(tokenizer, JoinedTokenizer) or segment not in tokenizer.parts):
                known = ", ".join(tokenizer.parts) if isinstance(tokenizer, JoinedTokenizer) else "none"
                raise MimError(f"The head {scope!r} asks for the segment {segment!r}; there are: {known}.")
            own = (
                tokenizer.part(segment) if segment is not None and isinstance(tokenizer, JoinedTokenizer) else tokenizer
            )
            target = self.make(role, own)
            self._check_of_head(role, scope or "main", target.of_head)
            if target.needs_teacher:
                teacher = self._teacher_of(role, scope, teachers or {})
                with building(role, self.get(role)):
                    target.bind(teacher)
            decoder_role = f"{scope}.decoder" if f"{scope}.decoder" in self else "decoder"
            if joint is not None and decoder_role == "decoder":
                decoder: Decoder = joint.head(target.size, segment, encoder)
            else:
                decoder = self.make(decoder_role, encoder, tokenizer.layout, target.size)
            yield scope or "main", segment, decoder, target

    def _check_of_head(self, role: str, name: str, other: str) -> None:
        """Refuses a target of another head's losses where that head is missing."""
        heads = [scope or "main" for scope, _ in self.scopes("target") if (scope or "main") != name]
        if other and other not in heads:
            raise MimError(
                f"{role} ({self.get(role).name}): it is held against what the head {other!r} loses, and the other "
                f"heads of this run are: {', '.join(heads) or 'none'}. Make it a head of its own (--use "
                f"losses.target={self.get(role).name}), or name another (--{role}.head)."
            )


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
        raise MimError(f"{role} ({part.name}): {too_much(error) or f'{under_scope(str(error), role)}.'}") from error
    except MimError:
        raise
    except Exception as error:
        if text := too_much(error):
            raise MimError(f"{role} ({part.name}): {text}") from error
        if not getattr(error, "__notes__", None):  # else the part that this one was building is named already
            error.add_note(f"This happened while the {_named(role, part)} was built; the fault is probably there.")
        raise


def under_scope(text: str, role: str) -> str:
    """What a part says of its options, with the scope of its role in front of them: ``--rgb.teacher.run``."""
    return text.replace(f"--{role.rpartition('.')[2]}.", f"--{role.replace('_', '-')}.")


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
