"""CLIP's features as the answer: MVP (arXiv 2203.05175) and EVA (arXiv 2211.07636)."""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from mim_core.data import DataSource
from mim_core.errors import MimError, unknown, warn
from mim_core.layout import Patches, Sample
from mim_core.mask import Mask
from mim_core.target import Target
from mim_core.tokenizer import Tokenizer
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""What CLIP's own preprocessing subtracts and divides by."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ClipTarget(Target):
    """What a frozen CLIP image encoder of open_clip makes of the whole image, at the queried patches; compared by the
    cosine.

    The image is resized to CLIP's input size (bicubic, antialiased, sides apart), so that every patch of CLIP lies
    under the same part of the picture; where CLIP's grid is not the tokenizer's, its features are interpolated
    (bilinear). Grey images count as colour. Values are vectors of unit length, float32: their length plays no part in a
    cosine.

    CLIP is part of the method: it is not trained, stays in evaluation mode, and is in the run's checkpoints, which need
    its file no more once they are written: to resume, evaluate or export a run, the file may be gone. A checkpoint
    grows by its size, 345 MB for ViT-B-16. Nothing is ever downloaded.
    """

    mean: Tensor
    std: Tensor
    ready: Tensor

    @dataclass(frozen=True)
    class Config:
        """Options of the CLIP target."""

        model: str = "ViT-B-16"
        """open_clip's name of a model whose image encoder is its own ViT. OpenAI's weights need the names that end in
        -quickgelu."""
        weights: Literal["random"] | Path | None = None
        """File of the model's weights, or of its image encoder's: .safetensors, or a state dict as torch saves it.
        "random" draws them, to try things."""
        loss: Literal["cosine", "negative-cosine"] = "cosine"
        """One minus the cosine, or, as EVA has it, the cosine with a minus sign."""
        projected: bool = True
        """Features after CLIP's projection to the space that it shares with text, as for its class token; otherwise
        before it."""
        layer: int = -1
        """Block of CLIP whose output is taken, counted from 0, or from the end; later blocks are left out. CLIP's last
        norm is applied to any."""
        mean: tuple[float, ...] | None = None
        """What the data subtract, per channel, of values in [0, 1]. None: ImageNet's for colour, 0.5 otherwise."""
        std: tuple[float, ...] | None = None
        """What the data then divide by."""

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config = config
        (self.modality, shape), *more = tokenizer.shapes.items()
        grid = tokenizer.layout.grid
        if more or len(shape) != 3 or shape[0] not in (1, 3) or grid is None or len(grid) != 2:
            raise ValueError("this target is for patches of images with 1 or 3 channels, on a grid of two axes")
        for name, default in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            values = getattr(config, name) or (default if shape[0] == 3 else (0.5,))
            if len(values) != shape[0] or (name == "std" and min(values) <= 0):
                raise ValueError(f"{name} needs {shape[0]} values, and std positive ones; got {values}")
            self.register_buffer(name, torch.tensor(values).reshape(-1, 1, 1), persistent=False)
        self.clip = ImageEncoder(config.model, config.layer, config.projected)
        self.size = self.clip.size
        self.fault, self.said = self.clip.fill(config.weights), False
        self.clip.finish()
        # in checkpoints, so that they say that the weights are there
        self.register_buffer("ready", torch.tensor(self.fault is None, dtype=torch.uint8))

    def check(self, source: DataSource) -> None:
        """Refuses a run without weights, and data that subtract another mean, or divide by another deviation, than this
        target undoes. Data without ``mean`` and ``std`` (tensors of one value per channel) are not looked at. Of a file
        that cannot be used it warns only: the run's checkpoint, which is read later, may have the weights."""
        if self.fault is not None and not self.ready.is_meta and not bool(self.ready):
            if self.config.weights is None:
                raise MimError(f"{self.fault}\n{_how(self.clip.model, self.role)}")
            warn(f"{self.fault} Only a run with a checkpoint, which holds the weights, can go on without.")
            self.said = True
        for name in ("mean", "std"):
            theirs, own = getattr(source, name, None), getattr(self, name).flatten()
            if isinstance(theirs, Tensor) and theirs.numel() not in (1, own.numel()):
                raise ValueError(
                    f"the {name} of the data has {theirs.numel()} values and {self.modality} {own.numel()} channel(s), "
                    "so it is another modality's: CLIP's features are of the pictures that the data normalise"
                )
            if isinstance(theirs, Tensor) and not torch.equal(theirs.flatten().to(own), own):
                asked = " ".join(f"{value:.6g}" for value in theirs.flatten().tolist())
                said = " ".join(f"{value:.6g}" for value in own.tolist())
                raise ValueError(
                    f"the {name} of the target is {said}, that of the data {asked}; they must be the same: "
                    f"--{self.role}.{name} {asked}"
                )

    def make(
        self, sample: Sample, patches: Patches, mask: Mask, teacher: nn.Module | None = None
    ) -> Float[Tensor, "R Q size"]:
        """CLIP's features at the queries, of unit length.

        Raises:
            MimError: There are no weights: no file was named, or it cannot be used, and no checkpoint has brought them.
        """
        if self.fault is not None and not self.ready.is_meta:
            if not bool(self.ready):
                what = f"CLIP's {self.clip.model} has no weights." if self.said else self.fault
                raise MimError(f"{what}\n{_how(self.clip.model, self.role)}")
            self.fault = None
        grid = patches.layout.grid
        assert grid is not None
        with torch.no_grad():
            found = self.clip(sample[self.modality].float() * self.std + self.mean)
            if found.shape[2:] != grid:
                found = F.interpolate(found, size=grid, mode="bilinear", align_corners=False)
            found = mask.take(found.flatten(2).transpose(1, 2), mask.query_ids)
            return F.normalize(found.float(), dim=-1)

    def loss(self, prediction: Float[Tensor, "R Q size"], values: Float[Tensor, "R Q size"]) -> Float[Tensor, "R Q"]:
        """One minus the cosine, from 0 to 2; EVA's is from -1 to 1."""
        cosine = F.cosine_similarity(prediction.float(), values, dim=-1)
        return -cosine if self.config.loss == "negative-cosine" else 1 - cosine


