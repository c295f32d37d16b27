"""Finds candidates by BM25, for collections that bring no run."""

from __future__ import annotations

from collections.abc import Mapping

from rerank_grpc.errors import ConfigurationError

CANDIDATES = 100  # for each query, unless asked otherwise
_AT_ONCE = 64  # queries: a collection's matrix of scores would not fit the memory for all of them


def bm25_candidates(
    queries: Mapping[str, str], corpus: Mapping[str, str], count: int, *, show_progress: bool = False
) -> dict[str, list[str]]:
    """Finds the `count` best documents of each query, best first; a query without a common word finds none.

    Lucene's BM25 with k1 = 1.5 and b = 0.75 as bm25s has them (https://arxiv.org/abs/2407.03618), English
    stop words, no stemmer. Equal scores are in the order of their documents' ids, descending as in trec_eval,
    so that the order does not depend on the corpus file's. Bars on stderr may show the progress. Raises
    ConfigurationError where no query finds a document.
    """
    import bm25s
    from tqdm import tqdm

    names = list(corpus)
    tokens = bm25s.tokenize(list(corpus.values()), stopwords="en", show_progress=show_progress)
    if not tokens.vocab or not any(map(len, tokens.ids)):
        raise ConfigurationError("BM25 finds no word in the corpus: give candidates of your own by --run")
    index = bm25s.BM25(method="lucene")
    index.index(tokens, show_progress=show_progress)
    known = index.vocab_dict
    found: dict[str, list[str]] = {}
    for name, query in tqdm(queries.items(), "BM25", unit="query", leave=False, disable=not show_progress):
        words = bm25s.tokenize([query], stopwords="en", return_ids=False, show_progress=False)[0]
        words = [word for word in words if word in known]
        scores = index.get_scores(words) if words else None
        found[name] = [] if scores is None else _best(scores, names, count)
    if not any(found.values()):
        raise ConfigurationError("BM25 finds no document for any query: give candidates of your own by --run")
    return found


def _best(scores: object, names: list[str], count: int) -> list[str]:
    import numpy as np

    array = np.asarray(scores)
    positive = np.flatnonzero(array > 0)
    if len(positive) > count:  # all that tie with the last one, then the exact order
        least = np.partition(array[positive], -count)[-count]
        positive = positive[array[positive] >= least]
    ranked = sorted(positive.tolist(), key=lambda place: (array[place], names[place]), reverse=True)
    return [names[place] for place in ranked[:count]]
