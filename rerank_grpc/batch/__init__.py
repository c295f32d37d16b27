"""Reranks files of queries and candidates, on this machine or on a cluster of Ray."""
