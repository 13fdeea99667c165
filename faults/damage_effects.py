"""What a damage may do: whether anybody interprets the bytes that changed, and which tickets they held.

Bytes that nobody interprets, counted as harmless: free slots of a pack; of a segment what lies behind its last batch,
the padding of batches and the header block behind its digest; what the lock says; white space in the key file and the
JSON files, the case of digits in the key file, and the path in log.json. Like a crash: the last batch of the log, which
is cut if it does not check, and one before it where all behind it were hit as well: bytes of a former use look so too.
Slots that the next start writes anew from the log, which need not be looked at, are counted apart too.
"""

from __future__ import annotations

import json

from faults.damage import Damage
from faults.damaged_store import Batch, Template
from ingest import mac, sharding, ticket
from ingest.errors import IngestError
from ingest.limits import FRAME_SIZE, PACK_HEADER_SIZE
from ingest.store.layouts.pack_file import SECTOR_SIZE, PackHeader, bit


def same_meaning(damaged: Damage) -> bool:
    """Whether a JSON or key file says what it said."""
    try:
        if damaged.kind == "key":
            return mac.parse_keys(damaged.before.decode()) == mac.parse_keys(damaged.after.decode("ascii"))
        before, after = (json.loads(raw) for raw in (damaged.before, damaged.after))
    except (ValueError, IngestError, RecursionError):
        return False
    if damaged.kind == "log.json":
        return isinstance(after, dict) and before["log_id"] == after.get("log_id")
    return bool(before == after)


def harmless(template: Template, damaged: Damage) -> bool:
    """Whether only bytes changed that nobody interprets."""
    if damaged.kind == "attribute":
        return not damaged.attributes_changed
    if not damaged.changed or damaged.kind == "lock":
        return True
    if damaged.kind in ("key", "store.json", "log.json"):
        return same_meaning(damaged)
    if damaged.kind in ("pack", "pack header"):
        header = PackHeader.parse(damaged.before)
        free = [s for s in range(header.slots) if not bit(header.present, s) and not bit(header.deleted, s)]
        spaces = [(sharding.slot_offset(s), sharding.slot_offset(s + 1)) for s in free]
        # Deleted slots are zero: behind the end of the file they still are.
        size = len(damaged.before)
        dead = [s for s in range(header.slots) if bit(header.deleted, s)]
        if len(damaged.after) < size:
            spaces += [(sharding.slot_offset(s), sharding.slot_offset(s + 1)) for s in dead]
            if not any(damaged.before[len(damaged.after) :]):
                spaces.append((len(damaged.after), size))  # so are zeros at the end of a chunk
        return within(damaged.changed, spaces)
    if damaged.kind in ("segment", "batch"):
        if not any(damaged.before) and not any(damaged.after):
            return True  # never used, and of any length
        return len(damaged.after) == len(damaged.before) and within(
            damaged.changed, free_of_segment(template, damaged)
        )
    return False


def free_of_segment(template: Template, damaged: Damage) -> list[tuple[int, int]]:
    spaces = [(512, 4096)]
    batches = [batch for batch in template.batches if batch.segment == damaged.path]
    end = 4096
    for batch in batches:
        end = batch.offset + -(-batch.length // 4096) * 4096
        spaces.append((batch.offset + batch.length, end))
    return [*spaces, (end, len(damaged.before))]


def within(changed: list[tuple[int, int]], spaces: list[tuple[int, int]]) -> bool:
    merged: list[list[int]] = []
    for start, end in sorted(spaces):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return all(any(start <= a and b <= end for start, end in merged) for a, b in changed)


def recovery_rewrites(template: Template, damaged: Damage) -> bool:
    """Whether only what the next start writes anew from the log changed: slots, whatever lies in them, and the header of a
    pack that only the log's pending batches ever named, if it looks as if it had not been written yet."""
    if damaged.kind not in ("pack", "pack header", "chunk", "attribute"):
        return False
    pending = {
        index
        for batch in template.batches
        if batch.number > template.settled
        for indices in batch.frames.values()
        for index in indices
    }
    if damaged.kind not in ("pack", "pack header"):
        return ticket.parse(ticket.from_tree_path(str(damaged.path))) in pending
    pack = sharding.pack_of_path(str(damaged.path))
    header = PackHeader.parse(damaged.before)
    spaces = []
    for slot in range(header.slots):
        free = not bit(header.present, slot) and not bit(header.deleted, slot)
        if free or sharding.slot_ticket(pack, slot) in pending:
            spaces.append((sharding.slot_offset(slot), sharding.slot_offset(slot + 1)))
    if SECTOR_SIZE <= len(damaged.after) < len(damaged.before):
        spaces.append((SECTOR_SIZE, PACK_HEADER_SIZE))  # zeros: behind the end of the file they still are
    used = [slot for slot in range(header.slots) if bit(header.present, slot) or bit(header.deleted, slot)]
    if not any(damaged.after[:SECTOR_SIZE]) and all(
        sharding.slot_ticket(pack, slot) in pending for slot in used
    ):
        spaces.append((0, SECTOR_SIZE))
    return within(damaged.changed, spaces)


def like_a_crash(template: Template, damaged: Damage) -> bool:
    """Whether nothing but the end of the log changed: nobody can tell it from one that was being written."""
    if damaged.kind not in ("segment", "batch") or not template.batches:
        return False
    end = [(batch.offset, batch.offset + batch.length) for batch in _cut(template, damaged)]
    return (
        template.batches[-1].segment == damaged.path
        and len(damaged.after) == len(damaged.before)
        and within(damaged.changed, [*free_of_segment(template, damaged), *end])
    )


def _cut(template: Template, damaged: Damage) -> list[Batch]:
    """The batches at the end of the log of which each is hit; the last one in any case."""
    cut = template.batches[-1:]
    for batch in reversed(template.batches[:-1]):
        last = cut[0]
        if not (
            batch.segment == last.segment == damaged.path
            and damaged.touches(last.offset, last.offset + last.length)
            and damaged.touches(batch.offset, batch.offset + batch.length)
        ):
            break
        cut.insert(0, batch)
    return cut


def touched(template: Template, damaged: Damage) -> set[int]:
    """The tickets whose own bytes changed, somewhere: what they held may be lost."""
    found: set[int] = set()
    if damaged.kind in ("pack", "pack header"):
        pack = sharding.pack_of_path(str(damaged.path))
        for slot in range(sharding.pack_slots(pack)):
            if damaged.touches(sharding.slot_offset(slot), sharding.slot_offset(slot + 1)):
                found.add(sharding.slot_ticket(pack, slot))
    elif damaged.kind in ("chunk", "attribute"):
        found.add(ticket.parse(ticket.from_tree_path(str(damaged.path))))
    elif damaged.kind in ("segment", "batch"):
        cut = _cut(template, damaged)
        for batch in template.batches:
            if batch.segment != damaged.path or batch.number <= template.settled:
                continue
            whole = damaged.touches(batch.offset, batch.offset + 64) or batch in cut
            for place, indices in batch.frames.items():
                if whole or damaged.touches(place, place + FRAME_SIZE):
                    found.update(indices)
    return found
