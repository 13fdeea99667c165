"""Builds the Cython extensions. The one place for compiler flags and Cython directives.

Every ``ingest/**/*.pyx`` is an extension of the same dotted name; a module that needs C sources
names them itself in a ``# distutils: sources = ...`` line. ``INGEST_DEBUG=1`` builds with bounds
checks and without optimisation. ``INGEST_BUILT_IN_PLACE=1`` builds nothing: the Makefile does so
itself, and what pip would build for an editable installation takes as long again.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("INGEST_DEBUG") == "1"
BUILT_IN_PLACE = os.environ.get("INGEST_BUILT_IN_PLACE") == "1"

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": False,
    "initializedcheck": DEBUG,
    "cdivision": True,
    "embedsignature": True,
}

FLAGS = ["-O0", "-g"] if DEBUG else ["-O3", "-g1"]
WARNINGS = ["-Wall", "-Wno-unused-function", "-Wno-psabi", "-Wno-unreachable-code", "-Wno-sign-compare"]


def extension(pyx: Path) -> Extension:
    return Extension(
        ".".join(pyx.with_suffix("").parts),
        [str(pyx)],
        include_dirs=["ingest"],
        define_macros=[("_GNU_SOURCE", "1")],
        extra_compile_args=[*FLAGS, *WARNINGS, "-std=gnu11"],
    )


# The guard: cythonize starts processes, which may import this file again.
if __name__ == "__main__":
    cores = os.cpu_count() or 1
    sources = [] if BUILT_IN_PLACE else sorted(Path("ingest").rglob("*.pyx"))
    setup(
        ext_modules=cythonize(
            [extension(pyx) for pyx in sources],
            compiler_directives=DIRECTIVES,
            nthreads=cores,
        ),
        options={"build_ext": {"parallel": cores}},
    )
