"""Runs cases one after the other, alone or as one of several ranks. Started by test_ranks.py.

    python ranks_worker.py STEPS FOLDER CASE[,option=value...] ...

Each case trains into FOLDER/CASE... and leaves metrics.jsonl and a checkpoint there.
"""

from __future__ import annotations

import copy
import functools
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
from mim_core.errors import BadSample
from mim_core.host.loading import installed
from mim_core.methods.masked_autoencoder import Head, MaskedAutoencoder
from mim_core.parts.decoder import Decoder
from mim_core.parts.decoder_sample import SampleDecoder
from mim_core.parts.mask import Mask
from mim_core.parts.masker import RandomMasker
from mim_core.parts.norm import BatchNorm
from mim_core.parts.target import Losses, Target
from mim_core.parts.target_ranks import RankTarget
from mim_core.parts.teacher import EmaTeacher
from mim_core.ranks import world as ranks
from mim_core.ranks.tensors import gather
from mim_core.recipes.resolve import load_recipe
from mim_core.recipes.twins import STEPS as TWIN_STEPS
from mim_core.runs.run import Run
from mim_core.training import loop
from mim_core.training.loop import start, train
from mim_image import idx
from torch import Tensor, nn

BATCH, STEPS = 16, int(sys.argv[1])


class SomeCount(RandomMasker):
    """Of the hidden units, some do not count: another number in every sample, so the denominators of ranks differ."""

    def __call__(self, layout, draw, scores=None) -> Mask:
        mask = super().__call__(layout, draw, scores)
        rank = torch.arange(mask.weight.shape[1], device=mask.weight.device)
        return replace(mask, weight=mask.weight * (rank <= (draw.key % 5)[:, None]))


class Normed(Decoder):
    """A decoder whose answers pass a batch normalisation."""

    def __init__(self, decoder: nn.Module, size: int) -> None:
        super().__init__()
        self.decoder, self.norm = decoder, BatchNorm(size)

    def forward(self, encoded, layout, mask) -> Tensor:
        return self.norm(self.decoder(encoded, layout, mask).transpose(1, 2)).transpose(1, 2)


class TeacherTarget(Target):
    """The teacher's tokens at the queried units."""

    needs_teacher = True

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def make(self, sample, patches, mask, lesson=None):
        return mask.take(lesson.tokens, mask.query_ids).float()

    def loss(self, prediction: Tensor, values: Tensor) -> Tensor:
        return (prediction.float() - values).square().mean(dim=-1)


class Tied(RankTarget):
    """Losses that are nearly alike count as equal: another number of pairs on every rank."""

    def loss(self, prediction: Tensor, values: Losses) -> Tensor:
        return super().loss(prediction, replace(values, each=values.each.round(decimals=0)))


class Apart(Target):
    """Samples are told apart among those of all ranks, by a loss with a gradient to every one of them."""

    couples_samples = True
    size = 8

    def make(self, sample, patches, mask, lesson=None):
        return torch.zeros(len(mask.hidden), 1, 1)

    def loss(self, prediction: Tensor, values: Tensor) -> Tensor:
        mine = nn.functional.normalize(prediction[:, 0].float(), dim=-1)
        every, start = gather(mine, gradient=True) if self.training else (mine, 0)
        alike = (mine @ every.T).masked_fill(torch.arange(len(every)) == torch.arange(len(mine))[:, None] + start, 0)
        return alike.square().sum(dim=1, keepdim=True)


def apart(plain: MaskedAutoencoder) -> MaskedAutoencoder:
    torch.manual_seed(5)
    options = SampleDecoder.Config(depth=0, hidden=16)
    decoder = SampleDecoder(options, plain.encoder, plain.tokenizer.layout, Apart.size)
    heads = {**plain.heads, "apart": Head(decoder, Apart())}
    return MaskedAutoencoder(plain.tokenizer, plain.masker, plain.encoder, heads)


def tied(plain: MaskedAutoencoder) -> MaskedAutoencoder:
    plain.heads["losses"].target.__class__ = Tied
    return plain


def varying(plain: MaskedAutoencoder) -> MaskedAutoencoder:
    plain.masker.__class__ = SomeCount
    return plain


def normed(plain: MaskedAutoencoder) -> MaskedAutoencoder:
    head = plain.heads["main"]
    head.decoder = Normed(head.decoder, head.target.size)
    return plain


def distilled(plain: MaskedAutoencoder) -> MaskedAutoencoder:
    decoder, width = plain.heads["main"].decoder, plain.encoder.width
    torch.manual_seed(5)
    decoder.pred = nn.Linear(decoder.pred.in_features, width)
    teacher = EmaTeacher.of(plain.tokenizer, plain.encoder, start=0.9)
    heads = {"features": Head(decoder, TeacherTarget(width), teacher="main")}
    return MaskedAutoencoder(plain.tokenizer, plain.masker, plain.encoder, heads, teachers={"main": teacher})


