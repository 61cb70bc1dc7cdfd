"""DICOM files, as RSNA's chest X-rays are, and of other kinds."""

import io

import numpy as np
import pydicom
import pytest
import torch
from mim_core import BadSample, MimError
from mim_image.anomaly_data import Anomalies
from mim_image.data import Images
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid

RAMP = np.tile(np.arange(16, dtype=np.uint16) * 16, (12, 1))  # 0 to 240


def write(path, values=RAMP, bits=8, packed=False, **more):
    """A file of one image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = pydicom.Dataset()
    about.file_meta = FileMetaDataset()
    about.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    about.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    about.file_meta.TransferSyntaxUID = JPEGBaseline8Bit if packed else ExplicitVRLittleEndian
    about.Rows, about.Columns = values.shape[:2]
    about.SamplesPerPixel = 3 if values.ndim == 3 else 1
    about.PhotometricInterpretation = "RGB" if values.ndim == 3 else "MONOCHROME2"
    if values.ndim == 3:
        about.PlanarConfiguration = 0
    about.BitsStored, about.HighBit, about.BitsAllocated = bits, bits - 1, 8 if bits <= 8 else 16
    about.PixelRepresentation = int(values.dtype.kind == "i")
    content = values.astype(values.dtype if bits > 8 else np.uint8)
    if packed:
        stream = io.BytesIO()
        Image.fromarray(content).save(stream, "JPEG", quality=95)
        about.PixelData = encapsulate([stream.getvalue()])
        about["PixelData"].VR = "OB"
    else:
        about.PixelData = content.tobytes()
    for name, value in more.items():
        setattr(about, name, value)
    about.save_as(path, enforce_file_format=True)
    return path


def read(folder, channels=1):
    """The only image, [C, H, W]."""
    size = np.asarray(RAMP.shape)
    source = Images(Images.Config(root=folder, mean=(0.5,) * channels, std=(0.5,) * channels),
                    {"image": (channels, *map(int, size))})  # fmt: skip
    return source.plain().items[0]["image"].float()


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, RAMP),
        ({"packed": True}, RAMP),
        ({"PhotometricInterpretation": "MONOCHROME1"}, 255 - RAMP),
        ({"values": RAMP * 16, "bits": 12}, RAMP * 16 / 4095 * 255),
        ({"WindowCenter": 128, "WindowWidth": 65}, np.clip((RAMP - 127.5) / 64 + 0.5, 0, 1) * 255),
        ({"WindowCenter": [128, 9], "WindowWidth": [65, 9]}, np.clip((RAMP - 127.5) / 64 + 0.5, 0, 1) * 255),
        (
            {"WindowCenter": 128, "WindowWidth": 64, "VOILUTFunction": "LINEAR_EXACT"},
            np.clip((RAMP - 128.0) / 64 + 0.5, 0, 1) * 255,
        ),
        (
            {"WindowCenter": 128, "WindowWidth": 64, "VOILUTFunction": "SIGMOID"},
            255 / (1 + np.exp(-(RAMP - 128.0) / 16)),
        ),
        (
            {"values": (RAMP.astype(np.int16) - 100), "bits": 16, "RescaleSlope": 2, "RescaleIntercept": 5},
            (RAMP - 100.0 + 32768) / 65535 * 255,
        ),
        (
            {"values": RAMP * 16, "bits": 12, "RescaleSlope": 0.5, "RescaleIntercept": -1024, "WindowCenter": 0,
             "WindowWidth": 2049, "PhotometricInterpretation": "MONOCHROME1"},
            255 - np.clip((RAMP * 8.0 - 1024 + 0.5) / 2048 + 0.5, 0, 1) * 255,
        ),
    ],
)  # fmt: skip
def test_grey_is_what_a_viewer_shows(tmp_path, options, wanted):
    write(tmp_path / "x.dcm", **options)
    torch.testing.assert_close(read(tmp_path)[0], torch.tensor(wanted).float(), atol=2.5, rtol=0)


def test_colour(tmp_path):
    values = np.stack([RAMP, RAMP[:, ::-1], RAMP * 0 + 7], axis=-1).astype(np.uint8)
    write(tmp_path / "x.dcm", values)
    assert torch.equal(read(tmp_path, 3), torch.tensor(values).permute(2, 0, 1).float())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: write(path, NumberOfFrames=2, PixelData=b"\0" * 384), "DICOM file of 2 frames"),
        (lambda path: write(path, Rows=60000, Columns=60000), "too large: 60,000 x 60,000"),
        (lambda path: write(path).write_bytes(write(path).read_bytes()[:-40]), r"."),
        (lambda path: path.write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40), r"."),
        (lambda path: path.write_bytes(b"no image"), "not an image of a kind that is read"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, spoil, words):
    path = tmp_path / "x.dcm"
    spoil(path)
    with pytest.raises(BadSample, match=words) as error:
        read(tmp_path)
    assert "x.dcm" in str(error.value)


def test_rsna_as_it_is_unpacked(tmp_path):
    """stage_2_train_images/PATIENT.dcm beside both tables."""
    names = [f"{i:08x}-0000-4000-8000-{i:012x}" for i in range(10)]
    for name in names:
        write(tmp_path / f"stage_2_train_images/{name}.dcm", packed=True)
    rows = [f"{n},{'264.0,152.0,213.0,379.0,1' if i % 2 else ',,,,0'}" for i, n in enumerate(names)]
    (tmp_path / "stage_2_train_labels.csv").write_text("\n".join(["patientId,x,y,width,height,Target", *rows]))
    kinds = [f"{n},{'Lung Opacity' if i % 2 else 'Normal'}" for i, n in enumerate(names)]
    (tmp_path / "stage_2_detailed_class_info.csv").write_text("\n".join(["patientId,class", *kinds]))
    source = Anomalies(Anomalies.Config(root=tmp_path), {"image": (1, 24, 24)})
    split = source.labelled("test")
    assert split.labels.tolist() == [0, 1]
    assert int(split.items[1]["truth"].sum()) == round(213 / 1024 * 24) * (round(531 / 1024 * 24) - 4)
    assert source.read(0, 5)["image"].shape == (1, 24, 24)


def test_without_pydicom(tmp_path, monkeypatch):
    write(tmp_path / "x.dcm")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MimError, match=r'DICOM files such as x\.dcm need pydicom: pip install "mim-image\[dicom\]"'):
        read(tmp_path)
