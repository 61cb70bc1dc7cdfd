"""Clips by key: frames, crops, flips, repeats, views, controls; short and bad files; workers, forked and spawned."""

import io
import sys
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from mim_core.data.loading import KeyedBatches, KeyedDataset, collate
from mim_core.errors import BadSample, MimError
from mim_core.evaluation.features import extract
from mim_core.host.loading import installed
from mim_core.methods.build import build_method
from mim_core.recipes.config import EvaluateConfig
from mim_core.recipes.resolve import load_recipe
from mim_video import crops
from mim_video.data import Clips, first_frame, shuffle
from PIL import Image
from torch.utils.data import Subset

STEP = 7
"""Every frame is this much brighter than the one before, along a ramp that grows to the right by 40."""


@pytest.fixture
def film(tmp_path):
    """``film("a.mp4", frames=30, size=(48, 64), times=None)`` encodes numbered frames below the test's folder. The
    times are in milliseconds."""

    def make(name, frames=30, size=(48, 64), times=None):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as file:
            stream = file.add_stream("libx264", rate=25, options={"crf": "1", "g": "8"})
            stream.height, stream.width = size
            stream.pix_fmt, stream.codec_context.time_base = "yuv444p", Fraction(1, 1000)
            for i in range(frames):
                frame = av.VideoFrame.from_ndarray(numbered(i, size), "rgb24")
                frame.pts, frame.time_base = (times[i] if times else 40 * i), Fraction(1, 1000)
                file.mux(stream.encode(frame))
            file.mux(stream.encode())
        return path

    return make


def numbered(i, size):
    ramp = np.linspace(0, 40, size[1]).round().astype(np.uint8)
    return np.broadcast_to((ramp + STEP * i)[None, :, None], (*size, 3)).astype(np.uint8).copy()


