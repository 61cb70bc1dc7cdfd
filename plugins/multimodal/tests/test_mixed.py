"""Sources of other plugins put together: clips with their depth, shapes with a rendered view, and their recipes."""

import math
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from mim_core import randomness
from mim_core.cli import main
from mim_core.errors import BadSample, MimError
from mim_core.host.loading import installed
from mim_core.methods.build import build_method, make_source
from mim_core.recipes.resolve import load_recipe
from mim_core.runs.inventory import digest_of
from mim_multimodal.inner_sources import options_of, value_of
from mim_multimodal.paired import Paired, match, stem_of
from mim_multimodal.rendered import FARTHEST, Rendered, render, turn

HAVE = {plugin.name for plugin in installed().plugins if plugin.failure is None and not plugin.disabled}
needs_video = pytest.mark.skipif("video" not in HAVE, reason="mim-video is not installed")
needs_clouds = pytest.mark.skipif("pointcloud" not in HAVE, reason="mim-pointcloud is not installed")
STEP = 6
SHAPES = {"video": (3, 4, 16, 16), "depth": (1, 4, 16, 16)}


# ---- pairs of clips --------------------------------------------------------------------------------------------------


def numbered(i, size):
    """A grey frame: brighter by STEP with its number, by up to 60 to the right and by up to 20 downwards."""
    right, down = np.linspace(0, 60, size[1]), np.linspace(0, 20, size[0])
    grey = (right[None, :] + down[:, None] + STEP * i + 16).round().astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def film(path, frames=24, size=(48, 64)):
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25, options={"crf": "1", "g": "8"})
        stream.height, stream.width = size
        stream.pix_fmt, stream.codec_context.time_base = "yuv444p", Fraction(1, 25)
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered(i, size), "rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    for kind in ("run", "jump"):
        for number in range(5):
            film(root / "rgb" / kind / f"{number}.mp4")
            film(root / "depth" / kind / f"{number}.mkv")
    return root


def pair(root, shapes=SHAPES, **options):
    more = {"stride": 2, "flip": 0.5, **options.pop("options", {})}
    return Paired(Paired.Config(root=root, options=more, **options), shapes)


def grey(clip):
    """Mean over the channels of a clip [C, T, H, W]."""
    return clip.float().mean(dim=0)


@needs_video
def test_kept_features_of_pairs_know_the_files_of_both(tmp_path):
    for kind in ("run", "jump"):
        for number in range(5):
            film(tmp_path / "rgb" / kind / f"{number}.mp4", frames=4)
            film(tmp_path / "depth" / kind / f"{number}.mkv", frames=4)

    def digest():
        pairs = Paired(Paired.Config(root=tmp_path), SHAPES)
        return digest_of(pairs, [pairs.labelled("train"), pairs.labelled("test")])

    seen = [digest()]
    assert digest() == seen[0]
    for name in ("rgb/run/0.mp4", "depth/jump/4.mkv"):
        os.utime(tmp_path / name, (1, 1))
        seen.append(digest())
    assert len({*seen}) == 3


@needs_video
def test_frames_crop_and_flip_are_the_same(clips):
    """Files of both modalities show the same numbers, so the cuts must be equal, pixel by pixel."""
    source = pair(clips)
    seen = set()
    for key in range(24):
        sample = source.read(key % len(source), key)
        assert sample["video"].shape == SHAPES["video"]
        assert sample["depth"].shape == SHAPES["depth"]
        a, b = grey(sample["video"]), grey(sample["depth"])
        assert (a - b).abs().max() <= 4  # what two encodings differ by; another frame is 12 away
        first = float(a[0].mean())
        seen.add((round(first / STEP), bool(a[0, :, 0].mean() > a[0, :, -1].mean())))
    assert len({number for number, _ in seen}) > 3  # frames are drawn
    assert {flipped for _, flipped in seen} == {True, False}


@needs_video
def test_a_source_with_other_options_is_cut_otherwise(clips):
    """The test above can fail: another stride shows other frames."""
    source = pair(clips, options={"depth.stride": 4})
    sample = source.read(0, 1)
    assert (grey(sample["video"]) - grey(sample["depth"])).abs().max() > 8


