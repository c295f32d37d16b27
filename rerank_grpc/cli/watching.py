"""Whatever watches a server's process: its log of calls, its metrics and their port, its traces."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from rerank_grpc import __version__
from rerank_grpc.cli.process import needs
from rerank_grpc.config.reading import drop_empty, read_traces_endpoint
from rerank_grpc.config.settings import RestSettings, ServerSettings
from rerank_grpc.errors import ConfigurationError, describe, one_line
from rerank_grpc.telemetry.call_log import log_call
from rerank_grpc.telemetry.records import BatchRecord, BatchSink, Sink
from rerank_grpc.telemetry.refusals import RefusalLog

if TYPE_CHECKING:
    from rerank_grpc.http.server import HttpServer
    from rerank_grpc.registry.registry import Registry
    from rerank_grpc.server.interceptors import Observer
    from rerank_grpc.telemetry.registry import MetricsRegistry
    from rerank_grpc.telemetry.traces import Traces
    from rerank_grpc.tls.serving import Certificates

log = logging.getLogger(__name__)

# After all else has stopped, traces have this long to be sent, and the port of the metrics to close; where
# less time is left until the process has to end, they share it.
_FLUSH_SECONDS, _CLOSE_SECONDS = 0.5, 0.2
_FLUSH_SHARE = 0.7


class Watching:
    """The sinks that the servers of a process tell of its calls and batches, and the port of its metrics.

    `models` are the names of those in this process; None where other servers have them.

    Attributes:
        sinks: take the record of each call; traces first, which give it the name of its trace.
        tracer: begins the spans of calls that REST passes on; None without traces.
        port: where the metrics are read, None where they are off.

    Raises:
        ConfigurationError: a package is missing, the port is taken, or traces are configured wrongly.
    """

    def __init__(self, settings: ServerSettings | RestSettings, models: Sequence[str] | None = None) -> None:
        self._refusals = RefusalLog()
        self.sinks: list[Sink] = [log_call, self._refusals]
        self._batch_sinks: list[BatchSink] = []
        self.tracer: Traces | None = None
        self._metrics: MetricsRegistry | None = None
        self._endpoint: HttpServer | None = None
        if endpoint := read_traces_endpoint():
            self._add_traces(endpoint)
        if settings.metrics_port is not None:
            extra = "server" if isinstance(settings, ServerSettings) else "rest"
            with needs("metrics", f'pip install "rerank-grpc[{extra}]", or --metrics-port off'):
                self._endpoint = self._add_metrics(settings.metrics_host, settings.metrics_port, models)
        self.port = self._endpoint.port if self._endpoint else None

    @property
    def on_batch(self) -> BatchSink | None:
        """Takes the record of each batch and returns what its calls refer to; None where nobody listens."""
        if len(self._batch_sinks) == 1:
            return self._batch_sinks[0]
        return self._on_batch if self._batch_sinks else None

    def observers(self) -> Sequence[Observer]:
        """Makes what sees each RPC of a gRPC server: gRPC's own metrics, where metrics are on."""
        if self._metrics is None:
            return ()
        from rerank_grpc.server.rpc_metrics import RpcMetrics

        return (RpcMetrics(self._metrics),)

    def follow(
        self,
        dropped_lines: Callable[[], int],
        models: Registry | None = None,
        certificates: Certificates | None = None,
    ) -> None:
        """Has each scrape tell how many lines the log has dropped, and how models and certificates are."""
        if self._metrics is None:
            return
        from rerank_grpc.telemetry.snapshots import BuildSnapshot
        from rerank_grpc.telemetry.state import StateCollector

        collect = partial(StateCollector, self._metrics, dropped_lines=dropped_lines)
        if certificates is not None:
            collect = partial(collect, certificate=certificates.snapshot)
        if models is None:
            collect(build=partial(BuildSnapshot, __version__))
        else:
            collect(build=models.build, models=models.snapshots, devices=models.devices)

    def start(self) -> None:
        """Answers scrapes from now on."""
        if self._endpoint is not None:
            self._endpoint.start()

    def stop(self, seconds: float) -> None:
        """Tells what is left to tell, and ends the port, in so many seconds; all else has ended."""
        self._refusals.close()
        if self.tracer is not None:
            self.tracer.close(min(_FLUSH_SECONDS, _FLUSH_SHARE * seconds))
        if self._endpoint is not None:
            self._endpoint.stop(0, min(_CLOSE_SECONDS, (1 - _FLUSH_SHARE) * seconds))

    def _add_traces(self, endpoint: str) -> None:
        drop_empty("OTEL_")  # by OpenTelemetry's specification they count as not set; the SDK refuses some
        with needs("tracing", 'pip install "rerank-grpc[otel]", or OTEL_SDK_DISABLED=true'):
            try:
                from rerank_grpc.telemetry.traces import make_traces
            except ValueError as error:  # of a limit of spans, which the SDK reads when it is imported
                raise ConfigurationError(f"tracing: {one_line(str(error))}") from None
        self.tracer = make_traces(endpoint)
        self.sinks.insert(0, self.tracer.call)
        self._batch_sinks.append(self.tracer.batch)

    def _add_metrics(self, host: str, port: int, models: Sequence[str] | None) -> HttpServer:
        """Adds the metrics' sinks; returns the server of their port."""
        from rerank_grpc.http.metrics import metrics_server
        from rerank_grpc.telemetry.metrics import Metrics
        from rerank_grpc.telemetry.registry import MetricsRegistry

        self._metrics = MetricsRegistry()
        metrics = Metrics(self._metrics, models)
        self.sinks.append(metrics.call)
        self._batch_sinks.append(metrics.batch)
        return metrics_server(self._metrics, host, port)

    def _on_batch(self, record: BatchRecord) -> object:
        told: object = None
        for sink in self._batch_sinks:
            try:
                found = sink(record)
                told = found if told is None else told
            except Exception as error:
                log.error("a sink failed on a batch: %s", describe(error), extra={"kind": "a batch's sink"})
        return told
