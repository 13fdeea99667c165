"""SIGHUP at a real server: keys, certificates and the log level change under load, and nothing else does."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from node_rig import Connection, NodeRig, data_of, get_frames, put_frames, read_exactly, running_node
from tls_rig import Files, client_context

from ingest import limits, mac, ticket
from ingest.engine import reload
from ingest.engine._queue import Queue
from ingest.engine.node import Node
from ingest.engine.server_config import ServerConfig
from ingest.errors import ConfigError, ConnectionLostError
from ingest.limits import ACK_SIZE
from ingest.loadgen import loopback
from ingest.runtime.key_file import make_key_file, read_keys, rotate_key_file
from ingest.status import Status
from ingest.store.store import Store

PATIENCE_S = 60.0
FIRST = ticket.parse("5000000")


def until(condition: Callable[[], bool], what: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"it never came: {what()}"
        time.sleep(0.005)


class Log:
    """The lines that the server has written since the last look, and waiting for one of them."""

    def __init__(self, rig: NodeRig) -> None:
        self._rig = rig
        self._from = len(self._text())

    def _text(self) -> str:
        return self._rig.log_path.read_text(errors="replace")

    def wait(self, pattern: str) -> str:
        """Until a new line matches; what it says."""
        found: list[str] = []

        def look() -> bool:
            text = self._text()
            for match in re.finditer(rf"^.*{pattern}.*\n", text[self._from :], re.M):
                found.append(match[0])
                self._from += match.end()
                return True
            return False

        until(look, lambda: f"{pattern} in\n{self._rig.log()}")
        return found[0]

    def __contains__(self, text: str) -> bool:
        return text in self._text()[self._from :]


def hup(rig: NodeRig, log: Log, expected: str = "SIGHUP: reloaded") -> str:
    os.kill(rig.pid, signal.SIGHUP)
    return log.wait(expected)


def write_keys(path: Path, keys: list[bytes]) -> None:
    """As an operator's tools do: whole, under another name first."""
    draft = path.with_name("draft")
    draft.write_text(mac.format_keys(keys))
    draft.chmod(0o600)
    draft.rename(path)


