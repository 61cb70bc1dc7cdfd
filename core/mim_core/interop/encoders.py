"""The encoder alone out of weights of other code bases: plain ViTs of timm, transformers (ViT, DINOv2, ViTMAE,
VideoMAE), DINO, MAE and VideoMAE, told apart by their keys, for ``--init``."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from timm.layers.patch_embed import resample_patch_embed
from torch import Tensor
from torch.nn import functional as F

from mim_core.errors import MimError, did_you_mean
from mim_core.interop.weights import clean, read_sizes, read_state
from mim_core.methods.method import Method
from mim_core.parts.layout import Layout
from mim_core.parts.position import SegmentPositions, TablePosition, resampled, sincos_table
from mim_core.parts.tokenizer import JoinedTokenizer, PatchTokenizer
from mim_core.runs.initial_weights import copy_to_teachers
from mim_core.runs.state import StateError, read_json

LEFT_OUT = ("head", "fc_norm", "fc.", "pooler", "classifier", "decoder", "dino", "mask_token", "mask_embed", "mlp_head")
"""Starts of names that belong to heads, poolers, decoders and mask tokens."""
PREFIXES = ("encoder.", "backbone.", "vit.", "dinov2.", "videomae.", "model.", "student.", "teacher.", "base_encoder.")
"""What code bases put in front of an encoder's names."""
ASIDE = "beside the encoder: "
"""In front of the names of weights that do not lie where the encoder's do."""
HEADS = {1280: 16, 1408: 16, 1664: 16}
"""Heads of the released plain ViTs that do not have 64 channels each, by width: huge, giant and gigantic."""
GROUPS = ("teacher", "student", "target_encoder")
"""Groups of weights in a file of a whole training, the one that is used in front."""
JOINED = "tokenizer.parts."
"""In front of the weights of each of several tokenizers."""
LAYER = re.compile(r"(?:encoder\.)?layer\.(\d+)\.(.+)")
WITHIN = (
    ("attention.output.dense.", "attn.proj."),
    ("attention.attention.", "attn."),
    ("layernorm_before.", "norm1."),
    ("layernorm_after.", "norm2."),
    ("intermediate.dense.", "mlp.fc1."),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
)
"""Within a block: transformers' names -> timm's."""
OUTER = {
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "embeddings.mask_token": "mask_token",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
    "register_tokens": "reg_token",
}


