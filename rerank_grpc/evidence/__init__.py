"""The evidence of a checkpoint's own files: how its texts are read, and how its scores are made."""