def metric(rig: NodeRig, name: str, **labels: str) -> float:
    """Summed over processes."""
    host, port = rig.admin_address
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=30) as reply:
        text = reply.read().decode()
    total = 0.0
    for line in text.splitlines():
        if line.startswith(name + "{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
            total += float(line.rsplit(" ", 1)[1])
    return total


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    make_key_file(path)
    return path


class Writer:
    """Puts single frames, one after the other, for as long as it is let, and keeps what was SAVED; another status, or an
    end that nobody asked for, is a failure. ``sign`` is the key of the next frame."""

    def __init__(self, rig: NodeRig, keys: mac.SubKeys, first: int) -> None:
        self.sign = keys
        self.saved: list[tuple[int, mac.SubKeys]] = []
        self.failure = ""
        self._rig = rig
        self._next = first
        self._end = False
        self._outages_allowed = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._end and not self.failure:
            try:
                with socket.create_connection(self._rig.put_address, 30) as sock:
                    self._put(sock)
            except OSError as error:
                if not self._outages_allowed:
                    self.failure = repr(error)
                time.sleep(0.02)

    def _put(self, sock: socket.socket) -> None:
        while not self._end:
            keys = self.sign
            batch = range(self._next, self._next + 8)
            sock.sendall(put_frames(keys, batch))
            for _ in batch:
                ack = read_exactly(sock, ACK_SIZE)
                index, status = ticket.index_from_wire(ack[:8]), Status(ack[8])
                if status is not Status.SAVED:
                    self.failure = f"{ticket.format(index)}: {status.name} under key {keys.id}"
                    return
                self.saved.append((index, keys))
            self._next = batch.stop

    def allow_outages(self) -> None:
        self._outages_allowed = True

    def goes_on(self, frames: int = 40) -> None:
        """Until so many more are saved."""
        before = len(self.saved)
        until(lambda: len(self.saved) >= before + frames or bool(self.failure), lambda: self.failure)
        assert not self.failure

    def stop(self) -> None:
        self._end = True
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


@pytest.fixture
def writers() -> Iterator[list[Writer]]:
    started: list[Writer] = []
    yield started
    for writer in started:
        writer.allow_outages()
        writer.stop()


def check_stored(rig: NodeRig, writer: Writer, reader: mac.SubKeys) -> None:
    """Everything that was SAVED comes back as it was put, signed by a key that it was put with, asked for with `reader`.

    What was sent again after an outage may have been stored the first time, under the key of then."""
    signers = {keys.id: keys for _, keys in writer.saved}.values()
    indices = sorted({index for index, _ in writer.saved})
    assert indices == list(range(indices[0], indices[-1] + 1))
    with socket.create_connection(rig.get_address, 30) as sock:
        for start in range(indices[0], indices[-1] + 1, 4096):
            count = min(4096, indices[-1] + 1 - start)
            for i, (status, stored, _) in enumerate(get_frames(sock, reader, start, count)):
                assert status is Status.SAVED
                assert stored[16:] == data_of(start + i)
                assert any(mac.frame_ok(keys.put, stored) for keys in signers)


def test_keys_keep_their_counters_and_the_sixteenth_has_none() -> None:
    keys = mac.KeyRing([bytes([i]) * 32 for i in range(20)])
    names = reload.name_keys(keys)
    assert names == keys.ids[: limits.KEYS_COUNTED]
    newer = mac.KeyRing([bytes([99]) * 32, bytes([0]) * 32])
    assert reload.name_keys(newer, names) == names
    assert reload.name_keys(newer, names[:2]) == (*names[:2], newer.ids[0])


class TestKeys:
    def test_a_rotation_under_load(self, tmp_path: Path, key_file: Path, writers: list[Writer]) -> None:
        old = mac.derive(read_keys(key_file)[0])
        with running_node(tmp_path / "data", f"--key-file={key_file}", "--workers=2") as rig:
            log = Log(rig)
            writer = Writer(rig, old, FIRST)
            writers.append(writer)
            writer.goes_on()
            # 1. The new key is accepted everywhere.
            new = mac.derive(rotate_key_file(key_file)[1])
            assert f"keys {old.id} and {new.id}" in hup(rig, log)
            writer.goes_on()
            # 2. Clients change over, and the counters show when the last one has.
            writer.sign = new
            writer.goes_on()
            assert metric(rig, "ingest_frames_by_key_total", key=new.id) >= 40
            assert metric(rig, "ingest_frames_by_key_total", key=old.id) >= 80
            # 3. The old key is not accepted any more, and a new one is, for the next time.
            third = mac.derive(rotate_key_file(key_file)[1])
            assert f"keys {new.id} and {third.id}" in hup(rig, log)
            writer.goes_on()
            with Connection(rig.put_address, old) as late:
                assert late.put([7]) == {7: Status.BAD_CHECKSUM}
            assert metric(rig, "ingest_bad_frames_total", key=old.id, reason="retired_key") == 1
            assert metric(rig, "ingest_bad_frames_total", reason="unknown_key") == 0
            with socket.create_connection(rig.get_address, 30) as sock:
                sock.sendall(mac.build_request(old.get, ticket.index_to_wire(FIRST), 1))
                assert read_exactly(sock, 16)[8] == Status.BAD_CHECKSUM
            assert metric(rig, "ingest_bad_requests_total", key=old.id, reason="retired_key") == 1
            with Connection(rig.put_address, third) as early:
                assert early.put([8]) == {8: Status.SAVED}
            # The same bytes under another key are no conflict: the committer knows all of them.
            index, signer = writer.saved[0]
            assert signer is old
            with Connection(rig.put_address, new) as again:
                assert again.put([index]) == {index: Status.SAVED}
                assert again.put([index], version=1) == {index: Status.CONFLICT}
            writer.stop()
            assert not writer.failure
            check_stored(rig, writer, new)
            record = json.loads((tmp_path / "data/.ingest/store.json").read_text())
            assert record["keys"] == [old.id, new.id, third.id]
            assert rig.stop() == 0

    def test_a_file_that_lacks_a_key_that_signed_here_is_refused(
        self, tmp_path: Path, key_file: Path
    ) -> None:
        (old_raw,) = read_keys(key_file)
        old = mac.derive(old_raw)
        with running_node(tmp_path / "data", f"--key-file={key_file}", "--workers=1") as rig:
            log = Log(rig)
            with Connection(rig.put_address, old) as client:
                assert client.put([1]) == {1: Status.SAVED}
                other = bytes(range(32))
                write_keys(key_file, [other])
                assert f"lacks the key {old.id}" in hup(rig, log, "nothing was reloaded")
                assert client.put([2]) == {2: Status.SAVED}  # the old key works on
                with Connection(rig.put_address, mac.derive(other)) as stranger:
                    assert stranger.put([3]) == {3: Status.BAD_CHECKSUM}
                assert metric(rig, "ingest_bad_frames_total", reason="unknown_key") == 1
                # What replaces a process that dies has the old keys too, not those of the file.
                (pid,) = rig.children("ingest-worker")
                os.kill(pid, signal.SIGKILL)
                log.wait("worker-0 has pid")
            with Connection(rig.put_address, old) as client:
                assert client.put([4]) == {4: Status.SAVED}
            assert rig.stop() == 0
            rig.start(wait=False)
            assert rig.process is not None and rig.process.wait(PATIENCE_S) == 78
            write_keys(key_file, [other, old_raw])
            rig.start()

    @pytest.mark.parametrize("what", ["missing", "no key", "open to others", "a directory"])
    def test_a_file_that_cannot_be_used_changes_nothing(
        self, tmp_path: Path, key_file: Path, what: str
    ) -> None:
        keys = mac.derive(read_keys(key_file)[0])
        with running_node(tmp_path / "data", f"--key-file={key_file}", "--workers=1") as rig:
            if what == "no key":
                key_file.write_text("secret\n")
            elif what == "open to others":
                key_file.chmod(0o644)
            else:
                key_file.unlink()
            if what == "a directory":
                key_file.mkdir()
            line = hup(rig, Log(rig), "nothing was reloaded")
            assert str(key_file) in line and "secret" not in line
            with Connection(rig.put_address, keys) as client:
                assert client.put([1]) == {1: Status.SAVED}

    def test_a_key_that_the_store_cannot_name_is_not_taken(self, tmp_path: Path, key_file: Path) -> None:
        """What it signed would be lost to a server that starts without it: nobody would say that it is missing."""
        old = mac.derive(read_keys(key_file)[0])
        with running_node(tmp_path / "data", f"--key-file={key_file}", "--workers=1") as rig:
            meta = rig.data_dir / ".ingest"
            before = (meta / "store.json").read_bytes()
            (meta / "store.json.new").mkdir()  # where the next one would be written
            (meta / "store.json.new" / "file").touch()
            rotate_key_file(key_file)
            (added,) = (keys for key in read_keys(key_file) if (keys := mac.derive(key)).id != old.id)
            hup(rig, Log(rig), "nothing was reloaded")
            assert (meta / "store.json").read_bytes() == before
            with Connection(rig.put_address, added) as client:
                assert client.put([1]) == {1: Status.BAD_CHECKSUM}
            with Connection(rig.put_address, old) as client:
                assert client.put([2]) == {2: Status.SAVED}
            (meta / "store.json.new" / "file").unlink()
            (meta / "store.json.new").rmdir()
            hup(rig, Log(rig), "reloaded: keys")
            assert added.id in (meta / "store.json").read_text()

    def test_processes_that_die_later_come_back_with_the_new_keys(
        self, tmp_path: Path, key_file: Path
    ) -> None:
        old = mac.derive(read_keys(key_file)[0])
        with running_node(tmp_path / "data", f"--key-file={key_file}", "--workers=1") as rig:
            log = Log(rig)
            with Connection(rig.put_address, old) as client:
                assert client.put([1]) == {1: Status.SAVED}
            new = mac.derive(rotate_key_file(key_file)[1])
            hup(rig, log)
            with Connection(rig.put_address, new) as client:
                assert client.put([2]) == {2: Status.SAVED}
            for name in ("ingest-committer", "ingest-worker", "ingest-admin"):
                for pid in rig.children(name):
                    os.kill(pid, signal.SIGKILL)
                log.wait(f"{name.removeprefix('ingest-')}.*has pid")
            until(lambda: _serves(rig))
            with Connection(rig.put_address, new) as client:
                assert client.put([2, 1, 3]) == dict.fromkeys(
                    (1, 2, 3), Status.SAVED
                )  # two were there already

    def test_kill_during_reloads_under_load_loses_nothing(
        self, tmp_path: Path, key_file: Path, writers: list[Writer]
    ) -> None:
        """Whenever all processes are killed while a key comes in, what was SAVED, under any key, is there afterwards."""
        keys = [mac.derive(key) for key in read_keys(key_file)]
        with running_node(tmp_path / "data", f"--key-file={key_file}", "--workers=2") as rig:
            writer = Writer(rig, keys[0], FIRST)
            writers.append(writer)
            for round in range(3):
                writer.goes_on()
                writer.allow_outages()
                newest = mac.derive(rotate_key_file(key_file)[1])
                os.kill(rig.pid, signal.SIGHUP)
                if round:  # in the middle of it, or when it is through
                    Log(rig).wait("SIGHUP" if round == 1 else "")
                rig.kill_all()
                rig.start()
                writer.sign = newest
                writer.goes_on()
                keys.append(newest)
            writer.stop()
            assert not writer.failure
            check_stored(rig, writer, keys[-1])
            record = json.loads((tmp_path / "data/.ingest/store.json").read_text())
            assert {signer.id for _, signer in writer.saved} <= set(record["keys"])

    def test_many_reloads_at_once_end_with_what_the_file_says(self, tmp_path: Path, key_file: Path) -> None:
        with running_node(tmp_path / "data", f"--key-file={key_file}", "--workers=2") as rig:
            log = Log(rig)
            for _ in range(10):
                rotate_key_file(key_file)
                os.kill(rig.pid, signal.SIGHUP)
            first, second, *_ = (mac.derive(key) for key in read_keys(key_file))
            log.wait(f"reloaded: keys {first.id} and {second.id}")
            with Connection(rig.put_address, second) as client:
                assert client.put([1]) == {1: Status.SAVED}


def _serves(rig: NodeRig) -> bool:
    try:
        host, port = rig.admin_address
        with urllib.request.urlopen(f"http://{host}:{port}/readyz", timeout=30) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


class TestConfiguration:
    def test_the_log_level_changes_and_the_rest_needs_a_restart(self, tmp_path: Path) -> None:
        file = tmp_path / "ingest.toml"
        file.write_text('log_level = "info"\n')
        with running_node(tmp_path / "data", f"--config={file}", "--workers=1") as rig:
            log = Log(rig)
            file.write_text('log_level = "debug"\nreserve = "1GiB"\nbad_frame_limit = 7\n')
            line = hup(rig, log, "needs a restart")
            assert "bad_frame_limit" in line and "reserve" in line and "log_level" not in line
            assert "log_level" in log.wait("changed: ")
            log.wait("reloaded")
            file.write_text('log_level = "error"\n')
            os.kill(rig.pid, signal.SIGHUP)
            log.wait("changed: ")
            file.write_text('log_level = "nothing"\n')
            hup(rig, log, "nothing was reloaded")  # an error; what is less is not written any more
            assert rig.connect().put([1]) == {1: Status.SAVED}
            assert rig.stop() == 0
            assert " info " not in log

    def test_the_file_is_gone(self, tmp_path: Path) -> None:
        file = tmp_path / "ingest.toml"
        file.write_text("workers = 1\n")
        with running_node(tmp_path / "data", f"--config={file}") as rig:
            file.unlink()
            assert str(file) in hup(rig, Log(rig), "nothing was reloaded")
            assert rig.connect().put([1]) == {1: Status.SAVED}


class TestCertificates:
    @pytest.fixture
    def files(self, tmp_path: Path) -> Files:
        return Files(tmp_path, trustme.CA())

    def test_the_client_and_the_load_generator_speak_tls_to_both_ports(
        self, tmp_path: Path, files: Files
    ) -> None:
        from ingest import Client
        from ingest.tls import client_context as context_of

        cert, key = files.write("client", files.ca.issue_cert("client@example.org"))
        flags = files.server_flags(client_ca=True)
        with plain_start(NodeRig(tmp_path / "data", "--workers=2", *flags)) as rig:
            key_path = tmp_path / "data/.ingest/key"
            context = context_of(files.ca_path(), cert, key)
            with Client.connect(rig.put_address, rig.get_address, key_path, tls=context) as client:
                client.put("HELLO00", b"hello")
                assert client.put_range("A000000", bytes(3000 * 1458)) == {}
                assert client.get("HELLO00").startswith(b"hello")
                assert len(list(client.get_range("A000000", 3000))) == 3000
            result = loopback.run(
                loopback.LoopbackOptions(
                    rig.put_address,
                    key_path,
                    rig.get_address,
                    frames=20_000,
                    processes=2,
                    verify=True,
                    tls_ca=files.ca_path(),
                    tls_cert=cert,
                    tls_key=key,
                )
            )
            assert result.ok and result.verified == 20_000
            # Without a certificate, or without TLS, nobody gets in.
            with pytest.raises(ConnectionLostError):
                loopback.run(
                    loopback.LoopbackOptions(rig.put_address, key_path, frames=10, tls_ca=files.ca_path())
                )
            with pytest.raises(ConnectionLostError):
                loopback.run(loopback.LoopbackOptions(rig.put_address, key_path, frames=10))
            assert metric(rig, "ingest_connections_closed_total", port="put", reason="not_tls") >= 1
            assert metric(rig, "ingest_connections_closed_total", port="put", reason="tls_handshake") >= 1
            # The name in the certificate counts.
            log = Log(rig)
            files.write("server", files.ca.issue_cert("elsewhere.example.org"))
            hup(rig, log)
            with pytest.raises(ConnectionLostError, match="certificate verify failed"):
                Client.connect(rig.put_address, None, key_path, tls=context)
            with pytest.raises(ConnectionLostError, match="certificate verify failed"):
                loopback.run(
                    loopback.LoopbackOptions(rig.put_address, key_path, frames=10, tls_ca=files.ca_path())
                )
            assert rig.stop() == 0

    def test_new_ones_are_for_new_connections_and_bad_ones_change_nothing(
        self, tmp_path: Path, files: Files
    ) -> None:
        with plain_start(NodeRig(tmp_path / "data", "--workers=2", *files.server_flags())) as rig:
            log = Log(rig)
            before = tls_connection(rig, files.ca)
            other = trustme.CA()
            cert, key = files.write("server", other.issue_cert("127.0.0.1"))
            hup(rig, log)
            with pytest.raises(OSError, match="certificate verify failed"):
                tls_connection(rig, files.ca)
            after = tls_connection(rig, other)
            cert.write_text("nothing")
            assert str(cert) in hup(rig, log, "nothing was reloaded")
            later = tls_connection(rig, other)
            key.unlink()
            assert hup(rig, log, "nothing was reloaded")
            # A worker that is replaced now has what the parent holds, not what the disk says.
            for pid in rig.children("ingest-worker"):
                os.kill(pid, signal.SIGKILL)
                log.wait("worker-. has pid")
            assert later.sock.fileno() >= 0
            last = tls_connection(rig, other)
            assert last.put([3]) == {3: Status.SAVED}
            for connection in (before, after, later, last):
                connection.sock.close()

    def test_tls_is_not_turned_off_by_a_reload(self, tmp_path: Path, files: Files) -> None:
        cert, key = files.write("server", files.ca.issue_cert("127.0.0.1"))
        file = tmp_path / "ingest.toml"
        file.write_text(f'tls_cert = "{cert}"\ntls_key = "{key}"\n')
        with plain_start(NodeRig(tmp_path / "data", "--workers=1", f"--config={file}")) as rig:
            file.write_text("")
            assert "tls_cert" in hup(rig, Log(rig), "nothing was reloaded")
            connection = tls_connection(rig, files.ca)
            assert connection.put([1]) == {1: Status.SAVED}
            connection.sock.close()

    @pytest.mark.parametrize("before", ["plain", "TLS", "TLS with client CA"])
    @pytest.mark.parametrize("after", ["plain", "TLS", "TLS with client CA"])
    def test_who_is_let_in_stays_so(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, files: Files, before: str, after: str
    ) -> None:
        """Neither TLS nor the question for a client's certificate is turned on or off; another CA is taken over."""
        cert, key = files.write("server", files.ca.issue_cert("127.0.0.1"))
        data, key_file = tmp_path / "data", tmp_path / "keys"
        make_key_file(key_file)
        plain = ServerConfig(data_dir=data, key_file=key_file)
        with_tls = replace(plain, tls_cert=cert, tls_key=key)
        configs = {
            "plain": plain,
            "TLS": with_tls,
            "TLS with client CA": replace(with_tls, tls_client_ca=files.ca_path()),
        }
        present, wanted = configs[before], replace(configs[after], log_level="debug")
        store = Store.open(data)
        node = Node(present, store, mac.KeyRing(read_keys(key_file)), Queue(1, 16), [])
        node.certificates = was = reload.read_certificates(present)
        node.read_config = lambda: wanted
        other = trustme.CA()
        if before == after:
            (tmp_path / "ca.pem").write_bytes(other.cert_pem.bytes())
        with caplog.at_level("INFO"):  # which a reload sets, and this takes back
            reload.Reload(node, lambda to_workers: {}).begin()
        if before == after:
            assert (node.config, node.certificates) == (wanted, reload.read_certificates(wanted))
            asks = node.certificates is not None and node.certificates.ca == other.cert_pem.bytes()
            assert asks == (after == "TLS with client CA")
        else:
            assert node.config is present and node.certificates is was
            assert "needs a restart" in caplog.messages[-1]
        node.queue.close()
        store.close()

    @pytest.mark.parametrize("flag", ["--tls-cert", "--tls-key", "--tls-client-ca"])
    def test_one_file_is_not_enough(self, tmp_path: Path, flag: str) -> None:
        rig = NodeRig(tmp_path / "data", f"{flag}={tmp_path / 'x.pem'}")
        rig.start(wait=False)
        assert rig.process is not None and rig.process.wait(PATIENCE_S) == 78

    def test_a_server_does_not_start_with_a_bad_certificate(self, tmp_path: Path, files: Files) -> None:
        flags = files.server_flags()
        (tmp_path / "server.pem").write_text("nothing")
        rig = NodeRig(tmp_path / "data", *flags)
        rig.start(wait=False)
        assert rig.process is not None and rig.process.wait(PATIENCE_S) == 78
        assert rig.says("server.pem: no certificate")
        assert not (tmp_path / "data/.ingest/store.json").exists()


class plain_start:
    """A started node, ended at the end."""

    def __init__(self, rig: NodeRig) -> None:
        self._rig = rig

    def __enter__(self) -> NodeRig:
        self._rig.start()
        return self._rig

    def __exit__(self, *_: object) -> None:
        self._rig.close()


def tls_connection(rig: NodeRig, ca: trustme.CA) -> Connection:
    connection = Connection(rig.put_address, rig.keys)
    connection.sock = client_context(ca).wrap_socket(connection.sock, server_hostname="127.0.0.1")
    return connection


def test_the_lock_says_which_keys_are_accepted(tmp_path: Path) -> None:
    """By all workers: while one of them does not know it yet, only those that are accepted before and after."""
    with running_node(tmp_path / "data", "--workers=2") as rig:
        key_file = rig.data_dir / ".ingest" / "key"

        def said() -> list[str]:
            return json.loads((rig.data_dir / ".ingest" / "lock").read_text())["keys"]

        def accepted() -> list[str]:
            return [keys.id for keys in mac.KeyRing(read_keys(key_file)).accepted]

        assert said() == accepted()
        until(lambda: len(rig.children("ingest-worker")) == 2)
        for _ in range(3):
            before = accepted()
            rotate_key_file(key_file)
            worker = rig.children("ingest-worker")[1]
            os.kill(worker, signal.SIGSTOP)
            os.kill(rig.pid, signal.SIGHUP)
            stays = [key for key in accepted() if key in before]
            until(lambda wanted=stays: said() == wanted)
            os.kill(worker, signal.SIGCONT)
            until(lambda: said() == accepted())


class Parent:
    """A server's parent whose processes are two ends of lines, and what it has for those that start now."""

    def __init__(self, tmp_path: Path) -> None:
        self.files = Files(tmp_path, trustme.CA())
        self.key_file = tmp_path / "keys"
        make_key_file(self.key_file)
        cert, key = self.files.write("old", self.files.ca.issue_cert("127.0.0.1"))
        self.config = ServerConfig(
            data_dir=tmp_path / "data",
            key_file=self.key_file,
            tls_cert=cert,
            tls_key=key,
            tls_client_ca=self.files.ca_path(),
        )
        self.next = self.config
        keys = mac.KeyRing(read_keys(self.key_file))
        self.store = Store.open(self.config.data_dir)
        self.store.check_keys(keys)
        self.node = Node(self.config, self.store, keys, Queue(1, 16), [])
        self.node.certificates = reload.read_certificates(self.config)
        self.node.key_names = reload.name_keys(keys)
        self.node.read_config = lambda: self.next
        self.lines = {
            name: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for name in ("admin", "worker")
        }
        self.reloads = reload.Reload(self.node, self._lines_to)
        reload.announce(self.node, keys.accepted)

    def _lines_to(self, to_workers: bool) -> dict[str, socket.socket]:
        name = "worker" if to_workers else "admin"
        return {name: self.lines[name][0]}

    def changes_all(self) -> None:
        """Everything that may be reloaded has another name and another content; and something that may not, too."""
        rotated = self.key_file.with_name("new keys")
        rotated.write_bytes(self.key_file.read_bytes())
        rotated.chmod(0o600)
        rotate_key_file(rotated)
        cert, key = self.files.write("new", self.files.ca.issue_cert("127.0.0.1"))
        ca = self.key_file.with_name("new ca")
        trustme.CA().cert_pem.write_to_path(ca)
        self.next = replace(
            self.config,
            key_file=rotated,
            tls_cert=cert,
            tls_key=key,
            tls_client_ca=ca,
            log_level="error",
            reserve=1,
        )

    def told(self, name: str) -> reload.Settings | None:
        """What one process takes over now."""
        self.node.control = self.lines[name][1]
        return reload.receive(self.node)

    def has(self) -> dict[str, object]:
        """What a process that starts now has, and what is said."""
        node = self.node
        return {
            "keys": node.keys.ids,
            "verifying": node.verifying_keys.ids,
            "names": node.key_names,
            "certificates": node.certificates,
            "config": node.config,
            "level": logging.getLogger().level,
            "said": json.loads((self.config.data_dir / ".ingest" / "lock").read_bytes())["keys"],
        }

    def close(self) -> None:
        for sock in itertools.chain.from_iterable(self.lines.values()):
            sock.close()
        self.node.queue.close()
        self.store.close()


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[Parent]:
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.INFO)
    with closing(Parent(tmp_path)) as made:
        yield made
    logging.getLogger().setLevel(level)


