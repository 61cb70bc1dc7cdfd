"""Golden cases of training on labels: schedules, layer-wise rates, MAE's fine-tuning and its linear probing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mim_core.errors import MimError
from mim_core.interop.weights import import_checkpoint
from mim_core.methods.classifier import Classifier
from mim_core.methods.layers import layer_of, layer_scale
from mim_core.methods.mixing import Mix, mixed, mixed_labels
from mim_core.recipes.config import TrainConfig
from mim_core.testing.golden_entries import Comparison, GoldenCase
from mim_core.testing.golden_trials import compare_all, compare_numbers, compare_update
from mim_core.training.learning_rate import learning_rate
from mim_core.training.optimizer import make_optimizer, set_rate

UNITLESS = ("pos_embed", "cls_token")
"""Official names of tokens and tables, which have no weight decay."""
SIZES = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "num_classes")
"""Of a case, what the importer of fine-tuned weights takes."""


# ---- schedules -------------------------------------------------------------------------------------------------------


def try_schedule(case: GoldenCase) -> list[Comparison]:
    """Layer ids, scales, weight decays and rates of MAE's or VideoMAE's fine-tuning."""
    lines: list[Comparison] = []
    for title, groups in case.config["groups"].items():
        settings = dict(part.split("=") for part in title.split())
        depth, decay = int(settings["depth"]), float(settings["layer_decay"])
        lines.append(_layers(title, groups, depth, decay, float(settings["weight_decay"])))
    rates = _mae_rates if case.form.startswith("mae") else _videomae_rates
    for number, run in enumerate(case.config["lr"]):
        schedule = rates(run)
        lines += [compare_numbers(f"lr {number} {name}", run[name], schedule[name]) for name in schedule]
    return lines


def _layers(
    title: str, groups: Mapping[str, Sequence[float]], depth: int, decay: float, weight_decay: float
) -> Comparison:
    """All parameters of a model: three numbers each."""
    rows = []
    for name, (_, _, wanted) in groups.items():
        exempt = name in UNITLESS or name.endswith(("bias", "gamma_1", "gamma_2")) or ".norm" in f".{name}"
        decays = 0.0 if exempt or "_norm" in name else weight_decay
        rows.append([layer_of(name, depth), layer_scale(name, depth, decay), decays])
        assert isinstance(wanted, (int, float))
    if decay == 1:  # the official code then makes no layers
        return compare_numbers(title, [row[2] for row in groups.values()], [row[2] for row in rows])
    return compare_numbers(title, list(groups.values()), rows)


def _mae_rates(run: Mapping[str, Any]) -> dict[str, list[float]]:
    """What MAE's loop sets at each micro-batch, and at those that end a step: its rate is a function of the epoch with
    the share of its micro-batches, and changes where a step begins."""
    each, accumulated = run["batches_per_epoch"], run["accum_iter"]
    scale = run["batch_size"] * accumulated * run.get("world_size", 1) / 256
    train = TrainConfig(
        epochs=run["epochs"],
        warmup_epochs=run["warmup_epochs"],
        base_lr=run["blr"] * scale,
        min_lr=run["min_lr"],
        batch_size=256,
        lr_batch=256,
    )
    every, steps = [], []
    for epoch in range(run["epochs"]):
        for number in range(each):
            if number % accumulated == 0:
                rate = learning_rate(epoch * each + number, each, train)
            every.append(rate)
            if (number + 1) % accumulated == 0:
                steps.append(rate)
    return {"lr_micro_batches": every, "lr_steps": steps}


def _videomae_rates(run: Mapping[str, Any]) -> dict[str, list[float]]:
    """The same of VideoMAE's loop, whose rates are a table by step."""
    each = run["steps_per_epoch"]
    warm = run["warmup_steps"] / each if run["warmup_steps"] > 0 else run["warmup_epochs"]
    train = TrainConfig(
        epochs=run["epochs"],
        warmup_epochs=warm,
        base_lr=run["lr"],
        min_lr=run["min_lr"],
        batch_size=run["batch_size"] * run["update_freq"] * run["world_size"],
        lr_batch=256,
        schedule="table",
    )
    steps = [learning_rate(step, each, train) for step in range(each * run["epochs"])]
    return {"lr_micro_batches": [rate for rate in steps for _ in range(run["update_freq"])], "lr_steps": steps}


