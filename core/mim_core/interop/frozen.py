"""A teacher that stands still: the encoder of a run, or of weights of any format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mim_core.errors import MimError
from mim_core.host.loading import installed
from mim_core.interop.weights import import_checkpoint, sizes_given
from mim_core.parts.encoder import Encoder
from mim_core.parts.teacher import Student, Teacher
from mim_core.parts.tokenizer import Tokenizer
from mim_core.runs.load import load_run


class FrozenTeacher(Teacher):
    """The encoder of another run, of any recipe, or of weights of any format that `mim-core list importers` names (MVD,
    arXiv 2212.04500). It is not trained, and its weights are in every checkpoint of the run.

    It must split a sample into the units that the student has: the same grid on the same shapes.
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

    def __init__(self, config: Config, student: Student) -> None:
        tokenizer, encoder = _opened(config)
        super().__init__(config, Student(tokenizer, encoder))
        self.check(student.tokenizer)

    def check(self, student: Tokenizer) -> None:
        """Whether its units are the student's.

        Raises:
            ValueError: They are not.
        """
        mine = self.tokenizer
        if (mine.layout.count, mine.layout.grid) != (student.layout.count, student.layout.grid):
            raise ValueError(
                f"the teacher has {mine.layout.count} units on the grid {mine.layout.grid}; the student has "
                f"{student.layout.count} on {student.layout.grid}: give both the same size and patch"
            )
        if mine.shapes != student.shapes or mine.unit_shape != student.unit_shape:
            raise ValueError(
                f"the teacher takes {dict(mine.shapes)} in units of {mine.unit_shape}, the student "
                f"{dict(student.shapes)} in units of {student.unit_shape}"
            )


def _opened(config: Any) -> tuple[Tokenizer, Encoder]:
    """Tokenizer and encoder that the options name."""
    if (config.run is None) == (config.weights is None):
        raise ValueError(
            "say whose encoder it is: --teacher.run FOLDER, or --teacher.weights FILE and --teacher.format"
        )
    if config.run is not None:
        method: Any = load_run(config.run, installed()).method
    else:
        if not config.format:
            raise ValueError("--teacher.weights needs --teacher.format NAME; see: mim-core list importers")
        method = import_checkpoint(config.weights, format=config.format, **sizes_given(config.sizes))
    tokenizer, encoder = getattr(method, "tokenizer", None), getattr(method, "encoder", None)
    if not isinstance(tokenizer, Tokenizer) or not isinstance(encoder, Encoder):
        raise MimError(f"A {type(method).__name__} has no tokenizer and encoder that could teach.")
    return tokenizer, encoder
