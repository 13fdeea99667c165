"""Packs as the committer writes them: their headers, claims, holes, and how many are open."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from committer_rig import CommitterRig
from put_rig import frame
from test_committer import no_growth

from ingest import sharding, ticket
from ingest.errors import CorruptionError
from ingest.limits import FRAME_SIZE, PACK_HEADER_SIZE, PACK_SLOTS
from ingest.store.layouts._pack_table import LostHeaderError, PackTable
from ingest.store.layouts.pack_file import PackHeader, bits_of

STORE_ID = bytes(range(16))
PACK = 5
FIRST = 36 + PACK * PACK_SLOTS


@pytest.fixture
def data(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    (tmp_path / "data").mkdir()
    fd = os.open(tmp_path / "data", os.O_RDONLY | os.O_DIRECTORY)
    yield tmp_path / "data", fd
    os.close(fd)


@pytest.fixture
def table(data: tuple[Path, int]) -> Iterator[PackTable]:
    table = PackTable(data[1], STORE_ID, 64)
    yield table
    table.close()


def path_of(data: tuple[Path, int], pack: int = PACK) -> Path:
    return data[0] / sharding.pack_path(pack)


def run(first: int, count: int) -> bytes:
    return b"".join(frame(first + i, b"%d" % i) for i in range(count))


def put_two(table: PackTable, pack: int = PACK) -> None:
    table.replay_puts(run(36 + pack * PACK_SLOTS, 2))


def note_one(table: PackTable, pack: int = PACK) -> None:
    table.replay_note(pack, 4, 1)


def delete_one(table: PackTable, pack: int = PACK) -> None:
    table.replay_delete(pack, 7, 1)


REPLAYS = (put_two, note_one, delete_one)


class TestHeader:
    @pytest.mark.parametrize("text", ["0", "ZZZ", "AABBCCDD", "L4E67PVN"])
    def test_a_new_pack_has_the_header_of_the_format(self, table, data, text):
        pack = sharding.ticket_pack(ticket.parse(text))
        raw = table.header(pack)
        assert PackHeader.parse(raw) == PackHeader(
            sharding.pack_slots(pack), sharding.pack_prefix(pack), STORE_ID, generation=1
        )
        assert path_of(data, pack).read_bytes() == raw.ljust(PACK_HEADER_SIZE, b"\0")
        assert stat.S_IMODE(path_of(data, pack).stat().st_mode) == 0o600
        assert table.created == 1

    def test_the_golden_header_of_the_contract(self, data, contract):
        """The bits of the vector, set in the order in which a server sets them, make its bytes."""
        vector = contract["pack_headers"][0]
        table = PackTable(data[1], bytes.fromhex(vector["store_id_hex"]), 64)
        pack = sharding.pack_id(vector["prefix"])
        table.header(pack)
        for slot in vector["present"]:
            table.replay_note(pack, slot, 1)
        for slot in vector["deleted"]:
            table.replay_delete(pack, slot, 1)
        for _ in range(vector["generation"] - 2):
            table.rewrite_header(pack)
        assert table.header(pack).hex() == vector["first_512_hex"]
        assert path_of(data, pack).read_bytes()[:512].hex() == vector["first_512_hex"]
        table.close()

    def test_each_write_has_a_higher_generation(self, table, data):
        table.header(PACK)
        generations = []
        for _ in range(3):
            table.rewrite_header(PACK)
            generations.append(PackHeader.parse(path_of(data).read_bytes()).generation)
        assert generations == [2, 3, 4]

    @pytest.mark.parametrize("content", [b"x" * 512, b"\0" * 512, b"INGPACK1", bytes(4096)])
    def test_a_header_that_does_not_check_is_lost(self, table, data, content):
        path_of(data).parent.mkdir(parents=True)
        path_of(data).write_bytes(content)
        with pytest.raises(LostHeaderError, match="header fails its check") as caught:
            table.header(PACK)
        assert caught.value.pack == PACK
        assert path_of(data).read_bytes() == content

    def test_a_file_without_a_byte_is_a_pack_that_was_being_made(self, table, data):
        path_of(data).parent.mkdir(parents=True)
        path_of(data).touch()
        assert PackHeader.parse(table.header(PACK)).generation == 1

    @pytest.mark.parametrize(
        "other",
        [
            PackHeader.of_pack(PACK, bytes(16)),
            PackHeader.of_pack(PACK + 1, STORE_ID),
            PackHeader.of_pack(0, STORE_ID),
        ],
        ids=["store", "pack", "root"],
    )
    def test_a_whole_header_of_something_else_is_not_taken_for_lost(self, table, data, other):
        path_of(data).parent.mkdir(parents=True)
        path_of(data).write_bytes(other.serialize())
        with pytest.raises(CorruptionError, match="another store's pack, another pack") as caught:
            table.header(PACK)
        assert not isinstance(caught.value, LostHeaderError)
        assert path_of(data).read_bytes() == other.serialize()

    def test_a_lost_header_gets_a_new_one(self, table, data):
        path_of(data).parent.mkdir(parents=True)
        path_of(data).write_bytes(b"x" * 4096)
        table.install_header(PACK, b"\x01" + bytes(167) + b"\x02" + bytes(167))
        header = PackHeader.parse(table.header(PACK))
        assert (list(bits_of(header.present)), list(bits_of(header.deleted))) == ([0], [1])
        with pytest.raises(ValueError, match="168"):
            table.install_header(PACK, bytes(168))


class TestTable:
    def test_it_never_has_more_open_than_it_may(self, table, data):
        for pack in range(200):
            table.header(pack)
        assert len(table) == 64
        held = [name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")]
        ours = [name for name in held if os.readlink(f"/proc/self/fd/{name}").startswith(str(data[0]) + "/")]
        assert len(ours) == 64

    def test_a_pack_that_was_closed_comes_back_as_it_was(self, table):
        table.replay_note(PACK, 3, 2)
        table.write_headers()
        before = table.header(PACK)
        for pack in range(100, 300):
            table.header(pack)
        assert table.header(PACK) == before

    def test_ids_that_collide_are_all_found_again(self, data):
        """Probe chains are long and wrap when ids are far apart; removing one must not hide the others."""
        table = PackTable(data[1], STORE_ID, 512)
        packs = [(1 << 20) * i % 2000 for i in range(3000)]
        for pack in packs:
            assert PackHeader.parse(table.header(pack)).pack == pack
        table.close()

    def test_recovery_of_more_packs_than_may_be_open(self, table, data):
        """None of them may be closed before its header is written; so they are written when it gets tight."""
        frames = b"".join(frame(FIRST + 1296 * i) for i in range(300))
        table.replay_puts(frames)
        table.write_headers()
        for i in range(300):
            assert list(bits_of(PackHeader.parse(path_of(data, PACK + i).read_bytes()).present)) == [0]

    def test_a_pack_that_was_closed_meanwhile_is_owed_nothing(self, data):
        """A delete writes its pack's header. What is owed later are headers of open packs: none has to be opened for it."""
        table = PackTable(data[1], STORE_ID, 16)
        first = 36 + 65536 * PACK_SLOTS
        table.replay_puts(frame(first))
        table.replay_delete(65536, 0, 1)
        table.replay_puts(b"".join(frame(first + 1296 * i) for i in range(1, 100)))
        table.write_headers()
        assert len(table) == 16
        for i in range(100):
            header = PackHeader.parse(path_of(data, 65536 + i).read_bytes())
            assert (list(bits_of(header.present)), list(bits_of(header.deleted))) == (
                ([0], []) if i else ([], [0])
            )
        table.close()

    def test_more_packs_than_the_bound_on_unwritten_headers(self, data):
        table = PackTable(data[1], STORE_ID, 4096)
        table.replay_puts(b"".join(frame(FIRST + 1296 * i) for i in range(1100)))
        written = PackHeader.parse(path_of(data).read_bytes())
        assert list(bits_of(written.present)) == [0]
        table.close()

    def test_wrong_arguments(self, data):
        with pytest.raises(ValueError, match="16 bytes"):
            PackTable(data[1], b"short", 64)

    def test_what_it_may_not_make_is_no_space(self, table, data):
        table.may_create = False
        with pytest.raises(OSError, match="No space"):
            table.header(PACK)
        path_of(data).parent.mkdir(parents=True)
        path_of(data).touch()
        with pytest.raises(OSError, match="No space"):
            table.header(PACK)
        assert path_of(data).stat().st_size == 0

    @pytest.mark.parametrize("what", ["file", "directory", "dangling"])
    def test_links_are_refused(self, table, data, tmp_path, what):
        victim = tmp_path / "victim"
        if what == "file":
            victim.write_bytes(b"precious")
            path_of(data).parent.mkdir(parents=True)
            path_of(data).symlink_to(victim)
        elif what == "directory":
            victim.mkdir()
            path_of(data).parent.symlink_to(victim)
        else:
            path_of(data).parent.mkdir(parents=True)
            path_of(data).symlink_to(victim)
        with pytest.raises(OSError):
            table.header(PACK)
        if what == "file":
            assert victim.read_bytes() == b"precious"
        elif what == "directory":
            assert os.listdir(victim) == []
        else:
            assert not victim.exists()

    @pytest.mark.parametrize("kind", ["directory", "fifo"])
    def test_what_is_no_file_is_refused(self, table, data, kind):
        path_of(data).parent.mkdir(parents=True)
        if kind == "directory":
            path_of(data).mkdir()
        else:
            os.mkfifo(path_of(data))
        with pytest.raises(OSError):
            table.header(PACK)


