"""Part 1 of the proof in short: kill -9 under load. `make faults PART=1` is the long run."""

from pathlib import Path
from typing import Any

import pytest
from node_rig import data_of, put_frames, running_node

from faults import kill
from faults.history import Acked, History, Load, check
from ingest import ticket

A = ticket.parse("HISTORY")


def test_nothing_acknowledged_is_lost_in_a_few_kills(tmp_path: Path) -> None:
    outcome = kill.run(1, 6, tmp_path)
    assert outcome.passed, "\n".join(outcome.losses)
    assert outcome.counts["acks"] == outcome.counts["tickets_read_back"] > 0


def test_a_history_is_read_as_far_as_it_is_whole(tmp_path: Path) -> None:
    history = History(tmp_path / "history.txt")
    history.append("saved", [5, 3, 4, 9])
    history.append("delete", [4])
    history.append("saved", [])
    assert history.path.read_text() == "saved 3 3\nsaved 9 1\ndelete 4 1\n"
    acked = Acked()
    end = acked.read(history.path)
    assert (acked.saved, acked.deleted, acked.maybe_deleted) == ({3, 4, 5, 9}, set(), {4})
    with history.path.open("a") as file:
        file.write("deleted 4 1\nsaved 77")  # the client died in the middle of a line
    assert acked.read(history.path, end) == end + len("deleted 4 1\n")
    assert (acked.saved, acked.deleted) == ({3, 4, 5, 9}, {4})
    history.close()


def test_the_check_sees_what_is_lost_changed_and_not_deleted(tmp_path: Path) -> None:
    with running_node(tmp_path / "data", "--workers=1") as rig:
        with rig.connect() as connection:
            connection.put([A, A + 1])
            connection.put([A + 2], version=1)
            connection.delete(A + 3, 1)
        assert check(rig, Acked({A, A + 1, A + 3}, {A + 3}), {A + 3}) == []
        assert check(rig, Acked({A + 3}), {A + 3}) == []  # a delete that was sent may have been done
        name = [ticket.format(A + i) for i in range(5)]
        assert check(rig, Acked({A, A + 2, A + 3, A + 4}, {A + 1}), set()) == [
            f"{name[1]}: acknowledged DELETED, found SAVED",
            f"{name[2]}: acknowledged SAVED, came back with other bytes",
            f"{name[3]}: acknowledged SAVED, found DELETED",
            f"{name[4]}: acknowledged SAVED, found MISSING",
        ]
        assert data_of(A) in put_frames(rig.keys, [A])


def test_a_delete_that_is_sent_while_it_is_read_back_is_no_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that is told to rest ends what it is at: on a slow machine after the history was read."""
    with running_node(tmp_path / "data", "--workers=1") as rig, rig.connect() as connection:
        monkeypatch.setattr("faults.history.WRITERS", 0)
        load = Load(rig, tmp_path / "history.txt", 1)
        load.history.append("saved", [A, A + 1, A + 2])
        connection.put([A, A + 1, A + 2])
        to_come = [A, A + 1]

        def slowly(*arguments: Any) -> list[str]:
            if to_come:
                load.history.append("delete", to_come[-1:])
                connection.delete(to_come.pop(), 1)
            return check(*arguments)

        monkeypatch.setattr("faults.history.check", slowly)
        assert load.check_new() == []
        load.history.append("saved", [A + 3])
        assert load.check_new() == [f"{ticket.format(A + 3)}: acknowledged SAVED, found MISSING"]
        load.end()
