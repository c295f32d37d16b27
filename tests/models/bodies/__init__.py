"""Own bodies, against transformers' networks."""
