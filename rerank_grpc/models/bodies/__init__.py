"""Bodies of our own: one network of blocks, and its description for each family."""