@needs_video
def test_equal_keys_give_equal_samples(clips):
    a, b = (pair(clips).read(3, 11) for _ in range(2))
    assert all(torch.equal(a[name], b[name]) for name in SHAPES)


@needs_video
def test_each_modality_is_finished_by_its_source(clips):
    source = pair(clips)
    sample = source.read(0, 5)
    ready = source.finish({name: value[None] for name, value in sample.items()})
    torch.testing.assert_close(ready["depth"], (sample["depth"][None].float() / 255 - 0.5) / 0.5)
    assert ready["video"].shape == (1, *SHAPES["video"])
    assert set(source.finish({"depth": sample["depth"][None]})) == {"depth"}  # a subset
    assert source.raw(ready).shape[0] == 1
    for name in SHAPES:
        assert source.picture(name, ready[name][0]).media_type == "image/png"
        assert source.animation(name, ready[name][0]).media_type == "image/gif"


@needs_video
def test_repeated_clips_stay_together(clips):
    source = pair(clips, options={"repeat": 2})
    sample = source.read(0, 5)
    batch = {name: value[None] for name, value in sample.items()} | {
        "key": torch.tensor([5]),
        "index": torch.tensor([0]),
    }
    ready = source.finish(batch)
    assert ready["video"].shape[0] == ready["depth"].shape[0] == len(ready["key"]) == 2
    assert source.samples_per_item == 2
    with pytest.raises(ValueError, match="the same repeat"):
        pair(clips, options={"repeat": 2, "depth.repeat": 1})


@needs_video
def test_labels_and_controls(clips):
    source = pair(clips)
    test = source.labelled("test")
    assert test.classes == ("jump", "run")
    assert test.names == ("rgb/jump/4.mp4", "rgb/run/4.mp4")
    item = test.items[1]
    assert (grey(item["video"]) - grey(item["depth"])).abs().max() <= 4
    sample = source.read_labelled(7, 3)
    assert sample["label"] == source.labelled("train").labels[7]
    assert (grey(sample["video"]) - grey(sample["depth"])).abs().max() <= 4
    ready = source.finish({name: value[None] for name, value in item.items()}) | {"index": torch.tensor([1])}
    shuffled = source.controls()["shuffled frames"](ready)
    assert not torch.equal(shuffled["video"], ready["video"])
    order = [int((ready["depth"][0, :, t] - shuffled["depth"][0, :, 0]).abs().sum().lt(1e-3)) for t in range(4)].index(
        1
    )
    torch.testing.assert_close(shuffled["video"][:, :, 0], ready["video"][:, :, order])


@needs_video
def test_what_the_sources_say_is_passed_on(clips, monkeypatch):
    source = pair(clips)
    monkeypatch.setattr(type(source.inner["depth"]), "contents", lambda _: {"splits": "train/ for training"})
    monkeypatch.setattr(type(source.inner["depth"]), "advice", lambda _: ["left out: 3 files"])
    assert source.contents()["depth: splits"] == source.contents()["video: splits"] == "train/ for training"
    assert source.advice() == ["video: left out: 3 files", "depth: left out: 3 files"]


@needs_video
def test_clips_of_other_names_are_never_put_together(tmp_path):
    film(tmp_path / "video" / "1_rgb.mp4")
    film(tmp_path / "depth" / "1_d.mkv")
    for missing in ("refuse", "skip"):
        with pytest.raises(MimError, match=r"--data\.suffixes video _rgb depth _depth"):
            pair(tmp_path, missing=missing)
    assert len(pair(tmp_path, suffixes={"video": "_rgb", "depth": "_d"})) == 1


