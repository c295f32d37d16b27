"""Adapters of the Python client for frameworks of search and RAG, one module for each: docs/frameworks.md.

A module imports its framework, which the extra of the same name installs; this package imports none.
"""
