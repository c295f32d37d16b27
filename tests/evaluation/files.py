"""Writes small collections for tests."""

import json

QUERIES = {"q1": "what do pandas eat", "q2": "capital of France"}
CORPUS = {"d1": "Pandas eat bamboo.", "d2": "Paris is the capital of France.", "d3": "Wool is warm."}
QRELS = "q1 0 d1 1\nq2 0 d2 2\n"
RUN = "q1 Q0 d3 1 9.5 bm25\nq1 Q0 d1 2 8.5 bm25\nq2 Q0 d2 1 3.0 bm25\n"


def json_lines(texts):
    """Writes texts by id as BEIR does."""
    return "".join(json.dumps({"_id": name, "text": text}) + "\n" for name, text in texts.items())


def write_collection(folder, *, queries=QUERIES, corpus=CORPUS, qrels=QRELS, run=RUN):
    """Writes the four files of a collection; returns their arguments."""
    contents = {"queries.jsonl": json_lines(queries), "corpus.jsonl": json_lines(corpus)}
    contents |= {"qrels.txt": qrels, "run.trec": run}
    for name, content in contents.items():
        data = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(data)
    names = {
        "--queries": "queries.jsonl",
        "--corpus": "corpus.jsonl",
        "--qrels": "qrels.txt",
        "--run": "run.trec",
    }
    return [part for flag, name in names.items() for part in (flag, str(folder / name))]
