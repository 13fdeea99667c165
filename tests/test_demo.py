"""`make demo`, small: the whole story, and an interruption that leaves nothing behind."""

import io
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import demo
import demo_tree
import pytest
from rich.console import Console

ROOT = Path(__file__).parent.parent


def start(tmp_path: Path, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "tools/demo.py", *flags],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def servers_below(tmp_path: Path) -> list[str]:
    """Processes whose command line names a directory of this test."""
    lines = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if str(tmp_path).encode() in line:
                lines.append(line.replace(b"\0", b" ").decode())
    return lines


def test_a_small_demo_tells_the_whole_story(tmp_path):
    process = start(tmp_path, "--chunks", "400")
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    for part in ("killed worker", "SIGTERM", "started it again", "get, verify, compare", "files came back"):
        assert part in out
    assert "ingest serve on the same data" in out
    for way in ("curl", "ingest get") if shutil.which("curl") else ("ingest get",):
        assert re.search(rf"^{way}: \d+ files fetched in .* s, each with the digest that it had$", out, re.M)
    assert list(tmp_path.iterdir()) == []
    assert servers_below(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing(tmp_path, number):
    process = start(tmp_path)
    for line in process.stdout:
        if "server ready" in line:
            break
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert list(tmp_path.iterdir()) == []


def test_a_demo_without_a_server_says_why(tmp_path):
    server = demo.Server(tmp_path)
    server.data.rmdir()
    server.data.write_text("a file where a directory has to be")
    with pytest.raises(demo.DemoError, match="the server ended with"):
        server.start()


def test_a_machine_without_curl(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    console = Console(file=io.StringIO())
    assert [way.stores for way in demo_tree.ways(console)] == ["ingest put"]
    assert "there is no curl on this machine" in console.file.getvalue()


def test_a_tree_that_came_back_with_a_change_is_noticed(tmp_path):
    (tmp_path / "below").mkdir()
    file = tmp_path / "below" / "file"
    file.write_bytes(b"as it was")
    stored = {"below/file": demo_tree.digest(file)}
    demo_tree.check(stored, tmp_path)
    file.write_bytes(b"as it is now")
    with pytest.raises(demo_tree.TreeError, match="below/file"):
        demo_tree.check(stored, tmp_path)
    file.unlink()
    with pytest.raises(demo_tree.TreeError, match="below/file"):
        demo_tree.check(stored, tmp_path)


def test_a_command_that_fails_is_no_success(tmp_path):
    for way in (demo_tree.Curl(), demo_tree.Commands()):
        if shutil.which(way.stores.split()[0]) or way.stores.startswith("ingest"):
            with pytest.raises(demo_tree.TreeError, match="ended with"):
                way.get("127.0.0.1:1", ["nothing"], tmp_path)


def test_files_are_cut_into_consecutive_tickets():
    files = list(demo.collect(500))
    assert sum(stored.tickets.count for stored, _ in files) >= 500
    for (before, _), (after, _) in itertools.pairwise(files):
        assert after.tickets.indices.start == before.tickets.indices.stop
    for stored, content in files:
        chunks = list(demo.chunked(stored, content))
        assert len(chunks) == stored.tickets.count
        assert b"".join(data for _, data in chunks) == content == stored.path.read_bytes()
        assert len(content) == stored.size


def test_there_are_enough_files_on_this_machine():
    assert sum(stored.tickets.count for stored, _ in demo.collect(demo.CHUNKS_MIN)) >= demo.CHUNKS_MIN


def test_no_process_of_another_name_is_taken_for_a_worker():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert list(demo.worker_times(os.getpid())) == []
        child.stdin.close()


def test_a_child_named_as_a_worker_is_found():
    code = "open('/proc/self/comm', 'w').write('ingest-worker-0'); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        assert [pid for _, pid in demo.worker_times(os.getpid())] == [child.pid]
        child.stdin.close()
