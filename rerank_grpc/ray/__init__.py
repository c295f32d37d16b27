"""The service on Ray Serve: the same servicers behind its ingress, on as many replicas as the work needs."""
