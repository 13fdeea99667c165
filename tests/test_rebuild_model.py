"""A rebuild of packs made at random, beside what the document says of it in a few lines."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from ingest import sharding, ticket
from ingest.catalog.catalog_changes import Catalog
from ingest.catalog.database import make_file
from ingest.catalog.extent import FIRST, Extent, joined, total
from ingest.catalog.version import VersionState
from ingest.limits import DATA_SIZE, FRAME_SIZE, PACK_SLOTS
from ingest.objects import manifest, rebuild
from ingest.objects.manifest import Manifest
from ingest.store.check.findings import no_progress
from ingest.store.check.pack_check import Resolved

KEY = manifest.manifest_key(bytes(32))
ABSENCES = ("deleted", "lost", "never")


class Packs:
    """What a store at rest holds, by ticket: the data of a chunk, or what became of it."""

    def __init__(self) -> None:
        self.held: dict[int, bytes | str] = {}

    @property
    def packs(self) -> set[int]:
        return {sharding.ticket_pack(index) for index in self.held}

    def stored(self, *places: Extent) -> bool:
        return all(
            isinstance(self.held.get(index), bytes)
            for place in places
            for index in range(place.first, place.stop)
        )

    def put(self, place: Extent, data: bytes) -> None:
        for i in range(place.count):
            self.held[place.first + i] = data[i * DATA_SIZE : (i + 1) * DATA_SIZE]

    def put_manifest(self, about: Manifest, place: Extent) -> None:
        self.put(place, manifest.serialize(about, place, KEY))

    def read(self, pack: int) -> Resolved:
        base = sharding.slot_ticket(pack, 0)
        frames = np.zeros((PACK_SLOTS, FRAME_SIZE), np.uint8)
        bits = {name: np.zeros(PACK_SLOTS, bool) for name in ("present", "deleted", "lost")}
        for slot in range(PACK_SLOTS):
            held = self.held.get(base + slot)
            if isinstance(held, bytes):
                bits["present"][slot] = True
                frames[slot, rebuild.HEAD :] = np.frombuffer(held, np.uint8)
            elif held in bits:
                bits[held][slot] = True
        return Resolved(frames=frames, **bits)

    def losses(self) -> list[str]:
        return []


@contextmanager
def rebuilt(directory: Path, packs: Packs) -> Iterator[rebuild._Rebuild]:
    make_file(directory / "catalog.db")
    (directory / "scratch").touch()
    with Catalog(directory / "catalog.db") as catalog:
        work = rebuild._Rebuild(catalog, directory / "scratch", [KEY], rebuild.Rebuilt("here"))
        work.look(packs, no_progress)
        work.restore(no_progress)
        work.count_orphans(discard=True)
        work.finish()
        yield work


def described(*places: Extent) -> list[tuple[str, int]]:
    return [(ticket.format(place.first), place.count) for place in places]


@pytest.mark.parametrize("stray", [None, ticket.parse("ZZZZZZZY")])
@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_no_ticket_of_a_manifest_is_given(tmp_path, order, stray):
    """Whichever of its extents lies behind the others, and whatever of it is stored: the manifest alone, here."""
    places = [Extent(FIRST + 7 + i * 2 * rebuild.STRAY_GAP_TICKETS, 2 + i) for i in order]
    about = Manifest(
        version=1, namespace="n", name="a", size=(total(places) - 1) * DATA_SIZE, digest=bytes(32).hex(),
        created=2e9, extents=described(*places),
    )  # fmt: skip
    packs = Packs()
    packs.put_manifest(about, Extent(places[-1].stop - 1, 1))
    if stray:
        packs.put(Extent(stray, 1), bytes(DATA_SIZE))
    with rebuilt(tmp_path, packs) as work:
        assert work.catalog.next_ticket() == max(place.stop for place in places)
        assert len(work.result.problems) == (stray is not None)
        assert len(work.result.incomplete) == 1


def place_of(about: Manifest) -> Extent:
    """Its own, behind the last chunk of the object."""
    count = 2 if about.headers["x"] else 1
    return Extent(about.places[-1].stop - count, count)


def made_at_random(seed: int) -> tuple[Packs, list[Manifest]]:
    """Objects in several places each, of which some lack a chunk, and some have one that is another's, too."""
    chance = random.Random(seed)
    packs, made = Packs(), list[Manifest]()
    pool, at = list[Extent](), FIRST + chance.randrange(PACK_SLOTS)
    while at < FIRST + 3 * PACK_SLOTS:
        pool.append(Extent(at, chance.randint(2, 30)))
        at = pool[-1].stop + chance.choice([0, 1, 40])
    chance.shuffle(pool)
    for version in chance.sample(range(1, 1000), 40):
        if len(pool) < 4:
            break
        long = chance.random() < 0.5  # a manifest of two chunks
        places = [pool.pop() for _ in range(chance.randint(1, 4))]
        if places[-1].count <= 1 + long:
            continue
        if made and chance.random() < 0.1:
            places.insert(0, chance.choice(made).places[0])
        size = (total(places) - 1 - long) * DATA_SIZE - chance.randrange(DATA_SIZE)
        about = Manifest(
            version=version, namespace=chance.choice("mn"), name=chance.choice("abcdefg"), size=size,
            digest=chance.randbytes(32).hex(), created=1e9 + chance.randrange(3),
            order=chance.choice([10**15, 10**15 + 1, 2 * 10**15]),
            headers={"x": "y" * DATA_SIZE * long}, extents=described(*places),
        )  # fmt: skip
        for place in places:
            for index in range(place.first, place.stop):
                packs.held.setdefault(index, b"x" * DATA_SIZE)
        packs.put_manifest(about, place_of(about))
        if chance.random() < 0.5:
            place = chance.choice(places)
            at = chance.choice([place.first, place.stop - 1, chance.randrange(place.first, place.stop)])
            packs.held[at] = chance.choice(ABSENCES)
        made.append(about)
    return packs, made


