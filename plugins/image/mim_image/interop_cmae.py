"""Official CMAE weights, and how its golden cases are tried."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from mim_core import Method, MimError, Part, Progress, State, fill, fill_weights, importers
from mim_core.testing.golden import GoldenAdapter, GoldenCase, whole_answers
from torch import Tensor, nn

from mim_image.interop import RELEASED_HEADS, _image_size
from mim_image.recipes_cmae import HEAD, TEACHER

OWN = "heads.contrast.decoder."


@dataclass(frozen=True)
class CmaeSizes:
    """What may be said of CMAE weights, under the official configuration's names."""

    img_size: Any = None
    """Needed for inputs that are not square."""
    patch_size: Any = None
    mask_ratio: float = 0.65
    embed_dims: int | None = None
    num_layers: int | None = None
    num_heads: int | None = None
    feedforward_channels: int | None = None
    pixel: dict[str, int] = field(default_factory=dict)
    """Sizes of the pixel decoder."""
    feature: dict[str, int] = field(default_factory=dict)
    """Sizes of the feature decoder."""
    projector: dict[str, int] = field(default_factory=dict)
    predictor: dict[str, int] = field(default_factory=dict)
    temperature: float = 0.07
    ct_weight: float = 1.0
    rc_weight: float = 1.0
    base_momentum: float = 0.996
    norm_pix: bool = True
    target_cls: bool = True
    batchnorm: str = ""
    """A description, ignored."""


def import_cmae(state: State, **sizes: Any) -> Method:
    """Official CMAE weights (arXiv 2207.13532), with both decoders and the target branch. ``sizes`` are the fields of
    `CmaeSizes`.

    Raises:
        MimError: Weights of another code base, or a size that contradicts them.
    """
    given = fill(CmaeSizes, sizes, "import format cmae")
    width, channels, *patch = importers.need(state, "backbone.patch_embed.projection.weight", "CMAE").shape
    between = state["backbone.layers.0.ffn.layers.0.0.weight"].shape[0]
    read = {"embed_dims": width, "num_layers": importers.depth_of(state, "backbone.layers.")}
    fixed = {"patch_size": (patch[0], patch[1]), "feedforward_channels": between, "target_cls": True}
    importers.agree(given, {**read, **fixed})
    size = _image_size(given.img_size, (patch[0], patch[1]), state["backbone.pos_embed"].shape[1] - 1)
    hidden, out = (state[f"projector.{layer}.weight"].shape[0] for layer in ("fc0", "fc1"))
    method = importers.build(
        method=Part.of("core:masked-autoencoder", weights={"rc": given.rc_weight, "ct": given.ct_weight}),
        tokenizer=Part.of("image:patch", size=size, patch=tuple(patch), channels=channels),
        masker=Part.of("core:grid", ratio=given.mask_ratio, block=(2, 2), rounding="up"),
        encoder=Part.of("core:vit", width=width, depth=read["num_layers"], position="sincos-first",
                        mlp_ratio=between / width,
                        heads=importers.heads_of("num_heads", given, width, RELEASED_HEADS)),
        teacher=Part.of("core:ema", **{**TEACHER, "heads": ("ct",)}, start=given.base_momentum,
                        end=given.base_momentum),
        **{
            "rc.decoder": Part.of("core:transformer", **_decoder(state, "pixel", given.pixel)),
            "rc.target": Part.of("core:values", normalize=given.norm_pix, loss="l2"),
            "ct.decoder": Part.of("core:sample", **HEAD, hidden=hidden,
                                  predictor_hidden=state["head.predictor.fc0.weight"].shape[0],
                                  **_decoder(state, "feature", given.feature)),
            "ct.target": Part.of("core:contrast", head="ct", size=out, temperature=given.temperature),
        },
    )  # fmt: skip
    moved = dict(state)
    for group, token, table in (("backbone", "cls_token", "pos_embed"), ("target_backbone", "cls_token", "pos_embed")):
        moved = importers.without_slot(moved, f"{group}.{token}", f"{group}.{table}")
    for group in ("pixel_decoder", "feature_decoder"):
        moved[f"{group}.decoder_pos_embed"] = state[f"{group}.decoder_pos_embed"][:, 1:]
    fill_weights(method, moved, {name: _name(name) for name in method.state_dict()})
    return method


