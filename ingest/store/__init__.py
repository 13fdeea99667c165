"""One data directory: what it is, whose it is, what room it has."""
