"""All that is told of calls, batches and models while a server runs: logs, metrics, traces."""
