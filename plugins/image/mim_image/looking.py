"""A look at some of the files before a run: what they hold, what of it is left out, and what cannot be read."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from mim_core import MimError, SaidOnce, counted, in_time
from PIL import Image

from mim_image.files import ImageStore
from mim_image.formats import NoRange, UnsupportedKind, refuse_large
from mim_image.pixels import (
    DEEP,
    OPACITY,
    Range,
    check_kind,
    deep_values,
    full_range,
    is_deep_colour,
    raw_mode,
    tag,
)
from mim_image.tiff import Page, read_pages

FILES = 64
"""Files whose headers are looked at, evenly spaced."""
DECODED = 8
"""Of these, files whose values are."""
DARK = 64
"""Colours that stay below this of 255 are rarely meant."""
_WORDS = {"1": "black and white", "P": "colour by a palette", "PA": "colour by a palette", "CMYK": "CMYK"}


@dataclass
class Look:
    """What a look at some files found. ``examples`` has the first file of each finding.

    Attributes:
        looked: How many files were opened.
        kinds: Modes and bits -> files.
        sizes: Width and height of each.
        refused: Why files cannot be read -> files.
        broken: Files that cannot be opened.
        unused: What is left out of files -> files.
        low: Smallest value of grey of more than 8 bits.
        high: The largest.
        full: The largest that such a file can hold.
        stored: How many files there are.
        brightest: Of colour of 16 bits, the largest value of its upper 8.
    """

    looked: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    broken: int = 0
    unused: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    low: float | None = None
    high: float | None = None
    full: float | None = None
    decoded: int = 0
    stored: int = 0
    brightest: int | None = None

    def note(self, counter: Counter[str], what: str, name: str) -> None:
        """Counts one file."""
        counter[what] += 1
        self.examples.setdefault(what, name)

    def refuse(self, limit: float) -> None:
        """Stops before a run of which more than a share of the files cannot be read.

        Raises:
            MimError: Names the first file of each kind, and says what it is.
        """
        if sum(self.refused.values()) <= limit * self.looked:
            return
        listed = "\n".join(f"  {self.examples[why]}: {why}." for why, _ in self.refused.most_common(3))
        if self.high is not None and not self.kinds:
            listed += (
                f"\nThe values of {counted(self.decoded, 'image')} go from {self.low:.9g} to {self.high:.9g}: for "
                f"these, --data.range {self.low:.9g} {self.high:.9g}"
            )
        error = MimError(
            f"{sum(self.refused.values())} of {counted(self.looked, 'image')} looked at cannot be read:\n{listed}"
        )
        error.everywhere = True
        raise error

    def holds(self) -> str:
        """What the files hold, in one line."""
        if not self.looked:
            return ""
        texts = [f"{number} {kind}" for kind, number in self.kinds.most_common()]
        if self.sizes:
            small, large = (choose(self.sizes, key=lambda size: size[0] * size[1]) for choose in (min, max))
            sizes = f"{small[0]:,} x {small[1]:,}"
            texts.append(f"{sizes} pixels" if small == large else f"{sizes} to {large[0]:,} x {large[1]:,} pixels")
        if self.high is not None:
            texts.append(f"grey values from {self.low:,g} to {self.high:,g}")
        texts += [f"{number} with {what}" for what, number in self.unused.items()]
        if self.broken or self.refused:
            texts.append(f"{self.broken + sum(self.refused.values())} that cannot be read")
        return f"{self.looked:,} of {max(self.looked, self.stored):,} looked at: {'; '.join(texts)}"

    def advice(self, limits: Range | None) -> list[str]:
        """What is left out, and values that use little of their range."""
        lines = [
            f"{number} of {counted(self.looked, 'image')} looked at: {what} ({self.examples[what]})."
            for what, number in self.unused.items()
        ]
        lines += [
            f"{number} of {counted(self.looked, 'image')} looked at cannot be read, {self.examples[why]}: {why}."
            for why, number in self.refused.items()
        ]
        if limits is not None and not any(
            kind in " ".join(self.kinds) for kind in ("more", "16", "12", "32", "signed")
        ):
            lines.append("no grey image looked at has more than 8 bits, so --data.range does nothing.")
        if self.brightest is not None and self.brightest < DARK:
            lines.append(
                f"colours are nearly black: of 16 bits the upper 8 are used, and they reach {self.brightest} of 255. "
                "Are they of 10 or 12 bits? Stretch them to the whole range first, or save them in 8 bits."
            )
        if self.high is None or self.low is None:
            return lines
        seen = f"{counted(self.decoded, 'image')} looked at"
        if limits is None and self.full is not None and self.high <= self.full / 4:
            top = max(1, 2 ** int(self.high).bit_length() - 1)
            lines.append(
                f"the values of {seen} reach {self.high:,g} of {self.full:,g}, so that pictures are nearly black and "
                f"differ little. If white is less: --data.range 0 {top}"
            )
        if limits is not None and (self.low < limits[0] or self.high > limits[1]):
            lines.append(
                f"the values of {seen} go from {self.low:,g} to {self.high:,g}; what lies beyond --data.range "
                f"{limits[0]:g} {limits[1]:g} becomes black or white."
            )
        return lines


def look(store: ImageStore, channels: int, limits: Range | None) -> Look:
    """Opens some of the images of a store.

    Args:
        store: Which images.
        channels: How many are read.
        limits: The option ``range``.
    """
    result = Look(stored=len(store))
    if store.array is not None:
        height, width = store.array.shape[1:3]
        kind = "grey of 8 bits" if store.array.ndim == 3 else "colour of 8 bits"
        return Look(len(store), Counter({kind: len(store)}), [(width, height)])
    count = min(FILES, len(store))
    for i in range(count):
        index = i * (len(store) - 1) // max(1, count - 1)
        name = store.name(index)
        result.looked += 1
        try:
            with in_time(name), warnings.catch_warnings(action="ignore"), store.open(index) as image:
                _look_at(result, image, name, channels, limits)
        except UnsupportedKind as error:
            result.note(result.refused, str(error), name)
        except Exception:  # whatever it is, reading meets it again, and names the file
            result.broken += 1
    return result


def _look_at(result: Look, image: Image.Image, name: str, channels: int, limits: Range | None) -> None:
    pages = pages_of(image, channels)
    try:
        check_kind(image, channels, limits)
    except NoRange:
        _note_values(result, image)
        raise
    if image.format not in ("JPEG", "MPO"):  # these are decoded at a reduced size
        refuse_large(image, image.width * image.height)
    result.note(result.kinds, describe(image, channels), name)
    result.sizes.append(image.size)
    for what in _passed_over(image, pages, channels):
        result.note(result.unused, what, name)
    if image.mode in DEEP or full_range(image) is None:
        _note_values(result, image)
    elif is_deep_colour(image) and result.decoded < DECODED:
        top = int(np.asarray(image.convert("RGB")).max())
        result.brightest = max(top, result.brightest or 0)
        result.decoded += 1


def _note_values(result: Look, image: Image.Image) -> None:
    """The smallest and largest value of grey of more than 8 bits, of the first few such files."""
    if result.decoded >= DECODED:
        return
    refuse_large(image, image.width * image.height)
    full, values = full_range(image), deep_values(image)
    values = values[np.isfinite(values)]
    if values.size:
        low, high = float(values.min()), float(values.max())
        result.low = low if result.low is None else min(result.low, low)
        result.high = high if result.high is None else max(result.high, high)
        result.full = full[1] if full is not None else result.full
        result.decoded += 1


def _is_animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # what is behind the first picture may be damaged, and is not read
        return False


def _passed_over(image: Image.Image, pages: list[Page], channels: int, whole: bool = True) -> list[str]:
    """What of an image is not read. ``whole``: the image is only looked at; Pillow reads on in a GIF to see whether it
    is animated, and cannot go back where it is damaged."""
    notes = []
    if len(pages) > 1:
        alike = all((page.width, page.height, page.samples) == (image.width, image.height, 1) for page in pages)
        shape = f" (an array [{len(pages)}, {image.height}, {image.width}] of bands or slices?)" if alike else ""
        notes.append(f"{len(pages)} pages{shape}, of which only the first is used")
    elif image.format not in ("TIFF", "MPO") and (whole or image.format != "GIF") and _is_animated(image):
        notes.append("an animation, of which only the first picture is used")
    used = 4 if channels == 4 and raw_mode(image) == "RGBX" else len(image.getbands())
    used = 1 if raw_mode(image).startswith("LX") else used
    if pages and pages[0].samples > used:
        how = ": --tokenizer.channels 4 reads it" if raw_mode(image) == "RGBX" else ""
        left = "the last is" if pages[0].samples == used + 1 else f"the last {pages[0].samples - used} are"
        notes.append(f"{pages[0].samples} bands, of which {left} left out{how}")
    if is_deep_colour(image):
        notes.append("colour of 16 bits, of which the upper 8 are used")
    return notes


def pages_of(image: Image.Image, channels: int) -> list[Page]:
    """The pages of a TIFF that is not yet decoded; none of another image.

    Raises:
        UnsupportedKind: They are bands of one image that were saved as pages.
    """
    file = getattr(image, "fp", None)
    pages = read_pages(file) if image.format == "TIFF" and file is not None else []
    _refuse_stack(pages)
    _refuse_bands(pages, channels)
    return pages


def notice(notices: SaidOnce, image: Image.Image, name: str, pages: list[Page], channels: int, looked: int) -> None:
    """Says of an image that is read, and not yet decoded, what none of those looked at before the run was."""
    for what in (describe(image, channels), *_passed_over(image, pages, channels, whole=False)):
        notices.say(what, f"{name} holds {what}; none of the {counted(looked, 'image')} looked at before the run does.")


def _refuse_bands(pages: list[Page], channels: int) -> None:
    """Bands of more than 8 bits as pages of their own, where colour or four bands are asked for: one page is neither.
    Of 8 bits, pages may be those of a document."""
    page, alike = next(iter(pages), None), len({(page.width, page.height, page.bits, page.samples) for page in pages})
    if page is None or len(pages) < 2 or channels < 3 or alike > 1 or page.samples > 1 or page.bits <= 8:
        return
    raise UnsupportedKind(
        f"a TIFF of {len(pages)} pages of {page.width} x {page.height} values of {page.bits} bits, as of an array "
        f"[{len(pages)}, {page.height}, {page.width}] of bands or slices, and the run asks for {channels} channels, "
        "which no page has. To train on the first page alone, in grey: --tokenizer.channels 1; or save 3 bands as one "
        "colour image; or write a data source for such files (docs/plugins.md)"
    )


def _refuse_stack(pages: list[Page]) -> None:
    """Bands as the last axis of an array, of which a program made as many pages as the array has rows."""
    if len(pages) > 1 and pages[0].width <= 32 and pages[0].height > 2 * pages[0].width:
        page = pages[0]
        raise UnsupportedKind(
            f"a TIFF of {len(pages)} pages of {page.height} x {page.width} values, as where an array [{len(pages)}, "
            f"{page.height}, {page.width}] of {page.width} bands was saved page by page; images have 1 (grey), 3 "
            "(colour) or 4 bands. Save the bands that you want as an image; or write a data source for such files "
            "(docs/plugins.md)"
        )


def describe(image: Image.Image, channels: int) -> str:
    """The colours and bits of an image that is not yet decoded, such as "grey of 16 bits"."""
    if image.mode in DEEP or full_range(image) is None:
        bits = tag(image, 258, 32 if image.mode == "F" else 16)
        kind = {2: "signed ", 3: "floating-point "}.get(tag(image, 339, 1), "")
        return f"grey of {bits} {kind}bits"
    if is_deep_colour(image):
        return "colour of 16 bits"
    if image.mode in OPACITY and not raw_mode(image).startswith("LX"):
        what = "grey" if image.mode in ("LA", "La") else "colour"
        return f"{what} with opacity{'' if channels == 4 else ', laid on white'}"
    what = "grey" if image.mode in ("L", "LA") else "colour"
    return _WORDS.get(image.mode, f"{what} of 8 bits")
