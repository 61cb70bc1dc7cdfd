"""Surveillance footage with abnormal frames, laid out as it lies on disk, and judged frame by frame."""

import json
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from mim_core import MimError, auroc, load_run
from mim_core.cli import main
from mim_core.testing import DataContract
from mim_video.anomaly_data import SurveillanceClips
from PIL import Image
from scipy.io import savemat

SHAPE = (1, 4, 16, 20)


def frame(number, abnormal=False):
    """Grey stripes that move; an abnormal frame has a white box."""
    values = np.full((32, 40), 60, np.uint8)
    values[:, number % 8 :: 8] = 140
    if abnormal:
        values[8:24, 10:30] = 255
    return Image.fromarray(values)


def frames(folder, count, bad=(), ending=".tif"):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        frame(i, i in bad).save(folder / f"{i + 1:03}{ending}")


def film(path, count, bad=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = 40, 32, "yuv420p"
        for i in range(count):
            out.mux(stream.encode(av.VideoFrame.from_image(frame(i, i in bad).convert("RGB"))))
        out.mux(stream.encode())


def ped(root, answers=".m"):
    for i in (1, 2):
        frames(root / f"Train/Train{i:03}", 9)
    frames(root / "Test/Test001", 10, bad=range(5, 8))
    frames(root / "Test/Test002", 6, bad=(0, 5))
    if answers == ".m":
        (root / "Test/UCSDped1.m").write_text(
            "% answers\nTestVideoFile = {};\nTestVideoFile{end+1}.gt_frame = [6:8];\n"
            "TestVideoFile{end+1}.gt_frame = [1, 6:6];\n"
        )
    else:
        for name, count, bad in (("Test001", 10, range(5, 8)), ("Test002", 6, (0, 5))):
            folder = root / f"Test/{name}_gt"
            folder.mkdir()
            for i in range(count):
                Image.new("L", (40, 32), 255 if i in bad else 0).save(folder / f"{i + 1:03}.bmp")
    return root


def source(root, shape=SHAPE, **options):
    return SurveillanceClips(SurveillanceClips.Config(root=root, **options), {"video": shape})


def answers(found):
    """Footage and frame -> whether it is abnormal, over all clips of the test split."""
    split, known = found.labelled("test"), {}
    for i in range(len(split.labels)):
        item = split.items[i]
        assert int(item["abnormal"].any()) == int(split.labels[i])
        for number, flag in zip(item["frames"].tolist(), item["abnormal"].tolist(), strict=True):
            known[int(item["footage"]), number] = flag
    return known


class TestContract(DataContract):
    part = "video:anomalies"
    shapes = {"video": SHAPE}
    unsuitable = ({"image": (1, 8, 8)}, {"video": (2, 4, 8, 8)})

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.options = {"root": ped(tmp_path / "ped")}


@pytest.mark.parametrize("kind", [".m", "masks"])
def test_ucsd(tmp_path, kind):
    found = source(ped(tmp_path, kind))
    wanted = {(0, i): int(5 <= i < 8) for i in range(10)} | {(1, i): int(i in (0, 5)) for i in range(6)}
    assert answers(found) == wanted
    assert len(found) == 2 * 3
    assert found.name_of(0) == "Train/Train001 (0-3)"
    assert found.name_of(2) == "Train/Train001 (5-8)"  # the last begins earlier, so that it is whole
    of_first = [f"{tmp_path}/Train/Train001/{i:03}.tif" for i in range(1, 10)]
    assert {*of_first[:4]} <= set(next(found.files_of())) <= {*of_first}  # a frame that is replaced is another file
    item = found.labelled("test").items[1]
    assert item["video"].shape == SHAPE
    assert item["frames"].tolist() == [4, 5, 6, 7]
    assert [int(x.max()) > 220 for x in item["video"][0]] == [False, True, True, True]
    assert "16 frames, 5 of them abnormal" in found.plan()["held out"]


def test_avenue(tmp_path):
    film(tmp_path / "training_videos/01.avi", 9)
    for number, bad in ((1, (2, 3)), (2, ())):
        film(tmp_path / f"testing_videos/{number:02}.avi", 8, bad)
        masks = np.empty((1, 8), dtype=object)
        for i in range(8):
            masks[0, i] = np.asarray(mask(i in bad)) // 255
        target = tmp_path / f"ground_truth_demo/testing_label_mask/{number}_label.mat"
        target.parent.mkdir(parents=True, exist_ok=True)
        savemat(target, {"volLabel": masks})
    found = source(tmp_path, (3, 4, 16, 20))
    assert answers(found) == {(n, i): int(n == 0 and i in (2, 3)) for n in (0, 1) for i in range(8)}
    clip = found.labelled("test").items[0]["video"]
    assert clip.shape == (3, 4, 16, 20)
    assert [int(clip[:, t].float().amax()) > 220 for t in range(4)] == [False, False, True, True]
    assert [int(frame.sum()) for frame in found.labelled("test").items[0]["truth"]] == [0, 0, 80, 80]
    assert len(found) == 3
    assert found.read(1, 5)["video"].shape == (3, 4, 16, 20)
    savemat(target, {"volLabel": np.zeros((32, 40, 8))})
    with pytest.raises(MimError, match="a cell of masks, one for each frame, named volLabel"):
        source(tmp_path)
    target.write_text("no such file")
    with pytest.raises(MimError, match=r"2_label\.mat cannot be read as a file of Matlab"):
        source(tmp_path)
    target.unlink()
    with pytest.raises(MimError, match=r"02\.avi has no answers"):
        source(tmp_path)


def test_shanghaitech(tmp_path):
    film(tmp_path / "training/videos/01_001.avi", 9)
    frames(tmp_path / "testing/frames/01_0014", 7, bad=(1, 2), ending=".jpg")
    frames(tmp_path / "testing/frames/02_0128", 4, ending=".jpg")
    folder = tmp_path / "testing/test_frame_mask"
    folder.mkdir()
    np.save(folder / "01_0014.npy", np.array([0, 1, 1, 0, 0, 0, 0], np.int8))
    np.save(folder / "02_0128.npy", np.zeros(4, np.int8))
    found = source(tmp_path)
    assert answers(found) == {(0, i): int(i in (1, 2)) for i in range(7)} | {(1, i): 0 for i in range(4)}
    np.save(folder / "02_0128.npy", np.zeros(5, np.int8))
    with pytest.raises(MimError, match=r"02_0128 has 4 frames, and answers for 5"):
        source(tmp_path)
    np.save(folder / "02_0128.npy", np.full(4, np.nan))
    with pytest.raises(MimError, match=r"02_0128\.npy should say 0 or 1 of each frame"):
        source(tmp_path)


def test_a_video_shorter_than_a_clip(tmp_path):
    ped(tmp_path)
    found = source(tmp_path, (1, 16, 16, 20))
    assert found.labelled("test").items[1]["frames"].tolist() == [0, 1, 2, 3, 4, 5, *[5] * 10]
    assert len(answers(found)) == 16


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: (root / "Test/UCSDped1.m").unlink(), "nothing says which frames are abnormal"),
        (lambda root: (root / "Test/UCSDped1.m").write_text("gt_frame = [1:2];"), "answers for 1 video"),
        (
            lambda root: (root / "Test/UCSDped1.m").write_text("gt_frame = [6:8]; gt_frame = [5:7];"),
            "calls frames 5 to 7 of Test002 abnormal; it has 6",
        ),
        (lambda root: [p.unlink() for p in root.glob("Train/*/*")], "holds no training footage"),
    ],
)
def test_collections_that_do_not_fit(tmp_path, spoil, words):
    spoil(ped(tmp_path))
    with pytest.raises(MimError, match=words):
        source(tmp_path)


