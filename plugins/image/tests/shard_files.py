"""Tar files of images, made as webdataset names them."""

import io
import tarfile

import numpy as np
from PIL import Image


def picture(seed=0, size=(40, 30), kind="png"):
    """Noise, as the content of a file."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def add(file, name, content=b"", **facts):
    """One member."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for fact, value in facts.items():
        setattr(member, fact, value)
    file.addfile(member, io.BytesIO(content))


def write(path, members, **options):
    """A tar file of (name, content)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as file:
        for name, content in members:
            add(file, name, content)
    return path


def samples(numbers, classes=2):
    """A picture and a class for each number."""
    for i in numbers:
        yield f"{i:03}.png", picture(i)
        if classes:
            yield f"{i:03}.cls", str(i % classes).encode()


def names(source):
    return [source.name_of(i) for i in range(len(source))]
