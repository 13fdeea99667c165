"""TLS on both frame ports of one worker: what a connection may do inside it, who is let in, and who is not."""

from __future__ import annotations

import ctypes
import random
import ssl
import struct
from pathlib import Path

import get_rig
import packs
import put_rig
import pytest
import trustme
from put_rig import ack, acks, frame, frames, split_acks
from tls_rig import TlsEnd, certificates, chain, client_context

from ingest import limits, tls
from ingest.engine import metrics
from ingest.engine.ports._put_server import SPEAKS_TLS
from ingest.errors import ConfigError
from ingest.limits import FRAME_SIZE
from ingest.runtime import openssl
from ingest.runtime.tls_context import TlsContext
from ingest.status import Status
from ingest.tls import Certificates

CA = trustme.CA()
OTHER_CA = trustme.CA()
SERVER = CA.issue_cert("127.0.0.1", "localhost")


def put_server(**options: int) -> put_rig.Rig:
    rig = put_rig.Rig(**options)
    rig.server.set_tls(TlsContext(certificates(SERVER), is_server=True))
    return rig


def mutual(rig: put_rig.Rig | get_rig.Rig) -> None:
    rig.server.set_tls(TlsContext(certificates(SERVER, CA), is_server=True))


def connect(
    rig: put_rig.Rig | get_rig.Rig,
    cert: trustme.LeafCert | None = None,
    buffer: int = 0,
    **how: ssl.TLSVersion,
) -> TlsEnd:
    context = client_context(CA, cert)
    for name, version in how.items():
        setattr(context, name, version)
    end = TlsEnd(rig.connect(buffer), context)
    end.handshake(lambda: rig.step(0.01))
    return end


def counted(rig: put_rig.Rig | get_rig.Rig, name: str) -> int:
    return rig.queue.counter_row(3)[metrics.INDEX[name]]


