"""Stubs generated from proto/rerank/v1/rerank.proto by `make proto`; never edited by hand."""
