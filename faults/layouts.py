"""The layouts that parts of the proof go through, one after the other."""

from ingest.store.store import LAYOUTS

__all__ = ["LAYOUTS"]
