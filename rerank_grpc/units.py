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
