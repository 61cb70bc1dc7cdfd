"""``mim-multimodal tokenize RUN DATA OUT``: the ids of a collection, by a run that trained a tokenizer, once and for
all.

Items go in order into shards, and within a shard in groups of the same size, so that the same numbers are multiplied in
the same way whatever the number of processes: ids do not depend on it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from mim_core import BadSample, MimError, counted, in_processes, load_run, parse, tell, warn
from safetensors.torch import save
from torch import Tensor

from mim_multimodal.data import Aligned
from mim_multimodal.items import Items
from mim_multimodal.token_store import (
    FACTS,
    MANIFEST,
    NONE,
    Crops,
    facts_in,
    made_of,
    names_in,
    options_for,
    read_manifest,
    shard_path,
)

GROUP = 32
"""Crops that are named at once."""


@dataclass(frozen=True)
class TokenizeOptions:
    """Write the ids of a collection of aligned files, by a run of a vq recipe. A command that was stopped goes on where
    it was. --data.tokens NAME OUT reads them as the modality NAME."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run that trained a tokenizer."""
    data: Annotated[Path, tyro.conf.Positional]
    """Folder of aligned files, as the run's data have them."""
    out: Annotated[Path, tyro.conf.Positional]
    """Folder of the ids."""
    crops: int = 1
    """Crops of each item: the fixed one of evaluation, and so many less one at random. Training draws one of them."""
    area: tuple[float, float] = (0.2, 1.0)
    """Of random crops: smallest and largest share of the picture's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Of random crops: smallest and largest ratio of width to height."""
    flip: float = 0.5
    """Of random crops: chance of a horizontal flip."""
    shard: int = 1024
    """Items of a shard."""
    workers: int = 1
    """Processes; no effect on ids."""
    quiet: bool = False
    """No progress."""


@dataclass(frozen=True)
class Job:
    """One shard: which items of the collection, and where it goes."""

    run: str
    data: str
    crops: Crops
    items: range
    path: str


def tokenize(program: str, plugin: str | None, arguments: list[str]) -> int:
    """``tokenize RUN DATA OUT``.

    Raises:
        MimError: --crops or --shard is below 1.
    """
    options = parse(TokenizeOptions, f"{program} tokenize", arguments)
    if options.crops < 1 or options.shard < 1:
        raise MimError(f"--crops and --shard must be at least 1, got {options.crops} and {options.shard}.")
    method, source, recipe = opened(str(options.run), str(options.data))
    fixed = source.config.evaluate_crop
    crops = Crops(options.crops, options.area, options.ratio, options.flip, fixed, source.size)
    every = every_item(source)
    names = [items.identity(i) for items, i in every]
    parts = [range(first, min(first + options.shard, len(names))) for first in range(0, len(names), options.shard)]
    about = {
        "run": recipe,
        "modality": next(iter(method.tokenizer.shapes)),
        "codes": method.encoder.codes,
        "grid": list(method.tokenizer.layout.grid),
        "crops": asdict(crops),
        "items": len(names),
        "shards": len(parts),
        "files": hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest(),
    }
    _begin(options.out, about)
    paths = [shard_path(options.out, number) for number in range(len(parts))]
    jobs = [
        Job(str(options.run), str(options.data), crops, some, str(path))
        for some, path in zip(parts, paths, strict=True)
        if names_in(path) != [names[i] for i in some]
        or made_of(path) not in ("", facts_of([every[i] for i in some], str(about["modality"])))
    ]
    if len(jobs) < len(parts) and not options.quiet:
        tell(f"Going on: {len(parts) - len(jobs):,} of {counted(len(parts), 'shard')} were done before.")
    with _one_thread():
        for done, _ in enumerate(in_processes(write_shard, jobs, options.workers), 1):
            if not options.quiet:
                tell(f"{done + len(parts) - len(jobs):,} of {counted(len(parts), 'shard')}")
    _tell_bad({name: why for path in paths for name, why in (facts_in(path) or {})["bad"].items()})
    tell(f"{options.out}: ids of {counted(len(names), 'item')}, {about['codes']:,} codes on {about['grid']}")
    name = str(about["modality"])
    tell(f"To read them: --data.tokens {name} {options.out} {options_for(name, about['grid'], about['codes'])}")
    return 0


@functools.lru_cache(1)
def opened(run: str, data: str) -> tuple[Any, Aligned, str]:
    """(the run's method, its data source on another folder, a digest of its weights). Once in each process.

    Raises:
        MimError: The run gives no ids, or its data are no aligned files.
    """
    loaded = load_run(run)
    method: Any = loaded.method.eval()
    if not hasattr(method, "name"):
        raise MimError(f"{run} gives no ids: it is a {type(method).__name__}; train a vq recipe.")
    options = loaded.recipe.parts["data"].options
    if not isinstance(options, Aligned.Config):
        raise MimError(f"{run} does not read aligned files, but {loaded.recipe.parts['data'].name}.")
    source = Aligned(replace(options, root=Path(data)), method.tokenizer.shapes)
    source.take_ids(method.tokenizer.ids)
    state = (loaded.checkpoint / "state.json").read_bytes()
    return method, source, hashlib.sha256(state).hexdigest()


