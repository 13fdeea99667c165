"""The processes of a gateway: signals, deaths of any of them, and what is left on the disk afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from gateway_rig import TIMEOUT_S, Answer, Broken, Connection, NodeGateway, node_gateway
from node_rig import running_node

from ingest import ticket
from ingest.catalog.catalog_reader import CatalogReader
from ingest.catalog.version import VersionState
from ingest.client.async_client import AsyncClient
from ingest.limits import SMALL_OBJECT_MAX
from ingest.mac import KeyRing
from ingest.runtime.key_file import rotate_key_file
from ingest.status import Status

SMALL = b"small" * 200
LARGE = random.Random(2).randbytes(3 * SMALL_OBJECT_MAX)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeGateway]:
    with node_gateway(tmp_path / "data", "--collect-interval=0.2", "--http-workers=2") as running:
        yield running


def child(node: NodeGateway, name: str) -> psutil.Process:
    """A process by the name that the kernel knows: ingest-http-0, ingest-catalog, ingest-collector, ingest-gateway."""
    (found,) = (process for process in node.family() if process.name() == name[:15])
    return found


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def patiently(call: Callable[[], Answer]) -> Answer:
    """As a client that tries again does, while a process is replaced."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            answer = call()
            if answer.status < 500 or time.monotonic() > deadline:
                return answer
        except (Broken, OSError):
            assert time.monotonic() < deadline
        time.sleep(0.05)


# --- signals


def test_term_finishes_what_is_under_way(tmp_path: Path) -> None:
    """Requests under way are answered; idle connections, also of the same process, end at once; all processes are gone."""
    with node_gateway(tmp_path / "data", "--http-workers=1") as node:
        gateway = node.gateway
        family = node.family()
        with gateway.connect() as idle, gateway.connect() as busy:
            assert idle.request("GET", "/alive").status == 200
            headers = {"Content-Length": str(len(LARGE)), "Expect": "100-continue"}
            busy.send(busy.head("PUT", "/objects/late", headers))
            assert busy.answer_head()[0] == 100
            assert node.process is not None
            node.process.send_signal(signal.SIGTERM)
            assert idle.ended()
            busy.send(LARGE)
            assert busy.answer().status == 200
        assert node.process.wait(TIMEOUT_S) == 0, node.log()
        _, alive = psutil.wait_procs(family, TIMEOUT_S)
        assert not alive and not node.announcement.exists()
        node.start()
        assert node.gateway.request("GET", "/objects/late").body == LARGE


def test_a_second_term_ends_at_once(tmp_path: Path) -> None:
    with node_gateway(tmp_path / "data", "--drain-timeout=60") as node:
        family = node.family()
        with node.gateway.connect() as busy:
            busy.send(busy.head("PUT", "/objects/never", {"Content-Length": "9", "Expect": "100-continue"}))
            assert busy.answer_head()[0] == 100
            assert node.process is not None
            node.process.send_signal(signal.SIGTERM)
            until(lambda: "SIGTERM: draining" in node.log(), "it drains")
            node.process.send_signal(signal.SIGTERM)
            assert node.process.wait(TIMEOUT_S) == 1
        _, alive = psutil.wait_procs(family, TIMEOUT_S)
        assert not alive


def test_an_upload_that_outlasts_the_drain_has_failed(tmp_path: Path) -> None:
    with node_gateway(tmp_path / "data", "--drain-timeout=1") as node:
        with node.gateway.connect() as busy:
            busy.send(busy.head("POST", "/store/never", {"Content-Length": str(len(LARGE))}))
            busy.send(LARGE[:-1])
            until(lambda: node.gateway.request("GET", "/store/never?history").status == 200, "it began")
            node.stop()
        node.start()

        def states() -> list[str]:
            return [step["state"] for step in node.gateway.request("GET", "/store/never?history").json]

        # At once; or when its owner's deadline passed, if a busy machine left it no time to say so before it was killed.
        until(lambda: states() == ["failed", "pending"], "it has failed")