@needs_video
def test_items_that_one_lacks(clips, tmp_path):
    for path in clips.rglob("*.m*"):
        other = tmp_path / path.relative_to(clips)
        other.parent.mkdir(parents=True, exist_ok=True)
        other.symlink_to(path)
    (tmp_path / "depth/run/0.mkv").unlink()
    (tmp_path / "rgb/jump/3.mp4").unlink()
    with pytest.raises(MimError, match=r"(?s)depth lacks 1, such as run/0.*--data.missing skip"):
        pair(tmp_path)
    source = pair(tmp_path, missing="skip")
    assert len(source) == 8
    assert {"1 items are left out: run/0", "1 items are left out: jump/3"} < set(source.plan().values())
    for index in range(len(source)):
        sample = source.read(index, index)
        assert (grey(sample["video"]) - grey(sample["depth"])).abs().max() <= 4
    assert "run/0.mp4" not in {source.name_of(i) for i in range(8)}
    bad = tmp_path / "depth/run/2.mkv"
    bad.unlink()
    bad.write_bytes(b"no film")
    index = [source.name_of(i) for i in range(8)].index("rgb/run/2.mp4")
    with pytest.raises(BadSample) as caught:
        source.read(index, 0)
    assert caught.value.path == "depth/run/2.mkv"


@needs_video
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folders": {"depth": "deep"}}, r"no folder 'deep' for the modality depth. Folders there: depth, rgb"),
        ({"options": {"strid": 3}}, "no source has the option 'strid'. Did you mean 'stride'"),
        ({"options": {"points.stride": 3}}, "is for 'points'; the modalities are video, depth"),
        ({"sources": {"depth": "video:clip"}}, "'video:clips'"),
    ],
)
def test_what_is_refused(clips, options, message):
    with pytest.raises(MimError, match=message):
        pair(clips, **options)


@needs_video
def test_sizes_must_be_equal(clips):
    with pytest.raises(ValueError, match="must have one size"):
        pair(clips, {"video": (3, 4, 16, 16), "depth": (1, 4, 8, 8)})
    with pytest.raises(ValueError, match="two modalities or more"):
        pair(clips, {"video": (3, 4, 16, 16)})
    with pytest.raises(ValueError, match="folders names colour"):
        pair(clips, folders={"colour": "rgb"})
    with pytest.raises(MimError, match="Which files"):
        pair(None)


def test_names_without_endings():
    assert stem_of("a/b.c.mp4") == "a/b.c"
    assert stem_of("a/b.mp4 (0 to 2.5 s)") == "a/b (0 to 2.5 s)"
    several = {"video": ["a (1)_v.mp4", "a (2)_v.mp4", "a_v.mp4 (0 to 2 s)"], "depth": ["a (2).png", "a (1).png"]}
    assert match(several, {"video": "_v"})[0] == {"video": [0, 1], "depth": [1, 0]}
    items, lacking = match({"x": ["a.mp4", "b.mp4"], "y": ["c.avi", "b.avi"]})
    assert items == {"x": [1], "y": [1]}
    assert lacking == {"x": ["c"], "y": ["a"]}
    with pytest.raises(MimError, match=r"a\.mp4 and a\.avi"):
        match({"x": ["a.mp4", "a.avi"]})


@needs_video
def test_names_that_end_in_a_word_of_their_own():
    names = {"video": ["a/1_rgb.mp4 (0 to 2 s)", "2_rgb.mp4"], "depth": ["2_d.avi", "a/1_d.avi (0 to 2 s)"]}
    assert match(names)[0] == {"video": [], "depth": []}
    assert match(names, {"video": "_rgb", "depth": "_d"})[0] == {"video": [0, 1], "depth": [1, 0]}


def test_options_of_inner_sources():
    names = {"video": "video:clips", "depth": "video:clips"}
    found = options_of(names, {"depth.stride": 3, "stride": 2, "repeat-start": "own"})
    assert found["video"] == {"stride": 2, "repeat_start": "own"}
    assert found["depth"] == {"stride": 3, "repeat_start": "own"}
    assert [value_of(text) for text in ("[0.5, 1.0]", "2", "centre", "true")] == [[0.5, 1.0], 2, "centre", True]


# ---- rendered views --------------------------------------------------------------------------------------------------


def test_a_plane_that_faces_the_viewer():
    side = torch.linspace(-0.99, 0.99, 64)
    x, y = torch.meshgrid(side, side, indexing="xy")
    for height in (-1.0, 0.0, 0.5, 1.0):
        plane = torch.stack([x, y, torch.full_like(x, height)], dim=-1).reshape(1, -1, 3)
        expected = FARTHEST + (1 - FARTHEST) * (height + 1) / 2
        torch.testing.assert_close(render(plane, (16, 16)), torch.full((1, 1, 16, 16), expected))


