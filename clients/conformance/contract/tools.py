"""What the clients in other languages need on this machine."""

from __future__ import annotations


class Missing(Exception):
    """The tools of a client are not here; the text says which, and how they are installed."""
