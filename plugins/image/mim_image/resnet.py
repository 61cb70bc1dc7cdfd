"""ResNets as timm has them, for methods that hide pixels and ask regions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float
from mim_core import BatchNorm, Encoded, Encoder, Layout, Mask, MimError
from timm.models import create_model, is_model
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn


class ResNetEncoder(Encoder):
    """A ResNet (arXiv 1512.03385) by its timm name, or a small one for small images: 3 x 3 in front, no pooling there
    (section 4.2 of the same paper), basic blocks.

    Takes the values of all units and sees all of them, hidden ones at zero, which is the data's mean. A unit is a place
    of its last map. Batch statistics are those of all ranks together.
    """

    @dataclass(frozen=True)
    class Config:
        """Options of the ResNet encoder."""

        name: str | None = "resnet50"
        """A timm ResNet; none: a small one of the sizes below."""
        widths: tuple[int, ...] = (64, 128, 256)
        """Of a small one: channels of each stage; the first keeps the image's size, each other halves it."""
        depths: tuple[int, ...] = (1, 1, 1)
        """Of a small one: blocks of each stage."""
        channels: int = 3
        """Of the image."""
        drop_path: float = 0.0
        """Stochastic depth, rising linearly to this rate in the last block."""

    sees: Literal["visible", "all"] = "all"
    takes: Literal["tokens", "values"] = "values"

    def __init__(self, config: Config, layout: Layout) -> None:
        super().__init__()
        if layout.grid is None or len(layout.grid) != 2:
            raise ValueError(f"a ResNet needs patches of an image on a grid of two axes; this grid is {layout.grid}")
        self.config = config
        self.net = _network(config)
        self.width = self.net.num_features

    @classmethod
    def width_for(cls, config: Any) -> int:
        """That of the last stage."""
        if config.name is None:
            return int(config.widths[-1])
        return int(create_model(_checked(config.name), num_classes=0).num_features)

    def forward(self, tokens: Float[Tensor, "B N p p C"], layout: Layout, mask: Mask) -> Encoded:
        """The last map, from the values of all units.

        Raises:
            ValueError: The last map is not of the size of the grid that the units lie on.
        """
        height, width = layout.grid or (0, 0)
        hidden = mask.hidden[:, :, None, None, None]
        values = tokens.repeat_interleave(len(hidden) // len(tokens), dim=0).masked_fill(hidden, 0)
        image = values.unflatten(1, (height, width)).permute(0, 5, 1, 3, 2, 4)
        x = self.net.forward_features(image.reshape(*image.shape[:2], height * image.shape[3], -1))
        if x.shape[2:] != (height, width):
            map_size = tuple(x.shape[2:])
            raise ValueError(
                f"the last map is {map_size}, and the units lie on {(height, width)}: choose --tokenizer.patch so that "
                "they agree"
            )
        return Encoded(x.flatten(2).transpose(1, 2), x.new_zeros(len(x), 0, x.shape[1]))

    def timm_weights(self) -> Mapping[str, Tensor]:
        """Under timm's names."""
        return self.net.state_dict()

    def timm_model(self) -> tuple[str, dict[str, Any]]:
        """A timm ResNet by its name.

        Raises:
            MimError: A small one has no name there.
        """
        if self.config.name is None:
            raise MimError("timm has no name for so small a ResNet; the run's weights are what there is.")
        return self.config.name, {}


def _checked(name: str) -> str:
    """Raises ValueError unless it names a timm ResNet."""
    if not is_model(name) or "resnet" not in name:
        raise ValueError(f"{name!r} is no timm ResNet, such as resnet50")
    return name


def _network(config: ResNetEncoder.Config) -> Any:
    """The network, its batch normalisation replaced by one that ranks share."""
    if config.name is not None:
        net: Any = create_model(
            _checked(config.name), num_classes=0, in_chans=config.channels, drop_path_rate=config.drop_path
        )
    else:
        widths, depths = config.widths, config.depths
        if len(widths) != len(depths) or not 1 <= len(widths) <= 4 or min(*widths, *depths) < 1:
            raise ValueError(f"widths and depths must be as many, one to four, of 1 or more; got {widths} and {depths}")
        net = ResNet(
            BasicBlock, config.depths, 0, config.channels, channels=config.widths, drop_path_rate=config.drop_path
        )
        net.conv1 = nn.Conv2d(config.channels, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        net.maxpool = nn.Identity()
        for number in range(len(config.widths) + 1, 5):  # timm's forward pass goes through four stages
            net.add_module(f"layer{number}", nn.Identity())
    if type(net) is not ResNet:
        raise ValueError(f"{config.name} is a timm {type(net).__name__}, no ResNet")
    shared_statistics(net)
    return net


def shared_statistics(module: nn.Module) -> None:
    """Replaces torch's batch normalisation by `mim_core.BatchNorm`, which has the same weights and names."""
    for name, part in module.named_children():
        if isinstance(part, nn.BatchNorm2d):
            mine = BatchNorm(part.num_features, part.eps, part.momentum or 0.1, part.affine)
            mine.load_state_dict(part.state_dict())
            setattr(module, name, mine)
        else:
            shared_statistics(part)
