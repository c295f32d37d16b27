"""Counts the series of metrics that a server tells Prometheus."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import urllib.request
from time import monotonic, sleep

from benchmarks import load, metrics_cost, servers


def count_series() -> dict[str, int]:
    """Starts a server, calls it, and counts what it then tells Prometheus.

    Nobody asks it for its health, as that would be counted as another method.
    """
    port, metrics_port = metrics_cost.free_ports(2)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def scraped(until: str) -> str:
        """The first scrape with such a line: a call is counted a moment after its answer."""
        end, text = monotonic() + metrics_cost.START_SECONDS, ""
        while not re.search(until, text):
            if monotonic() > end or process.poll() is not None:
                raise SystemExit(f"the server whose series are counted ended, or never told {until}")
            sleep(0.05)
            with contextlib.suppress(OSError), opener.open(url, timeout=10) as answer:
                text = answer.read().decode()
        return text

    url = f"http://127.0.0.1:{metrics_port}/metrics"
    options = ["--port", str(port), "--metrics-port", str(metrics_port), "--admin-port", "off"]
    command = [sys.executable, "-m", "benchmarks.servers", "command", "free", "--rest-port", "off", *options]
    environment = {key: text for key, text in os.environ.items() if not key.startswith("RERANK_")}
    process = subprocess.Popen(
        command, stderr=subprocess.DEVNULL, env=environment | {"RERANK_TOKENS": servers.TOKEN}
    )
    try:
        scraped(r'rerank_model_state\{model="model",state="ready"\} 1')
        with contextlib.closing(load.Caller(f"127.0.0.1:{port}")) as caller:
            caller.call(load.request_of("a query", ["a document"]))
            one = scraped(r'rerank_calls_total\{[^}]*code="OK"')
            caller.call(load.request_of("a query", []))
            two = scraped(r'rerank_calls_total\{[^}]*code="INVALID_ARGUMENT"')
            caller.health()
            three = scraped('method="Health"')
    finally:
        process.terminate()
        process.wait(30)
    found, with_code, with_method = (counted(text, "model") for text in (one, two, three))
    return found | {
        "further_code": with_code["one_model"] - found["one_model"],
        "further_method": with_method["one_model"] - with_code["one_model"],
    }


def counted(text: str, model: str) -> dict[str, int]:
    """The series of a scrape, those of one model, and the scrape's bytes."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    of_model = sum(f'model="{model}"' in line for line in lines)
    return {"one_model": len(lines), "further_model": of_model, "bytes": len(text.encode())}
