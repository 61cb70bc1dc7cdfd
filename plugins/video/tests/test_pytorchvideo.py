"""The adapter to pytorchvideo: with the library itself where it is installed, else with items of its form."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from mim_core.errors import BadSample, MimError
from mim_video.pytorchvideo_adapter import ClipSamples, files_of, levels, pytorchvideo_data
from mim_video.readers import open_reader

sys.path.insert(0, str(Path(__file__).parent))

from numbered_videos import Kind, encode, number_of


class StandIn:
    """The items and the list of LabeledVideoDataset, without pytorchvideo."""

    def __init__(self, paths, skip=()):
        self._labeled_videos = [(str(path), {"label": i % 2}) for i, path in enumerate(paths)]
        self.skip = skip

    def __iter__(self):
        for i, (path, known) in enumerate(self._labeled_videos):
            if i in self.skip:
                continue
            with open_reader(Path(path)) as reader:
                clip = reader.frames_at(range(25)).permute(3, 0, 1, 2).float()
            yield {
                "video": clip,
                "video_name": Path(path).name,
                "video_index": i,
                "clip_index": 0,
                "aug_index": 0,
                **known,
            }


def real(paths):
    data = pytorchvideo_data()
    return data.LabeledVideoDataset(
        [(str(path), {"label": i % 2}) for i, path in enumerate(paths)],
        clip_sampler=data.make_clip_sampler("uniform", 1.0),
        video_sampler=torch.utils.data.SequentialSampler,
        decode_audio=False,
    )


INSTALLED = importlib.util.find_spec("pytorchvideo") is not None
MAKERS = [StandIn, pytest.param(real, marks=pytest.mark.skipif(not INSTALLED, reason="pytorchvideo is missing"))]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return [encode(folder / name, Kind(f"{name}.mp4", frames=30)) for name in ("a", "b", "c")]


@pytest.mark.parametrize("make", MAKERS)
def test_items_become_samples(make, paths):
    samples = list(ClipSamples(make(paths), frames=5, size=(48, 64)))
    assert len(samples) == 3
    for i, sample in enumerate(samples):
        assert sample["video"].shape == (3, 5, 48, 64)
        assert sample["video"].dtype == torch.uint8
        assert sample["label"] == i % 2
        numbers = [number_of(frame) for frame in sample["video"].permute(1, 2, 3, 0).numpy()]
        assert numbers[0] == 0
        assert numbers == sorted(set(numbers))
        assert abs(numbers[-1] - 24) <= 1


@pytest.mark.parametrize("make", MAKERS)
def test_files_are_read_by_our_readers(make, paths):
    store = files_of(make(paths))
    assert [store.root / file for file in store.files] == paths
    assert list(store.labels) == [0, 1, 0]
    assert store.classes == ("0", "1")


@pytest.mark.parametrize("make", [lambda paths: StandIn(paths, skip=(1,)), *MAKERS[1:]])
def test_videos_passed_over_are_named(make, paths, tmp_path):
    bad = tmp_path / "b.mp4"
    bad.write_bytes(b"no video" * 50)
    samples = ClipSamples(make([paths[0], bad, paths[2]]), frames=2)
    assert len(list(samples)) == 2
    assert samples.unread() == [str(bad)]


def test_wrong_values_and_shapes_are_told(paths):
    noise = torch.rand(3, 2, 4, 4)
    assert torch.equal(levels(noise * 255, "x"), (noise * 255).round().to(torch.uint8))
    assert torch.equal(levels(noise, "x"), (noise * 255).round().to(torch.uint8))
    with pytest.raises(MimError, match="leave normalisation out"):
        levels(noise * 4 - 2, "x")
    with pytest.raises(BadSample, match="shape"):
        list(ClipSamples([{"video": torch.rand(3, 4, 4), "video_name": "x"}]))
    with pytest.raises(MimError, match="no LabeledVideoDataset"):
        files_of([1, 2])


def test_missing_library_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorchvideo.data", None)
    with pytest.raises(MimError, match=r"mim-video\[pytorchvideo\]"):
        pytorchvideo_data()
