"""Numbers with their nouns, as people read them."""

from __future__ import annotations

import math
import re


def counted(number: float, one: str, many: str = "") -> str:
    """ "no clips", "1 clip", "0.5 epochs", "1,200 clips".

    Args:
        number: How many.
        one: The noun for one of them.
        many: The noun for others, where an s does not make it.
    """
    if number == 1:
        return f"1 {one}"
    if isinstance(number, float) and abs(number) < 1e15:  # four digits where they matter
        number = float(f"{number:.4g}") if abs(number) < 1000 else round(number)
    figure = "no" if number == 0 else f"{number:,}" if isinstance(number, int) else f"{number:,g}"
    return f"{figure} {many or one + 's'}"


def speed(rate: float) -> str:
    """Samples per second: "1,234", and "0.38" where a whole number would say 0."""
    return f"{rate:,.0f}" if rate >= 9.5 else f"{rate:.2g}"


def rounded(number: float) -> float:
    """Three digits, and whole numbers from a thousand on: for numbers that say about how many."""
    return number if number == round(number) else float(round(number)) if number >= 1000 else float(f"{number:.3g}")


def option(number: float, digits: int = 3) -> str:
    """A number as a command line takes it, with so many digits that count and no power of ten: "12800", "0.00015".

    Args:
        number: What the option is to be.
        digits: Those that count; the others become 0.
    """
    if number == 0 or not math.isfinite(number):
        return f"{number:g}"
    places = digits - 1 - math.floor(math.log10(abs(number)))
    text = f"{round(number, places):.{max(places, 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What must not reach a terminal as it is: control characters but tab and line feed, marks that turn the direction of
writing or break a line, and bytes of names that are no UTF-8."""


def shown(text: str) -> str:
    """Text that can be printed and written as UTF-8: ``\\x1b`` for the control character, ``\\xe9`` for a byte that is
    no UTF-8."""
    return STEERING.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    code = code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code  # how Python holds a byte of such a name
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def amount(value: float, unit: str) -> str:
    """1_500_000 -> "1.50 M" and so on, in steps of a thousand."""
    steps = ["", "k", "M", "G", "T", "P", "E"]
    power = min(len(steps) - 1, int(math.log10(value) // 3)) if value >= 1 else 0
    return f"{value / 1000**power:.3g} {steps[power]}{unit}"


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min 20 s, 5 h 12 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def times(sizes: tuple[int, ...]) -> str:
    """Sizes as people write them: 224 x 224."""
    return " x ".join(str(size) for size in sizes)
