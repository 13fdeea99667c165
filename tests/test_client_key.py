"""A key as a caller gives it, and that no message shows it (`ingest.client.key`, `ingest.secret_text`)."""

import dataclasses
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference_server import ReferenceServer
from test_cli import run

from ingest import Client, mac, secret_text, tls
from ingest.client.key import shared_keys
from ingest.engine.check_server import check
from ingest.engine.reload import Settings
from ingest.errors import ConfigError, IngestError, KeyFileError, UsageError
from ingest.gateway.http.token_file import read_token, read_tokens
from ingest.gateway.process.check_gateway import check_gateway
from ingest.runtime.key_file import read_keys, rotate_key_file

KEY = bytes(range(32))
SECRET = "5ec2e7" * 10 + "5ec2"  # 64 hex digits
PEM = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    "given",
    [
        KEY,
        KEY.hex(),
        KEY.hex().upper(),
        f" {KEY.hex()}\n",
        KEY.hex().encode(),
        KEY.hex().encode() + b"\n",
        bytearray(KEY),
        [KEY],
        [KEY.hex()],
        (KEY.hex().encode(),),
    ],
)
def test_what_is_a_key(given: Any) -> None:
    assert shared_keys(given) == [KEY]


def test_digits_open_a_connection() -> None:
    with ReferenceServer([KEY]) as server, Client.connect(server.put_address, None, KEY.hex()) as client:
        client.put("A", b"1")


def test_a_file_of_that_name_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / ("ab" * 32)
    file.write_text(KEY.hex())
    file.chmod(0o600)
    monkeypatch.chdir(tmp_path)
    assert shared_keys(Path("ab" * 32)) == [KEY]
    assert shared_keys(str(file)) == [KEY]
    assert shared_keys("ab" * 32) == [bytes.fromhex("ab" * 32)]  # text of 64 digits is the key


def told(call: Callable[[], Any]) -> str:
    """All that a log shows of the error."""
    with pytest.raises(IngestError) as caught:
        call()
    return "".join(traceback.format_exception(caught.value))


NEARLY = [
    SECRET[:-1],
    SECRET + "0",
    "0x" + SECRET,
    SECRET[:-1] + "g",
    SECRET + "\0",
    f"'{SECRET}'",
    "hunter2",
    "",
]


@pytest.mark.parametrize("text", NEARLY)
@pytest.mark.parametrize("wrap", [lambda text: text, lambda text: [text], lambda text: text.encode()])
def test_what_is_none_is_refused_and_not_shown(text: str, wrap: Callable[[str], Any]) -> None:
    said = told(lambda: shared_keys(wrap(text)))
    assert "64 hex digits" in said
    assert not text or text not in said
    assert SECRET[:16] not in said


@given(
    st.text(st.characters(exclude_characters="/"), min_size=8, max_size=80).filter(
        lambda text: not Path(text.replace("\0", "0")[:80]).exists()
    )
)
def test_other_text_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises((KeyFileError, UsageError), match="64 hex digits") as caught:
        shared_keys(text)
    assert text not in str(caught.value)


FILES: dict[str, Callable[[Path], Any]] = {
    "key": read_keys,
    "keys rotated": rotate_key_file,
    "client": shared_keys,
    "token": read_token,
    "tokens": read_tokens,
    "certificate": lambda path: tls.read_certificates(path, path, None),
    "context": lambda path: tls.client_context(None, path, path),
}


SHORT = ("tOkEn-0123456789", "tOkEn-0123456789_~+tOkEn-01234=")
BASE64 = "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IHNlYw+="


@pytest.mark.parametrize("secret", [SECRET, SECRET[:40], *SHORT, BASE64, PEM])
@pytest.mark.parametrize("kind", FILES)
def test_a_secret_in_place_of_a_path(kind: str, secret: str) -> None:
    said = told(lambda: FILES[kind](Path(secret)))
    assert "not shown" in said
    assert secret[:16] not in said
    assert not secret[28:36] or secret[28:36] not in said


