"""What mim-pointcloud brings to mim-core. Imports no torch: every part is a lazy reference."""

from __future__ import annotations

from mim_core import EvaluationRegister, Finding, RecipeRegister, Register, hookimpl, library

POINT_MAE = "Point-MAE, arXiv 2203.06604"

COMMANDS = {
    "prepare": (
        "mim_pointcloud.commands:prepare",
        "Sample a collection of meshes or clouds once, for fast reading: prepare IN OUT",
    ),
}
"""Commands beside those that every plugin has."""


@hookimpl
def mim_register_tokenizers(register: Register) -> None:
    """Groups of points."""
    register(
        name="groups",
        load="mim_pointcloud.tokenizer:GroupTokenizer",
        summary="Nearest neighbours of farthest-point centres, embedded by a small PointNet.",
        paper=POINT_MAE,
    )


@hookimpl
def mim_register_maskers(register: Register) -> None:
    """Masks of units that lie freely."""
    register(
        name="centre-block",
        load="mim_pointcloud.masker:CentreBlockMasker",
        summary="The units nearest to a random one.",
        paper=POINT_MAE,
    )


@hookimpl
def mim_register_targets(register: Register) -> None:
    """Points of groups."""
    register(
        name="chamfer",
        load="mim_pointcloud.target:ChamferTarget",
        summary="A group's points, under the Chamfer distance.",
        paper=POINT_MAE,
    )


@hookimpl
def mim_register_data(register: Register) -> None:
    """Shapes on disk."""
    register(
        name="clouds",
        load="mim_pointcloud.data:Clouds",
        summary="A folder of meshes or clouds; ShapeNet, ModelNet40, ScanObjectNN or ShapeNetPart as unpacked; or the "
        "sample.",
    )


@hookimpl
def mim_register_evaluations(register: EvaluationRegister) -> None:
    """Judgements of frozen features, as the papers on point clouds have them."""
    probes = "Probes of frozen features"
    register(
        name="svm",
        load="mim_pointcloud.evaluations:svm",
        summary="Linear support vector machine on frozen features (the ModelNet40 protocol).",
        paper=POINT_MAE,
        heading=probes,
    )
    register(
        name="folds",
        load="mim_pointcloud.evaluations:folds",
        summary="Linear support vector machine, five folds over all labelled shapes: mean and spread.",
        heading=probes,
    )
    register(
        name="few-shot",
        load="mim_pointcloud.evaluations:few_shot",
        summary="5 and 10 classes, 10 and 20 shapes of each, ten runs: mean and spread.",
        paper=POINT_MAE,
        heading=probes,
    )


@hookimpl
def mim_register_methods(register: Register) -> None:
    """What is trained on labels after pre-training."""
    register(
        name="part-segmenter",
        load="mim_pointcloud.segmentation:PartSegmenter",
        summary="A class for every point: part segmentation from three levels of the encoder.",
        paper=POINT_MAE,
    )


RECIPES = {
    "point-mae-vit-tiny": ("Point-MAE with a 96-wide encoder: the bundled shapes, minutes on a CPU.", POINT_MAE),
    "point-mae-vit-small": ("Point-MAE with 12 blocks of 384, the paper's for ShapeNet.", POINT_MAE),
}


@hookimpl
def mim_register_recipes(register: RecipeRegister) -> None:
    """Point-MAE."""
    for name, (summary, paper) in RECIPES.items():
        function = f"mim_pointcloud.recipes:{name.replace('-', '_')}"
        register(name=name, load=function, twin=f"{function}.twin", summary=summary, paper=paper)


FINETUNINGS = {
    "point-mae-finetune-vit-small": ("Point-MAE's fine-tuning for classification, 300 epochs.", POINT_MAE),
    "point-mae-finetune-vit-small-scanobjectnn": (
        "The same for scans: 2,048 points in 128 groups, 300 epochs.",
        POINT_MAE,
    ),
    "point-mae-partseg-vit-small": ("Point-MAE's fine-tuning for ShapeNetPart's parts, 300 epochs.", POINT_MAE),
}
"""Fine-tuning recipes: summary, paper."""


@hookimpl
def mim_register_finetunings(register: RecipeRegister) -> None:
    """The papers' settings of training on labels."""
    for name, (summary, paper) in FINETUNINGS.items():
        function = f"mim_pointcloud.recipes_finetune:{name.replace('-', '_')}"
        register(name=name, load=function, twin=f"{function}.twin", summary=summary, paper=paper)


@hookimpl
def mim_register_importers(register: Register) -> None:
    """Weights of the official code."""
    register(
        name="point-mae",
        load="mim_pointcloud.interop:import_point_mae",
        summary="Official Point-MAE pre-training weights (.pth).",
        paper=POINT_MAE,
    )
    register(
        name="point-mae-cls",
        load="mim_pointcloud.interop_finetuned:import_classifier",
        summary="Official Point-MAE weights after fine-tuning for classification (.pth).",
        paper=POINT_MAE,
    )
    register(
        name="point-mae-partseg",
        load="mim_pointcloud.interop_finetuned:import_part_segmenter",
        summary="Official Point-MAE weights of part segmentation (.pth).",
        paper=POINT_MAE,
    )


@hookimpl
def mim_diagnose() -> list[Finding]:
    """Libraries that may take the place of the plain operations."""
    return [
        library("pytorch3d", means="--tokenizer.ops pytorch3d (build it from its source)"),
        library("fpsample", means="--tokenizer.ops fpsample"),
    ]


def main() -> int:
    """The ``mim-pointcloud`` command: mim-core's commands, restricted to this plugin's recipes, and its own."""
    from mim_core import main

    return main(plugin="pointcloud", more=COMMANDS)
