"""A server with a calibration: the probabilities that results carry, the bound, and files that do not fit."""

from __future__ import annotations

import asyncio
import json
import math
import random
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from rerank_grpc.calibration.calibration import Calibration, ScoringOptions
from rerank_grpc.calibration.file import read_calibration, write_calibration
from rerank_grpc.calibration.maps import IsotonicMap, PlattMap
from rerank_grpc.checkpoints.catalogue import builtin
from rerank_grpc.checkpoints.checkpoint import open_checkpoint
from rerank_grpc.checkpoints.lookup import Source
from rerank_grpc.client import AsyncClient, CalibrationInfo, Client, State, UnsupportedOption, parts
from rerank_grpc.config.settings import EMBEDDED, ModelSpec, ServerSettings
from rerank_grpc.errors import ConfigurationError, ModelFailed
from rerank_grpc.limits import LIMITS
from rerank_grpc.server.server import RerankServer
from rerank_grpc.types import Scoring
from rerank_grpc.v1 import rerank_pb2 as pb
from rerank_grpc.v1 import rerank_pb2_grpc
from tests.calibration.made import MODEL, made
from tests.command import run
from tests.rest.support import post, rest_server
from tests.server.test_errors import details_of
from tests.support import request_of, serving, stub_of

ROOT = Path(__file__).resolve().parents[2]
QUERY = "what do pandas eat?"
WORDS = ["pandas", "bamboo", "Paris", "France", "eat", "live", "settings", "password", "office", "reset"]
MAP = PlattMap(8.0, -3.0)
REVISION = open_checkpoint("embedded", *Source.of("embedded", builtin()).locate(Path("models"))).revision
OF_EMBEDDED = replace(MODEL, revision=REVISION)


def calibrated(path: Path, calibration: Calibration, *, spec: ModelSpec = EMBEDDED) -> ModelSpec:
    """Writes a calibration, and configures a model with it."""
    write_calibration(path, calibration)
    return replace(spec, calibration=path)


@dataclass
class Service:
    """A server whose default model has a calibration, and whose model "plain" has none."""

    server: RerankServer
    stub: rerank_pb2_grpc.RerankServiceStub

    def rerank(self, *documents: str, **fields: Any) -> list[pb.RerankResult]:
        return list(self.stub.Rerank(request_of(QUERY, *documents, **fields), timeout=30).results)

    def streamed(self, *documents: str, **fields: Any) -> list[pb.RerankResult]:
        request = request_of(QUERY, *documents, **fields).SerializeToString()
        parts = list(self.stub.StreamRerank(pb.StreamRerankRequest.FromString(request), timeout=30))
        assert parts[-1].HasField("summary")
        return [result for part in parts for result in part.results]

    def refusal(self, *documents: str, **fields: Any) -> grpc.RpcError:
        with pytest.raises(grpc.RpcError) as refused:
            self.rerank(*documents, **fields)
        return refused.value


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    path = tmp_path_factory.mktemp("calibrations") / "embedded.json"
    models = (calibrated(path, made(MAP, OF_EMBEDDED)), ModelSpec("plain", "embedded"))
    with serving(ServerSettings(models=models)) as server, stub_of(server.port) as stub:
        yield Service(server, stub)


def texts(count: int) -> list[str]:
    chance = random.Random(5)
    return [" ".join(chance.choices(WORDS, k=chance.randint(1, 9))) for _ in range(count)]


def without_scores(results: list[pb.RerankResult]) -> list[pb.RerankResult]:
    for result in results:
        result.ClearField("calibrated_score")
    return results


def by_index(results: list[pb.RerankResult]) -> dict[int, float]:
    return {result.index: result.calibrated_score for result in results}


def test_every_result_has_the_probability_of_its_logit_in_float32(service: Service):
    results = service.rerank(*texts(40))
    expected = [1 / (1 + math.exp(3.0 - 8.0 * result.logit)) for result in results]
    assert [result.calibrated_score for result in results] == array("f", expected).tolist()
    assert len({result.calibrated_score for result in results}) > 20