def test_each_step_of_a_reload_changes_what_the_table_says(parent: Parent) -> None:
    """For whoever starts in that moment, and for who reads what the server says of itself."""
    before = parent.has()
    parent.changes_all()
    settings = parent.next
    assert settings.key_file is not None
    keys = mac.KeyRing(read_keys(settings.key_file))
    parent.reloads.begin()
    # KNOWN: what is stored may be verified with the new key, and no more than that is changed.
    names = (*keys.ids[:1], keys.ids[1])
    known = before | {"verifying": keys.ids, "names": names}
    assert parent.has() == known and parent.reloads.waiting == {"admin"}
    text = (parent.config.data_dir / ".ingest" / "store.json").read_text()
    assert all(key in text for key in keys.ids), "what it signs would be nobody's after a death"
    told = parent.told("admin")
    assert told is not None and parent.told("worker") is None
    certificates = reload.read_certificates(settings)
    assert (told.keys.ids, told.key_names, told.log_level) == (keys.ids, names, "error")
    assert told.certificates == certificates != before["certificates"]
    parent.reloads.answered("admin")
    # USED: a worker that starts now accepts it; not all that run do.
    used = {
        "keys": keys.ids,
        "verifying": keys.ids,
        "names": names,
        "certificates": certificates,
        "config": replace(settings, reserve=parent.config.reserve),
        "level": logging.ERROR,
        "said": [keys.ids[0]],
    }
    assert parent.has() == used and parent.reloads.waiting == {"worker"}
    assert parent.told("worker") == told
    parent.reloads.answered("worker")
    assert parent.has() == used | {"said": list(keys.ids)} and not parent.reloads.waiting


