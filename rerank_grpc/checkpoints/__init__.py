"""A model's files: found, fetched, described."""
