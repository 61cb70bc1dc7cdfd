"""torchvision's detectors on the levels of a pyramid: Mask R-CNN (arXiv 1703.06870), Faster R-CNN (arXiv 1506.01497)
and RetinaNet (arXiv 1708.02002), with ViTDet's heads (arXiv 2203.16527, appendix A.2): normalisation over channels in
the convolutions, two in front of the proposals.

Their forward passes draw regions at random and give as many as the weights say: nothing in here has static shapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from mim_core import ChannelNorm
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

HeadKind = Literal["mask-rcnn", "faster-rcnn", "retinanet"]
Levels = Mapping[str, Tensor]
Found = list[dict[str, Tensor]]
"""Of each picture: "boxes" [n, 4], "labels" [n], "scores" [n], the surest first, and perhaps "masks" [n, 1, m, m]."""

POOLED = ("p2", "p3", "p4", "p5")
"""Levels that regions are cut out of."""
PROPOSING = (*POOLED, "p6")
DENSE = ("p3", "p4", "p5", "p6", "p7")
"""RetinaNet's levels; p7 is every second pixel of p6."""
RATIOS = (0.5, 1.0, 2.0)
"""Height over width of anchors."""
CANONICAL = 14
"""Patches along a region that is cut out of the level of the patches: 224 pixels of patches of 16 (arXiv 1612.03144,
equation 1)."""
MASK = 28
"""Places along the mask of a region."""


@dataclass(frozen=True)
class HeadSizes:
    """How large heads are, and what they keep.

    Attributes:
        channels: Of every level and convolution.
        hidden: Width of the layer behind a region's convolutions.
        convolutions: In front of it, and in front of a mask.
        regions: Of a picture that the loss is taken over.
        proposals: Of a picture that are kept.
        least: Smallest score of a detection.
        most: Detections of a picture.
    """

    channels: int
    hidden: int
    convolutions: int
    regions: int
    proposals: int
    least: float
    most: int


