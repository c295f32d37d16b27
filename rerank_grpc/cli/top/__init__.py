"""`rerank-grpc top`: a running server's figures, as a table that renews itself."""
