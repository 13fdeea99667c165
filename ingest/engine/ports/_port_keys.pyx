# distutils: depends = ingest/csrc/queue.h ingest/csrc/counters.h
"""The keys of one frame port, as the code that runs without the GIL needs them: bytes, what they sign, whom to count it for."""

from libc.string cimport memcpy


cdef int port_keys_set(port_keys *to, accepted, known, names, tuple kinds) except -1:
    cdef const uint8_t[::1] view
    cdef int i
    accepted = list(accepted)
    if not 1 <= len(accepted) <= 2:
        raise ValueError(f"one or two keys are accepted from the network, not {len(accepted)}")
    ordered = [(key, getattr(key, name), kind) for name, kind in kinds for key in accepted]
    if any(len(raw) != KEY_SIZE for _, raw, _ in ordered):
        raise ValueError(f"a key has {KEY_SIZE} bytes")
    retired = [key for key in known if key not in accepted and key.id in names][:<int>KEY_UNNAMED]
    for i, (key, raw, kind) in enumerate(ordered):
        view = raw
        memcpy(to.raw + i * KEY_SIZE, &view[0], KEY_SIZE)
        to.kinds[i] = kind
        to.numbers[i] = names.index(key.id) if key.id in names else KEY_UNNAMED
    to.count = len(ordered)
    for i, (key, raw) in enumerate((key, getattr(key, name)) for key in retired for name, _ in kinds):
        view = raw
        memcpy(to.retired + i * KEY_SIZE, &view[0], KEY_SIZE)
        to.retired_numbers[i] = names.index(key.id)
    to.retired_count = 2 * len(retired)
    return 0
