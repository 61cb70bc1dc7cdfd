"""What mim-image brings to mim-core. Imports no torch: every part is a lazy reference."""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata

from mim_core import EvaluationRegister, Finding, RecipeRegister, Register, first_line, hookimpl, library
from packaging.requirements import Requirement

MAE = "MAE, arXiv 2111.06377"
SIMMIM = "SimMIM, arXiv 2111.09886"
IJEPA = "I-JEPA, arXiv 2301.08243"
SDAE = "SdAE, arXiv 2208.00449"
HPM = "HPM, arXiv 2304.05919"
CMAE = "CMAE, arXiv 2207.13532"
MCMAE = "MCMAE (ConvMAE), arXiv 2205.03892"
MST = "MST, arXiv 2106.05656"
MASKCO = "MaskCo, arXiv 2108.07954"
MVP = "MVP, arXiv 2203.05175; EVA, arXiv 2211.07636"
SSMCTB = "SSMCTB, arXiv 2209.12148"
AMAE = "AMAE, arXiv 2307.12721"
VITDET = "ViTDet, arXiv 2203.16527"


BY_MODULE = {
    "ijepa": (
        IJEPA,
        {
            "ijepa-vit-base": "I-JEPA with ViT-B/16: a moving average's features of four blocks, 600 epochs.",
            "ijepa-vit-huge": "I-JEPA with ViT-H/14, the paper's 300 epochs.",
            "ijepa-vit-tiny": "I-JEPA with a 128-wide encoder on the bundled sample, beside mae-vit-tiny.",
        },
    ),
    "sdae": (
        SDAE,
        {
            "sdae-vit-base": "SdAE with ViT-B/16: a slow teacher's features of hidden patches, 300 epochs.",
            "sdae-vit-tiny": "SdAE with a 128-wide encoder on the bundled sample, beside mae-vit-tiny.",
        },
    ),
    "hpm": (
        HPM,
        {
            "hpm-vit-base": "HPM with ViT-B/16: MAE that hides what its teacher finds hard, the paper's 800 epochs.",
            "hpm-vit-tiny": "HPM with a 128-wide encoder on the bundled sample, beside mae-vit-tiny.",
        },
    ),
    "cmae": (
        CMAE,
        {
            "cmae-vit-base": "CMAE with ViT-B/16: MAE and a contrast with a shifted view, the paper's 1600 epochs.",
            "cmae-vit-tiny": "CMAE with a 128-wide encoder on the bundled sample, beside mae-vit-tiny.",
        },
    ),
    "mcmae": (
        MCMAE,
        {
            "mcmae-base": "MCMAE (ConvMAE): convolutions in front of ViT-B's blocks, the paper's 1600 epochs.",
            "mcmae-tiny": "MCMAE as wide as mae-vit-tiny on the bundled sample.",
        },
    ),
    "mst": (
        MST,
        {
            "mst-vit-small": "MST with ViT-S/16: views sorted alike, what the teacher minds least hidden, 300 epochs.",
            "mst-vit-tiny": "MST with a 128-wide encoder on the bundled sample, beside mae-vit-tiny.",
        },
    ),
    "maskco": (
        MASKCO,
        {
            "maskco-resnet50": "MaskCo with ResNet-50: a hidden region is told apart by its place in another view.",
            "maskco-resnet-tiny": "MaskCo with a small ResNet on the bundled sample.",
        },
    ),
    "anomaly": (
        SSMCTB,
        {
            "ssmctb-autoencoder": "A convolutional autoencoder with SSMCTB that finds what is abnormal, 256 pixels.",
            "ssmctb-autoencoder-tiny": "The same small, on one class of the bundled sample.",
        },
    ),
    "amae": (
        AMAE,
        {
            "amae-1": "AMAE's first step: a classifier on mae-vit-small's frozen features, normal against spoiled.",
            "amae-2": "AMAE's second step: two modules, adapted to what is taken for normal and for abnormal.",
            "amae-1-tiny": "The first step on a run of mae-vit-tiny, on one class of the bundled sample.",
            "amae-2-tiny": "The second step on a run of mae-vit-tiny, on one class of the bundled sample.",
        },
    ),
}
"""Recipes of the modules ``recipes_METHOD``, with their paper and summaries."""


@hookimpl
def mim_register_tokenizers(register: Register) -> None:
    """Square patches of images."""
    register(
        name="patch",
        load="mim_image.tokenizer:ImagePatchTokenizer",
        summary="Patches of an image, any size and number of channels.",
        paper="ViT, arXiv 2010.11929",
    )


@hookimpl
def mim_register_encoders(register: Register) -> None:
    """A hierarchy; plain transformers are core's."""
    register(
        name="mcmae",
        load="mim_image.mcmae:McmaeEncoder",
        summary="Two stages of masked convolutions, then a transformer on what is visible.",
        paper=MCMAE,
    )
    register(
        name="resnet",
        load="mim_image.resnet:ResNetEncoder",
        summary="A ResNet as timm has it, or a small one; hidden pixels are zero.",
        paper="arXiv 1512.03385",
    )


