"""Where the configuration comes from, what wins, and what is refused by name."""

import re
from dataclasses import fields
from pathlib import Path

import msgspec
import pytest

from ingest import limits
from ingest.engine.server_config import PARSERS, FileConfig, ServerConfig, load_config
from ingest.errors import ConfigError, UsageError
from ingest.runtime.settings_schema import count, parse_size, seconds_of


def toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "ingest.toml"
    path.write_text(text)
    return path


def refused(match: str, flags=None, environ=None, file=None, error=ConfigError) -> None:
    with pytest.raises(error, match=re.escape(match)) as caught:
        load_config(flags, environ or {}, file)
    assert caught.value.exit_code == (78 if error is ConfigError else 2)


def test_the_three_lists_of_names_agree() -> None:
    names = {field.name for field in fields(ServerConfig)}
    assert set(PARSERS) == names
    assert {field.name for field in msgspec.structs.fields(FileConfig)} == names


def test_defaults() -> None:
    assert load_config({}, {}) == ServerConfig()
    assert load_config({"workers": None}, {"HOME": "/"}) == ServerConfig()


def test_precedence(tmp_path: Path) -> None:
    file = toml(tmp_path, 'workers = 1\nlisten = "[::1]:1"\nsync = "os"\n')
    environ = {"INGEST_WORKERS": "2", "INGEST_LISTEN": "127.0.0.1:2"}
    assert load_config({"workers": "3"}, environ, file).workers == 3
    config = load_config({}, environ, file)
    assert (config.workers, config.listen, config.sync) == (2, ("127.0.0.1", 2), "os")
    assert load_config({}, {}, file).listen == ("::1", 1)


def test_the_file_is_named_by_the_flag_or_else_by_the_variable(tmp_path: Path) -> None:
    file = toml(tmp_path, "workers = 7")
    assert load_config({}, {"INGEST_CONFIG": str(file)}).workers == 7
    other = tmp_path / "other.toml"
    other.write_text("workers = 8")
    assert load_config({}, {"INGEST_CONFIG": str(file)}, other).workers == 8
    assert load_config({}, {"INGEST_CONFIG": ""}).workers == 0


def test_every_key_from_a_file(tmp_path: Path) -> None:
    file = toml(
        tmp_path,
        """
        data_dir = "/d"
        listen = "0.0.0.0:1"
        read_listen = "0.0.0.0:2"
        admin_listen = "[::1]:3"
        workers = 4
        layout = "pack"
        sync = "os"
        key_file = "/k"
        wal_dir = "/w"
        wal_size = "1GiB"
        reserve = 0
        drain_timeout = 5
        bad_frame_limit = 6
        bad_peer_delay = 0.5
        tls_cert = "/c"
        tls_key = "/ck"
        tls_client_ca = "/ca"
        log_level = "debug"
        """,
    )
    assert load_config({}, {}, file) == ServerConfig(
        data_dir=Path("/d"),
        listen=("0.0.0.0", 1),
        read_listen=("0.0.0.0", 2),
        admin_listen=("::1", 3),
        workers=4,
        layout="pack",
        sync="os",
        key_file=Path("/k"),
        wal_dir=Path("/w"),
        wal_size=1 << 30,
        reserve=0,
        drain_timeout=5.0,
        bad_frame_limit=6,
        bad_peer_delay=0.5,
        tls_cert=Path("/c"),
        tls_key=Path("/ck"),
        tls_client_ca=Path("/ca"),
        log_level="debug",
    )


def test_every_key_from_variables() -> None:
    values = {
        "data_dir": "/d",
        "listen": "h:1",
        "read_listen": "h:2",
        "admin_listen": "h:3",
        "workers": "4",
        "layout": "pack",
        "sync": "os",
        "key_file": "/k",
        "wal_dir": "/w",
        "wal_size": "1GB",
        "reserve": "1",
        "drain_timeout": "5",
        "bad_frame_limit": "6",
        "bad_peer_delay": "7",
        "log_level": "error",
    }
    from_variables = load_config({}, {f"INGEST_{name.upper()}": text for name, text in values.items()})
    assert from_variables == load_config(values, {})
    assert all(
        getattr(from_variables, name) != getattr(ServerConfig(), name) for name in set(values) - {"layout"}
    )


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("worker = 1", "unknown key worker (did you mean workers?)"),
        ("zebra = 1", "unknown key zebra"),
        ("[server]\nworkers = 1", "unknown key server"),
        ("data-dir = '/d'", "unknown key data-dir (did you mean data_dir?)"),
        ("config = 'x'", "unknown key config"),
        ("workers = '1'", "workers"),
        ("workers = true", "workers"),
        ("workers = 1.5", "workers"),
        ("workers = -1", "workers: '-1' is not a whole number of 0 to 256"),
        ("workers = 257", "workers"),
        ("workers = 99999999999999999999999999", "workers"),
        ("listen = 5000", "listen"),
        ("listen = 'x'", "listen: 'x' is not an address"),
        ("wal_size = 1.5", "wal_size"),
        ("wal_size = '3 parsecs'", "wal_size"),
        ("wal_size = -1", "wal_size"),
        ("drain_timeout = nan", "drain_timeout"),
        ("drain_timeout = inf", "drain_timeout"),
        ("drain_timeout = -1", "drain_timeout"),
        ("bad_frame_limit = 0", "bad_frame_limit"),
        ("sync = 'none'", "sync: 'none' is none of disk, os"),
        ("log_level = 'INFO'", "log_level"),
        ("data_dir = ''", "data_dir"),
        ('data_dir = "a\\u0000b"', "data_dir"),
        ("workers = 1\nworkers = 2", "not TOML"),
        ("workers", "not TOML"),
        ("\x00", "not TOML"),
    ],
)
def test_a_bad_file(tmp_path: Path, text: str, match: str) -> None:
    file = toml(tmp_path, text)
    refused(match, file=file)
    refused(str(file), file=file)


