"""Numbers with their nouns, as people read them."""

from __future__ import annotations


def counted(number: float, one: str, many: str = "") -> str:
    """ "no clips", "1 clip", "0.5 epochs", "1,200 clips".

    Args:
        number: How many.
        one: The noun for one of them.
        many: The noun for others, where an s does not make it.
    """
    if number == 1:
        return f"1 {one}"
    told = "no" if number == 0 else f"{number:,}" if isinstance(number, int) else f"{number:,g}"
    return f"{told} {many or one + 's'}"


def speed(rate: float) -> str:
    """Samples per second: "1,234", and "0.38" where a whole number would say 0."""
    return f"{rate:,.0f}" if rate >= 9.5 else f"{rate:.2g}"


def rounded(number: float) -> float:
    """Three digits, and whole numbers from a thousand on: for numbers that say about how many."""
    return number if number == round(number) else float(round(number)) if number >= 1000 else float(f"{number:.3g}")
