"""The idea on one screen: hide part of a sample, predict what was hidden, keep the encoder.

A `Method` has two halves. `prepare` does all random and data-dependent work, eagerly and without gradient. `forward`
is pure with static shapes: what ``torch.compile``, DDP and FSDP2 wrap. `MaskedAutoencoder` carries MAE, SimMIM,
VideoMAE, Point-MAE and MultiMAE by its parts alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mim_core.data.source import Sample
from mim_core.data.views import View
from mim_core.errors import MimError
from mim_core.parts.encoder import Encoder
from mim_core.parts.layout import Layout, take, tensor_tree
from mim_core.parts.mask import Mask
from mim_core.parts.position import TablePosition
from mim_core.parts.samples import check_sample
from mim_core.parts.target import Target
from mim_core.parts.teacher import Teacher
from mim_core.parts.tokenizer import Tokenizer

if TYPE_CHECKING:
    from mim_core.data.source import DataSource
    from mim_core.methods.assembly import Parts
    from mim_core.recipes.config import ResolvedPart


@tensor_tree
@dataclass(frozen=True)
class Outcome:
    """What `forward` returns.

    Attributes:
        loss: The scalar to minimise.
        parts: Each head's own loss, before its weight.
        predictions: [R, Q, size] per head, at its queries.
        latent: [R, P + K, D], the encoder's output: prefix tokens first, then the kept units in their order.
        measures: What else is written into the metrics, by name: a scalar each.
    """

    loss: Tensor
    parts: dict[str, Tensor]
    predictions: dict[str, Tensor]
    latent: Tensor
    measures: dict[str, Tensor] = field(default_factory=dict)

    @property
    def prediction(self) -> Any:
        """The only head's prediction, or all by name where there are several."""
        return next(iter(self.predictions.values())) if len(self.predictions) == 1 else self.predictions


@dataclass(frozen=True)
class Features:
    """What `encode` returns: tokens [B, N, D] without the prefix, their mean [B, D], and the prefix tokens [B, P,
    D]."""

    tokens: Tensor
    pooled: Tensor
    prefix: Tensor


@dataclass(frozen=True)
class Record:
    """What a method says of one sample, as it is written for people.

    Attributes:
        row: Columns of a table, such as the class and its probability.
        files: Contents of files, by what follows the sample's name: "-depth.png".
        facts: What JSON can hold, for `Method.together`; None: nothing.
    """

    row: Mapping[str, str | int | float] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    facts: Any = None


