"""The records of a recipe: parts by role, and the options of training and evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mim_core.errors import MimError, check_workers


@dataclass(frozen=True)
class Part:
    """A part by name, with the options that differ from its defaults."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(name: str, /, **options: Any) -> Part:
        """``Part.of("core:random", ratio=0.75)``."""
        return Part(name, options)


@dataclass(frozen=True)
class TrainConfig:
    """How a run is trained. Rates and schedules are per step; epochs count samples seen."""

    epochs: float = 800.0
    """Passes over the data; one epoch is as many samples as there are."""
    steps: int | None = None
    """Optimizer steps of the whole run, in place of epochs, which follow from them and the data."""
    hours: float | None = None
    """Hours that the whole run may take here, in place of epochs, which follow from a few steps that are measured when
    it begins; warm-up and schedule end within them."""
    batch_size: int = 4096
    """Samples per optimizer step, over all devices; items, where the data make several samples of each that is
    read."""
    micro_batch: int | None = None
    """Most of the batch at once on a device, counted like batch_size; the rest is accumulated. None: the whole
    batch."""
    base_lr: float = 1.5e-4
    """Learning rate for a batch of lr_batch; the run's is base_lr * batch_size / lr_batch."""
    lr_batch: int = 256
    """The batch that base_lr is for: 256 in MAE and most others, 512 in SimMIM."""
    warmup_epochs: float = 40.0
    """Linear warm-up."""
    warmup_lr: float = 0.0
    """Where the warm-up starts, scaled like base_lr."""
    min_lr: float = 0.0
    """Where the schedule ends, scaled like base_lr."""
    schedule: Literal["cosine", "table", "steps", "constant"] = "cosine"
    """After the warm-up: half a cosine, or a factor of 0.1 at each of the milestones, or nothing. table: cosine as
    VideoMAE's code has it, whose warm-up ends with the peak and whose last step is not yet at min_lr."""
    milestones: tuple[float, ...] = ()
    """Epochs at which the schedule "steps" takes its factor."""
    weight_decay: float = 0.05
    """Decoupled weight decay (AdamW); none on biases and 1-D parameters."""
    weight_decay_end: float | None = None
    """Weight decay at the end of the run, along half a cosine from the start (DINO, I-JEPA); None: it stays."""
    decay_tokens: bool = True
    """Weight decay on class and mask tokens and on learned tables of positions too, as MAE's code has it; SimMIM's
    and fine-tuning codes have not."""
    layer_decay: float = 1.0
    """Learning rates fall from the head to the input: each layer's is that of the layer above times this (BEiT, MAE's
    fine-tuning); 1: one rate for all."""
    optimizer: Literal["adamw", "lars"] = "adamw"
    """adamw; or lars, momentum with each layer's step in proportion to its weights (MAE's linear probing), whose
    momentum is the first of betas."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's."""
    clip_grad: float | None = None
    """Largest norm of the gradient; None does not clip."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 runs the network under autocast; targets and losses stay in fp32. auto: bf16 on a GPU, fp32 on a CPU."""
    device: str = "auto"
    """auto takes the GPU if there is one."""
    strategy: Literal["auto", "ddp", "fsdp2"] = "auto"
    """ddp: every device holds all weights; fsdp2: they are sharded. auto: ddp where there is more than one device."""
    compile: bool = False
    """Compile the forward pass; block by block under fsdp2."""
    activation_checkpointing: bool = False
    """Keep only the inputs of the blocks and compute the rest again: less memory, more time."""
    ema: float | None = None
    """Keep an average of the weights with this momentum, such as 0.9999; evaluation and export take it."""
    deterministic: bool = False
    """Only operations that give the same bits every time, on a GPU too; slower."""
    timeout: float = 600.0
    """Seconds without an answer from another device, or from a process that reads data, after which the run ends."""
    item_timeout: float = 60.0
    """Seconds that reading an item may take; one that takes longer counts as bad: named in skipped.jsonl and replaced.
    0: no limit."""
    track: tuple[str, ...] = ()
    """Trackers that are told the metrics: tensorboard, wandb, mlflow, trackio."""
    seed: int = 0
    """Decides weights, order, crops and masks."""
    workers: int = 2
    """Processes that read data; results do not depend on their number."""
    log_every: int | None = None
    """Steps between readings of the metrics; none: 10, or fewer in a short run, so that curves have 50 points."""
    checkpoint_every: int = 500
    """Steps between checkpoints; one is always written at the end."""
    keep_checkpoints: int = 2
    """Newest checkpoints that stay on disk."""
    max_hours: float | None = None
    """Stop after this time, resumable."""

    def readings(self, steps: int) -> int:
        """Steps between readings of the metrics, in a run of so many."""
        return min(10, max(1, steps // 50)) if self.log_every is None else self.log_every

    def __post_init__(self) -> None:
        for name in ("batch_size", "lr_batch", "log_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise MimError(f"train: option {name!r} must be at least 1, got {getattr(self, name)}")
        numbers = (
            "epochs",
            "base_lr",
            "warmup_epochs",
            "warmup_lr",
            "min_lr",
            "weight_decay",
            "timeout",
            "item_timeout",
        )
        for name in (*numbers, "item_timeout"):
            if not math.isfinite(getattr(self, name)):
                raise MimError(f"train: option {name!r} must be a finite number, got {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise MimError(f"train: option 'betas' must lie in [0, 1), got {self.betas}")
        if self.max_hours is not None and not self.max_hours >= 0:
            raise MimError(f"train: option 'max_hours' must be 0 or more, got {self.max_hours}")
        if self.hours is not None and not 0 < self.hours < math.inf:
            raise MimError(f"train: option 'hours' must be positive, got {self.hours}")
        if self.steps is not None and self.steps < 1:
            raise MimError(f"train: option 'steps' must be at least 1, got {self.steps}")
        if self.epochs <= 0:
            raise MimError(f"train: option 'epochs' must be positive, got {self.epochs}")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise MimError(f"train: option 'micro_batch' must be at least 1, got {self.micro_batch}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise MimError(f"train: option 'ema' must lie between 0 and 1, got {self.ema}")
        if not 0 < self.layer_decay <= 1:
            raise MimError(f"train: option 'layer_decay' must lie in (0, 1], got {self.layer_decay}")
        if not 1 <= self.timeout <= 2e6:  # the system counts milliseconds in 32 bits
            raise MimError(f"train: option 'timeout' must be 1 to 2,000,000 seconds, got {self.timeout:g}")
        if not -(2**63) <= self.seed < 2**63:
            raise MimError(f"train: option 'seed' must fit into 64 bits, got {self.seed}")
        check_workers("train: option 'workers'", self.workers)
        for name in ("base_lr", "warmup_epochs", "warmup_lr", "min_lr", "weight_decay", "item_timeout"):
            if getattr(self, name) < 0:
                raise MimError(f"train: option {name!r} must not be negative, got {getattr(self, name)}")
        if self.weight_decay_end is not None and not 0 <= self.weight_decay_end < math.inf:
            raise MimError(f"train: option 'weight_decay_end' must be 0 or more, got {self.weight_decay_end}")
        if self.clip_grad is not None and self.clip_grad <= 0:
            raise MimError(f"train: option 'clip_grad' must be positive, or none; got {self.clip_grad}")


@dataclass(frozen=True)
class EvaluateConfig:
    """How frozen features are judged."""

    on: tuple[str, ...] = ("knn", "linear")
    """Evaluations to run, by name."""
    pool: Literal["mean", "max", "mean-max", "prefix"] = "mean"
    """One vector per sample: the mean of its tokens, their largest values, both side by side, or the first prefix
    (class) token."""
    inputs: tuple[str, ...] = ()
    """Of several modalities those that features are made of: --evaluate.inputs rgb depth. All by default."""
    batch_size: int = 256
    """Samples per forward pass; no effect on results."""
    k: int = 20
    """Neighbours that vote."""
    temperature: float = 0.07
    """A neighbour votes with exp(similarity / temperature)."""
    few_labels: tuple[int, ...] = (100, 1000)
    """Label counts of the low-shot probes, drawn evenly over the classes."""
    draws: int = 5
    """Draws of each low-shot probe; their mean and spread are reported."""
    l2: float = 1.0
    """Penalty of the linear probe: l2 / 2 times the squared weights, beside the sum of cross-entropies."""
    standardize: bool = False
    """Give each feature mean 0 and deviation 1 before the linear probe; otherwise they are centred only."""
    balance: bool = False
    """Weigh classes alike in the linear probe: a sample counts by one over the share of its class among the training
    samples, as scikit-learn's class_weight "balanced"."""
    covers: int = 4
    """Anomaly scores of a masked autoencoder: how often masks that together hide every unit are drawn; errors are
    averaged over all."""
    every: float | None = None
    """Judge the features during training, every so many epochs and at both ends; None: not at all."""
    online: tuple[str, ...] = ("knn",)
    """Evaluations to run then."""
    online_samples: int = 10_000
    """Labelled samples that they use then, at most, of each split."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "k", "draws", "covers", "online_samples"):
            if getattr(self, name) < 1:
                raise MimError(f"evaluate: option {name!r} must be at least 1, got {getattr(self, name)}")
        if self.every is not None and not 0 < self.every < math.inf:
            raise MimError(f"evaluate: option 'every' must be positive, got {self.every}")
        if not 0 < self.temperature < math.inf or not 0 <= self.l2 < math.inf:
            raise MimError("evaluate: temperature must be positive, l2 not negative, and both finite")


@dataclass(frozen=True)
class RunConfig:
    """A whole run: parts by role, training and evaluation."""

    parts: Mapping[str, Part]
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    recipe: str = ""
    """Full name of the recipe that it came from."""


DEFAULTS = {"method": Part("core:masked-autoencoder")}
"""Parts of a recipe that names none in their role."""


@dataclass(frozen=True)
class ResolvedPart:
    """A part found in the registry, with all its options; ``origin`` is its distribution and version."""

    name: str
    cls: Any
    options: Any
    origin: str = ""


@dataclass(frozen=True)
class ResolvedRun:
    """A run whose parts are all known: what is shown, saved and built."""

    parts: Mapping[str, ResolvedPart]
    train: TrainConfig
    evaluate: EvaluateConfig
    recipe: str
    dropped: tuple[str, ...] = ()
    """Roles of the recipe that were taken out."""
    told: frozenset[str] | None = field(default=None, compare=False)
    """Options that the user stated, such as train.batch_size; what is not among them may follow from the data. None:
    all options are as they should be."""
    least: int = field(default=0, compare=False)
    """Steps that the run should have where its epochs may follow from the data."""

    def on_data(self, options: Any) -> ResolvedRun:
        """The same run with other options of its data source; None changes nothing."""
        if options is None:
            return self
        return replace(self, parts={**self.parts, "data": replace(self.parts["data"], options=options)})
