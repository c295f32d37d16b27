"""Tests of rerank_grpc.tls."""
