"""Texts to sequences of tokens."""
