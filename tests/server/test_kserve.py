"""KServe's protocol over real channels: the scores of rerank.v1, in the form and the names of its callers."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from rerank_grpc import __version__
from rerank_grpc.config.settings import ModelSpec, ServerSettings
from rerank_grpc.engine.engine import OnDeath
from rerank_grpc.errors import ModelLoadError
from rerank_grpc.limits import LIMITS
from rerank_grpc.protocols import inference_pb2 as pb
from rerank_grpc.registry.slot import LoadedModel
from rerank_grpc.server.server import RerankServer
from rerank_grpc.telemetry.records import CallRecord
from rerank_grpc.types import State
from tests.server.test_errors import details_of
from tests.stubs import HealthStub, ReflectionStub, message_of
from tests.support import (
    WAIT,
    CountingRunner,
    HeldRunner,
    LateLoader,
    ScriptedLoader,
    call_lines,
    channel_of,
    logged,
    own_deadline,
    request_of,
    serving,
    stub_of,
    wait_for,
)

SERVICE = "inference.GRPCInferenceService"
QUERY = "How do I choose a new password?"
PASSAGES = (
    "Our office is closed on public holidays.",
    "To choose a new password, open Settings, then Security.",
    "密码至少要有十二个字符。",
    "",
)
Input = pb.ModelInferRequest.InferInputTensor
Wanted = pb.ModelInferRequest.InferRequestedOutputTensor
Parameter = pb.InferParameter

_Answer = TypeVar("_Answer")


class Stub:
    """The service's methods on a channel, as generated code would give them."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def _method(
        self, name: str, answer: Callable[[bytes], _Answer]
    ) -> grpc.UnaryUnaryMultiCallable[Any, _Answer]:
        path = f"/{SERVICE}/{name}"
        return self._channel.unary_unary(path, lambda message: message.SerializeToString(), answer)

    def live(self, **given: Any) -> bool:
        answer = pb.ServerLiveResponse.FromString
        return self._method("ServerLive", answer)(pb.ServerLiveRequest(), **given).live

    def ready(self, **given: Any) -> bool:
        answer = pb.ServerReadyResponse.FromString
        return self._method("ServerReady", answer)(pb.ServerReadyRequest(), **given).ready

    def model_ready(self, name: str = "", version: str = "", **given: Any) -> bool:
        request, answer = pb.ModelReadyRequest(name=name, version=version), pb.ModelReadyResponse.FromString
        return self._method("ModelReady", answer)(request, **given).ready

    def server(self, **given: Any) -> pb.ServerMetadataResponse:
        answer = pb.ServerMetadataResponse.FromString
        return self._method("ServerMetadata", answer)(pb.ServerMetadataRequest(), **given)

    def model(self, name: str = "", version: str = "", **given: Any) -> pb.ModelMetadataResponse:
        request = pb.ModelMetadataRequest(name=name, version=version)
        return self._method("ModelMetadata", pb.ModelMetadataResponse.FromString)(request, **given)

    def config(self, name: str = "", version: str = "", **given: Any) -> pb.ModelConfig:
        request = pb.ModelConfigRequest(name=name, version=version)
        return self._method("ModelConfig", pb.ModelConfigResponse.FromString)(request, **given).config

    def infer(self, request: pb.ModelInferRequest, **given: Any) -> pb.ModelInferResponse:
        return self._method("ModelInfer", pb.ModelInferResponse.FromString)(request, **given)


@contextmanager
def kserve_of(port: int | None) -> Iterator[Stub]:
    with channel_of(port) as channel:
        yield Stub(channel)


def packed(texts: Iterable[str | bytes]) -> bytes:
    """Writes texts as Triton's clients do: the length of each in four bytes, and its UTF-8."""
    encoded = [text.encode() if isinstance(text, str) else text for text in texts]
    return b"".join([struct.pack("<I", len(each)) + each for each in encoded])


def tensor(name: str, texts: Iterable[str | bytes], shape: Iterable[int] | None = None) -> Input:
    encoded = [text.encode() if isinstance(text, str) else text for text in texts]
    contents = pb.InferTensorContents(bytes_contents=encoded)
    return Input(name=name, datatype="BYTES", shape=shape or [len(encoded)], contents=contents)


def inference(
    queries: Iterable[str | bytes] = (QUERY,),
    passages: Iterable[str | bytes] = PASSAGES,
    *,
    raw: bool = False,
    shape: Iterable[int] | None = None,
    query_shape: Iterable[int] | None = None,
    **fields: Any,
) -> pb.ModelInferRequest:
    """Makes a request, its texts in the tensors or in raw_input_contents."""
    inputs = [tensor("QUERY", queries, query_shape), tensor("PASSAGE", passages, shape)]
    request = pb.ModelInferRequest(inputs=inputs, **fields)
    return as_raw(request) if raw else request


