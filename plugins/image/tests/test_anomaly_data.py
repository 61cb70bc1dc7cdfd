"""Collections with anomalies, laid out as they lie on disk."""

import csv
import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from mim_core import MimError
from mim_core.testing import DataContract
from mim_image.anomaly_data import Anomalies
from PIL import Image

SIZE = (24, 20)


def picture(path, colour=120, size=(40, 30), box=None, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new(mode, size, colour if mode == "L" else (colour, colour, 10))
    for x in range(0, size[0], 5) if colour else ():  # masks are plain
        image.putpixel((x, (x * 7 + colour) % size[1]), 255 if mode == "L" else (255, 0, 255))
    if box:
        image.paste(255 if mode == "L" else (255, 255, 255), box)
    image.save(path)


def mvtec(root, good="good", bad=("crack", "hole"), suffix="_mask", ending=".png"):
    for i in range(5):
        picture(root / f"train/{good}/{i:03}{ending}", 100 + i)
    for i in range(3):
        picture(root / f"test/{good}/{i:03}{ending}", 110 + i)
    for defect in bad:
        for i in range(2):
            picture(root / f"test/{defect}/{i:03}{ending}", 105 + i, box=(8, 6, 24, 18))
            picture(root / f"ground_truth/{defect}/{i:03}{suffix}.png", 0, box=(8, 6, 24, 18))
    return root


def source(root, channels=1, **options):
    return Anomalies(Anomalies.Config(root=root, **options), {"image": (channels, *SIZE)})


def refused(*arguments, **options):
    with pytest.raises(MimError) as error:
        read_all(*arguments, **options)
    return str(error.value)


def read_all(*arguments, **options):
    split = source(*arguments, **options).labelled("test")
    return [split.items[i] for i in range(len(split.labels))]


class TestContract(DataContract):
    part = "image:anomalies"
    shapes = {"image": (1, *SIZE)}
    unsuitable = ({"image": (2, 8, 8)}, {"video": (3, 8, 8)})

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.options = {"root": mvtec(tmp_path / "bottle"), "crop": (0.5, 1.0)}


def test_mvtec(tmp_path):
    found = source(mvtec(tmp_path))
    assert [found.name_of(i) for i in range(len(found))] == [f"train/good/{i:03}.png" for i in range(5)]
    split = found.labelled("test")
    assert split.classes == ("normal", "abnormal")
    by_name = dict(zip(split.names, split.labels.tolist(), strict=True))
    assert by_name["test/good/001.png"] == 0
    assert by_name["test/crack/000.png"] == by_name["test/hole/001.png"] == 1
    assert sum(by_name.values()) == 4
    assert len(by_name) == 7
    truths = {name: split.items[i]["truth"] for i, name in enumerate(split.names)}
    assert {int(truth.sum()) for name, truth in truths.items() if "good" in name} == {0}
    truth = truths["test/crack/000.png"]  # 40 x 30 with (8, 6, 24, 18) abnormal, at 20 x 24
    assert truth.shape == SIZE
    assert truth[int(6 * 0.8) + 1 : int(18 * 0.8), 4:12].all()
    assert int(truth.sum()) == pytest.approx(8 * 9.6, abs=9)
    assert "truth" not in found.labelled("train").items[0]
    assert "4 of them abnormal, 4 with masks" in found.plan()["held out"]
    assert found.contents()["splits"].startswith("train/good for training (5)")


def test_the_whole_picture_is_shown(tmp_path):
    """A defect at the very edge of a wide picture is not cut away."""
    picture(tmp_path / "train/good/0.png", 100, (200, 30))
    picture(tmp_path / "test/good/0.png", 100, (200, 30))
    picture(tmp_path / "test/edge/0.png", 100, (200, 30), (180, 0, 200, 30))
    picture(tmp_path / "ground_truth/edge/0_mask.png", 0, (200, 30), (180, 0, 200, 30))
    split = source(tmp_path).labelled("test")
    item = split.items[list(split.names).index("test/edge/0.png")]
    assert item["truth"][:, 18:].all()
    assert not item["truth"][:, :17].any()
    assert int(item["image"][0, :, 19].min()) > 240


def test_btad(tmp_path):
    """Folders ok and ko, bitmaps, masks of the same name, in any format."""
    root = mvtec(tmp_path / "01", "ok", ("ko",), "", ".bmp")
    split = source(root).labelled("test")
    assert split.labels.tolist() == [1, 1, 0, 0, 0]
    assert [int(split.items[i]["truth"].any()) for i in range(5)] == [1, 1, 0, 0, 0]


def visa(root, masks=True):
    rows = [["object", "split", "label", "image", "mask"]]
    for name in ("candle", "pcb1"):
        for i in range(4):
            path = f"{name}/Data/Images/Normal/{i:04}.JPG"
            picture(root / path, 100 + i, mode="RGB")
            rows.append([name, "train" if i < 3 else "test", "normal", path, ""])
        for i in range(2):
            path, mask = f"{name}/Data/Images/Anomaly/{i:03}.JPG", f"{name}/Data/Masks/Anomaly/{i:03}.png"
            picture(root / path, 90, box=(0, 0, 20, 15), mode="RGB")
            target = root / mask
            target.parent.mkdir(parents=True, exist_ok=True)
            values = np.zeros((30, 40), np.uint8)
            values[:15, :20] = i + 1  # kinds of defects, not 255
            Image.fromarray(values).save(target)
            rows.append([name, "test", "anomaly", path, mask if masks else ""])
    (root / "split_csv").mkdir()
    with open(root / "split_csv/1cls.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root


def test_visa(tmp_path):
    visa(tmp_path)
    found = source(tmp_path, 3, object="pcb1")
    assert len(found) == 3
    assert all(found.name_of(i).startswith("pcb1/Data/Images/Normal") for i in range(3))
    split = found.labelled("test")
    assert split.labels.tolist() == [0, 1, 1]
    assert [float(split.items[i]["truth"].float().mean()) for i in range(3)] == pytest.approx([0, 0.25, 0.25])
    assert "several objects; name one with --data.object: candle, pcb1" in refused(tmp_path, 3)
    assert "no object 'pcb2'. Did you mean 'pcb1'" in refused(tmp_path, 3, object="pcb2")
    (tmp_path / "pcb1/Data/Images/Normal/0001.JPG").unlink()
    assert "1 picture of it missing" in refused(tmp_path, 3, object="pcb1")


def test_visa_without_masks(tmp_path):
    split = source(visa(tmp_path, masks=False), 3, object="candle").labelled("test")
    assert "truth" not in split.items[0]


def test_visa_without_one_mask(tmp_path):
    path = visa(tmp_path) / "split_csv/1cls.csv"
    path.write_text(path.read_text().replace("candle/Data/Masks/Anomaly/001.png", ""))
    assert "names no mask for 1 picture, such as candle/Data/Images/Anomaly/001.JPG. Name them; or none" in refused(
        tmp_path, 3, object="candle"
    )


def test_one_class_of_many(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        for number, name in enumerate(("cat", "dog", "owl")):
            for i in range(count):
                picture(tmp_path / split / name / f"{i}.png", 50 * number + i)
    found = source(tmp_path, normal="dog")
    assert [found.name_of(i) for i in range(len(found))] == [f"train/dog/{i}.png" for i in range(3)]
    split = found.labelled("test")
    assert {name: label for name, label in zip(split.names, split.labels.tolist(), strict=True) if not label} == {
        "test/dog/0.png": 0,
        "test/dog/1.png": 0,
    }
    assert len(split.labels) == 6
    assert len(found.found.pool) == 6
    assert "no class 'dug'. Did you mean 'dog'" in refused(tmp_path, normal="dug")
    assert "no collection of normal and abnormal pictures" in refused(tmp_path)


def test_the_bundled_sample():
    found = Anomalies(Anomalies.Config(root=Path("sample"), normal="bag"), {"image": (1, 28, 28)})
    split = found.labelled("test")
    assert len(found) + len(found.found.pool) == 10_000
    assert len(split.labels) == 2_000
    assert set(split.labels.tolist()) == {0, 1}


def test_idx_files_of_the_users_own(tmp_path):
    for name, n in (("train", 12), ("t10k", 6)):
        pixels = np.arange(n * 16, dtype=np.uint8).reshape(n, 4, 4)
        with gzip.open(tmp_path / f"{name}-images-idx3-ubyte.gz", "wb") as file:
            file.write(struct.pack(">HBB", 0, 8, 3) + struct.pack(">3I", n, 4, 4) + pixels.tobytes())
        with gzip.open(tmp_path / f"{name}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(struct.pack(">HBB", 0, 8, 1) + struct.pack(">I", n) + bytes(i % 3 for i in range(n)))
    found = source(tmp_path, normal="2")
    assert len(found) == 4
    assert found.labelled("test").labels.tolist() == [1, 1, 0, 1, 1, 0]
    assert int(found.splits.pretrain.array[0, 0, 0]) == 32  # the third picture


def x_rays(root, names):
    for i, name in enumerate(names):
        picture(root / name, 60 + i)


def table(path, columns, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def test_nih_with_its_lists(tmp_path):
    names = [f"{i:08}_000.png" for i in range(8)]
    x_rays(tmp_path, [f"images_00{1 + i // 4}/images/{name}" for i, name in enumerate(names)])
    findings = ["No Finding", "Effusion|Mass", *["No Finding"] * 4, "Hernia", "No Finding"]
    rows = [[n, f, 0, i, "058Y"] for i, (n, f) in enumerate(zip(names, findings, strict=True))]
    rows.append(["00000099_000.png", "No Finding", 0, 99, "058Y"])  # not downloaded
    table(tmp_path / "Data_Entry_2017.csv", ["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Age"], rows)
    (tmp_path / "train_val_list.txt").write_text("\n".join(names[:5]))
    (tmp_path / "test_list.txt").write_text("\n".join(names[5:]))
    found = source(tmp_path)
    assert sorted(found.name_of(i) for i in range(len(found))) == [
        *(f"images_001/images/{i:08}_000.png" for i in (0, 2, 3)),
        "images_002/images/00000004_000.png",
    ]
    assert found.labelled("test").labels.tolist() == [0, 1, 0]
    assert found.found.pool.files == ("images_001/images/00000001_000.png",)
    assert any("1 picture of" in line and "not found" in line for line in found.advice())
    (tmp_path / "test_list.txt").write_bytes(b"\xe9.png")
    assert "test_list.txt cannot be read as a list of names" in refused(tmp_path)


def test_nih_without_lists_holds_out_patients(tmp_path):
    names = [f"{i // 2:08}_00{i % 2}.png" for i in range(20)]
    x_rays(tmp_path, names)
    rows = [[n, "Mass" if i % 3 == 0 else "No Finding"] for i, n in enumerate(names)]
    table(tmp_path / "Data_Entry_2017_v2020.csv", ["Image Index", "Finding Labels"], rows)
    found = source(tmp_path)
    patients = [{name.split("_")[0] for name in store.files} for store in (found.found.train, found.found.test)]
    assert not patients[0] & patients[1]
    assert patients[1] == {"00000004", "00000009"}


def test_rsna(tmp_path):
    """Several rows of a picture, one for each box; pictures converted to PNG under the same name."""
    names = [f"{i:04x}-patient" for i in range(10)]
    x_rays(tmp_path, [f"stage_2_train_images/{name}.png" for name in names])
    box = ("512.0", "256.0", "256.0", "512.0", 1)
    boxes = [[n, *(box if i % 2 else ("", "", "", "", 0))] for i, n in enumerate(names)]
    table(tmp_path / "stage_2_train_labels.csv", ["patientId", "x", "y", "width", "height", "Target"], boxes + boxes)
    by_target = source(tmp_path)
    split = by_target.labelled("test")
    assert split.labels.tolist() == [0, 1]
    assert len(by_target) == 4
    assert not split.items[0]["truth"].any()
    assert split.items[1]["truth"][6:18, 10:15].all()  # 24 x 20, of 1,024 x 1,024
    assert int(split.items[1]["truth"].sum()) == 12 * 5
    assert "1 of them abnormal, 1 with boxes" in by_target.plan()["held out"]
    kinds = ["Lung Opacity", "No Lung Opacity / Not Normal", "Normal"]
    table(
        tmp_path / "stage_2_detailed_class_info.csv",
        ["patientId", "class"],
        [[n, kinds[i % 3]] for i, n in enumerate(names)],
    )
    by_class = source(tmp_path)
    split = by_class.labelled("test")
    assert split.labels.tolist() == [1, 1]
    assert {int(v) for v in split.items[0]["truth"].unique()} == {-1}  # not normal, and nobody drew a box
    assert int(split.items[1]["truth"].sum()) == 12 * 5
    assert len(by_class) == 3


def test_boxes_outside_of_pictures(tmp_path):
    x_rays(tmp_path, [f"{i}.png" for i in range(5)])
    for box, words in ((("900", "0", "200", "9"), "900, 0, 200, 9 of 4"), (("9", "", "9", "9"), "does not lie in")):
        rows = [[i, *(box if i == 4 else ("",) * 4), int(i == 4)] for i in range(5)]
        table(tmp_path / "stage_2_train_labels.csv", ["patientId", "x", "y", "width", "height", "Target"], rows)
        assert words in refused(tmp_path)


def test_boxes_of_nih(tmp_path):
    """Its header has a comma within a name."""
    names = [f"{i:08}_000.png" for i in range(5)]
    x_rays(tmp_path, [f"images/{name}" for name in names])
    findings = [[n, "No Finding" if i < 3 else "Mass"] for i, n in enumerate(names)]
    table(tmp_path / "Data_Entry_2017.csv", ["Image Index", "Finding Labels"], findings)
    (tmp_path / "train_val_list.txt").write_text("\n".join(names[:2]))
    (tmp_path / "test_list.txt").write_text("\n".join(names[2:]))
    lines = ["Image Index,Finding Label,Bbox [x,y,w,h],,,", f"{names[4]},Mass,0.0,512.0,512.0,512.0,,,"]
    (tmp_path / "BBox_List_2017.csv").write_text("\n".join(lines))
    split = source(tmp_path).labelled("test")
    assert split.labels.tolist() == [0, 1, 1]
    assert [sorted(map(int, split.items[i]["truth"].unique())) for i in range(3)] == [[0], [-1], [0, 1]]
    assert split.items[2]["truth"][12:, :10].all()


def test_tables_that_do_not_fit(tmp_path):
    picture(tmp_path / "a.dcm.png")
    table(tmp_path / "stage_2_train_labels.csv", ["patientId", "Target"], [["zz", 1]])
    assert "None of the 1 pictures" in refused(tmp_path)
    table(tmp_path / "other.csv", ["name", "label"], [["a", 1]])
    assert "has the columns name, label" in refused(tmp_path, table=tmp_path / "other.csv")
    assert "there is no such file" in refused(tmp_path, table=tmp_path / "gone.csv")


# ---- what is wrong with a collection ---------------------------------------------------------------------------------


def test_the_folder_of_all_objects(tmp_path):
    for name in ("bottle", "cable"):
        mvtec(tmp_path / name)
    said = refused(tmp_path)
    assert "holds 2 objects: bottle, cable" in said
    assert str(tmp_path / "bottle") in said


def test_training_pictures_that_are_not_normal(tmp_path):
    picture(mvtec(tmp_path) / "train/crack/0.png")
    assert "holds good and also crack" in refused(tmp_path)


def test_a_mask_of_another_size(tmp_path):
    picture(mvtec(tmp_path) / "ground_truth/hole/001_mask.png", 0, (41, 30), (0, 0, 5, 5))
    said = refused(tmp_path)
    assert "001_mask.png is 41 x 30, and its picture test/hole/001.png 40 x 30" in said


def test_a_defect_without_masks(tmp_path):
    for path in sorted((mvtec(tmp_path) / "ground_truth/hole").iterdir()):
        path.unlink()
    said = refused(tmp_path)
    assert "has no mask for 2 pictures of test/hole, such as test/hole/000.png" in said
    assert "take ground_truth away" in said


def test_no_masks_at_all_is_right(tmp_path):
    for path in sorted((mvtec(tmp_path) / "ground_truth").rglob("*.png")):
        path.unlink()
    split = source(tmp_path).labelled("test")
    assert "truth" not in split.items[0]
    assert int(split.labels.sum()) == 4


def test_a_mask_that_cannot_be_read(tmp_path):
    (mvtec(tmp_path) / "ground_truth/hole/001_mask.png").write_bytes(b"no picture")
    assert "001_mask.png of test/hole/001.png cannot be read" in refused(tmp_path)


def test_new_files_are_one_collection(tmp_path):
    """As embed and predict read them."""
    found = source(mvtec(tmp_path) / "test", splits=False)
    assert len(found) == len(found.plain().names) == 7
    assert torch.equal(found.plain().items[0]["image"], found.plain().items[0]["image"])
    with pytest.raises(MimError, match="one collection"):
        found.labelled("test")


def test_no_such_folder(tmp_path):
    assert "does not exist" in refused(tmp_path / "gone")
    assert "name the normal one" in refused(Path("sample"))
