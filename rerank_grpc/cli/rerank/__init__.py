"""The command `rerank-grpc rerank`: ranks the documents of files by a running server."""