class Method(nn.Module):
    """Base class of all methods. Subclasses give `prepare`, `forward` and `encode`; the loop needs no more. Those that
    answer something of samples without labels give `predict` and `record` too.

    Attributes:
        couples_batch: The loss compares samples with each other (InfoNCE), so a batch cannot be split for accumulation.
        rebuilds: What reports show of its answers, see `mim_core.evaluation.reconstruction`: "hidden", it has a
            ``masker`` and answers what that hides; "all", it hides nothing and rebuilds every unit; "nothing". One
            that rebuilds has a ``tokenizer``, and `Head`s by name in ``heads``.
        built_from: The parts by role, with their options; empty where `mim_core.build_method` did not build it.
    """

    Config: ClassVar[type[Any]]
    couples_batch: bool = False
    rebuilds: ClassVar[Literal["nothing", "hidden", "all"]] = "nothing"
    built_from: Mapping[str, ResolvedPart] = {}

    @classmethod
    def build(cls, config: Any, parts: Parts) -> Method:
        """Builds the method from a run's parts, see `mim_core.methods.assembly.Parts`."""
        raise NotImplementedError

    def prepare(
        self,
        sample: Sample,
        mask: Mask | Tensor | Mapping[str, Tensor] | None = None,
        *,
        step: int = 0,
        progress: float = 0.0,
    ) -> Any:
        """Random and data-dependent work, eager and without gradient."""
        raise NotImplementedError

    def forward(self, prepared: Any) -> Outcome:
        """The loss. Pure, with static shapes."""
        raise NotImplementedError

    def encode(self, sample: Sample) -> Features:
        """Features with nothing hidden, for evaluation and export."""
        raise NotImplementedError

    def predict(self, sample: Sample) -> dict[str, Tensor]:
        """Answers for samples without labels, by name, [B, ...] each; what the command predict asks. In evaluation
        mode, without gradient. Of a sample that is read in several views, the mean of its answers counts.

        Raises:
            MimError: This method answers nothing, or lacks what it needs; says what there is instead.
        """
        raise MimError(
            f"{type(self).__name__} predicts nothing of new files. To train a head on labels: mim-core finetune RUN; "
            "to get the encoder's features: mim-core embed RUN FOLDER; how abnormal files are, of runs on normal data: "
            "mim-core predict RUN FOLDER --anomaly."
        )

    def score_maps(self, sample: Sample, covers: int) -> Tensor | None:
        """How abnormal each place of each sample is, [B, ...], one value for all channels, for methods that have a way
        of their own; None: by what the method predicts of hidden units. In evaluation mode, without gradient.

        Args:
            sample: The batch, without keys: the same sample has the same scores.
            covers: How often everything is hidden, of methods that hide; see `EvaluateConfig.covers`.
        """
        return None

    def comes_next(self, program: str, folder: Path) -> str:
        """What to do with a finished run of it, as a command or as options of another; it is said where pre-training
        ends.

        Args:
            program: The program that was called, such as ``mim-core``.
            folder: Of the run.
        """
        return f"{program} evaluate {folder}"

    def record(self, answers: Mapping[str, Tensor], source: DataSource) -> Record:
        """The answers for one sample, without the batch, as a row of a table and as files."""
        raise NotImplementedError

    def together(self, samples: Sequence[tuple[str, Any]], source: DataSource) -> Mapping[str, bytes]:
        """Files about all samples together, by their names, such as one list of all boxes.

        Args:
            samples: Name of each sample whose `record` has facts, and these, in the order of the samples.
            source: What read them.
        """
        return {}

    def views(self) -> tuple[View, ...]:
        """Other views of a sample that training needs: what its parts say in ``needs_views``. Data, noise, the plan and
        the tests follow from it."""
        return tuple(dict.fromkeys(view for part in self.modules() for view in getattr(part, "needs_views", ())))

    def check(self, source: DataSource) -> None:
        """Called with a run's data before it starts, for methods that cannot be trained on any.

        Raises:
            ValueError: The two do not fit; says which options should agree. MimError where the sentence is whole.
        """
        return

    def training_source(self, source: DataSource) -> DataSource:
        """What the loop trains on: the source itself, or one made of it, such as its labelled training split.

        Raises:
            MimError: The method cannot be trained on it.
        """
        return source

    def after_step(self, progress: float) -> None:
        """Called after each optimizer step: every `Teacher` of the method follows it, and every `Target` and `Encoder`
        that keeps something of past batches takes the last one in. A subclass that does more calls this too.

        Args:
            progress: Share of the run that is done; in a run a `Progress`, which knows step and epoch.
        """
        for module in self.modules():
            if isinstance(module, Teacher):
                module.follow(self, progress)
            elif isinstance(module, Target | Encoder):
                module.after_step()

    def carry(self) -> None:
        """Called when a finished or stopped run is opened: makes ``tokenizer`` and ``encoder`` those that are carried
        on, to evaluate, export, finetune and --init. Training goes on from a checkpoint without it."""
        return

    def blocks(self) -> list[nn.Module]:
        """The repeated blocks, which are sharded, recomputed and, when sharded, compiled one by one: by default the
        children of every list named ``blocks``, of teachers too."""
        lists = (module for name, module in self.named_modules() if name.rpartition(".")[2] == "blocks")
        return [block for stack in lists if isinstance(stack, nn.Sequential | nn.ModuleList) for block in stack]

    def depth(self) -> int:
        """Blocks of the encoder, which layer-wise rates and freezing go by; 0 where it has no list of them."""
        blocks = getattr(getattr(self, "encoder", None), "blocks", None)
        return len(blocks) if isinstance(blocks, nn.Sequential | nn.ModuleList) else 0

    def parameter_groups(self, decay_tokens: bool = True) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Parameters with and without weight decay: none on biases and 1-D parameters, and on learned tokens and tables
        of positions only with ``decay_tokens``.

        Learned tokens and scales are recognised by shape: every axis but the last has length 1.
        """
        tables = {id(p) for part in self.modules() if isinstance(part, TablePosition) for p in part.parameters()}
        decayed: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        for parameter in self.parameters():
            if not parameter.requires_grad:
                continue
            is_token = (parameter.ndim > 1 and parameter.numel() == parameter.shape[-1]) or id(parameter) in tables
            exempt = parameter.ndim < 2 or (is_token and not decay_tokens)
            (plain if exempt else decayed).append(parameter)
        return decayed, plain


def encode_all(tokenizer: Tokenizer, encoder: Encoder, sample: Sample) -> Features:
    """Encodes every unit that is there, see `MaskedAutoencoder.encode`.

    Raises:
        ValueError: A sample has none of its units, or the batch is not what was meant, see `samples.check_sample`.
    """
    check_sample(tokenizer, sample)
    patches = tokenizer.split(sample)
    tokens = tokenizer.embed(patches.values)
    mask = Mask.nothing_hidden(tokens.shape[0], patches.layout, tokens.device)
    if patches.layout.valid is not None:
        if encoder.takes == "values":
            raise ValueError(f"a {type(encoder).__name__} needs all units, and some of these samples lack some")
        return _encode_valid(encoder, tokens, patches.layout, mask, patches.layout.valid)
    encoded = encoder(tokens, patches.layout, mask)
    return Features(encoded.tokens, encoded.tokens.mean(dim=1), encoded.prefix)


def _encode_valid(encoder: Encoder, tokens: Tensor, layout: Layout, mask: Mask, valid: Tensor) -> Features:
    """Those units alone are seen. Where the encoder cannot leave units of a row out, samples that have the same ones
    are encoded together."""
    if not torch.compiler.is_compiling() and not bool(valid.any(dim=1).all()):
        raise ValueError("a sample has none of its units")
    if encoder.pads:
        encoded = encoder(tokens, layout, replace(mask, kept_valid=valid))
        zeroed = encoded.tokens.masked_fill(~valid[:, :, None], 0.0)
        return Features(zeroed, zeroed.sum(dim=1) / valid.sum(dim=1, keepdim=True), encoded.prefix)
    out, prefix = torch.zeros_like(tokens), None
    patterns, which = valid.unique(dim=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        rows = (which == number).nonzero()[:, 0]
        ids = pattern.nonzero()[:, 0].expand(len(rows), -1)
        part = Mask(mask.hidden[rows], ids, mask.query_ids[rows], mask.weight[rows])
        encoded = encoder(take(tokens[rows], ids), layout.rows(rows), part)
        out = out.to(encoded.tokens.dtype)
        out[rows] = out[rows].scatter(1, ids[:, :, None].expand_as(encoded.tokens), encoded.tokens)
        if prefix is None:
            prefix = encoded.prefix.new_zeros(len(tokens), *encoded.prefix.shape[1:])
        prefix[rows] = encoded.prefix
    assert prefix is not None
    return Features(out, out.sum(dim=1) / valid.sum(dim=1, keepdim=True), prefix)
