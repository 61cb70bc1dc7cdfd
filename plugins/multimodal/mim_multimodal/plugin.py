"""What mim-multimodal brings to mim-core. Imports no torch: every part is a lazy reference."""

from __future__ import annotations

from mim_core import EvaluationRegister, Finding, RecipeRegister, Register, hookimpl, library

MULTIMAE = "MultiMAE, arXiv 2204.01678"
FOURM = "4M, arXiv 2312.06647"


@hookimpl
def mim_register_tokenizers(register: Register) -> None:
    """Class maps and captions; pictures are cut by core's patches."""
    register(
        name="class-map",
        load="mim_multimodal.tokenizer:ClassMapTokenizer",
        summary="Patches of a map of class ids, each class embedded first.",
        paper=MULTIMAE,
    )
    register(
        name="text",
        load="mim_multimodal.text:TextTokenizer",
        summary="Tokens of a caption, padded to a fixed length.",
        paper="4M, arXiv 2312.06647",
    )


@hookimpl
def mim_register_maskers(register: Register) -> None:
    """A budget of visible units shared by modalities."""
    register(
        name="dirichlet",
        load="mim_multimodal.masker:DirichletMasker",
        summary="A fixed budget of visible units, spread over modalities by Dirichlet draws.",
        paper=MULTIMAE,
    )
    register(
        name="budgets",
        load="mim_multimodal.budgets:BudgetMasker",
        summary="Two fixed budgets, of what is seen and of what is asked, spread by a mixture of Dirichlet draws.",
        paper=FOURM,
    )


@hookimpl
def mim_register_decoders(register: Register) -> None:
    """MultiMAE's decoder."""
    register(
        name="cross-attention",
        load="mim_multimodal.decoder:CrossAttentionDecoder",
        summary="Queries of one modality attend to all visible units, then to each other.",
        paper=MULTIMAE,
    )


@hookimpl
def mim_register_targets(register: Register) -> None:
    """Classes; pixels and depths are core's values."""
    register(
        name="class-map",
        load="mim_multimodal.target:ClassMapTarget",
        summary="The class of every position of a unit, by cross-entropy.",
        paper=MULTIMAE,
    )
    register(
        name="text",
        load="mim_multimodal.text:TextTarget",
        summary="The hidden token of a caption, by cross-entropy.",
        paper="BERT, arXiv 1810.04805",
    )


@hookimpl
def mim_register_data(register: Register) -> None:
    """Aligned files, and other sources put together."""
    register(
        name="aligned",
        load="mim_multimodal.data:Aligned",
        summary="Folders of aligned RGB, depth, class maps and captions, a file of the same name in each.",
    )
    register(
        name="paired",
        load="mim_multimodal.paired:Paired",
        summary="Several sources of any plugins, item by item, cut alike.",
    )
    register(
        name="rendered",
        load="mim_multimodal.rendered:Rendered",
        summary="Another source's shapes, with the depth of a view rendered from them.",
    )


@hookimpl
def mim_register_methods(register: Register) -> None:
    """Training on maps of classes and of depth."""
    register(
        name="segmenter",
        load="mim_multimodal.segmenter:Segmenter",
        summary="A class for every pixel: a linear, ConvNeXt, DPT or UPerNet head on all tokens.",
        paper=MULTIMAE,
    )
    register(
        name="depth-regressor",
        load="mim_multimodal.depth_regressor:DepthRegressor",
        summary="Depth at every pixel, in the file's unit: a DPT, ConvNeXt, linear or UPerNet head.",
        paper=MULTIMAE,
    )


@hookimpl
def mim_register_evaluations(register: EvaluationRegister) -> None:
    """Dense probes of frozen features."""
    probes = "Probes of frozen features"
    register(
        name="segmentation",
        load="mim_multimodal.evaluations:segmentation",
        summary="Linear probe of every unit for the classes of its positions: mIoU.",
        paper=MULTIMAE,
        heading=probes,
    )
    register(
        name="depth",
        load="mim_multimodal.evaluations:depth",
        summary="Linear probe of every unit for the depth of its positions: RMSE, delta 1.",
        paper=MULTIMAE,
        heading=probes,
    )