def _decoder(state: State, group: str, given: dict[str, int]) -> dict[str, Any]:
    """Sizes of the pixel or the feature decoder."""
    start = f"{group}_decoder"
    width = importers.need(state, f"{start}.decoder_embed.weight", "CMAE with its decoders").shape[0]
    hidden = state[f"{start}.decoder_blocks.0.ffn.layers.0.0.weight"].shape[0]
    depth = importers.depth_of(state, f"{start}.decoder_blocks.")
    for name, value in (("decoder_embed_dim", width), ("decoder_depth", depth)):
        if given.get(name, value) != value:
            raise MimError(f"{name} of {group} is given as {given[name]}, and the weights have {value}.")
    heads = importers.heads_within(group, given, "decoder_num_heads", RELEASED_HEADS["decoder_num_heads"], width)
    return {"width": width, "depth": depth, "mlp_ratio": hidden / width, "heads": heads, "position": "sincos-first"}


def _name(ours: str) -> str:
    """Our name of a weight -> CMAE's."""
    for head, group in (("heads.rc.decoder.", "pixel_decoder."), ("heads.ct.decoder.units.", "feature_decoder.")):
        if ours.startswith(head):
            rest = ours.removeprefix(head)
            fixed = {"position.table": "decoder_pos_embed", "mask_token": "mask_token"}
            own = fixed.get(rest, f"decoder_{rest}" if rest.split(".")[0] in ("embed", "pred", "blocks") else rest)
            return group + _block(own)
    if ours.startswith("heads.ct.decoder."):
        rest = ours.removeprefix("heads.ct.decoder.")
        return rest.replace("projector.mlp.", "projector.") if rest.startswith("projector") else f"head.{rest}"
    if ours.startswith("teachers.main.decoders.ct."):
        return ours.replace("teachers.main.decoders.ct.mlp.", "target_projector.")
    group = "target_backbone." if ours.startswith("teachers.main.") else "backbone."
    rest = ours.removeprefix("teachers.main.").removeprefix("encoder.")
    if rest.startswith("norm."):
        return "backbone." + _block(rest)  # the official target has none, and nothing reads ours
    rest = rest.replace("tokenizer.proj.", "patch_embed.projection.").replace("position.table", "pos_embed")
    return group + _block(rest.replace("blocks.", "layers.", 1))


def _block(rest: str) -> str:
    """timm's names inside a block and of the last norm -> theirs."""
    for mine, theirs in ((".mlp.fc1.", ".ffn.layers.0.0."), (".mlp.fc2.", ".ffn.layers.1."), (".norm1.", ".ln1."),
                         (".norm2.", ".ln2.")):  # fmt: skip
        rest = rest.replace(mine, theirs)
    return "ln1." + rest.removeprefix("norm.") if rest.startswith("norm.") else rest


def _sample(case: GoldenCase) -> dict[str, Tensor]:
    return {name: case.inputs[name] for name in ("image", "image_target")}


def _outputs(case: GoldenCase, method: Any, prepared: Any, outcome: Any) -> dict[str, Tensor]:
    """Both heads' answers and what is behind them. A copy of the teacher is asked, for statistics move with each
    batch."""
    mask, layout, head = prepared.mask, prepared.layout, method.heads["ct"].decoder
    with torch.no_grad():
        twin = copy.deepcopy(head).eval()  # the inner decoder has no statistics
        encoded, sample = method._encoded(prepared.inputs, layout, mask), _sample(case)
        patches = method.tokenizer.split(sample)
        answers, target = whole_answers(method.heads["rc"], encoded, sample, patches, mask)
        features = twin.features(encoded, layout, mask)
        places = torch.cat([mask.kept_ids, mask.query_ids], dim=1)[:, :, None].expand_as(features)
        teacher = copy.deepcopy(method.teachers["main"])
        teacher.encoder.norm = nn.Identity()
        lesson = teacher(patches, sample)
        projection = copy.deepcopy(head.projector).train()(features)
    return {
        "latent": outcome.latent,
        "loss_rc": outcome.parts["rc"],
        "loss_ct": outcome.parts["ct"],
        "prediction": outcome.predictions["ct"][:, 0],
        "projection": projection,
        "pred_feature": torch.zeros_like(features).scatter(1, places, features),
        "teacher_features": torch.cat([lesson.prefix, lesson.tokens], dim=1),
        "teacher_projection": lesson.answers["ct"][:, 0],
        "pred": answers,
        "target": target,
    }


def _after(case: GoldenCase, method: Any) -> dict[str, Tensor]:
    """The teacher after a step."""
    method.teachers["main"].follow(method, Progress(0.0))
    return {f"teacher_after/{_name(name)}": value for name, value in method.state_dict().items()}


GOLDEN = {
    "cmae": GoldenAdapter(
        sample=_sample,
        mask=lambda case: case.inputs["mask"],
        outputs=_outputs,
        names=lambda method: {
            name: _name(name) for name, parameter in method.named_parameters() if parameter.requires_grad
        },
        after=_after,
    )
}
