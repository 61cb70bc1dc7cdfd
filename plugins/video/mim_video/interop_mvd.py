"""Official MVD weights, and how its golden cases are tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from mim_core import Method, MimError, Part, State, fill, fill_weights, importers, parts_text
from mim_core.testing.golden import GoldenAdapter, GoldenCase
from torch import Tensor

from mim_video.interop import RELEASED_HEADS, _whole_bias
from mim_video.recipes_mvd import TARGET
from mim_video.weights import tubelets

HEADS = {**RELEASED_HEADS, "feat_decoder_num_heads": {384: 6, 512: 8, 768: 12}}
IMAGE, VIDEO = "teachers.img_feat.", "teachers.vid_feat."
UNUSED = (
    "teacher_image.decoder_",
    "teacher_image.mask_token",
    "teacher_video.decoder.",
    "teacher_video.encoder_to_decoder.",
    "teacher_video.mask_token",
)
"""What the teachers' own files hold beside their encoders."""


@dataclass(frozen=True)
class MvdSizes:
    """What may be said of MVD weights, under MVD's own names. Most is read off the weights."""

    img_size: Any = 224
    num_frames: int = 16
    encoder_num_heads: int | None = None
    feat_decoder_num_heads: int | None = None
    mask_ratio: float = 0.9
    image_teacher: dict[str, int] = field(default_factory=dict)
    """num_heads of the image teacher; others are ignored."""
    video_teacher: dict[str, int] = field(default_factory=dict)
    """encoder_num_heads of the video teacher; others are ignored."""
    image_teacher_loss_weight: float = 1.0
    video_teacher_loss_weight: float = 1.0
    patch_size: Any = None
    tubelet_size: int | None = None
    encoder_embed_dim: int | None = None
    encoder_depth: int | None = None
    feat_decoder_embed_dim: int | None = None
    decoder_depth: int | None = None
    distill_loss_func: str = "SmoothL1"
    video_distill_loss_func: str = "SmoothL1"
    norm_feature: bool = False
    time_stride_loss: bool = True


@importers.grouped(teacher_image="teacher_image.", teacher_video="teacher_video.")
def import_mvd(state: State, **sizes: Any) -> Method:
    """Official MVD weights (arXiv 2212.04500) with both decoders; the teachers', which official files lack, as groups
    ``teacher_image`` and ``teacher_video`` beside the ``model``, or with these in front of MAE's and VideoMAE's names.
    ``sizes`` are the fields of `MvdSizes`.

    Raises:
        MimError: Weights of another code base, or a size that contradicts them.
    """
    given = fill(MvdSizes, sizes, "import format mvd")
    width, channels, tubelet, *patch = importers.need(state, "patch_embed.proj.weight", "MVD").shape
    inner = importers.need(state, "down_img.weight", "MVD with its decoders").shape[0]
    read = {
        "encoder_embed_dim": width,
        "encoder_depth": importers.depth_of(state, "blocks."),
        "feat_decoder_embed_dim": inner,
        "decoder_depth": importers.depth_of(state, "decoder_img.blocks."),
        "tubelet_size": tubelet,
        "patch_size": tuple(patch),
        "distill_loss_func": "SmoothL1",
        "video_distill_loss_func": "SmoothL1",
        "norm_feature": False,
        "time_stride_loss": True,
    }
    importers.agree(given, read)
    _need_teachers(state)
    size = importers.pair(given.img_size)
    method = importers.build(
        method=Part.of("core:masked-autoencoder", weights={"img_feat": given.image_teacher_loss_weight,
                                                           "vid_feat": given.video_teacher_loss_weight}),
        tokenizer=tubelets((given.num_frames, *size), (tubelet, *patch), channels),
        masker=Part.of("video:tube", ratio=given.mask_ratio),
        encoder=Part.of("core:vit", width=width, depth=read["encoder_depth"], class_token=False,
                        mlp_ratio=importers.mlp_ratio_of(state, "blocks.", width),
                        heads=importers.heads_of("encoder_num_heads", given, width, HEADS)),
        **_heads(state, given, size),
    )  # fmt: skip
    moved = importers.without_slot(state, "teacher_image.cls_token", "teacher_image.pos_embed")
    own = method.state_dict()
    flat = {VIDEO + "encoder.position.table": own[VIDEO + "encoder.position.table"]}  # computed, in no checkpoint
    names = {name: name if name in flat else _name(name) for name in own}
    image = {name: value for name, value in moved.items() if name.startswith("teacher_image.")}
    others = _whole_bias({name: value for name, value in moved.items() if name not in image})
    unused = [name for name in state if name.startswith(UNUSED)]
    fill_weights(method, {**image, **others, **flat}, names, unused)
    return method


def _need_teachers(state: State) -> None:
    for group in ("teacher_image", "teacher_video"):
        if not any(name.startswith(f"{group}.") for name in state):
            raise MimError(
                f"These weights have no {group}: MVD's files hold the student alone. Put the weights of its teachers "
                'beside them, torch.save({"model": ..., "teacher_image": ..., "teacher_video": ...}, FILE), from the '
                "files of MAE and VideoMAE that it was taught by."
            )


