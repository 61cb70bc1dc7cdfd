"""AMAE in its two steps (arXiv 2307.12721): a light classifier on frozen features tells normal pictures from ones that
were spoiled on purpose; it sorts unlabelled pictures, on which two masked autoencoders are adapted. Where these two
disagree, something is abnormal.

No code was published. From the paper: frozen features of a pre-trained MAE, synthetic anomalies made of normal
pictures, a light classifier, pseudo-labels, two modules, their disagreement. Choices of this project: the cut-paste
variants below, without segmented lungs; a two-layer perceptron on the class token, or on the mean without one; each
unlabelled picture goes to one module, by the classifier's probability against a threshold; the score is the squared
difference of the two reconstructions of hidden pixels, averaged over masks that together hide everything. That has no
sign, and is large too where the abnormal module fails on normal pictures, so a second score has one: by how much the
error of the normal module exceeds that of the abnormal one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from mim_core import (
    BatchNorm,
    DataSource,
    Features,
    Mask,
    MaskedAutoencoder,
    Method,
    MimError,
    Outcome,
    Parts,
    Prepared,
    Sample,
    covering_masks,
    encode_all,
    load_run,
    reconstruct,
    uniform,
)
from torch import Tensor, nn
from torch.nn import functional as F

from mim_image.anomaly_data import refuse_unlabelled

KINDS = ("paste", "scar", "soft")
"""Variants of cut-paste: a piece of the picture elsewhere; a narrow piece; a piece that fades at its edges."""


def spoil(image: Tensor, key: Tensor, change: float = 0.5) -> tuple[Tensor, Tensor]:
    """Synthetic anomalies: in each picture a piece of it, brighter or darker, lies at another place (CutPaste, arXiv
    2104.04015, section 2.1; fading edges as in AnatPaste, arXiv 2302.13503).

    Args:
        image: Normalised pictures [B, C, H, W].
        key: int64 [B], from which all draws come.
        change: By how much the piece is brighter or darker, in normalised values.

    Returns:
        The spoiled pictures, and where they are spoiled, bool [B, H, W].
    """
    height, width = image.shape[-2:]
    spoiled, truth = image.clone(), torch.zeros(len(image), height, width, dtype=torch.bool, device=image.device)
    draws = [] if image.is_meta else uniform(key, "amae.spoil", 8).tolist()  # a plan asks for shapes alone
    for row, u in enumerate(draws):
        kind = KINDS[int(u[0] * len(KINDS))]
        low, high = (0.01, 0.03) if kind == "scar" else (0.02, 0.15)
        area = (low + (high - low) * u[1]) * height * width
        aspect = (0.1 + 0.15 * u[2]) if kind == "scar" else 0.3 ** (2 * u[2] - 1)
        tall, wide = (area * aspect) ** 0.5, (area / aspect) ** 0.5
        tall, wide = (wide, tall) if kind == "scar" and u[3] < 0.5 else (tall, wide)
        h, w = (min(max(round(side), 1), whole - 1) for side, whole in ((tall, height), (wide, width)))
        y, x = int(u[4] * (height - h + 1)), int(u[5] * (width - w + 1))
        to_y = (y + 1 + int(u[6] * (height - h))) % (height - h + 1)  # another place, on one axis at least
        to_x = int(u[7] * (width - w + 1))
        brighter = change if u[3] * 10 % 1 < 0.5 else -change
        piece = image[row, :, y : y + h, x : x + w] + brighter
        place = (slice(to_y, to_y + h), slice(to_x, to_x + w))
        share = _fading(h, w, image.device) if kind == "soft" else torch.ones(h, w, device=image.device)
        spoiled[row][(slice(None), *place)] = torch.lerp(spoiled[row][(slice(None), *place)], piece, share)
        truth[row][place] = share > 0.1
    return spoiled, truth


def _fading(height: int, width: int, device: torch.device) -> Tensor:
    """From 1 in the middle to 0 at the edges, [height, width]."""
    sides = [1 - torch.linspace(-1, 1, n + 2, device=device)[1:-1].square() for n in (height, width)]
    return sides[0][:, None] * sides[1]


class Classifier(nn.Module):
    """A perceptron of two layers: a logit of being abnormal.

    Args:
        width: Of the features.
        hidden: Of the layer between.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        norm = BatchNorm(width, affine=False)  # features of pictures differ little, as in MAE's linear probe
        self.layers = nn.Sequential(norm, nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, D] to logits [B], float32."""
        logits: Tensor = self.layers(features)
        return logits[:, 0].float()


def encoder_prefix(tokenizer: Any, encoder: Any) -> int:
    """How many class and register tokens an encoder has."""
    with torch.no_grad():
        sample = {name: torch.zeros(1, *shape) for name, shape in tokenizer.shapes.items()}
        return encode_all(tokenizer, encoder.eval(), sample).prefix.shape[1]


class _Adapted(Method):
    """What both steps share: weights that come from other runs."""

    filled: Tensor

    def _fill(self, part: nn.Module, run: Path | None, names: tuple[str, ...], option: str, untrained: bool) -> None:
        """Takes the weights of a run for modules of these names. Without a run that is at hand, a checkpoint must
        bring them; `check` refuses to start.

        Raises:
            MimError: The run has other modules or sizes.
        """
        if untrained or run is None or not run.exists() or torch.get_default_device().type == "meta":
            self.filled &= untrained
            if run is not None and not run.exists():
                self.lacking = f"{option} {run}: there is no such folder. It is that of a run with the same parts."
            return
        state = load_run(run).method.state_dict()
        for name in names:
            wanted: Any = part.get_submodule(name) if name else part
            own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
            try:
                wanted.load_state_dict(own if name else state)
            except RuntimeError as error:
                why = " ".join(str(error).split())
                raise MimError(
                    f"{option} {run}: its {name or 'modules'} are not those of this run; give both the same tokenizer, "
                    f"encoder and decoder. {why[:300]}"
                ) from error

    def check(self, source: DataSource) -> None:
        """Whether weights were brought.

        Raises:
            MimError: They were not.
        """
        if not bool(self.filled):
            raise MimError(self.lacking)

    lacking: str = ""


class AmaeClassifier(_Adapted):
    """The first step: a light classifier on the frozen features of a masked autoencoder, normal against spoiled.

    Args:
        tokenizer: Of the masked autoencoder.
        encoder: Of the masked autoencoder; neither is trained.
        hidden: Width of the classifier's layer.
        pool: What is classified: "prefix", "mean" or "both".

    Raises:
        ValueError: The tokenizer takes something else than images, or ``hidden`` is below 1.
    """

    change: float = 0.5
    lacking = "AMAE's first step needs a masked autoencoder: --method.run FOLDER, a run with the same parts."

    @dataclass(frozen=True)
    class Config:
        """Options of the first step."""

        run: Path | None = None
        """The folder of a masked autoencoder's run, whose tokenizer and encoder these are."""
        hidden: int = 256
        """Width of the classifier's layer."""
        pool: Literal["prefix", "mean", "both"] = "prefix"
        """What of the features is classified: the class token, the mean of all others, or both side by side. Encoders
        without a class token have the mean."""
        change: float = 0.5
        """By how much the piece that spoils a picture is brighter or darker, in standard deviations of the pixels."""
        untrained: bool = False
        """Features of an untrained encoder, to try the recipe and to compare with."""

    @classmethod
    def build(cls, config: Any, parts: Parts) -> AmaeClassifier:
        """From the run's tokenizer and encoder."""
        tokenizer = parts.tokenizer()
        made = cls(tokenizer, parts.encoder(tokenizer), config.hidden, config.pool)
        made.change = config.change
        made._fill(made, config.run, ("tokenizer", "encoder"), "--method.run", config.untrained)
        return made

    def __init__(self, tokenizer: Any, encoder: Any, hidden: int = 256, pool: str = "prefix") -> None:
        super().__init__()
        if set(tokenizer.shapes) != {"image"}:
            raise ValueError(f"AMAE takes images; this run has {', '.join(tokenizer.shapes)}")
        if hidden < 1:
            raise ValueError(f"hidden must be at least 1, got {hidden}")
        self.tokenizer, self.encoder = tokenizer.requires_grad_(False), encoder.requires_grad_(False)
        self.pool = pool if encoder_prefix(tokenizer, encoder) else "mean"
        self.classifier = Classifier(encoder.width * (2 if self.pool == "both" else 1), hidden)
        self.register_buffer("filled", torch.ones((), dtype=torch.bool))

    def train(self, mode: bool = True) -> AmaeClassifier:
        """The frozen parts stay in evaluation mode."""
        super().train(mode)
        self.tokenizer.eval()
        self.encoder.eval()
        return self

    def check(self, source: DataSource) -> None:
        """Whether weights were brought, and all pictures are known to be normal."""
        super().check(source)
        refuse_unlabelled(source)

    @torch.no_grad()
    def features(self, sample: Sample) -> Tensor:
        """What is classified, [B, D]."""
        encoded = self.encode(sample)
        if self.pool == "mean":
            return encoded.pooled
        prefix = encoded.prefix[:, 0]
        return prefix if self.pool == "prefix" else torch.cat([prefix, encoded.pooled], dim=1)

    @torch.no_grad()
    def prepare(
        self, sample: Sample, mask: Mask | Tensor | Mapping[str, Tensor] | None = None, *, step: int = 0,
        progress: float = 0.0,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Frozen features of each picture and of the same one spoiled by its key.

        Raises:
            ValueError: A mask is given.
        """
        if mask is not None:
            raise ValueError("the classifier hides nothing of the picture; leave the mask out")
        spoiled = spoil(sample["image"], sample["key"], self.change)[0]
        return {"normal": self.features({"image": sample["image"]}), "spoiled": self.features({"image": spoiled})}

    def forward(self, prepared: dict[str, Tensor]) -> Outcome:
        """Cross-entropy, both kinds alike."""
        both = torch.cat([prepared["normal"], prepared["spoiled"]])  # in one call, which shares its statistics
        normal, spoiled = self.classifier(both).chunk(2)
        loss = (F.softplus(normal) + F.softplus(-spoiled)).mean() / 2
        predictions = torch.stack([normal, spoiled], dim=1)[:, :, None]
        return Outcome(loss, {"main": loss}, {"main": predictions}, prepared["normal"][:, None])

    def encode(self, sample: Sample) -> Features:
        """The frozen features."""
        return encode_all(self.tokenizer, self.encoder, {"image": sample["image"]})

    @torch.no_grad()
    def score_maps(self, sample: Sample, covers: int) -> Tensor:
        """The logit of being abnormal, [B]: this step says nothing of places."""
        return self.classifier(self.features(sample))


class Amae(_Adapted):
    """The second step: two masked autoencoders that begin as one, adapted to what is taken for normal and for abnormal.

    Pictures without ``unlabelled`` are known to be normal. The classifier of the first step is frozen.

    Args:
        normal: The module of normal pictures.
        abnormal: The module of abnormal ones.
        first: The first step.
        threshold: Unlabelled pictures of a higher probability are taken for abnormal.
        score: How places are scored: "difference" or "errors".

    Raises:
        ValueError: The module of normal pictures has several heads, other views or a teacher.
    """

    lacking = (
        "AMAE's second step needs a masked autoencoder and the classifier of its first step: --method.run FOLDER "
        "--method.classifier FOLDER, runs with the same parts."
    )

    @dataclass(frozen=True)
    class Config:
        """Options of the second step."""

        run: Path | None = None
        """The folder of a masked autoencoder's run, which both modules begin as."""
        classifier: Path | None = None
        """The folder of the run of the first step."""
        hidden: int = 256
        """Width of the classifier's layer, as in the first step."""
        pool: Literal["prefix", "mean", "both"] = "prefix"
        """What of the features is classified, as in the first step."""
        threshold: float = 0.5
        """Unlabelled pictures whose probability of being abnormal is higher are taken for abnormal."""
        score: Literal["difference", "errors"] = "difference"
        """A place's score: the squared difference of the two modules' predictions; or the squared error of the normal
        module less that of the abnormal one, for data in which normal and abnormal pictures have little in common."""
        untrained: bool = False
        """Begin with untrained modules, to try the recipe."""

    @classmethod
    def build(cls, config: Any, parts: Parts) -> Amae:
        """From the run's parts: the masked autoencoder's, twice, and the tokenizer and encoder of the first step.

        Raises:
            ValueError: The threshold does not lie between 0 and 1.
        """
        if not 0 < config.threshold < 1:
            raise ValueError(f"threshold must lie between 0 and 1, got {config.threshold}")
        both = [MaskedAutoencoder.build(MaskedAutoencoder.Config(), parts) for _ in range(2)]
        both[1].load_state_dict(both[0].state_dict())
        tokenizer = parts.tokenizer()
        first = AmaeClassifier(tokenizer, parts.encoder(tokenizer), config.hidden, config.pool)
        made = cls(both[0], both[1], first, config.threshold, config.score)
        for module in both:
            made._fill(module, config.run, ("",), "--method.run", config.untrained)
        names = ("tokenizer", "encoder", "classifier")
        made._fill(first, config.classifier, names, "--method.classifier", config.untrained)
        return made

    def __init__(
        self, normal: MaskedAutoencoder, abnormal: MaskedAutoencoder, first: AmaeClassifier, threshold: float = 0.5,
        score: str = "difference",
    ) -> None:  # fmt: skip
        super().__init__()
        if normal.views() or len(normal.heads) != 1 or normal.teachers:
            raise ValueError("AMAE's modules are plain masked autoencoders: one head, no other views, no teacher")
        self.normal, self.abnormal = normal, abnormal
        self.first, self.threshold, self.score = first.requires_grad_(False), threshold, score
        self.register_buffer("filled", torch.ones((), dtype=torch.bool))

    def train(self, mode: bool = True) -> Amae:
        """The first step stays in evaluation mode: its statistics are those of its own run."""
        super().train(mode)
        self.first.eval()
        return self

    @property
    def tokenizer(self) -> Any:
        """Of the normal module; all split alike."""
        return self.normal.tokenizer

    @property
    def encoder(self) -> Any:
        """Of the normal module, which is carried on."""
        return self.normal.encoder

    @torch.no_grad()
    def prepare(
        self, sample: Sample, mask: Mask | Tensor | Mapping[str, Tensor] | None = None, *, step: int = 0,
        progress: float = 0.0,
    ) -> dict[str, Prepared]:  # fmt: skip
        """Masks and targets, the same for both modules, and what counts for which."""
        own = {name: value for name, value in sample.items() if name in ("image", "key")}
        prepared = self.normal.prepare(own, mask, step=step, progress=progress)
        rows = len(sample["image"])
        unlabelled = sample.get("unlabelled", torch.ones(rows, dtype=torch.int64, device=sample["image"].device))
        chance = self.first.classifier(self.first.features(sample)).sigmoid()
        abnormal = ((chance > self.threshold) & unlabelled.bool()).float()[:, None]
        return {
            name: replace(prepared, weights={"main": prepared.weights["main"] * share})
            for name, share in (("normal", 1 - abnormal), ("abnormal", abnormal))
        }

    def forward(self, prepared: dict[str, Prepared]) -> Outcome:
        """The sum of both losses; every picture counts in one of them."""
        normal, abnormal = self.normal(prepared["normal"]), self.abnormal(prepared["abnormal"])
        parts = {"normal": normal.loss, "abnormal": abnormal.loss}
        predictions = {"normal": normal.predictions["main"], "abnormal": abnormal.predictions["main"]}
        return Outcome(normal.loss + abnormal.loss, parts, predictions, normal.latent)

    def encode(self, sample: Sample) -> Features:
        """Of the normal module."""
        return self.normal.encode({"image": sample["image"]})

    @torch.no_grad()
    def score_maps(self, sample: Sample, covers: int) -> Tensor:
        """The squared difference of the two reconstructions of hidden pixels, or by how much the squared error of the
        normal one exceeds that of the other, a mean over channels and masks, [B, H, W].

        Raises:
            MimError: The modules predict no pixels.
        """
        image = sample["image"]
        layout = self.tokenizer.layout
        total, times = torch.zeros_like(image[:, 0]), torch.zeros_like(image[:, 0])
        for mask in covering_masks(layout.count, self.normal.masker.count(layout), covers):
            hidden = mask.to(image.device).expand(len(image), -1)
            both = [
                reconstruct(module, {"image": image}, hidden).get("main") for module in (self.normal, self.abnormal)
            ]
            if both[0] is None or both[1] is None or both[0].hidden is None:
                raise MimError("AMAE's modules predict no pixels; the target core:values does.")
            where = both[0].hidden.float()
            normal, abnormal, seen = both[0].rebuilt, both[1].rebuilt, both[0].input
            if self.score == "difference":
                scores = (normal - abnormal).square()
            else:
                scores = (normal - seen).square() - (abnormal - seen).square()
            total += (scores * where).mean(dim=1)
            times += where.mean(dim=1)
        return total / times.clamp(min=1e-12)
