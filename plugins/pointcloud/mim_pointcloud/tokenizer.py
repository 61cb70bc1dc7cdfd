"""Groups of points as units, embedded by a small PointNet (Point-MAE, arXiv 2203.06604, section 3.1)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from mim_core import BatchNorm, Layout, MimError, Patches, PlainUnits, Sample, Tokenizer, init_transformer
from torch import Tensor, nn

from mim_pointcloud import geometry

GROUPS = """\
class Groups(nn.Module):
    \"\"\"The nearest points of farthest-point centres of clouds [B, P, channels] as tokens, and the centres.\"\"\"

    def __init__(self, groups, size, channels, hidden, width):
        super().__init__()
        self.groups, self.size = groups, size
        self.local, self.whole = self.layers(channels, *hidden[:2]), self.layers(2 * hidden[1], hidden[2], width)

    def layers(self, given, hidden, out):
        return nn.Sequential(nn.Conv2d(given, hidden, 1), nn.BatchNorm2d(hidden), nn.ReLU(), nn.Conv2d(hidden, out, 1))

    def forward(self, points):
        places, centres, least = points[..., :3], [points[:, :1, :3]], points.new_tensor(torch.inf)
        for _ in range(self.groups - 1):
            least = least.minimum((places - centres[-1]).square().sum(2))
            centres.append(places.take_along_dim(least.argmax(1)[:, None, None], 1))
        centres = torch.cat(centres, 1)
        apart = (centres[:, :, None] - places[:, None]).square().sum(3)
        near = points[:, None].take_along_dim(apart.topk(self.size, 2, largest=False).indices[..., None], 2)
        near = torch.cat([near[..., :3] - centres[:, :, None], near[..., 3:]], 3).permute(0, 3, 1, 2)
        each = self.local(near)  # [B, values, groups, size]
        each = self.whole(torch.cat([each.amax(3, keepdim=True).expand_as(each), each], 1))
        return each.amax(3), centres
"""


class GroupTokenizer(Tokenizer):
    """The nearest neighbours of farthest-point centres. Groups overlap; a centre is among its own neighbours.

    Takes ``sample["points"]`` [B, P, C], any P that holds the groups. A unit's values are [size, C]: coordinates less
    those of the centre, further channels as they are. The centres are the layout's ``positions``. Every group is
    embedded, hidden ones too: the statistics of the batch normalisation are over all of them, as in the paper's code.
    """

    embeds: Literal["kept", "all", "none"] = "all"

    @dataclass(frozen=True)
    class Config:
        """Options of the group tokenizer."""

        points: int = 1024
        """Points of a cloud."""
        groups: int = 64
        """Groups per cloud."""
        size: int = 32
        """Points per group."""
        channels: int = 3
        """Values of a point: x, y, z, and what the data adds to them."""
        hidden: tuple[int, int, int] = (128, 256, 512)
        """Widths of the PointNet's layers: of a point, of a point for the group's largest values, of both together."""
        ops: Literal["auto", "torch", "triton", "pytorch3d", "fpsample", "scipy"] = "auto"
        """Which library samples and finds neighbours; the results are the same. auto: Triton on a GPU, scipy's trees
        in large clouds on a CPU, else torch."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        if config.channels < 3:
            raise ValueError(f"channels are x, y, z and more, at least 3, got {config.channels}")
        if min(config.hidden) < 1:
            raise ValueError(f"hidden widths must be positive, got {config.hidden}")
        if min(config.groups, config.size) < 1 or config.points < max(config.groups, config.size):
            raise ValueError(
                f"{config.points} points cannot give {config.groups} different centres with {config.size} points each"
            )
        geometry.chosen(config.ops, "farthest_points", torch.device("cpu"))  # a library that is missing is named now
        if config.ops == "triton" and not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
            raise MimError("--tokenizer.ops triton needs a CUDA GPU, and none is here. Choose auto, torch or fpsample.")
        self.config = config
        self.layout = Layout(count=config.groups)
        self.shapes = {"points": (config.points, config.channels)}
        self.unit_shape = (config.size, config.channels)
        point, group, both = config.hidden
        self.local = _two_layers(config.channels, point, group)
        self.whole = _two_layers(2 * group, both, width)
        init_transformer(self, "truncated")

    def split(self, sample: Sample) -> Patches:
        """Groups of every cloud: values [B, groups, size, C].

        Raises:
            ValueError: Another number of channels, or fewer points than a group or the centres need.
        """
        config, points = self.config, sample["points"]
        if points.ndim != 3 or points.shape[2] != config.channels:
            raise ValueError(f"points must be [B, P, {config.channels}], got {tuple(points.shape)}")
        if points.shape[1] < max(config.groups, config.size):
            raise ValueError(
                f"{points.shape[1]} points are too few for {config.groups} centres and groups of {config.size}"
            )
        places = points[..., :3].float()
        centres = geometry.gather(places, geometry.farthest_points(places, config.groups, ops=config.ops))
        _, near = geometry.nearest(centres, places, config.size, ops=config.ops)
        values = geometry.gather(points, near)
        local = values[..., :3].float() - centres[:, :, None]
        values = torch.cat([local.to(values.dtype), values[..., 3:]], dim=-1)
        return Patches(values, Layout(count=config.groups, positions=centres))

    def plain(self) -> PlainUnits:
        """Sampling, neighbours and the PointNet, whose layers are convolutions of one point."""
        config, width = self.config, self.whole[-1].out_features
        sizes = f"{config.groups}, {config.size}, {config.channels}, {tuple(config.hidden)}, {width}"
        weights = {
            name: value[:, :, None, None] if value.ndim == 2 else value for name, value in self.state_dict().items()
        }
        return PlainUnits(GROUPS, f"Groups({sizes})", weights, free=True)

    def embed(self, values: Float[Tensor, "B K S C"]) -> Float[Tensor, "B K D"]:
        """Two layers per point, the largest values of the group beside each point's, two more, the largest values."""
        rows, groups, size, _ = values.shape
        each = self.local(values.flatten(0, 2)).unflatten(0, (rows * groups, size))
        group = each.amax(dim=1, keepdim=True).expand_as(each)
        each = self.whole(torch.cat([group, each], dim=2).flatten(0, 1))
        return each.unflatten(0, (rows, groups, size)).amax(dim=2)

    def join(self, values: Float[Tensor, "B K S C"], layout: Layout) -> Float[Tensor, "B P C"]:
        """All groups' points in one cloud; where groups overlap, points come several times."""
        assert layout.positions is not None
        local = values[..., :3] + layout.positions[:, :, None]
        return torch.cat([local, values[..., 3:]], dim=-1).flatten(1, 2)

    def blank(self, values: Float[Tensor, "B K S C"], hidden: Bool[Tensor, "B K"]) -> Tensor:
        """Nowhere (NaN) in hidden groups."""
        return values.masked_fill(hidden[:, :, None, None], torch.nan)


def _two_layers(given: int, hidden: int, out: int) -> nn.Sequential:
    """Rows [n, given] to [n, out]: linear, batch normalisation, ReLU, linear."""
    layers: list[Any] = [nn.Linear(given, hidden), BatchNorm(hidden), nn.ReLU(), nn.Linear(hidden, out)]
    return nn.Sequential(*layers)