def try_vitdet_rates(case: GoldenCase) -> list[Comparison]:
    """ViTDet's scales, which only names that start with ``backbone`` have."""
    depth, decay, wanted = case.config["num_layers"], case.config["lr_decay_rate"], case.config["scale"]
    scales = [layer_scale(name, depth, decay) if name.startswith("backbone") else 1.0 for name in wanted]
    return [compare_numbers("scale", list(wanted.values()), scales)]


# ---- MAE -------------------------------------------------------------------------------------------------------------


def _sizes(case: GoldenCase) -> dict[str, Any]:
    return {name: case.config[name] for name in SIZES}


def _classifier(case: GoldenCase, form: str, state: Mapping[str, Tensor]) -> Classifier:
    classifier = import_checkpoint(state, format=form, **_sizes(case)).train()
    if not isinstance(classifier, Classifier):
        raise MimError(f"The import format {form!r} gave a {type(classifier).__name__}.")
    return classifier


def official(method: Classifier, weights: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Weights or gradients of a ViT classifier of ours under MAE's names; those that are None are left out."""
    present = {name: value for name, value in weights.items() if value is not None}
    renamed: dict[str, Tensor] = {}
    for name, value in present.items():
        if name == "encoder.position.table" and "encoder.prefix_position" in present:
            renamed["pos_embed"] = torch.cat([present["encoder.prefix_position"], value], dim=1)
        elif name.startswith("tokenizer."):
            renamed[name.replace("tokenizer.", "patch_embed.")] = value
        elif name.startswith("head.") and method.config.head == "linear":
            renamed[name.replace("head.0.", "head.")] = value
        elif name != "encoder.prefix_position":
            renamed[name.removeprefix("encoder.")] = value
    return renamed


def _outcome(method: Classifier, values: Tensor, label: Tensor, target: Tensor | None = None) -> tuple[Any, Tensor]:
    """The outcome, and what enters the head."""
    seen: list[Tensor] = []
    hook = method.head.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    prepared = method.prepare({"image": values, "label": label})
    outcome = method(prepared if target is None else replace(prepared, answers=target))
    hook.remove()
    return outcome, seen[0]


def try_mae(case: GoldenCase) -> list[Comparison]:
    """Mixing, outputs and gradients of one batch with either pooling, and the weights after some steps."""
    given, state = case.inputs, case.weights["state"]
    mean = _classifier(case, "mae-finetune", {name: v for name, v in state.items() if not name.startswith("norm.")})
    token = _classifier(case, "mae-finetune", {name: v for name, v in state.items() if not name.startswith("fc_norm.")})
    values: dict[str, Tensor] = {}
    soft, label = given["target_0"], given["label_0"]
    for ending, method in (("_cls", token), ("", mean)):
        outcome, features = _outcome(method, given["image_0"], label, soft)
        values |= {f"logits{ending}": outcome.prediction, f"features{ending}": features, f"loss{ending}": outcome.loss}
    raw = _outcome(mean, given["raw_0"], label)[0].prediction
    values["logits_raw"] = raw
    values["loss_hard"] = F.cross_entropy(raw, label)
    values["loss_smooth"] = F.cross_entropy(raw, label, label_smoothing=case.config["smoothing"])
    values["loss"].backward()
    gradients = official(mean, {name: p.grad for name, p in mean.named_parameters()})
    values |= {f"grad/{name}": value for name, value in gradients.items()}
    lines = _mixing(case)
    mean.zero_grad()
    after, steps = _trained(case, mean)
    lines += compare_all(case, {**values, **steps}, {})
    for name, wanted in case.weights["after"].items():
        theirs, before = after[name].detach(), state[name]
        if name.endswith("qkv.bias"):  # of keys: gradients that are 0 but for rounding
            wanted, theirs, before = (value.reshape(3, -1)[[0, 2]] for value in (wanted, theirs, before))
        lines.append(compare_update(f"after/{name}", before, wanted, theirs))
    return lines


def _mixing(case: GoldenCase) -> list[Comparison]:
    """Images and soft labels of every micro-batch, where the batch is mixed as a whole; else why not."""
    lines, given, classes = [], case.inputs, case.config["num_classes"]
    smoothing = case.config["smoothing"]
    for number, how in enumerate(case.config["mix"] if case.config["mode"] == "batch" else ()):
        mix = Mix(how["lam"], tuple(how["bbox"]) if how["cutmix"] else None)
        values = mixed(given[f"raw_{number}"], mix)
        target = mixed_labels(given[f"label_{number}"], classes, mix.left(tuple(values.shape[2:])))
        target = target * (1 - smoothing) + smoothing / classes
        lines += [
            compare_numbers(f"in/image_{number}", given[f"image_{number}"].tolist(), values.tolist()),
            compare_numbers(f"in/target_{number}", given[f"target_{number}"].tolist(), target.tolist()),
        ]
    if not lines:
        lines.append(Comparison("in/image", None, 0.0, f"mixed in mode {case.config['mode']}: batches are here"))
    return lines


def _trained(case: GoldenCase, method: Classifier) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights after the steps of the case, and the losses and gradient norms on the way."""
    config, given = case.config, case.inputs
    accumulated, count = config["accum_iter"], config["micro_batches"]
    train = _training(config, config["batch"] * accumulated)
    optimizer = make_optimizer(method, train, torch.device("cpu"))
    losses, norms = [], []
    for number in range(count):
        if number % accumulated == 0:
            set_rate(optimizer, learning_rate(config["start_epoch"] * count + number, count, train))
        label, target = given[f"label_{number}"], given[f"target_{number}"]
        loss = _outcome(method, given[f"image_{number}"], label, target)[0].loss
        losses.append(loss.detach())
        (loss / accumulated).backward()
        if (number + 1) % accumulated == 0:
            limit = float("inf") if config["clip_grad"] is None else config["clip_grad"]
            norms.append(torch.nn.utils.clip_grad_norm_(method.parameters(), limit))
            optimizer.step()
            optimizer.zero_grad()
    return official(method, dict(method.state_dict())), {"losses": torch.stack(losses), "grad_norm": torch.stack(norms)}


def _training(config: Mapping[str, Any], batch: int) -> TrainConfig:
    return TrainConfig(
        epochs=config["epochs"],
        warmup_epochs=config["warmup_epochs"],
        base_lr=config["blr"],
        min_lr=config.get("min_lr", 0.0) * 256 / batch,  # MAE's is not scaled by the batch
        batch_size=batch,
        lr_batch=256,
        weight_decay=config["weight_decay"],
        layer_decay=config["layer_decay"],
        decay_tokens=False,
        betas=(0.9, 0.999),
    )


def try_linprobe(case: GoldenCase) -> list[Comparison]:
    """Features of a frozen encoder, and the head after each step of LARS, with and without weight decay."""
    values, features = _probed(case, 0.0)
    values["features"] = features
    lines = compare_all(case, values, {})
    if "alt_weight_decay" in case.weights:
        other, _ = _probed(case, case.config["alt_weight_decay"])
        wanted = replace(case, outputs=dict(case.weights["alt_weight_decay"]), gradients={})
        lines += [replace(line, name=f"alt_weight_decay/{line.name}") for line in compare_all(wanted, other, {})]
    return lines


def _probed(case: GoldenCase, decay: float) -> tuple[dict[str, Tensor], Tensor]:
    config, given = case.config, case.inputs
    method = _classifier(case, "mae-linprobe", case.weights["state"])
    train = replace(
        _training({**config, "weight_decay": decay, "layer_decay": 1.0}, config["batch"]),
        optimizer="lars",
        betas=(config["momentum"], 0.0),
    )
    optimizer = make_optimizer(method, train, torch.device("cpu"))
    values, losses, features = dict[str, Tensor](), [], []
    for number in range(config["steps"]):
        set_rate(optimizer, learning_rate(config["start_epoch"] * config["steps"] + number, config["steps"], train))
        outcome, seen = _outcome(method, given[f"image_{number}"], given[f"label_{number}"])
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()
        losses.append(outcome.loss.detach())
        features.append(seen)
        values |= {f"step_{number + 1}.{n}": v.clone() for n, v in method.state_dict().items() if n.startswith("head.")}
    method.eval()
    values["losses"] = torch.stack(losses)
    values["logits_eval"] = _outcome(method, given["image_0"], given["label_0"])[0].prediction
    return values, torch.stack(features)