def numbers(clip):
    """The frames that a clip of whole frames shows, by the brightness of their middle."""
    middle = clip.float()[:, :, :, clip.shape[3] // 2].mean((0, 2))
    return ((middle - 20) / STEP).round().int().tolist()


@pytest.fixture
def source(tmp_path):
    """``source(frames=4, size=(16, 16), **options)``: the data on the test's own folder."""

    def make(frames=4, size=(16, 16), root=tmp_path, **options):
        return Clips(Clips.Config(root=root, **{"stride": 2, **options}), {"video": (3, frames, *size)})

    return make


# ---- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"crop": "resized"}, {"fps": 10.0}, {"segments": True}, {"repeat": 2}])
def test_same_key_same_clip_other_key_other_clip(film, source, options):
    film("a.mp4")
    clips = source(flip=0.5, **options)
    first = clips.read(0, 11)["video"]
    torch.manual_seed(5)
    undisturbed = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(clips.read(0, 11)["video"], first)
    assert torch.equal(torch.rand(3), undisturbed)
    assert len({clips.read(0, key)["video"].numpy().tobytes() for key in range(12)}) > 10


def test_frames_and_starts(film, source):
    film("a.mp4", frames=12)
    clips = source(frames=4, size=(48, 64), stride=3, crop="centre")
    found = {tuple(numbers(clips.read(0, key)["video"])) for key in range(40)}
    assert found == {(0, 3, 6, 9), (1, 4, 7, 10), (2, 5, 8, 11)}


def test_rate_goes_by_the_files_own_timestamps(film, source):
    times = [0, 10, 20, 30, 40, 500, 510, 1000, 1010, 1500, 2000, 2010]
    film("a.mp4", frames=12, times=times)
    clips = source(frames=5, size=(48, 64), fps=2.0, crop="centre")
    shown = numbers(clips.read(0, 3)["video"])
    assert shown == [0, 5, 7, 9, 10] or shown == [1, 6, 8, 9, 11]  # begins within 10 milliseconds


def test_segments(film, source):
    film("a.mp4", frames=12)
    clips = source(frames=4, size=(48, 64), segments=True, crop="centre")
    found = torch.tensor([numbers(clips.read(0, key)["video"]) for key in range(60)])
    assert [sorted(set(column)) for column in found.T.tolist()] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


@pytest.mark.parametrize(("short", "shown"), [("last", [0, 2, 2, 2]), ("loop", [0, 2, 1, 0])])
def test_shorter_than_a_clip(film, source, short, shown):
    film("a.mp4", frames=3)
    assert numbers(source(size=(48, 64), short=short, crop="centre").read(0, 1)["video"]) == shown


@pytest.mark.parametrize(
    ("options", "enough", "said"),
    [
        ({"stride": 2}, 7, "it is shorter than a clip: 6 of 7 frames"),
        ({"segments": True}, 4, "it is shorter than a clip: 3 of 4 frames"),
        ({"fps": 25.0}, 4, r"it is shorter than a clip: 0\.08 s of 0\.12 s"),
    ],
)
def test_short_files_are_refused_when_asked(film, source, options, enough, said):
    film("enough.mp4", frames=enough)
    film("short.mp4", frames=enough - 1)
    clips = source(short="refuse", **options)
    assert clips.read(0, 1)["video"].shape == (3, 4, 16, 16)
    with pytest.raises(BadSample, match=said) as caught:
        clips.read(1, 1)
    assert caught.value.path == "short.mp4"
    assert source(**options).read(1, 1)["video"].shape == (3, 4, 16, 16)


def test_flip(film, source):
    film("a.mp4", frames=1)

    def flipped(chance):
        clips = [source(flip=chance, crop="centre").read(0, key)["video"].float() for key in range(60)]
        return sum(bool(clip[..., 0].mean() > clip[..., -1].mean()) for clip in clips)

    assert (flipped(0.0), flipped(1.0)) == (0, 60)
    assert 15 < flipped(0.5) < 45


# ---- crops -----------------------------------------------------------------------------------------------------------


def test_multi_scale_crops():
    frame, size, shares = (240, 320), (224, 224), (1.0, 0.875, 0.75, 0.66)
    grid = [(a / 40, b / 40) for a in range(40) for b in range(40)]
    found = {crops.multi_scale(frame, size, shares, draws) for draws in grid}
    sides = {(box.height, box.width) for box in found}
    steps = [240, 210, 180, 158]
    assert sides == {(steps[i], steps[j]) for i in range(4) for j in range(4) if abs(i - j) < 2}
    assert all(0 <= box.top <= 240 - box.height and 0 <= box.left <= 320 - box.width for box in found)
    assert len({(box.top, box.left) for box in found if box[2:] == (158, 158)}) == 13


def test_random_resized_crops():
    frame, size = (200, 300), (100, 150)
    draws = torch.rand(300, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).tolist()
    boxes = [crops.random_resized(frame, size, (0.3, 0.5), row) for row in draws]
    for box in boxes:
        assert 0 <= box.top <= 200 - box.height
        assert 0 <= box.left <= 300 - box.width
        assert 0.29 < box.height * box.width / 60_000 < 0.51
        assert 0.74 * 1.5 < box.width / box.height < 1.35 * 1.5
    assert len({box.top for box in boxes}) > 50


@pytest.mark.parametrize("frame", [(90, 160), (100, 400), (400, 100), (50, 1000)])
@pytest.mark.parametrize("size", [(16, 16), (8, 24), (24, 8)])
def test_random_resized_crops_of_wide_frames_are_not_stretched(frame, size):
    """Evaluation shows boxes of the input's shape; training those within 3/4 to 4/3 of it."""
    draws = torch.rand(200, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).tolist()
    for row in draws:
        box = crops.random_resized(frame, size, (0.5, 1.0), row)
        assert 0 <= box.top <= frame[0] - box.height
        assert 0 <= box.left <= frame[1] - box.width
        edge = 1 + 0.5 / min(box.height, box.width)  # whole pixels
        assert 3 / 4 / edge**2 <= box.width / box.height * size[0] / size[1] <= 4 / 3 * edge**2


@pytest.mark.parametrize("frame", [(40, 100), (100, 40), (64, 64)])
@pytest.mark.parametrize("size", [(16, 16), (8, 24), (24, 8)])
def test_views_lie_along_the_longer_side(frame, size):
    left, middle, right = (crops.placed(frame, size, 1.0, place) for place in (0.0, 0.5, 1.0))
    assert left[2:] == middle[2:] == right[2:]
    assert abs(left.width / left.height - size[1] / size[0]) < 0.2 * size[1] / size[0]
    assert (left.top, left.left) == (0, 0)
    assert (right.top + right.height, right.left + right.width) == frame
    assert abs(2 * middle.top - left.top - right.top) <= 1
    assert abs(2 * middle.left - left.left - right.left) <= 1


def test_files_are_decoded_no_larger_than_needed(film, source, monkeypatch):
    film("a.mp4", size=(96, 128))
    asked = []
    from mim_video import data

    real = data.open_reader

    def spy(*given):
        reader = real(*given)
        frames_at = reader.frames_at
        reader.frames_at = lambda indices, size=None: asked.append((list(indices), size)) or frames_at(indices, size)
        return reader

    monkeypatch.setattr(data, "open_reader", spy)
    source(crop="centre").read(0, 1)
    assert asked[-1][1] == (16, 22)
    source(size=(96, 96), crop="centre").read(0, 1)
    assert asked[-1][1] is None
    source(repeat=4, repeat_start="same").read(0, 1)
    assert len(asked) == 3  # opened and decoded once
    assert len(asked[-1][0]) == 4
    source(repeat=4).read(0, 1)
    assert len(asked) == 4
    assert 4 < len(asked[-1][0]) == len(set(asked[-1][0])) <= 16


def test_a_crop_of_smaller_frames_is_that_of_full_ones(film, source):
    """What decoding at the size needed changes is a matter of interpolation, not of place."""
    film("a.mp4", size=(96, 128))
    clips = source(frames=2, size=(24, 24))
    for key in range(10):
        video = clips.read(0, key)["video"].float()
        ramp = video[0, 0].mean(0)
        slope = float(ramp[-3] - ramp[2]) / (len(ramp) - 5)  # per pixel of the clip; 40 / 128 per pixel of the file
        assert 0.6 < slope / (40 / 128) * 24 / 96 < 1.08, key


@pytest.mark.parametrize(("frames", "size"), [(1, (16, 16)), (6, (32, 16)), (16, (24, 40)), (40, (80, 64))])
def test_any_length_and_size(film, source, frames, size):
    film("x/a.mp4")
    film("y/b.mp4", size=(64, 48))
    clips = source(frames=frames, size=size)
    for index in (0, 1):
        sample = clips.read(index, 3)
        assert sample["video"].shape == (3, frames, *size)
        assert sample["video"].dtype == torch.uint8
        assert clips.labelled("train").items[index]["video"].shape == (3, frames, *size)
    assert set(clips.controls()) == (set() if frames == 1 else {"first frame only", "shuffled frames"})


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_finish(film, source):
    film("a.mp4")
    clips = source(mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    video = clips.read(0, 1)["video"][None]
    done = clips.finish({"video": video, "index": torch.tensor([0])})["video"]
    assert done.dtype == torch.float32
    assert torch.allclose(done[:, 1] * 0.25 + 0.25, video[:, 1] / 255)
    assert torch.allclose(clips.raw({"video": done}), (video / 255).flatten(1), atol=1e-6)


def test_repeated_clips_become_samples_with_keys_of_their_own(film, source):
    film("a.mp4")
    film("b.mp4")
    batch = collate([KeyedDataset(source(repeat=3))[request] for request in next(iter(KeyedBatches(2, 2, 0, 0, 2)))])
    assert batch.sample["video"].shape == (2, 3, 3, 4, 16, 16)
    done = source(repeat=3).finish(batch.sample)
    assert done["video"].shape == (6, 3, 4, 16, 16)
    assert done["index"].tolist() == batch.sample["index"].repeat_interleave(3).tolist()
    assert len(set(done["key"].tolist())) == 6
    assert len({clip.numpy().tobytes() for clip in done["video"]}) == 6
    again = source(repeat=3).finish(batch.sample)
    assert torch.equal(again["key"], done["key"])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_change_nothing(film, source, method):
    for i in range(4):
        film(f"{i}.mp4", frames=12)
    (film("4.mp4")).write_bytes(b"no video")
    clips = source()

    def batches(workers):
        context = method if workers else None
        sampler = KeyedBatches(len(clips), 5, seed=1, first=5, last=20)
        return list(
            torch.utils.data.DataLoader(
                KeyedDataset(clips),
                batch_sampler=sampler,
                num_workers=workers,
                collate_fn=collate,
                multiprocessing_context=context,
            )
        )

    here, there = batches(0), batches(2)
    assert len(here) == 3
    for one, other in zip(here, there, strict=True):
        assert one.skipped == other.skipped
        assert {path for path, _ in one.skipped} == {"4.mp4"}
        for name in ("video", "key", "index"):
            assert torch.equal(one.sample[name], other.sample[name])


def test_bad_files_are_named_and_replaced(film, source, tmp_path):
    whole = film("a.mp4").read_bytes()
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("I am a text.")
    (tmp_path / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "picture.avi").write_bytes(b"RIFF")
    clips = source()
    names = [clips.name_of(i) for i in range(len(clips))]
    assert names == ["a.mp4", "empty.mp4", "picture.avi", "text.mp4", "truncated.mp4"]
    for index in range(1, 5):
        with pytest.raises(BadSample) as caught:
            clips.read(index, 0)
        assert caught.value.path == names[index]
        assert caught.value.reason
    dataset = KeyedDataset(clips)
    for batch in KeyedBatches(5, 1, 0, 0, 10):
        sample, skipped = dataset[batch[0]]
        assert torch.equal(sample["video"], clips.read(0, batch[0].key)["video"])
        assert (len(skipped) > 0) == (batch[0].index != 0)


def test_a_file_that_is_gone(film, source):
    path = film("a.mp4")
    clips = source()
    path.unlink()
    with pytest.raises(BadSample, match=r"a\.mp4.*no such file"):
        clips.read(0, 0)


# ---- evaluation ------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_classes(film):
    for label in ("jump", "run"):
        film(f"train/{label}/a.mp4", frames=21)
        film(f"test/{label}/b.mp4", frames=21)


def test_one_view_in_the_middle(two_classes, source):
    test = source(size=(48, 64)).labelled("test")
    assert len(test.items) == len(test.labels) == 2
    assert numbers(test.items[0]["video"]) == [7, 9, 11, 13]


def test_views(two_classes, source):
    test = source(size=(48, 48), views=(5, 3)).labelled("test")
    assert (test.labels.tolist(), test.views) == ([0, 1], 15)
    assert len(test.items) == 30
    assert "the mean over 15 views" in test.note
    shown = [test.items[i]["video"] for i in range(15)]
    starts = [
        round((float(clip[0, 0, :, 24].float().mean()) - (15, 20, 25)[i % 3]) / STEP) for i, clip in enumerate(shown)
    ]
    # as VideoMAE has them: every second frame is taken first, and a view starts at a whole one of these
    assert starts == [0] * 3 + [2] * 3 + [6] * 3 + [10] * 3 + [14] * 3
    left, middle, right = (float(clip[0, 0].float().mean()) for clip in shown[:3])
    assert left + 3 < middle < right - 3


def test_features_of_two_views_are_the_mean_of_both(two_classes, source, tmp_path):
    (tmp_path / "test/run/bad.mp4").write_bytes(b"no video")
    method = build_method(load_recipe("video:videomae-vit-tiny", installed(), twin=True))
    clips = source(frames=8, size=(32, 32), views=(2, 1))
    test, config, cpu = clips.labelled("test"), EvaluateConfig(batch_size=3), torch.device("cpu")
    for network in (None, method):
        both = extract(network, clips, test, config, cpu)
        first, last = (
            extract(network, clips, replace(test, items=Subset(test.items, range(view, 6, 2)), views=1), config, cpu)
            for view in (0, 1)
        )
        assert (first - last)[:2].abs().max() > 0.01
        assert torch.allclose(both, (first + last) / 2, atol=1e-5, equal_nan=True)
        assert both.isnan().any(dim=1).tolist() == [False, False, True]


def test_controls(two_classes, source):
    clips = source(frames=8)
    items = clips.labelled("test").items
    batch = {"video": torch.stack([items[0]["video"], items[1]["video"]]), "index": torch.tensor([0, 1])}
    ready = clips.finish(batch)
    still, mixed = first_frame(ready)["video"], shuffle(ready)["video"]
    assert torch.equal(still, ready["video"][:, :, :1].expand_as(still))
    assert torch.equal(shuffle(ready)["video"], mixed)
    assert not torch.equal(mixed, ready["video"])
    for clip, original in zip(mixed, ready["video"], strict=True):
        order = [next(j for j in range(8) if torch.equal(clip[:, i], original[:, j])) for i in range(8)]
        assert sorted(order) == list(range(8))
    alone = shuffle({"video": ready["video"][1:], "index": torch.tensor([1])})["video"]
    assert torch.equal(alone, mixed[1:])  # the batch does not matter


def test_pictures(two_classes, source):
    clips = source(frames=10, size=(20, 30))
    values = clips.finish({"video": clips.labelled("test").items[0]["video"][None]})["video"][0]
    strip = Image.open(io.BytesIO(clips.picture("video", values).content))
    assert strip.size == (8 * 120 + 7 * 2, 80)
    gif = Image.open(io.BytesIO(clips.animation("video", values).content))
    assert (gif.n_frames, gif.size) == (10, (120, 80))  # Pillow makes one of frames that are the same
    pixels = np.asarray(strip).astype(int)
    assert pixels[40, 60, 0] < pixels[40, 7 * 122 + 60, 0] - 8 * STEP  # from dark to bright


# ---- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stride": 0}, "stride must be at least 1"),
        ({"repeat": 0}, "repeat must be at least 1"),
        ({"fps": 0.0}, "fps must be positive"),
        ({"fps": 5.0, "segments": True}, "exclude each other"),
        ({"views": (0, 3)}, "views must be two counts"),
        ({"views": (10**9, 10**9)}, "1,000 views at most"),
        ({"scales": (1.5,)}, "scales must be shares"),
        ({"area": (0.5, 0.2)}, "area must be two rising shares"),
        ({"flip": 2.0}, "flip must lie in"),
        ({"max_bad": -1.0}, "max_bad must lie in"),
        ({"evaluate_crop": 0.0}, "evaluate_crop must lie in"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be positive"),
        ({"mean": (0.5,)}, "need 3 values each"),
    ],
)
def test_options_are_checked(film, source, options, said):
    film("a.mp4", frames=1)
    with pytest.raises(ValueError, match=said):
        source(**options)


def test_shapes_are_checked(film, tmp_path):
    film("a.mp4", frames=1)
    with pytest.raises(
        ValueError, match=r"'video' \[C, T, H, W\], C 1 .grey. or 3 .colour.; the tokenizer wants image \(3, 8, 8\)"
    ):
        Clips(Clips.Config(root=tmp_path), {"image": (3, 8, 8)})


def test_grey(film, tmp_path):
    film("a.mp4", frames=12)
    clips = Clips(Clips.Config(root=tmp_path, stride=1, crop="centre"), {"video": (1, 4, 48, 64)})
    sample = {"video": clips.read(0, 3)["video"][None]}
    assert sample["video"].shape == (1, 1, 4, 48, 64)
    first, *others = numbers(sample["video"][0])
    assert others == [first + 1, first + 2, first + 3]
    ready = clips.finish(sample)["video"]
    assert torch.allclose(ready * 0.5 + 0.5, sample["video"] / 255)
    assert clips.picture("video", ready[0]).media_type == "image/png"


def test_a_reader_that_is_not_there_stops_the_run(film, source, monkeypatch):
    film("a.mp4", frames=1)
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(MimError, match="decord"):
        source(reader="decord").read(0, 0)
