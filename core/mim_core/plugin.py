"""Core's own parts, registered like any plugin's under the name ``core``."""

from __future__ import annotations

from mim_core.host.hookspecs import hookimpl
from mim_core.host.registry import EvaluationRegister, Register
from mim_core.runs.trackers import (
    mim_features_judged,
    mim_metrics_read,
    mim_run_finished,
    mim_run_left,
    mim_run_started,
)

__all__ = ["mim_features_judged", "mim_metrics_read", "mim_run_finished", "mim_run_left", "mim_run_started"]


@hookimpl
def mim_register_tokenizers(register: Register) -> None:
    """Patches on any grid."""
    register(
        name="patch",
        load="mim_core.parts.tokenizer:PatchTokenizer",
        summary="Non-overlapping patches on a grid of one, two or three axes, embedded linearly.",
        paper="arXiv 2010.11929",
    )
    register(
        name="ids",
        load="mim_core.parts.tokenizer_ids:IdTokenizer",
        summary="Ids that the data hold, on a grid, each a unit.",
        paper="4M, arXiv 2312.06647",
    )
    register(
        name="codes",
        load="mim_core.interop.codes:CodeTokenizer",
        summary="Ids that a trained tokenizer gives, a run of a vq recipe.",
        paper="4M, arXiv 2312.06647",
    )
    register(
        name="features",
        load="mim_core.interop.frozen_features:FrozenFeatures",
        summary="Features of a run's frozen encoder, one vector a unit: what a tokenizer of features is trained on.",
        paper="4M, arXiv 2312.06647",
    )
    register(
        name="bins",
        load="mim_core.parts.tokenizer_ids:BinTokenizer",
        summary="Patches named by the bins that their mean values fall into.",
    )
    register(
        name="sequence",
        load="mim_core.parts.tokenizer_ids:SequenceTokenizer",
        summary="A sequence of ids, whose hidden spans are told one id after another.",
        paper="4M, arXiv 2312.06647; T5, arXiv 1910.10683",
    )


@hookimpl
def mim_register_maskers(register: Register) -> None:
    """Random, grid and block."""
    register(
        name="random",
        load="mim_core.parts.masker:RandomMasker",
        summary="Units uniformly at random.",
        paper="MAE, arXiv 2111.06377",
    )
    register(
        name="grid",
        load="mim_core.parts.masker:GridMasker",
        summary="Whole blocks of a coarser grid; tubes when a block spans an axis.",
        paper="SimMIM, arXiv 2111.09886",
    )
    register(
        name="block",
        load="mim_core.parts.masker:BlockMasker",
        summary="Random rectangles, filled to an exact count.",
        paper="BEiT, arXiv 2106.08254",
    )
    register(
        name="multi-block",
        load="mim_core.parts.masker_multiblock:MultiBlockMasker",
        summary="Several target blocks, and a large context block without them.",
        paper="I-JEPA, arXiv 2301.08243",
    )
    register(
        name="guided",
        load="mim_core.parts.masker_guided:GuidedMasker",
        summary="Units of the highest or lowest scores, a share that changes during the run; the rest at random.",
        paper="HPM, arXiv 2304.05919",
    )
    register(
        name="region",
        load="mim_core.parts.masker_region:RegionMasker",
        summary="One rectangle, where scores allow it.",
        paper="MaskCo, arXiv 2108.07954",
    )


@hookimpl
def mim_register_targets(register: Register) -> None:
    """The unit's own values."""
    register(
        name="values",
        load="mim_core.parts.target:ValueTarget",
        summary="The hidden units' own values (pixels, depths, ...), raw or normalised per unit.",
        paper="MAE, arXiv 2111.06377",
    )
    register(
        name="features",
        load="mim_core.parts.target_features:FeatureTarget",
        summary="What a teacher says of the hidden units: its last layer or a mean of several.",
        paper="data2vec, arXiv 2202.03555",
    )
    register(
        name="ids",
        load="mim_core.parts.target_ids:IdTarget",
        summary="Which of many names a teacher gives the hidden units, or their own ids.",
        paper="BEiT, arXiv 2106.08254",
    )
    register(
        name="ranks",
        load="mim_core.parts.target_ranks:RankTarget",
        summary="What another head loses at the hidden units: their order, or how much.",
        paper="HPM, arXiv 2304.05919",
    )


@hookimpl
def mim_register_encoders(register: Register) -> None:
    """Transformers."""
    register(
        name="vit",
        load="mim_core.parts.encoder:ViTEncoder",
        summary="A plain vision transformer, or any timm VisionTransformer by name.",
        paper="arXiv 2010.11929",
    )
    register(
        name="beit",
        load="mim_core.parts.encoder_beit:BeitEncoder",
        summary="BEiT's transformer: all positions, mask tokens, a shared relative position bias.",
        paper="arXiv 2106.08254",
    )


@hookimpl
def mim_register_decoders(register: Register) -> None:
    """A light transformer, and a linear layer."""
    register(
        name="transformer",
        load="mim_core.parts.decoder:TransformerDecoder",
        summary="A light transformer over what was seen and a mask token per query.",
        paper="MAE, arXiv 2111.06377",
    )
    register(
        name="linear",
        load="mim_core.parts.decoder:LinearDecoder",
        summary="One linear layer per unit, for encoders that see all positions.",
        paper="SimMIM, arXiv 2111.09886",
    )
    register(
        name="sample",
        load="mim_core.parts.decoder_sample:SampleDecoder",
        summary="One answer for a sample: units averaged, a projector and a predictor.",
        paper="CMAE, arXiv 2207.13532",
    )


