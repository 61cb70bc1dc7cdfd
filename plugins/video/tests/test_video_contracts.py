"""Every part of the method keeps its contract; the papers' counts and formulas are exact."""

from pathlib import Path

import pytest
import torch
from mim_core.host.loading import installed
from mim_core.interop.weights import import_checkpoint
from mim_core.methods.build import build_method
from mim_core.parts.layout import Layout
from mim_core.parts.mask import Draw, Mask
from mim_core.recipes.resolve import load_recipe
from mim_core.testing import MaskerContract, MethodContract, TargetContract, TokenizerContract, keys, noise, uncovered
from mim_video.data import Clips
from mim_video.masker import DualMasker, FrameMasker, RunningCellMasker, TubeMasker
from mim_video.target import CubeTarget, FrameTarget
from mim_video.tokenizer import TubeletTokenizer

FREE = Layout(count=64, positions=torch.rand(64, 3))
KINETICS = (8, 14, 14)
RECIPES = ("videomae-vit-tiny", "videomae-vit-base", "videomae-v2-vit-base", "mae-st-vit-base")


class TestTubelets(TokenizerContract):
    part = "video:tubelet"
    options = {"size": (6, 12, 20), "patch": (3, 4, 5), "channels": 1}

    def wrong_samples(self, tokenizer):
        yield noise({"video": (1, 6, 12, 21)}, 2), ["patch of 3 x 4 x 5", "6 x 12 x 21"]
        yield noise({"video": (3, 6, 12, 20)}, 2), ["B, 1", "2 x 3 x"]


class TestTube(MaskerContract):
    part = "video:tube"
    expected_hidden = {KINETICS: 1568 - 160, (2, 5, 7): 2 * 31, (3, 10): 27}
    unsuitable = [FREE, Layout.on_grid(14)]


class TestFrame(MaskerContract):
    part = "video:frame"
    expected_hidden = {KINETICS: 7 * 196, (5, 3, 2): 4 * 6}
    unsuitable = [FREE, Layout.on_grid(14)]


class TestRunningCell(MaskerContract):
    part = "video:running-cell"
    expected_hidden = {KINETICS: 784, (3, 4, 6): 36, (4, 5, 7): 70}
    unsuitable = [FREE, Layout.on_grid(14, 14), Layout.on_grid(3, 5, 4)]


class TestRunningCellQuarter(MaskerContract):
    part = "video:running-cell"
    options = {"ratio": 0.25}
    expected_hidden = {KINETICS: 392}


class TestDual(MaskerContract):
    part = "video:dual"
    partitions = False
    expected_hidden = {KINETICS: 1568 - 160, (8, 6, 6): 8 * 32}
    unsuitable = [FREE, Layout.on_grid(3, 5, 4)]


class _Target(TargetContract):
    def make_tokenizer(self):
        return TubeletTokenizer(TubeletTokenizer.Config(size=(8, 8, 12), patch=(2, 4, 3)), 8)


class TestCubes(_Target):
    part = "video:cubes"


class TestRawCubes(_Target):
    part = "video:cubes"
    options = {"normalize": False, "mean": (0.5,), "std": (0.25,)}


class TestFrameOfTubelet(_Target):
    part = "video:frame-of-tubelet"
    inverse = False  # pictures show whole tubelets, and some frames were never predicted


class TestAllFramesOfTubelet(_Target):
    part = "video:frame-of-tubelet"
    options = {"frames": 2}


class TestTiny(MethodContract):
    recipe = "video:videomae-vit-tiny"


class TestV2(MethodContract):
    recipe = "video:videomae-v2-vit-base"


class TestMaeSt(MethodContract):
    recipe = "video:mae-st-vit-base"


@pytest.mark.parametrize("kind", ["tokenizers", "maskers", "targets"])
def test_every_part_has_a_contract(kind):
    assert not uncovered(kind, globals().values(), plugin="video")


def test_a_tube_is_the_same_at_all_times():
    mask = TubeMasker(TubeMasker.Config())(Layout.on_grid(*KINETICS), Draw(keys(4)))
    assert mask.kept_ids.shape == (4, 160)
    frames = mask.hidden.reshape(4, 8, 196)
    assert torch.equal(frames, frames[:, :1].expand_as(frames))
    assert len(frames[:, 0].unique(dim=0)) == 4


