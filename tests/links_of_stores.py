"""What is read, and what is written, through symbolic links in the place of each part of a chunk's path. A program.

Prints a line of JSON for each: [the layout, which part is a link ("none", "fifo"), whether a chunk is read, whether a write
was refused, whether what the link leads to is as it was].
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from put_rig import KEYS, frame

from ingest import sharding, ticket
from ingest.status import Status
from ingest.store.layouts._pack_reader import PackReader
from ingest.store.layouts._pack_table import PackTable
from ingest.store.layouts._tree_reader import TreeReader
from ingest.store.layouts._tree_table import TreeTable

TEXT = "FSYNC00"
INDEX = ticket.parse(TEXT)
LAYOUTS = {
    "pack": (PackTable, PackReader, Path(sharding.pack_path(sharding.ticket_pack(INDEX)))),
    "tree": (TreeTable, TreeReader, Path(ticket.tree_path(TEXT))),
}


def write(layout: str, fd: int, data: bytes) -> bool:
    """Whether it was refused."""
    table = LAYOUTS[layout][0](fd, bytes(16), 64)
    try:
        table.replay_puts(frame(INDEX, data))
        table.write_headers()
    except OSError:
        return True
    finally:
        table.close()
    return False


def case(layout: str, root: Path, real: Path, part: int | None) -> tuple[bool, bool, bool]:
    path = LAYOUTS[layout][2]
    root.mkdir()
    if part is not None:
        link = root.joinpath(*path.parts[: part + 1])
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(real.joinpath(*path.parts[: part + 1]))
    else:
        (root / path).parent.mkdir(parents=True)
        os.mkfifo(root / path)
    before = (real / path).read_bytes()
    fd = os.open(root, os.O_RDONLY)
    reader = LAYOUTS[layout][1](fd, [KEYS])
    status, _ = reader.read_chunk(INDEX)
    reader.close()
    refused = write(layout, fd, b"other")
    os.close(fd)
    return status is Status.SAVED, refused, (real / path).read_bytes() == before


if __name__ == "__main__":
    for name in LAYOUTS:
        store = Path(sys.argv[1]) / name
        store.mkdir()
        real_fd = os.open(store, os.O_RDONLY)
        failed = write(name, real_fd, b"data")
        held, _ = LAYOUTS[name][1](real_fd, [KEYS]).read_chunk(INDEX)
        print(json.dumps([name, "none", held is Status.SAVED, failed, True]))
        for place in (*range(len(LAYOUTS[name][2].parts)), None):
            what = "fifo" if place is None else place
            print(json.dumps([name, what, *case(name, Path(f"{store} {what}"), store, place)]))
