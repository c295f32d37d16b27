"""Judged collections: read, reranked, measured, reported; the figures that choose a model."""