def as_raw(request: pb.ModelInferRequest) -> pb.ModelInferRequest:
    """Moves the texts of a request into raw_input_contents."""
    for each in request.inputs:
        request.raw_input_contents.append(packed(each.contents.bytes_contents))
        each.ClearField("contents")
    return request


def numbers(response: pb.ModelInferResponse, output: str = "SCORE") -> list[float]:
    """Reads an output by its name, in whichever form it came."""
    names = [each.name for each in response.outputs]
    place = names.index(output)
    if response.raw_output_contents:
        data = response.raw_output_contents[place]
        return list(struct.unpack(f"<{len(data) // 4}f", data))
    return list(response.outputs[place].contents.fp32_contents)


def posted(channel: grpc.Channel, path: str, data: bytes) -> bytes:
    """Sends bytes, whatever they are."""
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
    return call(data, timeout=WAIT)


def refusal(port: int | None, request: pb.ModelInferRequest) -> grpc.RpcError:
    with kserve_of(port) as stub, pytest.raises(grpc.RpcError) as caught:
        stub.infer(request, timeout=WAIT)
    return caught.value


def violation_of(error: grpc.RpcError) -> str:
    """Returns the field that a status of INVALID_ARGUMENT names in its BadRequest."""
    status, _ = details_of(error)
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in status.details)
    (violation,) = bad.field_violations
    return str(violation.field)


@pytest.fixture(scope="module")
def embedded() -> Iterator[RerankServer]:
    spec = ModelSpec("embedded", "embedded", aliases=("reranker",))
    with serving(replace(ServerSettings(), models=(spec,))) as server:
        yield server


@pytest.fixture(scope="module")
def scripted() -> Iterator[tuple[RerankServer, CountingRunner]]:
    runner = CountingRunner()
    with serving(runner=runner) as server:
        yield server, runner


# Scores.


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("shape", [[4], [4, 1], [1, 4]])
def test_scores_are_those_of_rerank_v1_to_the_bit_in_the_passages_order_and_shape(
    raw: bool, shape: list[int], embedded: RerankServer
):
    with stub_of(embedded.port) as rerank, kserve_of(embedded.port) as stub:
        ranked = rerank.Rerank(request_of(QUERY, *PASSAGES))
        answer = stub.infer(inference(raw=raw, shape=shape, query_shape=[1] * len(shape), id="order-66"))
    results = sorted(ranked.results, key=lambda result: result.index)
    assert numbers(answer) == [result.relevance_score for result in results]
    assert numbers(answer, "LOGIT") == [result.logit for result in results]
    assert numbers(answer)[1] == max(numbers(answer))
    assert [(each.name, each.datatype, list(each.shape)) for each in answer.outputs] == [
        ("SCORE", "FP32", shape),
        ("LOGIT", "FP32", shape),
    ]
    assert (answer.id, answer.model_name, answer.model_version) == (
        "order-66",
        "embedded",
        ranked.model_revision,
    )
    assert bool(answer.raw_output_contents) is raw
    assert any(each.HasField("contents") for each in answer.outputs) is not raw


def test_inputs_may_stand_in_any_order(embedded: RerankServer):
    request = inference(raw=True)
    swapped = pb.ModelInferRequest(
        inputs=reversed(request.inputs), raw_input_contents=reversed(request.raw_input_contents)
    )
    with kserve_of(embedded.port) as stub:
        assert numbers(stub.infer(swapped)) == numbers(stub.infer(request))


@pytest.mark.parametrize("raw", [False, True])
def test_the_outputs_that_are_asked_for_come_in_their_order(raw: bool, embedded: RerankServer):
    with kserve_of(embedded.port) as stub:
        both = stub.infer(inference(raw=raw))
        for names in (["LOGIT"], ["SCORE"], ["LOGIT", "SCORE"]):
            answer = stub.infer(inference(raw=raw, outputs=[Wanted(name=name) for name in names]))
            assert [each.name for each in answer.outputs] == names
            for name in names:
                assert numbers(answer, name) == numbers(both, name)


def test_a_query_for_each_passage_is_scored_with_its_own(embedded: RerankServer):
    queries = ["When is the office closed?", QUERY, "When is the office closed?", "多少个字符?"]
    with stub_of(embedded.port) as rerank, kserve_of(embedded.port) as stub:
        answer = stub.infer(inference(queries))
        expected = dict[int, float]()
        for query in set(queries):
            places = [place for place, own in enumerate(queries) if own == query]
            for result in rerank.Rerank(request_of(query, *[PASSAGES[place] for place in places])).results:
                expected[places[result.index]] = result.relevance_score
    assert numbers(answer) == [expected[place] for place in range(4)]