def test_nothing_else_changes_and_a_model_without_a_calibration_has_none(service: Service):
    plain, results = (service.rerank(*texts(40), model=name) for name in ("plain", ""))
    assert not any(result.HasField("calibrated_score") for result in plain)
    assert all(result.HasField("calibrated_score") for result in results)
    assert without_scores(results) == plain
    scores = [result.calibrated_score for result in results]
    assert scores == sorted(scores, reverse=True)


def test_results_below_the_bound_are_left_out_and_top_n_counts_the_rest(service: Service):
    every = service.rerank(*texts(40))
    bound = every[11].calibrated_score
    above = [result for result in every if result.calibrated_score >= bound]
    assert 12 <= len(above) < 40
    assert service.rerank(*texts(40), min_calibrated_score=bound) == above
    assert service.rerank(*texts(40), min_calibrated_score=bound, top_n=5) == every[:5]
    # A number of float32 just above leaves out what the bound let in.
    (higher,) = array("f", [bound + 1e-7])
    assert bound < higher
    assert len(service.rerank(*texts(40), min_calibrated_score=higher)) < len(above)


def test_of_both_bounds_the_stricter_one_decides(service: Service):
    every = service.rerank(*texts(40))
    low, high = every[30], every[10]
    for one, other in ((low, high), (high, low)):
        found = service.rerank(
            *texts(40),
            min_relevance_score=one.relevance_score,
            min_calibrated_score=other.calibrated_score,
        )
        assert found == [
            each
            for each in every
            if each.relevance_score >= one.relevance_score and each.calibrated_score >= other.calibrated_score
        ]
        assert 11 <= len(found) < 20


def test_all_results_may_be_left_out_and_the_call_is_answered(service: Service):
    request = request_of(QUERY, *texts(5), min_calibrated_score=1.0)
    reply = service.stub.Rerank(request)
    assert (list(reply.results), reply.model_revision) == ([], REVISION)
    assert reply.usage.input_tokens > 0
    assert service.streamed(*texts(5), min_calibrated_score=1.0) == []


@pytest.mark.parametrize("top_n", [0, 3])
def test_a_stream_carries_and_filters_the_same_scores(service: Service, top_n: int):
    every = service.rerank(*texts(40))
    assert by_index(service.streamed(*texts(40))) == pytest.approx(by_index(every), abs=1e-5)
    bound = (every[11].calibrated_score + every[12].calibrated_score) / 2
    streamed = service.streamed(*texts(40), min_calibrated_score=bound, top_n=top_n)
    assert all(result.calibrated_score >= bound for result in streamed)
    best = sorted(by_index(streamed).items(), key=lambda each: -each[1])[: top_n or None]
    expected = service.rerank(*texts(40), min_calibrated_score=bound, top_n=top_n)
    assert dict(best) == pytest.approx(by_index(expected), abs=1e-5)


@pytest.mark.parametrize("value", [-1.0, -1e-9, 1.0000001, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("model", ["", "plain"])
def test_a_bound_that_is_no_probability_is_refused(service: Service, value: float, model: str):
    for leaves_out in (False, True):  # the limits of an option hold all the same
        error = service.refusal(
            "a", min_calibrated_score=value, model=model, ignore_unsupported_options=leaves_out
        )
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "min_calibrated_score: is " in (error.details() or "")


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45])
def test_a_bound_of_nothing_leaves_out_nothing(service: Service, value: float):
    assert len(service.rerank(*texts(9), min_calibrated_score=value)) == 9


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_model_without_a_calibration_refuses_any_bound_or_leaves_it_out(service: Service, value: float):
    error = service.refusal("a", "b", model="plain", min_calibrated_score=value)
    message, _ = details_of(error)
    found = {each.type_url.rpartition("/")[2]: each.value for each in message.details}
    info = error_details_pb2.ErrorInfo.FromString(found["google.rpc.ErrorInfo"])
    assert (error.code(), info.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "ERROR_REASON_UNSUPPORTED_OPTION",
    )
    assert dict(info.metadata) == {"model": "plain", "option": "min_calibrated_score"}
    request = error_details_pb2.BadRequest.FromString(found["google.rpc.BadRequest"])
    assert [each.field for each in request.field_violations] == ["min_calibrated_score"]
    results = service.rerank(
        "a", "b", model="plain", min_calibrated_score=value, ignore_unsupported_options=True
    )
    assert len(results) == 2
    streamed = service.streamed(
        "a", "b", model="plain", min_calibrated_score=value, ignore_unsupported_options=True
    )
    assert len(streamed) == 2


