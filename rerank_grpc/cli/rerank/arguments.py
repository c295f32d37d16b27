"""The arguments of `rerank-grpc rerank`, and its examples."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from typing import Any

from rerank_grpc.cli.rerank.formats import FORMATS
from rerank_grpc.config.options import CLIENT_TOKEN_VARIABLE

EXAMPLES = f"""\
examples:
  rerank-grpc rerank "what is a panda?" docs.txt
  rerank-grpc rerank "what is a panda?" a.txt b.txt --top-n 5
  rerank-grpc rerank "what is a panda?" docs.jsonl --text-field body --jsonl | jq -r .fields.title
  rerank-grpc rerank "what is a panda?" docs.csv notes/ --min-score 0.5
  grep -h panda *.txt | rerank-grpc rerank "what is a panda?" - --json
  rerank-grpc rerank "what is a panda?" - --format jsonl --timeout 120 < many.jsonl

A document is a line of a file, an object on a line of JSON lines (.jsonl, .ndjson),
a row of CSV (.csv, with a header), or a whole file: each text file in a directory
and below, but for hidden ones, is a document. Empty lines and files are skipped.
Fields beside the text are printed under "fields" by --json and --jsonl. Standard input
is read as lines unless --format says otherwise. --timeout counts for each 1,000 documents.

A document that cannot be read ends the command, with its file and line; with
--skip-bad it is told and left out. The token to send comes from {CLIENT_TOKEN_VARIABLE} or
--token-file.
"""


def score(text: str) -> float:
    """Reads a score from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


ARGUMENTS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("query", {"metavar": "QUERY", "help": "what the documents are to answer"}),
    (
        "files",
        {"metavar": "FILE", "nargs": "+", "help": "documents, or a directory of them; - is stdin"},
    ),
    (
        "--format",
        {
            "choices": tuple(FORMATS),
            "help": "how each FILE is read: a document is a line, an object, a row or the file "
            "(default: by its suffix, else lines; file in a directory)",
        },
    ),
    (
        "--text-field",
        {"metavar": "NAME", "help": "the field or column that holds the text (default: text)"},
    ),
    ("--id-field", {"metavar": "NAME", "help": "the field or column by which results name a document"}),
    (
        "--skip-bad",
        {"action": "store_true", "help": "leave out documents that cannot be read, and tell them"},
    ),
    ("--instruction", {"metavar": "TEXT", "help": "what the model is to judge, where it takes that"}),
    (
        "--min-score",
        {"metavar": "0..1", "type": score, "help": "print only results of this relevance_score or more"},
    ),
    (
        "--min-calibrated-score",
        {
            "metavar": "0..1",
            "type": score,
            "help": "print only results of this probability or more, by the model's calibration",
        },
    ),
    (
        "--priority",
        {
            "choices": ("interactive", "batch"),
            "help": "whether a person waits, or others go first (default: interactive)",
        },
    ),
    ("--jsonl", {"action": "store_true", "help": "print a JSON object a line for each result"}),
)
