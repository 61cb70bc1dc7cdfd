"""``--dry-run``: what a run would do, counted on the meta device so that no memory is needed."""

from __future__ import annotations

from functools import partial

from rich.markup import escape
from rich.table import Table
from torch import nn

from mim_core.errors import MimError
from mim_core.methods.method import Method
from mim_core.parts.layout import Layout
from mim_core.parts.mask import Mask
from mim_core.recipes.toml import completed, to_toml
from mim_core.runs import checkpoint
from mim_core.runs.folder import check_folder
from mim_core.runs.run import Run
from mim_core.terminal import console, tell
from mim_core.text import amount, counted, rounded, times
from mim_core.training.advice import peak_rate
from mim_core.training.cost import step_cost
from mim_core.training.engine import chosen
from mim_core.training.hours import Elsewhere, planned
from mim_core.training.pace import SMALL, time_of


def count_parameters(module: nn.Module | None, trained: bool = True) -> int:
    """Trainable parameters, or those that stay as they are."""
    return 0 if module is None else sum(p.numel() for p in module.parameters() if p.requires_grad == trained)


def _unit_rows(layout: Layout, mask: Mask | None, samples: int) -> dict[str, str]:
    """Units hidden, seen and predicted, and tokens seen by the encoder in all; of methods that hide none, or in a way
    of their own, the units alone."""
    grid = f" on a grid of {times(layout.grid)}" if layout.grid else ""
    if mask is None:
        return {"units": f"{layout.count}{grid}"}
    kept, asked = mask.kept_ids.shape[1], mask.query_ids.shape[1]
    hidden = layout.count - kept if kept < layout.count else asked
    return {
        "units": f"{layout.count}{grid}; {hidden} hidden, {kept} into the encoder, {asked} predicted",
        "tokens seen": amount(samples * kept * mask.per_sample, "tokens") + " by the encoder in all",
    }


def _parameters(method: Method, parameters: int, frozen: int) -> str:
    encoder = count_parameters(getattr(method, "encoder", None)) + count_parameters(getattr(method, "tokenizer", None))
    return (
        f"{amount(parameters, '')}: encoder with tokenizer {amount(encoder, '')}, the rest "
        f"{amount(parameters - encoder, '')}"
        + (f"; beside them {amount(frozen, '')} that stay as they are" if frozen else "")
    )


def _steps(run: Run) -> str:
    """Steps and epochs, and what each is of."""
    each, train = run.source.samples_per_item, run.train
    made = f" ({counted(train.batch_size, 'item')}, {each} samples of each)" if each > 1 else ""
    return (
        f"{counted(run.steps, 'step')}, each of {counted(run.samples_per_step, 'sample')}{made}; "
        f"{counted(rounded(train.epochs), 'epoch')}, each of {counted(rounded(run.steps_per_epoch), 'step')}"
    )


def plan_rows(run: Run, timed: bool = False, elsewhere: Elsewhere | None = None) -> dict[str, str]:
    """The plan, label by label.

    Args:
        run: What is planned.
        timed: Whether to say how long it takes, by a few steps; the run's weights are no longer its own afterwards.
        elsewhere: Devices that are not here, which the plan is for too.
    """
    method: Method = run.method
    train, micro = run.train, run.micro
    operations, activations, mask = step_cost(run)
    parameters, frozen = count_parameters(method), count_parameters(method, trained=False)
    weights = parameters * 16 + frozen * 4
    rows = {"recipe": run.config.recipe}
    rows.update({role: part.name for role, part in run.config.parts.items() if role != "data"})
    rows.update({**run.source.plan(), **run.source.contents()})
    rows["input"] = "; ".join(f"{name} {times(shape)}" for name, shape in run.source.shapes.items())
    tokenizer = getattr(method, "tokenizer", None)
    if tokenizer is not None:
        rows.update(_unit_rows(tokenizer.layout, mask, run.samples_per_step * run.steps))
    rows["parameters"] = _parameters(method, parameters, frozen)
    each = run.source.samples_per_item
    rows["steps"] = _steps(run)
    if run.world.size > 1:
        rows["ranks"] = f"{run.world.size}, {chosen(train, run.world.size)}"
    if micro != train.batch_size:
        several = counted(run.accumulation, "micro-batch", "micro-batches")
        rows["batch"] = f"{counted(run.world.size, 'rank')} x {several} of {micro}"
    if run.sizes:
        rows["sizes"] = "\n".join(run.sizes)
    peak = peak_rate(train, len(run.source), run.steps)
    warmup = counted(rounded(train.warmup_epochs), "epoch")
    rows["learning rate"] = f"up to {peak:.3g}, {train.schedule}; {warmup} of warm-up"
    rows["operations"] = (
        f"{amount(operations, 'FLOP')} per sample, {amount(operations * run.samples_per_step, 'FLOP')} per step, "
        f"{amount(operations * run.samples_per_step * run.steps, 'FLOP')} in all"
    )
    held = activations * micro * each
    rows["memory"] = (
        f"about {amount(weights + held, 'B')} in fp32: {amount(weights, 'B')} weights, gradients and "
        f"moments, {amount(held, 'B')} activations"
    )
    rows.update(_rows_elsewhere(run, elsewhere, operations, weights, activations))
    if timed:
        measured = partial(time_of, run, operations, weights + activations * SMALL * each)
        rows["time"] = measured() if train.hours is None else planned(train.hours)
    rows["device"] = f"{run.device}, {train.precision}"
    newest = checkpoint.newest(run.folder)
    rows["output"] = f"{run.folder}" + (f", resuming {newest.name}" if newest else "")
    return rows


def _rows_elsewhere(
    run: Run, elsewhere: Elsewhere | None, operations: int, weights: int, activations: int
) -> dict[str, str]:
    """Time and memory on devices that are not here."""
    if elsewhere is None:
        return {}
    return {
        f"time on {elsewhere.name}": elsewhere.time(operations * run.samples_per_step, run.steps, run.samples_per_step),
        f"memory on {elsewhere.name}": elsewhere.memory(weights, activations, run.samples_per_step),
    }


def dry_run(run: Run, plan_for: str | None = None) -> None:
    """What ``--dry-run`` does instead of training: checks the run's folder and prints the plan, on the first rank.

    Args:
        run: What is planned.
        plan_for: Devices that are not here, such as "h100:8", which the plan is for too.

    Raises:
        MimError: The folder cannot be used, or holds a run of another recipe; or the devices are not known.
    """
    elsewhere = None if plan_for is None else Elsewhere.of(plan_for)
    text, complete = to_toml(run.config, run.registry), partial(completed, registry=run.registry)
    run.world.on_first(lambda: check_folder(run.folder, text, complete))
    if run.world.first:
        print_plan(run, elsewhere)


def check_plan(dry: bool, plan_for: str | None) -> None:
    """Refuses devices to plan for where nothing is planned.

    Raises:
        MimError: ``--plan-for`` without ``--dry-run``.
    """
    if plan_for is not None and not dry:
        raise MimError(f"--plan-for {plan_for} goes with --dry-run, which prints the plan; without it the run trains.")


def print_plan(run: Run, elsewhere: Elsewhere | None = None) -> None:
    """The plan on the terminal."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in plan_rows(run, True, elsewhere).items():
        table.add_row(label, escape(text))
    console().print(table)
    tell("Nothing was written. Leave --dry-run out to start.")
