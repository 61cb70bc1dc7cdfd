"""The hooks. Those that register are called once, while the registry of installed parts is made; none inside a
training step.

A plugin is a module with functions of these names, marked ``@mim_core.hookimpl`` and announced by an entry point of
group ``mim_core``:

    [project.entry-points.mim_core]
    checker = "mim_checker.plugin"

The module should import neither torch nor its own heavy parts: it hands over names and lazy references, so that
``mim-core plugins`` answers at once. An implementation takes only the arguments it names. ``register`` is made per
plugin, so every entry knows its origin:

    @hookimpl
    def mim_register_maskers(register):
        register(name="checker", load="mim_checker.masker:CheckerMasker", summary="Every other unit.")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from mim_core.host.findings import Finding
    from mim_core.host.registry import EvaluationRegister, RecipeRegister, Register


PROJECT = "mim_core"


hookspec = pluggy.HookspecMarker(PROJECT)


hookimpl = pluggy.HookimplMarker(PROJECT)


# ---- parts of a method -----------------------------------------------------------------------------------------------


@hookspec
def mim_register_tokenizers(register: Register) -> None:
    """Register `Tokenizer` classes: from a sample to units, from units to tokens."""


@hookspec
def mim_register_maskers(register: Register) -> None:
    """Register `Masker` classes: which units are hidden."""


@hookspec
def mim_register_targets(register: Register) -> None:
    """Register `Target` classes: what a hidden unit's answer should be, and the loss against it."""


@hookspec
def mim_register_encoders(register: Register) -> None:
    """Register `Encoder` classes: tokens of the kept units in, latent tokens out."""


@hookspec
def mim_register_decoders(register: Register) -> None:
    """Register `Decoder` classes: an answer at every queried unit, or one for the sample."""


@hookspec
def mim_register_teachers(register: Register) -> None:
    """Register `Teacher` classes: encoders that say what a student should answer."""


@hookspec
def mim_register_scorers(register: Register) -> None:
    """Register `Scorer` classes: which units a guided masker should mind."""


# ---- whole methods, and what surrounds them --------------------------------------------------------------------------


@hookspec
def mim_register_methods(register: Register) -> None:
    """Register `Method` classes for methods that `MaskedAutoencoder` and its parts do not carry."""


@hookspec
def mim_register_recipes(register: RecipeRegister) -> None:
    """Register functions that return a `RunConfig`. Each names a ``twin``: the same recipe made small for tests."""


@hookspec
def mim_register_finetunings(register: RecipeRegister) -> None:
    """Register functions that return a `RunConfig` whose method learns from labels: for ``finetune NAME``, and for
    ``finetune RUN --recipe NAME``. Each names a ``twin``."""


@hookspec
def mim_register_data(register: Register) -> None:
    """Register `DataSource` classes: samples for pre-training, labelled samples for evaluation."""


@hookspec
def mim_register_evaluations(register: EvaluationRegister) -> None:
    """Register functions ``(study: Study) -> list[Score]`` for ``evaluate --on NAME``."""


@hookspec
def mim_register_importers(register: Register) -> None:
    """Register functions ``(state, **sizes) -> Method`` for weights of other code bases, by format name. What
    `mim_core.interop.importers.build` makes tells its parts, and so ``mim-core import`` can write it as a run."""


@hookspec
def mim_register_exporters(register: Register) -> None:
    """Register functions ``(method, inputs, classes) -> Exported`` for ``export --to NAME``, see
    `mim_core.interop.exporters`. ``export --to hf`` takes the first of those named ``hf-...`` that takes the method."""


# ---- the machine -----------------------------------------------------------------------------------------------------


@hookspec
def mim_diagnose() -> list[Finding]:  # type: ignore[empty-body]
    """What ``doctor`` should say of this plugin's needs: libraries present or missing, and what that means for a run.

    Optional libraries are looked up (`mim_core.host.findings.library`), not imported. An error here becomes a finding.
    """


# ---- observers: rank 0 only, between steps, results ignored ----------------------------------------------------------


@hookspec
def mim_run_started(run: Any) -> None:
    """A run begins or resumes. ``run`` is `mim_core.runs.run.Run`. An error here ends the run; later ones are
    warnings."""


@hookspec
def mim_metrics_read(run: Any, metrics: Any) -> None:
    """A line of ``metrics.jsonl`` is written; ``metrics`` is its mapping. Once every ``log_every`` steps."""


@hookspec
def mim_features_judged(run: Any, scores: Any) -> None:
    """The features were judged during training; ``scores`` is a list of `mim_core.scores.Score`."""


@hookspec
def mim_checkpoint_saved(run: Any, path: Any) -> None:
    """A checkpoint is whole on disk at ``path``."""


@hookspec
def mim_run_finished(run: Any) -> None:
    """The run reached its last step."""


@hookspec
def mim_run_left(run: Any) -> None:
    """The run ends, complete, stopped or failed: the last call, for what must be closed."""
