"""What the allocator of the C library keeps of the memory that is freed."""

from __future__ import annotations

import ctypes

# As glibc numbers what mallopt(3) sets.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def keep(size: int, block: int) -> None:
    """Blocks of up to ``block`` bytes come from the heap, and up to ``size`` bytes at its end stay there when they are free.

    What goes back to the system comes again page by page, cleared: for buffers that are filled and freed all the time that
    costs more than what is done with them. mallopt(3); another C library than glibc is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, block)
        mallopt(_M_TRIM_THRESHOLD, size)