class PyramidAnchors(AnchorGenerator):
    """Anchors around the middle of every place of a level. torchvision's lie at the corner, and take the stride of a
    level from its size, which is wrong where a level does not fill the picture.

    Args:
        sizes: Of each level's anchors.
        strides: Pixels from place to place, of each level.
    """

    def __init__(self, sizes: Sequence[tuple[float, ...]], strides: Sequence[float]) -> None:
        super().__init__(tuple(sizes), (RATIOS,) * len(sizes))
        self.strides = tuple(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """float32 [A, 4] for each picture; all are of one size, so it is the same tensor."""
        device = feature_maps[0].device
        self.set_cell_anchors(torch.float32, device)
        grids = [list(level.shape[-2:]) for level in feature_maps]
        steps = [[torch.tensor(stride, device=device)] * 2 for stride in self.strides]
        by_level = self.grid_anchors(grids, steps)
        anchors = torch.cat([each + stride / 2 for each, stride in zip(by_level, self.strides, strict=True)])
        return [anchors] * len(image_list.image_sizes)


class _Levels(nn.Module):
    """Stands where torchvision wants a backbone, of which it reads the channels alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = channels


@contextmanager
def _as(training: bool, *modules: nn.Module) -> Iterator[None]:
    """torchvision's modules give losses while they train, and detections otherwise."""
    before = [module.training for module in modules]
    for module in modules:
        module.train(training)
    try:
        yield
    finally:
        for module, was in zip(modules, before, strict=True):
            module.train(was)


def _pool(side: int, patch: float) -> MultiScaleRoIAlign:
    """Cuts regions out of the level that their size says; torchvision would guess the levels' scales as powers of
    two."""
    pool = MultiScaleRoIAlign(list(POOLED), side, sampling_ratio=0)
    pool.scales = [2**step / patch for step in (2, 1, 0, -1)]
    pool.map_levels = LevelMapper(2, 5, canonical_scale=CANONICAL * patch, canonical_level=4)
    return pool


class RegionHeads(nn.Module):
    """Mask R-CNN or Faster R-CNN: proposals, and a class, a box and perhaps a mask for each.

    Args:
        classes: How many, without the background.
        size: (height, width) of the pictures.
        patch: Pixels along a patch of the encoder, which is a place of level p4.
        sizes: Of the layers.
        masks: Whether there are masks.
    """

    first = 1
    """Number of the first class; 0 is the background."""
    finest: Literal[2, 3] = 2
    """Number of the finest level of the pyramid that is used."""

    def __init__(self, classes: int, size: tuple[int, int], patch: int, sizes: HeadSizes, masks: bool) -> None:
        super().__init__()
        self.size, channels, convolutions = size, sizes.channels, [sizes.channels] * sizes.convolutions
        strides = [patch * share for share in (1 / 4, 1 / 2, 1, 2, 4)]
        anchors = PyramidAnchors([(8 * stride,) for stride in strides], strides)
        options: dict[str, Any] = {
            "rpn_anchor_generator": anchors,
            "rpn_head": RPNHead(channels, len(RATIOS), conv_depth=2),
            "rpn_pre_nms_top_n_train": 2 * sizes.proposals,  # of each level, before those that overlap are dropped
            "rpn_pre_nms_top_n_test": sizes.proposals,
            "rpn_post_nms_top_n_train": sizes.proposals,
            "rpn_post_nms_top_n_test": sizes.proposals,
            "box_roi_pool": _pool(7, patch),
            "box_head": FastRCNNConvFCHead((channels, 7, 7), convolutions, [sizes.hidden], ChannelNorm),
            "box_predictor": FastRCNNPredictor(sizes.hidden, classes + 1),
            "box_batch_size_per_image": sizes.regions,
            "box_score_thresh": sizes.least,
            "box_detections_per_img": sizes.most,
        }
        if masks:
            options |= {
                "mask_roi_pool": _pool(MASK // 2, patch),
                "mask_head": MaskRCNNHeads(channels, convolutions, 1, ChannelNorm),
                "mask_predictor": MaskRCNNPredictor(channels, channels, classes + 1),
            }
        model = (MaskRCNN if masks else FasterRCNN)(_Levels(channels), **options)
        self.rpn, self.roi_heads = model.rpn, model.roi_heads
        self.regions = sizes.regions

    def _pictures(self, levels: Levels) -> ImageList:
        return ImageList(levels["p2"], [self.size] * len(levels["p2"]))

    def losses(self, levels: Levels, targets: Found) -> dict[str, Tensor]:
        """The losses by name, means over the regions that are drawn."""
        pictures, used = self._pictures(levels), {name: levels[name] for name in PROPOSING}
        with _as(True, self.rpn, self.roi_heads):
            proposals, first = self.rpn(pictures, used, targets)
            _, second = self.roi_heads(used, proposals, pictures.image_sizes, targets)
        names = {"loss_objectness": "objects", "loss_rpn_box_reg": "proposals", "loss_classifier": "classes"}
        names |= {"loss_box_reg": "boxes", "loss_mask": "masks"}
        return {names[name]: value for name, value in {**first, **second}.items()}

    def detections(self, levels: Levels) -> Found:
        """What is found."""
        pictures, used = self._pictures(levels), {name: levels[name] for name in PROPOSING}
        with _as(False, self.rpn, self.roi_heads):
            proposals, _ = self.rpn(pictures, used)
            boxes: Found = self.roi_heads(used, proposals, pictures.image_sizes)[0]
        return boxes

    def largest_work(self, levels: Levels) -> Tensor:
        """A sum over all layers with as many regions as a step has at most, where operations are counted: the real
        number follows from the weights."""
        rows, heads = len(levels["p2"]), self.roi_heads
        scores, boxes = self.rpn.head([levels[name] for name in PROPOSING])
        total = sum((value.sum() for value in (*scores, *boxes)), levels["p2"].new_zeros(()))
        regions = levels["p2"][:1, :, :1, :1].expand(rows * self.regions, -1, 7, 7)
        total = total + sum(value.sum() for value in heads.box_predictor(heads.box_head(regions)))
        if heads.has_mask():
            positive = levels["p2"][:1, :, :1, :1].expand(rows * self.regions // 4, -1, MASK // 2, MASK // 2)
            total = total + heads.mask_predictor(heads.mask_head(positive)).sum()
        return total


class DenseHeads(nn.Module):
    """RetinaNet: a class and a box for every anchor.

    Args:
        classes: How many.
        size: (height, width) of the pictures.
        patch: Pixels along a patch of the encoder, which is a place of level p4.
        sizes: Of the layers; those of regions are not used.
    """

    first = 0
    finest: Literal[2, 3] = 3

    def __init__(self, classes: int, size: tuple[int, int], patch: int, sizes: HeadSizes) -> None:
        super().__init__()
        self.size = size
        strides = [patch * share for share in (1 / 2, 1, 2, 4, 8)]
        each = [tuple(4 * stride * 2 ** (step / 3) for step in range(3)) for stride in strides]
        anchors = PyramidAnchors(each, strides)
        self.each = anchors.num_anchors_per_location()[0]
        self.model = RetinaNet(
            _Levels(sizes.channels),
            classes,
            anchor_generator=anchors,
            head=RetinaNetHead(sizes.channels, self.each, classes, ChannelNorm),
            score_thresh=sizes.least,
            detections_per_img=sizes.most,
        )

    def _answers(self, levels: Levels) -> tuple[dict[str, Tensor], list[Tensor], list[int]]:
        """What the head says of all anchors, these, and how many are of each level."""
        used = {**levels, "p7": F.max_pool2d(levels["p6"], kernel_size=1, stride=2)}
        maps = [used[name] for name in DENSE]
        pictures = ImageList(maps[0], [self.size] * len(maps[0]))
        counts = [level.shape[-2] * level.shape[-1] * self.each for level in maps]
        return self.model.head(maps), self.model.anchor_generator(pictures, maps), counts

    def losses(self, levels: Levels, targets: Found) -> dict[str, Tensor]:
        """The losses by name: focal loss and L1, of each picture over its objects."""
        answers, anchors, _ = self._answers(levels)
        parts = self.model.compute_loss(targets, answers, anchors)
        return {"classes": parts["classification"], "boxes": parts["bbox_regression"]}

    def detections(self, levels: Levels) -> Found:
        """What is found."""
        answers, anchors, counts = self._answers(levels)
        by_level = {name: list(value.split(counts, dim=1)) for name, value in answers.items()}
        sizes = [self.size] * len(anchors)
        boxes: Found = self.model.postprocess_detections(by_level, [list(a.split(counts)) for a in anchors], sizes)
        return boxes

    def largest_work(self, levels: Levels) -> Tensor:
        """A sum over all answers, where operations are counted."""
        used = [levels[name] for name in DENSE[:-1]]
        return sum((value.sum() for value in self.model.head(used).values()), used[0].new_zeros(()))


def make_heads(
    kind: HeadKind, classes: int, size: tuple[int, int], patch: int, sizes: HeadSizes
) -> RegionHeads | DenseHeads:
    """The heads of that name."""
    if kind == "retinanet":
        return DenseHeads(classes, size, patch, sizes)
    return RegionHeads(classes, size, patch, sizes, kind == "mask-rcnn")
