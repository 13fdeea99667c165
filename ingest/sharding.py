"""Where a ticket lies: its pack and its slot, by arithmetic alone. `docs/format.md`, "Packs"; C: `csrc/ticket.h`.

A pack is known by its id, ``v(prefix)``: 0 for the root pack, else the prefix's index as a ticket plus one. All
tickets here are indices, see `ticket`.
"""

from __future__ import annotations

import re

from ingest import ticket
from ingest.errors import TicketError
from ingest.limits import FRAME_SIZE, PACK_HEADER_SIZE, PACK_SLOTS, ROOT_PACK_SLOTS

ROOT = 0  # the id of the root pack
PACK_LAST = (ticket.LAST - ticket.BASE) // PACK_SLOTS  # the id of pack ZZ/ZZ/ZZ/obj

_PATH = re.compile(r"(?:(?:[0-9A-Z]{2}/){0,2}[0-9A-Z]{1,2}/)?obj")


def ticket_pack(index: int) -> int:
    """The id of the pack that holds ticket ``index``. TicketError when there is no such ticket."""
    ticket.check_index(index)
    return ROOT if index < ticket.BASE else (index - ticket.BASE) // PACK_SLOTS


def ticket_slot(index: int) -> int:
    """The slot of ticket ``index`` in its pack: the 36 one-character tickets come after the 1296 others of the root."""
    ticket.check_index(index)
    return PACK_SLOTS + index if index < ticket.BASE else (index - ticket.BASE) % PACK_SLOTS


def slot_ticket(pack: int, slot: int) -> int:
    """The index of the ticket in ``slot`` of ``pack``. TicketError when the pack has no such slot."""
    if not 0 <= slot < pack_slots(pack):
        raise TicketError(f"pack {pack_path(pack)} has {pack_slots(pack)} slots, none with number {slot}")
    return slot - PACK_SLOTS if slot >= PACK_SLOTS else pack * PACK_SLOTS + slot + ticket.BASE


def slot_offset(slot: int) -> int:
    """Where ``slot`` starts in its file, in bytes."""
    return PACK_HEADER_SIZE + FRAME_SIZE * slot


def pack_slots(pack: int) -> int:
    """How many slots a pack has: 1332 for the root, 1296 else. TicketError when there is no such pack."""
    if not ROOT <= pack <= PACK_LAST:
        raise TicketError(f"no pack has the id {pack}: they go from 0 to {PACK_LAST}")
    return ROOT_PACK_SLOTS if pack == ROOT else PACK_SLOTS


def pack_prefix(pack: int) -> str:
    """What all tickets of a pack share: 1 to 6 characters, none for the root."""
    pack_slots(pack)
    return "" if pack == ROOT else ticket.format(pack - 1)


def pack_id(prefix: str) -> int:
    """The id of the pack of ``prefix``: the inverse of `pack_prefix`. TicketError when it is none."""
    if prefix == "":
        return ROOT
    pack = ticket.parse(prefix) + 1
    pack_slots(pack)
    return pack


def pack_path(pack: int) -> str:
    """Where a pack lies below DATA: prefix `AABBCC` is `AA/BB/CC/obj`, the root is `obj`."""
    prefix = pack_prefix(pack)
    return ticket.tree_path(prefix) if prefix else "obj"


def pack_of_path(path: str) -> int:
    """The id of the pack at ``path``: the inverse of `pack_path`. TicketError for any other path."""
    if not isinstance(path, str) or not _PATH.fullmatch(path):
        raise TicketError(f"{path!r} is not the path of a pack: one looks like AA/BB/C/obj")
    return pack_id(path.removesuffix("obj").replace("/", ""))
