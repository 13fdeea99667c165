"""What of a disk a process may be waiting for, as a number for shared memory and as words for people."""

from enum import IntEnum


class DiskWait(IntEnum):
    NOTHING = 0
    LOG_WRITE = 1
    LOG_SYNC = 2
    LOG_SEGMENT = 3  # one that is being made
    PACK_FILES = 4  # reading and writing them, and how much is free there
    PACKS_SYNC = 5  # the flush, without which the log has no room or the server does not end
    BULK_WRITE = 6  # writes and syncs of long runs
    TRANSACTION = 7  # of the catalog
    STORED_READS = 8  # of what a get port answers with

    @property
    def words(self) -> str:
        return self.name.lower().replace("_", " ")
