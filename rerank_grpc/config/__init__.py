"""Every setting with its default, and how it is read; nothing else reads the environment."""
