"""Numbers in sentences and tables."""

from __future__ import annotations


def counted(count: int, noun: str, plural: str = "") -> str:
    """``1 patient``, ``2 patients``; a plural that is not the noun and s is given.

    What follows the noun and must agree with it can be given with both: ``("file is", "files are")``.
    """
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def decimal(value: float, digits: int, *, signed: bool = False) -> str:
    """A number with so many digits; ``signed`` also where it is positive. What rounds to zero has no sign."""
    text = f"{value:z.{digits}f}"
    return f"+{text}" if signed and float(text) > 0 else text
