"""Where gRPC servers listen: addresses and Unix sockets, plain or by TLS."""
