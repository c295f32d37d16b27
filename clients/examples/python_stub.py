"""Raw stubs, without the client: python clients/examples/python_stub.py [target].

With stubs of your own (python -m grpc_tools.protoc -Iproto --python_out=. --grpc_python_out=.
rerank/v1/rerank.proto) the first import reads: from rerank.v1 import rerank_pb2, rerank_pb2_grpc.
"""

import os
import sys

import grpc
from google.rpc import error_details_pb2, status_pb2

from rerank_grpc.v1 import rerank_pb2, rerank_pb2_grpc


def reason_of(error):
    """Reads the ErrorInfo: its reason is for machines, the status text for people."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return info.reason
    return "no reason"


target = sys.argv[1] if len(sys.argv) > 1 else "localhost:50051"
documents = ["Bamboo is what pandas eat.", "Paris is the capital of France.", "Pandas live in China."]
request = rerank_pb2.RerankRequest(
    query="What do pandas eat?",
    documents=[rerank_pb2.Document(text=text) for text in documents],
    top_n=2,
    return_documents=True,
)
token = os.environ.get("RERANK_TOKEN")
metadata = [("authorization", f"Bearer {token}")] if token else None

# gRPC takes replies of 4 MiB by default; with documents one can be larger. Where https_proxy is set, gRPC
# calls this machine too through that proxy, unless no_proxy names it.
with grpc.insecure_channel(target, [("grpc.max_receive_message_length", 16 << 20)]) as channel:
    stub = rerank_pb2_grpc.RerankServiceStub(channel)
    try:
        response = stub.Rerank(request, timeout=30, metadata=metadata)
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {error.details()} ({reason_of(error)})")
    for result in response.results:
        print(f"{result.relevance_score:.4f}  {result.document.text}")
