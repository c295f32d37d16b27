"""Scrapes a metrics endpoint: within bounds, whatever answers there."""

from __future__ import annotations

import math
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from types import TracebackType
from typing import Self
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

from prometheus_client.parser import text_string_to_metric_families

from rerank_grpc.cli.top.figures import NAMES, Sample, Scrape, scrape_of
from rerank_grpc.config.targets import is_loopback

EVERY_SECONDS = 1.0
PATIENCE_SECONDS = 2.0  # for each step: to connect, to send something, to send all of it, and to read it
MOST_BYTES = 8 << 20
_LONGEST_LINE = 4096  # the parser's time grows faster than a line
_MOST_SAMPLES = 20_000
_NAME = re.compile(r"[a-z_]+")


class ScrapeError(Exception):
    """A scrape that gave no figures; its text tells why, and has nothing of the answer in it."""


def scrape(url: str) -> Scrape:
    """Scrapes once; raises ScrapeError."""
    text = _fetch(url)
    samples = samples_of(text)
    if not samples:
        raise ScrapeError("the answer has no metrics of rerank-grpc in it")
    return scrape_of(samples, time.monotonic(), time.time())


def _fetch(url: str) -> str:
    """Reads an answer of at most MOST_BYTES; raises ScrapeError."""
    request = Request(url, headers={"Accept": "text/plain; version=0.0.4"})
    try:
        with _opener(url).open(request, timeout=PATIENCE_SECONDS) as answer:
            return _read(answer).decode("utf-8", "replace")
    except HTTPError as error:
        error.close()
        raise ScrapeError(f"HTTP status {error.code}") from None
    except URLError as error:
        cause = error.reason
        raise ScrapeError(_text_of(cause) if isinstance(cause, OSError) else "it cannot be called") from None
    except OSError as error:
        raise ScrapeError(_text_of(error)) from None
    except (HTTPException, ValueError):
        raise ScrapeError("the answer is no HTTP, or breaks off") from None


def _read(answer: HTTPResponse) -> bytes:
    pieces, size, end = [], 0, time.monotonic() + PATIENCE_SECONDS
    while piece := answer.read1(65_536):
        size += len(piece)
        if size > MOST_BYTES:
            raise ScrapeError(f"the answer has more than {MOST_BYTES >> 20} MiB")
        if time.monotonic() > end:
            raise ScrapeError(f"the answer takes more than {PATIENCE_SECONDS:g} s")
        pieces.append(piece)
    if answer.length:
        raise ScrapeError("the answer breaks off")
    return b"".join(pieces)


def _opener(url: str) -> OpenerDirector:
    """Makes what opens a URL: no redirections, and for this machine no proxy of the environment."""
    opener = OpenerDirector()
    proxies = ProxyHandler({}) if is_loopback(urlsplit(url).hostname or "") else ProxyHandler()
    for handler in (proxies, HTTPHandler(), HTTPSHandler(), HTTPErrorProcessor(), HTTPDefaultErrorHandler()):
        opener.add_handler(handler)
    return opener


def _text_of(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {PATIENCE_SECONDS:g} s"
    return (error.strerror or "the connection breaks off").lower()


def samples_of(text: str) -> list[Sample]:
    """Reads the samples that are shown, and leaves out whatever is none; raises ScrapeError if it takes long.

    A line counts by itself: a broken one spoils no other, and a type decides nothing here.
    """
    samples: list[Sample] = []
    end = time.monotonic() + PATIENCE_SECONDS
    for line in text.split("\n"):
        name = _NAME.match(line)
        if name is None or name[0] not in NAMES or len(line) > _LONGEST_LINE:
            continue
        samples += _samples_in(line)
        if len(samples) > _MOST_SAMPLES or time.monotonic() > end:
            raise ScrapeError("the answer has too many samples")
    return samples


def _samples_in(line: str) -> list[Sample]:
    with suppress(ValueError, IndexError, OverflowError):
        return [
            Sample(sample.name, sample.labels, float(sample.value))
            for family in text_string_to_metric_families(line)
            for sample in family.samples
            if math.isfinite(sample.value)
        ]
    return []


class Poller:
    """Scrapes once a second, on a thread of its own.

    A server that sends a byte a second holds that thread, and nothing else. `wake` is called on it after each
    scrape.
    """

    def __init__(self, url: str, wake: Callable[[], None] = lambda: None) -> None:
        self._url, self.wake = url, wake
        self._answers: queue.SimpleQueue[Scrape | ScrapeError] = queue.SimpleQueue()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scrapes", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()  # a thread that is held by a server ends with the process

    def wait(self) -> Scrape:
        """Waits for the next scrape; raises ScrapeError."""
        patience = EVERY_SECONDS + 3 * PATIENCE_SECONDS
        try:
            answer = self._answers.get(timeout=patience)
        except queue.Empty:
            raise ScrapeError(f"no whole answer within {patience:g} s") from None
        if isinstance(answer, ScrapeError):
            raise answer
        return answer

    def take(self) -> Iterator[Scrape | ScrapeError]:
        """Yields the scrapes that have come meanwhile, without waiting."""
        with suppress(queue.Empty):
            while True:
                yield self._answers.get_nowait()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._over.wait(max(due - time.monotonic(), 0.0)):
            due = time.monotonic() + EVERY_SECONDS
            self._answers.put(self._answer())
            self.wake()

    def _answer(self) -> Scrape | ScrapeError:
        try:
            return scrape(self._url)
        except ScrapeError as error:
            return error
        except Exception as error:  # of a library, whose text may be the answer's
            return ScrapeError(f"the answer cannot be read: {type(error).__name__}")
