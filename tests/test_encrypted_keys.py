"""A private key with a password is refused, and nobody is asked for it on a terminal: a service would wait for ever."""

from __future__ import annotations

import fcntl
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from tls_rig import chain

LISTEN = ("--listen=127.0.0.1:0", "--read-listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0")
GATEWAY = ("--http-listen=127.0.0.1:0", "--connect=127.0.0.1:9", "--read-connect=127.0.0.1:9")
OWN, CONNECT = ("tls-cert", "tls-key"), ("connect-tls-cert", "connect-tls-key")
COMMANDS = {
    "server": (("check-config", *LISTEN), OWN),
    "gateway": (("check-config", "gateway", *GATEWAY), OWN),
    "gateway to its engine": (("check-config", "gateway", *GATEWAY, "--connect-tls-ca={ca}"), CONNECT),
}


def on_a_terminal(*arguments: str) -> tuple[int, str, str]:
    """Exit code, what is on the terminal, and stderr of a command that has one to ask on."""
    master, slave = pty.openpty()

    def take_it() -> None:
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    try:
        done = subprocess.run(
            [sys.executable, "-m", "ingest", *arguments],
            stdin=slave,
            capture_output=True,
            text=True,
            timeout=30,
            preexec_fn=take_it,
            pass_fds=(slave,),
        )
        os.set_blocking(master, False)
        try:
            asked = os.read(master, 1 << 16).decode()
        except BlockingIOError:
            asked = ""
        return done.returncode, asked, done.stdout + done.stderr
    finally:
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize("command", COMMANDS)
def test_nobody_is_asked(tmp_path: Path, command: str) -> None:
    ca = trustme.CA()
    leaf = ca.issue_cert("127.0.0.1")
    key = serialization.load_pem_private_key(leaf.private_key_pem.bytes(), None)
    files = {"ca": ca.cert_pem.bytes(), "cert": chain(leaf)}
    files["key"] = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"password"),
    )
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "shared").write_text("00" * 32 + "\n")
    (tmp_path / "shared").chmod(0o600)
    words, (cert_flag, key_flag) = COMMANDS[command]
    arguments = [
        *(word.format(ca=tmp_path / "ca") for word in words),
        f"--{cert_flag}={tmp_path / 'cert'}",
        f"--{key_flag}={tmp_path / 'key'}",
        f"--key-file={tmp_path / 'shared'}",
        f"--data-dir={tmp_path / 'data'}",
    ]
    code, asked, said = on_a_terminal(*arguments)
    assert asked == ""
    assert code == 78, said
    assert str(tmp_path / "key") in said or str(tmp_path / "cert") in said
