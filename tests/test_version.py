"""What must be true of a name, and what may be a name."""

import pytest

from ingest.catalog.extent import FIRST, Extent
from ingest.catalog.version import (
    ABSENT,
    ANY,
    PRESENT,
    SAME,
    Condition,
    Version,
    VersionState,
    check_name,
    check_namespace,
)
from ingest.errors import NameTakenError, NotFoundError, PreconditionError, UsageError

DIGEST = bytes(range(32))
HERE = Version(1, "store", "a", VersionState.OK, 3, DIGEST, 0.0, (Extent(FIRST + 1, 2),))
TAG = DIGEST.hex()


def test_a_version_is_known_by_its_first_ticket_and_its_digest():
    assert HERE.object_id == "00000001"
    assert HERE.etag == TAG


@pytest.mark.parametrize(
    ("condition", "absent", "present"),
    [
        (ANY, None, None),
        (ABSENT, None, NameTakenError),
        (PRESENT, NotFoundError, None),
        (Condition(etags=frozenset([TAG])), PreconditionError, None),
        (Condition(etags=frozenset(["other"])), PreconditionError, PreconditionError),
        (Condition(etags=frozenset(["*"])), PreconditionError, None),
        (Condition(none_of=frozenset([TAG])), None, PreconditionError),
        (Condition(none_of=frozenset(["other"])), None, None),
        (Condition(none_of=frozenset(["*"])), None, PreconditionError),
        (Condition(exists=True, etags=frozenset([TAG])), NotFoundError, None),
        (Condition(exists=False, none_of=frozenset(["*"])), None, PreconditionError),
    ],
)
def test_conditions(condition, absent, present):
    for version, expected in ((None, absent), (HERE, present)):
        if expected is None:
            condition.check("a", version)
        else:
            with pytest.raises(expected):
                condition.check("a", version)


def test_the_same_bytes_again():
    SAME.check("a", None, DIGEST)
    SAME.check("a", HERE, DIGEST)
    SAME.check("a", HERE)  # not known yet
    with pytest.raises(NameTakenError):
        SAME.check("a", HERE, bytes(32))


@pytest.mark.parametrize(
    "name", ["a", "\0", "/../..", "\N{SNOWMAN}" * 341, "x" * 1024, "\U0010ffff", "a\nb", " "]
)
def test_any_characters_may_be_in_a_name(name):
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "x" * 1025, "\N{SNOWMAN}" * 342, "\ud800"])
def test_what_is_no_name(name):
    with pytest.raises(UsageError):
        check_name(name)


@pytest.mark.parametrize("name", ["", "x" * 65, "\udfff"])
def test_what_is_no_namespace(name):
    with pytest.raises(UsageError):
        check_namespace(name)
