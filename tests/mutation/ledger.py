"""What was found about each mutant, kept on disk so that a run can be broken off, continued and repeated cheaply.

A mutant that was noticed stays so while its function and the file of the test that noticed it stay as they are; one
that was not is tried again once any test of the core has changed.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.mutation.mutants import Mutant
from tests.mutation.reach import ROOT

CACHE: Final = ROOT / ".mutation.json"
FOLDER: Final = "tests/unit/domain"


class Ledger:
    """What is known of all modules: by mutant, what was around it, who noticed it (``None``: nobody), and its basis."""

    def __init__(self) -> None:
        self._tried: dict[str, dict[str, list[Any]]] = json.loads(CACHE.read_text()) if CACHE.exists() else {}

    def knows(self, module: str, mutant: Mutant) -> bool:
        """Return whether trying a mutant again would say the same."""
        if not self.tried(module, mutant):
            return False
        _, by, basis = self._tried[module][mutant.key]
        return bool(basis == _basis(by))

    def tried(self, module: str, mutant: Mutant) -> bool:
        """Return whether a mutant was tried since its function is as it is."""
        found = self._tried.get(module, {}).get(mutant.key)
        return found is not None and found[0] == _hash(mutant.around.encode())

    def survives(self, module: str, mutant: Mutant) -> bool:
        """Return whether a mutant was tried and no test noticed it."""
        return self.tried(module, mutant) and self._tried[module][mutant.key][1] is None

    def note(self, module: str, mutant: Mutant, by: str | None) -> None:
        """Keep what was found."""
        self._tried.setdefault(module, {})[mutant.key] = [_hash(mutant.around.encode()), by, _basis(by)]

    def save(self, module: str, mutants: Sequence[Mutant]) -> None:
        """Write everything down, without mutants that a module has no more."""
        keys = {mutant.key for mutant in mutants}
        self._tried[module] = {key: found for key, found in self._tried.get(module, {}).items() if key in keys}
        CACHE.write_text(json.dumps(self._tried))


@functools.cache
def _basis(by: str | None) -> str:
    if by is None:
        return _hash(*(path.read_bytes() for path in sorted((ROOT / FOLDER).glob("*.py"))))
    file: Path = ROOT / by.split("::")[0]
    return _hash(file.read_bytes()) if file.is_file() else ""


def _hash(*texts: bytes) -> str:
    return hashlib.sha256(b"".join(texts)).hexdigest()[:12]
