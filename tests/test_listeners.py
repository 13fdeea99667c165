"""Addresses as people write them, and ports that others have."""

import errno
import os
import signal
import socket
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

import pytest

from ingest.errors import ConfigError, PortTakenError
from ingest.runtime import listeners

HERE = "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:5000", ("127.0.0.1", 5000)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:65535", ("::1", 65535)),
        ("[::]:80", ("::", 80)),
        ("0.0.0.0:00080", ("0.0.0.0", 80)),
    ],
)
def test_parse(text: str, address: tuple[str, int]) -> None:
    assert listeners.parse_address(text) == address


@pytest.mark.parametrize("text", ["127.0.0.1:5000", "[::1]:5005", "node-7.example:1"])
def test_format_is_the_inverse_of_parse(text: str) -> None:
    assert listeners.format_address(listeners.parse_address(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":5000",
        "5000",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "127.0.0.1:+1",
        "127.0.0.1: 80",
        "127.0.0.1:5000 ",
        "127.0.0.1:٣",
        "127.0.0.1:123456",
        "::1:5000",
        "[::1]5000",
        "[::1:5000",
        "[127.0.0.1]:5000",
        "[zz]:5000",
        "a b:5000",
        "http://127.0.0.1:5000",
        "user@host:5000",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"address|host"):
        listeners.parse_address(text)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.255.0.9", "::1", "::ffff:127.0.0.1"])
def test_loopback(host: str) -> None:
    assert listeners.is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "localhost", "127.0.0.1.evil.example", "", "::ffff:8.8.8.8"]
)
def test_not_loopback(host: str) -> None:
    assert not listeners.is_loopback(host)


def free_port() -> int:
    [bound] = listeners.bind_alone((HERE, 0))
    with closing(bound) as sock:
        return sock.getsockname()[1]


def test_shared_sockets_have_one_port_and_all_get_connections() -> None:
    sockets = listeners.bind_shared((HERE, 0), 3)
    assert len({sock.getsockname() for sock in sockets}) == 1
    for sock in sockets:
        assert not sock.getblocking()
        listeners.listen(sock, 128)
    accepted = [0, 0, 0]
    for _ in range(96):
        with socket.create_connection(sockets[0].getsockname()):
            for i, sock in enumerate(sockets):
                try:
                    sock.accept()[0].close()
                    accepted[i] += 1
                except BlockingIOError:
                    continue
    assert sum(accepted) == 96
    assert all(accepted)
    listeners.close_all(sockets)


def test_a_port_of_a_plain_listener_is_taken() -> None:
    with closing(socket.create_server((HERE, 0))) as holder:
        with pytest.raises(PortTakenError, match=f"{HERE}:{holder.getsockname()[1]}") as caught:
            listeners.bind_shared(holder.getsockname(), 2)
        assert caught.value.exit_code == 75
        with pytest.raises(PortTakenError):
            listeners.bind_alone(holder.getsockname())


def test_a_port_of_a_listener_that_would_share_it_is_taken() -> None:
    with closing(socket.create_server((HERE, 0), reuse_port=True)) as holder, pytest.raises(PortTakenError):
        listeners.bind_shared(holder.getsockname(), 2)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("listening", [False, True])
def test_a_port_of_another_server_is_taken_also_while_that_recovers(workers: int, listening: bool) -> None:
    others = listeners.bind_shared((HERE, 0), workers)
    if listening:
        for sock in others:
            listeners.listen(sock, 1)
    for bind in (lambda address: listeners.bind_shared(address, 1), listeners.bind_alone):
        with pytest.raises(PortTakenError):
            bind(others[0].getsockname())
    listeners.close_all(others)


def test_a_port_taken_on_all_addresses_is_taken_on_one() -> None:
    others = listeners.bind_shared(("0.0.0.0", 0), 1)
    with pytest.raises(PortTakenError):
        listeners.bind_shared((HERE, others[0].getsockname()[1]), 1)
    listeners.close_all(others)


def test_connections_in_time_wait_do_not_keep_the_next_server_out() -> None:
    address = (HERE, free_port())
    for _ in range(3):  # the server closes first, so that TIME_WAIT stays on its side
        sockets = listeners.bind_shared(address, 2)
        for sock in sockets:
            listeners.listen(sock, 8)
        with socket.create_connection(address) as client:
            for sock in sockets:
                try:
                    sock.accept()[0].close()
                except BlockingIOError:
                    continue
            assert client.recv(1) == b""
        listeners.close_all(sockets)


