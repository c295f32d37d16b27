"""TLS: certificates and keys, for those who serve and those who call."""
