"""Is a pack what it should be, and if not, what would it have to be: `docs/format.md`, "Packs".

Pure: the bytes of a pack and what the log says of it in, faults and mended bytes out. What a crash leaves behind is no
fault: slots and bits that the log is still to bring, bytes in slots that nobody was told of.

    present  deleted  the slot holds                       | verdict
    -------------------------------------------------------|---------------------------------------------
    0        0        anything, and the log knows nothing  | free
    0        0        anything, and a log that the packs   | fault: the file is older than its log
                      hold brought a frame
    1        0        a frame that is that ticket's        | good
    1        0        anything else                        | fault, unless recovery brings the frame
    0        1        zero                                 | good
    0        1        anything else                        | fault, unless recovery deletes it once more
    1        1                                             | fault: deleted counts
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from ingest import _hmac, sharding, ticket
from ingest.errors import CorruptionError, StoreFormatError
from ingest.limits import FRAME_SIZE, PACK_HEADER_SIZE
from ingest.store.check.log_survey import LoggedPack
from ingest.store.layouts import pack_file
from ingest.store.layouts.pack_file import BITMAP_SIZE, DIGEST_OFFSET, SECTOR_SIZE, PackHeader

Bools = npt.NDArray[np.bool_]


@dataclass
class Fault:
    """One thing that is wrong. ``slot`` is -1 when it is the file's; ``offset`` and ``size`` say which bytes are to
    be kept aside.

    ``lost``: mending does not bring the chunk back.
    """

    kind: str
    detail: str
    repair: str
    slot: int = -1
    offset: int = 0
    size: int = 0
    lost: bool = False


class SlotState:
    """What the disk holds of the tickets of one pack, in whichever layout.

    ``frames``: (slots, 1474) bytes; ``present``, ``deleted``, ``good`` (holds a frame that is that ticket's under one
    of ``put_keys``): one bool a slot.
    """

    header_lost = False
    never_written = False

    def __init__(self, pack: int, frames: npt.NDArray[np.uint8], put_keys: Iterable[bytes]) -> None:
        self.pack = pack
        self.slots = sharding.pack_slots(pack)
        self.put_keys = list(put_keys)
        self.frames = frames
        self.present = np.zeros(self.slots, bool)
        self.deleted = np.zeros(self.slots, bool)
        self.good = self._verify()

    @property
    def filled(self) -> Bools:
        """Which slots hold any byte: the ticket may be what a frame has lost."""
        return np.asarray(self.frames.any(axis=1), bool)

    def _verify(self) -> Bools:
        """Which slots hold a frame of their own ticket that is authentic. Looks at slots that may hold one."""
        good = np.zeros(self.slots, bool)
        named = (self.frames[:, :8] == ticket_names(self.pack)).all(axis=1)
        candidates = np.flatnonzero(named)
        for key in self.put_keys:
            if not len(candidates):
                break
            some = self.frames if len(candidates) == self.slots else self.frames[candidates]
            passed = np.frombuffer(_hmac.verify(key, some.data.cast("B")), np.uint8).astype(bool)
            good[candidates[passed]] = True
            candidates = candidates[~passed]
        return good


class PackState(SlotState):
    """The pack ``pack`` as its file holds it: ``content``, of any length. ``header`` is None when it is lost or
    another pack's."""

    def __init__(
        self, pack: int, content: bytes | bytearray | memoryview, store_id: bytes, put_keys: Iterable[bytes]
    ) -> None:
        self.store_id = store_id
        self.length = len(content)
        size = pack_file.file_size(sharding.pack_slots(pack))
        whole = np.frombuffer(content, np.uint8)[:size]
        if len(whole) < size:
            whole = np.concatenate([whole, np.zeros(size - len(whole), np.uint8)])
        self.head = bytes(whole[:PACK_HEADER_SIZE])
        super().__init__(pack, whole[PACK_HEADER_SIZE:].reshape(-1, FRAME_SIZE), put_keys)
        self.never_written = not any(
            self.head[:SECTOR_SIZE]
        )  # maybe: a power cut may have kept it from the disk
        self.header_fault = ""
        self.belongs = (
            ""  # the path of the pack that this is, if it lies in the place of another one of this store
        )
        self.header = self._parse_header()
        self.header_lost = self.header is None
        if self.header is not None:
            self.present = _bools(self.header.present, self.slots)
            self.deleted = _bools(self.header.deleted, self.slots)

    def _parse_header(self) -> PackHeader | None:
        try:
            header = PackHeader.parse(self.head)
        except CorruptionError as error:
            known_version = self.head[8:12] == pack_file.VERSION.to_bytes(4, "big")
            if (
                not known_version
                and _hmac.digest504(self.head[:SECTOR_SIZE]) == self.head[DIGEST_OFFSET:SECTOR_SIZE]
            ):
                raise StoreFormatError(f"{sharding.pack_path(self.pack)}: {error}") from None
            self.header_fault = str(error)
            return None
        if header.pack != self.pack:
            self.belongs = sharding.pack_path(header.pack) if header.store_id == self.store_id else ""
            self.header_fault = (
                f"this is the pack {sharding.pack_path(header.pack)} in the place of another one"
            )
            return None
        if header.store_id != self.store_id:
            self.header_fault = f"this is a pack of another store ({header.store_id.hex()})"
            return None
        return header


