"""How much each benchmark does: FULL for figures, TINY for the tests, which ask only whether all of it works."""

from __future__ import annotations

from dataclasses import dataclass

from bench import disk_limit


@dataclass(frozen=True)
class Sizes:
    """Frames, unless the name says otherwise; ``_s`` are seconds of load."""

    rounds: int
    warm_size: int  # bytes of page cache touched before each measurement of the disk
    verify_frames: int
    verify_s: float  # at least, of each side in each round
    sustained: int
    calibration: int  # for each way to write to the disk, of which the fastest is the limit
    log_segments: int  # of the limit's log
    window: int
    closed_connections: int
    closed_s: float
    crowd_connections: int
    crowd_s: float
    get: int
    get_passes: int  # over them in each round, in turns with the source
    random_gets: int
    packs: int  # that tickets in random order fall into
    random_s: float
    restart_s: float
    tls: int
    tree: int
    tree_rounds: int
    large_size: int  # bytes of the large object
    small_clients: int
    small_s: float  # of PUTs, and of GETs
    listed_names: int
    start_objects: int  # in the catalog that a gateway starts with
    start_rounds: int
    peer_rounds: int
    peer_s: float
    peer_closed: int  # records of one run of Redis
    peer_pipelined: int  # the same, pipelined
    pipelined: int  # records of one run of ours against it: takes about as long
    pipelined_connections: tuple[int, int]  # few and many
    peer_files: int  # records of one run of SeaweedFS


FULL = Sizes(
    rounds=3,
    warm_size=4 << 30,
    verify_frames=704,
    verify_s=0.1,
    sustained=5_000_000,
    calibration=500_000,
    log_segments=disk_limit.SEGMENTS,
    window=16_384,
    closed_connections=64,
    closed_s=4.0,
    crowd_connections=1000,
    crowd_s=6.0,
    get=1_000_000,
    get_passes=4,
    random_gets=500_000,
    packs=1_000_000,
    random_s=15.0,
    restart_s=4.0,
    tls=1_500_000,
    tree=50_000,
    tree_rounds=5,
    large_size=1 << 30,
    small_clients=64,
    small_s=5.0,
    listed_names=1_000_000,
    start_objects=10_000_000,
    start_rounds=5,
    peer_rounds=3,
    peer_s=3.0,
    peer_closed=200_000,
    peer_pipelined=800_000,
    pipelined=1_600_000,
    pipelined_connections=(4, 64),
    peer_files=20_000,
)

TINY = Sizes(
    rounds=1,
    warm_size=1 << 20,
    verify_frames=64,
    verify_s=0.0,
    sustained=20_000,
    calibration=6_000,
    log_segments=2,
    window=512,
    closed_connections=8,
    closed_s=0.2,
    crowd_connections=20,
    crowd_s=0.3,
    get=6_000,
    get_passes=2,
    random_gets=2_000,
    packs=5_000,
    random_s=0.5,
    restart_s=0.3,
    tls=6_000,
    tree=600,
    tree_rounds=1,
    large_size=3 << 20,
    small_clients=8,
    small_s=0.2,
    listed_names=2_500,
    start_objects=3_000,
    start_rounds=1,
    peer_rounds=1,
    peer_s=0.1,
    peer_closed=400,
    peer_pipelined=2_000,
    pipelined=4_000,
    pipelined_connections=(2, 8),
    peer_files=200,
)