def every_item(source: Aligned) -> list[tuple[Items, int]]:
    """The items of all splits, those for training first."""
    splits = (source.collection.pretrain, source.collection.test)
    return [(items, index) for items in splits for index in range(len(items))]


def files_of(some: Sequence[tuple[Items, int]], modality: str) -> list[tuple[str, int, int] | None]:
    """The file of each item below the data's folder, its bytes and its time in nanoseconds; None where it has none."""
    files = list[tuple[str, int, int] | None]()
    for items, index in some:
        name = items.file(modality, index) if items.has(modality, index) else None
        facts = os.stat(items.root / name) if name else None
        files.append((name, facts.st_size, facts.st_mtime_ns) if name and facts else None)
    return files


def facts_of(some: Sequence[tuple[Items, int]], modality: str) -> str:
    """A digest of the sizes and times of the files of some items."""
    total = hashlib.sha256()
    for facts in files_of(some, modality):
        total.update(f"{facts[1:] if facts else None}\n".encode())
    return total.hexdigest()


def write_shard(job: Job) -> None:
    """Names the crops of a shard's items and writes it, whole or not at all, with the files that cannot be read."""
    method, source, _ = opened(job.run, job.data)
    every, bad = every_item(source), dict[str, str]()
    some = [every[number] for number in job.items]
    rows = [(items, index, crop) for items, index in some for crop in range(job.crops.count)]
    batches = []
    for first in range(0, len(rows), GROUP):
        group = rows[first : first + GROUP]
        batches.append(_named(method, source, job.crops, group, bad))
    ids = torch.cat(batches)
    whole = ids.unflatten(0, (len(some), job.crops.count)).unflatten(2, method.tokenizer.layout.grid)
    names = [items.identity(index) for items, index in some]
    partial = Path(job.path).with_suffix(".partial")
    modality = next(iter(method.tokenizer.shapes))
    files = files_of(some, modality)
    facts = {"names": names, "made_of": facts_of(some, modality), "files": files, "bad": bad}
    about = {FACTS: json.dumps(facts)}  # one entry: several are written in any order
    partial.write_bytes(save({"ids": whole.to(torch.int32).contiguous()}, about))
    partial.replace(job.path)


@torch.no_grad()
def _named(
    method: Any, source: Aligned, crops: Crops, rows: list[tuple[Items, int, int]], bad: dict[str, str]
) -> Tensor:
    """Ids [n, N] of a group of crops, filled up to its size; those that cannot be read are noted, and have none."""
    samples, readable = list[dict[str, Tensor]](), torch.zeros(len(rows), dtype=torch.bool)
    shapes = source.shapes
    for number, (items, index, crop) in enumerate(rows):
        try:
            samples.append(source.take_crop(items, index, shapes, crops, crop))
            readable[number] = True
        except BadSample as error:
            bad[error.path] = error.reason
            samples.append({})
    if not bool(readable.any()):
        return torch.full((len(rows), method.tokenizer.layout.count), NONE)
    some = next(sample for sample in samples if sample)
    filled = [sample or some for sample in samples] + [some] * (GROUP - len(rows))
    batch = source.finish({name: torch.stack([sample[name] for sample in filled]) for name in shapes})
    ids: Tensor = method.name(batch)[: len(rows)]
    return ids.where(readable[:, None], NONE)


def _begin(out: Path, about: dict[str, Any]) -> None:
    """Makes the folder, or checks that it is of the same run, collection and options.

    Raises:
        MimError: It holds something else.
    """
    if out.exists() and not out.is_dir():
        raise MimError(f"{out} is a file; ids are written into a folder.")
    before = read_manifest(out) if out.is_dir() else None
    now = json.loads(json.dumps(about))
    if before is not None and before != now:
        other = ", ".join(name for name in now if before.get(name) != now[name])
        raise MimError(f"{out} holds ids of something else (other: {other}). Name another folder, or remove it.")
    if before is None and out.is_dir() and any(out.iterdir()):
        raise MimError(f"{out} holds other files. Name a new folder.")
    out.mkdir(parents=True, exist_ok=True)
    (out / MANIFEST).write_text(json.dumps(now, indent=1))


def _tell_bad(bad: dict[str, str], most: int = 5) -> None:
    if bad:
        some = "; ".join(f"{name}: {why}" for name, why in list(bad.items())[:most])
        warn(f"{counted(len(bad), 'item')} cannot be read and {'has' if len(bad) == 1 else 'have'} no ids ({some}).")


@contextmanager
def _one_thread() -> Iterator[None]:
    """As the processes of `in_processes` compute, so that ids are the same where there is none."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