def test_one_query_sent_once_for_each_passage_is_one_call(
    scripted: tuple[RerankServer, CountingRunner],
):
    server, runner = scripted
    before = len(runner.batches)
    with kserve_of(server.port) as stub:
        stub.infer(inference([QUERY] * 4))
    assert len(runner.batches) == before + 1


def test_options_are_those_of_rerank_v1_by_their_names(embedded: RerankServer):
    long = "word " * 300 + "choose a new password in settings"
    options = {
        "truncation": Parameter(string_param="start"),
        "max_tokens_per_document": Parameter(int64_param=8),
        "ignore_unsupported_options": Parameter(bool_param=True),
        "instruction": Parameter(string_param="find the answer"),
    }
    ignored = {
        "priority": Parameter(uint64_param=1),
        "timeout": Parameter(int64_param=1),
        "sequence_id": Parameter(string_param="s"),
        "max_chunks_per_document": Parameter(int64_param=0),
    }
    with stub_of(embedded.port) as rerank, kserve_of(embedded.port) as stub:
        request = request_of(QUERY, long, truncation="TRUNCATION_START", max_tokens_per_document=8)
        (cut,) = rerank.Rerank(request).results
        (whole,) = rerank.Rerank(request_of(QUERY, long)).results
        assert numbers(stub.infer(inference(passages=[long], parameters=options))) == [cut.relevance_score]
        assert numbers(stub.infer(inference(passages=[long], parameters=ignored))) == [whole.relevance_score]
    assert cut.relevance_score != whole.relevance_score


@pytest.mark.parametrize("raw", [False, True])
def test_as_many_passages_as_rerank_v1_takes_are_scored(
    raw: bool, scripted: tuple[RerankServer, CountingRunner]
):
    server, _ = scripted
    many = [f"passage {number}" for number in range(LIMITS.documents)]
    with kserve_of(server.port) as stub:
        once = numbers(stub.infer(inference(passages=many, raw=raw)))
        each = numbers(stub.infer(inference([QUERY] * len(many), many, raw=raw)))
    assert len(set(once)) > 990
    assert once == each


# Metadata and readiness.


def test_server_and_model_are_described(embedded: RerankServer):
    with stub_of(embedded.port) as rerank, kserve_of(embedded.port) as stub:
        revision = rerank.Rerank(request_of("q", "d")).model_revision
        server, model, config = stub.server(), stub.model("reranker"), stub.config()
        assert stub.model("", revision) == model
    assert (server.name, server.version, list(server.extensions)) == (
        "rerank-grpc",
        __version__,
        ["model_configuration"],
    )
    assert (model.name, list(model.versions), model.platform) == ("embedded", [revision], "rerank-grpc")
    told = [(each.name, each.datatype, list(each.shape)) for each in (*model.inputs, *model.outputs)]
    assert told == [
        ("QUERY", "BYTES", [-1]),
        ("PASSAGE", "BYTES", [-1]),
        ("SCORE", "FP32", [-1]),
        ("LOGIT", "FP32", [-1]),
    ]
    assert (config.name, config.max_batch_size) == ("embedded", 0)
    assert [(each.name, each.data_type, list(each.dims)) for each in config.input] == [
        ("QUERY", pb.TYPE_STRING, [-1]),
        ("PASSAGE", pb.TYPE_STRING, [-1]),
    ]
    assert [(each.name, each.data_type, list(each.dims)) for each in config.output] == [
        ("SCORE", pb.TYPE_FP32, [-1]),
        ("LOGIT", pb.TYPE_FP32, [-1]),
    ]


@pytest.mark.parametrize(("name", "version"), [("none", ""), ("", "1"), ("embedded", "x" * 3_000)])
@pytest.mark.parametrize("method", ["model_ready", "model", "config", "infer"])
def test_an_unknown_model_or_version_is_not_found(
    method: str, name: str, version: str, scripted: tuple[RerankServer, CountingRunner]
):
    server, runner = scripted
    before = len(runner.batches)
    request = [inference(model_name=name, model_version=version)] if method == "infer" else [name, version]
    with kserve_of(server.port) as stub, pytest.raises(grpc.RpcError) as caught:
        getattr(stub, method)(*request)
    status, _ = details_of(caught.value)
    info = error_details_pb2.ErrorInfo.FromString(status.details[0].value)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert info.reason == "ERROR_REASON_UNKNOWN_MODEL"
    assert "embedded" in message_of(caught.value)
    assert len(message_of(caught.value)) < 300
    assert len(runner.batches) == before


def test_the_served_version_may_be_asked_for(scripted: tuple[RerankServer, CountingRunner]):
    server, _ = scripted
    with kserve_of(server.port) as stub:
        assert stub.model_ready("embedded", "test")
        assert stub.infer(inference(model_version="test")).model_version == "test"


