"""Amounts in the form that people read."""

from __future__ import annotations

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size(count: float) -> str:
    """Writes bytes with a unit: "1.5 GiB"."""
    unit = UNITS[0]
    for unit in UNITS:
        if abs(count) < 1024 or unit == UNITS[-1]:
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def in_bytes(count: int) -> str:
    """Writes a limit of whole MiB to the byte: "8,388,608 bytes (8 MiB)"."""
    return f"{count:,} bytes ({count >> 20} MiB)"


def million(count: int) -> str:
    """Writes millions, of parameters, with a unit: "150M", "1.7B"."""
    return f"{count}M" if count < 1000 else f"{count / 1000:g}B"


def duration(seconds: float) -> str:
    """Writes a time with its two largest units: "8.4 s", "3 min 20 s", "2 h 5 min", "3 d 4 h"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    rest = round(seconds)
    for unit, smaller, size, part in (
        ("min", "s", 60, 1),
        ("h", "min", 3_600, 60),
        ("d", "h", 86_400, 3_600),
    ):
        if unit == "d" or rest < size * (60 if unit == "min" else 24):
            return f"{rest // size} {unit} {rest % size // part} {smaller}"
    raise AssertionError
