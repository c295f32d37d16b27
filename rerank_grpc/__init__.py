"""A gRPC rerank service: reranker models resident in memory, scored fast and right.

Importing this package imports nothing else. Callers want
:mod:`rerank_grpc.client`; ``docs/structures.md`` explains the rest on one page.
"""

__version__ = "0.1.0"