def test_hup_reads_tokens_again(tmp_path: Path) -> None:
    path = tmp_path / "tokens"

    def write(token: str) -> None:
        path.write_text(f"read-write {token}\n")
        path.chmod(0o600)

    def status(token: str) -> int:
        return node.gateway.request("GET", "/blob", headers={"Authorization": f"Bearer {token}"}).status

    write("first-0123456789")
    with node_gateway(tmp_path / "data", f"--token-file={path}") as node:
        gateway = child(node, "ingest-gateway")
        assert (status("first-0123456789"), status("second-0123456789")) == (200, 401)
        write("second-0123456789")
        assert node.process is not None
        node.process.send_signal(signal.SIGHUP)
        until(lambda: status("second-0123456789") == 200, "the new token is good")
        # Each process has read it, not the one alone that answered.
        until(lambda: {status("first-0123456789") for _ in range(8)} == {401}, "the old one is not")
        path.write_text("nonsense")
        node.process.send_signal(signal.SIGHUP)
        until(lambda: "nothing is reloaded" in node.log(), "it says that it cannot use the file")
        assert status("second-0123456789") == 200
        assert gateway.is_running() and node.stop() == 0


@pytest.mark.parametrize("stopped", [None, "ingest-server", "ingest-worker-0", "ingest-committer"])
def test_keys_are_changed_under_load(node: NodeGateway, stopped: str | None) -> None:
    """Rotations of the key that server and gateway share: no upload and no download notices, also when a process of the
    server takes its time to read the file."""
    key_file = node.data_dir / ".ingest" / "key"
    admin = json.loads((node.data_dir / ".ingest" / "lock").read_text())["admin"]
    done = threading.Event()

    def told(what: str) -> int:
        """How many processes have said so: one that starts just now may do it twice."""
        return len({line.split()[1] for line in node.log_path.read_text().splitlines() if what in line})

    def work(name: str) -> int:
        count = 0
        with node.gateway.connect() as connection:
            while not done.is_set():
                data = LARGE + b"%d" % count
                assert connection.request("PUT", f"/objects/{name}", data).status == 200
                assert connection.request("GET", f"/objects/{name}").body == data
                count += 1
        return count

    def signed_with(key: str) -> bool:
        host, port = admin.rsplit(":", 1)
        with Connection((host, int(port))) as connection:
            text = connection.request("GET", "/metrics").body.decode()
        # A line for each worker: which of them the gateway is connected to is the kernel's choice.
        found = re.findall(rf'ingest_frames_by_key_total{{.*key="{key}".*}} ([0-9.e+]+)', text)
        return any(float(count) > 0 for count in found)

    def change() -> None:
        assert node.process is not None
        key = KeyRing(rotate_key_file(key_file)).accepted[1].id
        if stopped is not None:
            child(node, stopped).suspend()
        try:
            node.process.send_signal(signal.SIGHUP)
            waits = f"key {key} is in the file, and the server does not accept it yet"
            until(lambda: stopped is None or told(waits) == 3, "all wait for the server")
        finally:
            if stopped is not None:
                child(node, stopped).resume()
        # As an operator does who waits until nobody signs with the old key any more.
        until(lambda: told(f"key {key} signs") == 3, "all sign with the new key")
        until(
            lambda: signed_with(key) or any(worker.done() for worker in workers),
            "frames are signed with the new key",
        )

    with ThreadPoolExecutor(2) as pool:
        workers = [pool.submit(work, name) for name in ("a", "b")]
        try:
            for _ in range(3):  # the first one puts a second key into the file
                change()
                assert not any(worker.done() for worker in workers), (node.log(), workers)
        finally:
            done.set()
        assert all(worker.result() for worker in workers), node.log()
    assert "BAD_CHECKSUM" not in node.log()


