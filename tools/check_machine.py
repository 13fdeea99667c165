"""Is everything here that the build needs? Says what is missing, in one line each, and how to get it on Debian.

Runs on the machine's own Python, before there is an environment, and on versions that are too old too.
"""

import os
import shlex
import shutil
import sys
import sysconfig

missing = []
if not sys.platform.startswith("linux"):
    missing.append("ingest runs on Linux, not on " + sys.platform)
if sys.version_info < (3, 11):
    missing.append(
        "Python 3.11 or later is needed, {} is {}.{}: set PYTHON=python3.11".format(
            sys.executable, *sys.version_info
        )
    )
compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
if shutil.which(compiler) is None:
    missing.append("no C compiler ({}): apt-get install gcc libc6-dev".format(compiler))
if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
    missing.append("no Python.h for {}: apt-get install python3-dev".format(sys.executable))
try:
    import ensurepip  # noqa: F401
    import venv  # noqa: F401
except ImportError:
    missing.append("no module venv for {}: apt-get install python3-venv".format(sys.executable))

for line in missing:
    print("cannot build: " + line, file=sys.stderr)
sys.exit(bool(missing))
