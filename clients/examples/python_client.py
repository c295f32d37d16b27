"""The Python client: python clients/examples/python_client.py [target]."""

import os
import sys

from rerank_grpc.client import Client, RerankError

target = sys.argv[1] if len(sys.argv) > 1 else "localhost:50051"
documents = ["Bamboo is what pandas eat.", "Paris is the capital of France.", "Pandas live in China."]

with Client(target, token=os.environ.get("RERANK_TOKEN") or None) as client:
    try:
        response = client.rerank("What do pandas eat?", documents, top_n=2)
    except RerankError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    for result in response.results:
        print(f"{result.relevance_score:.4f}  {documents[result.index]}")
