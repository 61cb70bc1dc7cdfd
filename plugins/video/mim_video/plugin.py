"""What mim-video brings to mim-core. Imports no torch: every part is a lazy reference."""

from __future__ import annotations

from dataclasses import replace

from mim_core import EvaluationRegister, Finding, RecipeRegister, Register, hookimpl, library

VIDEOMAE = "VideoMAE, arXiv 2203.12602"
VIDEOMAE_V2 = "VideoMAE V2, arXiv 2303.16727"
MAE_ST = "MAE-ST, arXiv 2205.09113"
MVD = "MVD, arXiv 2212.04500"

COMMANDS = {
    "probe": ("mim_video.commands:probe", "Show what each installed reader sees in a video file: probe FILE"),
    "prepare": ("mim_video.commands:prepare", "Re-encode a collection once, for fast reading: prepare IN OUT"),
}
"""Commands beside those that every plugin has."""


@hookimpl
def mim_register_tokenizers(register: Register) -> None:
    """Tubelets of clips."""
    register(
        name="tubelet",
        load="mim_video.tokenizer:TubeletTokenizer",
        summary="Tubelets of a clip: some frames of a square patch; any size and number of channels.",
        paper=VIDEOMAE,
    )


@hookimpl
def mim_register_maskers(register: Register) -> None:
    """Masks that know which axis is time."""
    maskers = {
        "tube": ("TubeMasker", "One random mask over height and width, the same at all times.", VIDEOMAE),
        "frame": ("FrameMasker", "Everything at some times, drawn at random.", VIDEOMAE),
        "running-cell": ("RunningCellMasker", "Cells of 2 x 2 whose hidden places move with time.", VIDEOMAE_V2),
        "dual": ("DualMasker", "Tubes for the encoder; the decoder answers where a running cell asks.", VIDEOMAE_V2),
    }
    for name, (attribute, summary, paper) in maskers.items():
        register(name=name, load=f"mim_video.masker:{attribute}", summary=summary, paper=paper)


@hookimpl
def mim_register_targets(register: Register) -> None:
    """Pixels of tubelets, as the papers normalise them."""
    register(
        name="cubes",
        load="mim_video.target:CubeTarget",
        summary="A tubelet's pixels, standardised per channel with the small number outside the root.",
        paper=VIDEOMAE,
    )
    register(
        name="frame-of-tubelet",
        load="mim_video.target:FrameTarget",
        summary="One frame of each tubelet, standardised over all its values together.",
        paper=MAE_ST,
    )


@hookimpl
def mim_register_data(register: Register) -> None:
    """Clips on disk."""
    register(
        name="clips",
        load="mim_video.data:Clips",
        summary="A folder of video files; UCF101, Kinetics or Something-Something v2 as unpacked; or the sample.",
    )
    register(
        name="anomalies",
        load="mim_video.anomaly_data:SurveillanceClips",
        summary="Normal footage to train on, abnormal frames to find: UCSD Ped1 or Ped2, Avenue, ShanghaiTech.",
    )


@hookimpl
def mim_register_evaluations(register: EvaluationRegister) -> None:
    """Abnormal frames; probes are core's."""
    register(
        name="anomaly",
        load="mim_video.anomaly:anomaly",
        summary="Which frames are abnormal: AUROC of all frames, and by video.",
        heading="Anomaly detection",
    )


RECIPES = {
    "videomae-vit-tiny": (
        "VideoMAE with a 128-wide encoder of 4 blocks: the bundled clips, minutes on a CPU.",
        VIDEOMAE,
    ),
    "videomae-vit-small": (
        "VideoMAE with ViT-S/16 on 16 frames at 224 pixels, the paper's for Kinetics.",
        VIDEOMAE,
    ),
    "videomae-vit-base": (
        "VideoMAE with ViT-B/16 on 16 frames at 224 pixels, the paper's for Kinetics.",
        VIDEOMAE,
    ),
    "videomae-vit-large": (
        "VideoMAE with ViT-L/16 on 16 frames at 224 pixels, the paper's for Kinetics.",
        VIDEOMAE,
    ),
    "videomae-vit-huge": (
        "VideoMAE with ViT-H/16 on 16 frames at 224 pixels, the paper's for Kinetics.",
        VIDEOMAE,
    ),
    "videomae-vit-base-ssv2": ("VideoMAE with ViT-B/16, the paper's settings for Something-Something v2.", VIDEOMAE),
    "videomae-vit-base-ucf101": ("VideoMAE with ViT-B/16, the paper's settings for UCF101 alone.", VIDEOMAE),
    "videomae-v2-vit-base": ("VideoMAE V2's dual masking with ViT-B/16.", VIDEOMAE_V2),
    "videomae-v2-vit-giant": ("VideoMAE V2's dual masking with ViT-g/14, the paper's settings.", VIDEOMAE_V2),
    "mae-st-vit-base": ("MAE-ST with ViT-B/16: masking without regard to space and time.", MAE_ST),
    "mae-st-vit-large": ("MAE-ST with ViT-L/16, the paper's settings.", MAE_ST),
    "mvd-vit-base": ("MVD with ViT-B/16: an image and a video teacher's features, the paper's 400 epochs.", MVD),
    "mvd-vit-tiny": ("MVD with a 128-wide encoder on the bundled clips, taught by runs of yours.", MVD),
}


