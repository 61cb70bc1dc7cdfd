"""Small folders that are laid out as the data sets of the papers are, with their names and their kinds of files."""

import csv
import json

import av
import h5py
import numpy as np
from PIL import Image

TRAIN, TEST = 4, 2
"""Items of each class for training, and held out."""
SIZE = (48, 64)


def noise(*seed):
    return np.random.default_rng([sum(str(each).encode()) for each in seed])


def picture(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(path.name).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def imagenet(root):
    """ILSVRC2012: folders of synsets, the validation pictures sorted into them."""
    for number, synset in enumerate(("n01440764", "n01443537")):
        for i in range(TRAIN):
            picture(root / "train" / synset / f"{synset}_{10 * i + 26}.JPEG")
        for i in range(TEST):
            picture(root / "val" / synset / f"ILSVRC2012_val_{number + 2 * i + 293:08}.JPEG")


def coco(root):
    """COCO 2017: categories whose ids have gaps, polygons, a crowd, a picture without objects."""
    (root / "annotations").mkdir(parents=True)
    (root / "annotations/captions_train2017.json").write_text(json.dumps({"images": [], "annotations": []}))
    categories = [{"supercategory": "person", "id": 1, "name": "person"},
                  {"supercategory": "furniture", "id": 90, "name": "toothbrush"}]  # fmt: skip
    for split, count in (("train", 2 * TRAIN), ("val", 2 * TEST)):
        images, rows = [], []
        for i in range(count):
            number = 139 + 7 * i
            picture(root / f"{split}2017" / f"{number:012}.jpg")
            images.append({"id": number, "file_name": f"{number:012}.jpg", "height": SIZE[0], "width": SIZE[1]})
            x, y, w, h = 4.0 + i, 5.0, 20.5, 24.25
            common = {"image_id": number, "bbox": [x, y, w, h], "area": w * h}
            outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            one = {**common, "id": 10 * i, "category_id": (1, 90)[i % 2], "segmentation": outline, "iscrowd": 0}
            crowd = {"counts": [100, SIZE[0] * SIZE[1] - 100], "size": list(SIZE)}
            rows += [one] if i % 4 < 3 else []
            if i % 4 == 1:
                rows.append({**one, "id": 10 * i + 1, "segmentation": crowd, "iscrowd": 1})
        content = {"info": {}, "licenses": [], "images": images, "annotations": rows, "categories": categories}
        (root / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))


def clip(path, frames=12):
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = {".mp4": "libx264", ".avi": "mpeg4", ".webm": "libvpx"}[path.suffix]
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=12)
        (stream.height, stream.width), stream.pix_fmt = SIZE, "yuv420p"
        for values in noise(path.name).integers(0, 256, (frames, 1, 1, 3), dtype=np.uint8):
            frame = np.ascontiguousarray(np.broadcast_to(values, (*SIZE, 3)))
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        file.mux(stream.encode())


def kinetics(root):
    """Kinetics-400: trimmed clips in folders of classes, and the lists."""
    for split, count in (("train", TRAIN), ("val", TEST)):
        rows = []
        for label in ("abseiling", "riding a bike"):
            for i in range(count):
                name = f"{label[:1]}-{split}_{i}".ljust(11, "0")
                clip(root / split / label.replace(" ", "_") / f"{name}_{i:06}_{i + 10:06}.mp4")
                rows.append([label, name, i, i + 10, split])
        with open(root / f"{split}.csv", "w", newline="") as file:
            csv.writer(file).writerows([["label", "youtube_id", "time_start", "time_end", "split"], *rows])


def ssv2(root):
    """Something-Something v2: numbered clips, templates of labels."""
    templates = {"Holding [something]": "Holding something", "Moving [something] up": "Moving something up"}
    (root / "labels").mkdir(parents=True)
    labels = {name: str(number) for number, name in enumerate(templates.values())}
    (root / "labels/labels.json").write_text(json.dumps(labels))
    first = 1
    for split, count in (("train", TRAIN), ("validation", TEST)):
        rows = []
        for template in templates:
            for number in range(first, first + count):
                clip(root / "20bn-something-something-v2" / f"{number}.webm")
                rows.append({"id": str(number), "label": "a cup", "template": template, "placeholders": ["a cup"]})
            first += count
        (root / f"labels/{split}.json").write_text(json.dumps(rows))


