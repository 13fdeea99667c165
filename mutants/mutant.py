"""What a mutant is: replacements in the source, and the tests that must fail because of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Edit:
    """`search` stands exactly once in the files below the root that match the glob `path`."""

    path: str
    search: str
    replacement: str

    def find(self, root: Path) -> Path:
        """The file that has it. ValueError when it is not there exactly once."""
        found = [
            path for path in sorted(root.glob(self.path)) for _ in range(path.read_text().count(self.search))
        ]
        if len(found) != 1:
            raise ValueError(f"{self.search!r} is {len(found)} times in {self.path}, and must be there once")
        return found[0]

    def apply(self, root: Path) -> Path:
        """Replaces it; returns the file."""
        path = self.find(root)
        path.write_text(path.read_text().replace(self.search, self.replacement))
        return path


@dataclass(frozen=True)
class Mutant:
    """A deliberate fault. `killed_by`: ids of pytest, of which at least one must fail by an assertion, none by an error."""

    name: str
    fault: str
    edits: tuple[Edit, ...]
    killed_by: tuple[str, ...]
