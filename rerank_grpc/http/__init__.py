"""HTTP/1.1 for any app: its server on a thread, bounded connections, the app of metrics."""
