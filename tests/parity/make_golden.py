"""Makes the parity cases of tests/parity/golden: tiny random weights, random inputs, and what other people's code makes
of them. Run it from the root of the repository with the dev extra installed:

    python tests/parity/make_golden.py

Nothing of mim-core runs here, so an error of ours cannot get into the numbers. A case holds ``state/``, the weights
under the names that an importer reads; ``in/``; ``out/``; ``grad/``, gradients of the loss; and as metadata ``config``,
which goes to the importer, and ``format``, ``modality``, ``made_with``.
"""

import json
from functools import partial
from pathlib import Path

import timm
import torch
import transformers
from safetensors.torch import save_file
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import nn
from transformers.models.beit.modeling_beit import BeitRelativePositionBias

FOLDER = Path(__file__).parent / "golden"
VITMAE = {
    "vitmae": {
        "image_size": 40,
        "patch_size": 8,
        "hidden_size": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 144,
        "decoder_hidden_size": 24,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 96,
        "norm_pix_loss": True,
    },
    "vitmae_grey": {
        "image_size": 21,
        "patch_size": 3,
        "num_channels": 1,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 80,
        "decoder_hidden_size": 24,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 3,
        "decoder_intermediate_size": 60,
        "mask_ratio": 0.6,
        "layer_norm_eps": 1e-5,
    },
}
VIDEOMAE = {
    "videomae": {
        "image_size": [24, 40],
        "patch_size": 8,
        "num_frames": 6,
        "tubelet_size": 2,
        "hidden_size": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 144,
        "use_mean_pooling": False,
        "decoder_hidden_size": 24,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 96,
    },
    "videomae_raw": {
        "image_size": [28, 12],
        "patch_size": 4,
        "num_frames": 9,
        "tubelet_size": 3,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 80,
        "use_mean_pooling": True,  # no norm after the last block
        "norm_pix_loss": False,
        "layer_norm_eps": 1e-5,
        "qv_bias": False,
        "decoder_hidden_size": 24,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 3,
        "decoder_intermediate_size": 60,
    },
}


