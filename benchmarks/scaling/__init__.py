"""Machines and money for a number of documents a second: the tables of docs/scaling.md."""