def ucf101(root):
    """UCF101: groups of clips, the lists of its first split beside it."""
    lists, names = root / "ucfTrainTestlist", ("ApplyEyeMakeup", "YoYo")
    lists.mkdir(parents=True)
    (lists / "classInd.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(names, 1)))
    train, test = "", ""
    for number, name in enumerate(names, 1):
        for group in range(1, TRAIN + TEST + 1):
            file = f"{name}/v_{name}_g{group:02}_c01.avi"
            clip(root / "UCF-101" / file)
            train += f"{file} {number}\n" if group > TEST else ""
            test += f"{file}\n" if group <= TEST else ""
    (lists / "trainlist01.txt").write_text(train)
    (lists / "testlist01.txt").write_text(test)


def modelnet40(root):
    """ModelNet40 with normals, as lines of text and lists."""
    names = ("airplane", "night_stand")
    root.mkdir(parents=True)
    (root / "modelnet40_shape_names.txt").write_text("\n".join(names) + "\n")
    for split, first, count in (("train", 1, TRAIN), ("test", 627, TEST)):
        listed = [f"{name}_{number:04}" for name in names for number in range(first, first + count)]
        (root / f"modelnet40_{split}.txt").write_text("\n".join(listed) + "\n")
        for name in listed:
            path = root / name[:-5] / f"{name}.txt"
            path.parent.mkdir(exist_ok=True)
            np.savetxt(path, noise(name).uniform(-1, 1, (256, 6)), "%.6f", ",")


def scanobjectnn(root):
    """ScanObjectNN: the hardest variant's rows."""
    folder = root / "h5_files/main_split"
    folder.mkdir(parents=True)
    for split, count in (("training", 2 * TRAIN), ("test", 2 * TEST)):
        with h5py.File(folder / f"{split}_objectdataset_augmentedrot_scale75.h5", "w") as file:
            file["data"] = noise(split).normal(size=(count, 2048, 3)).astype(np.float32)
            file["label"] = (np.arange(count) % 2 * 7).astype(np.int32)
            file["mask"] = np.zeros((count, 2048), np.float32)


def shapenetpart(root):
    """ShapeNetPart: lines of a point, its normal and its part; lists of three splits."""
    below = root / "shapenetcore_partanno_segmentation_benchmark_v0_normal"
    (below / "train_test_split").mkdir(parents=True)
    kinds = {"Airplane": ("02691156", 0), "Chair": ("03001627", 12)}
    (below / "synsetoffset2category.txt").write_text("".join(f"{n}\t{synset}\n" for n, (synset, _) in kinds.items()))
    for split, count in (("train", TRAIN - 1), ("val", 1), ("test", TEST)):
        listed = []
        for synset, first in kinds.values():
            for i in range(count):
                draw, name = noise(split, i), f"{synset}/{split}{i}"
                rows = np.concatenate([draw.normal(size=(160, 6)), first + np.arange(160)[:, None] % 4], axis=1)
                (below / synset).mkdir(exist_ok=True)
                np.savetxt(below / f"{name}.txt", rows, "%.6f")
                listed.append(f"shape_data/{name}")
        (below / f"train_test_split/shuffled_{split}_file_list.json").write_text(json.dumps(listed))


def maps(path, high, kind=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = noise(path.name).integers(0, high + 1, (6, 8)).repeat(8, axis=0).repeat(8, axis=1)
    Image.fromarray(values.astype(kind)).save(path)


def ade20k(root):
    """ADE20K (SceneParsing): its own folders; 0 is no class, the 150 classes start at 1."""
    for split, name, count in (("training", "train", 2 * TRAIN), ("validation", "val", 2 * TEST)):
        for i in range(1, count + 1):
            picture(root / "images" / split / f"ADE_{name}_{i:08}.jpg")
            maps(root / "annotations" / split / f"ADE_{name}_{i:08}.png", 150)


def nyu(root):
    """NYUv2 as aligned files: colours, millimetres of 16 bits, 40 classes that start at 1."""
    for split, count in (("train", 2 * TRAIN), ("test", 2 * TEST)):
        for i in range(1, count + 1):
            picture(root / split / "rgb" / f"{i:04}.jpg")
            maps(root / split / "depth" / f"{i:04}.png", 9000, np.uint16)
            maps(root / split / "semseg" / f"{i:04}.png", 40)