def test_a_port_is_free_when_its_holder_was_killed() -> None:
    sockets = listeners.bind_shared((HERE, 0), 2)
    address = sockets[0].getsockname()
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    listeners.close_all(sockets)
    with pytest.raises(PortTakenError):
        listeners.bind_shared(address, 2)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    listeners.close_all(listeners.bind_shared(address, 2))


def test_two_that_bound_in_the_same_moment_do_not_both_listen() -> None:
    [first] = listeners.bind_alone((HERE, 0))
    [second] = listeners.bind_alone(first.getsockname())
    listeners.listen(first, 1)
    with pytest.raises(PortTakenError):
        listeners.listen(second, 1)
    listeners.close_all((first, second))


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", "a" * 70 + ".example", "::1%nope"])
def test_an_address_that_is_not_ours_is_a_mistake_of_the_configuration(host: str) -> None:
    with pytest.raises(ConfigError, match="cannot listen"):
        listeners.bind_shared((host, 0), 1)


def test_ipv6() -> None:
    sockets = listeners.bind_shared(("::1", 0), 2)
    assert listeners.format_address(listeners.bound_address(sockets[0])).startswith("[::1]:")
    listeners.close_all(sockets)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_connections_of_a_loopback_listener_are_not_paced(host: str) -> None:
    (sock,) = listeners.bind_shared((host, 0), 1)
    with closing(sock):
        with suppress(FileNotFoundError):  # a kernel without it
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        listeners.listen(sock, 1)
        sock.setblocking(True)
        with socket.create_connection(listeners.bound_address(sock)), sock.accept()[0] as connection:
            assert congestion_control(connection) == b"reno"


def test_connections_from_elsewhere_keep_the_congestion_control_of_the_machine() -> None:
    with socket.socket() as sock:
        before = congestion_control(sock)
        listeners.unpace(sock, "192.0.2.1")
        assert congestion_control(sock) == before
        listeners.unpace(sock, "127.0.0.1")
        assert congestion_control(sock) == b"reno"


def congestion_control(sock: socket.socket) -> bytes:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")


# --- hosts with several addresses


def names(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Has `several` be all of them."""
    real = socket.getaddrinfo

    def getaddrinfo(host: str, *args: Any, **kwargs: Any) -> Any:
        if host != "several":
            return real(host, *args, **kwargs)
        return [found for one in hosts for found in real(one, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def bind_shared_of_two(address: listeners.Address) -> list[socket.socket]:
    return listeners.bind_shared(address, 2)


@pytest.mark.parametrize("bind", [listeners.bind_alone, bind_shared_of_two])
@pytest.mark.parametrize("given", [False, True])
def test_all_addresses_of_a_host_get_one_port(
    bind: Callable[[listeners.Address], list[socket.socket]], given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    names(monkeypatch, "::1", "127.0.0.1", "::1")
    port = free_port() if given else 0
    sockets = bind(("several", port))
    each = len(sockets) // 2
    found = [listeners.bound_address(sock) for sock in sockets]
    assert [host for host, _ in found] == ["::1"] * each + ["127.0.0.1"] * each
    assert len({port for _, port in found}) == 1 and (not given or found[0][1] == port)
    for sock in sockets:
        listeners.listen(sock, 1)
    for address in found:
        socket.create_connection(address).close()
    with pytest.raises(PortTakenError):
        bind(found[-1])
    listeners.close_all(sockets)


@pytest.mark.parametrize("hosts", [("192.0.2.1", "127.0.0.1"), ("127.0.0.1", "192.0.2.1")])
def test_an_address_that_this_machine_does_not_have_is_passed_over(
    hosts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ::1 in /etc/hosts of one without IPv6."""
    names(monkeypatch, *hosts)
    sockets = listeners.bind_shared(("several", 0), 1)
    assert [listeners.bound_address(sock)[0] for sock in sockets] == ["127.0.0.1"]
    listeners.close_all(sockets)
    names(monkeypatch, "192.0.2.1")
    with pytest.raises(ConfigError, match="cannot listen on several:0"):
        listeners.bind_shared(("several", 0), 1)


@pytest.mark.parametrize("bind", [listeners.bind_alone, bind_shared_of_two])
@pytest.mark.parametrize("call", ["socket", "bind"])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(
    ("code", "passed_over"),
    [(errno.EAFNOSUPPORT, True), (errno.EADDRNOTAVAIL, True), (errno.EACCES, False), (errno.EMFILE, False)],
)
def test_only_what_a_machine_does_not_have_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
    bind: Callable[..., Any],
    call: str,
    place: int,
    code: int,
    passed_over: bool,
) -> None:
    """A kernel without IPv6 has no such sockets, another one no such address. A port that is not ours to take is not left
    out in silence."""
    names(monkeypatch, *("::1", "127.0.0.1")[:: -1 if place else 1])

    class Socket(socket.socket):
        def __init__(self, family: int = -1, *args: Any) -> None:
            if call == "socket" and family == socket.AF_INET6:
                raise OSError(code, os.strerror(code))
            super().__init__(family, *args)

        def bind(self, target: Any) -> None:
            if self.family == socket.AF_INET6:
                raise OSError(code, os.strerror(code))
            super().bind(target)

    monkeypatch.setattr(socket, "socket", Socket)
    if passed_over:
        sockets = bind(("several", 0))
        assert {sock.family for sock in sockets} == {socket.AF_INET}
        listeners.close_all(sockets)
    for host in ("::1", *(() if passed_over else ("several",))):
        with pytest.raises(ConfigError, match=os.strerror(code)):
            bind((host, 0))


