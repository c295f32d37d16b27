"""The values between JSON bodies and requests: fields read, documents as they were sent, replies."""
