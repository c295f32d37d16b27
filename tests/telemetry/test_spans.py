"""The names, attributes and times of spans, from records alone."""

import pytest
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes, rpc_attributes
from opentelemetry.semconv.attributes import error_attributes, http_attributes, url_attributes
from opentelemetry.semconv.schemas import Schemas

from rerank_grpc.errors import Reason
from rerank_grpc.protocols import inference_pb2, tei_pb2
from rerank_grpc.telemetry import spans
from rerank_grpc.telemetry.families import GRPC_METHODS
from rerank_grpc.telemetry.ids import CallIds
from rerank_grpc.telemetry.records import LOOKS, PROBES, BatchRecord, CallRecord
from rerank_grpc.types import RerankSummary, Timeline, Usage
from rerank_grpc.v1 import rerank_pb2


def ended(*timelines: Timeline, reason: Reason | None = None, code: str = "OK") -> CallRecord:
    """A call from 100 s to 110 s."""
    record = CallRecord("Rerank", CallIds(), reason=reason, code=code, started=100.0, seconds=10.0)
    record.timelines.extend(timelines)
    return record


def stages(record: CallRecord, most: int = 32) -> list[tuple[str, float, float, bool]]:
    found = [stage for stage, _ in spans.stages_of(record, most)]
    return [(stage.name, stage.start, stage.end, stage.broken) for stage in found]