def test_other_folders(tmp_path):
    with pytest.raises(MimError, match="no collection of surveillance footage"):
        source(tmp_path)
    ped(tmp_path / "UCSDped2")
    with pytest.raises(MimError, match="holds UCSDped2; each is trained alone"):
        source(tmp_path)


# ---- where frames are abnormal ---------------------------------------------------------------------------------------


def mask(bad, box=(10, 8, 30, 24)):
    """Of one frame."""
    image = Image.new("L", (40, 32))
    if bad:
        image.paste(255, box)
    return image


def ped_masks(root, name, count, bad):
    folder = root / f"Test/{name}_gt"
    folder.mkdir()
    for i in range(count):
        mask(i in bad).save(folder / f"{i + 1:03}.bmp")


def test_ped1_has_masks_of_some_videos(tmp_path):
    ped_masks(ped(tmp_path), "Test001", 10, range(5, 8))
    found = source(tmp_path)
    assert "1 of the videos with masks" in found.plan()["held out"]
    split = found.labelled("test")
    first = split.items[1]["truth"]  # frames 4 to 7
    assert (first.dtype, first.shape) == (torch.int8, (4, 16, 20))
    assert [int(frame.sum()) for frame in first] == [0, 80, 80, 80]
    assert first[1, 4:12, 5:15].all()
    assert {int(v) for i in (3, 4) for v in split.items[i]["truth"].unique()} == {-1}
    (tmp_path / "Test/Test001_gt/010.bmp").unlink()
    with pytest.raises(MimError, match=r"has 10 frames, and .*Test001_gt 9 masks"):
        source(tmp_path)


def test_a_mask_of_another_size(tmp_path):
    ped(tmp_path, "masks")
    Image.new("L", (41, 32)).save(tmp_path / "Test/Test002_gt/002.bmp")
    split = source(tmp_path).labelled("test")
    with pytest.raises(
        MimError, match=r"002\.bmp: the mask of frame 1 is 41 x 32, and the frames of .*Test002 40 x 32"
    ):
        split.items[3]


