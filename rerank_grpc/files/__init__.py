"""Files of the operator's: why one cannot be read, and one that is read again when it changes."""
