"""Measures what the service makes of the machine, and its peers beside it; see benchmarks/README.md."""
