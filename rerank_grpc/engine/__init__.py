"""Sequences to outputs, shared fairly among calls."""
