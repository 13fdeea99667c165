"""`ingest check-config`: what a start would do, without starting."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from gateway_rig import node_gateway
from node_rig import NodeRig, running_node
from small_disk import fill, small_disk
from stores import everything_of
from test_cli import complains, run

from ingest.engine.check_server import CheckedConfig, Problem, check, check_addresses
from ingest.errors import ConfigError
from ingest.gateway.process.check_gateway import check_both, check_gateway
from ingest.gateway.process.gateway_config import PARSERS
from ingest.runtime.listeners import format_address

FREE = {"listen": "127.0.0.1:0", "read_listen": "127.0.0.1:0", "admin_listen": "127.0.0.1:0"}
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in FREE.items()]


def test_where_each_value_comes_from(tmp_path):
    file = tmp_path / "ingest.toml"
    file.write_text('workers = 3\nsync = "os"\nwal_size = "1GiB"\n')
    flags = {**FREE, "data_dir": str(tmp_path / "data"), "workers": "2"}
    checked = check(flags, {"INGEST_SYNC": "disk"}, file)
    assert checked.settings["workers"] == ("2", "--workers")
    assert checked.settings["sync"] == ("disk", "INGEST_SYNC")
    assert checked.settings["wal_size"] == ("1024MiB", str(file))
    assert checked.settings["layout"] == ("pack", "default")
    assert checked.settings["key_file"] == (str(tmp_path / "data/.ingest/key"), "default")
    assert checked.exit_code == 0
    assert not (tmp_path / "data").exists()


def what(tmp_path: Path, **flags: str) -> list[tuple[int, str]]:
    checked = check({**FREE, "data_dir": str(tmp_path / "data"), **flags}, {}, None)
    return [(problem.exit_code, problem.what) for problem in checked.problems]


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A store that a server made."""
    with running_node(tmp_path / "data", "--workers=1", "--reserve=0") as rig:
        rig.stop()
    return tmp_path / "data"


def test_a_store_that_would_start(stopped, tmp_path):
    with everything_of(stopped):
        assert what(tmp_path) == []


def test_certificates_that_cannot_be_used(tmp_path):
    (tmp_path / "cert.pem").write_text("nothing")
    ((code, text),) = what(tmp_path, tls_cert=str(tmp_path / "cert.pem"), tls_key=str(tmp_path / "key.pem"))
    assert code == 78 and "key.pem: No such file" in text
    (tmp_path / "key.pem").write_text("nothing")
    ((code, text),) = what(tmp_path, tls_cert=str(tmp_path / "cert.pem"), tls_key=str(tmp_path / "key.pem"))
    assert code == 78 and "cert.pem: no certificate" in text


def test_what_is_wrong_with_a_store(stopped, tmp_path):
    ((code, text),) = what(tmp_path, layout="tree")
    assert code == 78 and "layout" in text
    key = stopped / ".ingest/key"
    os.chmod(key, 0o644)
    ((code, text),) = what(tmp_path)
    assert code == 78 and "chmod 600" in text
    os.chmod(key, 0o600)
    key.write_text("0" * 64 + "\n")
    ((code, text),) = what(tmp_path)
    assert code == 78 and "lacks the key" in text
    os.rename(stopped / ".ingest/wal", tmp_path / "wal")
    problems = what(tmp_path)
    assert any("--wal-dir" in text for _, text in problems)


def test_a_port_that_is_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ((code, text),) = what(tmp_path, listen=f"127.0.0.1:{taken.getsockname()[1]}")
    assert code == 75 and text.startswith("listen: ")


def test_an_address_of_nobody(tmp_path):
    ((code, text),) = what(tmp_path, admin_listen="192.0.2.1:5080")
    assert code == 78 and "192.0.2.1" in text


@contextmanager
def read_only(path: Path) -> Iterator[Path]:
    """``path``, on a file system that is mounted read-only. Takes root, or the test is skipped."""
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "none", path], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted: {done.stderr!r}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def both_refuse(match: str, *flags: str) -> None:
    """A start and the check say the same, and both exit with 78."""
    start = run("server", *FLAGS, *flags)
    complains(start, 78, match)
    checked = run("check-config", *FLAGS, *flags)
    (problem,) = [line for line in checked.stdout.splitlines() if line.startswith("problem: ")]
    assert problem.removeprefix("problem: ") == start.stderr.removeprefix("ingest: ").rstrip("\n")
    assert checked.returncode == 78


