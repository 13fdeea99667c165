"""A process that changes a catalog and is killed: `python catalog_process.py PATH WHAT`."""

import sys
from pathlib import Path

from ingest.catalog.catalog_changes import Catalog
from ingest.catalog.extent import Extent

DIGEST = bytes(32)


def hang_within_a_transaction(catalog: Catalog) -> None:
    """Says "begun" in the middle of it, and waits for its end."""
    with catalog.change():
        owner = catalog.enter("killed")
        lease = catalog.lease(owner, 1000)
        for i in range(100):
            catalog.store(owner, "store", f"lost {i}", 1, DIGEST, [Extent(lease.first + 2 * i, 2)])
        catalog.delete("store", "kept")
        print("begun", flush=True)
        sys.stdin.read()


def store_many(catalog: Catalog, name: str) -> None:
    """100 transactions, each of one small object of its own and one name that all write."""
    with catalog.change():
        owner = catalog.enter(name)
        lease = catalog.lease(owner, 400)
    for i in range(100):
        with catalog.change():
            first = lease.first + 4 * i
            catalog.store(owner, "store", f"{name} {i}", 1, DIGEST, [Extent(first, 2)])
            catalog.store(owner, "store", "of all", 1, DIGEST, [Extent(first + 2, 2)])
    with catalog.change():
        catalog.leave(owner)


if __name__ == "__main__":
    with Catalog(Path(sys.argv[1])) as one:
        if sys.argv[2] == "hang":
            hang_within_a_transaction(one)
        else:
            store_many(one, sys.argv[2])