@pytest.mark.parametrize("seed", range(12))
def test_of_each_name_the_newest_whole_version_comes_back(tmp_path, monkeypatch, seed):
    """And what no object has is an orphan, whichever transaction and page it falls into."""
    monkeypatch.setattr(rebuild, "NAMES_TOGETHER", 3)
    monkeypatch.setattr(rebuild, "USED_TOGETHER", 4)
    packs, made = made_at_random(seed)
    seen = [one for one in made if packs.stored(place_of(one))]
    expected, outdated, lacking = {}, 0, 0
    used = set[int]()
    for key in sorted({(one.namespace, one.name) for one in seen}):
        versions = [one for one in seen if (one.namespace, one.name) == key]
        versions.sort(key=lambda one: (one.order, one.version), reverse=True)
        for number, one in enumerate(versions):
            tickets = {index for place in one.places for index in range(place.first, place.stop)}
            if packs.stored(*one.places) and not tickets & used:
                used |= tickets
                outdated += len(versions) - number - 1
                expected[key] = one
                break
        lacking += expected.get(key) is not versions[0]
    with rebuilt(tmp_path, packs) as work:
        result = work.result
        found = {(one.namespace, one.name): one for one in work.catalog.versions(VersionState.OK)}
        assert found.keys() == expected.keys()
        for key, one in expected.items():
            version = found[key]
            assert (version.number, version.size, version.etag) == (one.version, one.size, one.digest)
            assert (version.extents, version.headers) == (one.places, one.headers)
            assert (version.order, version.saved) == (one.order, max(one.created, float(one.order // 10**6)))
        assert (result.objects, result.bytes) == (len(expected), sum(one.size for one in expected.values()))
        assert (result.outdated, len(result.incomplete), result.problems) == (outdated, lacking, [])
        stored = {index for index, held in packs.held.items() if isinstance(held, bytes)}
        orphans = joined(Extent(index, 1) for index in sorted(stored - used))
        assert (result.chunks, tuple(joined(result.orphans))) == (len(stored), orphans)
        assert joined(item.extent for item in work.catalog.garbage(10**6)) == orphans
        ever = [index + 1 for index, held in packs.held.items() if held != "never"]
        given = max([*ever, *(place.stop for one in seen for place in one.places)])
        assert work.catalog.next_ticket() == given
        with work.catalog.change():
            assert work.catalog.reserve(1)[0] == max(one.version for one in seen) + 1


def laid(packs: Packs, name: str, *places: Extent, chunks: int = 1) -> None:
    """An object whose manifest has so many chunks."""
    about = Manifest(
        version=1, namespace="n", name=name, size=(total(places) - chunks) * DATA_SIZE, digest=bytes(32).hex(),
        created=2e9, headers={"x": "y" * DATA_SIZE * (chunks - 1)}, extents=described(*places),
    )  # fmt: skip
    for place in places:
        for index in range(place.first, place.stop):
            packs.held.setdefault(index, b"x" * DATA_SIZE)
    packs.put_manifest(about, Extent(places[-1].stop - chunks, chunks))


@pytest.mark.parametrize("here", [1, 2, 3])
@pytest.mark.parametrize("lost", [False, True])
def test_a_manifest_goes_on_in_the_next_pack_and_in_no_other(tmp_path, here, lost):
    """``here``: chunks of four in the first of them. ``lost``: the second one, and a third is there."""
    border = sharding.slot_ticket(sharding.ticket_pack(FIRST), 0) + 2 * PACK_SLOTS
    packs = Packs()
    laid(packs, "a", Extent(border - here - 1, 5), chunks=4)
    if lost:
        for index in range(border, border + 4 - here):
            packs.held[index + PACK_SLOTS] = packs.held.pop(index)
    with rebuilt(tmp_path, packs) as work:
        assert (work.result.objects, work.result.unsigned) == (int(not lost), 0)


@pytest.mark.parametrize(
    ("first", "count"), [(-2, 2), (-2, 3), (-1, 7), (0, 1), (2, 1), (4, 1), (4, 3), (5, 2)]
)
def test_no_ticket_is_two_objects(tmp_path, first, count):
    """One of whose extents touches another one's, or has a ticket of it, or all."""
    packs = Packs()
    other = Extent(FIRST + 100, 5)
    laid(packs, "a", other)
    laid(packs, "b", Extent(other.first + first, count), Extent(FIRST + 300, 2))
    apart = first + count <= 0 or first >= other.count
    with rebuilt(tmp_path, packs) as work:
        assert (work.result.objects, len(work.result.incomplete)) == (1 + apart, 1 - apart)
