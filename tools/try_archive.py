"""Installs a source archive into a bare environment, as somebody does who has nothing else, and tries what is there.

`python tools/try_archive.py ARCHIVE.tar.gz`: a server is started, frames are put and read back, and it ends. What goes
wrong is on stderr, and the exit code is not 0.
"""

import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

START_TIMEOUT_S = 30
FRAMES = 1000


def run(*command: object, cwd: str | None = None, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        list(map(str, command)), check=True, text=True, stdout=subprocess.PIPE, cwd=cwd, env=env
    )
    return done.stdout


def unpack(archive: Path, directory: Path) -> Path:
    """The one directory that is in it."""
    with tarfile.open(archive) as content:
        content.extractall(directory, filter="data")
    (found,) = directory.iterdir()
    return found


def announced(lock: Path, process: "subprocess.Popen[bytes]") -> dict[str, str]:
    """Where the server listens: it says so in its lock when its ports are bound."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        if lock.exists() and (text := lock.read_text().strip()):
            found: dict[str, str] = json.loads(text)
            if "put" in found and "get" in found:
                return found
        time.sleep(0.05)
    raise SystemExit("the server did not start")


def try_server(ingest: Path, data: Path) -> None:
    ports = [f"--{name}=127.0.0.1:0" for name in ("listen", "read-listen", "admin-listen")]
    process = subprocess.Popen([ingest, "server", f"--data-dir={data}", "--workers=2", *ports])
    try:
        found = announced(data / ".ingest" / "lock", process)
        result = json.loads(
            run(
                *(ingest, "loopback", "--connect", found["put"], "--read-connect", found["get"]),
                *("--key-file", data / ".ingest" / "key", "--frames", FRAMES, "--verify", "--json"),
            )
        )
        if (result["saved"], result["verified"]) != (FRAMES, FRAMES):
            raise SystemExit(f"not all frames came back: {result}")
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait()
    if code != 0:
        raise SystemExit(f"the server ended with {code}")


def main(archive: Path) -> None:
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("INGEST_", "PYTHON"))
    }
    with tempfile.TemporaryDirectory(prefix="ingest-archive-") as scratch:
        (directory := Path(scratch) / "source").mkdir()
        source = unpack(archive, directory)
        run(sys.executable, "-m", "venv", f"{scratch}/venv")
        programs = Path(scratch) / "venv" / "bin"
        run(programs / "pip", "--quiet", "--disable-pip-version-check", "install", source, env=environment)
        print(run(programs / "ingest", "version", env=environment, cwd=scratch).strip())
        run(programs / "ingest-server", "--help", env=environment, cwd=scratch)
        try_server(programs / "ingest", Path(scratch) / "data")
    print(f"{archive.name}: installed, {FRAMES:,} frames put and read back")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
