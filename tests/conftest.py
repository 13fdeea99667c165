"""What all tests share: the golden values of the contract."""

import json
from pathlib import Path
from typing import Any

import pytest

VECTORS = Path(__file__).parent / "vectors" / "contract.json"


@pytest.fixture(scope="session")
def contract() -> dict[str, Any]:
    """`tests/vectors/contract.json`, made outside of this program from the contract."""
    return json.loads(VECTORS.read_text())
