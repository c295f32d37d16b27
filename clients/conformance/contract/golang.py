"""Makes the command of the Go client."""

from __future__ import annotations

from clients.go import tasks


def command() -> list[str]:
    """Builds the program; raises Missing without Go or its packages."""
    return [str(tasks.build("internal/conformance"))]
