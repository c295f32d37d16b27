"""Lets `python -m rerank_grpc` do what `rerank-grpc` does."""

import sys

from rerank_grpc.cli import main

sys.exit(main())