class TestReplay:
    def test_frames_go_to_their_slots_and_bits_are_set(self, table, data):
        table.replay_puts(run(FIRST + 3, 5) + run(FIRST + 1296, 2))
        table.write_headers()
        content = path_of(data).read_bytes()
        assert content[sharding.slot_offset(3) :] == run(FIRST + 3, 5)
        assert list(bits_of(PackHeader.parse(content).present)) == [3, 4, 5, 6, 7]
        assert table.dirty_count == 2

    def test_bits_are_not_written_before_slots(self, table, data):
        table.header(PACK)
        table.replay_puts(run(FIRST, 2))
        assert list(bits_of(PackHeader.parse(path_of(data).read_bytes()).present)) == []

    def test_deleted_slots_stay_deleted(self, table, data):
        table.replay_delete(PACK, 1, 2)
        table.replay_puts(run(FIRST, 4))
        table.replay_note(PACK, 0, 6)
        table.write_headers()
        header = PackHeader.parse(path_of(data).read_bytes())
        assert (list(bits_of(header.present)), list(bits_of(header.deleted))) == ([0, 3, 4, 5], [1, 2])
        content = path_of(data).read_bytes()
        assert not any(content[sharding.slot_offset(1) : sharding.slot_offset(3)])

    def test_twice_is_once(self, table, data):
        for _ in range(2):
            table.replay_puts(run(FIRST, 10))
            table.replay_delete(PACK, 2, 3)
            table.write_headers()
        header = PackHeader.parse(path_of(data).read_bytes())
        assert (list(bits_of(header.present)), list(bits_of(header.deleted))) == (
            [0, 1, 5, 6, 7, 8, 9],
            [2, 3, 4],
        )

    @pytest.mark.parametrize("again", [*product(REPLAYS, repeat=1), *product(REPLAYS, repeat=2)])
    def test_what_is_there_already_is_written_once_more(self, data, again):
        """After a failed sync the page cache may claim what the disk lacks: bits as they should be prove nothing."""
        for fresh in (True, False):
            table = PackTable(data[1], STORE_ID, 64)
            if fresh:
                for replay in REPLAYS:
                    replay(table)
            else:
                before = PackHeader.parse(path_of(data).read_bytes())
                for replay in again:
                    replay(table)
                assert table.dirty_count == 1
            table.write_headers()
            table.close()
        after = PackHeader.parse(path_of(data).read_bytes())
        assert (after.present, after.deleted) == (before.present, before.deleted)
        assert (list(bits_of(after.present)), list(bits_of(after.deleted))) == ([0, 1, 4], [7])
        assert after.generation > before.generation

    @pytest.mark.parametrize("replay", REPLAYS[:2])
    def test_a_header_that_could_not_be_written_is_still_owed(self, table, data, replay):
        """Whichever of the packs it was: all of them are written by who tries again."""
        for pack in range(PACK, PACK + 3):
            table.header(pack)
            replay(table, pack)
        for _ in range(3):
            with no_growth(0), pytest.raises(OSError, match="too large"):
                table.write_headers()
        table.write_headers()
        for pack in range(PACK, PACK + 3):
            header = PackHeader.parse(path_of(data, pack).read_bytes())
            assert list(bits_of(header.present)) == ([0, 1] if replay is put_two else [4])

    @pytest.mark.parametrize(("slot", "count"), [(-1, 1), (0, 0), (1295, 2), (1296, 1)])
    def test_slots_that_are_not_there(self, table, slot, count):
        for replay in (table.replay_note, table.replay_delete):
            with pytest.raises(CorruptionError, match="has no slots"):
                replay(PACK, slot, count)

    def test_a_frame_with_no_ticket_is_corruption(self, table):
        with pytest.raises(CorruptionError, match="malformed ticket"):
            table.replay_puts(b"lower...".ljust(FRAME_SIZE, b"\0"))


