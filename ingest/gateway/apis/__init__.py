"""A module for each API."""
