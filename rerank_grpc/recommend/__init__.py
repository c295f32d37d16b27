"""Measures what one machine could serve of the models of the catalogue."""
