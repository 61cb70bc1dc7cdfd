"""Official HPM weights, and how its golden cases are tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mim_core import (
    Losses,
    Method,
    MimError,
    Part,
    Progress,
    RankTarget,
    State,
    fill,
    fill_weights,
    hide_guided,
    importers,
    warn,
)
from mim_core.testing.golden import GoldenAdapter, GoldenCase
from torch import Tensor

from mim_image.interop import RELEASED_HEADS, _decoder_table, _image_size, _mae_name

LOSSES, TEACHER = "heads.losses.decoder.", "teachers.main."
SHARED = ("embed.", "mask_token", "position.")
"""What the two decoders have in common."""


@dataclass(frozen=True)
class HpmSizes:
    """What may be said of HPM weights, under HPM's own names. Most is read off the weights, and checked where given."""

    num_heads: int | None = None
    """Attention heads of the encoder; known for the released widths 768, 1024 and 1280."""
    decoder_num_heads: int | None = None
    """Of both decoders; known for the released width of 512."""
    mask_ratio: float = 0.75
    norm_pix_loss: bool = True
    relative: bool = True
    """Whether the second decoder ranks patches, or predicts how large their losses are."""
    ema_decay: float | None = None
    """The teacher's momentum; none: it rises as in the recipe."""
    img_size: Any = None
    """Needed for inputs that are not square."""
    patch_size: Any = None
    in_chans: int | None = None
    embed_dim: int | None = None
    depth: int | None = None
    mlp_ratio: float | None = None
    decoder_embed_dim: int | None = None
    decoder_depth: int | None = None
    epoch: int | None = None
    """Describes a golden case, ignored."""
    total_epoch: int | None = None
    """The same."""


