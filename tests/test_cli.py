"""The command line from outside: what it prints where, and its exit codes."""

import json
import os
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from reference_server import NO_SPACE, Faults, ReferenceServer

import ingest
from ingest.catalog.catalog_reader import Garbage
from ingest.catalog.extent import Extent
from ingest.commands import cli
from ingest.commands.local_backend import LocalBackend
from ingest.commands.store_commands import verdict
from ingest.objects import rebuild
from ingest.objects.collector import Collected, Refusal
from ingest.runtime.key_file import make_key_file, read_keys
from ingest.runtime.listeners import format_address
from ingest.status import Status
from ingest.store.check import export as exporter
from ingest.store.check import fsck as checker
from ingest.store.check import inspection
from ingest.store.check.findings import Problem, Report


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {name: text for name, text in os.environ.items() if not name.startswith("INGEST_")}
    return subprocess.run(
        [sys.executable, "-m", "ingest", *arguments],
        env=clean | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def complains(result: subprocess.CompletedProcess[str], code: int, match: str) -> None:
    """One clear line on stderr, and nothing else."""
    assert result.returncode == code, result
    assert result.stdout == ""
    assert result.stderr.startswith("ingest: ")
    assert result.stderr.count("\n") == 1
    assert match in result.stderr


def test_version() -> None:
    result = run("version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"ingest {ingest.__version__}\n", "")
    assert json.loads(run("version", "--json").stdout) == {"version": ingest.__version__}
    assert run("--version").returncode == 0


@pytest.mark.parametrize(
    "command",
    [
        *(
            "server",
            "loopback",
            "keygen",
            "version",
            "fsck",
            "inspect",
            "export",
            "check-config",
            "gateway",
            "serve",
        ),
        *("put", "get", "ls", "stat", "rm", "gc", "catalog rebuild", "catalog backup", "tickets lease"),
    ],
)
def test_each_command_has_an_example(command: str) -> None:
    result = run(*command.split(), "--help")
    assert result.returncode == 0
    assert f"ingest {command}" in result.stdout.split("Example:")[1]


def test_without_a_command_the_help_is_shown() -> None:
    result = run()
    assert result.returncode == 2
    assert "Usage:" in result.stderr
    assert result.stdout == ""


def test_keygen(tmp_path: Path) -> None:
    path = tmp_path / "key"
    result = run("keygen", str(path), "--json")
    assert result.returncode == 0
    report = json.loads(result.stdout)
    assert report["key_file"] == str(path)
    assert len(report["id"]) == 16
    key = read_keys(path)[0]
    assert key.hex() not in result.stdout + result.stderr
    complains(run("keygen", str(path)), 78, "exists already")
    assert read_keys(path) == [key]


def test_keygen_rotate(tmp_path: Path) -> None:
    path = tmp_path / "key"
    first = json.loads(run("keygen", str(path), "--json").stdout)["id"]
    report = json.loads(run("keygen", "--rotate", str(path), "--json").stdout)
    assert report["accepted"][0] == report["id"] == first and report["known"] == []
    second = report["accepted"][1]
    result = run("keygen", "--rotate", str(path))
    assert f"accepted are {second} and " in result.stdout and f"known only: {first}" in result.stdout
    assert not any(key.hex() in result.stdout + result.stderr for key in read_keys(path))
    complains(run("keygen", "--rotate", str(tmp_path / "absent")), 78, "no such file")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["nope"], "No such command"),
        (["version", "extra"], "unexpected extra argument"),
        (["keygen"], "Missing argument"),
        (["server", "--bogus"], "No such option"),
        (["loopback", "--frames", "1"], "Missing option '--key-file'"),
        (["loopback", "--key-file", "k", "--frames", "many"], "'many' is not a valid integer"),
        (["loopback", "--key-file", "k", "--connect", "nowhere"], "'nowhere' is not an address"),
        (["loopback", "--key-file", "k"], "either a number of frames or a duration"),
        (["loopback", "--key-file", "k", "--frames", "1", "--duration", "1"], "either"),
        (["loopback", "--key-file", "k", "--frames", "1", "--first", "abc"], "is not a ticket"),
        (["server", "--listen"], "requires an argument"),
        (["server", "--workers", "many"], "--workers: 'many' is not a whole number"),
        (["server", "--listen", "nowhere"], "--listen: 'nowhere' is not an address"),
        (["server", "--sync", "never"], "--sync: 'never' is none of disk, os"),
    ],
)
def test_usage_errors(arguments: list[str], match: str) -> None:
    complains(run(*arguments), 2, match)


