"""Core's own parts, registered like any plugin's under the name ``core``."""

from __future__ import annotations

from mim_core.hookspecs import hookimpl
from mim_core.registry import Card, Register
from mim_core.trackers import mim_features_judged, mim_metrics_read, mim_run_finished, mim_run_left, mim_run_started

__all__ = ["mim_features_judged", "mim_metrics_read", "mim_run_finished", "mim_run_left", "mim_run_started"]


@hookimpl
def mim_register_tokenizers(register: Register) -> None:
    """Patches on any grid."""
    register(
        name="patch",
        load="mim_core.tokenizer:PatchTokenizer",
        card=Card(
            "Non-overlapping patches on a grid of one, two or three axes, embedded linearly.", "arXiv 2010.11929"
        ),
    )


@hookimpl
def mim_register_maskers(register: Register) -> None:
    """Random, grid and block."""
    register(
        name="random",
        load="mim_core.masker:RandomMasker",
        card=Card("Units uniformly at random.", "MAE, arXiv 2111.06377", ("any layout",)),
    )
    register(
        name="grid",
        load="mim_core.masker:GridMasker",
        card=Card(
            "Whole blocks of a coarser grid; tubes when a block spans an axis.", "SimMIM, arXiv 2111.09886", ("grid",)
        ),
    )
    register(
        name="block",
        load="mim_core.masker:BlockMasker",
        card=Card("Random rectangles, filled to an exact count.", "BEiT, arXiv 2106.08254", ("grid",)),
    )


@hookimpl
def mim_register_targets(register: Register) -> None:
    """The unit's own values."""
    register(
        name="values",
        load="mim_core.target:ValueTarget",
        card=Card(
            "The hidden units' own values (pixels, depths, ...), raw or normalised per unit.", "MAE, arXiv 2111.06377"
        ),
    )


@hookimpl
def mim_register_encoders(register: Register) -> None:
    """Transformers."""
    register(
        name="vit",
        load="mim_core.encoder:ViTEncoder",
        card=Card("A plain vision transformer, or any timm VisionTransformer by name.", "arXiv 2010.11929"),
    )
    register(
        name="beit",
        load="mim_core.encoder_beit:BeitEncoder",
        card=Card(
            "BEiT's transformer: all positions, mask tokens, a shared relative position bias.", "arXiv 2106.08254"
        ),
    )


@hookimpl
def mim_register_decoders(register: Register) -> None:
    """A light transformer, and a linear layer."""
    register(
        name="transformer",
        load="mim_core.decoder:TransformerDecoder",
        card=Card("A light transformer over what was seen and a mask token per query.", "MAE, arXiv 2111.06377"),
    )
    register(
        name="linear",
        load="mim_core.decoder:LinearDecoder",
        card=Card("One linear layer per unit, for encoders that see all positions.", "SimMIM, arXiv 2111.09886"),
    )


@hookimpl
def mim_register_methods(register: Register) -> None:
    """The one that most are made of, and one for labels."""
    register(
        name="masked-autoencoder",
        load="mim_core.method:MaskedAutoencoder",
        card=Card("Encode what is kept, decode what is asked, compare with the target.", "MAE, arXiv 2111.06377"),
    )
    register(
        name="classifier",
        load="mim_core.finetune:Classifier",
        card=Card("Trained on labels: encode all units, pool, and a head; what the command finetune trains."),
    )


@hookimpl
def mim_register_data(register: Register) -> None:
    """Noise."""
    register(
        name="noise",
        load="mim_core.noise:Noise",
        card=Card("Random numbers, for measuring speed and for trying a recipe without data."),
    )


@hookimpl
def mim_register_evaluations(register: Register) -> None:
    """Probes of frozen features."""
    register(
        name="knn",
        load="mim_core.evaluation:knn",
        card=Card("k-nearest-neighbour vote: k 20, cosine, weights exp(similarity / 0.07).", "DINO, arXiv 2104.14294"),
    )
    register(
        name="linear",
        load="mim_core.evaluation:linear",
        card=Card("Logistic regression on frozen features: all labels, and few labels with several draws."),
    )
