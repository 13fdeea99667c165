"""Load for a server, and how fast it was. `_sink` and `_bare_tree` are what benchmarks measure against."""
