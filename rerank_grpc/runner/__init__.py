"""One batch on one device."""
