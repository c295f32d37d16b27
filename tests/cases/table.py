"""Inputs from the field that once failed, with the right answers; each row has a test of its number."""

from typing import NamedTuple


class Row(NamedTuple):
    """One kind of input: an example of it, and what is right."""

    given: str
    right: str


TABLE = {
    1: Row(
        "https_proxy or http_proxy in the environment, pointing nowhere",
        "the own process, loopback and Unix sockets need no proxy; an error through one names it",
    ),
    2: Row(
        "serve --model acme/tiny-reranker, then that hub id as model",
        "the hub id is a name of its model: gRPC, REST, /v1/models, /info, root",
    ),
    3: Row(
        "a connection idle for 12 s",
        "it stays open for longer than the pools of proxies keep it, says so in Keep-Alive, and is bounded",
    ),
    4: Row(
        "documents and texts, top_n and return_text: both spellings at once",
        "equal lists are served in the superset's form; 400 names the first place where they differ",
    ),
    5: Row('"top_n": "2", and other numbers as texts', "texts of digits are numbers"),
    6: Row("half an emoji: a lone surrogate in a text", "read as U+FFFD"),
    7: Row("UTF-8 with a byte order mark", "skipped"),
    8: Row("a body in Latin-1", "400: not UTF-8, at which byte, and what to send"),
    9: Row(
        '"truncation_side": "left" in the superset',
        "left and right mean the truncation; other values are 400",
    ),
    10: Row(
        "min_relevance_score, documents with id, truncated in results, over REST",
        "taken and returned; object documents come back with their own fields",
    ),
    11: Row(
        "a browser's preflight",
        "405 by default; with --rest-cors answered without a token, Authorization allowed",
    ),
    12: Row("/hf-inference/models/ORG/NAME with inputs of text and text_pair", "a list of label and score"),
    13: Row("a client that offers Upgrade: h2c", "served, without a warning"),
    14: Row("a body of 9 MB", "413 with the limit, one number in error, docs and gRPC"),
    15: Row(
        "a text too long, or empty, in TEI, score, NIM, Mixedbread ...",
        "the error names the caller's own field",
    ),
    16: Row("a call that cannot be done within --rest-timeout", "one status, and what gives more time"),
    17: Row("a body slower than 64 KiB/s", "408 with the reason, logged so"),
    18: Row("X-Request-Timeout: 1e9", "clamped"),
    19: Row(
        "bytes that are no message, or a text that is no UTF-8, over gRPC", "INVALID_ARGUMENT with ErrorInfo"
    ),
    20: Row("a model that was refused at load", "the reason in one line, in the error of gRPC and REST"),
    21: Row("/docs/ with a slash", "the page"),
    22: Row(
        "health --target http://127.0.0.1:50051, or without a port", "one line and exit 2; the default port"
    ),
    23: Row(
        "image objects or content parts as a document",
        "parts of type text are joined; others are named as not served",
    ),
    24: Row("a blank query", "400, as an empty one"),
    25: Row("empty documents", "scored by default; last, by an option"),
}
