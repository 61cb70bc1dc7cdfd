"""DICOM files of one image: grey as a viewer shows it, or colour. Needs pydicom (an extra of this package)."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
from mim_core import MimError
from PIL import Image

ENDINGS = (".dcm", ".dicom")
REMEDY = 'pip install "mim-image[dicom]", or convert them to PNG'


def is_dicom(file: Any) -> bool:
    """Whether a file begins as DICOM does. The place in it is kept."""
    place = file.tell()
    file.seek(128)
    has_magic = file.read(4) == b"DICM"
    file.seek(place)
    return bool(has_magic)


def require(name: str) -> None:
    """For collections with DICOM files.

    Raises:
        MimError: pydicom is missing.
    """
    if importlib.util.find_spec("pydicom") is None:
        raise MimError(f"DICOM files such as {name} need pydicom: {REMEDY}")


def read_dicom(file: Any, most: int) -> Image.Image:
    """The image: "L" for 8 bits without a window, "I;16" for all other grey, or "RGB".

    Grey goes through the file's rescaling and its first window (DICOM PS3.3, C.11.2.1), or else spans the stored bits;
    MONOCHROME1 is turned, so that 0 is black.

    Args:
        file: Open for reading.
        most: Bytes that it may take in memory.

    Raises:
        ValueError: pydicom is missing, or the file is damaged, of several frames, too large, or packed in a way that
            needs another library.
    """
    try:
        import pydicom
    except ImportError as error:
        raise ValueError(f"a DICOM file: {REMEDY}") from error
    about = pydicom.dcmread(file)
    if "PixelData" not in about:
        raise ValueError("a DICOM file without an image")
    frames = int(about.get("NumberOfFrames") or 1)
    if frames != 1:
        raise ValueError(f"a DICOM file of {frames} frames; files of one image are read")
    if (taken := about.Rows * about.Columns * about.SamplesPerPixel * 24) > most:
        raise ValueError(
            f"too large: {about.Columns:,} x {about.Rows:,} pixels would take {taken / 1e9:.1f} GB, more than the "
            f"{most / 1e9:.0f} GB that one image may take"
        )
    values = about.pixel_array  # colour in YBR comes as RGB
    if about.SamplesPerPixel == 3:
        if values.dtype != np.uint8:
            raise ValueError(f"a DICOM file of {about.BitsStored}-bit colour; colour of 8 bits is read")
        return Image.fromarray(values)
    return _grey(about, values)


def _grey(about: Any, values: Any) -> Image.Image:
    """A value of "I;16" is 65,535 where a viewer shows white."""
    turned = about.PhotometricInterpretation == "MONOCHROME1"
    plain = "WindowWidth" not in about and float(about.get("RescaleSlope") or 1) == 1
    if plain and about.BitsStored == 8 and values.dtype == np.uint8:
        return Image.fromarray(255 - values if turned else values)
    share = _share(about, values.astype(np.float64)).clip(0, 1)
    return Image.fromarray(np.round((1 - share if turned else share) * 65535).astype(np.uint16))


def _share(about: Any, values: Any) -> Any:
    """0 for black, 1 for white, and beyond."""
    slope, intercept = float(about.get("RescaleSlope") or 1), float(about.get("RescaleIntercept") or 0)
    values = values * slope + intercept
    if "WindowWidth" in about and "WindowCenter" in about:
        centre, width = (_first(about[name].value) for name in ("WindowCenter", "WindowWidth"))
        kind = about.get("VOILUTFunction") or "LINEAR"
        if kind == "SIGMOID":
            return 1 / (1 + np.exp(-4 * (values - centre) / width))
        if kind == "LINEAR_EXACT":
            return (values - centre) / width + 0.5
        return (values - (centre - 0.5)) / max(width - 1, 1e-9) + 0.5
    signed = about.PixelRepresentation == 1
    low, high = (
        (-(2 ** (about.BitsStored - 1)), 2 ** (about.BitsStored - 1) - 1) if signed else (0, 2**about.BitsStored - 1)
    )
    low, high = low * slope + intercept, high * slope + intercept
    return (values - low) / (high - low)


def _first(value: Any) -> float:
    """Of several windows the first."""
    return float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)
