"""Part 8 of the proof in short: processes that stand still. `make faults PART=8` is the long run."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults import hung
from faults.history import Load
from faults.hung import SHORT, Case, Plan
from faults.hung_watch import Said, judge
from faults.object_history import Content, Promises
from faults.object_load import ObjectLoad, read_back
from faults.served_node import NAMES, ServedNode


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ServedNode]:
    one = ServedNode(tmp_path / "data", SHORT)
    try:
        one.start()
        yield one
    finally:
        one.close()


def test_nothing_is_lost_while_processes_stand_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = iter(
        (
            Plan(("http-0", "worker-1"), "long", "kill", "committer"),
            Plan(NAMES, "moment", "nothing"),
        )
    )
    monkeypatch.setattr(hung, "draw", lambda _: next(plans))
    outcome = hung.run(1, 2, tmp_path)
    assert outcome.passed, "\n".join(outcome.losses)
    assert 0 < outcome.counts["acks"] <= outcome.counts["tickets_read_back"]
    assert outcome.counts["objects_read_back"] > 0
    assert outcome.counts["replaced"] == 2


def test_the_judge_notices_a_process_that_stands_still_for_ever(
    service: ServedNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames, objects = Load(service, tmp_path / "history.txt", 1, hung.MIXES["tree"]), None
    try:
        objects = ObjectLoad(service, tmp_path, 1)
        case = Case(service, Plan(("catalog",), "moment", "nothing"), random.Random(1), 0, objects)
        monkeypatch.setattr(service, "go_on", lambda pids: None)
        monkeypatch.setattr(hung, "READY_S", 1.0)
        assert case.run() == []
        (loss,) = case.after(frames)
        assert loss.startswith("not ready after 1 s: missing or stopped: catalog")
        # Nobody noticed that by what was answered: each writer waits, and that is noticed too.
        monkeypatch.setattr(hung, "STEP_S", 1.0)
        (loss,) = hung.progressed(service, frames, objects)
        assert loss.startswith("not answered for 1 s after all was ready: object-writer-0")
        service.send([case.before["catalog"]], signal.SIGCONT)
        case.bystanders.close(frames)
    finally:
        frames.end()
        if objects is not None:
            objects.end()


def test_the_judge_notices_who_was_replaced_and_was_well(service: ServedNode, tmp_path: Path) -> None:
    frames = Load(service, tmp_path / "history.txt", 1, hung.MIXES["tree"])
    objects = ObjectLoad(service, tmp_path, 1)
    try:
        case = Case(service, Plan(("admin",), "moment", "nothing"), random.Random(1), 0, objects)
        service.send([case.before["http-1"]], signal.SIGKILL)
        assert case.run() == []
        (loss,) = case.after(frames)
        assert loss.startswith("http-1 was replaced, and it was well:")
        case.bystanders.close(frames)
    finally:
        frames.end()
        objects.end()


def test_the_judge_notices_an_object_that_is_lost_changed_or_back_again(service: ServedNode) -> None:
    gateway = service.node.gateway
    for name, body in (("changed", b"other"), ("back", b""), ("right", b"")):
        assert gateway.request("PUT", f"/objects/{name}", body).status == 200
    promises = Promises()
    for name in ("lost", "changed", "right"):
        promises.event("done", name, Content(1, 0 if name == "right" else 5))
    promises.event("done", "back", None)
    promises.event("try", "under-way", Content(2, 9))
    found = [
        read_back(service.http_address, name, promises)
        for name in ("lost", "changed", "back", "right", "under-way", "unheard-of")
    ]
    assert found == [
        "object lost: expected 1:5, found nothing",
        "object changed: expected 1:5, found 5 other bytes",
        "object back: expected nothing, found 0 other bytes",
        "",
        "",
        "",
    ]


def test_the_judge_knows_the_truth() -> None:
    still = ("worker-0", "collector")
    assert (
        judge(Said({200, 503}, {"worker-0 has not answered for 3 s"}), "/readyz", still, ("worker-0",)) == []
    )
    assert judge(Said({200}), "/readyz", ("collector",), ("worker-0",)) == []
    (silent, well) = judge(Said({200}), "/readyz", still, ("worker-0",))
    assert "did not name worker-0" in silent and "did not say 503" in well
    (unwell,) = judge(Said({503}, {"no space"}), "/readyz", ("collector",), ("worker-0",))
    assert "never said 200" in unwell
    (mute,) = judge(Said(), "/readyz", ("collector",), ("worker-0",))
    assert "did not answer" in mute