def test_whole_frames_are_hidden():
    hidden = FrameMasker(FrameMasker.Config(ratio=0.5))(Layout.on_grid(8, 3, 5), Draw(keys(6))).hidden
    frames = hidden.reshape(6, 8, 15)
    assert torch.equal(frames.any(dim=2), frames.all(dim=2))
    assert frames.all(dim=2).sum(dim=1).tolist() == [4] * 6


def test_a_running_cell_moves_by_one_with_time():
    """Two neighbours in the cell's queue are hidden, and the queue turns by one place per time."""
    hidden = RunningCellMasker(RunningCellMasker.Config())(Layout.on_grid(8, 4, 6), Draw(keys(64))).hidden
    cells = hidden.reshape(64, 8, 2, 2, 3, 2).permute(0, 1, 2, 4, 3, 5).reshape(64, 8, 6, 4)
    assert torch.equal(cells, cells[:, :, :1].expand_as(cells)), "all cells of a frame are alike"
    assert torch.equal(cells[:, 1:], cells[:, :-1].roll(-1, dims=3))
    assert {tuple(row) for row in cells[:, 0, 0].int().tolist()} == {
        (1, 1, 0, 0), (1, 0, 0, 1), (0, 0, 1, 1), (0, 1, 1, 0)
    }  # fmt: skip


def test_dual_masking():
    """160 units are encoded, 784 are asked for, and those of them that were encoded do not count."""
    layout = Layout.on_grid(*KINETICS)
    mask = DualMasker(DualMasker.Config())(layout, Draw(keys(3)))
    assert mask.kept_ids.shape == (3, 160)
    assert mask.query_ids.shape == (3, 784)
    assert torch.equal(mask.weight, mask.hidden.gather(1, mask.query_ids).float())
    assert 0 < float((mask.weight == 0).float().mean()) < 0.2
    asked = torch.zeros_like(mask.hidden).scatter_(1, mask.query_ids, True)
    same = Mask.from_bool(mask.hidden, queries=asked)
    for name in ("kept_ids", "query_ids", "weight"):
        assert torch.equal(getattr(mask, name), getattr(same, name)), name


@pytest.mark.parametrize("ratio", [0.1, 1.0, 0.0])
def test_cells_that_hide_nothing_are_refused(ratio):
    with pytest.raises(ValueError, match="ratio"):
        DualMasker(DualMasker.Config(decoder_ratio=ratio))


def tubelets(channels=3, size=(8, 4, 6)):
    return TubeletTokenizer(TubeletTokenizer.Config(size=size, patch=(2, 2, 3), channels=channels), 8)


def all_hidden(cut, rows=2):
    return Mask.from_bool(torch.ones(rows, cut.layout.count, dtype=torch.bool))


