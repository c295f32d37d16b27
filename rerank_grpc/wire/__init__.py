"""The contract in Python, read by the server and by the client: messages and statuses."""
