from typing import Any

import pytest

from lab.audit import verdict

FINE = {"name": "kopf", "version": "1", "vulns": []}
UNKNOWN = {"name": "yarl", "skip_reason": "Dependency not found on PyPI and could not be audited: yarl (1)"}
BAD = {"name": "aiohttp", "version": "3", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3.1"]}]}


@pytest.mark.parametrize(
    ("packages", "strict", "lenient", "word"),
    [
        ([FINE], 0, 0, "no known"),
        ([FINE, BAD], 1, 1, "aiohttp 3: PYSEC-1, fixed in 3.1"),
        ([UNKNOWN, BAD], 1, 1, "PYSEC-1"),
        ([FINE, UNKNOWN], 2, 0, "about yarl"),
        (None, 2, 0, "about all dependencies"),
    ],
)
def test_a_known_vulnerability_fails_and_silence_is_not_taken_for_health(
    packages: list[dict[str, Any]] | None, strict: int, lenient: int, word: str
) -> None:
    report = None if packages is None else {"dependencies": packages}
    assert verdict(report, lenient=False)[0] == strict
    status, words = verdict(report, lenient=True)
    assert status == lenient
    assert word in words