def test_an_address_of_one_link_is_bound_on_that_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fe80::1%eth0` is another one on each."""
    found = [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::1", 7, 0, link)) for link in (3, 4)]
    bound: list[Any] = []

    class Sock:
        def getsockname(self) -> Any:
            return bound[-1]

    def bind(family: int, target: Any) -> Any:
        bound.append(target)
        return [Sock()]

    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert len(listeners._bind_each(("several", 7), bind)) == 2
    assert bound == [("fe80::1", 7, 0, 3), ("fe80::1", 7, 0, 4)]


def test_a_port_that_is_taken_on_one_address_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch, "::1", "127.0.0.1")
    with closing(socket.create_server((HERE, 0))) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(PortTakenError):
            listeners.bind_shared(("several", port), 1)
        [free] = listeners.bind_alone(("::1", port))  # nothing of it is left
        free.close()


def test_a_chosen_port_that_is_taken_on_another_address_is_chosen_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names(monkeypatch, "::1", "127.0.0.1")
    real = listeners._bind
    taken: list[socket.socket] = []

    def bind(family: int, target: Any, *args: Any) -> socket.socket:
        if family == socket.AF_INET and not taken:
            with suppress(OSError):  # somebody has it in fact
                taken.append(socket.create_server((HERE, target[1])))  # somebody else, in this moment
        return real(family, target, *args)

    monkeypatch.setattr(listeners, "_bind", bind)
    sockets = listeners.bind_alone(("several", 0))
    assert len({sock.getsockname()[1] for sock in sockets}) == 1
    assert taken[0].getsockname()[1] != sockets[0].getsockname()[1]
    listeners.close_all((*sockets, *taken))


@pytest.mark.parametrize("count", [None, 1, 3])
@pytest.mark.parametrize("error", [PermissionError, KeyboardInterrupt])
def test_of_addresses_that_could_not_all_be_bound_none_is(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException], count: int | None
) -> None:
    """Whichever fails. Who caught the error and looks at it may be as long about it as he likes: nothing waits for that."""
    names(monkeypatch, "::1", "127.0.0.1")
    real = listeners._bind
    made: list[socket.socket] = []
    good = 0

    def bind(*args: Any) -> socket.socket:
        if len(made) == good:
            raise error("not here")
        made.append(real(*args))
        return made[-1]

    monkeypatch.setattr(listeners, "_bind", bind)
    for good in range(100):
        made.clear()
        try:
            address = ("several", 0)
            sockets = (
                listeners.bind_shared(address, count) if count is not None else listeners.bind_alone(address)
            )
        except error:
            assert [sock.fileno() for sock in made] == [-1] * good
        else:
            break
    # Each shared port has its probe; and there are more tries when somebody has that port on the other address.
    assert good >= (2 if count is None else 2 + 2 * count)
    listeners.close_all(sockets)
    assert {sock.fileno() for sock in made} == {-1}, "a probe is left"