CASES = {
    "mae": ("image:mae-vit-tiny", None),
    "simmim": ("image:simmim-vit-base", None),
    "varying": ("image:mae-vit-tiny", varying),
    "normed": ("image:mae-vit-tiny", normed),
    "distilled": ("image:mae-vit-tiny", distilled),
    "hpm": ("image:hpm-vit-tiny", None),
    "tied": ("image:hpm-vit-tiny", tied),
    "ijepa": ("image:ijepa-vit-tiny", None),
    "sdae": ("image:sdae-vit-base", None),
    "cmae": ("image:cmae-vit-tiny", None),
    "apart": ("image:mae-vit-tiny", apart),
    "mst": ("image:mst-vit-tiny", None),
    "maskco": ("image:maskco-resnet-tiny", None),
    "mcmae": ("image:mcmae-tiny", None),
    "mvd": ("video:mvd-vit-tiny", None),
    "fourm": ("multimodal:4m-vit-tiny", None),
    "vq": ("multimodal:vq-rgb-tiny", None),
}


class Watcher:
    """An observer that notes how many graphs were compiled by each step, and may stop the run at a checkpoint."""

    def __init__(self, hooks, stops: bool) -> None:
        self.hooks, self.stops = hooks, stops

    def __getattr__(self, name):
        return getattr(self.hooks, name)

    def mim_metrics_read(self, run, metrics) -> None:
        with open(run.folder / "graphs.txt", "a") as log:
            log.write(f"{torch._dynamo.utils.counters['stats']['unique_graphs']}\n")

    def mim_checkpoint_saved(self, run, path) -> None:
        if self.stops:
            os.kill(os.getpid(), signal.SIGTERM)


def make(case: str, folder: Path, world: ranks.World) -> Run:
    """The run of a case such as ``mae,strategy=fsdp2,compile=1,stop=1``."""
    name, *options = case.split(",")
    given = dict(option.split("=") for option in options)
    recipe, change = CASES[name]
    config = load_recipe(recipe, installed(), twin=True)
    encoder = config.parts["encoder"]  # drop path draws by micro-batch
    still = replace(encoder, options=replace(encoder.options, drop_path=0.0))
    config = replace(config, parts={**config.parts, "encoder": still})
    parse = {"strategy": str, "precision": str, "micro_batch": int, "ema": float, "checkpoint_every": int}
    chosen = {key: parse.get(key, lambda v: bool(int(v)))(value) for key, value in given.items() if key not in LOCAL}
    settings = {
        "checkpoint_every": STEPS // 2,
        "log_every": 1,
        "workers": 0,
        "batch_size": BATCH,
        "warmup_epochs": 0.001,
    }
    if "probes" in given:
        probes = replace(config.evaluate, every=0.005, online=("knn", "linear"), online_samples=251)
        config = replace(config, evaluate=probes)
    per_sample = config.train.epochs / (TWIN_STEPS * config.train.batch_size)
    options = replace(config.train, epochs=STEPS * BATCH * per_sample, **{**settings, **chosen})
    run = start(replace(config, train=options), folder / given.get("into", case), installed(), world)
    if "bad" in given:
        spoil(run.source)
    if change is not None:
        run.method = change(copy.deepcopy(run.method)).to(world.device)
    watcher = Watcher(run.registry.hooks, "stop" in given)
    run.registry = type(run.registry)(run.registry.entries, run.registry.plugins, watcher)
    return run


LOCAL = ("into", "stop", "probes", "bad")


def spoil(source) -> None:
    """Every seventh item cannot be used."""
    real = source.read

    def read(index, key):
        if index % 7 == 3:
            raise BadSample(source.name_of(index), "spoilt by a test")
        return real(index, key)

    source.read = read


def main() -> None:
    torch.set_num_threads(1)
    eager = nn.Module.compile
    nn.Module.compile = lambda self, **given: eager(self, backend="eager", **given)
    loop._Session._count_operations = lambda self: None  # costs more than the steps here
    idx.read_idx = functools.cache(idx.read_idx)
    folder, cases = Path(sys.argv[2]), sys.argv[3:]
    for some in (cases[:1], cases[1:]):  # a process may join the others more than once
        options = load_recipe("image:mae-vit-tiny", installed(), twin=True).train
        with ranks.world(options.device, options.timeout) as world:
            for case in some:
                torch._dynamo.reset()
                torch._dynamo.utils.counters.clear()
                train(make(case, folder, world), quiet=True)


if __name__ == "__main__":
    main()