def test_the_nearest_point_of_a_sphere_wins():
    torch.manual_seed(0)
    sphere = torch.nn.functional.normalize(torch.randn(1, 40_000, 3), dim=2) * 0.8
    view = render(sphere, (32, 32))[0, 0]
    centres = (torch.arange(32) + 0.5) / 16 - 1
    x, y = torch.meshgrid(centres, -centres, indexing="xy")
    inside = x.square() + y.square() < 0.6
    front = FARTHEST + (1 - FARTHEST) * ((0.64 - x.square() - y.square()).clamp(min=0).sqrt() + 1) / 2
    assert (view - front)[inside].abs().max() < 0.06
    assert (view[x.square() + y.square() > 0.8] == 0).all()


def test_directions_of_a_picture():
    """Up is the first row, right the last column."""
    view = render(torch.tensor([[[0.9, 0.9, 0.0], [-0.9, -0.9, 1.0]]]), (4, 4))[0, 0]
    assert view[0, 3] == pytest.approx(FARTHEST + (1 - FARTHEST) / 2)
    assert view[3, 0] == 1
    assert (view > 0).sum() == 2


def test_points_outside_are_not_drawn():
    """Nor do they come in again on the other side; those in front are as near as can be."""
    points = torch.tensor([[[1.2, 0.0, 0.0], [-1.01, 0.0, 0.0], [0.0, 3.0, 0.0], [torch.nan, 0, 0], [0, torch.inf, 0]]])
    assert (render(points, (4, 4)) == 0).all()
    assert (render(torch.tensor([[[0.1, 0.1, 7.0]]]), (4, 4))[0, 0] > 0).sum() == 1
    assert render(torch.tensor([[[0.1, 0.1, 7.0]]]), (4, 4)).max() == 1
    edge = render(torch.tensor([[[0.9, 0.9, 0.0]]]), (4, 4), splat=1)[0, 0]
    assert (edge[:2, 2:] > 0).all()
    assert (edge > 0).sum() == 4


def test_each_sample_has_its_own_canvas():
    torch.manual_seed(1)
    points = torch.randn(5, 30, 3) / 2
    whole = render(points, (8, 6), 1.1, 1)
    for i in range(5):
        assert torch.equal(whole[i : i + 1], render(points[i : i + 1], (8, 6), 1.1, 1))


@pytest.mark.parametrize("up", ["x", "y", "z"])
def test_a_turn_about_the_upright_axis(up):
    """A quarter turn brings the right side to the front; heights stay, and so do distances."""
    axis = "xyz".index(up)
    points = torch.eye(3)[None] + 0.0
    whole = turn(points, torch.zeros(1, dtype=torch.float64), 0.0, up)
    assert whole[0, axis].tolist() == [0, 1, 0]
    assert torch.linalg.det(whole[0]) == pytest.approx(1.0)  # not mirrored
    quarter = turn(points, torch.full((1,), math.pi / 2, dtype=torch.float64), 0.0, up)
    torch.testing.assert_close(quarter[0, axis], torch.tensor([0.0, 1.0, 0.0]))
    torch.testing.assert_close(quarter[0, (axis + 2) % 3], torch.tensor([0.0, 0.0, 1.0]))
    above = turn(points, torch.zeros(1, dtype=torch.float64), math.pi / 2, up)
    torch.testing.assert_close(above[0, axis], torch.tensor([0.0, 0.0, 1.0]))  # seen from above, up is near


def clouds(shapes=None, **options):
    config = Rendered.Config(root=Path("sample"), **options)
    return Rendered(config, shapes or {"points": (256, 3), "depth": (1, 24, 24)})


@pytest.fixture(scope="module")
def furniture():
    source = clouds()
    rows = [source.read(i, key) for i, key in enumerate((1, 2, 3))]
    return source, {"points": torch.stack([row["points"] for row in rows])}


