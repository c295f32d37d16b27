"""The gRPC server: one servicer per service, and the mapping of errors to statuses."""
