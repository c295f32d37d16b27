"""XLM-RoBERTa with one label, e.g. BAAI/bge-reranker-base, -large and -v2-m3."""

from __future__ import annotations

from rerank_grpc.models.roberta import Roberta


class XlmRoberta(Roberta):
    """RoBERTa's computation with other weights and another tokenizer."""