@needs_clouds
def test_a_view_follows_from_its_key(furniture):
    source, sample = furniture
    key = randomness.make_key(0, 0, torch.arange(3))
    a, b = (source.finish({**sample, "key": key}) for _ in range(2))
    assert torch.equal(a["depth"], b["depth"])
    assert a["depth"].dtype == torch.float32
    assert a["depth"].shape == (3, 1, 24, 24)
    assert 0.1 < (a["depth"] > 0).float().mean() < 0.9
    one = source.finish({"points": sample["points"][1:2], "key": key[1:2]})
    assert torch.equal(one["depth"], a["depth"][1:2])
    assert not torch.equal(source.finish({**sample, "key": key + 1})["depth"], a["depth"])


@needs_clouds
def test_evaluation_has_one_view(furniture):
    source, sample = furniture
    fixed = source.finish(dict(sample))["depth"]
    still = clouds(turn=False)
    assert torch.equal(fixed, still.finish({**sample, "key": torch.arange(3)})["depth"])
    turned = turn(
        sample["points"], torch.full((3,), math.radians(30), dtype=torch.float64), math.radians(20), source.up
    )
    assert torch.equal(fixed, render(turned, (24, 24), 1.25, source.splat))


@needs_clouds
def test_the_source_is_wrapped_whole(furniture):
    source, sample = furniture
    ready = source.finish(dict(sample))
    assert source.picture("depth", ready["depth"][0]).media_type == "image/png"
    assert source.picture("points", ready["points"][0]).media_type == "image/png"
    assert source.raw(ready).shape == (3, 45 + 24 * 24)
    assert len(source.labelled("test").classes) > 1
    assert "3 x 3 pixels a point" in source.plan()["depth"]
    assert source.name_of(0) == source.source.name_of(0)
    assert source.finish({"key": torch.arange(3)}).keys() == {"key"}
    still = clouds(options={"augment": False, "scale": "[1, 1]"})
    assert still.source.config.augment is False


@needs_clouds
def test_half_precision_points_are_rendered_in_float32(furniture):
    source, sample = furniture
    half = source.finish({"points": sample["points"].bfloat16()})["depth"]
    assert half.dtype == torch.float32


@needs_clouds
@pytest.mark.parametrize(
    ("options", "message"),
    [({"extent": 0.0}, "extent must be positive"), ({"up": "w"}, "up must be"), ({"splat": -1}, "splat not negative")],
)
def test_views_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        clouds(**options)


@needs_clouds
def test_shapes_of_rendered_data():
    with pytest.raises(ValueError, match=r"the tokenizers want points \(8, 3\)"):
        clouds({"points": (8, 3)})
    with pytest.raises(MimError, match="no source has the option"):
        clouds(options={"agument": False})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_views_on_a_gpu():
    torch.manual_seed(2)
    points, angle = torch.randn(4, 500, 3) / 2, torch.rand(4, dtype=torch.float64)
    a, b = (render(turn(points.to(d), angle.to(d), 0.3, "y"), (32, 32), 1.2, 1).cpu() for d in ("cpu", "cuda"))
    assert ((a - b).abs() > 1e-4).float().mean() < 0.01  # a point on a pixel's edge may fall either way


# ---- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param("points-depth-vit-tiny", marks=needs_clouds),
        pytest.param("video-depth-vit-tiny", marks=needs_video),
    ],
)
def test_recipes_take_a_step(recipe):
    run = load_recipe(f"multimodal:{recipe}", installed(), twin=True)
    method = build_method(run)
    source = make_source(run, method)
    rows = [source.read(i, i) for i in range(4)]
    sample = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    sample |= {"index": torch.arange(4), "key": randomness.make_key(0, 0, torch.arange(4))}
    outcome = method(method.prepare(source.finish(sample)))
    outcome.loss.backward()
    assert outcome.loss.isfinite()
    assert len(outcome.parts) == 2
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is None or parameter.grad.isfinite().all(), name


@needs_video
def test_options_on_the_command_line(capsys, tmp_path):
    """Those of the bundled sample are defaults, and any option of a source can be named."""
    plain = ["pretrain", "multimodal:video-depth-vit-tiny", "--twin", "--dry-run", "--out", str(tmp_path / "run")]
    assert main(plain) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "60 items with video, depth, read under the same key" in text
    assert text.count("one of every 2 frames") == 2
    assert main([*plain, "--data.options", "stride", "1", "depth.stride", "3"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "one of every 1 frames" in text
    assert "one of every 3 frames" in text
