"""What is compared is compared to its end: each byte, each slot and each boundary, wherever a comparison decides.

A comparison that stops short passes every test with values that differ early. Here they differ in one place at a time.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from committer_rig import CommitterRig
from msgspec.structs import replace
from node_rig import running_node
from packs import A0, KEYS, STORE_ID, Packs, flat
from put_rig import PUT, Rig, frame
from test_rebuild import Uploads, rebuilt

from ingest import _hmac, limits, mac, sharding, ticket
from ingest.catalog.catalog_changes import Catalog
from ingest.catalog.extent import Extent
from ingest.catalog.version import Condition, Version, VersionState
from ingest.errors import NameTakenError, PreconditionError
from ingest.gateway.http import preconditions
from ingest.gateway.http.body_digests import CheckedBody
from ingest.gateway.http.download_links import DownloadLinks
from ingest.gateway.http.failures import Failure
from ingest.gateway.http.token_file import parse_tokens
from ingest.limits import DATA_SIZE, FRAME_SIZE, PACK_SLOTS
from ingest.status import Status
from ingest.store.layouts._pack_reader import PackReader

T = TypeVar("T")
FIRST = 36 + 5 * PACK_SLOTS  # slot 0 of pack 5
FREE, PRESENT, GONE = "free", "present", "deleted"
STATES = (FREE, PRESENT, GONE)
ANSWERS = {FREE: Status.SAVED, PRESENT: Status.CONFLICT, GONE: Status.DELETED}
REGION, LENGTH = (
    32,
    18,
)  # slots: each region is on its own; two whole bytes of bits fit into a run, whatever its start
TOGETHER = 24  # runs of BULK_RUN_MIN: more than what has to wait before the bulk path is taken
PLACES = [(start, lone) for start in range(8) for lone in range(LENGTH)]


def flipped(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1 << at % 8
    return bytes(changed)


def other_letters(text: str) -> list[str]:
    """It, with one character changed at a time to another that may stand there."""
    return [text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :] for at in range(len(text))]


@pytest.fixture
def rig(tmp_path: Path, layout: str) -> Iterator[CommitterRig]:
    with CommitterRig(tmp_path, layout=layout) as rig:
        yield rig


# --- stored chunks


@pytest.mark.parametrize("longest", [1, limits.BULK_RUN_MIN - 1, PACK_SLOTS])
def test_chunks_that_differ_in_one_byte_are_a_conflict_whichever_it_is(
    rig: CommitterRig, layout: str, longest: int
) -> None:
    data = bytes(range(256)) * 6
    places = range(DATA_SIZE) if layout == "pack" else [*range(0, DATA_SIZE, 97), DATA_SIZE - 1]
    chunks = {FIRST + at: data[:DATA_SIZE] for at in places}
    first = [put_all(rig, part) for part in parts(chunks, longest)]
    rig.settle()
    assert {status for cookie in first for status in rig.answers[cookie]} == {Status.SAVED}
    rivals = {index: flipped(chunk, index - FIRST) for index, chunk in chunks.items()}
    cookies = [put_all(rig, part) for part in parts(rivals, longest)]
    rig.settle()
    answers = [status for cookie in cookies for status in rig.answers[cookie]]
    assert [at for at, status in zip(places, answers, strict=True) if status is not Status.CONFLICT] == []


def parts(chunks: dict[int, bytes], longest: int) -> Iterator[dict[int, bytes]]:
    """Runs of one pack each, as a worker makes them."""
    runs = itertools.groupby(enumerate(chunks), lambda at: (at[1] - at[0], sharding.ticket_pack(at[1])))
    for _, run in runs:
        pack = (index for _, index in run)
        for part in batched(pack, longest):
            yield {index: chunks[index] for index in part}


def batched(items: Iterator[T], size: int) -> Iterator[tuple[T, ...]]:
    while part := tuple(itertools.islice(items, size)):
        yield part


def put_all(rig: CommitterRig, chunks: dict[int, bytes]) -> int:
    return rig.submit(min(chunks), b"".join(frame(index, data) for index, data in chunks.items()))


# --- states of slots


def lone_slots(rig: CommitterRig, most: str, one: str, first: int, count: int, lone: int) -> None:
    """Makes a run of slots of which all but one are alike."""
    for i in range(count):
        state = one if i == lone else most
        if state == PRESENT:
            rig.put(first + i, b"there before")
        elif state == GONE:
            rig.delete(first + i, 1)


@pytest.mark.parametrize(("most", "one"), list(itertools.permutations(STATES, 2)))
@pytest.mark.layout("pack")
def test_one_slot_among_others_is_never_passed_over(rig: CommitterRig, most: str, one: str) -> None:
    """By short runs of puts: a long step is one of eight slots, which begin at a multiple of eight."""
    regions = [FIRST + i * REGION + start for i, (start, _) in enumerate(PLACES)]
    places = [
        (first, lone)
        for first, (_, lone) in zip(regions, PLACES, strict=True)
        if sharding.ticket_pack(first) == sharding.ticket_pack(first + LENGTH - 1)
    ]
    for first, lone in places:
        lone_slots(rig, most, one, first, LENGTH, lone)
        if rig.next_place[0] > rig.places - REGION:
            rig.settle()
    rig.settle()
    cookies = [(rig.put_run(first, LENGTH, b"late"), lone) for first, lone in places]
    rig.settle()
    for cookie, lone in cookies:
        expected = [ANSWERS[most]] * LENGTH
        expected[lone] = ANSWERS[one]
        assert rig.answers[cookie] == expected, (most, one, lone)


@pytest.mark.parametrize("one", [PRESENT, GONE])
@pytest.mark.layout("pack")
def test_one_taken_slot_is_seen_in_a_run_long_enough_to_pass_the_log(rig: CommitterRig, one: str) -> None:
    length, pitch = limits.BULK_RUN_MIN, limits.BULK_RUN_MIN + 16
    in_pack = PACK_SLOTS // pitch
    runs = [
        (FIRST + i // in_pack * PACK_SLOTS + i % in_pack * pitch + lone * 3 % 8, lone)
        for i, lone in enumerate(range(length))
    ]
    for first, lone in runs:
        lone_slots(rig, FREE, one, first, length, lone)
    rig.settle()
    for part in batched(iter(runs), TOGETHER):
        cookies = [rig.put_run(first, length, b"late") for first, _ in part]
        rig.put_run(FIRST + (100 + part[0][1]) * PACK_SLOTS, PACK_SLOTS)
        jobs = rig.plan()
        assert jobs, "the long run that is wholly free goes past the log"
        rig.write()
        rig.finish_jobs()
        rig.settle()
        for cookie, (_, lone) in zip(cookies, part, strict=True):
            expected = [Status.SAVED] * length
            expected[lone] = ANSWERS[one]
            assert rig.answers[cookie] == expected, lone


@pytest.mark.parametrize("length", [LENGTH, limits.BULK_RUN_MIN])
@pytest.mark.layout("pack")
def test_claims_of_a_job_that_runs_are_seen_from_the_first_one_on(rig: CommitterRig, length: int) -> None:
    """Runs that begin in free slots and end in those of a job. Its slots are claimed until it is through."""
    bulk = limits.BULK_RUN_MIN
    cases = [(start, free) for start in range(8) for free in range(length - LENGTH, length)]
    for group, part in enumerate(batched(iter(cases), TOGETHER)):
        first = [
            FIRST + (group * TOGETHER + case) * PACK_SLOTS + start for case, (start, _) in enumerate(part)
        ]
        early = [
            rig.put_run(index + free, bulk, b"early") for index, (_, free) in zip(first, part, strict=True)
        ]
        assert rig.plan(), "no job"
        rig.write()
        late = [rig.put_run(index, length, b"late") for index in first]
        rig.plan()
        rig.write()
        rig.finish_jobs()
        rig.settle()
        assert {rig.answer(cookie) for cookie in early} == {Status.SAVED}
        for cookie, (start, free) in zip(late, part, strict=True):
            expected = [Status.SAVED] * free + [Status.CONFLICT] * (length - free)
            assert rig.answers[cookie] == expected, (start, free)


@pytest.mark.parametrize("lone", range(LENGTH))
def test_a_delete_waits_for_a_put_under_way_wherever_it_is(rig: CommitterRig, lone: int) -> None:
    for start in range(8):
        first = FIRST + start * REGION + start
        rig.put(first + lone, b"under way")
        gone = rig.delete(first, LENGTH)
        rig.settle()
        assert rig.answers[gone] == [Status.DELETED]
        assert {rig.stored(first + i) for i in range(LENGTH)} == {Status.DELETED}


@pytest.mark.parametrize(("most", "one"), list(itertools.permutations(STATES, 2)))
def test_a_reader_sees_one_slot_among_others(tmp_path: Path, most: str, one: str) -> None:
    with Packs(tmp_path) as packs:
        indices: dict[str, list[int]] = {state: [] for state in STATES}
        for lone in range(24):
            for i in range(24):
                indices[one if i == lone else most].append(A0 + lone * REGION + i)
        packs.put(indices[PRESENT])
        header = packs.header(A0)
        for index in indices[GONE]:
            slot = sharding.ticket_slot(index)
            header.deleted[slot // 8] |= 1 << slot % 8
            packs.model[index] = None
        packs.write_header(A0, header)
        reader = PackReader(packs.fd, [KEYS], STORE_ID)
        for lone in range(24):
            first = A0 + lone * REGION
            for start in range(8):
                found = flat(reader.read_range(first + start, 24 - start), first + start)
                assert found == packs.expected(first + start, 24 - start), (lone, start)


def test_each_byte_of_a_store_and_of_a_place_says_whose_pack_it_is(tmp_path: Path) -> None:
    """A header that is whole, and differs in one byte of what it is about, is of no use here."""
    with Packs(tmp_path) as packs:
        packs.put([A0])
        whole = packs.path(A0).read_bytes()[:512]
        for at in range(40):
            changed = bytearray(flipped(whole, at))
            changed[504:512] = _hmac.digest504(bytes(changed[:504]))
            packs.write(A0, 0, bytes(changed))
            ((_, status, _, _),) = PackReader(packs.fd, [KEYS], STORE_ID).read_range(A0, 1)
            assert status is Status.ERROR, at
    with CommitterRig(tmp_path) as rig:
        for at in range(40):
            index = FIRST + at * PACK_SLOTS
            rig.put(index)
        rig.settle()
        rig.flush()
        for at in range(40):
            path = rig.path(FIRST + at * PACK_SLOTS)
            content = path.read_bytes()
            changed = bytearray(flipped(content[:512], at))
            changed[504:512] = _hmac.digest504(bytes(changed[:504]))
            path.write_bytes(changed + content[512:])
        rig.packs.close()
        late = [rig.put(FIRST + at * PACK_SLOTS + 1) for at in range(40)]
        rig.settle()
        assert [rig.answers[cookie] for cookie in late] == [[Status.ERROR]] * 40


# --- runs of frames


def test_a_run_ends_where_the_tickets_do_whichever_frame_that_is() -> None:
    """Also of what is submitted once more to a committer that starts anew."""
    for gap in range(1, 16):
        with Rig(places=64, block_places=16) as rig:
            rig.answering = False
            tickets = [FIRST + i + (i >= gap) for i in range(16)]
            client = rig.connect()
            rig.send(client, b"".join(frame(index) for index in tickets))
            rig.until(lambda rig=rig: sum(run[3] for run in rig.unanswered) == 16)
            assert (
                sorted(index for run in rig.unanswered for index in range(run[0], run[0] + run[3])) == tickets
            )
            rig.unanswered.clear()
            rig.queue.committer_gone()
            rig.queue.committer_ready()
            rig.until(lambda rig=rig: sum(run[3] for run in rig.unanswered) == 16)
            assert (
                sorted(index for run in rig.unanswered for index in range(run[0], run[0] + run[3])) == tickets
            )
            assert all(run[4] == PUT for run in rig.unanswered)


# --- objects


def test_a_version_lacks_any_chunk_that_is_not_stored(tmp_path: Path) -> None:
    """The rebuild of a catalog looks for the last chunk of the last extent as for the first one of the first."""
    with running_node(tmp_path / "data") as node:
        uploads = Uploads(node)
        size = 7 * DATA_SIZE - 1
        whole = uploads.store("whole", b"w" * size)
        assert whole is not None
        names = {}
        for missing in range(7):
            one, two = uploads.lease(3), uploads.lease(4 + 1 + 2)
            extents = [Extent(one.first, 3), Extent(two.first + 2, 5)]
            uploads.store(f"without chunk {missing}", b"%d" % missing * size, extents)
            chunks = [index for place in extents for index in range(place.first, place.stop)]
            names[f"without chunk {missing}"] = chunks[missing]
        for index in names.values():
            uploads.client.delete(ticket.format(index), 1)
        result = rebuilt(node, uploads)
        lacking = {line.split("'")[1] for line in result.incomplete}
        assert (result.objects, lacking) == (1, set(names))


@pytest.mark.parametrize("shared", [-4, -3, 3, 4])
def test_a_version_with_one_chunk_of_another_object_is_not_whole(tmp_path: Path, shared: int) -> None:
    """Two manifests that each say that a chunk is theirs: one of them is wrong, whichever chunk it is."""
    with running_node(tmp_path / "data") as node:
        uploads = Uploads(node)
        lease = uploads.lease(100)
        first = [Extent(lease.first + 20, 4), Extent(lease.first + 40, 1)]
        # Its data begin so many chunks from those of the first: of four chunks they share one, or none.
        second = [Extent(lease.first + 20 + shared, 4), Extent(lease.first + 60, 1)]
        data = b"x" * DATA_SIZE * 4  # the same everywhere: both sums are right
        uploads.store("a", data, first)
        uploads.store("b", data, second, commit=False)
        result = rebuilt(node, uploads)
        assert (result.objects, len(result.incomplete)) == ((2, 0) if abs(shared) == 4 else (1, 1))


def test_a_page_has_what_begins_with_its_prefix_and_nothing_else(tmp_path: Path) -> None:
    letters = ("\0", "a", "b", "\x7f", "\x80", "\ud7ff", "\ue000", "\uffff", "\U0010ffff")
    names = ["".join(word) for size in (1, 2) for word in itertools.product(letters, repeat=size)]
    bounds = ["", *names, "a" * 3, "\U0010ffff" * 3]
    with Catalog(tmp_path / "catalog.db") as catalog:
        with catalog.change():
            owner = catalog.enter("test", 1e6)
            for name in names:
                catalog.store(owner, "n", name, 1, bytes(32), [catalog.lease(owner, 2)], {})
        ordered = sorted(names, key=str.encode)
        for prefix in bounds:
            for after in ("", *bounds[::7], prefix, prefix + "\0"):
                expected = [
                    name for name in ordered if name.startswith(prefix) and name.encode() > after.encode()
                ]
                found = [entry.name for entry in catalog.page("n", prefix, after)]
                assert found == expected, (prefix, after)
                short = [entry.name for entry in catalog.page("n", prefix, after, max(1, len(expected) - 1))]
                assert short == expected[: max(1, len(expected) - 1)], (prefix, after)


# --- what lets somebody in, or holds


def version(digest: bytes = bytes(range(32))) -> Version:
    return Version(1, "n", "name", VersionState.OK, 1, digest, 1e9, (Extent(FIRST, 1),))


@pytest.mark.parametrize("at", range(32))
def test_an_etag_that_differs_in_one_byte_is_another_one(at: int) -> None:
    present, other = version(), version(flipped(version().digest, at))
    tag = preconditions.format_etag(other)
    with pytest.raises(Failure):
        preconditions.check_read({"If-Match": tag}, present)
    assert not preconditions.check_read({"If-None-Match": tag}, present)
    assert not preconditions.range_holds({"If-Range": tag}, present)
    with pytest.raises(PreconditionError):
        Condition(etags=frozenset([other.etag])).check("name", present)
    Condition(none_of=frozenset([other.etag])).check("name", present)
    with pytest.raises(NameTakenError):
        Condition(same=True).check("name", present, other.digest)


def test_each_etag_of_a_list_counts() -> None:
    present = version()
    others = [version(flipped(present.digest, at)) for at in range(4)]
    for place in range(5):
        tags = [preconditions.format_etag(other) for other in others]
        tags.insert(place, preconditions.format_etag(present))
        assert not preconditions.check_read({"If-Match": ", ".join(tags)}, present)
        assert preconditions.check_read({"If-None-Match": ", ".join(tags)}, present)
        for field in ("If-Match", "If-None-Match"):
            condition = preconditions.condition_of({field: ",".join(tags)}, Condition())
            held = condition.etags if field == "If-Match" else condition.none_of
            assert held is not None and present.etag in held and len(held) == 5


@pytest.mark.parametrize("second", [-1, 0, 1])
def test_dates_hold_to_the_second(second: int) -> None:
    present = replace(version(), created=1e9 + 0.9)
    date = f"Sun, 09 Sep 2001 01:46:{40 + second:02d} GMT"
    assert preconditions.check_read({"If-Modified-Since": date}, present) == (second >= 0)
    assert preconditions.range_date({"If-Range": date}, present) == (second == 0)
    condition = preconditions.condition_of({"If-Unmodified-Since": date}, Condition())
    if second < 0:
        with pytest.raises(Failure):
            preconditions.check_read({"If-Unmodified-Since": date}, present)
        with pytest.raises(PreconditionError):
            condition.check("name", present)
    else:
        preconditions.check_read({"If-Unmodified-Since": date}, present)
        condition.check("name", present)


def test_a_token_that_differs_in_one_character_is_none() -> None:
    for size in (limits.TOKEN_LENGTH_MIN, 64, limits.TOKEN_LENGTH_MAX):
        token = ("Zk3vB8qYw1LxN5tR" * (size // 16 + 1))[:size]
        other = token[::-1] + "x" if size < limits.TOKEN_LENGTH_MAX else token[::-1]
        tokens = parse_tokens(f"read-only {other}\nread-write {token}\n".encode(), "here")
        assert (tokens.find(token), tokens.find(other)) == (True, False)
        near = [
            *other_letters(token),
            token[:-1],
            token[1:],
            token + "0",
            "0" + token,
            token.lower(),
            token + "=",
        ]
        assert [text for text in near if tokens.find(text) is not None] == []


def test_a_signature_of_a_link_that_differs_in_one_character_is_none() -> None:
    links = DownloadLinks(bytes(32))
    path, _, signature = links.make("n", "name").rpartition("=")
    query = dict(part.split("=") for part in path.partition("?")[2].split("&")[:-1])
    assert links.check(query | {"signature": signature}) == ("n", "name")
    for wrong in (*other_letters(signature), signature[:-1], signature[1:], signature + "0", ""):
        with pytest.raises(Failure):
            links.check(query | {"signature": wrong})


class Bytes:
    """A body of which everything is there."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    @property
    def ended(self) -> bool:
        return not self.data

    async def fill(self, buffer: memoryview, patience: float | None = None) -> int:
        size = min(len(buffer), 3)
        part, self.data = self.data[:size], self.data[size:]
        buffer[: len(part)] = part
        return len(part)

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("name", ["sha-256", "sha-512", "md5"])
def test_a_digest_of_a_body_that_differs_in_one_byte_is_wrong(name: str) -> None:
    async def take(digests: list[tuple[str, bytes]]) -> None:
        body = CheckedBody(Bytes(b"0123456789"), digests)
        while not body.ended:
            await body.fill(memoryview(bytearray(8)))

    right = hashlib.new(name.replace("-", ""), b"0123456789", usedforsecurity=False).digest()
    asyncio.run(take([(name, right)]))
    others = [
        (other, hashlib.new(other.replace("-", ""), b"0123456789").digest()) for other in ("sha-256", "md5")
    ]
    for at in range(len(right)):
        with pytest.raises(Failure):
            asyncio.run(take([*others, (name, flipped(right, at))]))
        with pytest.raises(Failure):
            asyncio.run(take([(name, flipped(right, at)), *others]))


def test_each_byte_of_a_request_is_signed() -> None:
    request = mac.build_request(KEYS.get, ticket.index_to_wire(FIRST), 513)
    assert mac.request_ok(KEYS.get, request)
    assert [at for at in range(len(request)) if mac.request_ok(KEYS.get, flipped(request, at))] == []
    assert len(frame(FIRST)) == FRAME_SIZE