@hookimpl
def mim_register_decoders(register: Register) -> None:
    """Of regions; others are core's."""
    register(
        name="regions",
        load="mim_image.maskco:RegionDecoder",
        summary="An answer for the hidden region: filled in, cut out, projected.",
        paper=MASKCO,
    )


@hookimpl
def mim_register_targets(register: Register) -> None:
    """Features of a teacher, and regions found again; pixels are core's values."""
    register(
        name="region-contrast",
        load="mim_image.maskco:RegionContrastTarget",
        summary="The hidden region's place in another view, among regions of all images (InfoNCE).",
        paper=MASKCO,
    )
    register(
        name="clip",
        load="mim_image.clip:ClipTarget",
        summary="Features of a frozen CLIP image encoder at the hidden patches, by the cosine.",
        paper=MVP,
    )


@hookimpl
def mim_register_data(register: Register) -> None:
    """Images on disk."""
    register(
        name="images",
        load="mim_image.data:Images",
        summary="A folder of jpg, png or webp files, or of tar files of them, nested or not; MNIST's idx files; or the "
        "bundled Fashion-MNIST sample.",
    )
    register(
        name="anomalies",
        load="mim_image.anomaly_data:Anomalies",
        summary="Normal pictures to train on, abnormal ones to find: MVTec AD, VisA, BTAD, NIH, RSNA, or one class of "
        "many.",
        paper="MVTec AD, CVPR 2019",
    )
    register(
        name="coco",
        load="mim_image.coco_data:CocoImages",
        summary="Pictures whose objects are known by boxes and masks: COCO's folder, Roboflow's, or any with a json of "
        "instances; or scenes made of the bundled sample.",
        paper="COCO, arXiv 1405.0312",
    )


@hookimpl
def mim_register_methods(register: Register) -> None:
    """What hides nothing of the picture itself."""
    register(
        name="detector",
        load="mim_image.detector:Detector",
        summary="Boxes, classes and masks of objects, learned from COCO's json: Mask R-CNN, Faster R-CNN or RetinaNet.",
        paper=VITDET,
    )
    register(
        name="autoencoder",
        load="mim_image.autoencoder:ConvolutionalAutoencoder",
        summary="A convolutional autoencoder with a masked block behind its encoder.",
        paper=SSMCTB,
    )
    register(
        name="amae-classifier",
        load="mim_image.amae:AmaeClassifier",
        summary="Normal pictures against spoiled ones, by the frozen features of a masked autoencoder.",
        paper=AMAE,
    )
    register(
        name="amae",
        load="mim_image.amae:Amae",
        summary="Two masked autoencoders, adapted to normal and to abnormal pictures, and their disagreement.",
        paper=AMAE,
    )


@hookimpl
def mim_register_evaluations(register: EvaluationRegister) -> None:
    """Anomalies; probes are core's."""
    register(
        name="anomaly",
        load="mim_image.anomaly:anomaly",
        summary="Which images are abnormal and where: AUROC, average precision, PRO up to 30 %.",
        paper="MVTec AD, CVPR 2019",
        heading="Anomaly detection",
    )


@hookimpl
def mim_register_recipes(register: RecipeRegister) -> None:
    """MAE in five sizes, SimMIM, MVP, and those of modules of their own."""
    sizes = {
        "tiny": "MAE with a 128-wide, 4-block encoder on 28-pixel images: the bundled sample in minutes on a CPU.",
        "small": "MAE with ViT-S/16 at 224 pixels; MAE's settings, a size that the paper does not have.",
        "base": "MAE with ViT-B/16 at 224 pixels, the paper's 1600-epoch settings.",
        "large": "MAE with ViT-L/16 at 224 pixels, the paper's 1600-epoch settings.",
        "huge": "MAE with ViT-H/14 at 224 pixels, the paper's 1600-epoch settings.",
    }
    for size, summary in sizes.items():
        register(
            name=f"mae-vit-{size}",
            load=f"mim_image.recipes:mae_vit_{size}",
            twin=f"mim_image.recipes:mae_vit_{size}.twin",
            summary=summary,
            paper=MAE,
        )
    register(
        name="simmim-vit-base",
        load="mim_image.recipes:simmim_vit_base",
        twin="mim_image.recipes:simmim_vit_base.twin",
        summary="SimMIM with ViT-B/16 at 224 pixels, the paper's 800-epoch settings.",
        paper=SIMMIM,
    )
    register(
        name="mvp-vit-base",
        load="mim_image.recipes:mvp_vit_base",
        twin="mim_image.recipes:mvp_vit_base.twin",
        summary="MVP with ViT-B/16: CLIP's features are predicted, the paper's 300 epochs.",
        paper=MVP,
    )
    for method, (paper, recipes) in BY_MODULE.items():
        for name, summary in recipes.items():
            _register(register, method, name, summary, paper)


def _register(register: RecipeRegister, method: str, name: str, summary: str, paper: str) -> None:
    """A recipe of the module ``recipes_METHOD``, with its twin."""
    load = f"mim_image.recipes_{method}:{name.replace('-', '_')}"
    register(name=name, load=load, twin=f"{load}.twin", summary=summary, paper=paper)


