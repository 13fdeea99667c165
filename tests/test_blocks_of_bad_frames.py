"""Blocks of a worker's memory that bad frames filled: nothing of them is handed over, and each is used again."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from put_rig import KEYS, OTHER_KEYS, Rig, ack, frame, split_acks

from ingest.status import Status


@pytest.mark.parametrize("good", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("block_places", [4, 16, 32])
def test_a_worker_has_room_after_whatever_came(block_places: int, good: float) -> None:
    some = random.Random(1)
    with Rig(places=64, block_places=block_places, bad_frame_limit=1 << 20) as rig:
        clients = [rig.connect() for _ in range(4)]
        index = 0
        for _ in range(20):
            sent: list[list[bytes]] = []
            for client in clients:  # all of it is there when the turn begins
                answers, message = [], b""
                for _ in range(some.randrange(1, 16)):
                    index += 1
                    is_good = some.random() < good
                    message += frame(index, b"", (OTHER_KEYS, KEYS)[is_good].put)
                    answers.append(ack(index, Status.SAVED if is_good else Status.BAD_CHECKSUM))
                client.send(message)
                sent.append(answers)
            for client, answers in zip(clients, sent, strict=True):
                assert Counter(split_acks(rig.receive(client, 9 * len(answers)))) == Counter(answers)
        clients[0].send(b"".join(frame(index + i, b"") for i in range(1, 61)))
        assert len(rig.receive(clients[0], 9 * 60)) == 9 * 60
