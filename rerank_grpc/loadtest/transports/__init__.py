"""The carriers of calls: gRPC, or JSON over HTTP."""