def _heads(state: State, given: MvdSizes, size: tuple[int, int]) -> dict[str, Part]:
    """Target, decoder and teacher of both heads."""
    inner = state["down_img.weight"].shape[0]
    heads = importers.heads_of("feat_decoder_num_heads", given, inner, HEADS)
    decoders = {
        name: Part.of("core:transformer", width=inner, depth=importers.depth_of(state, f"decoder_{name}.blocks."),
                      mlp_ratio=importers.mlp_ratio_of(state, f"decoder_{name}.blocks.", inner), heads=heads)
        for name in ("img", "vid")
    }  # fmt: skip
    return {
        "img_feat.target": Part.of("core:features", **TARGET),
        "img_feat.decoder": decoders["img"],
        "img_feat.teacher": Part.of("video:frames", random=True, parts=_image_parts(state, given, size)),
        "vid_feat.target": Part.of("core:features", **TARGET),
        "vid_feat.decoder": decoders["vid"],
        "vid_feat.teacher": Part.of("core:frozen", random=True, parts=_video_parts(state, given, size)),
    }


def _image_parts(state: State, given: MvdSizes, size: tuple[int, int]) -> str:
    width, channels, *patch = state["teacher_image.patch_embed.proj.weight"].shape
    heads = importers.heads_within("image_teacher", given.image_teacher, "num_heads", HEADS["encoder_num_heads"], width)
    return parts_text(
        tokenizer=Part.of("core:patch", modality="image", size=size, patch=tuple(patch), channels=channels),
        encoder=Part.of("core:vit", width=width, depth=importers.depth_of(state, "teacher_image.blocks."), heads=heads,
                        mlp_ratio=importers.mlp_ratio_of(state, "teacher_image.blocks.", width)),
    )  # fmt: skip


def _video_parts(state: State, given: MvdSizes, size: tuple[int, int]) -> str:
    start = "teacher_video.encoder."
    width, channels, *patch = state[f"{start}patch_embed.proj.weight"].shape
    teacher, known = given.video_teacher, HEADS["encoder_num_heads"]
    heads = importers.heads_within("video_teacher", teacher, "encoder_num_heads", known, width)
    return parts_text(
        tokenizer=tubelets((given.num_frames, *size), tuple(patch), channels),
        encoder=Part.of("core:vit", width=width, depth=importers.depth_of(state, f"{start}blocks."), heads=heads,
                        mlp_ratio=importers.mlp_ratio_of(state, f"{start}blocks.", width), class_token=False,
                        position="flat"),
    )  # fmt: skip


def _name(ours: str) -> str:
    """Our name of a weight -> MVD's."""
    for head, short in (("heads.img_feat.decoder.", "img"), ("heads.vid_feat.decoder.", "vid")):
        if ours.startswith(head):
            rest = ours.removeprefix(head)
            fixed = {
                "embed.weight": f"down_{short}.weight",
                "embed.bias": f"down_{short}.bias",
                "mask_token": f"mask_token_{short}",
                "position.table": f"pos_embed_{short}",
            }
            return fixed.get(rest, f"decoder_{short}.{rest.replace('pred.', 'head.')}")
    group = "teacher_image." if ours.startswith(IMAGE) else "teacher_video.encoder." if ours.startswith(VIDEO) else ""
    rest = ours.removeprefix(IMAGE).removeprefix(VIDEO).removeprefix("encoder.").replace("tokenizer.", "patch_embed.")
    return group + ("pos_embed" if rest == "position.table" else rest)


def _outputs(case: GoldenCase, method: Any, prepared: Any, outcome: Any) -> dict[str, Tensor]:
    """Answers of both decoders and what the teachers say of all tubelets."""
    patches = method.tokenizer.split({"video": case.inputs["video"]})
    features = {name: method.teachers[name](patches).levels[-1] for name in ("img_feat", "vid_feat")}
    return {
        "latent": outcome.latent,
        "loss_img_feat": outcome.parts["img_feat"],
        "loss_vid_feat": outcome.parts["vid_feat"],
        "pred_img": outcome.predictions["img_feat"],
        "pred_vid": outcome.predictions["vid_feat"],
        "teacher_features_img": features["img_feat"],
        "teacher_features_vid": features["vid_feat"],
    }


def _gradients(case: GoldenCase, method: Any) -> dict[str, Tensor]:
    """Biases of queries and values are parts of one bias here."""
    gradients = {}
    for name in case.gradients:
        start, _, last = name.rpartition(".")
        if last in ("q_bias", "v_bias"):
            whole = method.get_parameter(f"encoder.{start}.qkv.bias").grad
            gradients[f"grad/{name}"] = torch.chunk(whole, 3)[0 if last == "q_bias" else 2]
    return gradients


def _names(method: Any) -> Mapping[str, str]:
    return {name: _name(name) for name in method.state_dict()}


GOLDEN = {
    "mvd": GoldenAdapter(
        sample=lambda case: {"video": case.inputs["video"]},
        mask=lambda case: case.inputs["mask"],
        outputs=_outputs,
        names=_names,
        after=_gradients,
    )
}
