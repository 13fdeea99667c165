"""The command line from outside: what it prints where, and its exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ingest
from ingest.store.key_file import read_keys


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


@pytest.mark.parametrize("command", ["server", "keygen", "version"])
def test_each_command_has_an_example(command: str) -> None:
    result = run(command, "--help")
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


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["nope"], "No such command"),
        (["version", "extra"], "unexpected extra argument"),
        (["keygen"], "Missing argument"),
        (["server", "--bogus"], "No such option"),
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
    complains(run("server", "--layout", "tree"), 78, "not in this version")


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