def test_masks_of_shanghaitech_are_an_array(tmp_path):
    film(tmp_path / "training/videos/01_001.avi", 9)
    frames(tmp_path / "testing/frames/01_0014", 5, bad=(1,), ending=".jpg")
    for name, values in (
        ("frame", np.array([0, 1, 0, 0, 0])),
        ("pixel", np.stack([np.asarray(mask(i == 1)) // 255 for i in range(5)])),
    ):
        (tmp_path / f"testing/test_{name}_mask").mkdir()
        np.save(tmp_path / f"testing/test_{name}_mask/01_0014.npy", values)
    found = source(tmp_path)
    assert [int(frame.sum()) for frame in found.labelled("test").items[0]["truth"]] == [0, 80, 0, 0]
    np.save(tmp_path / "testing/test_pixel_mask/01_0014.npy", values[:4])
    with pytest.raises(MimError, match=r"has 5 frames, and .*01_0014\.npy masks for 4"):
        source(tmp_path)
    np.save(tmp_path / "testing/test_pixel_mask/01_0014.npy", values[0])
    with pytest.raises(MimError, match="masks of frames are"):
        source(tmp_path)


def test_a_run_is_judged_by_frames(tmp_path):
    ped_masks(ped(tmp_path / "ped"), "Test001", 10, range(5, 8))
    tokens = ("--tokenizer.size", 4, 16, 24, "--tokenizer.patch", 2, 8, 8, "--tokenizer.channels", 1)
    data = ("--use", "data=video:anomalies", "--data.root", tmp_path / "ped", "--train.steps", 2)
    begin = ("pretrain", "videomae-vit-tiny", "--twin", "--quiet", "--out", tmp_path / "run")
    assert main([*map(str, (*begin, *data, "--train.batch-size", 2, *tokens))], plugin="video") == 0
    assert main(["evaluate", str(tmp_path / "run"), "--on", "video:anomaly"], plugin="video") == 0
    content = json.loads((tmp_path / "run/scores.json").read_text())
    found = {(s["row"], s["column"]): s["value"] for s in content["scores"]}
    assert {row for row, _ in found} == {"chance", "raw input", "untrained encoder", "pre-trained encoder"}
    assert len({column for _, column in found}) == 6
    assert found["chance", "pixel AP"] == pytest.approx(3 * 8 * 12 / (10 * 16 * 24))
    assert found["raw input", "pixel AUROC"] > 0.9
    assert found["raw input", "frame AUROC, mean"] > 0.9
    assert any("16 frames of 2 videos judged, 5 of them abnormal" in note for note in content["notes"])
    assert any(f"{10 * 16 * 24:,} pixels judged" in note for note in content["notes"])  # of Test001, each frame once
    check_by_hand(tmp_path / "run", found)
    check_new_footage(tmp_path)


def check_new_footage(root):
    """The same videos without what is known of them: a film, and a folder of frames beside its masks."""
    film(root / "ped/Test/more/one.avi", 6)
    command = ("predict", root / "run", root / "ped/Test", "--anomaly", "--quiet", "--out", root / "out")
    assert main(list(map(str, command)), plugin="video") == 0
    lines = (root / "out/predictions.csv").read_text().splitlines()[1:]
    wanted = [*(f"Test00{n} ({a}-{a + 3})" for n, a in ((1, 0), (1, 4), (1, 6), (2, 0), (2, 2)))]
    assert [line.split(",")[0] for line in lines] == [*wanted, "more/one.avi (0-3)", "more/one.avi (2-5)"]
    assert np.load(root / "out/more/one (2-5)-scores.npy").shape == (4, 16, 24)
    with pytest.raises(MimError, match="nothing says what is abnormal"):
        source(root / "ped/Test", splits=False).labelled("test")
    (root / "none").mkdir()
    with pytest.raises(MimError, match="holds no footage"):
        source(root / "none", splits=False)


def check_by_hand(run, found):
    """The scores of frames, from one clip after the other; frames in two clips have the mean."""
    from mim_core.evaluation.anomaly_maps import score_maps

    opened = load_run(run)
    split, method = opened.source().labelled("test"), opened.method.eval()
    scores, flags, places = {}, {}, {}
    for i in range(len(split.labels)):
        item = split.items[i]
        maps = score_maps(method, {"video": opened.source().finish({"video": item["video"][None]})["video"]}, 4)
        for t, number in enumerate(item["frames"].tolist()):
            scores.setdefault((int(item["footage"]), number), []).append(float(maps[0, t].mean()))
            flags[int(item["footage"]), number] = int(item["abnormal"][t])
            if int(item["footage"]) == 0:
                places.setdefault(number, (maps[0, t].flatten(), item["truth"][t].flatten()))
    means = torch.tensor([sum(each) / len(each) for each in scores.values()])
    wanted = auroc(means, torch.tensor(list(flags.values())))
    assert found["pre-trained encoder", "frame AUROC, mean"] == pytest.approx(wanted, abs=1e-6)
    scores_of, truth = (torch.cat([each[k] for each in places.values()]) for k in (0, 1))
    assert found["pre-trained encoder", "pixel AUROC"] == pytest.approx(auroc(scores_of, truth), abs=1e-3)
