"""The proof that the engine keeps its word: faults of ten kinds, long (`make faults PART=n`) and, in the tests, short.

One module a part. Each has `NUMBER`, `TITLE`, `CASES` (of the long run) and `run(seed, cases, directory)`, which returns an
`Outcome`. `docs/faults.md` is the table of the committed long runs.
"""
