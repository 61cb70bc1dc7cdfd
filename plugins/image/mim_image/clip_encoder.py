"""Image encoders of open_clip's models, frozen: what they make of every part of a picture."""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from mim_core import MimError, is_program, reason_of, unknown
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""What CLIP's own preprocessing subtracts and divides by."""


class ImageEncoder(nn.Module):
    """open_clip's image encoder of a model, built without the text encoder, never trained: its own ViTs, its ResNets,
    and those of timm (EVA, SigLIP, ConvNeXt, ViTamin and others).

    Args:
        model: open_clip's name of it.
        layer: Block, or stage of one that is no transformer, whose output is taken; negative from the end.
        projected: Whether features are projected to the space that CLIP shares with text.
        mean: What it subtracts of values in [0, 1], per colour; None: what open_clip's weights of the model do.
        std: What it then divides by.

    Raises:
        MimError: open_clip is not installed, or knows no such model.
        ValueError: The image encoder has no such block, or no projection that serves its patches.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: str,
        layer: int = -1,
        projected: bool = True,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.projected = model, projected
        self.visual = _built(model)
        self.visual.requires_grad_(False)
        super().train(False)
        widths = _widths(self.visual)
        if not -len(widths) <= layer < len(widths):
            raise ValueError(f"layer is {layer}, and {model} has {len(widths)} blocks: 0 to {len(widths) - 1}")
        if projected and not _projects_patches(self.visual):
            raise ValueError(
                f"the image encoder of {model} has no projection that serves its patches; take its features as they "
                "are: projected = false (--target.no-projected)"
            )
        self.layer = layer % len(widths)
        self.size: int = self.visual.proj.shape[1] if projected else widths[self.layer]
        theirs = normalisation(model)
        for name, given, own in (("mean", mean, theirs[0]), ("std", std, theirs[1])):
            self.register_buffer(name, torch.tensor(given or own).reshape(-1, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> ImageEncoder:
        """Stays in evaluation mode: dropped patches would be noise in the targets."""
        return self

    def fill(self, weights: Literal["random"] | Path | None) -> str | None:
        """Loads a file of weights. Returns what is wrong with it, None where nothing is: a checkpoint may hold the
        weights, which is not known yet."""
        if weights == "random" or next(self.visual.parameters()).is_meta:  # without values, to count operations
            return None
        if weights is None:
            return f"Which weights should CLIP's {self.model} have?"
        assert isinstance(weights, Path)
        try:
            state = _visual_state(_read(weights))
            self.visual.load_state_dict(state)
        except FileNotFoundError:
            return f"CLIP's weights: {weights} does not exist."
        except Exception as error:  # readers of files that are something else raise many kinds
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = " ".join(lines[:3])[:400]
            if isinstance(error, LookupError | TypeError | AttributeError):  # whose texts say nothing by themselves
                reason = f"it is no file of weights ({type(error).__name__}: {reason})"
            return f"CLIP's weights: {weights} cannot be used for {self.model}: {reason}"
        return None

    def finish(self) -> None:
        """Leaves out what features do not need: later blocks, pooling, the projection."""
        visual: Any = self.visual
        if _is_timm(visual):
            visual.trunk.prune_intermediate_layers([self.layer], prune_norm=False, prune_head=True)
            visual.head = nn.Identity()
        elif _is_resnet(visual):
            for name in (*(f"layer{number}" for number in range(self.layer + 1, 5)), "attnpool"):
                setattr(visual, name, nn.Identity())
        else:
            del visual.transformer.resblocks[self.layer + 1 :]
            visual.attn_pool = None
            if not self.projected:
                visual.proj = None

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B size h w"]:
        """Features on CLIP's own grid, of images with values in [0, 1]."""
        visual: Any = self.visual
        size = visual.image_size if isinstance(visual.image_size, tuple) else (visual.image_size,) * 2
        if x.shape[2:] != size:
            x = F.interpolate(x, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        x = (x.expand(-1, 3, -1, -1) - self.mean) / self.std
        norm = _is_timm(visual) or (not _is_resnet(visual) and _norm_fits(visual))
        features: Tensor = visual.forward_intermediates(
            x,
            indices=[self.layer],
            stop_early=True,
            normalize_intermediates=norm,
            intermediates_only=True,
            output_fmt="NCHW",
        )["image_intermediates"][0]
        return torch.einsum("bchw,cd->bdhw", features, visual.proj) if self.projected else features


# ---- kinds of image encoders -----------------------------------------------------------------------------------------


def _built(model: str) -> Any:
    """The image encoder of a model, with random weights. Its text encoder is made as small as can be and let go, and
    no weights are looked for."""
    if importlib.util.find_spec("open_clip") is None:
        raise MimError('CLIP features need open_clip, which is not installed: pip install "mim-image[clip]"')
    import open_clip

    config = open_clip.get_model_config(model) if model in open_clip.list_models() else None
    if config is None:
        raise unknown("CLIP model", model, open_clip.list_models())
    vision = {**config["vision_cfg"]}
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    text = {"context_length": 8, "vocab_size": 8, "width": 64, "heads": 1, "layers": 1}
    quick = bool(config.get("quick_gelu", False))
    return open_clip.CLIP(config["embed_dim"], vision, text, quick_gelu=quick).visual


def _is_timm(visual: Any) -> bool:
    return hasattr(visual, "trunk")


def _is_resnet(visual: Any) -> bool:
    return hasattr(visual, "layer4")


def _widths(visual: Any) -> list[int]:
    """Channels that each block or stage gives."""
    if _is_timm(visual):
        return [stage["num_chs"] for stage in visual.trunk.feature_info]
    if _is_resnet(visual):  # a stem and four stages of bottlenecks
        return [visual.conv3.out_channels, *(getattr(visual, f"layer{n}")[-1].conv3.out_channels for n in range(1, 5))]
    return [visual.conv1.out_channels] * len(visual.transformer.resblocks)


def _norm_fits(visual: Any) -> bool:
    """Whether the last norm of open_clip's own ViT is of patches: attention pooling (CoCa) has its norm behind it."""
    return bool(visual.ln_post.normalized_shape[0] == visual.conv1.out_channels and not visual.final_ln_after_pool)


def _projects_patches(visual: Any) -> bool:
    """Whether a projection that is made for the class token alone takes any token."""
    own = not _is_timm(visual) and not _is_resnet(visual)
    return own and visual.attn_pool is None and visual.pool_type == "tok" and visual.proj is not None


def recommended(model: str) -> str | None:
    """open_clip's name of weights for a model; None where it knows none."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(model)
    return next((name for name in tags if name.startswith("laion2b")), tags[0] if tags else None)


def normalisation(model: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation that a model's weights are for."""
    import open_clip

    tag = recommended(model)
    known = open_clip.get_pretrained_cfg(model, tag) if tag else {}
    return tuple(known.get("mean") or CLIP_MEAN), tuple(known.get("std") or CLIP_STD)


# ---- files of weights ------------------------------------------------------------------------------------------------


def _read(path: Path) -> Mapping[str, Any]:
    """A file's state dict; nothing in it is run."""
    if not path.exists():
        raise FileNotFoundError(path)
    if not path.is_file():
        raise ValueError("it is no regular file")
    if path.suffix == ".safetensors":
        return load_file(path)
    if is_program(path):
        raise ValueError("it is a TorchScript program, and only weights are read.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RecursionError, MemoryError) as error:
        raise ValueError(reason_of(error)) from error
    state = state.get("state_dict", state) if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping):
        raise ValueError(f"it holds a {type(state).__name__}, no weights by name.")
    return state


def _visual_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """The image encoder's weights, out of a whole model's or as they are."""
    plain = {name.removeprefix("module."): value for name, value in state.items()}
    inner = {name.removeprefix("visual."): value for name, value in plain.items() if name.startswith("visual.")}
    return inner or plain
