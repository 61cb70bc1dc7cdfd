"""Weights from other code bases in, and ours out. Converters are proven by equal outputs, not by key names."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from mim_core.errors import MimError, warn
from mim_core.method import Method
from mim_core.plugins import installed
from mim_core.registry import Registry
from mim_core.tensors import write_tensors
from mim_core.weights_files import read_sizes, read_weights, said_of
from mim_core.words import counted

State = Mapping[str, Tensor]


def import_checkpoint(
    path_or_state: str | Path | State, *, format: str, registry: Registry | None = None, **sizes: Any
) -> Method:
    """A method with weights of another code base.

    Args:
        path_or_state: A ``.pth``, ``.pt`` or ``.safetensors`` file, a Hugging Face folder, or the state dict itself.
        format: Which code base wrote it: ``mae``, ``simmim``, ... See ``mim-core list importers``.
        registry: Where formats are looked up; what is installed by default.
        sizes: What cannot be read off the weights, under the code base's own names.

    Raises:
        MimError: An unknown format, an unreadable file, a missing or unexpected key, sizes that contradict the weights.
    """
    importer: Callable[..., Method] = (registry or installed()).get("importers", format.replace("_", "-")).resolve()
    state = path_or_state
    if isinstance(state, (str, Path)):
        state, found = read_state(Path(state))
        sizes = {**found, **sizes}
    weights = clean(state)
    try:
        return importer(weights, **sizes)
    except MimError:
        raise
    except Exception as error:
        if not isinstance(path_or_state, (str, Path)):
            raise
        raise MimError(
            f"{path_or_state} does not make a method of the format {format!r}, with these sizes: {said_of(error)}"
        ) from error


def read_state(path: Path) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """A state dict from a file or a Hugging Face folder, and the sizes in the folder's ``config.json``. Never runs
    code from the file."""
    if not path.exists():
        raise MimError(f"No weights at {path}.")
    sizes: dict[str, Any] = {}
    if path.is_dir():
        sizes = read_sizes(path)
        files = [path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).exists()]
        if not files:
            several = sorted(each.name for each in path.glob("*.index.json"))
            why = (
                f" Its weights are in several files ({several[0]}), which are not read: save it as one."
                if several
                else ""
            )
            raise MimError(f"{path} holds neither model.safetensors nor pytorch_model.bin.{why}")
        path = files[0]
    return read_weights(path), sizes


def clean(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights alone: out of an outer dict, and without the prefixes that wrappers leave on every key.

    Raises:
        MimError: There are none.
    """
    content: Any = state
    for name in ("model", "model_state", "base_model", "state_dict", "module"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    state = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not state:
        raise MimError(
            f"There are no weights in it; its entries are: {', '.join(map(str, list(content)[:8])) or 'none'}."
        )
    for prefix in ("module.", "_orig_mod."):
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _as_timm_has_it(name: str, arguments: dict[str, Any], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights that timm's model wants, checked by name and shape.

    Models with a norm before their blocks have no bias in the patch embedding; ours moves into the position table,
    which is added to the same tokens.
    """
    with torch.device("meta"):
        wanted = timm.create_model(name, **arguments).state_dict()
    bias = weights.get("patch_embed.proj.bias")
    if bias is not None and "patch_embed.proj.bias" not in wanted and "pos_embed" in weights:
        weights = {key: value for key, value in weights.items() if key != "patch_embed.proj.bias"}
        table = weights["pos_embed"].clone()
        units = math.prod(n // p for n, p in zip(arguments["img_size"], _pair(arguments["patch_size"]), strict=True))
        table[:, -units:] += bias
        weights["pos_embed"] = table
    faults = sorted(set(wanted) ^ set(weights))
    faults += [key for key in wanted if key in weights and wanted[key].shape != weights[key].shape]
    if faults:
        raise MimError(f"timm's {name} has other weights than this encoder, in: {', '.join(faults[:8])}.")
    return weights


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def fill_weights(module: nn.Module, state: State, source: Mapping[str, str], unused: Iterable[str] = ()) -> None:
    """Loads weights strictly.

    Args:
        module: Takes the weights.
        state: The other code base's weights.
        source: Our name -> their name, for every weight of ``module``.
        unused: Their names that are left out on purpose.

    Raises:
        MimError: A key is missing, is left over, has another shape or values that are not finite; all such are named.
    """
    own = module.state_dict()
    faults = [f"no place is known for our {name}" for name in own if name not in source]
    faults += [f"missing: {theirs}" for theirs in source.values() if theirs not in state]
    left = sorted(set(state) - set(source.values()) - set(unused))
    faults += [f"unexpected: {name}" for name in left]
    moved = {}
    for ours, theirs in source.items():
        if theirs not in state:
            continue
        value = state[theirs]
        if value.is_floating_point() and not bool(value.isfinite().all()):
            faults.append(f"{theirs} has values that are not finite")
        if ours not in own:
            faults.append(f"{theirs} has no place: this model has no {ours}")
        elif value.numel() != own[ours].numel() or value.squeeze().shape != own[ours].squeeze().shape:
            faults.append(f"{theirs} is {tuple(value.shape)}, and {ours} is {tuple(own[ours].shape)}")
        else:
            moved[ours] = value.reshape(own[ours].shape)
    if faults:
        raise MimError(
            f"These weights do not fit ({counted(len(faults), 'difference')}):\n  " + "\n  ".join(faults[:20])
        )
    module.load_state_dict(moved, strict=True)


def export_timm(
    method: Method,
    path: Path,
    extra: Mapping[str, str] | None = None,
    inputs: Mapping[str, Any] | None = None,
    classes: tuple[str, ...] = (),
) -> str:
    """Writes the encoder as safetensors under timm's names, with how to load it in the metadata. Returns that line of
    Python. A classifier with one linear layer keeps it, where timm pools as it does.

    Args:
        method: Has the encoder.
        path: The file.
        extra: More metadata.
        inputs: What timm should know of the inputs, under timm's names: ``mean``, ``std``, ``interpolation``, ...
        classes: Names of a classifier's classes.

    Raises:
        MimError: The method has no single patch tokenizer in front of an encoder that timm knows.
    """
    from mim_core.tokenizer import PatchTokenizer

    tokenizer, encoder = getattr(method, "tokenizer", None), getattr(method, "encoder", None)
    if (
        not isinstance(tokenizer, PatchTokenizer)
        or len(tokenizer.config.patch) != 2
        or not hasattr(encoder, "timm_weights")
    ):
        several = ", ".join(getattr(tokenizer, "parts", {}))
        has = f"the tokenizers {several} beside each other" if several else "another tokenizer or encoder"
        raise MimError(f"timm holds encoders of two-dimensional patches of one picture; this method has {has}.")
    assert encoder is not None
    config = tokenizer.config
    name, arguments = encoder.timm_model()
    patch: Any = config.patch[0] if len(set(config.patch)) == 1 else config.patch
    arguments = {
        **arguments,
        "img_size": config.size,
        "patch_size": patch,
        "in_chans": config.channels,
        "num_classes": 0,
    }
    weights = {f"patch_embed.{key}": value for key, value in tokenizer.state_dict().items()}
    weights.update(encoder.timm_weights())
    head, pool = _timm_head(method, arguments)
    if head:
        weights.update(head)
        arguments = {**arguments, "num_classes": len(head["head.bias"]), "global_pool": pool}
    weights = _as_timm_has_it(name, arguments, weights)
    shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    eps = getattr(encoder.config, "norm_eps", 1e-6)
    if eps != 1e-6 and getattr(encoder.config, "name", None) is None:  # timm's own is 1e-6
        shown += f", norm_layer=functools.partial(torch.nn.LayerNorm, eps={eps!r})"
    known = {"input_size": (config.channels, *config.size), "num_classes": arguments["num_classes"], **(inputs or {})}
    shown += f", pretrained_cfg_overlay={known!r}"
    line = f'timm.create_model("{name}", {shown}, checkpoint_path="{path.name}")'
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"timm_model": name, "timm_arguments": json.dumps(arguments), "load": line, **(extra or {})}
    metadata["timm_config"] = json.dumps(known)
    if head and classes:
        metadata["classes"] = json.dumps(list(classes))
    write_tensors(path, {key: value.detach().cpu().contiguous() for key, value in weights.items()}, metadata)
    return line


def _timm_head(method: Method, arguments: Mapping[str, Any]) -> tuple[dict[str, Tensor], str]:
    """A classifier's linear layer under timm's names, and how timm pools for it; empty, with a warning, where timm has
    no such head."""
    from mim_core.finetune import Classifier, Supervised

    if not isinstance(method, Supervised):
        return {}, ""
    pools = {"mean": "avg", "prefix": "token", "max": "max"} if "fc_norm" in arguments else {"prefix": "token"}
    pool = pools.get(method.config.pool) if isinstance(method, Classifier) else None
    if pool is None or not isinstance(method, Classifier) or method.config.head != "linear":
        warn("timm has no head like this run's, so the file has the encoder alone: num_classes is 0.")
        return {}, ""
    return {f"head.{name}": value for name, value in method.head[-1].state_dict().items()}, pool  # type: ignore


def read_export(path: Path, registry: Registry) -> nn.Module | None:
    """Tokenizer and encoder of a file that ``export`` wrote, as ``tokenizer`` and ``encoder`` of a module; None for
    other files.

    Raises:
        MimError: The file was written before exports held their recipe, or its weights do not fit it.
    """
    from mim_core.build import build_method
    from mim_core.recipe import from_toml

    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
    except SafetensorError as error:
        raise MimError(f"{path} cannot be read as weights: {error}") from error
    if "timm_model" not in about:
        return None
    if "run" not in about:
        raise MimError(f"{path} is an export of an earlier version, without its recipe. Export the run again.")
    method = build_method(from_toml(about["run"], registry), registry)
    found = nn.Module()
    found.tokenizer, found.encoder = method.tokenizer, method.encoder
    state = load_file(path)
    names = {name: _exported_name(name) for name in found.state_dict() if name != "encoder.mask_token"}
    if "pos_embed" in state:
        state["pos_embed"] = state["pos_embed"][:, -found.encoder.position.table.shape[1] :]  # type: ignore
    faults = [theirs for theirs in names.values() if theirs not in state]
    if faults:
        raise MimError(f"{path} lacks weights of its run's encoder: {', '.join(faults[:8])}. Use the run: --init RUN")
    found.load_state_dict({ours: state[theirs] for ours, theirs in names.items()}, strict=False)
    return found


def _exported_name(ours: str) -> str:
    """Our name of a weight -> that in an export."""
    if ours == "encoder.position.table":
        return "pos_embed"
    return ours.replace("tokenizer.", "patch_embed.", 1) if ours.startswith("tokenizer.") else ours[len("encoder.") :]