@cache
def _last_two() -> npt.NDArray[np.uint8]:
    pairs = [x + y for x in ticket.ALPHABET for y in ticket.ALPHABET]
    return np.frombuffer("".join(pairs).encode(), np.uint8).reshape(-1, 2)


def ticket_names(pack: int) -> npt.NDArray[np.uint8]:
    """The ticket of each slot of a pack as on the wire: (slots, 8) bytes."""
    prefix = sharding.pack_prefix(pack).encode()
    names = np.zeros((sharding.pack_slots(pack), 8), np.uint8)
    names[:1296, : len(prefix)] = np.frombuffer(prefix, np.uint8)
    names[:1296, len(prefix) : len(prefix) + 2] = _last_two()
    if pack == sharding.ROOT:
        names[1296:, 0] = np.frombuffer(ticket.ALPHABET.encode(), np.uint8)
    return names


def _bools(bitmap: bytes | bytearray, slots: int) -> Bools:
    return np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")[:slots].astype(bool)


def mask_bools(mask: int, slots: int) -> Bools:
    """A bitmap that is an integer, as one bool a slot."""
    return _bools(mask.to_bytes(BITMAP_SIZE, "little"), slots)


def _bitmap(bools: Bools) -> bytearray:
    packed = np.packbits(bools, bitorder="little").tobytes()
    return bytearray(packed.ljust(BITMAP_SIZE, b"\0"))


FrameAt = Callable[[tuple[int, int]], bytes]  # reads a frame of the log at a place of ``LoggedPack.puts``


def check_pack(state: PackState, logged: LoggedPack, frame_at: FrameAt) -> list[Fault]:
    """What is wrong with a pack."""
    if state.belongs:
        # What should lie here may lie there: nothing is thrown away by taking this for lost before somebody looked.
        return [Fault("misplaced", f"{state.header_fault}: stop, and move it to where it belongs", "")]
    faults = _check_file(state, logged)
    if state.header_lost:
        return faults + (_lost_slots(state, logged) if faults else [])
    return faults + check_slots(state, logged, frame_at)


def check_slots(state: SlotState, logged: LoggedPack, frame_at: FrameAt) -> list[Fault]:
    """What is wrong with the slots of a pack, or with the chunks of layout tree."""
    here = {kind: mask_bools(mask, state.slots) for kind, mask in _masks(logged).items()}
    faults = [
        _fault(state, "both_bits", slot, "is marked present and deleted", "deleted counts")
        for slot in np.flatnonzero(state.present & state.deleted)
    ]
    faults += _check_present(state, logged, here)
    faults += _check_deleted(state, here)
    return faults + _check_against_log(state, logged, here, frame_at)


def _masks(logged: LoggedPack) -> dict[str, int]:
    return {
        "put": sum(1 << slot for slot in logged.puts),
        "noted": logged.noted,
        "deleted": logged.deleted,
        "pending_puts": logged.pending_puts,
        "pending_noted": logged.pending_noted,
        "pending_deleted": logged.pending_deleted,
    }


def _check_file(state: PackState, logged: LoggedPack) -> list[Fault]:
    faults = []
    if state.header_lost and not header_may_be_unwritten(state, logged):
        repair = "built again from the slots; a slot without a valid frame counts as deleted"
        faults.append(Fault("header", state.header_fault, repair, size=PACK_HEADER_SIZE))
    elif any(state.head[SECTOR_SIZE:]):
        detail = f"bytes {SECTOR_SIZE} to {PACK_HEADER_SIZE - 1} of the header are not zero"
        faults.append(Fault("header_tail", detail, "zeroed", size=PACK_HEADER_SIZE))
    most = pack_file.file_size(state.slots)
    if state.length > most:
        detail = f"the file has {state.length} bytes, the most is {most}"
        faults.append(Fault("length", detail, "cut there", offset=most, size=state.length - most))
    return faults