@contextmanager
def started(settings: ServerSettings, loader: ScriptedLoader) -> Iterator[RerankServer]:
    """Starts a server and does not wait for its models."""
    server = RerankServer(replace(settings, port=0, admin_port=0), loader=loader)
    server.start()
    try:
        yield server
    finally:
        if isinstance(loader, LateLoader):
            loader.may_load.set()
        server.stop(5)


def test_while_the_default_model_is_loading_the_server_lives_and_is_not_ready(
    monkeypatch: pytest.MonkeyPatch,
):
    models = (ModelSpec("first", "one"), ModelSpec("second", "two", lazy=True))
    loader = LateLoader()
    with started(ServerSettings(models=models), loader) as server, kserve_of(server.port) as stub:
        assert stub.live()
        assert (stub.ready(), stub.model_ready(), stub.model_ready("first")) == (False, False, False)
        assert stub.model_ready("second")  # a call has it loaded
        assert list(stub.model("first").versions) == []
        with monkeypatch.context() as patch:
            own_deadline(patch, 0.2)
            with pytest.raises(grpc.RpcError) as caught:
                stub.infer(inference(), timeout=WAIT)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        loader.may_load.set()
        wait_for(stub.ready)
        assert stub.model_ready()
        assert stub.infer(inference(model_name="second"), timeout=WAIT).model_name == "second"


class FailingLoader(ScriptedLoader):
    """Loads no model."""

    def load(self, spec: ModelSpec, on_death: OnDeath) -> LoadedModel:
        raise ModelLoadError("its weights are cut short: copy it again")


def test_a_failed_model_is_not_ready_and_a_call_says_why():
    with started(ServerSettings(), FailingLoader()) as server, kserve_of(server.port) as stub:
        wait_for(lambda: server.registry.info("").state is State.FAILED)
        assert stub.live()
        assert (stub.ready(), stub.model_ready()) == (False, False)
        error = refusal(server.port, inference())
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "copy it again" in message_of(error)


def test_an_unloaded_model_is_ready_because_a_call_has_it_loaded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rerank_grpc.registry.eviction.LEAST_STAY_SECONDS", 0.0)
    settings = replace(ServerSettings(), models=(ModelSpec("embedded", "embedded"),))
    with serving(settings, runner=CountingRunner()) as server, kserve_of(server.port) as stub:
        with channel_of(server.admin_port) as admin:
            posted(admin, "/rerank.v1.ModelAdminService/UnloadModel", b"\x0a\x08embedded")
        assert server.registry.info("").state is State.UNLOADED
        assert stub.ready()
        assert stub.model_ready()
        assert stub.model_ready("", "any, because the revision is not known")
        error = refusal(server.port, inference(model_version="2"))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert stub.infer(inference(model_version="test")).model_version == "test"


def test_a_server_that_is_leaving_is_not_ready_and_still_answers():
    with serving(runner=CountingRunner()) as server, kserve_of(server.port) as stub:
        server.leave()
        assert stub.live()
        assert (stub.ready(), stub.model_ready()) == (False, False)
        assert len(numbers(stub.infer(inference()))) == len(PASSAGES)


# What every protocol on the port shares.


def test_where_tokens_are_set_no_method_is_entered_without_one():
    runner = CountingRunner()
    right = (("authorization", "Bearer right"),)
    calls: dict[str, Callable[..., object]] = {}
    with (
        serving(replace(ServerSettings(), access_tokens=("right",)), runner=runner) as server,
        kserve_of(server.port) as stub,
    ):
        calls = {name: getattr(stub, name) for name in ("live", "ready", "model_ready", "server", "model")}
        calls |= {"config": stub.config, "infer": lambda **given: stub.infer(inference(), **given)}
        for name, call in calls.items():
            for metadata in ((), (("authorization", "Bearer wrong"),)):
                with pytest.raises(grpc.RpcError) as caught:
                    call(metadata=metadata)
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED, name
        assert runner.batches == []
        for name, call in calls.items():
            assert call(metadata=right), name
        assert runner.sequences == len(PASSAGES)


def test_reflection_describes_it_and_health_answers_for_it(scripted: tuple[RerankServer, CountingRunner]):
    server, _ = scripted
    question = reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE)
    listing = reflection_pb2.ServerReflectionRequest(list_services="")
    with channel_of(server.port) as channel:
        found, listed = ReflectionStub(channel).ServerReflectionInfo(iter([question, listing]))
        check = HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=SERVICE))
    (file,) = found.file_descriptor_response.file_descriptor_proto
    described = FileDescriptorProto.FromString(file)
    (service,) = described.service
    assert (described.package, service.name) == ("inference", "GRPCInferenceService")
    assert SERVICE in [each.name for each in listed.list_services_response.service]
    assert check.status == health_pb2.HealthCheckResponse.SERVING