FINETUNINGS = {
    "mae-finetune-vit-base": (
        "MAE's fine-tuning of ViT-B/16: mixing, RandAugment, layer-wise rates, 100 epochs.",
        MAE,
    ),
    "mae-finetune-vit-large": ("MAE's fine-tuning of ViT-L/16, 50 epochs.", MAE),
    "mae-finetune-vit-huge": ("MAE's fine-tuning of ViT-H/14, 50 epochs.", MAE),
    "mae-linprobe-vit-base": ("MAE's linear probing of a frozen ViT-B/16 by LARS, 90 epochs.", MAE),
    "vitdet-vit-base": ("ViTDet's training of Mask R-CNN on ViT-B/16 at 1,024 pixels, 100 epochs of COCO.", VITDET),
}
"""Fine-tuning recipes: summary, paper."""


@hookimpl
def mim_register_finetunings(register: RecipeRegister) -> None:
    """The papers' settings of training on labels."""
    for name, (summary, paper) in FINETUNINGS.items():
        module = "recipes_detection" if name.startswith("vitdet") else "recipes_finetune"
        function = f"mim_image.{module}:{name.replace('-', '_')}"
        register(name=name, load=function, twin=f"{function}.twin", summary=summary, paper=paper)


IMPORTERS = {
    "mae": ("interop:import_mae", "Official MAE pre-training weights (.pth).", MAE),
    "mae-finetune": ("interop_finetuned:import_mae_finetune", "Official MAE weights after fine-tuning (.pth).", MAE),
    "mae-linprobe": ("interop_finetuned:import_mae_linprobe", "Official MAE weights after linear probing (.pth).", MAE),
    "simmim": ("interop:import_simmim", "Official SimMIM ViT weights (.pth).", SIMMIM),
    "i-jepa": ("interop_ijepa:import_ijepa", "Official I-JEPA weights: encoder, predictor and target encoder.", IJEPA),
    "cmae": (
        "interop_cmae:import_cmae",
        "Official CMAE weights with both decoders and the target branch (.pth).",
        CMAE,
    ),
    "convmae": ("interop_mcmae:import_convmae", "Official ConvMAE weights with their decoder (.pth).", MCMAE),
    "sdae": ("interop_sdae:import_sdae", "Official SdAE weights, student and teacher.", SDAE),
    "hpm": ("interop_hpm:import_hpm", "Official HPM weights, student and teacher with both decoders.", HPM),
    "hf-vitmae": ("interop:import_hf_vitmae", "ViTMAEForPreTraining of transformers (folder).", MAE),
}
"""Import formats: where, summary, paper."""


@hookimpl
def mim_register_exporters(register: Register) -> None:
    """Encoder and decoder for transformers."""
    register(
        name="hf-vitmae",
        load="mim_image.exports:export_hf_vitmae",
        summary="transformers' ViTMAEForPreTraining, encoder and decoder (folder).",
        paper=MAE,
    )


@hookimpl
def mim_register_importers(register: Register) -> None:
    """Weights of the official code and of transformers."""
    for name, (attribute, summary, paper) in IMPORTERS.items():
        register(name=name, load=f"mim_image.{attribute}", summary=summary, paper=paper)


@hookimpl
def mim_diagnose() -> list[Finding]:
    """Pillow, whether torchvision fits torch, and what CLIP's features need."""
    clip = library("open_clip", ("open_clip_torch",), means="CLIP features as targets")
    coco = library("pycocotools", means="detection", extra="detection")
    return [replace(library("PIL", ("pillow",), "reading images"), topic="pillow"), _torchvision(), clip, coco]


def _torchvision() -> Finding:
    """Imported, because one that is built for another torch is installed and does not import."""
    finding = library("torchvision", means="reading images")
    if finding.state == "missing":
        return Finding(
            finding.topic, "missing", finding.text, "No image run can start: pip install torchvision", stops=True
        )
    torch = metadata.version("torch")
    needs = [Requirement(text) for text in metadata.requires("torchvision") or ()]
    wanted = next((n for n in needs if n.name == "torch" and (n.marker is None or n.marker.evaluate())), None)
    fits = wanted is None or wanted.specifier.contains(torch, prereleases=True)
    pair = f"{finding.text}, made for torch{wanted.specifier if wanted else ''}; torch is {torch}"
    mend = "Install both anew, of one release: pip install -U torch torchvision"
    try:
        from torchvision.transforms import v2  # noqa: F401
    except Exception as error:  # ImportError, OSError, or RuntimeError: operator torchvision::nms does not exist
        why = f"{pair}; it does not import: {type(error).__name__}: {first_line(error)}"
        return Finding(finding.topic, "missing", why, f"No image run can start. {mend}", stops=True)
    return Finding(finding.topic, "ok", pair) if fits else Finding(finding.topic, "warning", pair, mend)


def main() -> int:
    """The ``mim-image`` command: mim-core's commands, restricted to this plugin's recipes."""
    from mim_core import main

    return main(plugin="image")