class TestPuts:
    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    def test_frames_are_stored_and_acked(self, version: ssl.TLSVersion) -> None:
        with put_server() as rig:
            client = connect(rig, minimum_version=version, maximum_version=version)
            rig.send(client, frames(10, 40))
            assert sorted(split_acks(rig.receive(client, 40 * 9))) == sorted(split_acks(acks(10, 40)))
            assert rig.stored[30][1] == frame(30, b"data of 30")
            assert counted(rig, "PUT_CLOSED_HANDSHAKE") == 0

    def test_less_than_tls_1_2_is_refused(self) -> None:
        with put_server() as rig:
            context = client_context(CA)
            context.set_ciphers("ALL:@SECLEVEL=0")
            with pytest.warns(DeprecationWarning):
                context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
            with pytest.raises(ssl.SSLError):
                TlsEnd(rig.connect(), context).handshake(lambda: rig.step(0.01))
            rig.settle()
            assert counted(rig, "PUT_CLOSED_HANDSHAKE") == 1

    def test_pieces_of_any_size(self) -> None:
        data = frames(100, 30)
        draw = random.Random(5)
        with put_server() as rig:
            client = connect(rig)
            at = 0
            while at < len(data):
                size = draw.choice((1, 7, 1473, 1475, 9000))
                rig.send(client, data[at : at + size])
                at += size
                rig.step(0)
            assert sorted(split_acks(rig.receive(client, 30 * 9))) == sorted(split_acks(acks(100, 30)))

    def test_a_full_arena_is_not_read_past_and_loses_nothing(self) -> None:
        with put_server(places=16, block_places=4) as rig:
            client = connect(rig)
            rig.answering = False
            # More than the arena holds, in records that reach behind what there is a place for.
            data = frames(10, 60)
            at = client.send(data)
            for _ in range(20):
                rig.step(0.005)
            assert rig.server.outstanding <= 16
            rig.answering = True
            rig.answer_all()
            rig.send(client, data[at:])
            assert sorted(split_acks(rig.receive(client, 60 * 9))) == sorted(split_acks(acks(10, 60)))

    def test_acks_that_nobody_reads_are_bounded_and_come_later(self) -> None:
        with put_server(places=512, block_places=128, unread_acks_max=20_000) as rig:
            client = connect(rig, buffer=4096)
            sent = 0
            rig.tick(0.0)
            batch = frames(0, 128)
            for _ in range(200):  # the same again: the committer of this rig saves it again
                try:
                    sent += client.send(batch[sent % len(batch) :])
                except BlockingIOError:
                    if not rig.step(0.01):
                        break
            assert sent // FRAME_SIZE * 9 > 30_000
            got = rig.receive(client, sent // FRAME_SIZE * 9)
            assert len(got) == sent // FRAME_SIZE * 9
            assert {one[8] for one in split_acks(got)} == {Status.SAVED}

    def test_the_third_bad_frame_ends_it_and_no_ack_is_lost(self) -> None:
        with put_server() as rig:
            client = connect(rig)
            bad = frame(20, b"", bytes(32))
            rig.send(client, frame(10) + bad * 3 + frames(30, 9))
            got = split_acks(rig.receive_all(client))  # to the close_notify, without a reset
            assert sorted(got) == sorted([ack(10), *[ack(20, Status.BAD_CHECKSUM)] * 3])
            assert set(rig.stored) == {10}

    def test_close_notify_alone_is_the_end_of_the_stream(self) -> None:
        with put_server() as rig:
            client = connect(rig)
            rig.send(client, frames(10, 3) + frame(20)[:100])
            rig.receive(client, 27)
            client.half_close(lambda: rig.step(0.01))
            rig.until(lambda: rig.server.connections == 0)
            assert set(rig.stored) == {10, 11, 12}
            assert rig.counter("partial") == 1

    def test_a_peer_that_goes_without_a_word_is_forgotten(self) -> None:
        with put_server() as rig:
            client = connect(rig)
            rig.send(client, frames(10, 3))
            rig.receive(client, 27)
            client.close()
            rig.until(lambda: rig.server.connections == 0)

    def test_bytes_that_were_tampered_with_end_it(self) -> None:
        with put_server() as rig:
            raw = rig.connect()
            other = raw.dup()
            other.setblocking(False)
            end = TlsEnd(other, client_context(CA))
            end.handshake(lambda: rig.step(0.01))
            raw.send(b"\x17\x03\x03" + struct.pack(">H", 64) + bytes(64))
            rig.until(lambda: rig.server.connections == 0)
            assert rig.stored == {}
            end.close()

    def test_the_drain_answers_what_was_sent(self) -> None:
        with put_server() as rig:
            client = connect(rig)
            rig.answering = False
            rig.send(client, frames(10, 5))
            rig.until(lambda: rig.server.outstanding == 5)
            rig.server.begin_drain()
            rig.answering = True
            assert sorted(split_acks(rig.receive_all(client))) == sorted(split_acks(acks(10, 5)))

    def test_100_connections(self) -> None:
        with put_server(places=256) as rig:
            clients = [connect(rig) for _ in range(100)]
            for i, client in enumerate(clients):
                rig.send(client, frames(1000 * i, 2))
            for i, client in enumerate(clients):
                assert sorted(split_acks(rig.receive(client, 18))) == split_acks(acks(1000 * i, 2))


class TestHandshakes:
    def test_a_silent_one_is_closed_by_the_clock(self) -> None:
        with put_server() as rig:
            rig.tick(100.0)
            rig.connect()
            rig.step()
            rig.tick(100.0 + limits.TLS_HANDSHAKE_TIMEOUT_S - 1)
            assert rig.server.connections == 1
            rig.tick(100.0 + limits.TLS_HANDSHAKE_TIMEOUT_S)
            assert rig.server.connections == 0
            assert [event[0] for event in rig.events] == [tls.SLOW_HANDSHAKE]
            assert counted(rig, "PUT_CLOSED_HANDSHAKE") == 1

    def test_one_that_trickles_is_closed_by_the_clock(self) -> None:
        with put_server() as rig:
            rig.tick(100.0)
            client = rig.connect()
            for second in range(int(limits.TLS_HANDSHAKE_TIMEOUT_S)):
                client.send(b"\x16" if second == 0 else b"\x03")
                rig.settle()
                rig.tick(100.0 + second)
            rig.tick(100.0 + limits.TLS_HANDSHAKE_TIMEOUT_S)
            assert rig.server.connections == 0

    def test_plain_frames_are_told_apart(self) -> None:
        with put_server() as rig:
            client = rig.connect()
            rig.send(client, frames(10, 3))
            assert rig.receive_all(client) == b""
            assert [event[0] for event in rig.events] == [tls.NOT_TLS]
            assert (counted(rig, "PUT_CLOSED_NOT_TLS"), counted(rig, "PUT_CLOSED_HANDSHAKE")) == (1, 0)
            assert rig.stored == {}

    def test_garbage_behind_the_first_byte_fails(self) -> None:
        with put_server() as rig:
            client = rig.connect()
            rig.send(client, b"\x16" + bytes(200))
            rig.receive_all(client)
            assert [event[0] for event in rig.events] == [tls.HANDSHAKE]
            assert openssl.error_text(rig.events[0][2]) not in ("", "unknown error")

    def test_who_only_looks_whether_the_port_is_open_has_failed_at_nothing(self) -> None:
        with put_server() as rig:
            rig.connect().close()
            rig.until(lambda: rig.server.connections == 0)
            assert rig.events == []
            assert counted(rig, "PUT_CLOSED_HANDSHAKE") == 0

    def test_many_at_once_leave_a_turn_to_the_others(self) -> None:
        with put_server() as rig:
            done = connect(rig)
            ends = [TlsEnd(rig.connect(), client_context(CA)) for _ in range(40)]
            for end in ends:
                with pytest.raises(InterruptedError):
                    end.handshake(_interrupt)  # its hello is on its way now
            rig.send(done, frame(10))
            rig.turn()
            rig.turn()
            waiting = 0
            for end in ends:
                try:
                    end.handshake(_interrupt)
                except InterruptedError:
                    waiting += 1
            assert waiting > 20  # a turn took only some of them
            for end in ends:
                end.handshake(lambda: rig.step(0.01))
            assert rig.receive(done, 9) == ack(10)

    def test_a_tls_client_on_a_plain_port_gets_a_hint_in_the_log(self) -> None:
        with put_rig.Rig() as rig:
            raw = rig.connect()
            end = TlsEnd(raw, client_context(CA))
            with pytest.raises(InterruptedError):
                end.handshake(_interrupt)
            rig.settle()
            end.close()
            rig.until(lambda: rig.server.connections == 0)
            assert [event[0] for event in rig.events] == [SPEAKS_TLS]

    def test_and_on_a_plain_get_port(self, tmp_path: Path) -> None:
        with get_rig.Rig(tmp_path) as rig:
            end = TlsEnd(rig.connect(), client_context(CA))
            with pytest.raises(InterruptedError):
                end.handshake(_interrupt)
            rig.settle()
            assert SPEAKS_TLS in [event[0] for event in rig.events]


def _interrupt() -> None:
    raise InterruptedError


class TestClientCertificates:
    def test_one_of_the_ca_is_let_in(self) -> None:
        with put_server() as rig:
            mutual(rig)
            client = connect(rig, CA.issue_cert("client@example.org"))
            rig.send(client, frames(10, 3))
            assert len(rig.receive(client, 27)) == 27

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    @pytest.mark.parametrize("who", ["nobody", "another CA's", "expired"])
    def test_others_are_refused_and_counted(self, who: str, version: ssl.TLSVersion) -> None:
        from datetime import UTC, datetime

        cert = None
        if who == "another CA's":
            cert = OTHER_CA.issue_cert("client@example.org")
        elif who == "expired":
            past = datetime(2020, 1, 1, tzinfo=UTC)
            cert = CA.issue_cert("client@example.org", not_before=past, not_after=past.replace(month=2))
        with put_server() as rig:
            mutual(rig)
            with pytest.raises(ssl.SSLError, match=r"(?i)alert"):  # the alert arrives, no reset destroys it
                client = connect(rig, cert, minimum_version=version, maximum_version=version)
                rig.send(client, frame(10))
                rig.receive(client, 9)
            rig.settle()
            assert rig.stored == {}
            assert counted(rig, "PUT_CLOSED_HANDSHAKE") == 1
            assert [event[0] for event in rig.events] == [tls.HANDSHAKE]
            assert "certificate" in openssl.error_text(rig.events[0][2])


class TestGets:
    @pytest.fixture
    def rig(self, tmp_path: Path):
        with get_rig.Rig(tmp_path) as rig:
            rig.server.set_tls(TlsContext(certificates(SERVER), is_server=True))
            yield rig

    def test_a_whole_pack_through_a_small_window(self, rig: get_rig.Rig) -> None:
        first = 1332 + 5 * 1296
        rig.packs.put(range(first, first + 1296))
        stored = b"".join(packs.frame(index) for index in range(first, first + 1296))
        client = connect(rig, buffer=4096)
        for _ in range(2):
            rig.send(client, get_rig.request(first, 1296) * 3 + get_rig.request(first - 2, 4))
            for _ in range(3):
                runs = rig.answer(client, first, 1296)
                assert b"".join(run[3] for run in runs) == stored
            runs = rig.answer(client, first - 2, 4)
            assert [run[1] for run in runs][:1] == [Status.MISSING]
            assert b"".join(run[3] for run in runs) == stored[: 2 * FRAME_SIZE]

    def test_many_small_answers_that_nobody_reads_for_a_while(self, rig: get_rig.Rig) -> None:
        first = 1332 + 5 * 1296
        rig.packs.put(range(first, first + 200))
        client = connect(rig, buffer=4096)
        asked = [first + (7 * i) % 200 for i in range(300)]
        rig.send(client, b"".join(get_rig.request(index) for index in asked))
        rig.settle()
        for index in asked:
            ((_, status, _, one),) = rig.answer(client, index, 1)
            assert (status, one) == (Status.SAVED, packs.frame(index))

    def test_a_bad_request_is_answered_before_the_end(self, rig: get_rig.Rig) -> None:
        client = connect(rig)
        rig.send(client, get_rig.request(50, 1, bytes(32)))
        assert rig.receive_all(client) == get_rig.header(50, Status.BAD_CHECKSUM, 0)

    def test_plain_requests_are_told_apart(self, rig: get_rig.Rig) -> None:
        client = rig.connect()
        rig.send(client, get_rig.request(50))
        assert rig.receive_all(client) == b""
        assert [event[0] for event in rig.events] == [tls.NOT_TLS]
        assert counted(rig, "GET_CLOSED_NOT_TLS") == 1

    def test_a_silent_handshake_is_closed_by_the_clock(self, rig: get_rig.Rig) -> None:
        rig.tick(100.0)
        rig.connect()
        rig.step()
        rig.tick(100.0 + limits.TLS_HANDSHAKE_TIMEOUT_S)
        assert rig.server.connections == 0
        assert counted(rig, "GET_CLOSED_HANDSHAKE") == 1

    def test_client_certificates(self, rig: get_rig.Rig) -> None:
        mutual(rig)
        with pytest.raises(ssl.SSLError):
            client = connect(rig, OTHER_CA.issue_cert("client@example.org"))
            rig.send(client, get_rig.request(50))
            rig.receive(client, 16)
        client = connect(rig, CA.issue_cert("client@example.org"))
        assert rig.ask(client, 50)[0][1] is Status.MISSING


class TestContexts:
    @pytest.mark.parametrize("above", [0, 1, 2, 3])
    def test_all_that_is_above_a_certificate_is_shown(self, above: int) -> None:
        """A peer knows the root alone."""
        ca = CA
        for _ in range(above):
            ca = ca.create_child_ca()
        with put_server() as rig:
            shown = certificates(ca.issue_cert("127.0.0.1"))
            assert (shown.chain or b"").count(b"BEGIN CERTIFICATE") == above + 1
            rig.server.set_tls(TlsContext(shown, is_server=True))
            client = connect(rig)
            rig.send(client, frame(10))
            assert rig.receive(client, 9) == ack(10)

    @pytest.mark.parametrize("place", [0, 1, 2])
    def test_each_ca_of_a_file_is_trusted(self, place: int) -> None:
        """Two of them, while one takes the place of the other."""
        cas = [CA, OTHER_CA, trustme.CA()]
        shown = Certificates(
            chain(SERVER), SERVER.private_key_pem.bytes(), b"".join(ca.cert_pem.bytes() for ca in cas)
        )
        with put_server() as rig:
            rig.server.set_tls(TlsContext(shown, is_server=True))
            client = connect(rig, cas[place].issue_cert("client@example.org"))
            rig.send(client, frame(10))
            assert rig.receive(client, 9) == ack(10)

    @pytest.mark.parametrize("end", [40, 200, 400])
    def test_a_file_that_is_cut_in_its_second_certificate(self, end: int) -> None:
        """Taken for its first one alone, it would trust fewer, or show half a chain."""
        good, key = chain(SERVER), SERVER.private_key_pem.bytes()
        cut = CA.cert_pem.bytes() + OTHER_CA.cert_pem.bytes()[:-end]
        for spoilt in (Certificates(good + cut, key), Certificates(good, key, cut)):
            with pytest.raises(ConfigError, match="no certificate in PEM"):
                TlsContext(spoilt, is_server=True)

    @pytest.mark.parametrize("is_server", [True, False])
    def test_each_side_refuses_what_is_old_and_remembers_nothing(self, is_server: bool) -> None:
        """Whatever OpenSSL's own configuration on this machine says."""
        context = TlsContext(certificates(SERVER, CA), is_server=is_server)
        handle = openssl.library()._handle
        get_options = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(("SSL_CTX_get_options", handle))
        for option in (ssl.OP_NO_RENEGOTIATION, ssl.OP_NO_TICKET, ssl.OP_NO_COMPRESSION):
            assert get_options(context._context) & option
        get_least, get_cache_mode = 130, 45  # openssl/ssl.h: SSL_CTRL_GET_…
        assert openssl.library().SSL_CTX_ctrl(context._context, get_least, 0, None) == ssl.TLSVersion.TLSv1_2
        assert openssl.library().SSL_CTX_ctrl(context._context, get_cache_mode, 0, None) == 0

    def test_what_others_left_is_no_reason_against_good_certificates(self) -> None:
        """Failures of Python's own ssl stand in the same queue."""
        lib = openssl.library()
        spoilt = b"-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n"
        bio = lib.BIO_new_mem_buf(spoilt, len(spoilt))
        assert not lib.PEM_read_bio_X509(bio, None, None, None)
        lib.BIO_free(bio)
        TlsContext(certificates(SERVER, CA), is_server=True)
        assert lib.ERR_get_error() == 0

    def test_a_failure_leaves_no_reason_to_the_next(self) -> None:
        """OpenSSL keeps all reasons of a thread: a connection that is well would end by what another one met."""
        wrong = CA.issue_cert("localhost").private_key_pem.bytes()
        for key in (wrong, b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"):
            with pytest.raises(ConfigError):
                TlsContext(Certificates(chain(SERVER), key), is_server=True)
            assert openssl.library().ERR_get_error() == 0

    def test_a_new_one_is_for_new_connections(self) -> None:
        with put_server() as rig:
            before = connect(rig)
            other = OTHER_CA.issue_cert("127.0.0.1")
            rig.server.set_tls(TlsContext(certificates(other), is_server=True))
            with pytest.raises(ssl.SSLError):
                connect(rig)
            end = TlsEnd(rig.connect(), client_context(OTHER_CA))
            end.handshake(lambda: rig.step(0.01))
            for i, client in enumerate((before, end)):
                rig.send(client, frame(10 + i))
                assert rig.receive(client, 9) == ack(10 + i)

    @pytest.mark.parametrize(
        ("certificate", "key", "why"),
        [
            (b"", SERVER.private_key_pem.bytes(), "no certificate in PEM"),
            (chain(SERVER)[:-40], SERVER.private_key_pem.bytes(), "certificate"),
            (chain(SERVER), b"nothing", "no private key"),
            (chain(SERVER), CA.issue_cert("x.org").private_key_pem.bytes(), "not the key of the certificate"),
        ],
    )
    def test_what_cannot_be_used(self, certificate: bytes, key: bytes, why: str) -> None:
        with pytest.raises(ConfigError, match=why):
            TlsContext(Certificates(certificate, key), is_server=True)

    def test_an_encrypted_key_asks_nobody(self) -> None:
        from cryptography.hazmat.primitives import serialization

        key = serialization.load_pem_private_key(SERVER.private_key_pem.bytes(), None)
        encrypted = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
        with pytest.raises(ConfigError, match="without a password"):
            TlsContext(Certificates(chain(SERVER), encrypted), is_server=True)

    def test_files_that_are_not_there_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"gone\.pem: No such file"):
            tls.read_certificates(tmp_path / "gone.pem", tmp_path / "gone.key", None)