def test_the_log_tells_the_protocol_and_hides_probes_and_texts(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "rerank_grpc.calls")
    with serving(runner=CountingRunner()) as server, kserve_of(server.port) as stub:
        stub.live()
        stub.ready()
        stub.model_ready()
        queries = ["canary one", "canary two", "canary one", "canary two"]
        stub.infer(inference(queries), metadata=(("x-request-id", "order-66"),))
        refusal(server.port, inference(["canary"], [b"canary \xff"]))
        wait_for(lambda: len(caplog.records) >= 2)
    lines = call_lines(caplog)
    assert lines[0].startswith("kserve.ModelInfer OK documents=4 model=embedded tokens=")
    assert " request_id=order-66 " in lines[0]
    assert lines[1].startswith("kserve.ModelInfer INVALID_ARGUMENT reason=invalid_request request_id=")
    assert len(lines) == 2
    assert "canary" not in logged(caplog)


def test_the_record_of_several_queries_adds_up_what_they_cost():
    records = list[CallRecord]()
    settings = replace(ServerSettings(), port=0, admin_port=0)
    server = RerankServer(settings, loader=ScriptedLoader(), sinks=(records.append,))
    server.start()
    try:
        assert server.wait_until_loaded(WAIT)
        with kserve_of(server.port) as stub:
            stub.infer(inference(["a", "b c"], ["d", "e f"]))
    finally:
        server.stop(5)
    (record,) = records
    assert record.summary is not None
    assert (record.documents, record.summary.usage.input_tokens) == (2, 4 + 6)


def test_the_deadline_of_the_call_holds_for_all_its_queries():
    runner = HeldRunner()
    with serving(runner=runner) as server, kserve_of(server.port) as stub:
        with pytest.raises(grpc.RpcError) as caught:
            stub.infer(inference(["a", "b"], ["c", "d"]), timeout=0.3)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        runner.let_all()


# Wrong and hostile requests.


def changed(change: Callable[[pb.ModelInferRequest], object], *, raw: bool = False) -> pb.ModelInferRequest:
    request = inference(raw=raw)
    change(request)
    return request


def without(index: int) -> Callable[[pb.ModelInferRequest], object]:
    return lambda request: request.inputs.pop(index)


def shaped(index: int, *shape: int) -> Callable[[pb.ModelInferRequest], object]:
    def change(request: pb.ModelInferRequest) -> None:
        request.inputs[index].shape[:] = shape

    return change


def with_raw(index: int, data: bytes) -> Callable[[pb.ModelInferRequest], object]:
    def change(request: pb.ModelInferRequest) -> None:
        request.raw_input_contents[index] = data

    return change


def with_parameter(name: str, parameter: Parameter) -> Callable[[pb.ModelInferRequest], object]:
    return lambda request: request.parameters[name].CopyFrom(parameter)


def typed(index: int, datatype: str) -> Callable[[pb.ModelInferRequest], object]:
    return lambda request: setattr(request.inputs[index], "datatype", datatype)


def named(index: int, name: str) -> Callable[[pb.ModelInferRequest], object]:
    return lambda request: setattr(request.inputs[index], "name", name)


LIST_SHAPE = "must be [n], [n, 1] or [1, n]"
LONG = "x" * (LIMITS.characters + 1)
SHARED = {"shared_memory_region": Parameter(string_param="r")}

