"""The metadata by which a call's log lines are joined across processes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class CallIds(NamedTuple):
    """The caller's own names for a call; "" where it sent none, or one of another form."""

    request_id: str = ""
    traceparent: str = ""

    @classmethod
    def read(cls, metadata: Mapping[str, str | bytes]) -> CallIds:
        """Reads the ids out of gRPC metadata or HTTP headers, whose keys are in lower case."""
        request_id, traceparent = metadata.get("x-request-id"), metadata.get("traceparent")
        # gRPC gives bytes where a value is no UTF-8.
        if not isinstance(request_id, str) or not _REQUEST_ID.fullmatch(request_id):
            request_id = ""
        if not isinstance(traceparent, str) or not _TRACEPARENT.fullmatch(traceparent):
            traceparent = ""
        return cls(request_id, traceparent)

    @property
    def trace_id(self) -> str:
        """The trace's id, of 32 hexadecimal digits, or ""."""
        return self.traceparent[3:35]