def header_may_be_unwritten(state: SlotState, logged: LoggedPack) -> bool:
    """Whether a pack without a header is what a power cut leaves of a new one: the log still has all that lies in it, and
    nothing that was written there after its header: what it says is synced, and the frames of its notes."""
    if logged.settled:
        return False
    put = mask_bools(logged.pending_puts, state.slots)
    written = mask_bools(logged.pending_noted, state.slots)
    if bool((written & ~state.good & ~put).any()):
        return False
    if isinstance(state, PackState) and state.length == 0:
        return True
    return state.never_written and bool(logged.pending) and not bool((state.good & ~put).any())


def _lost_slots(state: SlotState, logged: LoggedPack) -> list[Fault]:
    """Under a lost header nothing says which slots were in use: those are named that have bytes which are no frame, and
    those that the log says were written."""
    known, noted = (mask_bools(_masks(logged)[kind], state.slots) for kind in ("put", "noted"))
    used = state.filled | (noted & ~mask_bools(logged.deleted, state.slots))
    return [
        _fault(state, "slot", slot, _what_fails(state, slot), "marked deleted: no copy is left", lost=True)
        for slot in np.flatnonzero(used & ~state.good & ~known)
    ]


def _check_present(state: SlotState, logged: LoggedPack, here: dict[str, Bools]) -> list[Fault]:
    bad = state.present & ~state.deleted & ~state.good & ~here["pending_puts"] & ~here["pending_deleted"]
    faults = []
    for slot in np.flatnonzero(bad):
        copy = int(slot) in logged.puts
        moved = not copy and misplaced(state, int(slot)) is not None
        repair = (
            "written again from the log"
            if copy
            else "written again from another slot of this pack, which holds its frame"
            if moved
            else "marked deleted: no copy is left"
        )
        faults.append(_fault(state, "slot", slot, _what_fails(state, slot), repair, lost=not (copy or moved)))
    return faults


def _check_deleted(state: SlotState, here: dict[str, Bools]) -> list[Fault]:
    dead = np.flatnonzero(state.deleted & ~state.present & ~here["pending_deleted"] & ~here["pending_puts"])
    filled = dead[state.frames[dead].any(axis=1)]
    return [_fault(state, "deleted_bytes", slot, "is deleted and not zero", "zeroed") for slot in filled]


def _check_against_log(
    state: SlotState, logged: LoggedPack, here: dict[str, Bools], frame_at: FrameAt
) -> list[Fault]:
    faults = []
    undeleted = here["deleted"] & ~here["pending_deleted"] & ~state.deleted
    for slot in np.flatnonzero(undeleted):
        faults.append(
            _fault(state, "stale", slot, "was deleted, the log says, and is not marked so", "marked deleted")
        )
    free = ~state.present & ~state.deleted & ~here["deleted"]
    for slot in np.flatnonzero(free & here["put"] & ~here["pending_puts"]):
        text = "is free, and the log brought a frame that the pack must hold"
        faults.append(_fault(state, "stale", slot, text, "written again from the log"))
    noted = here["noted"] & ~here["put"] & free
    for slot in np.flatnonzero(noted & ~state.good):
        text = "is free and holds no valid frame, and the log says that one was written"
        faults.append(_fault(state, "stale", slot, text, "marked deleted: no copy is left", lost=True))
    for slot in np.flatnonzero(noted & state.good & ~here["pending_noted"]):
        text = "holds a frame that the log knows of, and is not marked present"
        faults.append(_fault(state, "stale", slot, text, "marked present"))
    # Not of pending ones: a slot may still hold what an earlier, unanswered put left in it.
    alive = state.present & ~state.deleted & state.good & here["put"] & ~here["pending_puts"]
    for slot in np.flatnonzero(alive):
        if frame_at(logged.puts[int(slot)])[16:] != state.frames[slot, 16:].tobytes():
            faults.append(
                _fault(
                    state,
                    "contradiction",
                    slot,
                    "holds other data than the log",
                    "written again from the log",
                )
            )
    return faults


def _fault(
    state: SlotState, kind: str, slot: int | np.intp, detail: str, repair: str, lost: bool = False
) -> Fault:
    return Fault(kind, detail, repair, int(slot), sharding.slot_offset(int(slot)), FRAME_SIZE, lost)


def _what_fails(state: SlotState, slot: int | np.intp) -> str:
    frame = state.frames[slot]
    if not frame.any():
        return "is marked present and holds zeros" if not state.header_lost else "holds zeros"
    name = frame[:8].tobytes()
    if name != ticket_names(state.pack)[slot].tobytes():
        try:
            return f"holds a frame of ticket {ticket.from_wire(name)}"
        except ValueError:
            return "holds no frame: its ticket is malformed"
    return "holds a frame that fails its checksum under every key"