def test_directories_that_are_none(tmp_path):
    (tmp_path / "file").write_text("hello")
    (tmp_path / "link").symlink_to("nowhere")
    with everything_of(tmp_path):
        both_refuse("file: Not a directory", f"--data-dir={tmp_path / 'file'}")
        both_refuse("file/below: Not a directory", f"--data-dir={tmp_path / 'file/below'}")
        both_refuse("link: No such file or directory", f"--data-dir={tmp_path / 'link'}")
        flags = (f"--data-dir={tmp_path / 'data'}", f"--wal-dir={tmp_path / 'file'}")
        both_refuse("file: Not a directory; the directory of the log", *flags)


def test_directories_that_are_read_only(tmp_path):
    with read_only(tmp_path / "disk") as disk:
        both_refuse("disk: Read-only file system", f"--data-dir={disk / 'data'}")
        both_refuse(
            "disk: Read-only file system", f"--data-dir={tmp_path / 'data'}", f"--wal-dir={disk / 'wal'}"
        )
        (text,) = {text for _, text in codes(of_both(disk))}
        assert text.startswith(f"{disk}: Read-only file system")
    assert not (tmp_path / "data").exists()


def test_a_gateway_s_directory_that_is_none(tmp_path):
    (tmp_path / "data").write_text("hello")
    ((code, text),) = codes(of_gateway(tmp_path / "data"))
    assert code == 78 and "Not a directory" in text
    complains(run("gateway", f"--data-dir={tmp_path / 'data'}", "--http-listen=127.0.0.1:0"), 78, text)


def test_less_room_than_the_reserve_is_a_note(tmp_path):
    found = os.statvfs(tmp_path)
    much = f"{(found.f_bavail * found.f_frsize >> 20) + 4096}MiB"
    checked = check({**FREE, "data_dir": str(tmp_path / "data"), "reserve": much}, {}, None)
    (note,) = [note for note in checked.notes if note.startswith("no space: ")]
    assert "--reserve" in note and checked.exit_code == 0
    checked = check(
        {**FREE, "data_dir": str(tmp_path / "data"), "reserve": "0", "wal_size": "96MiB"}, {}, None
    )
    assert not any(note.startswith("no space: ") for note in checked.notes)


def test_less_room_than_the_catalog_takes_is_a_note(tmp_path):
    with small_disk(tmp_path, "disk", 16) as disk:
        assert not any("the reserve of the catalog" in note for note in of_both(disk / "data").notes)
        fill(disk, 1 << 20)
        assert any("the reserve of the catalog" in note for note in of_both(disk / "data").notes)


