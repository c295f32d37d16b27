"""Scores sequences on one device; the files tell a request's story in docs/structures.md's order."""
