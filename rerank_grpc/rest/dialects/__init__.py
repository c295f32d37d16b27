"""One file per dialect, decode and encode, without I/O."""
