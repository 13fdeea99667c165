"""A client in twenty lines of plain Python, written from `docs/protocol.md` alone: it must not import ingest."""

import socket

from blake3 import blake3


class Client:
    def __init__(self, put_address, get_address, shared_key):
        self.put_socket, self.get_socket = map(socket.create_connection, (put_address, get_address))
        self.put_key = blake3(shared_key, derive_key_context="ingest 2026-11-21 put frame").digest()
        self.get_key = blake3(shared_key, derive_key_context="ingest 2026-11-21 get request").digest()

    def put(self, ticket, chunk):
        name, data = ticket.encode().ljust(8, b"\0"), chunk.ljust(1458, b"\0")
        self.put_socket.sendall(name + blake3(name + data, key=self.put_key).digest()[:8] + data)
        ack = self.put_socket.recv(9, socket.MSG_WAITALL)
        assert ack[:8] == name, ack
        return ack[8]

    def get(self, ticket):
        name, count = ticket.encode().ljust(8, b"\0"), (1).to_bytes(8, "big")
        self.get_socket.sendall(name + count + blake3(name + count, key=self.get_key).digest()[:8])
        run = self.get_socket.recv(16, socket.MSG_WAITALL)
        assert run[:8] == name and run[9:] == b"\0\0\0\0\0\0\1", run
        frame = self.get_socket.recv(1474, socket.MSG_WAITALL) if run[8] == 1 else b""
        assert not frame or frame[:16] == name + blake3(name + frame[16:], key=self.put_key).digest()[:8], (
            frame
        )
        return run[8], frame[16:]
