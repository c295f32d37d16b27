"""Commands by which an operator sets up a server."""
