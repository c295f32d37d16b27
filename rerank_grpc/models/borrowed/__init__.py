"""Transformers' own networks: served where no body of our own is, and the reference of all that are."""