@hookimpl(specname="mim_register_encoders")
def mim_register_codebooks(register: Register) -> None:
    """Encoders that name units."""
    register(
        name="codebook",
        load="mim_core.parts.encoder_codebook:CodebookEncoder",
        summary="A vision transformer whose tokens become the nearest of many learned codes.",
        paper="VQ-VAE, arXiv 1711.00937",
    )


@hookimpl(specname="mim_register_decoders")
def mim_register_joint_decoders(register: Register) -> None:
    """One for all heads, and one that hides nothing."""
    register(
        name="plain",
        load="mim_core.parts.decoder_plain:PlainDecoder",
        summary="A transformer over all units, each answered where it stands.",
        paper="VQ-VAE, arXiv 1711.00937",
    )
    register(
        name="joint",
        load="mim_core.parts.decoder_joint:JointDecoder",
        summary="One transformer for all heads, whose queries see those of their own modality, and all that was seen.",
        paper="4M, arXiv 2312.06647",
    )


@hookimpl(specname="mim_register_decoders")
def mim_register_sample_decoders(register: Register) -> None:
    """Of samples as a whole."""
    register(
        name="prototypes",
        load="mim_core.parts.decoder_prototypes:PrototypeDecoder",
        summary="A sample's scores for each of many prototypes: DINO's head.",
        paper="DINO, arXiv 2104.14294",
    )


@hookimpl(specname="mim_register_targets")
def mim_register_sample_targets(register: Register) -> None:
    """Of samples as a whole."""
    register(
        name="contrast",
        load="mim_core.parts.target_contrast:ContrastTarget",
        summary="The teacher's view of the same sample among those of all others (InfoNCE).",
        paper="CMAE, arXiv 2207.13532",
    )
    register(
        name="self-distillation",
        load="mim_core.parts.target_distillation:SelfDistillationTarget",
        summary="How a teacher sorts the other view of the item, centred and sharpened (DINO).",
        paper="DINO, arXiv 2104.14294",
    )


@hookimpl
def mim_register_teachers(register: Register) -> None:
    """One that follows the student, one that stands still."""
    register(
        name="ema",
        load="mim_core.parts.teacher:EmaTeacher",
        summary="A moving average of the student; sees all units, hidden ones in folds, or another view.",
        paper="BYOL, arXiv 2006.07733",
    )
    register(
        name="random-codes",
        load="mim_core.parts.teacher_codes:RandomCodesTeacher",
        summary="Names units by a random projection of their values; no network, never trained.",
        paper="BEST-RQ, arXiv 2202.01855",
    )
    register(
        name="frozen",
        load="mim_core.interop.frozen:FrozenTeacher",
        summary="The encoder of a run, or of weights of any format that is imported.",
        paper="MVD, arXiv 2212.04500",
    )


@hookimpl
def mim_register_scorers(register: Register) -> None:
    """What a teacher attends to, what it answers, or what two views share."""
    register(
        name="attention",
        load="mim_core.parts.scorer:AttentionScorer",
        summary="How much the teacher's class token attends to a unit.",
        paper="AttMask, arXiv 2203.12719",
    )
    register(
        name="answers",
        load="mim_core.parts.scorer:AnswerScorer",
        summary="What the teacher's copy of a head answers at a unit, such as a predicted loss.",
        paper="HPM, arXiv 2304.05919",
    )
    register(
        name="overlap",
        load="mim_core.parts.scorer:OverlapScorer",
        summary="Whether another view of the sample shows a unit too.",
        paper="MaskCo, arXiv 2108.07954",
    )


@hookimpl
def mim_register_methods(register: Register) -> None:
    """The one that most are made of, and one for labels."""
    register(
        name="masked-autoencoder",
        load="mim_core.methods.masked_autoencoder:MaskedAutoencoder",
        summary="Encode what is kept, decode what is asked, compare with the target.",
        paper="MAE, arXiv 2111.06377",
    )
    register(
        name="vq",
        load="mim_core.methods.quantised:QuantisedAutoencoder",
        summary="Name every unit by a code, and rebuild all from the codes: trains tokenizers.",
        paper="VQ-VAE, arXiv 1711.00937",
    )
    register(
        name="classifier",
        load="mim_core.methods.classifier:Classifier",
        summary="Trained on labels: encode all units, pool, and a head; what the command finetune trains.",
    )
    register(
        name="multi-label-classifier",
        load="mim_core.methods.multi_label:MultiLabelClassifier",
        summary="Trained on several labels of each sample, from a table: a yes or no for each.",
    )


@hookimpl
def mim_register_data(register: Register) -> None:
    """Noise."""
    register(
        name="noise",
        load="mim_core.data.noise:Noise",
        summary="Random numbers, for measuring speed and for trying a recipe without data.",
    )


@hookimpl
def mim_register_evaluations(register: EvaluationRegister) -> None:
    """Probes of frozen features."""
    probes = "Probes of frozen features"
    register(
        name="knn",
        load="mim_core.evaluation.probes:knn",
        summary="k-nearest-neighbour vote: k 20, cosine, weights exp(similarity / 0.07).",
        paper="DINO, arXiv 2104.14294",
        heading=probes,
    )
    register(
        name="linear",
        load="mim_core.evaluation.probes:linear",
        summary="Logistic regression on frozen features: all labels, and few labels with several draws.",
        heading=probes,
    )


@hookimpl
def mim_register_exporters(register: Register) -> None:
    """transformers' ViT; methods with their decoders are plugins'."""
    register(
        name="hf-vit",
        load="mim_core.interop.hugging_face:export_hf_vit",
        summary="transformers' ViTModel, or ViTForImageClassification (folder).",
        paper="arXiv 2010.11929",
    )
