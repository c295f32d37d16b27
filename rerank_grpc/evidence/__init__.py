"""What a checkpoint's own files say about it: how its texts are read, and how its scores are made."""