class TestHoles:
    """Which blocks a delete gives back: those that no living slot touches."""

    @pytest.fixture
    def rig(self, tmp_path: Path) -> Iterator[CommitterRig]:
        with CommitterRig(tmp_path) as rig:
            rig.put_run(FIRST, 60)
            rig.commit()
            yield rig

    def blocks(self, rig: CommitterRig) -> int:
        path = rig.data / sharding.pack_path(PACK)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        return path.stat().st_blocks // 8

    def delete(self, rig: CommitterRig, slot: int, count: int) -> None:
        rig.delete(FIRST + slot, count)
        rig.commit()

    def dead_blocks(self, deleted: set[int], slots: int = 60) -> int:
        """Blocks behind the header that no living slot touches, from arithmetic alone."""
        size = PACK_HEADER_SIZE + slots * FRAME_SIZE
        alive = set()
        for slot in set(range(slots)) - deleted:
            start = sharding.slot_offset(slot)
            alive |= set(range(start // 4096, (start + FRAME_SIZE - 1) // 4096 + 1))
        return len(set(range(1, -(-size // 4096))) - alive)

    @pytest.mark.parametrize(
        "deletes",
        [
            [(0, 1)],
            [(10, 1), (12, 1)],
            [(10, 1), (11, 1), (12, 1), (13, 1)],
            [(13, 1), (12, 1), (11, 1), (10, 1)],
            [(0, 30)],
            [(30, 30)],
            [(5, 7), (20, 7), (12, 8)],
            [(i, 1) for i in range(1, 60)],
            [(i, 1) for i in range(58, -1, -1)],
        ],
    )
    def test_blocks_of_dead_slots_alone_go_back(self, rig, deletes):
        before = self.blocks(rig)
        deleted: set[int] = set()
        for slot, count in deletes:
            self.delete(rig, slot, count)
            deleted |= set(range(slot, slot + count))
        assert before - self.blocks(rig) == self.dead_blocks(deleted)
        for slot in set(range(60)) - deleted:
            assert rig.stored(FIRST + slot) == frame(FIRST + slot, b"data")
        content = (rig.data / sharding.pack_path(PACK)).read_bytes()
        for slot in deleted:
            start = sharding.slot_offset(slot)
            assert not any(content[start : start + FRAME_SIZE])

    def test_a_pack_with_nothing_alive_is_its_header(self, rig):
        self.delete(rig, 0, 59)
        assert (rig.data / sharding.pack_path(PACK)).stat().st_size > PACK_HEADER_SIZE
        self.delete(rig, 59, 1)
        assert (rig.data / sharding.pack_path(PACK)).stat().st_size == PACK_HEADER_SIZE
        rig.put(FIRST + 100, b"again")
        rig.commit()
        assert rig.stored(FIRST + 100) == frame(FIRST + 100, b"again")

    def test_slots_that_a_put_is_under_way_for_are_alive(self, rig):
        self.delete(rig, 0, 59)
        rig.put(FIRST + 60, b"late")
        rig.delete(FIRST + 59, 1)
        rig.commit()
        assert rig.stored(FIRST + 60) == frame(FIRST + 60, b"late")

    def test_the_root_pack_ends_with_its_short_tickets(self, tmp_path):
        (tmp_path / "root").mkdir()
        with CommitterRig(tmp_path / "root") as rig:
            rig.put_run(0, 36)
            rig.commit()
            rig.delete(0, 35)
            rig.commit()
            assert rig.stored(35) == frame(35, b"data")
            rig.delete(35, 1)
            rig.commit()
            assert (rig.data / "obj").stat().st_size == PACK_HEADER_SIZE