RECIPES = {
    "4m-vit-tiny": (
        "4M with a 128-wide encoder: RGB, ids of RGB, depth and classes, captions; the bundled frames.",
        FOURM,
    ),
    "4m-vit-base": (
        "4M-B: RGB, ids of RGB, depth, normals, classes and features by trained tokenizers, captions; 128 + 128 units.",
        FOURM,
    ),
    "4m-vit-large": ("4M-L: the same with 24 + 24 blocks of 1024.", FOURM),
    "vq-rgb-tiny": ("A tokenizer of RGB: 64 ids of 512 codes; the bundled frames.", FOURM),
    "vq-depth-tiny": ("A tokenizer of depth: 64 ids of 256 codes; the bundled frames.", FOURM),
    "vq-semseg-tiny": ("A tokenizer of class maps: 64 ids of 128 codes; the bundled frames.", FOURM),
    "vq-rgb-base": ("A tokenizer of RGB at 224 pixels: 196 ids of 16,384 codes.", FOURM),
    "vq-depth-base": ("A tokenizer of depth at 224 pixels: 196 ids of 8,192 codes.", FOURM),
    "vq-normal-base": ("A tokenizer of surface normals at 224 pixels: 196 ids of 8,192 codes.", FOURM),
    "vq-semseg-base": ("A tokenizer of class maps at 224 pixels: 196 ids of 4,096 codes.", FOURM),
    "vq-features-tiny": ("A tokenizer of features that a run's encoder makes of RGB: 256 codes.", FOURM),
    "vq-features-base": ("A tokenizer of features of a ViT-B/16 at 224 pixels: 196 ids of 8,192 codes.", FOURM),
    "multimae-vit-tiny": ("MultiMAE with a 128-wide encoder: the bundled game frames, minutes on a CPU.", MULTIMAE),
    "multimae-vit-base": ("MultiMAE with ViT-B/16 on RGB, depth and class maps, the paper's for ImageNet.", MULTIMAE),
    "rgb-vit-tiny": ("RGB alone, with the budget of multimae-vit-tiny: what the other modalities add to.", MULTIMAE),
    "multimae-captions-vit-tiny": ("RGB and captions: text as input and as target.", "4M, arXiv 2312.06647"),
    "points-depth-vit-tiny": ("Point clouds and their rendered depth, with mim-pointcloud's parts.", MULTIMAE),
    "video-depth-vit-tiny": ("Clips and their depth, with mim-video's parts.", MULTIMAE),
}


ROOMS = {"4m": ("recipes_fourm", "fourm"), "vq": ("recipes_vq", "vq")}
"""First word of a recipe's name -> the module where it is, and how its function's name begins."""


@hookimpl
def mim_register_recipes(register: RecipeRegister) -> None:
    """MultiMAE, 4M, and modalities of several plugins together."""
    for name, (summary, paper) in RECIPES.items():
        first, _, rest = name.replace("-", "_").partition("_")
        module, word = ROOMS.get(first, ("recipes", first))
        function = f"mim_multimodal.{module}:{word}_{rest}"
        register(name=name, load=function, twin=f"{function}.twin", summary=summary, paper=paper)


FINETUNINGS = {
    "multimae-semseg-vit-base": ("MultiMAE's fine-tuning for ADE20K's 150 classes from RGB, 64 epochs.", MULTIMAE),
    "multimae-semseg-vit-base-nyu": (
        "MultiMAE's fine-tuning for NYUv2's 40 classes from RGB and depth, 200 epochs.",
        MULTIMAE,
    ),
    "multimae-depth-vit-base": ("MultiMAE's fine-tuning for NYUv2's depth from RGB, 2000 epochs.", MULTIMAE),
}
"""Fine-tuning recipes: summary, paper."""


@hookimpl
def mim_register_finetunings(register: RecipeRegister) -> None:
    """The paper's settings of training on maps."""
    for name, (summary, paper) in FINETUNINGS.items():
        function = f"mim_multimodal.recipes_finetune:{name.replace('-', '_')}"
        register(name=name, load=function, twin=f"{function}.twin", summary=summary, paper=paper)


@hookimpl
def mim_register_importers(register: Register) -> None:
    """Weights of the official code."""
    register(
        name="multimae",
        load="mim_multimodal.interop:import_multimae",
        summary="Official MultiMAE pre-training weights (.pth).",
        paper=MULTIMAE,
    )
    register(
        name="fourm",
        load="mim_multimodal.interop_fourm:import_fourm",
        summary="Official 4M weights, with the modalities told.",
        paper=FOURM,
    )
    register(
        name="multimae-semseg",
        load="mim_multimodal.interop_dense:import_semseg",
        summary="Official MultiMAE weights of semantic segmentation with the ConvNeXt head (.pth).",
        paper=MULTIMAE,
    )
    register(
        name="multimae-depth",
        load="mim_multimodal.interop_dense:import_depth",
        summary="Official MultiMAE weights of depth with the DPT head (.pth).",
        paper=MULTIMAE,
    )


@hookimpl
def mim_diagnose() -> list[Finding]:
    """What captions need."""
    return [library("tokenizers", ("tokenizers",), means="a vocabulary of the captions' own")]


COMMANDS = {
    "tokenize": (
        "mim_multimodal.tokenize:tokenize",
        "Write the ids of a collection, by a trained tokenizer: tokenize RUN DATA OUT",
    ),
}


def main() -> int:
    """The ``mim-multimodal`` command: mim-core's commands, restricted to this plugin's recipes, and its own."""
    from mim_core import main

    return main(plugin="multimodal", more=COMMANDS)
