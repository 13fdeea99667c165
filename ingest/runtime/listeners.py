"""The sockets of a server: parsing of addresses, and binding so that no two servers share a port unawares."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import select
import socket
from collections.abc import Callable, Iterable

from ingest import limits
from ingest.errors import ConfigError, PortTakenError

Address = tuple[str, int]


def parse_address(text: str) -> Address:
    """`HOST:PORT` or `[V6]:PORT` as (host, port). Port 0 lets the system choose. ValueError for anything else."""
    scheme, is_url, _ = text.partition("://")
    if is_url:
        raise ValueError(f"{text!r} is a URL, no address: HOST:PORT is expected, without {scheme}://")
    host, colon, port = text.rpartition(":")
    if (
        not colon
        or not host
        or not port.isascii()
        or not port.isdigit()
        or len(port) > 5
        or int(port) > 65535
    ):
        raise ValueError(f"{text!r} is not an address: HOST:PORT or [V6]:PORT is, with a port of 0 to 65535")
    if host.startswith("[") and host.endswith("]"):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise ValueError(f"{text!r}: {host} is not an IPv6 address in brackets") from None
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: an IPv6 address goes into brackets, [{host}]:{port}")
    elif any(c.isspace() or c in "[]/@" for c in host):
        raise ValueError(f"{text!r}: {host!r} is not a host")
    return host, int(port)


def format_address(address: Address) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``, an IP address as a socket reports it."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def unpace(sock: socket.socket, host: str) -> None:
    """For a connection to or from ``host``, or a socket that listens on it (connections inherit it), if that is a loopback
    address: nothing is lost or queued there, but BBR paces by timers all the same, at 1.4 times the CPU for each frame."""
    if is_loopback(host):
        with contextlib.suppress(OSError):  # a kernel without it: then it is as slow as it was
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")


def bound_address(sock: socket.socket) -> Address:
    host, port = sock.getsockname()[:2]
    return host, port


def bind_alone(address: Address) -> list[socket.socket]:
    """A bound non-blocking TCP socket that nobody shares, for each address that the host has here. They have one port.
    PortTakenError, or ConfigError when there is none."""
    return _bind_each(address, lambda family, target: [_bind(family, target, address, socket.SO_REUSEADDR)])


def bind_shared(address: Address, count: int) -> list[socket.socket]:
    """``count`` bound non-blocking sockets of one port (SO_REUSEPORT), which the kernel spreads connections over; and as
    many for each other address that the host has here: those of the nth process are ``[n::count]``.

    A second server of the same user could join them. So the port is first taken by a socket that shares it with
    nobody, then opened to our own. That socket has SO_REUSEADDR, to get past connections of an earlier server in
    TIME_WAIT; ours get it only when they listen (see `listen`): until then it would let the next probe pass.
    """
    return _bind_each(address, lambda family, target: _bind_sharing(family, target, address, count))


def _bind_sharing(
    family: int, target: tuple[object, ...], address: Address, count: int
) -> list[socket.socket]:
    probe = _bind(family, target, address, socket.SO_REUSEADDR)
    sockets: list[socket.socket] = []
    try:
        target = probe.getsockname()
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        for _ in range(count):
            sockets.append(_bind(family, target, address, socket.SO_REUSEPORT))
    except BaseException:
        close_all(sockets)
        raise
    finally:
        probe.close()
    return sockets


def listen(sock: socket.socket, backlog: int) -> None:
    """Listens; connections inherit SO_REUSEADDR, so that in TIME_WAIT they do not keep the next server out."""
    try:
        sock.listen(backlog)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:  # bound while somebody else bound it too, in the same moment
            raise _taken(bound_address(sock)) from None
        raise
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    unpace(sock, bound_address(sock)[0])


def has_waiting(sock: socket.socket) -> bool:
    """Whether a connection waits to be accepted."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def close_all(sockets: Iterable[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def resolve(address: Address) -> list[Address]:
    """What it stands for: `localhost` is 127.0.0.1 and ::1 on most machines. ConfigError."""
    return [(str(target[0]), address[1]) for _, target in _resolve(address)]


def _resolve(address: Address) -> list[tuple[int, tuple[object, ...]]]:
    host, port = address
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(f"cannot listen on {format_address(address)}: {error}") from error
    return list(dict.fromkeys((family, target) for family, _, _, _, target in found))


def _bind_each(
    address: Address, bind: Callable[[int, tuple[object, ...]], list[socket.socket]]
) -> list[socket.socket]:
    """``bind``s each address of the host, all to one port. One that this machine does not have is passed over, unless it has
    none: ::1 may stand in /etc/hosts of a machine without IPv6."""
    found = _resolve(address)
    tries = limits.PORT_TRIES if address[1] == 0 and len(found) > 1 else 1
    while True:
        tries -= 1
        try:
            return _bind_once(address, found, bind)
        except PortTakenError:  # a port that the system chose on one address, and somebody has on another
            if not tries:
                raise


def _bind_once(
    address: Address,
    found: list[tuple[int, tuple[object, ...]]],
    bind: Callable[[int, tuple[object, ...]], list[socket.socket]],
) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    port = address[1]
    missing: _NotHereError | None = None
    try:
        for family, target in found:
            try:
                sockets += bind(family, (target[0], port, *target[2:]))
            except _NotHereError as error:
                missing = error
                continue
            port = sockets[0].getsockname()[1]
    except BaseException:
        close_all(sockets)
        raise
    if not sockets:
        assert missing is not None
        raise missing
    return sockets


class _NotHereError(ConfigError):
    """This machine does not have the address."""


def _bind(family: int, target: tuple[object, ...], address: Address, option: int) -> socket.socket:
    sock: socket.socket | None = None
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        sock.setsockopt(socket.SOL_SOCKET, option, 1)
        sock.bind(target)
    except OSError as error:
        if sock is not None:
            sock.close()
        if error.errno == errno.EADDRINUSE:
            raise _taken(address) from None
        kind = _NotHereError if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) else ConfigError
        raise kind(f"cannot listen on {format_address(address)}: {os.strerror(error.errno or 0)}") from error
    return sock


def _taken(address: Address) -> PortTakenError:
    return PortTakenError(
        f"{format_address(address)} is taken: another process (it may be another ingest) has it"
    )
