RECEIVED: int
VERIFIED: int
CLAIMED: int
LOG_WRITTEN: int
LOG_SYNCED: int
SLOTS_WRITTEN: int
BITS_SET: int
ACKED: int
PACKS_SYNCED: int
LOG_RECYCLED: int
TOMBSTONE_WRITTEN: int
LOG: int
BULK: int
RECOVERY: int
MOST: int
NAMES: tuple[str, ...]

def arm(points: list[tuple[int, int, int, int]]) -> None: ...
def passed(step: int, way: int = ...) -> None: ...
