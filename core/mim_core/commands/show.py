"""show: writes a run's report, or a look at what its encoder learned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mim_core.commands.options import parse, take_name, with_data
from mim_core.errors import MimError
from mim_core.evaluation.look_page import write_look
from mim_core.evaluation.looks import look
from mim_core.evaluation.report import write_report
from mim_core.host.loading import installed
from mim_core.inference.inputs import data_of
from mim_core.runs.load import recipe_of
from mim_core.terminal import tell


@dataclass(frozen=True)
class ShowOptions:
    """Write a run's report.html: scores, curves, reconstructions, data. Or, with --what, a look at what its encoder
    learned, as RUN/show-NAME.html and .png. The options of the run's data may be changed too (--data.NAME), such as
    --data.root FOLDER of a run that was imported."""

    what: Literal["report", "attention", "pca", "neighbours", "map"] = "report"
    """attention: where each head of the last block looks. pca: the units' features as colours. neighbours: the most
    similar training samples of held-out ones. map: held-out samples in a plane. The last two need labels."""
    samples: int = 12
    """Samples that are shown; a map shows all."""
    projection: Literal["pca", "tsne"] = "pca"
    """Of a map: the first two principal components, or t-SNE (needs scikit-learn)."""
    out: Path | None = None
    """Folder that a look is written into; RUN by default."""


def show(program: str, plugin: str | None, arguments: list[str]) -> int:
    """``show RUN``.

    Raises:
        MimError: --samples is below 1.
    """
    name, rest = take_name(arguments, "run", f"Usage: {program} show RUN [OPTIONS]")
    if name in ("-h", "--help"):
        parse(ShowOptions, f"{program} show RUN", arguments)
    folder, registry = Path(name), installed()
    recipe, checkpoint = recipe_of(folder, registry)
    default = with_data(ShowOptions, data_of(recipe).options)
    options: Any = parse(type(default), f"{program} show {name}", rest, default)
    if options.samples < 1:
        raise MimError(f"--samples must be at least 1, got {options.samples}.")
    if options.what == "report":
        tell(write_report(folder, registry, options.samples, options.data))
        return 0
    view = look(folder, registry, options.what, options.samples, options.projection, options.data)
    title = recipe.recipe or folder.name
    page, picture = write_look(view, options.out or folder, options.what, title, checkpoint.name)
    tell("\n".join([view.lead, str(page), str(picture)]))
    return 0
