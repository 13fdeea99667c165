"""The keys of one frame port: those that are accepted, and those that are only recognised."""

from libc.stdint cimport uint8_t

from ingest.engine._queue cimport KEY_COUNTERS

cdef enum:
    KEY_SIZE = 32
    KEYS_MAX = 4  # two accepted keys with two sub-keys each
    RETIRED_MAX = 2 * (KEY_COUNTERS - 1)
    KEY_UNNAMED = KEY_COUNTERS - 1  # the number that all keys without a counter of their own share

ctypedef struct port_keys:
    uint8_t raw[KEYS_MAX * KEY_SIZE]  # the first is that of the first accepted key, of the first kind
    uint8_t kinds[KEYS_MAX]           # what each signs
    uint8_t numbers[KEYS_MAX]         # of their counters
    int count
    uint8_t retired[RETIRED_MAX * KEY_SIZE]  # keys that are known and not accepted
    uint8_t retired_numbers[RETIRED_MAX]
    int retired_count


# Fills `to`. `accepted`: one or two; `known`: all keys of the server, `names`: the ids of those with counters of their
# own, by the counters' numbers; `kinds`: (name of the sub-key, what it signs), twice, in the order of `raw`.
cdef int port_keys_set(port_keys *to, accepted, known, names, tuple kinds) except -1