class ImageEncoder(nn.Module):
    """open_clip's ViT of a model, built without the text encoder, never trained.

    Args:
        model: open_clip's name of it.
        layer: Block whose output is taken, negative from the end.
        projected: Whether features are projected to the space that CLIP shares with text.

    Raises:
        MimError: open_clip is not installed, or knows no such model.
        ValueError: The image encoder is no ViT of open_clip's own, or has no such block.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: str, layer: int = -1, projected: bool = True) -> None:
        super().__init__()
        self.model, self.projected = model, projected
        self.visual = _vit(model)
        self.visual.requires_grad_(False)
        super().train(False)
        blocks = self.visual.transformer.resblocks
        if not -len(blocks) <= layer < len(blocks):
            raise ValueError(f"layer is {layer}, and {model} has {len(blocks)} blocks: 0 to {len(blocks) - 1}")
        self.layer = layer % len(blocks)
        self.size = self.visual.proj.shape[1] if projected else self.visual.ln_post.normalized_shape[0]
        for name, values in (("mean", CLIP_MEAN), ("std", CLIP_STD)):
            self.register_buffer(name, torch.tensor(values).reshape(-1, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> ImageEncoder:
        """Stays in evaluation mode: dropped patches would be noise in the targets."""
        return self

    def fill(self, weights: Path | Literal["random"] | None) -> str | None:
        """Loads a file of weights. Returns what is wrong with it, None where nothing is: a checkpoint may hold the
        weights, which is not known yet."""
        if weights == "random" or self.visual.conv1.weight.is_meta:  # without values, to count operations
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
            said = " ".join(lines[:3])[:400]
            if isinstance(error, LookupError | TypeError | AttributeError):  # whose texts say nothing by themselves
                said = f"it is no file of weights ({type(error).__name__}: {said})"
            return f"CLIP's weights: {weights} cannot be used for {self.model}: {said}"
        return None

    def finish(self) -> None:
        """Leaves out what features do not need: later blocks, the projection."""
        del self.visual.transformer.resblocks[self.layer + 1 :]
        if not self.projected:
            self.visual.proj = None

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B size h w"]:
        """Features on CLIP's own grid, of images with values in [0, 1]."""
        size = self.visual.image_size
        if x.shape[2:] != size:
            x = F.interpolate(x, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        x = (x.expand(-1, 3, -1, -1) - self.mean) / self.std
        found: Tensor = self.visual.forward_intermediates(
            x, indices=[self.layer], normalize_intermediates=True, intermediates_only=True, output_fmt="NCHW"
        )["image_intermediates"][0]
        return torch.einsum("bchw,cd->bdhw", found, self.visual.proj) if self.projected else found


def _vit(model: str) -> Any:
    """The image encoder of a model, with random weights. Its text encoder is made as small as can be and let go, and
    no weights are looked for."""
    if importlib.util.find_spec("open_clip") is None:
        raise MimError('CLIP features need open_clip, which is not installed: pip install "mim-image[clip]"')
    import open_clip

    config = open_clip.get_model_config(model) if model in open_clip.list_models() else None
    if config is None:
        raise unknown("CLIP model", model, [name for name in open_clip.list_models() if _is_plain(name)])
    if not _is_plain(model):
        raise ValueError(
            f"the image encoder of {model} is no plain ViT, so its patches have no features; take ViT-B-16"
        )
    text = {"context_length": 8, "vocab_size": 8, "width": 64, "heads": 1, "layers": 1}
    quick = bool(config.get("quick_gelu", False))
    return open_clip.CLIP(config["embed_dim"], config["vision_cfg"], text, quick_gelu=quick).visual


def _is_plain(model: str) -> bool:
    """Whether open_clip's own ViT encodes images, with one projection for all tokens."""
    import open_clip

    vision = (open_clip.get_model_config(model) or {}).get("vision_cfg", {})
    plain = isinstance(vision.get("layers", 12), int) and not vision.get("attentional_pool")
    return plain and "timm_model_name" not in vision and vision.get("pool_type", "tok") == "tok"


def _read(path: Path) -> Mapping[str, Any]:
    """A file's state dict; nothing in it is run."""
    if path.suffix == ".safetensors":
        return load_file(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("constants.pkl") for name in archive.namelist()):
                raise ValueError("it is a TorchScript program, and only weights are read.")
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state) if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping):
        raise ValueError(f"it holds a {type(state).__name__}, no weights by name.")
    return state


def _visual_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """The image encoder's weights, out of a whole model's or as they are."""
    plain = {name.removeprefix("module."): value for name, value in state.items()}
    inner = {name.removeprefix("visual."): value for name, value in plain.items() if name.startswith("visual.")}
    return inner or plain


def _how(model: str, role: str) -> str:
    """How to come by weights, for the target in that role."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(model) or ["TAG"]
    tag = next((name for name in tags if name.startswith("laion2b")), tags[0])
    return (
        f"Save them once, where there is a network, and name the file with --{role}.weights clip.pt:\n"
        f"  python -c \"import open_clip, torch; m = open_clip.create_model('{model}', pretrained='{tag}'); "
        "torch.save(m.visual.state_dict(), 'clip.pt')\"\n"
        f"To try things without: --{role}.weights random"
    )
