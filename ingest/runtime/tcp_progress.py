"""What a client's machine has taken of what it was sent, as the kernel knows it: `tcp(7)`, TCP_INFO and TIOCOUTQ."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import sys
import termios

TCP_INFO_SIZE = 128  # bytes of linux/tcp.h's struct tcp_info that are asked for
BYTES_ACKED = slice(120, 128)  # its tcpi_bytes_acked


def progress_of(transport: asyncio.Transport) -> tuple[int, int]:
    """Bytes that wait for the client, here or in the kernel, and bytes that its machine has acknowledged in all."""
    sock = transport.get_extra_info("socket")
    try:
        unacked = int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
    except OSError:  # closed meanwhile
        return 0, 0
    return transport.get_write_buffer_size() + unacked, int.from_bytes(info[BYTES_ACKED], sys.byteorder)
