"""Which models are in memory."""