def test_a_call_with_other_options_than_those_of_the_calibration_gets_its_scores_too(service: Service):
    # made() was fitted with an instruction, 200 tokens, the start cut off, and 4 chunks.
    results = service.rerank(*texts(5), max_tokens_per_document=3)
    assert all(result.calibrated_score == MAP.probabilities([result.logit])[0] for result in results)


def test_list_models_tells_the_calibration(service: Service):
    with Client(f"127.0.0.1:{service.server.port}") as client:
        first, plain = client.list_models()
    assert plain.calibration is None
    options = made().options
    assert first.calibration == CalibrationInfo(
        *("platt", "2026-11-30T18:00:00Z", 50, 60, 440),
        *(options.instruction, options.max_tokens_per_document, options.truncation),
        options.max_chunks_per_document,
    )


def test_list_models_tells_the_largest_options_that_a_file_may_have(tmp_path: Path):
    options = ScoringOptions("x" * 100_000, 2**32 - 1, max_chunks_per_document=LIMITS.chunks)
    spec = calibrated(tmp_path / "c.json", replace(made(MAP, OF_EMBEDDED), options=options))
    with serving(ServerSettings(models=(spec,))) as server, Client(f"127.0.0.1:{server.port}") as client:
        (info,) = client.list_models()
    assert info.calibration is not None
    assert {name: getattr(info.calibration, name) for name in ScoringOptions.__slots__} == asdict(options)


def test_a_call_in_parts_gives_what_one_call_gives(service: Service, monkeypatch: pytest.MonkeyPatch):
    documents = texts(40)
    with Client(f"127.0.0.1:{service.server.port}") as client:
        bound = client.rerank(QUERY, documents).results[20].calibrated_score
        one = client.rerank(QUERY, documents, min_calibrated_score=bound, top_n=15)
        monkeypatch.setattr(parts, "LIMITS", replace(LIMITS, documents=7))
        split = client.rerank(QUERY, documents, min_calibrated_score=bound, top_n=15)
        scores = {each.index: each.calibrated_score for each in split.results}
        assert scores == pytest.approx({each.index: each.calibrated_score for each in one.results}, abs=1e-6)
        assert list(scores) == [each.index for each in one.results]
        with pytest.raises(UnsupportedOption) as refused:
            client.rerank(QUERY, documents, "plain", min_calibrated_score=bound)
    assert refused.value.metadata["option"] == "min_calibrated_score"


async def _asked(port: int | None, bound: float) -> list[float | None]:
    async with AsyncClient(f"127.0.0.1:{port}") as client:
        stream = client.stream_rerank(QUERY, texts(9), min_calibrated_score=bound)
        return [result.calibrated_score async for result in stream]


def test_the_asynchronous_client_has_it_too(service: Service):
    found = asyncio.run(_asked(service.server.port, 0.25))
    assert found
    assert all(score is not None and score >= 0.25 for score in found)


# Maps that are odd, and documents that are not scored


def test_a_document_that_is_not_scored_has_probability_0_whatever_the_map_says(tmp_path: Path):
    lowest = IsotonicMap(((-1.0, 0.25), (1.0, 0.75)))
    spec = calibrated(tmp_path / "c.json", made(lowest, OF_EMBEDDED))
    settings = ServerSettings(models=(spec,), blank_documents="last")
    with serving(settings) as server, stub_of(server.port) as stub:
        results = stub.Rerank(request_of(QUERY, " ", "bamboo", "\u200b")).results
        assert [(each.index, each.logit == -1e9) for each in results] == [(1, False), (0, True), (2, True)]
        assert results[0].calibrated_score > 0.25
        assert [each.calibrated_score for each in results[1:]] == [0.0, 0.0]
        assert results[1].HasField("calibrated_score")
        bounded = stub.Rerank(request_of(QUERY, " ", "bamboo", min_calibrated_score=1e-6)).results
        assert [each.index for each in bounded] == [1]