@dataclass(frozen=True)
class Found:
    """A plain ViT in weights of another code base.

    Attributes:
        path: Where from.
        what: In words: the code base and the sizes.
        weights: Under timm's names.
        sizes: What a ``config.json`` beside them says.
        left: Names that belong to no encoder.
        form: Whose names they have, for what is kept about a run's origin.
        statistics: Mean and deviation, of values in [0, 1], by which its inputs were normalised; none: not known.
    """

    path: Path
    what: str
    weights: Mapping[str, Tensor]
    sizes: Mapping[str, Any] = field(default_factory=dict)
    left: tuple[str, ...] = ()
    form: str = ""
    statistics: tuple[tuple[float, ...], ...] = ()

    @property
    def width(self) -> int:
        """D."""
        return int(self.weights["patch_embed.proj.weight"].shape[0])

    @property
    def tells_heads(self) -> bool:
        """Whether the number of attention heads is known, which weights do not tell."""
        return bool(self.sizes.get("num_attention_heads"))

    @property
    def heads(self) -> int:
        """Attention heads: as the sizes say, or those of the released plain ViTs of this width, mostly of 64 channels
        each."""
        if self.tells_heads:
            return int(self.sizes["num_attention_heads"])
        return HEADS.get(self.width) or max(1, self.width // 64)

    def encoder_options(self) -> dict[str, Any]:
        """Options of `mim_core.parts.encoder.ViTEncoder` that fit the weights."""
        first = self.weights["blocks.0.mlp.fc1.weight"]
        table = self.weights.get("pos_embed")
        options: dict[str, Any] = {
            "width": self.width,
            "depth": self._depth(),
            "heads": self.heads,
            "mlp_ratio": first.shape[0] / self.width,
            "qkv_bias": "blocks.0.attn.qkv.bias" in self.weights,
            "class_token": "cls_token" in self.weights,
            "registers": self._registers(),
            "final_norm": "norm.weight" in self.weights,
        }
        if "blocks.0.ls1.gamma" in self.weights:
            options["layer_scale"] = 1.0
        if "layer_norm_eps" in self.sizes:
            options["norm_eps"] = float(self.sizes["layer_norm_eps"])
        if table is not None and not self._is_computed():
            options["position"] = "learned"
        return options

    def _is_computed(self) -> bool:
        """Whether the positions are MAE's fixed sine-cosine table."""
        table = self.weights["pos_embed"]
        slots, grid = self._grid(table.shape[1])
        if grid is None:
            return False
        own = sincos_table(grid, self.width)
        return torch.allclose(table[0, slots:].float().cpu(), own, atol=1e-3)

    def _registers(self) -> int:
        return self.weights["reg_token"].shape[1] if "reg_token" in self.weights else 0

    def _depth(self) -> int:
        return 1 + max(int(name.split(".")[1]) for name in self.weights if name.startswith("blocks."))

    def fill(self, method: Method) -> list[str]:
        """Copies the weights into a method's tokenizer and encoder, patches and positions brought to its size and
        channels; what starts fresh and what is left out, in words.

        Raises:
            MimError: They do not fit; names the weights.
        """
        own, notes = method.state_dict(), [f"read as {self.what}"]
        heads = getattr(getattr(getattr(method, "encoder", None), "config", None), "heads", None)
        if not self.tells_heads and heads:
            notes.append(f"heads: {heads}, of {self.width // heads} channels each; nothing beside the weights tells")
        moved = self._moved(method, notes)
        place = self._patches(method)[0]
        needed = [name for name in own if name.startswith((f"{place}.", "encoder."))]
        faults = [
            f"{name} is {tuple(moved[name].shape)} there and {tuple(own[name].shape)} here"
            for name in needed
            if name in moved and moved[name].shape != own[name].shape
        ]
        lacking = [name for name in needed if name not in moved]
        faults += [f"{name} is not there" for name in lacking if not _may_be_fresh(name)]
        if faults:
            more = f"\n  ... and {len(faults) - 8} more" if len(faults) > 8 else ""
            raise MimError(f"--init {self.path}: {self.what}, which does not fit:\n  " + "\n  ".join(faults[:8]) + more)
        taken = {name: value for name, value in moved.items() if name in own}
        method.load_state_dict({**own, **taken})
        copied = copy_to_teachers(method, taken)
        fresh = [name for name in own if name not in taken and not _is_computed(method, name)]
        fresh = [name for name in fresh if not name.startswith(tuple(f"{each}." for each in copied))]
        unused = [name for name in moved if name not in own]
        replaced = tuple(getattr(method, "replaces", ()))
        odd = [name for name in unused if not name.startswith(replaced)] if replaced else unused
        if odd:
            raise MimError(f"--init {self.path}: this recipe's encoder has no place for: {', '.join(odd[:8])}.")
        notes += [f"{name}: a copy of the student that starts so" for name in copied]
        notes += [f"starts fresh: {_named(fresh)}"] if fresh else []
        notes += [f"left out: {_named([*self.left, *unused])}"] if self.left or unused else []
        return list(dict.fromkeys(notes))

    def _patches(self, method: Method) -> tuple[str, PatchTokenizer]:
        """The tokenizer that the kernel is for, and where its weights lie: the only one, or of several modalities that
        of patches with the most channels, the first of such.

        Raises:
            MimError: None splits into patches.
        """
        tokenizer = getattr(method, "tokenizer", None)
        parts = {"tokenizer": tokenizer}
        if isinstance(tokenizer, JoinedTokenizer):
            parts = {f"{JOINED}{name}": tokenizer.part(name) for name in tokenizer.parts}
        fitting = [(name, part) for name, part in parts.items() if isinstance(part, PatchTokenizer)]
        if not fitting:
            raise self.has_no_patches(", ".join(sorted({type(part).__name__ for part in parts.values()})))
        return max(fitting, key=lambda each: each[1].config.channels)

    def has_no_patches(self, tokenizers: str) -> MimError:
        """What is said where a recipe's tokenizers make no patches."""
        return MimError(
            f"--init {self.path}: a plain ViT's weights are for patches of pictures or clips, and this recipe's units "
            f"are none ({tokenizers}). Weights of the same kind of method: a run, an export, or --init-format NAME."
        )

    def _moved(self, method: Method, notes: list[str]) -> dict[str, Tensor]:
        """The weights under our names."""
        place, tokenizer = self._patches(method)
        if place != "tokenizer":
            notes.append(f"patches: those of {place.rpartition('.')[2]}")
        weights: dict[str, Tensor] = {}
        for name, value in self.weights.items():
            if name.startswith("patch_embed."):
                ours = name.replace("patch_embed.", f"{place}.")
                weights[ours] = self._kernel(value, tokenizer, notes) if name.endswith("weight") else value
            elif name != "pos_embed":
                weights[f"encoder.{name}"] = value
        table = self.weights.get("pos_embed")
        if table is not None:
            self._place(table, method, weights, notes)
        return weights

    def _kernel(self, kernel: Tensor, tokenizer: PatchTokenizer, notes: list[str]) -> Tensor:
        """The patch embedding's weight at this recipe's patch and channels."""
        config = tokenizer.config
        own, channels = kernel.shape[1], config.channels
        if len(config.patch) == 3 and kernel.ndim == 4:  # an image encoder on clips: the mean over the frames of a tube
            kernel = kernel[:, :, None].expand(-1, -1, config.patch[0], -1, -1) / config.patch[0]
            notes.append(f"patches: the kernel of one picture, shared by {config.patch[0]} frames")
        if kernel.ndim != 2 + len(config.patch):
            raise MimError(
                f"--init {self.path}: its patches have {kernel.ndim - 2} axes, and this recipe's {len(config.patch)}."
            )
        if own != channels:
            kernel = kernel.mean(dim=1, keepdim=True).expand(-1, channels, *kernel.shape[2:]) * (own / channels)
            notes.append(f"channels: {own} there, {channels} here; each has the mean of its kernels")
        size = tuple(config.patch)
        if tuple(kernel.shape[2:]) != size:
            notes.append(f"patches: {tuple(kernel.shape[2:])} there, {size} here; the kernel is resized")
            if kernel.ndim == 4:
                return resample_patch_embed(kernel.contiguous(), list(size))
            if kernel.shape[2] != size[0]:
                raise MimError(
                    f"--init {self.path}: its tubes are {kernel.shape[2]} frames long, and this recipe's {size[0]}; "
                    "give them the same length: --tokenizer.patch"
                )
            frames = [resample_patch_embed(part.contiguous(), list(size[1:])) for part in kernel.unbind(2)]
            return torch.stack(frames, dim=2)
        return kernel.contiguous()

    def _place(self, table: Tensor, method: Method, weights: dict[str, Tensor], notes: list[str]) -> None:
        """The table of positions: the units' on this recipe's grids, and the class token's."""
        position = getattr(getattr(method, "encoder", None), "position", None)
        tokenizer: Any = method.tokenizer
        layout: Layout = tokenizer.layout
        grids = [part.grid for _, part in layout.segments or (("", layout),) if part.grid and len(part.grid) > 1]
        if isinstance(position, SegmentPositions):
            for name, part in layout.segments:
                if isinstance(position.parts[name], TablePosition) and part.grid in grids:
                    at = f"encoder.position.parts.{name}."
                    self._units(table, position.parts[name], part.grid, at, weights, notes)
        elif layout.segments and self._is_computed() and getattr(position, "computed", False):
            notes.append("positions: this recipe computes its own on each grid")
        else:
            self._units(table, position, layout.grid, "encoder.position.", weights, notes)
        slots = self._grid(table.shape[1], *grids[:1])[0]
        if not slots or "encoder.cls_token" not in weights:
            return
        own_slots = method.state_dict().get("encoder.prefix_position")
        if own_slots is not None:  # registers that have none in the table have none here
            weights["encoder.prefix_position"] = F.pad(table[:, :slots], (0, 0, 0, own_slots.shape[1] - slots))
            return
        weights["encoder.cls_token"] = weights["encoder.cls_token"] + table[:, :1]
        if slots > 1:
            weights["encoder.reg_token"] = weights["encoder.reg_token"] + table[:, 1:slots]

    def _units(
        self,
        table: Tensor,
        position: Any,
        grid: tuple[int, ...] | None,
        place: str,
        weights: dict[str, Tensor],
        notes: list[str],
    ) -> None:
        """The positions of one grid of units."""
        if not isinstance(position, TablePosition) or grid is None:
            raise MimError(f"--init {self.path}: it has a table of positions; to take it: --encoder.position learned.")
        slots, old_grid = self._grid(table.shape[1], grid)
        assert old_grid is not None  # a grid was given
        units = table[:, slots:]
        if old_grid != grid:
            if len(old_grid) != len(grid):
                units = _over_time(units, old_grid, grid)
                notes.append(f"positions: those of one picture of {old_grid}, for every frame of {grid}")
            else:
                units = resampled(units, old_grid, grid)
                notes.append(f"positions: interpolated from a grid of {old_grid} to {grid}")
        if position.computed and not self._is_computed():
            raise MimError(
                f"--init {self.path}: its positions are trained, and this recipe computes its own "
                f"({position.kind}). To take them: --encoder.position learned."
            )
        if "table" in position.state_dict():
            weights[f"{place}table"] = units

    def _grid(self, count: int, own: tuple[int, ...] | None = None) -> tuple[int, tuple[int, ...] | None]:
        """(tokens in front, the grid of the others): a square, or else the run's own where it has as many units; None
        where there is no square, and the run's is not given.

        Raises:
            MimError: It is neither.
        """
        patch = tuple(self.weights["patch_embed.proj.weight"].shape[2:])
        fronts = (1, 0, 1 + self._registers()) if "cls_token" in self.weights else (0, 1)
        for slots in fronts:
            side = math.isqrt(max(0, count - slots))
            if side > 0 and side * side == count - slots and len(patch) == 2:
                return slots, (side, side)
        if own is None:
            return 0, None
        for slots in fronts:
            if count - slots == math.prod(own):
                return slots, own
        raise MimError(
            f"--init {self.path}: its {count} positions lie on no square grid, so their rows and columns cannot be "
            "told. They are taken as they are where the run has as many units: --tokenizer.size HEIGHT WIDTH."
        )


def _over_time(units: Tensor, old_grid: tuple[int, ...], grid: tuple[int, ...]) -> Tensor:
    """Positions of one picture for every step of a clip."""
    if len(old_grid) != 2 or len(grid) != 3:
        raise MimError(f"Positions on a grid of {old_grid} have no place on one of {grid}.")
    frame = resampled(units, old_grid, grid[1:])
    return frame.repeat(1, grid[0], 1)


def _may_be_fresh(name: str) -> bool:
    """Tokens and positions that the other side does not have."""
    last = name.removeprefix("encoder.")
    return last in ("mask_token", "prefix_position") or last.startswith("position.")


def _is_computed(method: Method, name: str) -> bool:
    path = name.rpartition(".")[0]
    part = dict(method.named_modules()).get(path)
    return (isinstance(part, TablePosition) and part.computed) or name.endswith(("index", "num_batches_tracked"))


def _named(names: list[str]) -> str:
    """Names of weights, a whole module by its first part, and a tokenizer of several by its own name."""
    short = dict.fromkeys(".".join(name.split(".")[: 3 if name.startswith(JOINED) else 2]) for name in names)
    return ", ".join(list(short)[:10]) + (f" and {len(short) - 10} more" if len(short) > 10 else "")


# ---- reading ---------------------------------------------------------------------------------------------------------


def find_encoder(path: Path) -> Found:
    """The plain ViT in a file or folder of weights, or in what timm has on this disk (``timm:NAME``).

    Raises:
        MimError: There is none; says what the keys are.
    """
    if str(path).startswith("timm:"):
        name = str(path).partition(":")[2]
        encoder = encoder_in(clean(read_state(timm_file(name))[0]), path, _timm_sizes(name))
        return replace(encoder, statistics=_timm_statistics(name))
    content, sizes = read_state(path)
    group = next((name for name in GROUPS if isinstance(content.get(name), Mapping)), None)
    encoder = encoder_in(clean(content[group] if group else content), path, sizes)
    return replace(encoder, statistics=statistics_in(path)) if path.is_dir() else _with_config_beside(encoder)


def statistics_in(folder: Path) -> tuple[tuple[float, ...], ...]:
    """Mean and deviation as the ``preprocessor_config.json`` of a folder tells them; empty where it does not."""
    try:
        config = read_json(folder / "preprocessor_config.json")
        return tuple(tuple(map(float, config[name])) for name in ("image_mean", "image_std"))
    except (StateError, OSError, LookupError, TypeError, ValueError):
        return ()


def _timm_statistics(name: str) -> tuple[tuple[float, ...], ...]:
    import timm

    config: Any = timm.get_pretrained_cfg(name)
    return tuple(config.mean), tuple(config.std)


def _with_config_beside(encoder: Found) -> Found:
    """With the ``config.json`` that lies beside a file, where it is of a model as wide."""
    folder = encoder.path.parent
    sizes = read_sizes(folder) if (folder / "config.json").is_file() else {}
    if sizes.get("hidden_size") != encoder.width:
        return encoder
    _check_activation(sizes, encoder.path)
    return replace(encoder, sizes=sizes)


def _timm_sizes(name: str) -> dict[str, Any]:
    """What timm's model of that name has and its weights do not tell."""
    import timm

    with torch.device("meta"):
        model: Any = timm.create_model(name, pretrained=False)
    block = next(iter(getattr(model, "blocks", ())), None)
    if block is None or not hasattr(block, "attn"):  # what it is instead is said where its keys are read
        return {}
    activation = type(block.mlp.act).__name__.lower() if hasattr(block.mlp, "act") else "gelu"
    sizes = {"num_attention_heads": getattr(block.attn, "num_heads", None), "hidden_act": activation}
    return {**sizes, "layer_norm_eps": block.norm1.eps}


def encoder_in(state: Mapping[str, Tensor], path: Path, sizes: Mapping[str, Any] | None = None) -> Found:
    """The plain ViT among weights by name.

    Raises:
        MimError: There is no plain ViT, or it has parts that such a one lacks, or values that are NaN or infinite.
    """
    bare = _without_prefix(state)
    kind = "transformers'" if any(LAYER.match(name) for name in bare) else "timm's"
    named = _joined({_timm_name(name): value for name, value in bare.items()})
    left = tuple(name for name in named if name.startswith((ASIDE, *LEFT_OUT)))
    weights = {name: value for name, value in named.items() if name not in left}
    odd = [name for name in weights if not re.match(r"(patch_embed\.proj|blocks\.\d+|norm|norm_pre)\.", name)]
    odd = [name for name in odd if name not in ("cls_token", "pos_embed", "reg_token")]
    whole = "patch_embed.proj.weight" in weights and "blocks.0.mlp.fc1.weight" in weights
    gated = next((name for name in weights if name.startswith("blocks.0.mlp.w")), "")
    if not whole or odd:
        what = f"parts that a plain ViT does not have: {', '.join(odd[:6])}" if whole else "no plain ViT in it"
        what = f"the MLPs of its blocks have gates (SwiGLU, {gated}), which are not read" if gated else what
        raise MimError(f"{path}: {what}. Its keys begin with: {', '.join(list(state)[:5])}.")
    _check_activation(sizes or {}, path)
    broken = [name for name, value in weights.items() if not bool(value.isfinite().all())]
    if broken:
        raise MimError(f"{path}: these weights have values that are NaN or infinite: {', '.join(broken[:6])}.")
    patch = weights["patch_embed.proj.weight"]
    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    where = "frames and " if patch.ndim == 5 else ""
    what = (
        f"a plain ViT under {kind} names: width {patch.shape[0]}, {depth} blocks, patches of "
        f"{' x '.join(map(str, patch.shape[2:]))} {where}pixels, {patch.shape[1]} channels"
    )
    names = tuple(name.removeprefix(ASIDE) for name in left)
    return Found(path, what, weights, dict(sizes or {}), names, f"{kind} names")


def _check_activation(sizes: Mapping[str, Any], path: Path) -> None:
    """Refuses blocks with another activation, which no weight would show."""
    activation = sizes.get("hidden_act") or "gelu"
    if activation != "gelu":
        raise MimError(f"{path}: the MLPs of its blocks have the activation {activation}; those of core:vit have gelu.")


def _without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what stands in front of the encoder's names, if anything does; other weights keep theirs."""
    weights = dict(state)
    for _ in range(3):
        key = next(
            (k for k in weights if k.endswith(("patch_embed.proj.weight", "patch_embeddings.projection.weight"))), ""
        )
        prefix = next((p for p in PREFIXES if key.startswith(p)), None)
        if prefix is None:
            return weights
        own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        rest = {
            name if name.startswith(ASIDE) else f"{ASIDE}{name}": value
            for name, value in weights.items()
            if not name.startswith(prefix)
        }
        weights = {**rest, **own}
    return weights


def _timm_name(name: str) -> str:
    """A name of transformers', DINO's or VideoMAE's -> timm's."""
    name = OUTER.get(name, name)
    layer = LAYER.fullmatch(name)
    if layer is None:
        return name.replace(".gamma_1", ".ls1.gamma").replace(".gamma_2", ".ls2.gamma")
    rest = layer[2]
    for theirs, ours in WITHIN:
        rest = rest.replace(theirs, ours)
    rest = re.sub(r"^output\.dense\.", "mlp.fc2.", rest)
    return f"blocks.{layer[1]}.{rest}"


def _joined(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With queries, keys and values in one layer, and one bias for them; that of keys is zero where there is none."""
    weights = dict(state)
    for name in [name for name in state if name.endswith(".attn.query.weight")]:
        start = name.removesuffix("query.weight")
        weights[f"{start}qkv.weight"] = torch.cat(
            [weights.pop(f"{start}{part}.weight") for part in ("query", "key", "value")]
        )
        biases = {part: weights.pop(f"{start}{part}.bias", None) for part in ("query", "key", "value")}
        first = next((bias for bias in biases.values() if bias is not None), None)
        if first is not None:
            parts = [torch.zeros_like(first) if bias is None else bias for bias in biases.values()]
            weights[f"{start}qkv.bias"] = torch.cat(parts)
    for name in [name for name in weights if name.endswith(".attn.q_bias")]:
        start = name.removesuffix("q_bias")
        query, value = weights.pop(name), weights.pop(f"{start}v_bias")
        weights[f"{start}qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
    return weights


def timm_file(name: str) -> Path:
    """The file of a timm model's pretrained weights on this disk. Nothing is downloaded.

    Raises:
        MimError: timm has no such model, or its weights are not here; says where was looked.
    """
    import timm

    try:
        config = timm.get_pretrained_cfg(name)
    except (RuntimeError, ValueError, KeyError):
        config = None
    if config is None:
        raise MimError(
            f"timm has no pretrained model {name!r}."
            + did_you_mean(name, timm.list_pretrained(f"{name.partition('_')[0]}*"))
        )
    own = os.environ.get("MIM_WEIGHTS")
    looked = [Path(own) / f"{name}{ending}" for ending in (".safetensors", ".pth", ".bin")] if own else []
    looked += [Path(config.file)] if config.file else []
    if config.url:
        looked.append(Path(torch.hub.get_dir()) / "checkpoints" / config.url.rpartition("/")[2])
    files = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    looked += [path for file in files for path in sorted(_hub_cache(config.hf_hub_id or "").glob(f"*/{file}"))]
    weights_file = next((path for path in looked if path.is_file()), None)
    if weights_file is None:
        places = ", ".join(map(str, looked)) or "Hugging Face's cache"
        raise MimError(
            f"timm's weights of {name} are not on this disk, and nothing is downloaded here. Looked at: {places}; and "
            f"Hugging Face's cache for {config.hf_hub_id or 'no name'}. Copy the file and name it: --init FILE."
        )
    return weights_file


def _hub_cache(name: str) -> Path:
    """Where Hugging Face's cache keeps the files of a repository, by revision; as its documentation has it."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    return hub / f"models--{name.replace('/', '--')}" / "snapshots"
