# distutils: depends = ingest/csrc/load.h ingest/csrc/frame.h
"""The histogram of latencies that the load generator counts in: its buckets (`csrc/load.h`)."""

from libc.stdint cimport uint64_t

from ingest.errors import UsageError


cdef extern from "csrc/load.h" nogil:
    enum: LATENCY_BUCKETS
    int latency_bucket(uint64_t ns)
    double latency_value(int bucket)


BUCKETS = LATENCY_BUCKETS


def bucket_of(uint64_t ns):
    """The histogram bucket that a latency falls into."""
    return latency_bucket(ns)


def bucket_value(int bucket):
    """The latency in ns that stands for a bucket: its middle."""
    if not 0 <= bucket < LATENCY_BUCKETS:
        raise UsageError(f"no bucket {bucket}: there are {LATENCY_BUCKETS}")
    return latency_value(bucket)