def test_each_method_has_the_full_name_that_its_service_has():
    described = {
        f"{service.full_name}/{method.name}"
        for module in (rerank_pb2, tei_pb2, inference_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert set(spans.RPC_METHODS.values()) <= described
    assert len(set(spans.RPC_METHODS.values())) == len(spans.RPC_METHODS)


def test_every_method_that_the_servers_record_has_a_name_or_no_span():
    assert set(GRPC_METHODS) == spans.RPC_METHODS.keys() | LOOKS
    assert not any(spans.is_traced(CallRecord(method, CallIds())) for method in (*LOOKS, *PROBES))
    assert spans.is_traced(CallRecord("Rerank", CallIds()))


def test_a_call_that_went_through_has_all_stages_and_they_fill_its_time():
    timeline = Timeline(101.0, admitted=102.0, tokenized=104.0, started=105.0, finished=109.0)
    assert stages(ended(timeline)) == [
        ("admission", 101.0, 102.0, False),
        ("tokenize", 102.0, 104.0, False),
        ("queue", 104.0, 105.0, False),
        ("inference", 105.0, 109.0, False),
        ("answer", 109.0, 110.0, False),
    ]


@pytest.mark.parametrize(
    ("timeline", "broken"),
    [
        (Timeline(101.0), "admission"),
        (Timeline(101.0, admitted=102.0), "tokenize"),
        (Timeline(101.0, admitted=102.0, tokenized=103.0), "queue"),
        (Timeline(101.0, admitted=102.0, tokenized=103.0, started=104.0), "inference"),
        (Timeline(101.0, admitted=102.0, tokenized=103.0, started=104.0, finished=105.0), "answer"),
    ],
)
def test_a_call_that_fails_breaks_the_stage_that_it_is_in(timeline: Timeline, broken: str):
    *before, last = stages(ended(timeline, reason=Reason.INTERNAL))
    assert (last[0], last[2], last[3]) == (broken, 110.0, True)
    assert not any(is_broken for _, _, _, is_broken in before)


def test_a_caller_that_leaves_a_stream_has_cancelled_it():
    timeline = Timeline(101.0, admitted=102.0, tokenized=103.0, started=104.0)
    record = ended(timeline, reason=Reason.CANCELLED, code="CANCELLED")
    assert stages(record)[-1] == ("inference", 104.0, 110.0, True)
    found = spans.attributes_of(record)
    assert (found["rpc.response.status_code"], found["error.type"]) == ("CANCELLED", "cancelled")
    assert not spans.is_fault(record)


def test_a_call_with_nothing_to_score_is_answered_from_its_tokens_on():
    timeline = Timeline(101.0, admitted=102.0, tokenized=103.0, documents=1)
    assert [name for name, *_ in stages(ended(timeline))] == ["admission", "tokenize", "answer"]


def test_a_sequence_that_was_on_the_device_before_its_call_came_makes_no_time_negative():
    timeline = Timeline(101.0, admitted=102.0, tokenized=104.0, started=103.0, finished=111.0)
    times = [(start, end) for _, start, end, _ in stages(ended(timeline))]
    assert all(100.0 <= start <= end <= 110.0 for start, end in times)


def test_of_several_requests_each_has_its_stages_and_the_last_one_the_answer():
    one = Timeline(101.0, admitted=102.0, tokenized=103.0, started=104.0, finished=105.0)
    two = Timeline(105.0, admitted=106.0, tokenized=107.0, started=108.0, finished=109.0)
    names = [name for name, *_ in stages(ended(one, two))]
    assert names.count("inference") == 2
    assert names.index("answer") == len(names) - 1
    assert spans.attributes_of(ended(one, two))["rerank.requests"] == 2


def test_of_very_many_requests_only_the_first_have_stages():
    timelines = [Timeline(101.0, "m", 102.0, 103.0, 104.0, 105.0) for _ in range(100)]
    names = [name for name, *_ in stages(ended(*timelines), most=3)]
    assert names == ["admission", "tokenize", "queue", "inference"] * 3


def test_counts_stand_at_the_stages_that_they_concern():
    timeline = Timeline(
        101.0, "m", 102.0, 103.0, 104.0, 105.0, documents=3, pairs=4, tokens=50, truncated=1, shared=2
    )
    found = {stage.name: stage.attributes for stage, _ in spans.stages_of(ended(timeline), 32)}
    assert found == {
        "admission": {},
        "tokenize": {
            "rerank.documents": 3,
            "rerank.truncated_documents": 1,
            "rerank.pairs": 4,
            "rerank.tokens": 50,
        },
        "queue": {"rerank.pairs": 4, "rerank.tokens": 50},
        "inference": {
            "rerank.pairs": 4,
            "rerank.shared_pairs": 2,
            "rerank.tokens": 50,
            "rerank.batches": 0,
        },
        "answer": {"rerank.documents": 3},
    }


def test_a_grpc_call_is_told_by_the_conventions():
    record = ended()
    record.documents, record.summary = 2, RerankSummary("bge", usage=Usage(input_tokens=31))
    assert spans.name_of(record) == "rerank.v1.RerankService/Rerank"
    assert spans.attributes_of(record) == {
        "rpc.system.name": "grpc",
        "rpc.method": "rerank.v1.RerankService/Rerank",
        "rpc.response.status_code": "OK",
        "gen_ai.operation.name": "rerank",
        "gen_ai.provider.name": "rerank-grpc",
        "gen_ai.request.model": "bge",
        "gen_ai.usage.input_tokens": 31,
        "rerank.documents": 2,
    }


def test_a_rest_call_is_told_by_the_conventions():
    record = CallRecord("rerank", CallIds(), "rest", "voyage", route="POST /v1/rerank", status=429)
    record.code, record.reason = "RESOURCE_EXHAUSTED", Reason.QUEUE_FULL
    assert spans.name_of(record) == "POST /v1/rerank"
    assert spans.attributes_of(record) == {
        "http.request.method": "POST",
        "http.route": "/v1/rerank",
        "http.response.status_code": 429,
        "url.scheme": "http",
        "gen_ai.operation.name": "rerank",
        "gen_ai.provider.name": "rerank-grpc",
        "rerank.dialect": "voyage",
        "error.type": "queue_full",
    }
    assert not spans.is_fault(record)


def test_only_what_the_server_is_to_blame_for_is_a_fault():
    record = ended()
    faults = set()
    for code in ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "INTERNAL", "UNAVAILABLE"):
        record.code = code
        if spans.is_fault(record):
            faults.add(code)
    assert faults == {"INTERNAL", "UNAVAILABLE"}


def test_a_question_about_models_is_no_operation_of_one():
    assert "gen_ai.operation.name" not in spans.attributes_of(CallRecord("ListModels", CallIds()))


def test_a_method_that_nobody_knows_is_told_as_such():
    record = CallRecord("other", CallIds(), code="UNAUTHENTICATED", reason=Reason.UNAUTHENTICATED)
    assert spans.name_of(record) == "grpc"
    assert spans.attributes_of(record)["rpc.method"] == "_OTHER"


def test_a_batch_tells_how_full_it_was():
    assert spans.attributes_of_batch(BatchRecord("m", 512, 2048, 7, 1.0, 2.0, 0.75)) == {
        "gen_ai.request.model": "m",
        "rerank.tokens": 512,
        "rerank.sequences": 7,
        "rerank.batch.budget_tokens": 2048,
        "rerank.batch.fill_ratio": 0.25,
        "rerank.batch.device_seconds": 0.75,
    }


def test_the_names_are_those_of_the_installed_conventions():
    installed = {}
    for module in (gen_ai_attributes, rpc_attributes, error_attributes, http_attributes, url_attributes):
        installed.update(vars(module))
    ours = {
        name: value
        for name, value in vars(spans).items()
        if name.startswith(("ERROR_", "GEN_AI_", "HTTP_", "RPC_", "URL_")) and isinstance(value, str)
    }
    assert len(ours) == 12
    assert {name: installed[name] for name in ours} == ours
    assert spans.SCHEMA_URL in [schema.value for schema in Schemas]