def test_configuration_errors(tmp_path: Path) -> None:
    file = tmp_path / "ingest.toml"
    file.write_text("wrokers = 1\n")
    complains(run("server", "--config", str(file)), 78, "unknown key wrokers (did you mean workers?)")
    complains(run("server", INGEST_CONFIG=str(file)), 78, "unknown key wrokers")
    complains(
        run("server", INGEST_WROKERS="1"),
        78,
        "unknown variable INGEST_WROKERS (did you mean INGEST_WORKERS?)",
    )
    complains(run("server", "--config", str(tmp_path / "absent")), 78, "No such file")


def test_results_into_a_closed_pipe_are_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(
        [sys.executable, "-m", "ingest", "version"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(write)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "key"
    make_key_file(path)
    return path


def loopback(server: ReferenceServer, key_file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    put, get = map(format_address, (server.put_address, server.get_address))
    return run("loopback", "--connect", put, "--read-connect", get, "--key-file", str(key_file), *arguments)


def test_loopback_saves_and_verifies(key_file: Path) -> None:
    with ReferenceServer(read_keys(key_file)) as server:
        result = loopback(server, key_file, "--frames", "500", "--connections", "2", "--verify", "--json")
        assert (result.returncode, result.stderr) == (0, "")
        report = json.loads(result.stdout)
        names = "frames saved failed statuses seconds frames_per_s mb_per_s p50_ms p99_ms p999_ms verified"
        assert " ".join(report) == names
        assert (report["frames"], report["saved"], report["failed"], report["verified"]) == (500, 500, 0, 500)
        assert report["statuses"] == {"SAVED": 500}


def test_loopback_for_people(key_file: Path) -> None:
    with ReferenceServer(read_keys(key_file)) as server:
        result = loopback(server, key_file, "--frames", "50", "--first", "ABC", "--verify")
        assert (result.returncode, result.stderr) == (0, "")
        assert "50 from ticket ABC on" in result.stdout
        assert "SAVED 50" in result.stdout
        assert "50 of 50, 0 wrong" in result.stdout
        assert "\x1b" not in result.stdout


def test_loopback_fails_when_something_was_not_saved(key_file: Path) -> None:
    with ReferenceServer(read_keys(key_file), Faults(answer=lambda index, seen: NO_SPACE)) as server:
        result = loopback(server, key_file, "--frames", "10", "--json")
        assert result.returncode == 1
        assert json.loads(result.stdout)["statuses"] == {"NO_SPACE": 10}


def test_loopback_without_a_server_or_a_key(key_file: Path, tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as sock:
        nobody = format_address(sock.getsockname())
    flags = ["loopback", "--connect", nobody, "--frames", "1", "--key-file"]
    complains(run(*flags, str(key_file)), 1, nobody)
    complains(run(*flags, str(tmp_path / "absent")), 78, "there is no such file")


@pytest.mark.parametrize("problems", [[], ["damaged bytes"]])
@pytest.mark.parametrize("incomplete", [[], ["a name"]])
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_rebuild_that_lacks_something_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, problems: list[str], incomplete: list[str], as_json: list[str]
) -> None:
    """Either of the two is enough: who rebuilds by a script has nothing else to go by."""
    found = rebuild.Rebuilt("DATA", problems=problems, incomplete=incomplete)
    monkeypatch.setattr(rebuild, "rebuild", lambda *_, **__: found)
    code = cli.run(cli.cli, "ingest", ["catalog", "rebuild", *as_json])
    assert code == (1 if problems or incomplete else 0)


@pytest.mark.parametrize("problems", [[], ["a chunk that was left out"]])
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_an_export_that_lacks_something_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, problems: list[str], as_json: list[str]
) -> None:
    done = exporter.Exported("DIR", "DEST", "tree", problems=problems)
    monkeypatch.setattr(exporter, "export", lambda *_, **__: done)
    code = cli.run(cli.cli, "ingest", ["export", "DIR", "DEST", "--layout=tree", *as_json])
    assert code == (1 if problems else 0)


@pytest.mark.parametrize("refused", [0, 1, 2])
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_collection_that_was_refused_something_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], refused: int, as_json: list[str]
) -> None:
    """Garbage that can not be deleted stays, and takes room: all of it is listed."""
    done = Collected(refused=[Refusal(Garbage(i, None, Extent(i, 1)), Status.ERROR) for i in range(refused)])

    async def collect(*_: object) -> Collected:
        return done

    monkeypatch.setattr(LocalBackend, "collect", collect)
    assert cli.run(cli.cli, "ingest", ["gc", *as_json]) == (1 if refused else 0)
    out = capfd.readouterr().out
    assert out.count("ERROR") == refused
    assert not as_json or len(json.loads(out)["refused"]) == refused