def test_a_path_is_shown(tmp_path: Path) -> None:
    for path in (tmp_path / "a-key-file-that-is-not-there", Path("key"), Path("data/.ingest/key")):
        assert str(path) in told(lambda path=path: read_keys(path))
        assert secret_text.shown(path) == str(path)


def test_what_would_start_shows_no_key(tmp_path: Path) -> None:
    for found in (
        check({"data_dir": str(tmp_path / "data"), "key_file": SECRET}, {}, None),
        check({"data_dir": str(tmp_path / "data")}, {"INGEST_KEY_FILE": SECRET}, None),
        check_gateway(
            {"data_dir": str(tmp_path / "data"), "token_file": SECRET, "key_file": SECRET}, {}, None
        ),
    ):
        assert SECRET[:16] not in repr(found)
        assert "not shown" in found.settings["key_file"][0]


@pytest.mark.parametrize(
    "command",
    [
        ["loopback", "--frames=1", "--key-file"],
        ["fsck", ".", "--key-file"],
        ["check-config", "server", "--key-file"],
        ["keygen", "--rotate"],
        ["ls", "--gateway=http://127.0.0.1:1", "--token-file"],
    ],
)
def test_commands_show_no_key(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*command, SECRET)
    assert result.returncode
    assert SECRET[:16] not in result.stdout + result.stderr


def test_nothing_that_holds_a_key_shows_it() -> None:
    keys = mac.KeyRing([KEY])
    settings = Settings((KEY,), ("name",), None, "info")
    for holder in (keys, keys.signing, settings, tls.Certificates(key=KEY)):
        assert repr(KEY)[2:-1] not in repr(holder)
        assert KEY.hex() not in repr(holder)
        assert repr(keys.signing.put) not in repr(holder)
    assert dataclasses.replace(settings, log_level="debug").keys.ids == keys.ids


def test_a_path_with_a_certificate_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("no certificate")
    with pytest.raises(ConfigError, match=str(tmp_path / "c")):
        tls.client_context(None, tmp_path / "c", tmp_path / "c")


@pytest.mark.parametrize(
    "arguments",
    [
        ("check-config", "server", f"--listen={SECRET}"),
        ("server", f"--listen={SECRET}"),
        ("server", f"--workers={SECRET}"),
        ("version", SECRET),
        (SECRET,),
        ("fsck", SECRET),
        ("fsck", f"nowhere/{SECRET}"),
        ("loopback", "--key-file", "k", f"--connect={SECRET}"),
        ("ls", f"--gateway=http://127.0.0.1:1/?token={SECRET}"),
        ("ls", f"--gateway=http://127.0.0.1:1/#{SECRET}"),
        ("ls", f"--gateway=ftp://me:{SECRET}@127.0.0.1/?token={SECRET}"),
    ],
)
def test_a_key_in_place_of_anything_else(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode in (2, 78), done.stderr
    assert SECRET[:16] not in done.stdout + done.stderr


def test_a_short_token_in_the_url_of_a_gateway() -> None:
    for url, said in (
        ("http://127.0.0.1:1/?token=hunter2", "127.0.0.1:1"),
        ("tcp://me:hunter2@127.0.0.1:1", "no password goes into the URL"),
    ):
        done = run("ls", f"--gateway={url}")
        assert done.returncode == 2
        assert "hunter2" not in done.stderr
        assert said in done.stderr


def test_a_path_that_is_not_there_is_shown_and_what_could_be_a_key_is_not() -> None:
    with pytest.raises(KeyFileError, match="/srv/nowhere/ingest/key"):
        shared_keys("/srv/nowhere/ingest/key")
    for secret in ("ab" * 33, "/" + "ab" * 31, "a/+" * 14 + "a=", "mistyped"):
        with pytest.raises(KeyFileError, match=r"pathlib\.Path") as raised:
            shared_keys(secret)
        assert secret not in str(raised.value)
