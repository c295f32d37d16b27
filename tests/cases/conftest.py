"""The servers of the REST tests, for the rows that REST has."""

from tests.rest.conftest import embedded, port, scripted

__all__ = ["embedded", "port", "scripted"]