def test_a_flat_map_keeps_the_order_of_the_logits(tmp_path: Path, service: Service):
    spec = calibrated(tmp_path / "c.json", made(PlattMap(0.0, 0.0), OF_EMBEDDED))
    with serving(ServerSettings(models=(spec,))) as server, stub_of(server.port) as stub:
        results = list(stub.Rerank(request_of(QUERY, *texts(20))).results)
        assert {each.calibrated_score for each in results} == {0.5}
        assert [each.index for each in results] == [each.index for each in service.rerank(*texts(20))]
        assert len(stub.Rerank(request_of(QUERY, "a", min_calibrated_score=0.5)).results) == 1


# Files that do not fit


def test_a_file_that_cannot_be_read_is_refused_before_anything_starts(tmp_path: Path):
    path = tmp_path / "none.json"
    with pytest.raises(ConfigurationError) as refused:
        RerankServer(ServerSettings(models=(replace(EMBEDDED, calibration=path),)))
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"revision": "sha256:000000000000"}, "it was fitted on revision sha256:000000000000 of embedded"),
        ({"revision": REVISION, "scoring": Scoring.SIGMOID}, "it was fitted on scores by sigmoid"),
        ({"revision": REVISION, "precision": "int8"}, "it was fitted at precision int8"),
    ],
    ids=["revision", "scoring", "precision"],
)
def test_a_calibration_of_another_model_fails_the_load(tmp_path: Path, model: dict[str, Any], says: str):
    path = tmp_path / "c.json"
    lazy = ModelSpec("other", "embedded", lazy=True)
    models = (EMBEDDED, calibrated(path, made(MAP, replace(MODEL, **model)), spec=lazy))
    with serving(ServerSettings(models=models)) as server, Client(f"127.0.0.1:{server.port}") as client:
        assert len(client.rerank(QUERY, ["a"]).results) == 1
        with pytest.raises(ModelFailed) as failed:
            client.rerank(QUERY, ["a"], "other", timeout=30)
        assert f"model other failed: {path}: {says}" in str(failed.value)
        other = client.list_models()[1]
        assert other.state is State.FAILED
        assert other.state_message.startswith(f"{path}: {says}")
        assert other.calibration is None