def test_hup_shows_a_new_certificate(tmp_path: Path) -> None:
    """To clients, and to the gateway's own processes: they find their engine again when its worker has died."""
    import ssl

    import trustme

    authorities = [trustme.CA(), trustme.CA()]
    pem = tmp_path / "pem"

    def use(authority: trustme.CA) -> None:
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(pem)

    def trusted(authority: trustme.CA) -> bool:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        try:
            with Connection(node.gateway.address, context) as connection:
                return connection.request("PUT", "/objects/a", LARGE).status == 200
        except ssl.SSLCertVerificationError:
            return False

    use(authorities[0])
    # The engine speaks TLS with the same certificate, and the gateway to it.
    flags = [f"--tls-cert={pem}", f"--tls-key={pem}", "--workers=1", "--collect-interval=0.2"]
    with node_gateway(tmp_path / "data", *flags) as node:
        assert [trusted(authority) for authority in authorities] == [True, False]
        use(authorities[1])
        assert node.process is not None
        node.process.send_signal(signal.SIGHUP)
        until(lambda: trusted(authorities[1]), "the new certificate is shown")
        until(lambda: "SIGHUP: reloaded" in node.log(), "the engine shows it")
        child(node, "ingest-worker-0").kill()
        assert trusted(authorities[1])  # and each time there is something to collect
        until(lambda: not garbage_left(node.data_dir), "the collector has come to the engine")


def test_a_process_that_is_replaced_finds_its_engine_when_the_certificate_is_renewed(tmp_path: Path) -> None:
    """The engine shows the new one after a HUP, however long the files have it by then."""
    import ssl

    import trustme

    pem, authority, context = tmp_path / "pem", trustme.CA(), ssl.create_default_context()
    authority.configure_trust(context)

    def renew() -> None:
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(pem)

    def put() -> bool:
        try:
            with Connection(node.gateway.address, context) as connection:
                return connection.request("PUT", "/objects/a", LARGE).status == 200
        except ConnectionError:  # nobody is there yet
            return False

    renew()
    flags = [f"--tls-cert={pem}", f"--tls-key={pem}", "--http-workers=1", "--collect-interval=0.2"]
    with node_gateway(tmp_path / "data", *flags) as node:
        assert put()
        renew()
        for name in ("ingest-http-0", "ingest-collector"):
            child(node, name).kill()
        for _ in range(2):  # the second one replaces the first: there is something to collect
            until(put, "the engine is found")
        until(lambda: not garbage_left(node.data_dir), "the collector has come to the engine")


def test_hup_comes_while_processes_start(tmp_path: Path) -> None:
    """They wait for their engine, and have read what is changed meanwhile: nobody would tell them once more."""
    import ssl

    import trustme

    data_dir = tmp_path / "data"
    authorities = [trustme.CA(), trustme.CA()]
    pem = tmp_path / "pem"
    tokens = [tmp_path / "tokens", tmp_path / "other tokens"]
    for path, token in zip(tokens, ("first-0123456789", "second-0123456789"), strict=True):
        path.write_text(f"read-write {token}\n")
        path.chmod(0o600)
    config = tmp_path / "config"
    authorities[0].issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(pem)
    config.write_text(f'token_file = "{tokens[0]}"\n')
    with running_node(data_dir) as server:
        put, get = server.put_address, server.get_address
        assert server.stop() == 0
        flags = [f"--connect={put[0]}:{put[1]}", f"--read-connect={get[0]}:{get[1]}", f"--config={config}"]
        flags += [f"--tls-cert={pem}", f"--tls-key={pem}", "--http-workers=2"]
        node = NodeGateway(data_dir, *flags, command="gateway")
        try:
            node.start(wait=False)
            until(lambda: node.log().count("waiting for the engine") == 3, "all of them have begun")
            assert node.process is not None
            authorities[1].issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(pem)
            config.write_text(f'token_file = "{tokens[1]}"\n')
            node.process.send_signal(signal.SIGHUP)
            until(lambda: "are read again" in node.log(), "the parent has read it")
            server.flags = (f"--listen={put[0]}:{put[1]}", f"--read-listen={get[0]}:{get[1]}")
            server.start()
            node.wait_until_ready()
            context = ssl.create_default_context()
            authorities[1].configure_trust(context)

            def status(token: str) -> int:
                with Connection(node.gateway.address, context) as connection:
                    headers = {"Authorization": f"Bearer {token}"}
                    return connection.request("GET", "/blob", headers=headers).status

            for _ in range(20):  # both processes answer
                assert (status("first-0123456789"), status("second-0123456789")) == (401, 200)
            # One that takes the place of another starts with what was read last.
            for number in range(2):
                child(node, f"ingest-http-{number}").kill()
            until(lambda: node.log().count("has pid") == 6, "they are replaced")
            for _ in range(20):
                assert (status("first-0123456789"), status("second-0123456789")) == (401, 200)
            assert node.stop() == 0, node.log()
        finally:
            node.close()


