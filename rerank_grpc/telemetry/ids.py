"""The names by which a caller, and this process, know a call, and what REST of this process says of it."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import NamedTuple

# REST sends it with the calls it passes on. By it a gRPC server of the same process believes what REST says
# of the call; no caller can guess it or is told it, and to a server of another process it means nothing.
PROCESS_KEY, PROCESS_ID = "x-rerank-process", secrets.token_hex(16)
# How many documents count for the caller's rate, where a call is one of several that a body became.
CHARGE_KEY = "x-rerank-charge"

_REQUEST_ID = re.compile(r"[!-~]{1,128}")
# By W3C: neither version ff nor an id of zeros.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_TRACESTATE = re.compile(r"[ -~]{1,512}")
_CHARGE = re.compile(r"[0-9]{1,9}")


class CallIds(NamedTuple):
    """The caller's own names for a call; "" where it sent none, or one of another form.

    A server draws a `request_id` for a call that came without one. `charge` is what REST says of this
    process: the number of documents to charge, None for those of the request.
    """

    request_id: str = ""
    traceparent: str = ""
    tracestate: str = ""
    told_by_rest: bool = False  # this process's REST server has a record of its own for the call
    charge: int | None = None

    @classmethod
    def read(cls, metadata: Mapping[str, str | bytes]) -> CallIds:
        """Reads the ids out of gRPC metadata or HTTP headers, whose keys are in lower case."""
        request_id, traceparent = metadata.get("x-request-id"), metadata.get("traceparent")
        trace = traceparent and _text(traceparent, _TRACEPARENT)
        state = trace and metadata.get("tracestate")
        told_by_rest = _is_ours(metadata.get(PROCESS_KEY))
        # Anybody may send it; only with the process's own id does it count.
        charge = _text(metadata.get(CHARGE_KEY, ""), _CHARGE) if told_by_rest else ""
        return cls(
            _text(request_id, _REQUEST_ID) if request_id else "",
            trace or "",
            _text(state, _TRACESTATE) if state else "",
            told_by_rest,
            int(charge) if charge else None,
        )

    @property
    def trace_id(self) -> str:
        """The trace's id, of 32 hexadecimal digits, or ""."""
        return self.traceparent[3:35]


def _is_ours(value: str | bytes | None) -> bool:
    """Compares with this process's id, in a time that tells nothing of it."""
    return isinstance(value, str) and value.isascii() and secrets.compare_digest(value, PROCESS_ID)


def _text(value: str | bytes, form: re.Pattern[str]) -> str:
    """Returns a text of a form, else ""; gRPC gives bytes where a value is no UTF-8."""
    return value if isinstance(value, str) and form.fullmatch(value) else ""
