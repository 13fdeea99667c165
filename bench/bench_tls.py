"""TLS against plain: the same server, machine and run, with and without it; certificates of P-256, TLS 1.3."""

from __future__ import annotations

import socket
import ssl
import time
from dataclasses import replace
from pathlib import Path

import trustme

from bench import load
from bench.conftest import Take
from bench.report import RATIO, Round, Row
from bench.scratch import Scratch
from bench.server import Server
from bench.sizes import Sizes
from ingest import limits, mac, ticket
from ingest.loadgen import loopback
from ingest.tls import client_context

CONNECTIONS = 4
RANGE = 16_384  # tickets of one get request
BUFFER = 1 << 20  # bytes of one receive


def test_tls(take: Take) -> None:
    take(measure)


def measure(scratch: Scratch, sizes: Sizes) -> list[Row]:
    frames = sizes.tls
    put = Row(
        "tls-put",
        f"TLS against plain: {frames:,} new frames, {CONNECTIONS} connections, window {sizes.window:,}",
        RATIO,
        reach=0.4,
    )
    get = Row("tls-get", "TLS against plain: the same frames read back, one connection", RATIO, reach=0.4)
    for number in range(sizes.rounds):
        # In turns, so that neither side always comes first.
        rates = {
            tls: _serve(scratch, sizes, tls) for tls in ((False, True) if number % 2 == 0 else (True, False))
        }
        (encrypted_put, encrypted_get, cipher), (plain_put, plain_get, _) = rates[True], rates[False]
        put.rounds.append(Round.ratio(encrypted_put, plain_put, cipher=cipher))
        get.rounds.append(Round.ratio(encrypted_get, plain_get, cipher=cipher))
    put.notes["openssl"] = ssl.OPENSSL_VERSION
    return [put, get]


def _serve(scratch: Scratch, sizes: Sizes, tls: bool) -> tuple[float, float, str]:
    """Frames per second put and got, and the cipher."""
    with scratch.round() as directory:
        certificates = _make_certificates(directory) if tls else None
        flags = [f"--tls-cert={certificates[0]}", f"--tls-key={certificates[1]}"] if certificates else []
        with Server(directory / "data", *flags, tls_ca=certificates[2] if certificates else None) as server:
            how = load.options(
                server.put_address,
                server.shared_key,
                connections=CONNECTIONS,
                window=sizes.window,
                frames=sizes.tls,
            )
            how = replace(how, tls_ca=certificates[2] if certificates else None)
            put = load.put(how)
            got, cipher = _read(server, how, certificates[2] if certificates else None)
            server.stop()
            load.check_packs(server.data_dir, how, put, server)
    return put.frames_per_s, got, cipher


def _make_certificates(directory: Path) -> tuple[Path, Path, Path]:
    ca = trustme.CA()
    leaf = ca.issue_cert("127.0.0.1")
    cert, key, root = (directory / name for name in ("cert.pem", "key.pem", "ca.pem"))
    cert.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    leaf.private_key_pem.write_to_path(str(key))
    ca.cert_pem.write_to_path(str(root))
    return cert, key, root


def _read(server: Server, how: loopback.LoopbackOptions, ca: Path | None) -> tuple[float, str]:
    """Frames per second of a client that only receives, one request ahead."""
    keys = mac.derive(server.shared_key)
    requests = [
        (min(RANGE, count - start), first + start)
        for share in loopback.plan(how)
        for first, count in zip(share.firsts, share.counts, strict=True)
        for start in range(0, count, RANGE)
    ]
    buffer = memoryview(bytearray(BUFFER))
    sock = socket.create_connection(server.get_address, 60)
    if ca is not None:
        sock = client_context(ca).wrap_socket(sock, server_hostname=server.get_address[0])
    with sock:
        began = time.perf_counter()
        total = 0
        for count, index in requests:
            sock.sendall(mac.build_request(keys.get, ticket.index_to_wire(index), count))
            total += count
        received = 0
        while received < total * limits.FRAME_SIZE:
            n = sock.recv_into(buffer)
            assert n > 0, "the server closed the connection"
            received += n
        rate = total / (time.perf_counter() - began)
        cipher = sock.cipher() if isinstance(sock, ssl.SSLSocket) else None
    return rate, cipher[0] if cipher else ""
