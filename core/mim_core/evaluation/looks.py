"""What an encoder learned, to be looked at: where its heads attend, its units' features as colours, what lies near
what, and a map of samples. Pictures are the data source's; where units lie on a grid, their colours are drawn here."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mim_core.data.loading import Readable
from mim_core.data.source import DataSource, Picture, Sample
from mim_core.errors import MimError
from mim_core.evaluation.features import prepare_study
from mim_core.evaluation.reconstruction import held_out_samples, names_of
from mim_core.host.registry import Registry
from mim_core.methods.build import make_source, working
from mim_core.methods.method import Method
from mim_core.parts.encoder import Encoded, Encoder
from mim_core.parts.layout import Layout
from mim_core.parts.mask import Mask
from mim_core.parts.samples import check_sample
from mim_core.parts.tokenizer import Tokenizer
from mim_core.recipes.config import ResolvedRun
from mim_core.runs.load import load_run
from mim_core.scores import PRETRAINED

WIDTH = 112
"""Drawn pictures of units are at least this wide, in pixels."""
MOST = 2000
"""Samples on a map, and among which neighbours are shown without labels."""
NEAREST = 6
"""Neighbours that are shown of each sample."""

Projection = Literal["pca", "tsne"]


@dataclass(frozen=True)
class Cell:
    """A picture with what stands below it."""

    picture: Picture
    caption: str = ""
    good: bool | None = None


@dataclass(frozen=True)
class Strip:
    """Pictures side by side under one label; ``film`` where each is as wide as the page."""

    label: str
    cells: list[Cell]
    film: bool = False


@dataclass(frozen=True)
class Dots:
    """Samples as places of a plane, with the class (-1: none) and the name of each."""

    title: str
    places: Float[Tensor, "n 2"]
    labels: list[int]
    names: list[str]


@dataclass(frozen=True)
class Look:
    """A page.

    Attributes:
        title: Of the page.
        lead: What it says, in a sentence or two.
        strips: Pictures.
        dots: Maps, beside each other.
        classes: Names of the classes of the dots.
        notes: How to read it.
    """

    title: str
    lead: str
    strips: list[Strip] = field(default_factory=list)
    dots: list[Dots] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)


# ---- the encoder on a few samples ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """What an encoder makes of a few samples.

    Attributes:
        source: Draws them.
        sample: As the source's `finish` left it.
        encoded: Nothing is hidden.
        layout: Of the units.
        parts: (segment's name or "", its modality, its first unit, its layout), in order.
        where: Which samples these are.
        names: Of the samples; their numbers from 1 where they have none.
        valid: Which units the samples have, bool [B, N].
    """

    source: DataSource
    sample: Sample
    encoded: Encoded
    layout: Layout
    parts: list[tuple[str, str, int, Layout]]
    where: str
    names: list[str]
    valid: Tensor

    def has(self, row: int, part: tuple[str, str, int, Layout]) -> bool:
        """Whether a sample has any unit of a segment."""
        return bool(self.valid[row, part[2] : part[2] + part[3].count].any())


@torch.no_grad()
def encode_shown(run: ResolvedRun, method: Method, count: int, attention: bool = False) -> Shown:
    """Encodes held-out samples, or some of the training data where none are held out.

    Args:
        run: The run.
        method: Its method, on the CPU.
        count: How many samples.
        attention: Ask for the attention of the last block too.

    Raises:
        MimError: The encoder gives no attention, or no sample can be shown.
    """
    tokenizer, encoder = getattr(method, "tokenizer", None), getattr(method, "encoder", None)
    if not isinstance(tokenizer, Tokenizer) or not isinstance(encoder, Encoder):
        raise MimError(f"A {type(method).__name__} has no tokenizer and encoder to look into.")
    if attention:
        try:
            encoder.give_attention()
        except ValueError as error:
            raise MimError(f"{error}; --what pca shows its units' features.") from error
    source = make_source(run, method)
    sample, where = held_out_samples(source, count)
    wanted = {each for name in tokenizer.shapes for each in (name, f"{name}.present")}
    kept = {name: value for name, value in sample.items() if name in wanted}
    if not kept:
        raise MimError("None of the samples can be read, so there is nothing to show.")
    names = names_of(source, sample["index"]) or [str(row + 1) for row in range(len(sample["index"]))]
    with working(method.eval()):
        check_sample(tokenizer, kept)
        patches = tokenizer.split(kept)
        tokens = tokenizer.embed(patches.values)
        mask, valid = _seen(encoder, patches.layout, tokens)
        encoded = encoder(tokens, patches.layout, mask)
    parts = list(_parts(tokenizer, patches.layout))
    return Shown(source, kept, encoded, patches.layout, parts, where, names, valid)


def _seen(encoder: Encoder, layout: Layout, tokens: Tensor) -> tuple[Mask, Tensor]:
    """A mask that hides nothing, and which units the samples have.

    Raises:
        MimError: Some lack units, and the encoder cannot leave these out.
    """
    mask = Mask.nothing_hidden(len(tokens), layout, tokens.device)
    if layout.valid is None:
        return mask, torch.ones_like(mask.hidden)
    if not encoder.pads:
        raise MimError(f"A {type(encoder).__name__} needs all units, and some of these samples lack some.")
    return replace(mask, kept_valid=layout.valid), layout.valid


def _parts(tokenizer: Any, layout: Layout) -> Iterator[tuple[str, str, int, Layout]]:
    if not layout.segments:
        yield "", next(iter(tokenizer.shapes)), 0, layout
    for name, part in layout.segments:
        yield name, next(iter(tokenizer.part(name).shapes)), layout.span(name)[0], part


def coloured(
    shown: Shown, part: tuple[str, str, int, Layout], row: int, colours: Float[Tensor, "N 3"]
) -> Picture | None:
    """A sample whose units each have a colour; None where its source cannot draw it.

    Args:
        shown: The samples.
        part: Which segment.
        row: Which sample.
        colours: Of all units of that segment, in [0, 1].
    """
    _, modality, _, layout = part
    if layout.grid is None:
        places = layout.coordinates()
        places = places[row] if places.ndim == 3 else places
        return shown.source.unit_picture(modality, shown.sample[modality][row], colours, places)
    if len(layout.grid) == 3:
        return grid_picture(colours, layout.grid, shown.sample[modality].shape[2])
    return grid_picture(colours, layout.grid)


def grid_picture(colours: Float[Tensor, "N 3"], grid: tuple[int, ...], length: int = 8) -> Picture:
    """Units on a grid of one to three axes, each a square of its colour; steps along the first of three axes stand side
    by side, as a film strip has them: up to 8 evenly over the ``length`` of that axis."""
    sizes = (1,) * (3 - len(grid)) + tuple(grid)
    cells = (colours.clamp(0, 1) * 255).round().to(torch.uint8).reshape(*sizes, 3)
    if len(grid) == 3:
        steps = torch.linspace(0, length - 1, min(8, length)).round().long()
        cells = cells[steps * sizes[0] // length]
    factor = max(1, -(-WIDTH // sizes[2]))
    cells = cells.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
    gap = torch.full((cells.shape[1], 2, 3), 255, dtype=torch.uint8)
    columns = [piece for one in cells for piece in (one, gap)][:-1]
    return _png(torch.cat(columns, dim=1).numpy())


def _png(pixels: Any) -> Picture:
    from matplotlib.image import imsave

    content = io.BytesIO()
    imsave(content, pixels, format="png")
    return Picture("image/png", content.getvalue())


# ---- attention -------------------------------------------------------------------------------------------------------


def attention(run: ResolvedRun, method: Method, count: int) -> Look:
    """Where each head of the last block attends: from the class token where there is one, else the mean over all units.

    Raises:
        MimError: The encoder gives no attention.
    """
    shown = encode_shown(run, method, count, attention=True)
    weights, prefix = shown.encoded.attention, shown.encoded.prefix.shape[1]
    assert weights is not None
    asking = shown.valid[:, None, :, None].float()
    average = (weights[:, :, prefix:] * asking).sum(dim=2) / asking.sum(dim=2)
    seen = weights[:, :, 0, prefix:] if prefix else average
    strips: list[Strip] = []
    for row in range(len(seen)):
        for part in (each for each in shown.parts if shown.has(row, each)):
            name, modality, first, layout = part
            own = seen[row, :, first : first + layout.count]
            maps = {"all heads": own.mean(dim=0), **{f"head {number + 1}": each for number, each in enumerate(own)}}
            drawn = {label: coloured(shown, part, row, heat(each)) for label, each in maps.items()}
            cells = [Cell(shown.source.picture(modality, shown.sample[modality][row]), modality)]
            cells += [Cell(picture, label) for label, picture in drawn.items() if picture]
            strips.append(Strip(_label(shown, row, name), cells, len(layout.grid or ()) == 3))
    mean = "all units (the mean: this encoder has no class token) attend"
    who = "the class token attends" if prefix else mean
    heads = weights.shape[1]
    return Look(
        "Attention of the last block",
        f"How much {who} to each unit, by head ({heads}); {shown.where}.",
        strips,
        notes=["Bright is much. Each map has its own scale: its largest weight is the brightest."],
    )


def _label(shown: Shown, row: int, segment: str) -> str:
    """A sample's name, and of several modalities which one."""
    return f"{shown.names[row]}, {segment}" if segment else shown.names[row]


def heat(values: Float[Tensor, " N"]) -> Float[Tensor, "N 3"]:
    """Weights as colours, from dark to bright, the largest the brightest."""
    from matplotlib import colormaps

    share = values / values.max().clamp(min=1e-12)
    return torch.from_numpy(colormaps["viridis"](share.double().numpy())[:, :3].copy())


# ---- units as colours ------------------------------------------------------------------------------------------------


def components(run: ResolvedRun, method: Method, count: int) -> Look:
    """The first three principal components of all shown units' features as red, green and blue."""
    shown = encode_shown(run, method, count)
    tokens = shown.encoded.tokens.float()
    places, shares = principal(tokens[shown.valid], 3)
    low, high = (places.quantile(at, dim=0) for at in (0.02, 0.98))
    colours = torch.ones(*tokens.shape[:2], 3)
    colours[shown.valid] = ((places - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    strips = [strip for part in shown.parts for strip in _coloured_strips(shown, part, colours)]
    text = ", ".join(f"{share:.0%}" for share in shares.tolist())
    return Look(
        "Units as colours",
        f"The first three principal components of the units' features, over all that is shown; {shown.where}.",
        strips,
        notes=[
            "Units of alike features have alike colours; the colours themselves mean nothing.",
            f"Shares of the variance: {text}. Components of an untrained encoder have colours too.",
        ],
    )


def _coloured_strips(
    shown: Shown, part: tuple[str, str, int, Layout], colours: Float[Tensor, "B N 3"]
) -> Iterator[Strip]:
    """Samples and the colours of their units: of films one below the other, else in two rows."""
    name, modality, first, layout = part
    rows = [row for row in range(len(colours)) if shown.has(row, part)]
    plain = {row: shown.source.picture(modality, shown.sample[modality][row]) for row in rows}
    made = {row: coloured(shown, part, row, colours[row, first : first + layout.count]) for row in rows}
    drawn = {row: picture for row, picture in made.items() if picture}
    if len(layout.grid or ()) == 3:
        for row in rows:
            cells = [Cell(plain[row], "input"), *([Cell(drawn[row], "units")] if row in drawn else [])]
            yield Strip(_label(shown, row, name), cells, True)
        return
    for label, pictures in (("input", plain), ("units", drawn)):
        if pictures:
            cells = [Cell(picture, shown.names[row]) for row, picture in pictures.items()]
            yield Strip(f"{name} {label}".strip(), cells)


def principal(values: Float[Tensor, "n D"], count: int) -> tuple[Float[Tensor, "n k"], Float[Tensor, " k"]]:
    """Places along the first principal components, and the share of the variance of each. A component points to where
    its largest entry is positive, so that pictures made twice are alike."""
    centred = values.double() - values.double().mean(dim=0)
    spread, axes = torch.linalg.eigh(centred.T @ centred)
    axes = axes.flip(1)[:, :count]
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    axes = axes * largest.sign().where(largest != 0, 1.0)
    places = centred @ axes
    if places.shape[1] < count:
        places = F.pad(places, (0, count - places.shape[1]))
    shares = spread.flip(0)[:count] / spread.sum().clamp(min=1e-300)
    return places.float(), shares


# ---- neighbours ------------------------------------------------------------------------------------------------------


def neighbours(folder: Path, registry: Registry, count: int, data: Any = None) -> Look:
    """Held-out samples and the training samples whose features are nearest by cosine, with how often these are of the
    same class, beside the same of the raw input and of the untrained encoder. ``data`` as in `look`.

    Raises:
        MimError: The data have no labels to compare with.
    """
    study = prepare_study(folder, registry, data=data)
    rows, (train, test) = study.rows, study.labels
    assert study.source is not None
    near = {row: _nearest(features.test, features.train, NEAREST) for row, features in rows.items()}
    same = {row: float((train[ids] == test[:, None]).double().mean()) for row, (ids, _) in near.items()}
    chance = float(test.bincount(minlength=len(study.classes)).double() / len(test)
                    @ (train.bincount(minlength=len(study.classes)).double() / len(train)))  # fmt: skip
    own, (trained, held) = PRETRAINED, study.samples
    chosen = torch.linspace(0, len(test) - 1, min(count, len(test))).long().unique().tolist()
    pictures = [Pictures(study.source, split) for split in ("test", "train")]
    strips = []
    for sample in chosen:
        cells = [Cell(pictures[0][int(held[sample])], study.classes[test[sample]])]
        ids, values = near[own]
        for other, value in zip(ids[sample].tolist(), values[sample].tolist(), strict=True):
            right = bool(train[other] == test[sample])
            cells.append(Cell(pictures[1][int(trained[other])], f"{study.classes[train[other]]}, {value:.2f}", right))
        strips.append(Strip(pictures[0].name(int(held[sample])), cells, pictures[0].film))
    text = "; ".join(f"{row} {share:.3f}" for row, share in same.items())
    return Look(
        "Nearest neighbours",
        f"Of the {NEAREST} nearest training samples, this share has the held-out sample's class: {text}; any training "
        f"sample {chance:.3f}.",
        strips,
        notes=[f"First the sample, then its neighbours by the {own}, with cosine similarity.", *study.notes],
    )


def _nearest(asked: Tensor, among: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Numbers and cosine similarities of the nearest, int64 and float32 [n, k]."""
    among = F.normalize(among.float(), dim=1)
    matches = [(F.normalize(some.float(), dim=1) @ among.T).topk(min(count, len(among)), dim=1)
             for some in asked.split(1024)]  # fmt: skip
    return torch.cat([each.indices for each in matches]), torch.cat([each.values for each in matches])


class Pictures:
    """Samples of a labelled split as pictures, by number, each of the source's first modality."""

    def __init__(self, source: DataSource, split: str) -> None:
        self.source, self.split = source, source.labelled(split)
        self.modality = next(iter(source.shapes))
        self.film = len(source.shapes[self.modality]) == 4

    def __getitem__(self, sample: int) -> Picture:
        items = Readable(self.split.items, self.source.item_seconds)
        batch = Readable.collate([items[self.split.middle(sample)]])
        if not batch:
            raise MimError(f"Sample {self.name(sample)} can no longer be read.")
        return self.source.picture(self.modality, self.source.finish(batch)[self.modality][0])

    def name(self, sample: int) -> str:
        """The sample's name, or its number."""
        return self.split.names[sample] if self.split.names else str(sample)


# ---- a map -----------------------------------------------------------------------------------------------------------


def atlas(folder: Path, registry: Registry, projection: Projection, data: Any = None) -> Look:
    """Held-out samples as places of a plane, by their features, beside the same of the raw input and of the untrained
    encoder.

    Args:
        folder: The run.
        registry: Where names are looked up.
        projection: The first two principal components, or t-SNE.
        data: As in `look`.

    Raises:
        MimError: The data have no labels, or t-SNE's library is missing.
    """
    study = prepare_study(folder, registry, data=data)
    labels = study.labels[1]
    assert study.source is not None
    held, split = study.samples[1], study.source.labelled("test")
    names = split.names or tuple(map(str, range(len(split.labels))))
    chosen = torch.linspace(0, len(labels) - 1, min(MOST, len(labels))).long().unique()
    dots = [
        Dots(
            row,
            project(features.test[chosen], projection),
            labels[chosen].tolist(),
            [names[int(held[i])] for i in chosen],
        )
        for row, features in study.rows.items()
    ]
    how = "the first two principal components" if projection == "pca" else "t-SNE"
    return Look(
        "Map of samples",
        f"{len(chosen):,} held-out samples by {how} of their features; near is alike.",
        dots=dots,
        classes=study.classes,
        notes=["A map of two axes leaves most out: the tables of scores say how well classes are told apart."],
    )


def project(values: Float[Tensor, "n D"], projection: Projection) -> Float[Tensor, "n 2"]:
    """Places in a plane, in [-1, 1].

    Raises:
        MimError: t-SNE's library is missing, or there are too few samples.
    """
    if projection == "tsne":
        try:
            from sklearn.manifold import TSNE
        except ImportError as error:
            raise MimError('t-SNE needs scikit-learn: pip install "mim-core[map]"; or --projection pca') from error
        if len(values) < 4:
            raise MimError(f"t-SNE needs at least 4 samples; there are {len(values)}. Try --projection pca")
        near = min(30.0, (len(values) - 1) / 3)
        flat = TSNE(perplexity=near, init="pca", random_state=0).fit_transform(values.double().numpy())
        places = torch.from_numpy(np.asarray(flat)).float()
    else:
        places = principal(values.float(), 2)[0]
    places = places - (places.amax(dim=0) + places.amin(dim=0)) / 2
    return places / places.abs().max().clamp(min=1e-12)


LOOKS = ("attention", "pca", "neighbours", "map")


def look(
    folder: Path, registry: Registry, what: str, count: int, projection: Projection = "pca", data: Any = None
) -> Look:
    """One of `LOOKS` of a run.

    Args:
        folder: The run.
        registry: Where names are looked up.
        what: Which look.
        count: Samples that are shown; a map shows all.
        projection: Of a map.
        data: Options of the data source; the run's by default.

    Raises:
        MimError: The run's encoder or data do not serve it.
    """
    if what in ("attention", "pca"):
        run, method, _ = load_run(folder, registry)
        return (attention if what == "attention" else components)(run.on_data(data), method, count)
    return (
        neighbours(folder, registry, count, data) if what == "neighbours" else atlas(folder, registry, projection, data)
    )
