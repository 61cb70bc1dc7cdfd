"""Weights from other code bases in, and ours out. Converters are proven by equal outputs, not by key names."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from mim_core.errors import MimError, warn
from mim_core.host.loading import installed
from mim_core.host.registry import Registry
from mim_core.interop.weight_files import is_safetensors, read_sizes, read_weights, reason_of
from mim_core.methods.build import build_method
from mim_core.methods.method import Method
from mim_core.recipes.config import ResolvedRun
from mim_core.recipes.toml import from_toml
from mim_core.text import counted

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
        state, own_sizes = read_state(Path(state))
        sizes = {**own_sizes, **sizes}
    weights = clean(state, getattr(importer, "groups", {}))
    try:
        return importer(weights, **sizes)
    except MimError:
        raise
    except Exception as error:
        what = f"{path_or_state} does" if isinstance(path_or_state, (str, Path)) else "These weights do"
        raise MimError(
            f"{what} not make a method of the format {format!r}, with these sizes: {reason_of(error)}"
        ) from error


def sizes_given(given: tuple[str, ...]) -> dict[str, Any]:
    """``num_heads=3`` as a name and a value: a number, a tuple, true or false; anything else is text.

    Raises:
        MimError: A text is not NAME=VALUE.
    """
    sizes: dict[str, Any] = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise MimError(f"--sizes takes NAME=VALUE, such as num_heads=12; got {text!r}.")
        try:
            sizes[name] = ast.literal_eval(value.capitalize() if value in ("true", "false", "none") else value)
        except (ValueError, SyntaxError):
            sizes[name] = value
    return sizes


def read_state(path: Path) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """A state dict from a file or a Hugging Face folder, and the sizes in the folder's ``config.json``. Never runs
    code from the file.

    Raises:
        MimError: Nothing is at the path, or the folder has no single file of weights.
    """
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


class Weights(dict[str, Tensor]):
    """A state dict in which a missing weight is the user's mistake."""

    def __missing__(self, name: str) -> Tensor:
        raise MimError(f"These weights have no {name!r}. They start with: {', '.join(list(self)[:5])}.")


def clean(state: Mapping[str, Any], groups: Mapping[str, str] = MappingProxyType({})) -> Weights:
    """The weights alone: out of an outer dict, and without the prefixes that wrappers leave on every key.

    Args:
        state: What a file holds.
        groups: Dicts of weights that stand beside the others, or in their place -> what each of their names is given in
            front, see `mim_core.interop.importers.grouped`.

    Raises:
        MimError: There are none.
    """
    content: Any = state
    beside = _beside(content, groups)
    for name in ("model", "model_state", "base_model", "state_dict", "module"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            beside |= _beside(content, groups)
    weights = Weights(_bare(content) | beside)
    if not weights:
        raise MimError(
            f"There are no weights in it; its entries are: {', '.join(map(str, list(content)[:8])) or 'none'}."
        )
    return weights


def _beside(content: Mapping[str, Any], groups: Mapping[str, str]) -> dict[str, Tensor]:
    """The weights of the groups that are there, with the group in front of their names."""
    present = {start: content[name] for name, start in groups.items() if isinstance(content.get(name), Mapping)}
    return {f"{start}{key}": value for start, group in present.items() for key, value in _bare(group).items()}


def _bare(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors by name, without what a wrapper puts in front of all of them."""
    state = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    for prefix in ("module.", "_orig_mod."):
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


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


def export_recipe(path: Path, registry: Registry) -> ResolvedRun | None:
    """The recipe of the run that ``export`` made a file of; None for other files.

    Raises:
        MimError: The file was written before exports held their recipe.
    """
    if not path.is_file() or not is_safetensors(path):
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
    return from_toml(about["run"], registry)


def read_export(path: Path, registry: Registry) -> nn.Module | None:
    """Tokenizer and encoder of a file that ``export`` wrote, as ``tokenizer`` and ``encoder`` of a module; None for
    other files.

    Raises:
        MimError: The file was written before exports held their recipe, or its weights do not fit it.
    """
    recipe = export_recipe(path, registry)
    if recipe is None:
        return None
    method = build_method(recipe, registry)
    module = nn.Module()
    module.tokenizer, module.encoder = method.tokenizer, method.encoder
    state = load_file(path)
    names = {name: _exported_name(name) for name in module.state_dict() if name != "encoder.mask_token"}
    if "pos_embed" in state:
        whole, units = state["pos_embed"], module.encoder.position.table.shape[1]  # type: ignore
        state["pos_embed"], state["prefix_position"] = whole[:, -units:], whole[:, :-units]
    own = module.state_dict()
    faults = [theirs for ours, theirs in names.items() if theirs not in state or state[theirs].shape != own[ours].shape]
    if faults:
        raise MimError(f"{path} lacks weights of its run's encoder: {', '.join(faults[:8])}. Use the run: --init RUN")
    module.load_state_dict({ours: state[theirs] for ours, theirs in names.items()}, strict=False)
    if getattr(method.encoder, "mask_token", None) is not None:
        warn(f"{path}: exports hold no mask token of the encoder; it starts from its drawn value.")
    return module


def _exported_name(ours: str) -> str:
    """Our name of a weight -> that in an export."""
    if ours == "encoder.position.table":
        return "pos_embed"
    return ours.replace("tokenizer.", "patch_embed.", 1) if ours.startswith("tokenizer.") else ours[len("encoder.") :]