def test_files_that_are_none(tmp_path: Path) -> None:
    refused("No such file", file=tmp_path / "absent.toml")
    refused("Is a directory", file=tmp_path)
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    refused("not TOML", file=binary)


@pytest.mark.parametrize(
    ("variable", "match"),
    [
        ("INGEST_WORKER", "unknown variable INGEST_WORKER (did you mean INGEST_WORKERS?)"),
        ("INGEST_", "unknown variable INGEST_"),
        ("INGEST_workers", "unknown variable INGEST_workers"),
        ("INGEST_ZEBRA", "unknown variable INGEST_ZEBRA"),
    ],
)
def test_an_unknown_variable(variable: str, match: str) -> None:
    refused(match, environ={variable: "1"})


@pytest.mark.parametrize(
    "variable", ["INGEST_MAC_PATH", "INGEST_DEBUG", "INGEST_GATEWAY", "INGEST_TOKEN", "INGEST_TLS_CA"]
)
def test_variables_of_other_parts_are_let_be(variable: str) -> None:
    assert load_config({}, {variable: "x"}) == ServerConfig()


def test_a_variable_is_named_and_an_empty_one_is_unset() -> None:
    refused("INGEST_WORKERS: 'many' is not a whole number", environ={"INGEST_WORKERS": "many"})
    assert load_config({}, {"INGEST_WORKERS": ""}).workers == 0


def test_what_is_overridden_is_checked_all_the_same() -> None:
    refused("INGEST_WORKERS", flags={"workers": "1"}, environ={"INGEST_WORKERS": "many"})


def test_a_bad_flag_is_a_usage_error() -> None:
    refused("--wal-size: 'big' is not a size", flags={"wal_size": "big"}, error=UsageError)
    refused("--listen: ':1' is not an address", flags={"listen": ":1"}, error=UsageError)


def test_values_that_do_not_fit_this_version_or_each_other() -> None:
    refused(f"at least {limits.LOG_SIZE_MIN}", flags={"wal_size": str(limits.LOG_SIZE_MIN - 1)})
    assert load_config({"wal_size": str(limits.LOG_SIZE_MIN)}, {}).wal_size == limits.LOG_SIZE_MIN
    refused(
        "read_listen: 127.0.0.1:5000 is the address of listen too", flags={"read_listen": "127.0.0.1:5000"}
    )
    refused("admin_listen", flags={"admin_listen": "127.0.0.1:5005"})
    any_port = dict.fromkeys(("listen", "read_listen", "admin_listen"), "127.0.0.1:0")
    assert load_config(any_port, {}).listen == ("127.0.0.1", 0)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        (1048576, 1048576),
        ("512MiB", 512 << 20),
        ("512 MiB", 512 << 20),
        ("1GB", 10**9),
        ("1.5GiB", 3 << 29),
        ("0.1KB", 100),
        ("2tib", 2 << 40),
        ("7B", 7),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("power", range(5))
@pytest.mark.parametrize("base", [1000, 1024])
@pytest.mark.parametrize("fraction", ["", "5", "25", "05", "125000", "000001", "999999"])
def test_each_unit_with_a_fraction_of_any_length(power: int, base: int, fraction: str) -> None:
    """To the byte, rounded down."""
    suffix = "B" if base == 1000 else "iB"
    unit = ("", "K", "M", "G", "T")[power] + (suffix if power else "B")
    whole = base**power
    size = 3 * whole + int(fraction or "0") * whole // 10 ** len(fraction)
    text = f"3.{fraction}" if fraction else "3"
    for spelled in (f"{text}{unit}", f"{text} {unit}", f"{text}{unit.lower()}", f"{text}{unit.upper()}"):
        assert parse_size(spelled) == size


@pytest.mark.parametrize("text", ["0", "0.0", "1e-3", "86400", "86399.999"])
def test_seconds_of_a_day_and_no_more(text: str) -> None:
    assert seconds_of(text) == float(text)


@pytest.mark.parametrize("text", ["86400.001", "-0.001", "-1", "nan", "inf", "-inf", "", "1 s", "1,5"])
def test_what_is_no_such_number_of_seconds(text: str) -> None:
    with pytest.raises(ValueError, match="is not a number of seconds"):
        seconds_of(text)


@pytest.mark.parametrize(("least", "most"), [(0, 256), (1, 1), (-3, 7)])
def test_a_count_has_both_its_bounds(least: int, most: int) -> None:
    parse = count(least, most)
    assert [parse(str(number)) for number in (least, most)] == [parse(least), parse(most)] == [least, most]
    for text in (str(least - 1), str(most + 1), "", "1.0", "+1", " 1", "0x1", "1_0", "\u0661", "9" * 19):
        with pytest.raises(ValueError, match="is not a whole number"):
            parse(text)


@pytest.mark.parametrize(
    "text", ["", "MiB", "-1", "1e9", "1 M", "1M", "1_000", ".5GiB", "1.GiB", "٣", "1GiBs", "9" * 30]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    "names", [["tls_cert"], ["tls_key"], ["tls_client_ca"], ["tls_key", "tls_client_ca"]]
)
def test_tls_needs_a_certificate_and_its_key(names: list[str]) -> None:
    refused("tls", dict.fromkeys(names, "/x.pem"))
    config = load_config({"tls_cert": "/c", "tls_key": "/k"}, {})
    assert config.certificate_files == (Path("/c"), Path("/k"), None)
    assert load_config({}, {}).certificate_files is None
