"""Reranker models: one file per family, behind the one seam in base.py."""