REFUSED: dict[str, tuple[pb.ModelInferRequest, str, str]] = {
    "no inputs": (pb.ModelInferRequest(), "inputs", "QUERY is missing"),
    "no QUERY": (changed(without(0)), "inputs", "QUERY is missing"),
    "no PASSAGE": (changed(without(1)), "inputs", "PASSAGE is missing"),
    "QUERY twice": (changed(named(1, "QUERY")), "inputs[1].name", "QUERY is there twice"),
    "a third input": (
        changed(lambda request: request.inputs.append(tensor("MASK", ["x"]))),
        "inputs[2].name",
        "'MASK' is unknown: QUERY and PASSAGE are served",
    ),
    "another case": (changed(named(0, "query")), "inputs[0].name", "'query' is unknown"),
    "a long name": (changed(named(0, "x" * 10_000)), "inputs[0].name", f"{'x' * 100}' is unknown"),
    "a name with a line feed": (changed(named(0, "a\nb")), "inputs[0].name", r"'a\nb' is unknown"),
    "numbers": (changed(typed(0, "INT32")), "QUERY.datatype", "must be BYTES"),
    "no datatype": (changed(typed(1, "")), "PASSAGE.datatype", "must be BYTES"),
    "a scalar": (changed(shaped(0)), "QUERY.shape", LIST_SHAPE),
    "three dimensions": (changed(shaped(1, 4, 1, 1)), "PASSAGE.shape", LIST_SHAPE),
    "a matrix": (changed(shaped(1, 2, 2)), "PASSAGE.shape", LIST_SHAPE),
    "a negative size": (changed(shaped(1, -4)), "PASSAGE.shape", LIST_SHAPE),
    "two negative sizes": (changed(shaped(1, -4, -1)), "PASSAGE.shape", LIST_SHAPE),
    "an unknown size": (changed(shaped(1, -1)), "PASSAGE.shape", LIST_SHAPE),
    "no passage": (changed(shaped(1, 0)), "PASSAGE", "must not be empty"),
    "no query": (changed(shaped(0, 1, 0)), "QUERY", "must not be empty"),
    "a huge size": (
        changed(shaped(1, 2**62, 1)),
        "PASSAGE",
        "holds 4,611,686,018,427,387,904, at most 1,000",
    ),
    "sizes that overflow": (changed(shaped(1, 2**62, 2**62)), "PASSAGE.shape", LIST_SHAPE),
    "many dimensions": (changed(shaped(1, *[1] * 2_000)), "PASSAGE.shape", LIST_SHAPE),
    "too small a shape": (changed(shaped(1, 3)), "PASSAGE", "has 4 elements where its shape says 3"),
    "too large a shape": (changed(shaped(1, 5)), "PASSAGE", "has 4 elements where its shape says 5"),
    "no contents": (
        changed(lambda request: request.inputs[0].ClearField("contents")),
        "QUERY",
        "has 0 elements where its shape says 1",
    ),
    "contents of another type": (
        changed(
            lambda request: request.inputs[0].contents.CopyFrom(pb.InferTensorContents(int_contents=[1]))
        ),
        "QUERY",
        "has 0 elements where its shape says 1",
    ),
    "two queries for four passages": (inference(["a", "b"]), "QUERY", "one for each element of PASSAGE"),
    "four queries for one passage": (inference(["a"] * 4, ["b"]), "QUERY", "which has 1"),
    "too many passages": (inference(passages=["p"] * 1_001), "PASSAGE", "holds 1,001, at most 1,000"),
    "too many raw passages": (
        inference(passages=["p"] * 1_001, raw=True),
        "PASSAGE",
        "holds 1,001, at most 1,000",
    ),
    "no UTF-8": (
        inference(passages=["a", b"caf\xe9 au lait"]),
        "PASSAGE[1]",
        "is no UTF-8 at byte 3",
    ),
    "a raw query that is no UTF-8": (
        inference([b"\xed\xa0\x80"], raw=True),
        "QUERY[0]",
        "is no UTF-8 at byte 0",
    ),
    "one raw content for two inputs": (
        changed(lambda request: request.raw_input_contents.pop(), raw=True),
        "raw_input_contents",
        "holds 1, must hold one for each of 2 inputs",
    ),
    "three raw contents": (
        changed(lambda request: request.raw_input_contents.append(b""), raw=True),
        "raw_input_contents",
        "holds 3",
    ),
    "both forms": (
        changed(lambda request: request.inputs[1].contents.bytes_contents.append(b"x"), raw=True),
        "PASSAGE.contents",
        "must be empty",
    ),
    "raw contents without a length": (changed(with_raw(0, b""), raw=True), "QUERY[0]", "is longer than"),
    "a length cut short": (changed(with_raw(0, b"\x01\x00\x00"), raw=True), "QUERY[0]", "is longer than"),
    "a text cut short": (
        changed(with_raw(1, packed(["a", "bc"])[:-1]), raw=True),
        "PASSAGE[1]",
        "is longer than",
    ),
    "a length of 4 GiB": (
        changed(with_raw(0, b"\xff\xff\xff\xffabc"), raw=True),
        "QUERY[0]",
        "is longer than",
    ),
    "too few raw elements": (
        changed(with_raw(1, packed(["a", "b"])), raw=True),
        "PASSAGE[2]",
        "is longer than",
    ),
    "too many raw elements": (
        changed(with_raw(0, packed(["a", "b"])), raw=True),
        "QUERY",
        "go on for 5 bytes after 1 elements",
    ),
    "an empty query": (inference([""]), "QUERY[0]", "must not be empty"),
    "an empty query among others": (inference(["a", "b", "", ""]), "QUERY[2]", "must not be empty"),
    "a query too long": (inference([LONG]), "QUERY[0]", "has 100,001 characters, at most 100,000"),
    "a passage too long": (inference(passages=["a", "b", LONG]), "PASSAGE[2]", "has 100,001 characters"),
    "a passage too long of a later query": (
        inference(["a", "b", "a", "b"], ["c", "d", "e", LONG]),
        "PASSAGE[3]",
        "has 100,001 characters",
    ),
    "an id too long": (inference(id="x" * 1_025), "id", "has 1,025 characters, at most 1,024"),
    "an unknown output": (
        inference(outputs=[Wanted(name="SCORE"), Wanted(name="RANK")]),
        "outputs[1].name",
        "'RANK' is unknown: SCORE and LOGIT are served",
    ),
    "an output twice": (
        inference(outputs=[Wanted(name="SCORE")] * 1_000),
        "outputs[1].name",
        "SCORE is there twice",
    ),
    "shared memory for an input": (
        changed(
            lambda request: request.inputs[1].parameters["shared_memory_region"].CopyFrom(SHARED.popitem()[1])
        ),
        "inputs[1].parameters[shared_memory_region]",
        "is not served",
    ),
    "classes for an output": (
        inference(outputs=[Wanted(name="SCORE", parameters={"classification": Parameter(int64_param=1)})]),
        "outputs[0].parameters[classification]",
        "is not served",
    ),
    "an instruction that is a number": (
        changed(with_parameter("instruction", Parameter(int64_param=1))),
        "parameters[instruction]",
        "must be a string",
    ),
    "an option without a value": (
        changed(with_parameter("instruction", Parameter())),
        "parameters[instruction]",
        "must be a string",
    ),
    "a truncation of no kind": (
        changed(with_parameter("truncation", Parameter(string_param="middle"))),
        "parameters[truncation]",
        'must be "end", "start" or "none"',
    ),
    "a truncation that is no number": (
        changed(with_parameter("truncation", Parameter(double_param=float("nan")))),
        "parameters[truncation]",
        'must be "end", "start" or "none"',
    ),
    "true tokens": (
        changed(with_parameter("max_tokens_per_document", Parameter(bool_param=True))),
        "parameters[max_tokens_per_document]",
        "must be an integer from 0",
    ),
    "fewer than no tokens": (
        changed(with_parameter("max_tokens_per_document", Parameter(int64_param=-1))),
        "parameters[max_tokens_per_document]",
        "must be an integer from 0",
    ),
    "too many tokens": (
        changed(with_parameter("max_tokens_per_document", Parameter(uint64_param=2**64 - 1))),
        "parameters[max_tokens_per_document]",
        "must be an integer from 0",
    ),
    "too many chunks": (
        changed(with_parameter("max_chunks_per_document", Parameter(int64_param=65))),
        "parameters[max_chunks_per_document]",
        "at most 64 are allowed",
    ),
    "one for true": (
        changed(with_parameter("ignore_unsupported_options", Parameter(int64_param=1))),
        "parameters[ignore_unsupported_options]",
        "must be a boolean",
    ),
    "a flood of passages": (
        inference(passages=[b""] * 1_000_000),
        "inputs[1].contents.bytes_contents",
        "more than 2,256 values",
    ),
    "a flood of inputs": (pb.ModelInferRequest(inputs=[Input()] * 1_000_000), "inputs[2256]", "2,256 values"),
    "a flood of parameters": (
        inference(parameters={str(number): Parameter() for number in range(100_000)}),
        "parameters",
        "2,256 values",
    ),
    "a flood of dimensions": (changed(shaped(1, *[1] * 1_000_000)), "inputs[1].shape", "2,256 values"),
    "a flood of raw contents": (
        pb.ModelInferRequest(raw_input_contents=[b""] * 1_000_000),
        "raw_input_contents",
        "2,256 values",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_request_is_refused_in_one_line_with_its_field_and_nothing_is_computed(
    case: str, scripted: tuple[RerankServer, CountingRunner]
):
    server, runner = scripted
    before = len(runner.batches)
    request, field, words = REFUSED[case]
    error = refusal(server.port, request)
    message, named_field = message_of(error), violation_of(error)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert named_field == field or named_field.startswith(f"{field}[")
    assert message.startswith(f"{named_field}: ")
    assert words in message
    assert "\n" not in message
    assert len(message) < 300
    assert len(runner.batches) == before


def test_an_instruction_to_a_model_that_takes_none_is_unsupported(embedded: RerankServer):
    error = refusal(
        embedded.port, inference(parameters={"instruction": Parameter(string_param="find pandas")})
    )
    status, _ = details_of(error)
    info = error_details_pb2.ErrorInfo.FromString(status.details[0].value)
    assert info.reason == "ERROR_REASON_UNSUPPORTED_OPTION"
    assert violation_of(error) == "parameters[instruction]"


def test_a_passage_that_may_not_be_truncated_is_named(embedded: RerankServer):
    passages = ["short", "word " * 2_000]
    error = refusal(
        embedded.port, inference(passages=passages, parameters={"truncation": Parameter(string_param="none")})
    )
    assert violation_of(error) == "PASSAGE[1]"


CUT, GROUP, NO_UTF8 = b"\x0a\x05ab", b"\x0b\x0c", b"\x0a\x02\xff\xfe"


@pytest.mark.parametrize(
    ("method", "data"),
    [
        *(
            (f"Model{name}", data)
            for name in ("Ready", "Metadata", "Config", "Infer")
            for data in (CUT, NO_UTF8)
        ),
        *((name, b"\xff\xff") for name in ("ServerLive", "ServerReady", "ServerMetadata", "ModelInfer")),
        ("ModelInfer", b"\xfa\xff\xff\xff\xff\xff\xff\xff\xff\x01\x00"),
        ("ModelInfer", GROUP),
        ("ModelInfer", b"\x2a\x02" + GROUP),
        ("ModelInfer", b"\x2a\x7f\x0a\x01a"),
    ],
)
def test_bytes_that_are_no_message_are_invalid_with_an_error_info(
    method: str, data: bytes, scripted: tuple[RerankServer, CountingRunner]
):
    server, _ = scripted
    with channel_of(server.port) as channel, pytest.raises(grpc.RpcError) as caught:
        posted(channel, f"/{SERVICE}/{method}", data)
    status, _ = details_of(caught.value)
    info = error_details_pb2.ErrorInfo.FromString(status.details[0].value)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert info.reason == "ERROR_REASON_INVALID_REQUEST"
    what = "a text of the inference.{} is not UTF-8" if data == NO_UTF8 else "the message is no inference.{}"
    assert message_of(caught.value).startswith(what.format(f"{method}Request"))


@pytest.mark.parametrize("method", ["RepositoryIndex", "ModelStatistics", "ModelStreamInfer"])
def test_what_triton_has_besides_is_unimplemented(method: str, scripted: tuple[RerankServer, CountingRunner]):
    server, _ = scripted
    with channel_of(server.port) as channel, pytest.raises(grpc.RpcError) as caught:
        posted(channel, f"/{SERVICE}/{method}", b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# As the protocol numbers its fields: other servers' stubs depend on them.
NUMBERS = {
    "ServerLiveResponse": {"live": 1},
    "ServerReadyResponse": {"ready": 1},
    "ModelReadyRequest": {"name": 1, "version": 2},
    "ModelReadyResponse": {"ready": 1},
    "ServerMetadataResponse": {"name": 1, "version": 2, "extensions": 3},
    "ModelMetadataRequest": {"name": 1, "version": 2},
    "ModelMetadataResponse": {"name": 1, "versions": 2, "platform": 3, "inputs": 4, "outputs": 5},
    "ModelMetadataResponse.TensorMetadata": {"name": 1, "datatype": 2, "shape": 3},
    "ModelInferRequest": {
        "model_name": 1,
        "model_version": 2,
        "id": 3,
        "parameters": 4,
        "inputs": 5,
        "outputs": 6,
        "raw_input_contents": 7,
    },
    "ModelInferRequest.InferInputTensor": {
        "name": 1,
        "datatype": 2,
        "shape": 3,
        "parameters": 4,
        "contents": 5,
    },
    "ModelInferRequest.InferRequestedOutputTensor": {"name": 1, "parameters": 2},
    "ModelInferResponse": {
        "model_name": 1,
        "model_version": 2,
        "id": 3,
        "parameters": 4,
        "outputs": 5,
        "raw_output_contents": 6,
    },
    "ModelInferResponse.InferOutputTensor": {
        "name": 1,
        "datatype": 2,
        "shape": 3,
        "parameters": 4,
        "contents": 5,
    },
    "InferParameter": {
        "bool_param": 1,
        "int64_param": 2,
        "string_param": 3,
        "double_param": 4,
        "uint64_param": 5,
    },
    "InferTensorContents": {
        "bool_contents": 1,
        "int_contents": 2,
        "int64_contents": 3,
        "uint_contents": 4,
        "uint64_contents": 5,
        "fp32_contents": 6,
        "fp64_contents": 7,
        "bytes_contents": 8,
    },
    "ModelConfigRequest": {"name": 1, "version": 2},
    "ModelConfigResponse": {"config": 1},
    "ModelConfig": {"name": 1, "platform": 2, "max_batch_size": 4, "input": 5, "output": 6},
    "ModelInput": {"name": 1, "data_type": 2, "dims": 4},
    "ModelOutput": {"name": 1, "data_type": 2, "dims": 3},
}


@pytest.mark.parametrize("message", NUMBERS)
def test_fields_have_the_numbers_of_the_protocol(message: str):
    kind: Any = pb
    for part in message.split("."):
        kind = getattr(kind, part)
    assert {field.name: field.number for field in kind.DESCRIPTOR.fields} == NUMBERS[message]