# --- starts that fail


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    clean = {name: text for name, text in os.environ.items() if not name.startswith("INGEST_")}
    return subprocess.run(
        [sys.executable, "-m", "ingest", *arguments],
        env=clean, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip


def test_a_second_gateway_is_refused(node: NodeGateway) -> None:
    announced = (node.data_dir / ".ingest" / "gateway.json").read_bytes()
    flags = ("gateway", f"--data-dir={node.data_dir}", "--http-listen=127.0.0.1:0")
    result = run(*flags)
    assert result.returncode == 75, result.stderr
    assert "another gateway" in result.stderr
    assert (node.data_dir / ".ingest" / "gateway.json").read_bytes() == announced
    assert node.gateway.request("PUT", "/objects/a", SMALL).status == 200


def test_a_port_that_is_taken_is_refused(node: NodeGateway, tmp_path: Path) -> None:
    ports = [f"--{name}=127.0.0.1:0" for name in ("listen", "read-listen", "admin-listen")]
    http = f"--http-listen=127.0.0.1:{node.gateway.address[1]}"
    taken = run("serve", f"--data-dir={tmp_path / 'other'}", http, *ports)
    assert taken.returncode == 75 and "is taken" in taken.stderr


def test_starts_that_are_refused(tmp_path: Path) -> None:
    empty = run("gateway", f"--data-dir={tmp_path}", "--http-listen=127.0.0.1:0")
    assert empty.returncode == 78 and "holds no store" in empty.stderr
    open_ = run("serve", f"--data-dir={tmp_path}", "--http-listen=0.0.0.0:0")
    assert open_.returncode == 78 and "--token-file" in open_.stderr
    assert list(tmp_path.iterdir()) == []


def test_serve_ends_when_its_server_cannot_start(node: NodeGateway, tmp_path: Path) -> None:
    flags = [f"--{name}=127.0.0.1:0" for name in ("listen", "read-listen", "admin-listen", "http-listen")]
    held = run("serve", f"--data-dir={node.data_dir}", *flags)
    assert held.returncode == 75, held.stderr
    port = f"--http-listen=127.0.0.1:{node.gateway.address[1]}"
    taken = run("serve", f"--data-dir={tmp_path / 'other'}", *flags[:-1], port)
    assert taken.returncode == 75, taken.stderr


def test_a_gateway_waits_for_its_engine(tmp_path: Path) -> None:
    """Started before the server listens again: it serves when the server does."""
    with running_node(tmp_path / "data") as server:
        address = server.put_address
        flags = [f"--connect={address[0]}:{address[1]}", f"--read-connect=127.0.0.1:{server.get_address[1]}"]
        with node_gateway(tmp_path / "data", *flags, command="gateway") as node:
            assert node.gateway.request("PUT", "/objects/a", LARGE).status == 200
            assert node.gateway.request("GET", "/objects/a").body == LARGE
            assert node.stop() == 0


def test_a_gateway_and_the_engine_of_another_one(tmp_path: Path) -> None:
    """With the same key. It neither starts beside it, nor uses it when it comes into the place of its own."""
    with running_node(tmp_path / "data") as own:
        put, get = own.put_address, own.get_address
        flags = [
            f"--connect={put[0]}:{put[1]}",
            f"--read-connect={get[0]}:{get[1]}",
            "--collect-interval=0.1",
        ]
        with node_gateway(tmp_path / "data", *flags, command="gateway") as node:
            assert node.gateway.request("PUT", "/objects/a", LARGE).status == 200
            key = f"--key-file={own.data_dir / '.ingest' / 'key'}"
            same = (f"--listen={put[0]}:{put[1]}", f"--read-listen={get[0]}:{get[1]}")
            assert own.stop() == 0
            with running_node(tmp_path / "other", key, *same) as other:
                with running_node(tmp_path / "third", key):
                    (tmp_path / "x").write_bytes(b"x")
                    ports = [f"--connect={put[0]}:{put[1]}", f"--read-connect={get[0]}:{get[1]}", key]
                    run("put", str(tmp_path / "x"), f"--data-dir={tmp_path / 'other'}", key)  # it is bound
                    started = run(
                        "gateway", f"--data-dir={tmp_path / 'third'}", *ports, "--http-listen=127.0.0.1:0"
                    )
                    assert started.returncode == 78 and "belongs to the catalog" in started.stderr
                    stored = run(
                        "put", str(tmp_path / "x"), f"--data-dir={tmp_path / 'third'}", ports[0], key
                    )
                    assert stored.returncode == 78 and "not that of this catalog" in stored.stderr
                answer = node.gateway.request("PUT", "/objects/b", SMALL)
                assert (answer.status, answer.code) == (503, "foreign_store")
                until(lambda: node.gateway.request("GET", "/node").code == "foreign_store", "it is not ready")
                until(lambda: node.gateway.request("GET", "/healthz").status == 503, "it is not well")
                assert node.gateway.request("DELETE", "/objects/a").status in (200, 204)
                until(
                    lambda: "not everything was collected: the engine's store" in node.log(),
                    "nothing is deleted",
                )
                assert other.stop() == 0
            own.flags = same
            own.start()
            until(lambda: node.gateway.request("PUT", "/objects/b", SMALL).status == 200, "it goes on")
            until(lambda: ": collected" in node.log() or " collected " in node.log(), "it deletes again")
            assert node.stop() == 0


# --- deaths


@pytest.mark.parametrize("name", ["ingest-http-0", "ingest-catalog", "ingest-collector"])
def test_a_process_that_dies_is_replaced(node: NodeGateway, name: str) -> None:
    gateway = node.gateway
    assert gateway.request("PUT", "/objects/a", LARGE).status == 200
    process = child(node, name)
    process.kill()
    for i in range(20):
        data = SMALL + b"%d" % i
        assert patiently(lambda data=data: gateway.request("PUT", "/objects/b", data)).status == 200
        assert patiently(lambda: gateway.request("GET", "/objects/b")).body == data
    assert patiently(lambda: gateway.request("GET", "/objects/a")).body == LARGE
    until(lambda: name[:15] in [one.name() for one in node.family()], "another one took its place")
    assert child(node, name).pid != process.pid
    assert node.stop() == 0, node.log()


def test_the_catalog_s_process_is_replaced_while_somebody_changes_the_catalog(node: NodeGateway) -> None:
    gateway, meta = node.gateway, node.data_dir / ".ingest"
    assert gateway.request("PUT", "/objects/a", SMALL).status == 200

    def listens() -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            return sock.connect_ex(str(meta / "catalog.sock")) == 0

    with closing(sqlite3.connect(meta / "catalog.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        process = child(node, "ingest-catalog")
        process.kill()
        psutil.wait_procs([process], TIMEOUT_S)
        until(listens, "another one took its place")
        assert patiently(lambda: gateway.request("GET", "/objects/a")).body == SMALL
    assert patiently(lambda: gateway.request("PUT", "/objects/b", SMALL)).status == 200
    assert node.stop() == 0, node.log()


@pytest.mark.parametrize("name", ["parent", "ingest-gateway", "ingest-server"])
def test_all_end_with_their_parent(node: NodeGateway, name: str) -> None:
    family = node.family()
    assert node.process is not None
    (family[0] if name == "parent" else child(node, name)).kill()
    node.process.wait(TIMEOUT_S)
    _, alive = psutil.wait_procs(family, TIMEOUT_S)
    assert not alive


# --- kill -9 in the middle of uploads


def live_tickets(data_dir: Path) -> set[int]:
    """All tickets of live versions."""
    with CatalogReader(data_dir / ".ingest" / "catalog.db") as reader:
        assert not list(reader.versions(VersionState.PENDING))
        return {
            index for version in reader.versions(VersionState.OK) for place in version.extents
            for index in range(place.first, place.stop)
        }  # fmt: skip


def stored_tickets(data_dir: Path, upto: int) -> set[int]:
    """What the engine says it has, of the tickets that were ever given out."""
    record = json.loads((data_dir / ".ingest" / "lock").read_text())

    async def ask() -> set[int]:
        found: set[int] = set()
        key = data_dir / ".ingest" / "key"
        async with await AsyncClient.connect(None, record["get"], key) as client:
            for run in await client.inventory("00000000", upto - ticket.parse("00000000")):
                if run.status is Status.SAVED:
                    first = ticket.parse(run.first)
                    found.update(range(first, first + run.count))
        return found

    return asyncio.run(ask())


def next_ticket(data_dir: Path) -> int:
    with CatalogReader(data_dir / ".ingest" / "catalog.db") as reader:
        return reader.next_ticket()


def garbage_left(data_dir: Path) -> bool:
    with CatalogReader(data_dir / ".ingest" / "catalog.db") as reader:
        return bool(reader.garbage(1)) or any(lease.owner is not None for lease in reader.leases())


@pytest.mark.parametrize("victim", ["gateway", "server", "all"])
def test_kill_in_the_middle_of_a_hundred_uploads(tmp_path: Path, victim: str) -> None:
    """Every name has the bytes of one upload, whole; what was answered is there; and when the collector has run, exactly the
    chunks of the live versions are stored."""
    data_dir = tmp_path / "data"
    answered: dict[str, list[bytes]] = {f"name{i}": [] for i in range(20)}
    sent: dict[str, list[bytes]] = {name: [b""] for name in answered}
    begun = Counter[str]()
    enough = threading.Event()

    def upload(number: int) -> None:
        name = f"name{number % 20}"
        data = random.Random(number).randbytes(500 if number % 3 else 2 * SMALL_OBJECT_MAX) + b"%d" % number
        sent[name].append(data)
        begun["uploads"] += 1
        if begun["uploads"] >= 60:
            enough.set()
        try:
            if node.gateway.request("PUT", f"/objects/{name}", data).status == 200:
                answered[name].append(data)
        except (Broken, OSError):
            pass

    with node_gateway(data_dir, "--collect-interval=0.2", "--http-workers=2", "--drain-timeout=4") as node:
        with ThreadPoolExecutor(8) as pool:
            uploads = [pool.submit(upload, number) for number in range(100)]
            enough.wait(TIMEOUT_S)
            if victim == "all":
                node.kill()
            else:
                child(node, f"ingest-{victim}").kill()
            for one in uploads:
                one.result()
        assert node.process is not None
        node.process.wait(TIMEOUT_S)
        psutil.wait_procs(psutil.Process().children(recursive=True), 1)
        expire_owners(data_dir)
        node.start()
        for name, bodies in answered.items():
            answer = node.gateway.request("GET", f"/objects/{name}")
            body = answer.body if answer.status == 200 else b""
            assert body in sent[name], f"{name} has bytes that nobody sent"
            assert answer.status == 200 or not bodies, f"{name} was stored, and is gone"
        until(lambda: not garbage_left(data_dir), "all garbage is collected")
        assert stored_tickets(data_dir, next_ticket(data_dir)) == live_tickets(data_dir)
        assert node.stop() == 0, node.log()


def expire_owners(data_dir: Path) -> None:
    """As if the deadlines of the processes that died had passed: nobody waits half a minute for that here."""
    import apsw

    connection = apsw.Connection(str(data_dir / ".ingest" / "catalog.db"))
    connection.execute("UPDATE owners SET deadline = 0")
    connection.close()


# --- a data directory that is not the one that was opened


@pytest.mark.parametrize(
    "name", ["", ".ingest", ".ingest/lock", ".ingest/catalog.lock", ".ingest/catalog.db"]
)
def test_nothing_is_stored_while_it_is_lost(node: NodeGateway, tmp_path: Path, name: str) -> None:
    def put() -> Answer:
        return node.gateway.request("PUT", "/objects/a", body=SMALL)

    path, away = node.data_dir / name, tmp_path / "away"
    assert put().status == 200
    path.rename(away)
    # Each process has seen it, not the one alone that answered. What is sent before waits for the engine, up to 60 s.
    until(lambda: {node.gateway.request("GET", "/healthz").status for _ in range(8)} == {503}, "all see it")
    assert {put().status for _ in range(8)} == {503}
    answer = put()
    assert (answer.code, answer.headers["retry-after"]) == ("data_dir_lost", "1")
    assert node.gateway.request("DELETE", "/objects/a").code == "data_dir_lost"
    assert node.gateway.request("GET", "/objects/a").body == SMALL
    assert not path.exists(), "it was made anew"
    away.rename(path)
    until(lambda: {node.gateway.request("GET", "/healthz").status for _ in range(8)} == {200}, "it is well")
    assert put().status == 200
    assert node.stop() == 0


@pytest.mark.parametrize("name", ["catalog.db-wal", "catalog.db-shm", "wal/0000.log"])
def test_nothing_is_stored_where_a_file_was_removed(node: NodeGateway, name: str) -> None:
    """In which a commit is durable first: SQLite's log or its index, or a segment of the engine's log."""
    assert node.gateway.request("PUT", "/objects/a", body=SMALL).status == 200
    path = node.data_dir / ".ingest" / name
    path.unlink()
    if name.startswith("catalog"):
        until(
            lambda: {node.gateway.request("GET", "/healthz").status for _ in range(8)} == {503}, "all see it"
        )
        assert node.gateway.request("PUT", "/objects/b", body=SMALL).code == "data_dir_lost"
        assert node.gateway.request("DELETE", "/objects/a").code == "data_dir_lost"
    until(lambda: f"{path} is gone; nothing is saved any more" in node.log(), "it is said")
    assert node.gateway.request("GET", "/objects/a").body == SMALL
    assert node.stop() == 0, node.log()
    node.start()
    assert node.gateway.request("GET", "/objects/a").body == SMALL
    assert node.gateway.request("PUT", "/objects/b", body=SMALL).status == 200
    assert node.stop() == 0, node.log()


def test_nothing_is_collected_by_what_was_in_a_file_that_was_removed(tmp_path: Path) -> None:
    """The catalog's process has a new log by then: what the others have open is the one of before."""
    with node_gateway(tmp_path / "data", "--collect-interval=0.05", "--http-workers=1") as node:
        assert node.gateway.request("PUT", "/objects/a", body=SMALL).status == 200
        log = node.data_dir / ".ingest" / "catalog.db-wal"
        log.unlink()
        until(lambda: f"nothing is collected: {log} is gone" in node.log(), "the collector sees it")
        child(node, "ingest-catalog").kill()
        until(
            lambda: f"nothing is collected: {log} is not the one" in node.log(), "and that it is another one"
        )
        answer = node.gateway.request("POST", "/gc")
        assert (answer.status, answer.code) == (503, "data_dir_lost")
        assert node.log().count("nothing is collected") == 2
        assert node.stop() == 0, node.log()


def test_no_process_that_starts_works_on_another_directory(node: NodeGateway, tmp_path: Path) -> None:
    node.gateway.request("PUT", "/objects/a", body=SMALL)
    catalog, http = child(node, "ingest-catalog"), child(node, "ingest-http-0")
    node.data_dir.rename(tmp_path / "away")
    (node.data_dir / ".ingest").mkdir(parents=True)
    for process in (catalog, http):
        process.kill()
    until(lambda: node.log().count("nothing is saved here any more") >= 2, "both say why they do not start")
    assert list((node.data_dir / ".ingest").iterdir()) == []
    (node.data_dir / ".ingest").rmdir()
    node.data_dir.rmdir()
    (tmp_path / "away").rename(node.data_dir)
    put = patiently(lambda: node.gateway.request("PUT", "/objects/b", body=SMALL))
    assert put.status == 200
    assert node.stop() == 0


# --- processes that stand still


def test_it_is_not_well_while_the_catalog_stands_still(node: NodeGateway) -> None:
    def health() -> Answer:
        return node.gateway.request("GET", "/healthz")

    catalog = child(node, "ingest-catalog")
    until(lambda: health().status == 200, "it is well")
    catalog.suspend()
    where = rb".*catalog (has not answered|waits for the disk: transaction) for \d+ s"  # where it was stopped
    until(lambda: bool(re.match(where, health().body)), "it is not")
    answer = health()
    assert (answer.status, answer.code) == (503, "not_ready")
    until(lambda: "catalog (pid" in node.log() and "has answered nothing" in node.log(), "it is named")
    catalog.resume()
    until(lambda: health().status == 200, "it is well again")
    assert catalog.is_running(), "it was replaced"
    assert node.gateway.request("PUT", "/objects/a", body=SMALL).status == 200
    assert node.stop() == 0


def test_an_http_process_that_stands_still_is_replaced(tmp_path: Path) -> None:
    """Of the two, which share the port; what the kernel gives to that one waits for it until then."""
    short = (sys.executable, str(Path(__file__).with_name("short_limits.py")), "HEART_SILENCE_MAX_S=3", "--")
    with node_gateway(tmp_path / "data", "--http-workers=2", wrapper=short) as node:
        until(lambda: node.gateway.request("GET", "/healthz").status == 200, "it is well")
        http = child(node, "ingest-http-0")
        http.suspend()
        until(lambda: not http.is_running(), "it is killed")
        until(lambda: "ingest-http-0" in {one.name() for one in node.family()}, "another one is there")
        assert {node.gateway.request("GET", "/alive").status for _ in range(16)} == {200}
        assert node.says("killing it")
        assert node.stop() == 0


# --- what a start says


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_start_says_where_it_serves(tmp_path: Path, scheme: str) -> None:
    """Each port that speaks HTTP, once, when it does."""
    flags = ["--http-workers=2"]
    if scheme == "https":
        import trustme

        pem = tmp_path / "pem"
        trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(pem)
        flags += [f"--tls-cert={pem}", f"--tls-key={pem}"]
    with node_gateway(tmp_path / "data", *flags) as node:
        until(lambda: " serving on " in node.log(), "it says so")
        (line,) = [line for line in node.log().splitlines() if " serving on " in line]
        alone = [(name, port) for name, (_, port) in node.gateway.alone.items() if name != "stream"]
        urls = [f"{scheme}://127.0.0.1:{port} ({name})" for name, port in alone]
        shared = f"{scheme}://127.0.0.1:{node.gateway.address[1]}"
        assert line.endswith("serving on " + ", ".join([shared, *urls]))
        assert node.stop() == 0