@hookimpl
def mim_register_teachers(register: Register) -> None:
    """Image encoders on frames; others are core's."""
    register(
        name="frames",
        load="mim_video.teacher:FramesTeacher",
        summary="An image encoder on the first frame of each tubelet.",
        paper=MVD,
    )


@hookimpl
def mim_register_recipes(register: RecipeRegister) -> None:
    """VideoMAE, VideoMAE V2 and MAE-ST."""
    for name, (summary, paper) in RECIPES.items():
        module = "recipes_mvd" if paper == MVD else "recipes"
        function = f"mim_video.{module}:{name.replace('-', '_')}"
        register(name=name, load=function, twin=f"{function}.twin", summary=summary, paper=paper)


FINETUNINGS = {
    "videomae-finetune-vit-base": ("VideoMAE's fine-tuning of ViT-B/16 on Kinetics-400, 75 epochs.", VIDEOMAE),
    "videomae-finetune-vit-base-ssv2": (
        "VideoMAE's fine-tuning of ViT-B/16 on SSv2, 50 epochs.",
        VIDEOMAE,
    ),
    "videomae-finetune-vit-base-ucf101": (
        "VideoMAE's fine-tuning of ViT-B/16 on UCF101, 100 epochs.",
        VIDEOMAE,
    ),
}
"""Fine-tuning recipes: summary, paper."""


@hookimpl
def mim_register_finetunings(register: RecipeRegister) -> None:
    """The papers' settings of training on labels."""
    for name, (summary, paper) in FINETUNINGS.items():
        function = f"mim_video.recipes_finetune:{name.replace('-', '_')}"
        register(name=name, load=function, twin=f"{function}.twin", summary=summary, paper=paper)


@hookimpl
def mim_register_importers(register: Register) -> None:
    """Weights of the official code and of transformers."""
    formats = {
        "videomae": ("interop:import_videomae", "Official VideoMAE pre-training weights (.pth).", VIDEOMAE),
        "videomae-v2": ("interop:import_videomae_v2", "Official VideoMAE V2 pre-training weights (.pth).", VIDEOMAE_V2),
        "mae-st": ("interop_mae_st:import_mae_st", "Official MAE-ST pre-training weights (.pth).", MAE_ST),
        "mvd": ("interop_mvd:import_mvd", "Official MVD weights with both decoders and teachers.", MVD),
        "videomae-finetune": (
            "interop_finetuned:import_videomae_finetune",
            "Official VideoMAE weights after fine-tuning on labels (.pth).",
            VIDEOMAE,
        ),
        "hf-videomae": ("interop:import_hf_videomae", "VideoMAEForPreTraining of transformers (folder).", VIDEOMAE),
    }
    for name, (attribute, summary, paper) in formats.items():
        register(name=name, load=f"mim_video.{attribute}", summary=summary, paper=paper)


@hookimpl
def mim_register_exporters(register: Register) -> None:
    """Encoder and decoder, or a classifier, for transformers."""
    register(
        name="hf-videomae",
        load="mim_video.exports:export_hf_videomae",
        summary="transformers' VideoMAEForPreTraining, or VideoMAEForVideoClassification (folder).",
        paper=VIDEOMAE,
    )


@hookimpl
def mim_diagnose() -> list[Finding]:
    """PyAV, without which no clip is read, and the readers that may take its place."""
    needed = library("av", means="reading video files")
    if needed.state == "missing":
        needed = replace(needed, means="No video run can start: pip install av", stops=True)
    others = {
        "torchcodec": "--data.reader torchcodec",
        "decord": "--data.reader decord",
        "pytorchvideo": "using pytorchvideo's data sets",
    }
    findings = [library(name, means=means) for name, means in others.items()]
    optional = [
        replace(finding, means=finding.means.replace(f"pip install {finding.topic}", _install(finding.topic)))
        for finding in findings
    ]
    return [needed, *optional]


def _install(extra: str) -> str:
    return f'pip install "mim-video[{extra}]"'


def main() -> int:
    """The ``mim-video`` command: mim-core's commands, restricted to this plugin's recipes, and its own."""
    from mim_core import main

    return main(plugin="video", more=COMMANDS)
