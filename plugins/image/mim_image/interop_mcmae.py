"""Official ConvMAE weights, and how its golden cases are tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mim_core import Method, MimError, Part, State, fill, fill_weights, importers
from mim_core.testing.golden import GoldenAdapter, GoldenCase, whole_answers
from torch import Tensor

from mim_image.interop import RELEASED_HEADS, _image_size


@dataclass(frozen=True)
class ConvmaeSizes:
    """What may be said of ConvMAE weights, under its own names; lists have an entry for each stage."""

    num_heads: int | None = None
    decoder_num_heads: int | None = None
    mask_ratio: float = 0.75
    norm_pix_loss: bool = True
    img_size: Any = None
    """Needed for inputs that are not square."""
    patch_size: Any = None
    embed_dim: Any = None
    depth: Any = None
    mlp_ratio: Any = None
    decoder_embed_dim: int | None = None
    decoder_depth: int | None = None


@importers.licensed("MIT")
def import_convmae(state: State, **sizes: Any) -> Method:
    """Official ConvMAE weights (arXiv 2205.03892) with their decoder. ``sizes`` are the fields of `ConvmaeSizes`.

    Raises:
        MimError: Weights of another code base, or a size that contradicts them.
    """
    given = fill(ConvmaeSizes, sizes, "import format convmae")
    shapes = [importers.need(state, f"patch_embed{i}.proj.weight", "ConvMAE").shape for i in (1, 2, 3)]
    inner = importers.need(state, "decoder_embed.weight", "ConvMAE with its decoder").shape[0]
    widths, patches = tuple(shape[0] for shape in shapes), tuple(shape[2] for shape in shapes)
    depths = tuple(importers.depth_of(state, f"blocks{i}.") for i in (1, 2, 3))
    ratios = tuple(state[f"blocks{i}.0.mlp.fc1.weight"].shape[0] / width for i, width in enumerate(widths, start=1))
    read = {"embed_dim": widths, "depth": depths, "patch_size": patches, "mlp_ratio": ratios}
    for name, value in read.items():
        option = getattr(given, name)
        if option is not None and tuple(option) != value:
            raise MimError(f"{name} is given as {option}, and the weights have {value}.")
    deep = importers.depth_of(state, "decoder_blocks.")
    importers.agree(given, {"decoder_embed_dim": inner, "decoder_depth": deep})
    unit = patches[0] * patches[1] * patches[2]
    size = _image_size(given.img_size, (unit, unit), state["pos_embed"].shape[1])
    grid = (size[0] // unit, size[1] // unit)
    method = importers.build(
        tokenizer=Part.of("image:patch", size=size, patch=(unit, unit), channels=shapes[0][1]),
        masker=Part.of("core:random", ratio=given.mask_ratio),
        encoder=Part.of("image:mcmae", widths=widths, depths=depths, patches=patches, mlp_ratios=ratios,
                        heads=importers.heads_of("num_heads", given, widths[2], RELEASED_HEADS),
                        channels=shapes[0][1], position=importers.position_of(state["pos_embed"], grid)),
        decoder=Part.of("core:transformer", width=inner, depth=deep,
                        mlp_ratio=importers.mlp_ratio_of(state, "decoder_blocks.", inner),
                        heads=importers.heads_of("decoder_num_heads", given, inner, RELEASED_HEADS),
                        position=importers.position_of(state["decoder_pos_embed"], grid)),
        target=Part.of("core:values", normalize=given.norm_pix_loss, loss="l2"),
    )  # fmt: skip
    fill_weights(method, state, {name: _name(name) for name in method.state_dict()})
    return method


def _name(ours: str) -> str:
    """Our name of a weight -> ConvMAE's."""
    if ours.startswith(importers.HEAD):
        rest = ours.removeprefix(importers.HEAD)
        return {"position.table": "decoder_pos_embed", "mask_token": "mask_token"}.get(rest, f"decoder_{rest}")
    rest = ours.removeprefix("encoder.")
    for stage, theirs in (("stage1.", "blocks1."), ("stage2.", "blocks2."), ("blocks.", "blocks3.")):
        rest = theirs + rest.removeprefix(stage) if rest.startswith(stage) else rest
    return "pos_embed" if rest == "position.table" else rest


def _outputs(case: GoldenCase, method: Any, prepared: Any, outcome: Any) -> dict[str, Tensor]:
    """Maps of the stages; answers and targets of all patches."""
    first, second, _ = method.encoder.stages(prepared.inputs, prepared.layout, prepared.mask)
    encoded, sample = method._encoded(prepared.inputs, prepared.layout, prepared.mask), {"image": case.inputs["image"]}
    patches = method.tokenizer.split(sample)
    answers, target = whole_answers(method.heads["main"], encoded, sample, patches, prepared.mask)
    return {"latent": outcome.latent, "stage1": first, "stage2": second, "pred": answers, "target": target}


GOLDEN = {
    "convmae": GoldenAdapter(
        sample=lambda case: {"image": case.inputs["image"]},
        mask=lambda case: case.inputs["mask"],
        outputs=_outputs,
        names=lambda method: {name: _name(name) for name in method.state_dict()},
    )
}