def misplaced(state: SlotState, slot: int) -> int | None:
    """Another slot of this pack that holds an authentic frame of the ticket of ``slot``."""
    name = ticket_names(state.pack)[slot]
    for other in np.flatnonzero((state.frames[:, :8] == name).all(axis=1)):
        frame = state.frames[other].tobytes()
        if int(other) != slot and any(_hmac.verify(key, frame) == b"\1" for key in state.put_keys):
            return int(other)
    return None


@dataclass
class Extra:
    """What else is known when the log itself is damaged, and will be gone afterwards.

    ``frames``: {slot: frame} found by themselves; ``deleted`` slots; ``doomed`` slots, used by a frame that is lost;
    ``adopt``: notes may be lost, so that a valid frame in a free slot counts as stored.
    """

    frames: dict[int, bytes]
    deleted: int = 0
    doomed: int = 0
    adopt: bool = False


@dataclass
class Resolved:
    """What a pack and a log together hold: one bool a slot. ``lost``: used, and no frame is left of it."""

    frames: npt.NDArray[np.uint8]
    present: Bools
    deleted: Bools
    lost: Bools


def resolve(
    state: SlotState,
    logged: LoggedPack,
    frame_at: FrameAt,
    extra: Extra | None = None,
) -> Resolved:
    """The pack as it would be after a recovery, every bad slot replaced from a copy that verifies, where there is one.

    Under a lost header every slot without a frame counts as used.
    """
    extra = extra or Extra({})
    here = {kind: mask_bools(mask, state.slots) for kind, mask in _masks(logged).items()}
    frames = state.frames.copy()
    good = state.good.copy()
    used, deleted = state.present & ~state.deleted, state.deleted.copy()
    if state.header_lost:
        used = good.copy() if header_may_be_unwritten(state, logged) else np.ones(state.slots, bool)
    deleted |= here["deleted"] | mask_bools(extra.deleted, state.slots)
    for slot, place in logged.puts.items():
        if not deleted[slot]:
            _install(state, frames, slot, frame_at(place), used, good)
    for slot, frame in extra.frames.items():
        if not deleted[slot] and not (used[slot] and good[slot]):
            _install(state, frames, slot, frame, used, good)
    for bad in np.flatnonzero(state.present & ~good & ~deleted):
        other = misplaced(state, int(bad))
        if other is not None:
            _install(state, frames, int(bad), state.frames[other].tobytes(), used, good)
    used |= here["noted"] | mask_bools(extra.doomed, state.slots)
    if extra.adopt:
        used |= good
    return Resolved(frames, used & good & ~deleted, deleted, used & ~good & ~deleted)


def mend_pack(
    state: PackState,
    logged: LoggedPack,
    frame_at: FrameAt,
    extra: Extra | None = None,
) -> bytes:
    """The bytes of the pack as it should be: all that the log says is in it, no slot present without its frame.

    A ticket that was used does not become free: where its frame is lost, it is marked deleted. To mend what was mended
    changes nothing but the generation.
    """
    found = resolve(state, logged, frame_at, extra)
    generation = state.header.generation + 1 if state.header else 1
    return pack_bytes(
        state.pack, state.store_id, generation, found.frames, found.present, found.deleted | found.lost
    )


def pack_bytes(
    pack: int, store_id: bytes, generation: int, frames: npt.NDArray[np.uint8], present: Bools, deleted: Bools
) -> bytes:
    """A pack's file up to its last chunk. ``frames`` is (slots, 1474); deleted slots become zero."""
    slots = sharding.pack_slots(pack)
    prefix = sharding.pack_prefix(pack)
    header = PackHeader(slots, prefix, store_id, generation, _bitmap(present), _bitmap(deleted))
    alive = np.flatnonzero(present)
    kept = frames[: alive[-1] + 1].copy() if len(alive) else frames[:0]
    kept[deleted[: len(kept)]] = 0
    return header.serialize() + kept.tobytes()


def _install(
    state: SlotState, frames: npt.NDArray[np.uint8], slot: int, frame: bytes, used: Bools, good: Bools
) -> None:
    """Takes a copy for a slot, if it is authentic; the slot was used in any case."""
    used[slot] = True
    if any(_hmac.verify(key, frame) == b"\1" for key in state.put_keys):
        frames[slot] = np.frombuffer(frame, np.uint8)
        good[slot] = True