def test_a_calibration_is_checked_again_after_an_unload(tmp_path: Path):
    spec = calibrated(tmp_path / "c.json", made(MAP, OF_EMBEDDED))
    with serving(ServerSettings(models=(spec,))) as server, stub_of(server.port) as stub:
        (before,) = stub.Rerank(request_of(QUERY, "bamboo")).results
        server.registry.unload("embedded", deadline=math.inf)
        # The file is read at the start alone: what becomes of it later changes no score.
        write_calibration(tmp_path / "c.json", made(PlattMap(0.0, 0.0), OF_EMBEDDED))
        (after,) = stub.Rerank(request_of(QUERY, "bamboo"), timeout=30).results
        assert after == before


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        ("{", 1, "/c.json: line 1: is not JSON"),
        (
            None,
            1,
            f"/c.json: it was fitted on revision {MODEL.revision} of embedded, and the model has ",
        ),
        ("-", 2, "--calibration: embeded=c.json: no --model is named 'embeded'; did you mean embedded?"),
    ],
    ids=["damaged", "revision", "unknown model"],
)
def test_serve_ends_with_one_line_that_says_why(tmp_path: Path, content: str | None, status: int, says: str):
    path = tmp_path / "c.json"
    write_calibration(path, made(MAP, MODEL))
    if content:
        path.write_text(content)
    flag = "embeded=c.json" if status == 2 else f"embedded={path}"
    ports = [text for name in ("admin", "rest", "metrics") for text in (f"--{name}-port", "off")]
    done = run("serve", "--port", "0", *ports, "--calibration", flag)
    assert done.returncode == status
    (line,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert says in line


# The command line


def test_the_command_line_shows_and_filters_by_probability(service: Service):
    target = ("--target", f"127.0.0.1:{service.server.port}")
    models = run("models", *target).stdout.splitlines()
    assert "calibration" in models[0]
    assert "platt, 500 pairs, 2026-11-30" in models[1]
    (first, plain) = json.loads(run("models", "--json", *target).stdout)["models"]
    assert (first["calibration"]["method"], plain["calibration"]) == ("platt", None)
    asked = ("rerank", QUERY, "-", *target)
    lines = run(*asked, stdin="pandas eat bamboo\nreset\n").stdout.splitlines()
    assert all(" p=0." in line for line in lines)
    kept = run(*asked, "--jsonl", "--min-calibrated-score", "0.5", stdin="pandas eat bamboo\nreset\n").stdout
    assert [json.loads(line)["index"] for line in kept.splitlines()] == [0]
    assert json.loads(kept)["calibrated_score"] > 0.5
    refused = run(*asked, "--model", "plain", "--min-calibrated-score", "0.5", stdin="a\n")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "min_calibrated_score: this model has no calibration" in refused.stderr


# REST


BODY = {"query": QUERY, "documents": texts(9)}


@pytest.fixture(scope="module")
def rest(service: Service) -> Iterator[int]:
    with rest_server(service.server.port) as port:
        yield port


def test_over_rest_who_sends_the_bound_gets_the_scores(service: Service, rest: int):
    told = {each.index: each.calibrated_score for each in service.rerank(*texts(9))}
    for bound in (0, "0.25", 0.25):
        reply = post(rest, "/v1/rerank", BODY | {"min_calibrated_score": bound}).json
        for name in ("results", "data"):
            found = {each["index"]: each["calibrated_score"] for each in reply[name]}
            assert found == pytest.approx({i: s for i, s in told.items() if s >= float(bound)}, abs=1e-6)


def test_over_rest_a_caller_that_sends_no_bound_sees_no_difference(rest: int):
    def answer(**fields: Any) -> Any:
        found = post(rest, "/v1/rerank", {**BODY, **fields}, x_request_id="same").json
        return {name: value for name, value in found.items() if name not in ("created", "model")}

    assert answer() == answer(model="plain") == answer(min_calibrated_score=None)


def test_over_rest_a_model_without_a_calibration_refuses_the_bound(rest: int):
    reply = post(rest, "/v1/rerank", BODY | {"min_calibrated_score": 0.5, "model": "plain"})
    assert reply.status == 400
    assert reply.json["detail"].startswith("min_calibrated_score: this model has no calibration")


@pytest.mark.parametrize("value", [-0.1, 1.5, "2", True, [], "x"])
def test_over_rest_a_bound_that_is_no_probability_is_refused(rest: int, value: Any):
    reply = post(rest, "/v1/rerank", BODY | {"min_calibrated_score": value})
    assert reply.status == 400
    assert reply.json["detail"].startswith("min_calibrated_score: ")


def test_over_connect_the_contract_is_passed_on(service: Service, rest: int):
    body = {"query": QUERY, "documents": [{"text": text} for text in texts(9)], "minCalibratedScore": 0.25}
    path = "/rerank.v1.RerankService/Rerank"
    reply = post(rest, path, body, content_type="application/json").json
    assert reply["results"]
    assert all(each["calibratedScore"] >= 0.25 for each in reply["results"])
    plain = post(
        rest, path, body | {"minCalibratedScore": None, "model": "plain"}, content_type="application/json"
    )
    assert b"alibrat" not in plain.raw


def test_the_calibration_of_the_conformance_list_is_for_the_embedded_model():
    found = read_calibration(ROOT / "clients" / "conformance" / "contract" / "calibration.json")
    assert found.mismatch(revision=REVISION, scoring=Scoring.COSINE, precision="fp32") == ""


def test_the_options_of_the_file_are_those_of_a_request():
    both = set(pb.Calibration.DESCRIPTOR.fields_by_name) & set(pb.RerankRequest.DESCRIPTOR.fields_by_name)
    assert both == set(ScoringOptions.__slots__)
