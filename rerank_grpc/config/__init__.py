"""Every setting with its default, and how it is read; nothing else reads the environment.

settings.py   the settings: frozen dataclasses
parsing.py    from a text to a value
options.py    the tables: an option is a flag, a variable and a line of --help at once
reading.py    flags and environment to settings; flags win
files.py      how many files the process may open
"""
