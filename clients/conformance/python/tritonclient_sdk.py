"""tritonclient[grpc]: its blocking and its asyncio client, which speak KServe's protocol v2."""

import asyncio
import queue

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from harness import DOCUMENTS, MODEL, NO_MODEL, QUERY, SCORES, TARGET, TOKEN, main, raises
from tritonclient.utils import InferenceServerException

GIVEN = {"headers": {"authorization": f"Bearer {TOKEN}"}, "client_timeout": 60}
WRONG = {"headers": {"authorization": "Bearer wrong"}, "client_timeout": 60}
WANTED = [triton.InferRequestedOutput("SCORE")]

client = triton.InferenceServerClient(TARGET)


def tensor(name, texts, shape):
    array = np.array(texts, dtype=np.object_).reshape(shape)
    made = triton.InferInput(name, list(array.shape), "BYTES")
    made.set_data_from_numpy(array)
    return made


def inputs(query=QUERY, shape=(-1, 1)):
    return [tensor("QUERY", [query], [1] * len(shape)), tensor("PASSAGE", DOCUMENTS, shape)]


def scored(result, shape, *, id_=""):
    scores = result.as_numpy("SCORE")
    assert scores.dtype == np.float32
    assert scores.shape == shape, scores.shape
    assert np.abs(scores.reshape(-1) - np.array(SCORES)).max() < 1e-6, scores
    assert result.get_response().id == id_


def infers():
    count = len(DOCUMENTS)
    scored(client.infer(MODEL, inputs(), request_id="7", outputs=WANTED, **GIVEN), (count, 1), id_="7")
    scored(client.infer(MODEL, inputs(shape=(-1,)), **GIVEN), (count,))
    scored(client.infer("", inputs(shape=(1, -1)), compression_algorithm="gzip", **GIVEN), (1, count))


def pairs():
    queries = tensor("QUERY", [QUERY] * len(DOCUMENTS), (-1, 1))
    scored(client.infer(MODEL, [queries, inputs()[1]], **GIVEN), (len(DOCUMENTS), 1))


def logits():
    result = client.infer(MODEL, inputs(), **GIVEN)
    logits = result.as_numpy("LOGIT")
    assert logits.shape == (len(DOCUMENTS), 1)
    assert list(np.argsort(logits.ravel())) == list(np.argsort(SCORES))


def in_the_background():
    answers = queue.SimpleQueue()
    client.async_infer(MODEL, inputs(), lambda result, error: answers.put((result, error)), **GIVEN)
    result, error = answers.get(timeout=60)
    assert error is None, error
    scored(result, (len(DOCUMENTS), 1))


def ready():
    assert client.is_server_live(**GIVEN)
    assert client.is_server_ready(**GIVEN)
    assert client.is_model_ready(MODEL, **GIVEN)


def metadata():
    server = client.get_server_metadata(as_json=True, **GIVEN)
    model = client.get_model_metadata(MODEL, as_json=True, **GIVEN)
    config = client.get_model_config(MODEL, as_json=True, **GIVEN)["config"]
    assert server["name"] == "rerank-grpc"
    assert [each["name"] for each in model["inputs"]] == ["QUERY", "PASSAGE"]
    assert [each["datatype"] for each in model["outputs"]] == ["FP32", "FP32"]
    assert config["name"] == model["name"] != MODEL  # an alias
    assert [each["data_type"] for each in config["input"]] == ["TYPE_STRING", "TYPE_STRING"]
    assert client.is_model_ready(MODEL, model["versions"][0], **GIVEN)


def fails(call, *words):
    raises(InferenceServerException, call, *words)


blocking = {
    "reranks": infers,
    "pairs": pairs,
    "logits": logits,
    "callback": in_the_background,
    "ready": ready,
    "metadata": metadata,
    "error": lambda: fails(
        lambda: client.infer(MODEL, inputs(query=""), **GIVEN),
        "INVALID_ARGUMENT",
        "QUERY[0]: must not be empty",
    ),
    "unknown model": lambda: fails(lambda: client.infer(NO_MODEL, inputs(), **GIVEN), "NOT_FOUND", NO_MODEL),
    "wrong token": lambda: fails(lambda: client.infer(MODEL, inputs(), **WRONG), "UNAUTHENTICATED", "token"),
}


async def together():
    async with triton_aio.InferenceServerClient(TARGET) as own:
        answers = [own.infer(MODEL, inputs(), outputs=WANTED, **GIVEN) for _ in range(4)]
        for result in await asyncio.gather(*answers):
            scored(result, (len(DOCUMENTS), 1))


async def told():
    async with triton_aio.InferenceServerClient(TARGET) as own:
        assert await own.is_server_live(**GIVEN)
        assert await own.is_server_ready(**GIVEN)
        assert await own.is_model_ready(MODEL, **GIVEN)
        model = await own.get_model_metadata(MODEL, **GIVEN)
        assert [each.name for each in model.outputs] == ["SCORE", "LOGIT"]


async def refused(model, given):
    async with triton_aio.InferenceServerClient(TARGET) as own:
        await own.infer(model, inputs(), **given)


asynchronous = {
    "reranks": lambda: asyncio.run(together()),
    "metadata": lambda: asyncio.run(told()),
    "unknown model": lambda: fails(lambda: asyncio.run(refused(NO_MODEL, GIVEN)), "NOT_FOUND", NO_MODEL),
    "wrong token": lambda: fails(lambda: asyncio.run(refused(MODEL, WRONG)), "UNAUTHENTICATED", "token"),
}

main("tritonclient", blocking, label="tritonclient grpc")
main("tritonclient", asynchronous, label="tritonclient grpc.aio")
client.close()
