"""What carries the calls: gRPC, or JSON over HTTP."""