def moved(model: nn.Module) -> nn.Module:
    """All weights away from their initial values, so that no bias, norm or scale is trivial."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # position tables stay
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return model.eval()


def hidden_units(rows: int, count: int, hide: int) -> torch.Tensor:
    """A mask for each row, True = hidden."""
    mask = torch.zeros(rows, count, dtype=torch.bool)
    return mask.scatter(1, torch.rand(rows, count).argsort(dim=1)[:, :hide], True)


def write(name: str, form: str, modality: str, config: dict, **groups: dict) -> None:
    tensors = {
        f"{group}/{key}": value.detach().contiguous().clone()
        for group, values in groups.items()
        for key, value in values.items()
    }
    made = f"torch {torch.__version__}, transformers {transformers.__version__}, timm {timm.__version__}"
    about = {"config": json.dumps(config), "format": form, "modality": modality, "made_with": made}
    save_file(tensors, FOLDER / f"{name}.safetensors", about)
    print(f"{name}: loss {groups['out']['loss'].item():.6f}, {(FOLDER / f'{name}.safetensors').stat().st_size} bytes")


def gradients(names: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    return {ours: parameter.grad for ours, parameter in names.items()}


# ---- MAE and VideoMAE of transformers --------------------------------------------------------------------------------


def vitmae(name: str) -> None:
    config = transformers.ViTMAEConfig(**VITMAE[name])
    model = moved(transformers.ViTMAEForPreTraining(config))
    count = (config.image_size // config.patch_size) ** 2
    image = torch.randn(3, config.num_channels, config.image_size, config.image_size)
    mask = hidden_units(3, count, count - int(count * (1 - config.mask_ratio)))
    noise = mask.float() + torch.arange(count) / (2 * count)  # hides exactly these, visible units in raster order
    said = model(image, noise=noise)
    assert torch.equal(said.mask.bool(), mask)
    latent = model.vit(image, noise=noise).last_hidden_state
    said.loss.backward()
    grad = {
        "tokenizer.proj.weight": model.vit.embeddings.patch_embeddings.projection.weight,
        "encoder.norm.weight": model.vit.layernorm.weight,
        "heads.main.decoder.embed.weight": model.decoder.decoder_embed.weight,
        "heads.main.decoder.mask_token": model.decoder.mask_token,
        "heads.main.decoder.pred.weight": model.decoder.decoder_pred.weight,
    }
    out = {"loss": said.loss, "pred": said.logits[mask].unflatten(0, (3, -1)), "latent": latent}
    sizes = {**VITMAE[name], "mask_ratio": config.mask_ratio, "layer_norm_eps": config.layer_norm_eps}
    given = {"image": image, "mask": mask}
    write(name, "hf-vitmae", "image", sizes, state=model.state_dict(), **{"in": given}, out=out, grad=gradients(grad))


def videomae(name: str) -> None:
    config = transformers.VideoMAEConfig(**VIDEOMAE[name])
    model = moved(transformers.VideoMAEForPreTraining(config))
    height, width = (side // config.patch_size for side in config.image_size)
    times = config.num_frames // config.tubelet_size
    clip = torch.randn(2, config.num_frames, 3, *config.image_size)
    mask = hidden_units(2, height * width, height * width * 3 // 4).repeat(1, times)  # tubes: the same at all times
    said = model(clip, bool_masked_pos=mask)
    latent = model.videomae(clip, bool_masked_pos=mask).last_hidden_state
    said.loss.backward()
    grad = {
        "tokenizer.proj.weight": model.videomae.embeddings.patch_embeddings.projection.weight,
        "encoder.blocks.0.mlp.fc1.weight": model.videomae.encoder.layer[0].intermediate.dense.weight,
        "heads.main.decoder.embed.weight": model.encoder_to_decoder.weight,
        "heads.main.decoder.mask_token": model.mask_token,
        "heads.main.decoder.pred.weight": model.decoder.head.weight,
    }
    out = {"loss": said.loss, "pred": said.logits, "latent": latent}
    sizes = {**VIDEOMAE[name], "layer_norm_eps": config.layer_norm_eps}
    given = {"video": clip.transpose(1, 2), "mask": mask}
    write(name, "hf-videomae", "video", sizes, state=model.state_dict(), **{"in": given}, out=out, grad=gradients(grad))


# ---- MAE out of timm's blocks, on pictures that are not square -------------------------------------------------------


class Mae(nn.Module):
    """The paper's model (arXiv 2111.06377) under its code's names: visible patches are encoded, mask tokens and
    positions join before the decoder, the loss is the mean over hidden patches."""

    def __init__(self, size: tuple[int, int], patch: int, channels: int, width: int, decoder: int) -> None:
        super().__init__()
        self.patch, self.channels = patch, channels
        self.patch_embed = PatchEmbed(size, patch, channels, width, strict_img_size=True)
        count = self.patch_embed.num_patches
        table = {"pos_embed": width, "decoder_pos_embed": decoder}
        for name, wide in table.items():
            values = torch.randn(1, 1 + count, wide) * 0.3
            values[:, 0] = 0
            self.register_buffer(name, values)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder))
        norm = {"qkv_bias": True, "norm_layer": partial(nn.LayerNorm, eps=1e-6)}
        self.blocks = nn.ModuleList(Block(width, 3, 2.0, **norm) for _ in range(2))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_embed = nn.Linear(width, decoder)
        self.decoder_blocks = nn.ModuleList(Block(decoder, 2, 3.0, **norm) for _ in range(2))
        self.decoder_norm = nn.LayerNorm(decoder, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder, patch * patch * channels)

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows, count = mask.shape
        tokens = self.patch_embed(image) + self.pos_embed[:, 1:]
        visible = tokens[~mask].unflatten(0, (rows, -1))
        first = (self.cls_token + self.pos_embed[:, :1]).expand(rows, -1, -1)
        latent = torch.cat([first, visible], dim=1)
        for block in self.blocks:
            latent = block(latent)
        latent = self.norm(latent)
        narrow = self.decoder_embed(latent)
        units = self.mask_token.repeat(rows, count, 1)
        units = units.masked_scatter(~mask[:, :, None], narrow[:, 1:])
        x = torch.cat([narrow[:, :1], units], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        predicted = self.decoder_pred(self.decoder_norm(x))[:, 1:][mask].unflatten(0, (rows, -1))
        target = self.patches(image)[mask].unflatten(0, (rows, -1))
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
        return ((predicted - target) ** 2).mean(), predicted, latent

    def patches(self, image: torch.Tensor) -> torch.Tensor:
        """The values of each patch in (row, column, channel) order."""
        p = self.patch
        cut = image.unfold(2, p, p).unfold(3, p, p)  # [B, C, h, w, p, p]
        return cut.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)


def mae_oblong() -> None:
    size, patch, channels = (18, 42), 6, 2
    torch.manual_seed(5)
    model = moved(Mae(size, patch, channels, width=36, decoder=24))
    image, mask = torch.randn(3, channels, *size), hidden_units(3, 21, 16)
    loss, predicted, latent = model(image, mask)
    loss.backward()
    grad = {
        "tokenizer.proj.weight": model.patch_embed.proj.weight,
        "encoder.blocks.0.attn.qkv.weight": model.blocks[0].attn.qkv.weight,
        "heads.main.decoder.mask_token": model.mask_token,
        "heads.main.decoder.pred.weight": model.decoder_pred.weight,
    }
    config = {"num_heads": 3, "decoder_num_heads": 2, "img_size": size, "patch_size": patch, "mlp_ratio": 2.0}
    out = {"loss": loss, "pred": predicted, "latent": latent}
    given = {"image": image, "mask": mask}
    write(
        "mae_oblong", "mae", "image", config, state=model.state_dict(), **{"in": given}, out=out, grad=gradients(grad)
    )


# ---- SimMIM on transformers' BEiT ------------------------------------------------------------------------------------


def simmim_state(encoder: nn.Module, decoder: nn.Module, index: torch.Tensor) -> dict[str, torch.Tensor]:
    """Both under SimMIM's names, query, key and value joined; ``index`` is the table's, which theirs computes anew."""
    theirs = encoder.state_dict()
    state = {f"decoder.0.{name}": value for name, value in decoder.state_dict().items()}
    state["encoder.rel_pos_bias.relative_position_index"] = index
    for name in list(theirs):
        if name.endswith("q_proj.weight"):
            parts = [theirs.pop(name.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")]
            theirs[name.replace("q_proj", "qkv")] = torch.cat(parts)
    changed = [
        ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
        ("embeddings.", ""),
        ("shared_position_bias.", "rel_pos_bias."),
        ("layers.", "blocks."),
        ("attention.q_proj.bias", "attn.q_bias"),
        ("attention.v_proj.bias", "attn.v_bias"),
        ("attention.o_proj", "attn.proj"),
        ("attention.", "attn."),
        ("layernorm_before", "norm1"),
        ("layernorm_after", "norm2"),
        ("layernorm", "norm"),
        ("lambda_", "gamma_"),
    ]
    for name, value in theirs.items():
        for old, new in changed:
            name = name.replace(old, new)
        state[f"encoder.{name}"] = value
    return state


def simmim() -> None:
    size, patch, channels = (20, 20), 4, 3  # a square: theirs turns the bias table of others by resizing it
    config = transformers.BeitConfig(
        image_size=size, patch_size=patch, num_channels=channels, hidden_size=36, num_hidden_layers=2,
        num_attention_heads=3, intermediate_size=108, use_mask_token=True, use_mean_pooling=False,
        use_shared_relative_position_bias=True, layer_scale_init_value=0.1, drop_path_rate=0.0, layer_norm_eps=1e-6,
    )  # fmt: skip
    encoder = moved(transformers.BeitModel(config, add_pooling_layer=False))
    decoder = moved(nn.Conv2d(36, patch * patch * channels, 1))
    image = torch.randn(3, channels, *size)
    mask = torch.rand(3, 25) < torch.tensor([[0.3], [0.6], [0.8]])  # another count in each picture
    latent = encoder(image, bool_masked_pos=mask).last_hidden_state
    maps = latent[:, 1:].transpose(1, 2).unflatten(2, (5, 5))
    made = nn.functional.pixel_shuffle(decoder(maps), patch)
    pixels = mask.view(3, 1, 5, 5).repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    loss = ((image - made).abs() * pixels).sum() / (pixels.sum() + 1e-5) / channels
    loss.backward()
    grad = {
        "tokenizer.proj.weight": encoder.embeddings.patch_embeddings.projection.weight,
        "encoder.mask_token": encoder.embeddings.mask_token,
        "heads.main.decoder.pred.weight": decoder.weight,
    }
    state = simmim_state(encoder, decoder, BeitRelativePositionBias.generate_relative_position_index((5, 5)))
    given = {"image": image, "mask": mask}
    out = {"loss": loss, "latent": latent}
    write("simmim", "simmim", "image", {"img_size": size, "init_values": 0.1}, state=state, **{"in": given}, out=out,
          grad=gradients(grad))  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(1)
    FOLDER.mkdir(exist_ok=True)
    for case in VITMAE:
        vitmae(case)
    for case in VIDEOMAE:
        videomae(case)
    mae_oblong()
    simmim()
