"""Golden cases: what the official implementation of a method gives for small random weights and inputs, in a file.

A ``.safetensors`` file holds ``state/<official name>`` and ``teacher.../<official name>`` (weights), ``in/<name>``,
``out/<name>`` and ``grad/<official name>``; its metadata ``config`` is a JSON text with the method and all sizes.
`try_case` imports the weights, prepares the inputs, and compares every output and gradient that the method's
`GoldenAdapter` knows. The adapter stands beside the importer: a dict ``GOLDEN`` in the importer's module, by format.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mim_core.errors import MimError, one_line
from mim_core.host.loading import installed
from mim_core.interop.weights import import_checkpoint
from mim_core.methods.method import Method, Outcome
from mim_core.testing.checks import seeded
from mim_core.testing.golden_entries import Comparison, Entries, GoldenCase, compare
from mim_core.testing.golden_trials import read_numbers, trial_of

FORMATS = {"ijepa": "i-jepa"}
"""Import formats of methods whose name in a file is another."""


@dataclass(frozen=True)
class GoldenAdapter:
    """How one format's cases are tried.

    Attributes:
        sample: Of the case: the batch that `Method.prepare` takes.
        mask: Of the case: what it takes as a mask.
        outputs: Of (case, method, prepared, outcome): values by the names that the case's outputs have. "loss" is added
            where it is not among them.
        names: Of a method: our names of parameters -> official names, for gradients.
        left_out: Outputs that are not compared, by the start of their name -> why.
        after: Of (case, method): what is compared after the backward pass, such as a teacher's update, and gradients
            under names such as "grad/blocks.0.attn.q_bias" that are parts of ours.
    """

    sample: Callable[[GoldenCase], dict[str, Tensor]]
    mask: Callable[[GoldenCase], Any]
    outputs: Callable[[GoldenCase, Method, Any, Outcome], dict[str, Tensor]]
    names: Callable[[Method], Mapping[str, str]]
    left_out: Mapping[str, str] = field(default_factory=dict)
    after: Callable[[GoldenCase, Method], dict[str, Tensor]] | None = None


def read_case(path: Path) -> GoldenCase:
    """The case of a file.

    Raises:
        MimError: It is no golden case.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, "pt") as file:
            config = json.loads((file.metadata() or {})["config"])
            for key in file.keys():  # noqa: SIM118 - not a dict
                group, _, name = key.partition("/")
                groups.setdefault(group, {})[name] = file.get_tensor(key)
        method = config.pop("method").replace("_", "-")
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise MimError(f"{path} is no golden case: {type(error).__name__}: {error}") from error
    entries = [Entries(groups.pop(name, {}), f"{name}/") for name in ("in", "out", "grad")]
    weights = {group: Entries(those, f"{group}/") for group, those in groups.items()}
    return GoldenCase(path, FORMATS.get(method, method), Entries(config, "config: "), weights, *entries)


def adapter_of(form: str) -> GoldenAdapter:
    """The adapter beside a format's importer.

    Raises:
        MimError: The format is not imported, or has no adapter.
    """
    entry = installed().get("importers", form)
    module = importlib.import_module(str(entry.load).partition(":")[0])
    adapter = getattr(module, "GOLDEN", {}).get(entry.name)
    if not isinstance(adapter, GoldenAdapter):
        raise MimError(f"The import format {form!r} has no golden adapter: {module.__name__} has no GOLDEN[{form!r}].")
    return adapter


def try_case(path: Path) -> list[Comparison]:
    """Every entry of a case against what our method gives.

    Raises:
        MimError: The file is no case, its format is not known, or its inputs do not fit its weights.
    """
    case = read_numbers(path) if path.suffix == ".json" else read_case(path)
    trial = trial_of(case.form)
    adapter = adapter_of(case.form) if trial is None else None
    try:
        return trial(case) if trial is not None else _tried(case, adapter)  # type: ignore[arg-type]
    except MimError:
        raise
    except (ValueError, RuntimeError, IndexError) as error:  # what the inputs are not fit for
        raise MimError(f"The case cannot be tried: {type(error).__name__}: {one_line(error)}") from error


def _tried(case: GoldenCase, adapter: GoldenAdapter) -> list[Comparison]:
    method = import_checkpoint(case.state(), format=case.form, **case.config).train()
    prepared = method.prepare(adapter.sample(case), mask=adapter.mask(case))
    with seeded():
        outcome: Outcome = method(prepared)
    actual = {"loss": outcome.loss, **adapter.outputs(case, method, prepared, outcome)}
    actual = {name: value.detach().clone() for name, value in actual.items()}
    outcome.loss.backward()
    if adapter.after is not None:
        actual |= adapter.after(case, method)
    lines = [compare(name, wanted, actual.get(name), adapter.left_out) for name, wanted in case.outputs.items()]
    ours = {theirs: name for name, theirs in adapter.names(method).items()}
    for theirs, wanted in case.gradients.items():
        gradient = actual.get(f"grad/{theirs}")
        if gradient is None and theirs in ours:
            gradient = method.get_parameter(ours[theirs]).grad
        lines.append(compare(f"grad/{theirs}", wanted, gradient, adapter.left_out))
    return lines


def as_text(lines: list[Comparison]) -> str:
    """The comparisons as a table."""
    rows = [
        f"  left out  {line.name}: {line.why}"
        if line.apart is None
        else f"  {'ok' if line.fits else 'OFF':8}  {line.name}: {line.apart:.1e} of {line.allowed:.0e}"
        + (f" ({line.why})" if line.why else "")
        for line in lines
    ]
    return "\n".join(rows)


def whole_answers(head: Any, encoded: Any, sample: Any, patches: Any, mask: Any) -> tuple[Tensor, Tensor]:
    """What a head's transformer decoder answers at every unit, kept ones too, and what its target wants there: [B, N,
    size] each, by place. Official codes put out both, though only hidden units are in the loss."""
    places = torch.cat([mask.kept_ids, mask.query_ids], dim=1)
    every = replace(mask, query_ids=places.sort(dim=1).values, weight=torch.ones(places.shape))
    return answers_everywhere(head, encoded, patches, mask), head.target.make(sample, patches, every)


def answers_everywhere(head: Any, encoded: Any, patches: Any, mask: Any) -> Tensor:
    """The first of these alone."""
    decoder = head.decoder
    predictions: Tensor = decoder.decode(encoded, patches.layout, mask)[:, encoded.prefix.shape[1] :]
    predictions = decoder.pred(decoder.norm(predictions))
    places = torch.cat([mask.kept_ids, mask.query_ids], dim=1)
    return torch.zeros_like(predictions).scatter(1, places[:, :, None].expand_as(predictions), predictions)
