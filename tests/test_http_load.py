"""What measures the gateway, measured itself: the client for small objects, curl, and the catalog that is made at once."""

import socket
import threading
from itertools import count

import apsw
import pytest

from bench import bench_small_objects as small
from bench import curl, full_catalog, http_load
from bench.bare_http import bare_handler
from bench.gateway import listening
from bench.http_load import Ask, HttpError
from ingest.catalog.catalog_changes import Catalog
from ingest.catalog.catalog_socket import catalog_path
from ingest.catalog.extent import FIRST, Extent
from ingest.catalog.version import VersionState
from ingest.runtime import listeners

CONNECTIONS = 3


def answering(*parts):
    """The address of a peer that sends these, one after the other, to the first request and then ends the connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        with listener:
            connection, _ = listener.accept()
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.recv(65536)
                for part in parts:
                    connection.sendall(part)

    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()


ASK = Ask(lambda number: b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number, lambda number: b"body", 4)
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "ended"),
        (WHOLE[:10], "ended"),
        (WHOLE[:-1], "ended"),
        (WHOLE.replace(b"200 OK", b"404 Not Found"), "not 200"),
        (WHOLE.replace(b"body", b"bodx"), "another body"),
        (WHOLE.replace(b"4\r", b"3\r").replace(b"body", b"bod"), "another body"),
        (WHOLE.replace(b"Content-Length: 4", b"Transfer-Encoding: chunked"), "no Content-Length"),
        (WHOLE + b"H", "more came"),
        (WHOLE.replace(b"4\r", b"99999\r"), "more than are expected"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * http_load.HEAD_SIZE_MAX, "too long"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_answer_that_is_not_what_was_asked_for_is_an_error(answer, why):
    with pytest.raises(HttpError, match=why):
        http_load.load(answering(answer), 1, 0.0, ASK, count())


def test_an_answer_may_come_byte_by_byte():
    parts = [bytes([byte]) for byte in WHOLE]
    assert http_load.load(answering(*parts), 1, 0.0, ASK, count()).requests == 1


def test_every_request_that_was_sent_is_answered_and_counted():
    numbers = count()
    with bare_handler(2, small.BODY % 0) as address:
        done = http_load.load(address, CONNECTIONS, 0.1, small.PUT, numbers)
        assert done.requests == next(numbers) >= CONNECTIONS
        got = http_load.load(address, CONNECTIONS, 0.1, small.GET_BARE, count())
    assert done.rate == done.requests / done.seconds
    assert got.requests >= CONNECTIONS and got.p99_ms >= got.p50_ms > 0


def test_small_objects_have_their_size_and_bytes_of_their_own():
    assert len(small.BODY % 0) == len(small.BODY % 10**9) == small.SIZE
    assert small.GET.body(1) != small.GET.body(2)
    assert small.PUT.request(7).endswith(b"\r\n\r\n" + small.GET.body(7))


def test_sockets_that_listen_on_a_port_are_counted():
    sockets = listeners.bind_shared(("127.0.0.1", 0), 2)
    _, port = listeners.bound_address(sockets[0])
    counts = [listening(port)]
    for sock in sockets:
        listeners.listen(sock, 1)
        counts.append(listening(port))
    listeners.close_all(sockets)
    assert counts == [0, 1, 2]


# --- curl ----------------------------------------------------------------------------------------


def test_curl_notices_other_bytes_and_refusals(tmp_path):
    if why := curl.missing():
        pytest.skip(why)
    with curl.large_file(tmp_path, 1000) as file, bare_handler(1, file.read_bytes()) as address:
        url = "http://{}:{}/".format(*address)
        assert curl.put(file, url).size == 1000
        assert curl.get(url, 1000).rate > 0
        curl.compare(url, file)
        with pytest.raises(curl.CurlError, match="1000 bytes came"):
            curl.get(url, 999)
        file.write_bytes(file.read_bytes()[:-1] + b"\0\0")
        with pytest.raises(curl.CurlError, match="other bytes"):
            curl.compare(url, file)
    with pytest.raises(curl.CurlError, match="exit code"):
        curl.get(url, 1000)  # nobody is there any more
    assert list(tmp_path.iterdir()) == []


def test_curl_that_is_missing_is_named_with_how_to_get_it(monkeypatch):
    monkeypatch.setattr(curl, "find_program", lambda name: None)
    assert "curl" in curl.missing() and "apt-get install" in curl.missing()


# --- the catalog that is made at once ------------------------------------------------------------


def definitions(path):
    with apsw.Connection(str(path)) as db:
        return sorted(db.execute("SELECT type, name, sql FROM sqlite_master").fetchall(), key=repr)


def test_a_full_catalog_is_as_if_its_objects_had_been_stored(tmp_path):
    objects = 2300
    (tmp_path / "full" / ".ingest").mkdir(parents=True)
    full_catalog.make(tmp_path / "full", objects)
    path = catalog_path(tmp_path / "full")
    with Catalog(tmp_path / "empty.db") as empty:
        assert definitions(path) == definitions(empty.path)
    with apsw.Connection(str(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.pragma("journal_mode") == "wal"
    with Catalog(path) as catalog:
        names = [entry.name for entry in catalog.page("objects")]
        while page := catalog.page("objects", after=names[-1]):
            names += [entry.name for entry in page]
        assert names == [full_catalog.name(number) for number in range(1, objects + 1)]
        last = catalog.find("objects", names[-1])
        assert last.state is VersionState.OK and last.number == objects and len(last.digest) == 32
        assert last.extents == (Extent(FIRST + 2 * (objects - 1), 2),)
        assert catalog.find_object(last.object_id) == last
        assert catalog.next_ticket() == last.extents[0].stop
        with catalog.change():
            owner = catalog.enter("test")
            assert catalog.begin(owner, "objects", "new") == objects + 1
