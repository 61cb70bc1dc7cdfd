"""CLIP's features as the answer: MVP (arXiv 2203.05175) and EVA (arXiv 2211.07636)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from mim_core import (
    DataSource,
    Lesson,
    Mask,
    MimError,
    Patches,
    Sample,
    Target,
    Tokenizer,
    counted,
    usual_statistics,
    warn,
)
from torch import Tensor
from torch.nn import functional as F

from mim_image.clip_encoder import ImageEncoder, recommended


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
        """open_clip's name of a model, of any architecture. OpenAI's weights need the names that end in
        -quickgelu."""
        weights: Literal["random"] | Path | None = None
        """File of the model's weights, or of its image encoder's: .safetensors, or a state dict as torch saves it.
        "random" draws them, to try things."""
        loss: Literal["cosine", "negative-cosine"] = "cosine"
        """One minus the cosine, or, as EVA has it, the cosine with a minus sign."""
        projected: bool = True
        """Features after CLIP's projection to the space that it shares with text, as for its class token; otherwise
        before it. Only open_clip's own ViTs with a class token have one that serves every patch."""
        layer: int = -1
        """Block of CLIP, or stage of one that is no transformer, whose output is taken, counted from 0, or from the
        end; later ones are left out. CLIP's last norm is applied where it fits."""
        mean: tuple[float, ...] | None = None
        """What the data subtract, per channel, of values in [0, 1]. None: ImageNet's for colour, 0.5 otherwise."""
        std: tuple[float, ...] | None = None
        """What the data then divide by."""
        clip_mean: tuple[float, float, float] | None = None
        """What CLIP subtracts of values in [0, 1], per colour. None: what open_clip's weights of the model do."""
        clip_std: tuple[float, float, float] | None = None
        """What CLIP then divides by."""

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config = config
        (self.modality, shape), *more = tokenizer.shapes.items()
        grid = tokenizer.layout.grid
        if more or len(shape) != 3 or shape[0] not in (1, 3) or grid is None or len(grid) != 2:
            raise ValueError("this target is for patches of images with 1 or 3 channels, on a grid of two axes")
        mean, std = usual_statistics(config.mean, config.std, shape[0])
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != shape[0] or (name == "std" and min(values) <= 0):
                raise ValueError(f"{name} needs {shape[0]} values, and std positive ones; got {values}")
            self.register_buffer(name, torch.tensor(values).reshape(-1, 1, 1), persistent=False)
        self.clip = ImageEncoder(config.model, config.layer, config.projected, config.clip_mean, config.clip_std)
        self.size = self.clip.size
        self.fault, self.warned = self.clip.fill(config.weights), False
        self.clip.finish()
        # in checkpoints, so that they say that the weights are there
        self.register_buffer("ready", torch.tensor(self.fault is None, dtype=torch.uint8))

    def check(self, source: DataSource) -> None:
        """Refuses a run without weights, and data that subtract another mean, or divide by another deviation, than this
        target undoes. Data without ``mean`` and ``std`` (tensors of one value per channel) are not looked at. Of a file
        that cannot be used it warns only: the run's checkpoint, which is read later, may have the weights.

        Raises:
            MimError: There are no weights, and none are named.
            ValueError: The means or the deviations differ, or are of another modality.
        """
        if self.fault is not None and not self.ready.is_meta and not bool(self.ready):
            if self.config.weights is None:
                raise MimError(f"{self.fault}\n{_how(self.clip.model, self.role)}")
            warn(f"{self.fault} Only a run with a checkpoint, which holds the weights, can go on without.")
            self.warned = True
        for name in ("mean", "std"):
            theirs, own = getattr(source, name, None), getattr(self, name).flatten()
            if isinstance(theirs, Tensor) and theirs.numel() not in (1, own.numel()):
                raise ValueError(
                    f"the {name} of the data has {theirs.numel()} values and {self.modality} "
                    f"{counted(own.numel(), 'channel')}, so it is another modality's: CLIP's features are of the "
                    "pictures that the data normalise"
                )
            if isinstance(theirs, Tensor) and not torch.equal(theirs.flatten().to(own), own):
                asked = " ".join(f"{value:.6g}" for value in theirs.flatten().tolist())
                own_values = " ".join(f"{value:.6g}" for value in own.tolist())
                raise ValueError(
                    f"the {name} of the target is {own_values}, that of the data {asked}; they must be the same: "
                    f"--{self.role}.{name} {asked}"
                )

    def make(
        self, sample: Sample, patches: Patches, mask: Mask, lesson: Lesson | None = None
    ) -> Float[Tensor, "R Q size"]:
        """CLIP's features at the queries, of unit length.

        Raises:
            MimError: There are no weights: no file was named, or it cannot be used, and no checkpoint has brought them.
        """
        if self.fault is not None and not self.ready.is_meta:
            if not bool(self.ready):
                what = f"CLIP's {self.clip.model} has no weights." if self.warned else self.fault
                raise MimError(f"{what}\n{_how(self.clip.model, self.role)}")
            self.fault = None
        grid = patches.layout.grid
        assert grid is not None
        with torch.no_grad():
            features = self.clip(sample[self.modality].float() * self.std + self.mean)
            if features.shape[2:] != grid:
                features = F.interpolate(features, size=grid, mode="bilinear", align_corners=False)
            features = mask.take(features.flatten(2).transpose(1, 2), mask.query_ids)
            return F.normalize(features.float(), dim=-1)

    def loss(self, prediction: Float[Tensor, "R Q size"], values: Float[Tensor, "R Q size"]) -> Float[Tensor, "R Q"]:
        """One minus the cosine, from 0 to 2; EVA's is from -1 to 1."""
        cosine = F.cosine_similarity(prediction.float(), values, dim=-1)
        return -cosine if self.config.loss == "negative-cosine" else 1 - cosine


def _how(model: str, role: str) -> str:
    """How to come by weights, for the target in that role."""
    tag = recommended(model) or "TAG"
    return (
        f"Save them once, where there is a network, and name the file with --{role}.weights clip.pt:\n"
        f"  python -c \"import open_clip, torch; m = open_clip.create_model('{model}', pretrained='{tag}'); "
        "torch.save(m.visual.state_dict(), 'clip.pt')\"\n"
        f"To try things without: --{role}.weights random"
    )
