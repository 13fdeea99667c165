"""One line an event, whatever is in it."""

import logging
import re
import sys

import pytest

from ingest.runtime import logs


@pytest.fixture(autouse=True)
def own_log(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", list(root.handlers))
    monkeypatch.setattr(root, "level", root.level)
    monkeypatch.setattr(logging, "raiseExceptions", logging.raiseExceptions)
    monkeypatch.setattr(logs, "_process", "server")
    monkeypatch.setattr(sys, "stderr", sys.stderr)


def written(capfd: pytest.CaptureFixture[str]) -> str:
    logs.flush()
    return capfd.readouterr().err


def said(capfd: pytest.CaptureFixture[str]) -> list[str]:
    """The lines, but for what is told of those that another test has lost."""
    return [line for line in written(capfd).splitlines() if "could not be written" not in line]


def test_a_line_has_time_process_level_and_text(capfd: pytest.CaptureFixture[str]) -> None:
    logs.start("info")
    logs.name_process("worker-3")
    logging.getLogger("ingest.x").warning("%d frames", 7)
    logging.getLogger("ingest.x").debug("not this")
    line = written(capfd)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z worker-3 warning 7 frames\n", line)


def test_what_a_peer_sent_cannot_begin_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    logs.start("debug")
    logging.getLogger("ingest.x").info("peer said %s", "a\n2026 server error b\x1b[2J\u2028é")
    assert written(capfd).endswith(" info peer said a\\n2026 server error b\\x1b[2J\\u2028é\n")


def test_a_traceback_follows_its_line(capfd: pytest.CaptureFixture[str]) -> None:
    logs.start("info")
    try:
        raise RuntimeError("why")
    except RuntimeError:
        logging.getLogger("ingest.x").critical("unexpected", exc_info=True)
    first, second, *_, last = written(capfd).splitlines()
    assert first.endswith(" critical unexpected")
    assert second.startswith("Traceback")
    assert last == "RuntimeError: why"


def test_a_closed_stderr_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def write(self, _: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Gone())
    logs.start("info")
    logging.getLogger("ingest.x").error("nobody reads this")


def test_lines_about_peers_have_a_limit() -> None:
    budget = logs.LineBudget(lines=3, interval=10.0)
    assert [budget.take("bad", 100.0) for _ in range(5)] == [True, True, True, False, False]
    assert budget.lapsed(109.9) == []
    assert not budget.take("bad", 109.9)
    assert budget.take("idle", 109.9)  # a flood of one kind hides no other
    assert budget.lapsed(110.0) == [("bad", 3)]
    assert budget.lapsed(110.0) == []
    assert [budget.take("bad", 115.0) for _ in range(4)] == [True, True, True, False]
    assert budget.take("bad", 125.0)
    assert (
        budget.lapsed(125.0) == []
    )  # what is left out is told when its next interval is over, at the latest
    assert budget.lapsed(135.0) == [("bad", 1)]


class Unspeakable:
    def __str__(self) -> str:
        raise ZeroDivisionError("nothing to say")

    __repr__ = __str__


@pytest.mark.parametrize("argument", ["x", None, Unspeakable(), b"\n"])
@pytest.mark.parametrize("text", ["%d of them", "%d\n%s", "%"])
def test_a_message_that_cannot_be_formatted_fails_nobody(
    capfd: pytest.CaptureFixture[str], text: str, argument: object
) -> None:
    """It is a line all the same, one of them."""
    logs.start("info")
    logging.getLogger("ingest.x").warning(text, argument)
    logging.getLogger("ingest.x").warning("the next")
    lines = said(capfd)
    assert len(lines) == 2 and " warning a message cannot be formatted, " in lines[0] and text[:2] in lines[0]
    assert lines[1].endswith(" warning the next")


def test_each_line_comes_once_however_often_a_log_is_started(capfd: pytest.CaptureFixture[str]) -> None:
    """`ingest serve` starts it, and so does each of its children: with the level that it has then."""
    for level in ("debug", "error", "info"):
        logs.start(level)
    for say in (logging.debug, logging.info):
        say("once")
    (line,) = said(capfd)
    assert line.endswith(" info once")
