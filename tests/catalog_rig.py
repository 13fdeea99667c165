"""A catalog's service in a process of its own, to be stopped, continued and killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from ingest.catalog.catalog_service import serve_catalog

HERE = Path(__file__).parent


class ServiceRig:
    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        (data_dir / ".ingest").mkdir(parents=True, exist_ok=True)
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [sys.executable, str(HERE / "catalog_rig.py"), str(self.data_dir)]
        environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)
        if number == signal.SIGSTOP:
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.communicate()

    def terminate(self) -> int:
        assert self.process is not None
        self.process.terminate()
        self.process.communicate()
        return self.process.returncode

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()


if __name__ == "__main__":
    serve_catalog(Path(sys.argv[1]), lambda: print("ready", flush=True))
