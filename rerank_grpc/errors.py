"""Everything that can go wrong, each defined once.

RerankError
├── InvalidRequest            a field has a value that is not allowed
│   └── UnsupportedOption     the model cannot do what an option asks
├── UnknownModel
├── ModelLoading              retry
├── ModelFailed
├── QueueFull                 retry
├── DeadlineUnreachable       retry
├── RateLimited               retry
├── DeadlineExceeded
├── Cancelled
├── PairTooLarge              one pair exceeds the device's memory
├── Unauthenticated
├── PermissionDenied
├── ShuttingDown              retry
└── InternalError

ConfigurationError            the operator's: one line, at start
└── ModelLoadError            a model directory that cannot be served
"""

from __future__ import annotations

import enum
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, NamedTuple


class Reason(enum.StrEnum):
    """The proto's ErrorReason."""

    INVALID_REQUEST = "ERROR_REASON_INVALID_REQUEST"
    UNKNOWN_MODEL = "ERROR_REASON_UNKNOWN_MODEL"
    MODEL_LOADING = "ERROR_REASON_MODEL_LOADING"
    MODEL_FAILED = "ERROR_REASON_MODEL_FAILED"
    QUEUE_FULL = "ERROR_REASON_QUEUE_FULL"
    DEADLINE_UNREACHABLE = "ERROR_REASON_DEADLINE_UNREACHABLE"
    RATE_LIMITED = "ERROR_REASON_RATE_LIMITED"
    DEADLINE_EXCEEDED = "ERROR_REASON_DEADLINE_EXCEEDED"
    CANCELLED = "ERROR_REASON_CANCELLED"
    UNSUPPORTED_OPTION = "ERROR_REASON_UNSUPPORTED_OPTION"
    PERMISSION_DENIED = "ERROR_REASON_PERMISSION_DENIED"
    PAIR_TOO_LARGE = "ERROR_REASON_PAIR_TOO_LARGE"
    UNAUTHENTICATED = "ERROR_REASON_UNAUTHENTICATED"
    SHUTTING_DOWN = "ERROR_REASON_SHUTTING_DOWN"
    INTERNAL = "ERROR_REASON_INTERNAL"


class FieldViolation(NamedTuple):
    """A field of a request that is wrong, such as "documents[3].text", and how."""

    field: str
    description: str


class RerankError(Exception):
    """The base of all errors of a call; the client raises the same class on the caller's side.

    `metadata` is for machines and never holds a query, document or token;
    `retry_after` is in seconds, None where a retry does not help.
    """

    reason: ClassVar[Reason]

    def __init__(
        self,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        violations: Sequence[FieldViolation] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after
        self.violations = tuple(violations)


class InvalidRequest(RerankError):
    """A field of the request has a value that is not allowed."""

    reason = Reason.INVALID_REQUEST

    @classmethod
    def of(cls, field: str, description: str, *, metadata: Mapping[str, str] | None = None) -> InvalidRequest:
        """Makes the error for one field; the message is "field: description"."""
        violation = FieldViolation(field, description)
        return cls(f"{field}: {description}", metadata=metadata, violations=[violation])

    def renamed(self, name_of: Callable[[str], str]) -> InvalidRequest:
        """Makes the same error in a caller's own names; `name_of` takes a field of the request."""
        message, violations = self.message, []
        for violation in self.violations:
            own = violation._replace(field=name_of(violation.field))
            if message.startswith(f"{violation.field}: "):
                message = own.field + message.removeprefix(violation.field)
            violations.append(own)
        return type(self)(
            message, metadata=self.metadata, retry_after=self.retry_after, violations=violations
        )


class UnsupportedOption(InvalidRequest):
    """The model cannot do what an option asks."""

    reason = Reason.UNSUPPORTED_OPTION


class UnknownModel(RerankError):
    """No model of that name is configured."""

    reason = Reason.UNKNOWN_MODEL


class ModelLoading(RerankError):
    """The model is still being loaded."""

    reason = Reason.MODEL_LOADING


class ModelFailed(RerankError):
    """The model could not be loaded, or its device broke."""

    reason = Reason.MODEL_FAILED


class QueueFull(RerankError):
    """The queue has no room for the call."""

    reason = Reason.QUEUE_FULL


class DeadlineUnreachable(RerankError):
    """The call's deadline cannot be met at the present load."""

    reason = Reason.DEADLINE_UNREACHABLE


class RateLimited(RerankError):
    """The caller's own rate is used up."""

    reason = Reason.RATE_LIMITED


class DeadlineExceeded(RerankError):
    """The deadline passed before the scores were there."""

    reason = Reason.DEADLINE_EXCEEDED


class Cancelled(RerankError):
    """The caller cancelled."""

    reason = Reason.CANCELLED


class PairTooLarge(RerankError):
    """One pair alone exceeds the device's memory."""

    reason = Reason.PAIR_TOO_LARGE


class Unauthenticated(RerankError):
    """The token is missing or wrong."""

    reason = Reason.UNAUTHENTICATED


class PermissionDenied(RerankError):
    """The token does not carry the right."""

    reason = Reason.PERMISSION_DENIED


class ShuttingDown(RerankError):
    """The server is stopping."""

    reason = Reason.SHUTTING_DOWN


class InternalError(RerankError):
    """A fault of the server; the text is fixed, the details are in its log."""

    reason = Reason.INTERNAL

    def __init__(self, message: str = "internal error", **details: object) -> None:
        super().__init__(message, **details)  # type: ignore[arg-type]


BY_REASON: Mapping[Reason, type[RerankError]] = {
    error.reason: error for error in (*RerankError.__subclasses__(), *InvalidRequest.__subclasses__())
}


class ConfigurationError(Exception):
    """An operator's mistake; the text is one line with the mistake, its place and the remedy."""


class ModelLoadError(ConfigurationError):
    """A model directory that cannot be served, and the remedy, in one line."""


def one_line(text: str) -> str:
    """Escapes the characters of a text that a terminal or a log obeys, and those that UTF-8 cannot hold."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, most_bytes: int) -> str:
    """Leaves out the middle of a text of more bytes of UTF-8: the place stands first, the remedy last."""
    content = text.encode()
    if len(content) <= most_bytes:
        return text
    kept = most_bytes - len("…".encode())
    head, tail = content[: kept - kept // 2], content[-(kept // 2) :]
    return f"{head.decode(errors='ignore')}…{tail.decode(errors='ignore')}"


def suggestion(text: str, choices: Iterable[str]) -> str:
    """Makes "; did you mean …?" of the choice nearest to the text; "" if none is near."""
    import difflib  # for mistakes in a command alone, which no client makes while it is imported

    near = difflib.get_close_matches(text, list(choices), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def describe(error: BaseException) -> str:
    """Returns an error's class and place for a log, without its text, which may quote a caller."""
    places = traceback.extract_tb(error.__traceback__)
    where = " < ".join(f"{place.filename.rpartition('/')[2]}:{place.lineno}" for place in reversed(places))
    return f"{type(error).__name__} at {where or 'unknown'}"
