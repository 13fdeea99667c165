"""Runs a module of Python with some of `ingest.limits` changed, so that a test of a deadline does not take a minute.

    python short_limits.py IDLE_TIMEOUT_S=1 ... -- python -m ingest server ...

A wrapper for `node_rig`: what stands behind the module is its arguments.
"""

import runpy
import sys

from ingest import limits


def main(arguments: list[str]) -> None:
    end = arguments.index("--")
    for setting in arguments[:end]:
        name, _, value = setting.partition("=")
        old = getattr(limits, name)
        setattr(limits, name, type(old)(value))
    python, option, module = arguments[end + 1 : end + 4]
    assert (python, option) == (sys.executable, "-m")
    sys.argv = [module, *arguments[end + 4 :]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