@importers.grouped(ema_state_dict="teacher.", teacher="teacher.")
@importers.licensed("Apache-2.0")
def import_hpm(state: State, **sizes: Any) -> Method:
    """Official HPM weights (arXiv 2304.05919): the student's under MAE's names, its second decoder's with
    ``_losspred``, the teacher's as the file's ``ema_state_dict``, or with ``teacher.`` in front; a teacher that is not
    there starts as a copy. ``sizes`` are the fields of `HpmSizes`.

    Raises:
        MimError: Weights of another code base, or a size that contradicts them.
    """
    given = fill(HpmSizes, sizes, "import format hpm")
    width, channels, *patch = importers.need(state, "patch_embed.proj.weight", "HPM").shape
    inner = importers.need(state, "decoder_embed.weight", "HPM with its decoders").shape[0]
    answers = importers.need(state, "decoder_pred_losspred.weight", "HPM with its decoder of losses").shape[0]
    depths = [importers.depth_of(state, name) for name in ("decoder_blocks.", "decoder_blocks_losspred.")]
    ratios = [importers.mlp_ratio_of(state, name, inner) for name in ("decoder_blocks.", "decoder_blocks_losspred.")]
    read = {
        "embed_dim": width,
        "depth": importers.depth_of(state, "blocks."),
        "in_chans": channels,
        "mlp_ratio": importers.mlp_ratio_of(state, "blocks.", width),
        "decoder_embed_dim": inner,
        "decoder_depth": depths[0],
        "patch_size": (patch[0], patch[1]),
    }
    importers.agree(given, read)
    size = _image_size(given.img_size, (patch[0], patch[1]), importers.need(state, "pos_embed", "HPM").shape[1] - 1)
    grid = (size[0] // patch[0], size[1] // patch[1])
    decoder = {
        "width": inner,
        "heads": importers.heads_of("decoder_num_heads", given, inner, RELEASED_HEADS),
        "position": importers.position_of(_decoder_table(state), grid),
    }
    method = importers.build(
        **{
            "tokenizer": Part.of("image:patch", size=size, patch=tuple(patch), channels=channels),
            "masker": Part.of("core:guided", ratio=given.mask_ratio),
            "encoder": Part.of("core:vit", width=width, depth=read["depth"], mlp_ratio=read["mlp_ratio"],
                               heads=importers.heads_of("num_heads", given, width, RELEASED_HEADS),
                               position=importers.position_of(state["pos_embed"][:, 1:], grid)),
            "decoder": Part.of("core:transformer", **decoder, depth=depths[0], mlp_ratio=ratios[0]),
            "losses.decoder": Part.of("core:transformer", **decoder, depth=depths[1], mlp_ratio=ratios[1],
                                      input_of="main"),
            "target": Part.of("core:values", normalize=given.norm_pix_loss),
            "losses.target": Part.of("core:ranks", size=answers, loss="pairs" if given.relative else "absolute"),
            "teacher": Part.of("core:ema", **_momentum(given), heads=("losses",)),
            "scorer": Part.of("core:answers"),
        }
    )  # fmt: skip
    _fill(method, state)
    return method


def _momentum(given: HpmSizes) -> dict[str, Any]:
    """The teacher's options: one momentum, or the paper's schedule."""
    if given.ema_decay is not None:
        return {"start": given.ema_decay, "end": given.ema_decay}
    return {"start": 0.999, "end": 0.9999, "schedule": "linear", "epochs": 100}


def _fill(method: Method, state: State) -> None:
    """The weights in their places. The teacher's first decoder and mask token have none: no score depends on them."""
    moved = importers.without_slot(state, "cls_token", "pos_embed")
    moved["decoder_pos_embed"] = _decoder_table(state)
    names = {name: _hpm_name(name) for name in method.state_dict()}
    unused = []
    if any(name.startswith("teacher.") for name in state):
        moved = importers.without_slot(moved, "teacher.cls_token", "teacher.pos_embed")
        table = importers.need(state, "teacher.decoder_pos_embed", "HPM's teacher")
        if bool(table[:, 0].any()):
            raise MimError("The class token's slot of the teacher's decoder_pos_embed is not zero; HPM's is.")
        moved["teacher.decoder_pos_embed"] = table[:, 1:]
        unused = [n for n in state if n.startswith(("teacher.decoder_",)) and n not in names.values()]
    else:
        warn("there is no teacher in these weights: it starts as a copy of the student.")
        names = {ours: theirs.removeprefix("teacher.") for ours, theirs in names.items()}
    fill_weights(method, moved, names, unused)


def _hpm_name(ours: str) -> str:
    """Our name of a weight -> HPM's."""
    if ours.startswith(TEACHER):
        rest = ours.removeprefix(TEACHER)
        inside = rest.removeprefix("decoders.losses.")
        return f"teacher.{_mae_name(rest) if inside == rest else _losses_name(inside)}"
    return _losses_name(ours.removeprefix(LOSSES)) if ours.startswith(LOSSES) else _mae_name(ours)


def _losses_name(rest: str) -> str:
    """A weight of the second decoder; what it shares has the first one's name."""
    if rest.startswith(SHARED):
        return _mae_name(f"{importers.HEAD}{rest}")
    part, dot, tail = rest.partition(".")
    return f"decoder_{part}_losspred{dot}{tail}"


def _outputs(case: GoldenCase, method: Any, prepared: Any, outcome: Any) -> dict[str, Tensor]:
    """Losses, predictions at the hidden patches, scores of the whole image, and the mask that follows from them."""
    patches = method.tokenizer.split(_sample(case))
    lesson = method.teachers["main"](patches)
    scores = method.scorer(_sample(case), patches, lesson)
    losses, predicted = outcome.parts, outcome.predictions
    each = method.heads["main"].target.loss(predicted["main"], prepared.targets["main"])
    absolute = RankTarget(RankTarget.Config(loss="absolute"), method.tokenizer)
    other = absolute.loss(predicted["losses"], Losses(each.detach(), prepared.weights["main"]))
    return {
        "loss_rec": losses["main"],
        "loss_rank": losses["losses"],
        "alt_loss_absolute": (other * prepared.weights["losses"]).sum(),
        "patch_loss": each,
        "loss_pred": predicted["losses"].mean(dim=-1),
        "pred": predicted["main"],
        "latent": outcome.latent,
        "teacher_loss_pred": scores,
        "mask": _mask(case, method, scores),
    }


def _mask(case: GoldenCase, method: Any, scores: Tensor) -> Tensor:
    """Of these scores, in the case's epoch: the largest noise is hidden at random."""
    epoch, epochs = case.config["epoch"], case.config["total_epoch"]
    count = method.masker.count(method.tokenizer.layout)
    chosen = method.masker.by_score(count, Progress(epoch / epochs, epoch=epoch, epochs=epochs))
    return hide_guided(scores, -case.inputs["noise"], chosen, count)


def _after(case: GoldenCase, method: Any) -> dict[str, Tensor]:
    """The teacher after a step."""
    slot = case.weights["teacher"]["pos_embed"][:, :1]
    method.teachers["main"].follow(method, Progress(0.0))
    state = {_hpm_name(name): value for name, value in method.state_dict().items() if name.startswith(TEACHER)}
    entries = {f"teacher_after/{name.removeprefix('teacher.')}": value for name, value in state.items()}
    for name in ("pos_embed", "decoder_pos_embed"):
        entries[f"teacher_after/{name}"] = importers.with_slot(
            slot.new_zeros(1, 1, entries[f"teacher_after/{name}"].shape[-1]), entries[f"teacher_after/{name}"]
        )
    return entries


def _sample(case: GoldenCase) -> dict[str, Tensor]:
    return {"image": case.inputs["image"]}


GOLDEN = {
    "hpm": GoldenAdapter(
        sample=_sample,
        mask=lambda case: case.inputs["mask"],
        outputs=_outputs,
        names=lambda method: {n: _hpm_name(n) for n in method.state_dict() if not n.startswith(TEACHER)},
        left_out={
            f"teacher_after/decoder_{name}": "the teacher's first decoder gives no score, so ours has none"
            for name in ("blocks.", "norm.", "pred.")
        },
        after=_after,
    )
}