def test_two_names_of_one_port(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    ((code, text),) = codes(
        of_both(tmp_path / "data", listen=f"127.0.0.1:{port}", http_listen=f"localhost:{port}")
    )
    assert code == 75 and text.startswith("http_listen: ")


def test_packs_without_a_description(tmp_path):
    (tmp_path / "data/AB").mkdir(parents=True)
    with everything_of(tmp_path):
        ((code, text),) = what(tmp_path)
    assert code == 78 and "holds packs (AB)" in text


def test_an_export_that_was_cut_off(tmp_path):
    (tmp_path / "data/.ingest").mkdir(parents=True)
    (tmp_path / "data/.ingest/export.json").write_text("{}")
    ((code, text),) = what(tmp_path)
    assert code == 78 and "export that was cut off" in text


def test_the_log_of_another_store(stopped, tmp_path):
    wal = stopped / ".ingest/wal"
    with everything_of(stopped):
        ((code, text),) = what(tmp_path, data_dir=str(tmp_path / "new"), wal_dir=str(wal))
    assert code == 78 and "another store" in text


def test_the_server_s_own_ports_are_no_second_problem(tmp_path):
    with running_node(tmp_path / "data", "--workers=1", "--reserve=0") as rig:
        own = {name: format_address(address) for name, address in addresses(rig).items()}
        ((code, text),) = what(tmp_path, **own)
        rig.stop()
    assert code == 75 and f"process {rig.pid}" in text


def addresses(rig: NodeRig) -> dict[str, tuple[str, int]]:
    return {"listen": rig.put_address, "read_listen": rig.get_address, "admin_listen": rig.admin_address}


def test_the_command(tmp_path):
    result = run("check-config", "--data-dir", str(tmp_path / "data"), *FLAGS)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["data_dir", str(tmp_path / "data"), "--data-dir"]
    assert lines[-1] == "a server would start"
    result = run(
        "check-config", "--json", "--admin-listen", "192.0.2.1:1", "--data-dir", str(tmp_path / "data")
    )
    found = json.loads(result.stdout)
    assert result.returncode == 78 and not found["ok"]
    assert any("192.0.2.1" in problem["what"] for problem in found["problems"])
    assert found["settings"]["workers"] == {"value": "0", "source": "default"}
    complains(run("check-config", INGEST_WORKER="3"), 78, "INGEST_WORKERS")
    complains(run("check-config", "--workers", "many"), 2, "--workers")
    assert not (tmp_path / "data").exists()


# --- of a gateway

HTTP = {"http_listen": "127.0.0.1:0"}


def of_gateway(data_dir: Path, **flags: object) -> CheckedConfig:
    return check_gateway({**HTTP, "data_dir": str(data_dir), **flags}, {}, None)


def of_both(data_dir: Path, **flags: object) -> CheckedConfig:
    """Flags of both programs, as of `ingest serve`."""
    given = {**FREE, **HTTP, "data_dir": str(data_dir), **flags}
    own = {name: value for name, value in given.items() if name in PARSERS}
    return check_both(
        {name: given[name] for name in given if name not in own} | {"data_dir": str(data_dir)}, own, {}, None
    )


def codes(checked: CheckedConfig) -> list[tuple[int, str]]:
    return [(problem.exit_code, problem.what) for problem in checked.problems]


def test_where_each_value_of_a_gateway_comes_from(stopped, tmp_path):
    file = tmp_path / "ingest.toml"
    file.write_text(
        'workers = 3\nhttp_workers = 2\nhost = ["a.example", "b.example"]\ncollect_interval = 7\n'
    )
    flags = {**HTTP, "data_dir": str(stopped), "api": ("blob=127.0.0.1:0", "files=[::1]:0")}
    with everything_of(stopped):
        checked = check_gateway(flags, {"INGEST_COLLECT_INTERVAL": "8"}, file)
    assert codes(checked) == []
    assert checked.settings["http_workers"] == ("2", str(file))
    assert checked.settings["host"] == ("a.example, b.example", str(file))
    assert checked.settings["collect_interval"] == ("8.0", "INGEST_COLLECT_INTERVAL")
    assert checked.settings["api"] == ("blob=127.0.0.1:0, files=[::1]:0", "--api")
    assert checked.settings["open"] == ("false", "default")
    assert checked.settings["key_file"] == (str(stopped / ".ingest/key"), "default")
    assert list(checked.settings) == list(PARSERS)
    assert any("no catalog yet" in note for note in checked.notes)


def test_a_gateway_without_a_store(tmp_path):
    assert {code for code, _ in codes(of_gateway(tmp_path))} == {78}
    assert "start `ingest server` on it first" in codes(of_gateway(tmp_path))[0][1]
    assert codes(of_both(tmp_path / "new")) == []  # the server makes it
    assert not (tmp_path / "new").exists()


def test_what_is_wrong_with_a_gateway(stopped, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("read-write 0123456789abcdef\n")
    tokens.chmod(0o644)
    for where in (of_gateway, of_both):
        ((code, text),) = codes(where(stopped, token_file=str(tokens)))
        assert code == 78 and "chmod 600" in text
        ((code, text),) = codes(where(stopped, api=("blob=192.0.2.1:3001",), open="true"))
        assert code == 78 and text.startswith("api blob: ") and "192.0.2.1" in text
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            ((code, text),) = codes(where(stopped, http_listen=address))
        assert code == 75 and text.startswith("http_listen: ")
        with pytest.raises(ConfigError, match="--token-file"):
            where(stopped, http_listen="0.0.0.0:8080")
    ((code, text),) = codes(of_gateway(stopped, connect_tls_ca=str(tmp_path / "absent")))
    assert code == 78 and "absent" in text


def test_a_server_and_its_gateway_on_one_address(stopped):
    address = "127.0.0.1:1"
    problems = codes(of_both(stopped, admin_listen=address, http_listen=address))
    assert (78, f"admin_listen: {address} is an address of the gateway too") in problems


def test_a_gateway_that_runs(tmp_path):
    """Its own ports are no second problem."""
    with node_gateway(tmp_path / "data") as node:
        address = format_address(node.gateway.address)
        apis = tuple(f"{name}={format_address(at)}" for name, at in node.gateway.alone.items())
        ((code, text),) = codes(of_gateway(tmp_path / "data", http_listen=address, api=apis))
        assert code == 75 and "is another gateway's" in text
        assert [code for code, _ in codes(of_both(tmp_path / "data", http_listen=address))] == [75, 75]
        node.stop()
    assert codes(of_gateway(tmp_path / "data", http_listen=address, api=apis)) == []


def test_the_command_for_each_program(stopped, tmp_path):
    flags = ["--data-dir", str(stopped), "--http-listen", "127.0.0.1:0"]
    result = run("check-config", "gateway", *flags)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1] == "a gateway would start"
    result = run("check-config", "serve", *flags, *FLAGS, "--api", "blob=127.0.0.1:0", "--json")
    settings = json.loads(result.stdout)["settings"]
    assert result.returncode == 0 and settings["api"] == {"value": "blob=127.0.0.1:0", "source": "--api"}
    assert {"listen", "http_listen"} <= settings.keys() and "connect" not in settings
    complains(run("check-config", "--http-listen", "127.0.0.1:0"), 2, "`ingest server` has no such flag")
    complains(
        run("check-config", "gateway", "--listen", "127.0.0.1:0"), 2, "`ingest gateway` has no such flag"
    )
    complains(run("check-config", "serve", "--connect", "127.0.0.1:1"), 2, "`ingest serve` has no such flag")
    complains(run("check-config", "router"), 2, "router")


@pytest.mark.parametrize(
    "found", [at for size in range(4) for at in itertools.permutations((1, 75, 78), size)]
)
def test_what_has_to_be_changed_counts_before_what_passes_by_itself(found):
    """Wherever it was found: who starts it again after 75 must not do so for ever."""
    checked = CheckedConfig({}, [Problem(f"problem {code}", code) for code in found])
    assert checked.exit_code == next((code for code in found if code != 75), 75 if found else 0)
    assert checked.as_json()["ok"] == (not found)
    assert [problem["exit_code"] for problem in checked.as_json()["problems"]] == list(found)


def problems_of(addresses, own):
    """The names of those that cannot be had."""
    checked = CheckedConfig({})
    check_addresses(addresses, own, checked)
    assert {code for code, _ in codes(checked)} <= {75}
    return [text.partition(":")[0] for _, text in codes(checked)]


def test_an_address_of_our_own_is_known_by_each_of_its_names():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        names = [("listen", ("127.0.0.1", port)), ("read_listen", ("localhost", port))]
        assert problems_of(names, {f"127.0.0.1:{port}"}) == []
        for own in (set(), {"127.0.0.1:1"}, {f"127.0.0.2:{port}"}):
            assert problems_of(names, own) == ["listen", "read_listen"]


def test_addresses_that_can_be_had_alone_and_not_together():
    """In any order: what was tried first is held until the last one was."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    names = {"listen": port, "api blob": 0, "http_listen": port, "admin_listen": 0}
    for order in itertools.permutations(names):
        second = [name for name in order if names[name]][1]
        assert problems_of([(name, ("127.0.0.1", names[name])) for name in order], set()) == [second]
