"""What many calls, and many that are given up, cost the others: one gate for all models of a process."""

import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2

from rerank_grpc.client import Client
from rerank_grpc.config.settings import ModelSpec, ServerSettings
from rerank_grpc.limits import LIMITS
from rerank_grpc.server.server import RerankServer
from rerank_grpc.v1 import rerank_pb2 as pb
from tests import command
from tests.server.test_errors import delay_ms_of, details_of
from tests.server.test_patience import check
from tests.support import WAIT, HeldRunner, LateLoader, request_of, serving, stub_of, wait_for

STORM = """
import sys, threading, time
import grpc
from rerank_grpc.v1 import rerank_pb2 as pb

documents = [pb.Document(text=f"0 {n} " + "lorem ipsum dolor " * 440) for n in range(900)]
message = pb.RerankRequest(query="q", documents=documents).SerializeToString()
channel = grpc.insecure_channel(sys.argv[1], [("grpc.enable_http_proxy", 0)])
call = channel.unary_unary("/rerank.v1.RerankService/Rerank", lambda data: data, lambda data: data)
end = time.monotonic() + float(sys.argv[2])

def storm():
    while time.monotonic() < end:
        future = call.future(message, timeout=30)
        threading.Event().wait(0.15)
        future.cancel()

threads = [threading.Thread(target=storm) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
STORM_SECONDS = 5


@pytest.mark.clock
def test_calls_of_all_models_share_one_gate():
    models = tuple(ModelSpec(name, "test") for name in ("one", "two", "three", "four"))
    runner = HeldRunner()
    settings = replace(ServerSettings(), models=models, max_calls=12)
    with (
        serving(settings, runner=runner) as server,
        stub_of(server.port) as stub,
        stub_of(server.port) as another,
    ):
        inside = [
            stub.Rerank.future(request_of("q", f"document {n}", model=models[n % 4].name)) for n in range(12)
        ]
        wait_for(lambda: server.reranker.gate.calls == 12)
        for model in models:
            started = time.monotonic()
            with pytest.raises(grpc.RpcError) as caught:
                another.Rerank(request_of("q", "d", model=model.name), timeout=WAIT)
            assert time.monotonic() - started < 1
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            status, _ = details_of(caught.value)
            assert (delay_ms_of(status) or 0) >= 100
            assert another.Health(pb.HealthRequest(model=model.name), timeout=WAIT).serving
        assert len(another.ListModels(pb.ListModelsRequest(), timeout=WAIT).models) == 4
        assert check(server.port) < 1
        runner.let_all()
        assert all(len(call.result(WAIT).results) == 1 for call in inside)
        assert server.reranker.gate.calls == 0


def test_text_beyond_what_may_be_inside_is_refused_with_a_delay(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rerank_grpc.reranker.LIMITS", replace(LIMITS, characters_inside=100_000))
    runner = HeldRunner()
    with serving(runner=runner) as server, stub_of(server.port) as stub:
        inside = stub.Rerank.future(request_of("q", "word " * 15_000))
        runner.await_batch()
        with pytest.raises(grpc.RpcError) as caught:
            stub.Rerank(request_of("q", "word " * 10_000), timeout=WAIT)
        status, _ = details_of(caught.value)
        info = error_details_pb2.ErrorInfo.FromString(status.details[0].value)
        assert info.reason == "ERROR_REASON_QUEUE_FULL"
        assert info.metadata["max_characters"] == "100000"
        assert (delay_ms_of(status) or 0) >= 100
        runner.let_all()
        assert inside.result(WAIT).results


@pytest.mark.clock
@pytest.mark.skipif(not Path("/proc").exists(), reason="reads a process's memory from /proc")
def test_a_storm_of_cancelled_large_calls_costs_little_memory_and_delays_nobody_for_long():
    with command.served() as server, Client(server.target, retries=0, timeout=WAIT) as client:
        client.rerank("q", ["a", "b"])
        before = resident_mib(server.process.pid)
        storm = subprocess.Popen([sys.executable, "-c", STORM, server.target, str(STORM_SECONDS)])
        took, most = list[float](), before
        while storm.poll() is None:
            started = time.monotonic()
            client.rerank(f"q {len(took)}", ["a", "b"])
            took.append(time.monotonic() - started)
            most = max(most, resident_mib(server.process.pid))
        assert storm.returncode == 0
        assert len(took) > 10
        assert max(took) < 4  # the figure, 1 s, is measured apart: this machine may be busy
        assert most - before < 600


def resident_mib(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", status)
    assert found
    return int(found[1]) / 1024


def test_calls_that_wait_for_a_model_to_be_loaded_keep_no_call_of_another_out(
    monkeypatch: pytest.MonkeyPatch,
):
    loader = LateLoader(lazy_only=True)
    models = (ModelSpec("ready", "test"), ModelSpec("far away", "test", lazy=True))
    monkeypatch.setattr("rerank_grpc.reranker.LIMITS", replace(LIMITS, characters_inside=400_000))
    server = RerankServer(ServerSettings(models=models, port=0, admin_port=0), loader=loader)
    server.start()
    assert server.wait_until_loaded(WAIT)
    with stub_of(server.port) as stub:
        waiting = stub.Rerank.future(request_of("q", "word " * 18_000, model="far away"), timeout=WAIT)
        wait_for(lambda: server.reranker.lobby.calls == 1)
        with pytest.raises(grpc.RpcError) as caught:  # a quarter of the text is all that may wait
            stub.Rerank(request_of("q", "word " * 18_000, model="far away"), timeout=WAIT)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert server.reranker.gate.calls == 0
        large = request_of("q", *["word " * 18_000] * 4, model="ready")
        assert len(stub.Rerank(large, timeout=WAIT).results) == 4
        loader.may_load.set()
        assert waiting.result(WAIT).model == "far away"
    server.stop(5)
    assert server.reranker.lobby.calls == server.reranker.gate.calls == 0