def test_a_key_keeps_its_number_through_every_rotation(parent: Parent) -> None:
    """Its counters are those of that number, in all processes: a graph of it does not jump to another key's."""
    names = parent.node.key_names
    for _ in range(4):
        rotate_key_file(parent.key_file)
        parent.reloads.begin()
        for name in ("admin", "worker"):
            told = parent.told(name)
            assert told is not None
            (new,) = set(told.keys.ids) - set(names)
            assert told.key_names == parent.node.key_names == (*names, new)
            parent.reloads.answered(name)
        names = parent.node.key_names


WRONG = (
    *("configuration", "key file", "certificate", "its key", "clients' CA", "no TLS", "no clients' CA"),
    *("too long", "store"),
)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_reload_of_which_anything_is_wrong_changes_nothing(
    parent: Parent, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    """Nor does it keep the next one, which is right, from changing all of it."""
    before = parent.has()
    parent.changes_all()
    right, read = parent.next, parent.node.read_config
    with monkeypatch.context() as patch:
        if wrong == "configuration":

            def fails() -> ServerConfig:
                raise ConfigError("unknown key")

            parent.node.read_config = fails
        elif wrong == "too long":
            patch.setattr(limits, "SETTINGS_SIZE_MAX", 100)
        elif wrong == "store":
            (parent.config.data_dir / ".ingest" / "store.json.new" / "x").mkdir(parents=True)
        elif wrong == "no TLS":
            parent.next = replace(right, tls_cert=None, tls_key=None)
        elif wrong == "no clients' CA":
            parent.next = replace(right, tls_client_ca=None)
        else:
            names = {"key file": "key_file", "certificate": "tls_cert", "its key": "tls_key"}
            nothing = parent.key_file.with_name("nothing")
            nothing.write_text("nothing\n")
            nothing.chmod(0o600)
            parent.next = replace(right, **{names.get(wrong, "tls_client_ca"): nothing})
        parent.reloads.begin()
    assert parent.has() == before and not parent.reloads.waiting
    assert parent.told("admin") is None and parent.told("worker") is None
    if wrong == "store":
        shutil.rmtree(parent.config.data_dir / ".ingest" / "store.json.new")
    parent.next, parent.node.read_config = right, read
    parent.reloads.begin()
    assert parent.told("admin") is not None
    parent.reloads.answered("admin")
    parent.reloads.answered("worker")
    assert parent.has()["level"] == logging.ERROR and parent.has()["certificates"] != before["certificates"]


@pytest.mark.parametrize("hups", list(itertools.product(range(3), repeat=3)))
def test_what_comes_during_a_reload_is_done_once_more_and_then_it_rests(
    parent: Parent, hups: tuple[int, int, int]
) -> None:
    """However many come, in whichever step, also of the second one. ``hups``: in the two steps of the first, and in that."""
    done = 0
    parent.reloads.begin()
    for turn in range(6):
        for name in ("admin", "worker"):
            if parent.told(name) is None:
                break
            here = {(0, "admin"): hups[0], (0, "worker"): hups[1], (1, "worker"): hups[2]}.get(
                (turn, name), 0
            )
            for _ in range(here):
                parent.reloads.begin()
            parent.reloads.answered(name)
        else:
            done += 1
            continue
        break
    again = hups[0] + hups[1] > 0
    assert done == 1 + again + (again and hups[2] > 0)
    assert not parent.reloads.waiting and parent.told("admin") is None and parent.told("worker") is None


@pytest.mark.parametrize("trouble", ["dead", "full"])
def test_a_process_that_cannot_be_told_keeps_nobody_else_from_hearing(tmp_path: Path, trouble: str) -> None:
    """Wherever it stands among them, in either step; and the reload comes to its end without it."""
    key_file, names = tmp_path / "keys", ("one", "two", "three")
    make_key_file(key_file)
    config = ServerConfig(data_dir=tmp_path / "data", key_file=key_file)
    store = Store.open(config.data_dir)
    for lost, step in itertools.product(names, ("known", "used")):
        node = Node(config, store, mac.KeyRing(read_keys(key_file)), Queue(1, 16), [])
        node.read_config = lambda: config
        pairs = {name: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for name in names}
        lines, ends = ({name: pair[side] for name, pair in pairs.items()} for side in (0, 1))
        reloads = reload.Reload(node, lambda to_workers, lines=lines: lines)  # type: ignore[misc]

        def lose(name: str, pairs: dict[str, tuple[socket.socket, ...]] = pairs) -> None:
            if trouble == "dead":
                pairs[name][1].close()
            else:
                with suppress(BlockingIOError):
                    while True:
                        pairs[name][0].send(b"0", socket.MSG_DONTWAIT)

        rotate_key_file(key_file)
        if step == "known":
            lose(lost)
        reloads.begin()
        for turn in ("known", "used"):
            told = set(names) - ({lost} if (step, turn) != ("used", "known") else set())
            assert reloads.waiting == told
            for name in sorted(told):
                assert int(ends[name].recv(32, socket.MSG_DONTWAIT)) > 0
            if (step, turn) == ("used", "known"):
                lose(lost)
            for name in sorted(told):
                reloads.answered(name)
        assert not reloads.waiting and node.keys.ids == mac.KeyRing(read_keys(key_file)).ids
        for sock in itertools.chain.from_iterable(pairs.values()):
            sock.close()
        node.queue.close()
    store.close()


def test_hup_at_the_start_ends_nobody(tmp_path: Path) -> None:
    """It comes while the configuration is read for the first time: then that is done once more."""
    config = tmp_path / "config"
    os.mkfifo(config)
    ports = [f"--{name}=127.0.0.1:0" for name in ("listen", "read-listen", "admin-listen")]
    command = [
        sys.executable,
        "-m",
        "ingest",
        "server",
        f"--data-dir={tmp_path / 'data'}",
        f"--config={config}",
    ]
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen([*command, *ports], stderr=file)

    def reloaded() -> bool:
        """Lets it read to the end whenever it reads again; it may see two of these lines in one reading."""
        assert process.poll() is None, f"it ended with {process.returncode}: {log.read_text()}"
        try:
            fd = os.open(config, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            assert error.errno == errno.ENXIO  # nobody reads
        else:
            with suppress(BrokenPipeError):
                os.write(fd, b"# all of it is as it was\n")
            os.close(fd)
        return "SIGHUP: reloaded" in log.read_text()

    try:
        fd = os.open(config, os.O_WRONLY)  # when it is opened to be read
        process.send_signal(signal.SIGHUP)
        os.write(fd, b'log_level = "info"\n')
        os.close(fd)
        until(reloaded, log.read_text)
    finally:
        process.kill()
        process.wait()