PROBLEM = Problem("damaged", "obj", "of which something is wrong")


@pytest.mark.parametrize("problems", [0, 1, 2])
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_store_that_is_not_clean_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], problems: int, as_json: list[str]
) -> None:
    report = Report("DIR", problems=[PROBLEM] * problems)
    monkeypatch.setattr(checker, "fsck", lambda *_, **__: report)
    assert cli.run(cli.cli, "ingest", ["fsck", "DIR", *as_json]) == (1 if problems else 0)
    assert capfd.readouterr().out.count("of which something is wrong") == problems


MENDABLE = Problem("damaged", "obj", "of which something is wrong", repair="what a repair does")
MENDED = Problem("damaged", "obj", "of which something is wrong", repair="what a repair does", repaired=True)
LOST = Problem("damaged", "obj", "of which something is wrong", repair="what a repair does", lost=True)


@pytest.mark.parametrize(
    ("problems", "repaired", "said"),
    [
        ([], False, "clean"),
        ([PROBLEM], False, "1 problem"),
        ([PROBLEM, PROBLEM], False, "2 problems"),
        ([PROBLEM, MENDABLE], False, "2 problems; `ingest fsck DIR --repair` mends 1 of them"),
        (
            [LOST, MENDABLE],
            False,
            "2 problems, 1 chunk without a copy; `ingest fsck DIR --repair` mends 2 of them",
        ),
        ([MENDED], True, "1 problem, all repaired; the copies are in .ingest/quarantine"),
        ([MENDED, PROBLEM, MENDED], True, "3 problems, 1 not repaired"),
        ([PROBLEM, MENDED, LOST], True, "3 problems, 1 chunk without a copy, 2 not repaired"),
    ],
)
def test_what_a_check_comes_to(problems: list[Problem], repaired: bool, said: str) -> None:
    assert verdict(Report("DIR", problems=problems, repaired=repaired)) == said


@pytest.mark.parametrize(
    "found", [{"what": "a pack"}, {"what": "a pack", "problem": "its header is damaged"}, {"problem": ""}]
)
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_damaged_file_exits_with_1(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    found: dict[str, str],
    as_json: list[str],
) -> None:
    monkeypatch.setattr(inspection, "inspect", lambda _: found)
    assert cli.run(cli.cli, "ingest", ["inspect", "FILE", *as_json]) == (1 if "problem" in found else 0)
    out = capfd.readouterr().out
    assert json.loads(out) == found if as_json else all(value in out for value in found.values())
