"""What networks compute with, by device and precision."""
