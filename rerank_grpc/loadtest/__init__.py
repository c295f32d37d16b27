"""Load on a running server: when calls are sent, and what comes of them."""
