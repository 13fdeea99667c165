"""Benchmarks: each row of the table in the README, measured as a ratio against a limit or a peer in the same run.

`make bench` runs all of them, `make bench ROWS=verify,restart` some; `make peers` those of `peers.py`, against other
servers. `bench_*.py` are the rows; what they measure with stands beside them. The tests run each row tiny.
"""
