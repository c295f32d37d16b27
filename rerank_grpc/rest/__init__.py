"""REST: JSON rerank dialects in front of the gRPC service, which they know only through the client."""
