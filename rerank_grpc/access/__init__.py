"""Access: tokens, the callers that have them, and the file that tells of both."""
