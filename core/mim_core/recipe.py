"""Recipes: a run as named parts with their options. A recipe is a function that returns a `RunConfig`; a user's file
is TOML with overrides.

recipe = "image:mae-vit-base"      # start from this recipe
[masker]
use = "block"                      # swap the part; its own defaults follow
ratio = 0.6
[depth.target]
use = "none"                       # take a head out; depth.tokenizer: the whole modality
[train]
epochs = 400
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import tomli_w

from mim_core.described import NotPlain, as_float, describe
from mim_core.dropping import drop
from mim_core.errors import MimError, nearest, one_line
from mim_core.kinds import ROLES
from mim_core.options import NONE, check_text, fill, plain
from mim_core.origins import told_of_changes
from mim_core.registry import Entry, Registry


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
    schedule: Literal["cosine", "steps", "constant"] = "cosine"
    """After the warm-up: half a cosine, or a factor of 0.1 at each of the milestones, or nothing."""
    milestones: tuple[float, ...] = ()
    """Epochs at which the schedule "steps" takes its factor."""
    weight_decay: float = 0.05
    """Decoupled weight decay (AdamW); none on biases and 1-D parameters."""
    decay_tokens: bool = True
    """Weight decay on class and mask tokens too, as MAE's code has it; SimMIM's has not."""
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
    log_every: int = 10
    """Steps between readings of the metrics."""
    checkpoint_every: int = 500
    """Steps between checkpoints; one is always written at the end."""
    keep_checkpoints: int = 2
    """Newest checkpoints that stay on disk."""
    max_hours: float | None = None
    """Stop after this time, resumable."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "lr_batch", "log_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
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
        if self.epochs <= 0:
            raise MimError(f"train: option 'epochs' must be positive, got {self.epochs}")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise MimError(f"train: option 'micro_batch' must be at least 1, got {self.micro_batch}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise MimError(f"train: option 'ema' must lie between 0 and 1, got {self.ema}")
        if not 1 <= self.timeout <= 2e6:  # the system counts milliseconds in 32 bits
            raise MimError(f"train: option 'timeout' must be 1 to 2,000,000 seconds, got {self.timeout:g}")
        if not -(2**63) <= self.seed < 2**63:
            raise MimError(f"train: option 'seed' must fit into 64 bits, got {self.seed}")
        if self.workers < 0:
            raise MimError(f"train: option 'workers' must be 0 or more, got {self.workers}")
        for name in ("base_lr", "warmup_epochs", "warmup_lr", "min_lr", "weight_decay", "item_timeout"):
            if getattr(self, name) < 0:
                raise MimError(f"train: option {name!r} must not be negative, got {getattr(self, name)}")
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
    every: float | None = None
    """Judge the features during training, every so many epochs and at both ends; None: not at all."""
    online: tuple[str, ...] = ("knn",)
    """Evaluations to run then."""
    online_samples: int = 10_000
    """Labelled samples that they use then, at most, of each split."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "k", "draws", "online_samples"):
            if getattr(self, name) < 1:
                raise MimError(f"evaluate: option {name!r} must be at least 1, got {getattr(self, name)}")
        if self.every is not None and not 0 < self.every < math.inf:
            raise MimError(f"evaluate: option 'every' must be positive, got {self.every}")
        if self.temperature <= 0 or self.l2 < 0:
            raise MimError("evaluate: temperature must be positive and l2 not negative")


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


def role_kind(role: str) -> str:
    """The kind of part that fills a role.

    Raises:
        MimError: No such role.
    """
    last = role.rpartition(".")[2]
    if last not in ROLES:
        near = nearest(last, ROLES)
        guess = f" Did you mean {near!r}?" if near else ""
        raise MimError(
            f"Unknown role {role!r}.{guess}\nRoles: {', '.join(ROLES)}; with a scope in front, such as depth.tokenizer."
        )
    return ROLES[last]


def resolve_part(role: str, part: Part, registry: Registry) -> ResolvedPart:
    """Finds the part and fills its options."""
    entry = registry.get(role_kind(role), part.name)
    cls = entry.resolve()
    options = fill(cls.Config, part.options, f"{role} ({entry.full_name})")
    return ResolvedPart(entry.full_name, cls, options, entry.origin)


def resolve(config: RunConfig, registry: Registry) -> ResolvedRun:
    """Finds every part of a run. Parts not named take core's: the method is a masked autoencoder."""
    parts = {**DEFAULTS, **config.parts}
    found = {role: resolve_part(role, part, registry) for role, part in parts.items()}
    where = config.recipe or "run"  # filling makes whole numbers floats where floats are wanted, as TOML will have it
    train = fill(TrainConfig, vars(config.train), f"{where}: train")
    evaluate = fill(EvaluateConfig, vars(config.evaluate), f"{where}: evaluate")
    return ResolvedRun(found, train, evaluate, config.recipe)


def load_recipe(name: str, registry: Registry, twin: bool = False) -> ResolvedRun:
    """The recipe of that name; with ``twin``, its small version for tests."""
    return resolve(made(registry.get("recipes", name), twin), registry)


def made(entry: Entry, twin: bool = False) -> RunConfig:
    """What a recipe's function returns, with the recipe's name."""
    make = entry.resolve_twin() if twin else entry.resolve()
    try:
        config = make()
    except MimError:
        raise
    except Exception as error:
        module, _, function = str(entry.twin if twin else entry.load).partition(":")
        raise MimError(
            f"The {entry.told} cannot be made: {one_line(error)}\nIts traceback: python -c "
            f'"import {module}; {module}.{function}()"'
        ) from error
    if not isinstance(config, RunConfig):
        raise MimError(f"The {entry.told} returned {type(config).__name__}, not a RunConfig.")
    return replace(config, recipe=entry.full_name)


def swap(run: ResolvedRun, role: str, name: str, registry: Registry) -> ResolvedRun:
    """The run with another part in a role. A part that is already there keeps its options; a new one starts from its
    defaults; "none" takes the role out, see `mim_core.dropping.drop`."""
    if name == NONE:
        return drop(run, role)
    entry = registry.get(role_kind(role), name)
    present = run.parts.get(role)
    if present is None and role_kind(role) != "methods" and "." not in role and role not in ROLES:
        raise MimError(f"This recipe has no {role!r}; it has {', '.join(run.parts)}.")
    if present is not None and present.name == entry.full_name:
        return run
    dropped = tuple(name for name in run.dropped if name != role)
    return replace(run, parts={**run.parts, role: resolve_part(role, Part(name), registry)}, dropped=dropped)


def override(run: ResolvedRun, values: Mapping[str, Any], where: str, registry: Registry) -> ResolvedRun:
    """The run with the values of a TOML file, or of any nested mapping of the same form.

    Raises:
        MimError: A misspelt table, option or name, with the nearest.
    """
    for table, content in values.items():
        if not isinstance(content, Mapping):
            raise MimError(f"{where}: {table!r} must be a table, such as [train].")
        if table in ("train", "evaluate"):
            section = fill(type(getattr(run, table)), content, f"{where}: {table}", getattr(run, table))
            run = replace(run, **{table: section})
            continue
        for role, options in _roles(table, content, run, where):
            if "use" in options:
                run = swap(run, role, str(options["use"]), registry)
            if options.get("use") == NONE and len(options) == 1:
                continue
            part = run.parts.get(role)
            if part is None:
                raise MimError(f'{where}: this recipe has no [{role}]; say which part with use = "NAME".')
            rest = {key: value for key, value in options.items() if key != "use"}
            filled = fill(type(part.options), rest, f"{where}: {role} ({part.name})", part.options)
            run = replace(run, parts={**run.parts, role: replace(part, options=filled)})
    return run


def _roles(table: str, content: Mapping[str, Any], run: ResolvedRun, where: str) -> list[tuple[str, Mapping[str, Any]]]:
    """[masker] is a role; [depth.target] arrives as a table of tables."""
    if table in ROLES:
        return [(table, content)]
    scopes = {role.partition(".")[0] for role in run.parts if "." in role}
    nested = content and all(isinstance(value, Mapping) and key in ROLES for key, value in content.items())
    if nested:
        return [(f"{table}.{role}", options) for role, options in content.items()]
    known = {*ROLES, "train", "evaluate", *scopes}
    near = nearest(table, known)
    guess = f" Did you mean [{near}]?" if near else ""
    raise MimError(f"{where}: unknown table [{table}].{guess}\nTables: {', '.join(sorted(known))}.")


def read_file(path: Path, registry: Registry) -> ResolvedRun:
    """A run from a TOML file: a recipe and overrides, or the resolved recipe of an earlier run."""
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise MimError(f"Cannot read {path}: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise MimError(f"{path} is not valid TOML: {error}") from None
    name = values.pop("recipe", None)
    plugins, dropped = values.pop("plugins", {}), values.pop("dropped", [])
    if not isinstance(name, str):
        raise MimError(
            f'{path} names no recipe. Its first line should read: recipe = "image:mae-vit-base". See: mim-core list '
            f"recipes"
        )
    with _origins(plugins, registry):
        run = load_recipe(name, registry)
        for role in (role for role in dropped if role in run.parts):  # a tokenizer takes its heads with it
            run = drop(run, role)
        return override(run, values, str(path), registry)


@contextmanager
def _origins(plugins: Any, registry: Registry) -> Iterator[None]:
    """Says which packages a run was written with that are not of that version here, and adds to an error those that are
    not installed here; ``plugins`` is what `to_toml` wrote: distribution -> version."""
    plugins = plugins if isinstance(plugins, Mapping) else {}
    try:
        yield
    except MimError as error:
        there = {record.distribution for record in registry.plugins}
        lost = {name: version for name, version in plugins.items() if name not in there}
        if not lost:
            raise
        named = ", ".join(f"{name} {version}" for name, version in lost.items())
        raise MimError(
            f"{error}\nThis run was written with {named}, not installed here. Run: pip install {' '.join(lost)}"
        ) from error
    told_of_changes(plugins, registry.versions())


def to_toml(run: ResolvedRun, registry: Registry) -> str:
    """The resolved recipe: every option of every part, with full names and the versions of the plugins they come
    from."""
    parts = {role: (part.name, plain(part.options)) for role, part in run.parts.items()}
    return _toml(run.recipe, run.dropped, parts, (run.train, run.evaluate), registry)


def toml_of_parts(entry: Entry, registry: Registry, twin: bool = False) -> str:
    """The same of a recipe, with the options that the sources of its parts say, so that no part is imported.

    Raises:
        NotPlain: A source does not say its options plainly.
    """
    config = made(entry, twin)
    parts = {}
    for role, part in {**DEFAULTS, **config.parts}.items():
        found = registry.get(role_kind(role), part.name)
        known = {option.name: option for option in describe(found.load).options or ()}
        given = {name.replace("-", "_"): value for name, value in part.options.items()}
        if not set(given) <= set(known):
            raise NotPlain(f"{found.full_name} has options that its source does not show")
        options = {name: as_float(given.get(name, option.default), option.type) for name, option in known.items()}
        parts[role] = (found.full_name, plain(options))
    train = fill(TrainConfig, vars(config.train), "train")
    evaluate = fill(EvaluateConfig, vars(config.evaluate), "evaluate")
    return _toml(config.recipe, (), parts, (train, evaluate), registry)


def _toml(
    recipe: str, dropped: Sequence[str], parts: Mapping[str, tuple[str, Any]], sections: Any, registry: Registry
) -> str:
    tables: dict[str, Any] = {"recipe": recipe, **({"dropped": list(dropped)} if dropped else {})}
    used = {name.partition(":")[0] for name, _ in parts.values()} | {recipe.partition(":")[0]}
    tables["plugins"] = {r.distribution: r.version for r in registry.plugins if r.name in used and r.used}
    for role, (name, options) in parts.items():
        scope, _, last = role.rpartition(".")
        target = tables.setdefault(scope, {}) if scope else tables
        target[last] = {"use": name, **{key: value for key, value in options.items() if value != {}}}
    tables["train"], tables["evaluate"] = map(plain, sections)
    for role, (_, options) in {**parts, "train": ("", plain(sections[0]))}.items():
        check_text(role, options)
    return tomli_w.dumps(tables)


def from_toml(text: str, registry: Registry) -> ResolvedRun:
    """The run that `to_toml` wrote. It does not need the recipe itself: every part is in it."""
    values = tomllib.loads(text)
    recipe, plugins = values.pop("recipe", ""), values.pop("plugins", {})
    run = ResolvedRun({}, TrainConfig(), EvaluateConfig(), recipe, tuple(values.pop("dropped", ())))
    with _origins(plugins, registry):
        return override(run, values, "recipe.toml", registry)
