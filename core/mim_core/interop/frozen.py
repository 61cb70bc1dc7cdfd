"""A teacher that stands still: the encoder of a run, or of weights of any format."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.interop.weights import import_checkpoint, sizes_given
from mim_core.methods.assembly import Parts
from mim_core.methods.method import Method
from mim_core.parts.encoder import Encoder
from mim_core.parts.layout import Layout, Patches
from mim_core.parts.teacher import Student, Teacher
from mim_core.parts.tokenizer import JoinedTokenizer, Tokenizer
from mim_core.recipes.config import EvaluateConfig, Part, ResolvedPart, ResolvedRun, RunConfig, TrainConfig
from mim_core.recipes.resolve import resolve
from mim_core.recipes.toml import from_toml, to_toml
from mim_core.runs.load import load_run


class FrozenTeacher(Teacher):
    """The encoder of another run, of any recipe, or of weights of any format that `mim-core list importers` names (MVD,
    arXiv 2212.04500). It is not trained, and its weights are in every checkpoint of the run, as its parts are in the
    run's recipe: the run can be judged and exported where the other one is no longer at hand.

    It must split a sample into the units that the student has: the same grid on the same shapes. Named for a head of
    several joined modalities (`rgb.teacher`), one of a single modality is given the units of the head's alone.
    """

    @dataclass(frozen=True)
    class Config:
        """Options of the frozen teacher."""

        run: Path | None = None
        """The folder of a run."""
        weights: Path | None = None
        """Weights of another code base, a file or a folder; then say which format."""
        format: str = ""
        """Their format: mim-core list importers."""
        sizes: tuple[str, ...] = ()
        """What the weights do not tell, under the code base's own names, such as num_heads=3; see mim-core import."""
        random: bool = False
        """Weights as they were drawn, for tests and to measure what a trained teacher brings."""
        parts: str = ""
        """Its tokenizer and encoder as a recipe has them, as text. Written into the run's recipe when it starts."""

    filled: bool = True
    """Its weights are more than a draw, or a draw is what is wanted."""

    def __init__(self, config: Config, student: Student) -> None:
        tokenizer, encoder, parts = opened_encoder(config)
        super().__init__(replace(config, parts=parts), Student(tokenizer, encoder))
        self.filled = config.random or weights_exist(config)
        several = isinstance(tokenizer, JoinedTokenizer) and len(tokenizer.parts) > 1
        self.segment = "" if several else student.segment
        self.check(student.own if self.segment else student.tokenizer)

    def check_filled(self) -> None:
        """Refuses to teach with weights that were only drawn, where the ones that are meant are gone.

        Raises:
            ValueError: They are gone; names the options that give them.
        """
        if not self.filled:
            where = self.config.run or self.config.weights
            raise ValueError(
                f"the teacher's weights are not at hand: {where or 'no run and no weights are named'}; give them with "
                "--teacher.run FOLDER, or --teacher.weights FILE and --teacher.format NAME"
            )

    def asked(self, patches: Patches) -> Patches:
        """The units of its segment, in the form that its own tokenizer gives them."""
        own = super().asked(patches)
        if not self.segment or not isinstance(self.tokenizer, JoinedTokenizer):
            return own
        assert isinstance(own.values, Tensor)
        (name,) = self.tokenizer.parts
        return Patches({name: own.values}, Layout.join({name: own.layout}), own.aux)

    def check(self, student: Tokenizer) -> None:
        """Whether its units are the student's.

        Raises:
            ValueError: They are not.
        """
        mine = self.tokenizer
        if self.segment and isinstance(mine, JoinedTokenizer):
            mine = mine.part(next(iter(mine.parts)))
        if (mine.layout.count, mine.layout.grid) != (student.layout.count, student.layout.grid):
            raise ValueError(
                f"the teacher has {mine.layout.count} units on the grid {mine.layout.grid}; the student has "
                f"{student.layout.count} on {student.layout.grid}: give both the same size and patch"
            )
        one = bool(self.segment)  # of one modality the name does not matter
        shapes = [list(each.shapes.values()) if one else dict(each.shapes) for each in (mine, student)]
        if shapes[0] != shapes[1] or mine.unit_shape != student.unit_shape:
            raise ValueError(
                f"the teacher takes {dict(mine.shapes)} in units of {mine.unit_shape}, the student "
                f"{dict(student.shapes)} in units of {student.unit_shape}"
            )


def parts_text(**parts: Part) -> str:
    """Parts by role, a tokenizer and an encoder, as the option ``parts`` of a frozen teacher."""
    return to_toml(resolve(RunConfig(parts=parts), installed()), installed())


def _text_of(parts: dict[str, ResolvedPart]) -> str:
    own = {role: part for role, part in parts.items() if role.rpartition(".")[2] in ("tokenizer", "encoder")}
    return to_toml(ResolvedRun(own, TrainConfig(), EvaluateConfig(), ""), installed())


def weights_exist(config: Any) -> bool:
    """Whether the run or the file that the options name is there."""
    return any(path is not None and path.exists() for path in (config.run, config.weights))


def opened_encoder(config: Any, role: str = "teacher") -> tuple[Tokenizer, Encoder, str]:
    """Tokenizer, encoder, and the text of both: with the weights that the options name, or, where these are gone and
    the parts are known, as they are drawn, for a checkpoint to fill.

    Raises:
        ValueError: The options name a run and weights, or neither, or weights without their format.
        MimError: The method has no tokenizer and encoder.
    """
    if config.run is not None and config.weights is not None:
        raise ValueError(f"say --{role}.run or --{role}.weights, not both")
    if config.parts and (not weights_exist(config) or torch.get_default_device().type == "meta"):
        parts = Parts(from_toml(config.parts, installed()).parts)
        tokenizer = parts.tokenizer()
        return tokenizer, parts.encoder(tokenizer), config.parts
    if config.run is None and config.weights is None:
        raise ValueError(f"say whose encoder it is: --{role}.run FOLDER, or --{role}.weights and --{role}.format")
    if config.run is not None:
        method: Any = load_run(config.run, installed()).method
    else:
        if not config.format:
            raise ValueError(f"--{role}.weights needs --{role}.format NAME; see: mim-core list importers")
        method = import_checkpoint(config.weights, format=config.format, **sizes_given(config.sizes))
    mine, own = getattr(method, "tokenizer", None), getattr(method, "encoder", None)
    if not isinstance(method, Method) or not isinstance(mine, Tokenizer) or not isinstance(own, Encoder):
        raise MimError(f"A {type(method).__name__} has no tokenizer and encoder that could teach.")
    return mine, own, _text_of(dict(method.built_from))
