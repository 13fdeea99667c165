"""A catalog that cannot be made: an error of ours, and nothing stays behind."""

import os
from pathlib import Path

import apsw
import pytest

from ingest.catalog.database import Database, explained
from ingest.errors import ConfigError, DiskError
from ingest.objects.binding import ADVICE


@pytest.mark.parametrize(
    ("name", "error"),
    [("n" * 200, DiskError), (os.fsdecode(b"\xff"), ConfigError)],
    ids=["long", "not-utf-8"],
)
def test_a_catalog_that_cannot_be_made_leaves_nothing(tmp_path, name, error):
    data = tmp_path
    for _ in range(1 if name[0] != "n" else 15):
        data = data / name
    data.mkdir(parents=True)
    with pytest.raises(error):
        Database(data / "catalog.db")
    assert list(data.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [ADVICE, str(explained(apsw.NotADBError("x"), Path("catalog.db")))],
    ids=["another-store", "no-catalog"],
)
def test_advice_about_a_catalog_that_is_there_names_what_replaces_it(text):
    assert "rebuild --replace`" in text
