"""Deliberate faults, each of which a named test must notice: `make mutants`, and docs/faults.md, "Mutants".

`catalogue` lists them as replacements in the source, `scratch` applies one to a copy of the tree and builds and tests that,
`python -m mutants` judges them all.
"""