def test_cubes_are_videomaes():
    """(x - mean) / (std + 1e-6) per channel, the deviation unbiased, position by position, channel last."""
    cut = tubelets()
    sample = noise(cut.shapes, 2)
    values = CubeTarget(CubeTarget.Config(), cut).make(sample, cut.split(sample), all_hidden(cut))
    cube = sample["video"][1, :, 2:4, 2:4, 3:6].double()  # unit (1, 1, 1) of a grid (4, 2, 2)
    wanted = torch.empty(12, 3, dtype=torch.float64)
    for channel, (mean, std) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
        x = (cube[channel] * std + mean).flatten().tolist()
        middle = sum(x) / 12
        deviation = (sum((v - middle) ** 2 for v in x) / 11) ** 0.5
        wanted[:, channel] = torch.tensor([(v - middle) / (deviation + 1e-6) for v in x], dtype=torch.float64)
    torch.testing.assert_close(values[1, 7].double(), wanted.flatten(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_are_those_of_the_data(channels):
    """What the target undoes by default is what the data source did by default."""
    source = Clips(Clips.Config(root=Path("sample")), {"video": (channels, 8, 32, 32)})
    target = CubeTarget(CubeTarget.Config(), tubelets(channels))
    for name in ("mean", "std"):
        assert torch.equal(getattr(target, name).expand(channels), getattr(source, name).flatten().expand(channels))


def test_the_small_number_stands_outside_the_root():
    """A nearly constant tubelet with deviation 1e-6 is halved, not scaled to 1e-3."""
    cut = tubelets(channels=1)
    target = CubeTarget(CubeTarget.Config(mean=(0.0,), std=(1.0,)), cut)
    video = torch.zeros(1, 1, 8, 4, 6)
    video[..., ::3] = 1e-6
    values = target.make({"video": video}, cut.split({"video": video}), all_hidden(cut, 1))
    assert 0.2 < float(values.abs().max()) < 2


def test_frames_of_tubelets_are_mae_sts():
    """With 16 frames in twos: 0, 2, ... 12 and 15; all values of a frame of a tubelet share mean and variance."""
    cut = TubeletTokenizer(TubeletTokenizer.Config(size=(16, 4, 4), patch=(2, 4, 4)), 8)
    target = FrameTarget(FrameTarget.Config(normalize=False), cut)
    video = torch.arange(16.0)[:, None, None].expand(1, 3, 16, 4, 4)
    values = target.make({"video": video}, cut.split({"video": video}), all_hidden(cut, 1))
    chosen = torch.linspace(0, 15, 8).long()
    assert torch.equal(values[0, :, 0], chosen.float())
    shown = target.to_input_space(values, cut.split({"video": video}), all_hidden(cut, 1))
    assert shown.shape == (1, 8, 2, 4, 4, 3)
    assert torch.equal(shown[0, :, 1, 0, 0, 0], chosen.float())
    sample = noise(cut.shapes, 1)
    normal = FrameTarget(FrameTarget.Config(), cut).make(sample, cut.split(sample), all_hidden(cut, 1))
    frame = sample["video"][0, :, 15].permute(1, 2, 0).flatten()
    torch.testing.assert_close(normal[0, 7], (frame - frame.mean()) / (frame.var() + 1e-6).sqrt())


@pytest.mark.parametrize(
    ("cls", "options", "text"),
    [
        (CubeTarget, {"mean": (0.5, 0.5)}, "mean has 2 values for 3 channels"),
        (CubeTarget, {"std": (0.0,)}, "std must be positive"),
        (FrameTarget, {"frames": 3}, "frames must be 1 to the tubelet's 2, got 3"),
    ],
)
def test_options_that_make_no_target(cls, options, text):
    with pytest.raises(ValueError, match=text):
        cls(cls.Config(**options), tubelets())


@pytest.mark.parametrize(
    "recipe", ["videomae-vit-base", "videomae-v2-vit-base", "mae-st-vit-base", "videomae-vit-tiny"]
)
@pytest.mark.parametrize("size", [(4, 32, 32), (16, 32, 32), (8, 48, 24)])
def test_another_length_and_size(recipe, size):
    """What was built for one length and square frames trains on, and encodes, another."""
    method = build_method(load_recipe(f"video:{recipe}", installed(), twin=True))
    (shape,) = method.tokenizer.shapes.values()
    assert shape != (3, *size)
    sample = noise({"video": (3, *size)}, 2)
    outcome = method(method.prepare(sample))
    outcome.loss.backward()
    assert torch.isfinite(outcome.loss)
    assert method.encode(sample).tokens.shape[1] == (size[0] // 2) * (size[1] // 8) * (size[2] // 8)


def test_counts_of_the_papers():
    """At full size: 160 of 1,568 units are encoded, and V2's giant has a grid of its own."""
    for recipe, kept, asked in (
        ("videomae-vit-small", 160, 1408),
        ("videomae-vit-base-ucf101", 392, 1176),
        ("videomae-v2-vit-base", 160, 784),
        ("videomae-v2-vit-giant", 8 * 26, 1024),
        ("mae-st-vit-base", 156, 1412),
    ):
        parts = load_recipe(f"video:{recipe}", installed()).parts
        masker = parts["masker"].cls(parts["masker"].options)
        tokenizer = parts["tokenizer"].cls(parts["tokenizer"].options, 8)
        mask = masker(tokenizer.layout, Draw(keys(2)))
        assert (mask.kept_ids.shape[1], mask.query_ids.shape[1]) == (kept, asked), recipe


def test_import_needs_the_right_code_base():
    with pytest.raises(Exception, match="they are not those of MAE-ST"):
        import_checkpoint({"cls_token": torch.zeros(1)}, format="mae-st")
