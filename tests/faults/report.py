"""The page on reliability: every fault that tests inject, how often, and what was seen, as the last runs left it.

``python -m tests.faults.report`` takes over what runs have put down in ``lab/out/faults.json``, test by test, into
``docs/reliability.json``, and writes ``docs/reliability.md`` from it. A test that did not run keeps the rows of its
last run, with the day of it; one that does not exist any more loses them; one that failed is shown as failed. `make
faults` ends with it.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from lab.paths import REPO_DIR
from tests.faults.rows import RESULTS, Outcome, Record, Records, read, write

KEPT: Final = REPO_DIR / "docs" / "reliability.json"
PAGE: Final = REPO_DIR / "docs" / "reliability.md"

SECTIONS: Final[Mapping[str, str]] = {
    "Kill at every write": r"kill",
    "API server": r"api_?server|outage",
    "Mesh writes": r"mesh|webhook|istiod|control_plane|virtual_?service",
    "Prometheus": r"prometheus|metrics|provider",
    "Endpoints": r"endpoint|ready|replica|canary",
    "Drift": r"drift|gitops|contest|edit",
    "Change of mind": r"mind|change",
    "Deletion": r"delet|uninstall|finalizer",
    "Neighbors": r"neighbo|two_|rival|invalid|same_host|one_host|side",
    "High availability": r"lead|elect|availab|lease|standby|replicas|fenc",
    "Time": r"clock|time|stopped|suspend",
    "Security": r"secur|hostile|tenant|right|demo",
}
"""Sections of the page, and what the name of a test's file has in it. Listed by the order of the page."""

_ORDER: Final = (
    *("Kill at every write", "Prometheus", "API server", "High availability", "Deletion", "Drift", "Change of mind"),
    *("Neighbors", "Time", "Endpoints", "Mesh writes", "Security"),
)
"""Order in which the words of sections are looked for, so that the narrower one is found first."""

INTRODUCTION: Final = """\
# Reliability

What was injected into running rollouts, how often, and what was seen. Written by `make faults` (`python -m
tests.faults.report` writes it anew from the last runs); do not edit. Each row is left behind by a test that fails
where the promise of the row is broken, and says on which day it last ran. Rows called *full* run in `make faults`
alone; *quick* ones in `make test` too.

**What is real.** The operator is a process of its own, as a user starts it, with the rights of its Role. The API
server is a kube-apiserver with etcd and the CRDs of Istio; in tests of its outages and of high availability the
operator is elected by a Lease. Evidence is asked of a real Prometheus. Rows from `tests/mesh` (istiod stopped, a
breach in the demo) run on istiod, Envoy and Prometheus under load.

**What is a stand-in.** Between operator and API server stands a proxy (`lab/faultproxy`) that delays, drops, cuts,
hangs, answers errors, and kills or stops the operator at a request. In `tests/faults` requests are counters: an
exporter that Prometheus scrapes splits 200 requests a second as the VirtualService says at that moment, and lets a
version fail when a test says so. Endpoints are WorkloadEntries without a workload. Times of a rollout are short
(intervals of one or two seconds, no hold), so that whole lives can be repeated hundreds of times.

**What can be lost.** A rollback writes the mesh before it writes status, so a kill between the two takes its reason
along. The next operator finds a failed gate again in the evidence, once all the traffic is back. Where a
VirtualService was not reached it finishes the rollback at once instead, and where nothing tells any more (endpoints
that are ready again) the reason is `RollbackResumed`.
"""


def section_of(test: str) -> str:
    """Return the section of a test, by the name of its file; a file that fits none has a section of its own."""
    stem = Path(test.partition("::")[0]).stem.removeprefix("test_")
    for section in _ORDER:
        if re.search(SECTIONS[section], stem):
            return section
    return stem.replace("_", " ").capitalize()


def existing(records: Records, root: Path = REPO_DIR) -> Records:
    """Return the records of tests that pytest still finds, with these very cases; all where it cannot tell."""
    files = sorted({path for test in records if (root / (path := test.partition("::")[0])).is_file()})
    if not files:
        return {}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if found.returncode:
        return {test: record for test, record in records.items() if test.partition("::")[0] in files}
    tests = set(found.stdout.splitlines())
    return {test: record for test, record in records.items() if test in tests}


def merged(records: Records, newer: Records) -> Records:
    """Return records with newer ones in their places; results of a day before that of the record are old ones."""
    told = {test: record for test, record in newer.items() if record.rows or record.problem}
    return records | {test: new for test, new in told.items() if test not in records or new.day >= records[test].day}


def page(records: Records) -> str:
    """Return the page on these records."""
    lines = [INTRODUCTION, _summary(records)]
    found = {test: section_of(test) for test in sorted(records)}
    sections = [*SECTIONS, *sorted(set(found.values()) - set(SECTIONS))]
    for section in sections:
        rows = [row for test, of in found.items() if of == section for row in _rows(test, records[test])]
        if rows:
            lines += [f"\n## {section}\n", "| fault | injected | times | seen | run |", "|---|---|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _summary(records: Records) -> str:
    if not records:
        return "Nothing has run yet."
    count = sum(max(1, len(record.rows)) for record in records.values())
    times = sum(row.times for record in records.values() for row in record.rows)
    failed = sum(record.outcome is Outcome.FAILED for record in records.values())
    known = sum(record.outcome is Outcome.KNOWN for record in records.values())
    days = sorted({record.day for record in records.values()})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    verdict = f"**{failed} of them failed**" if failed else "all of them passed"
    if known and not failed:
        verdict = "none of them failed"
    if known:
        verdict += f", {known} are known not to hold"
    return f"{count} rows of {len(records)} tests, {times} injections, last run {when}; of the tests {verdict}."


def _rows(test: str, record: Record) -> Iterator[str]:
    run = f"{'full' if record.full else 'quick'}, {record.day}"
    trouble = "" if record.outcome is Outcome.PASSED else f"**{record.outcome}**: {record.problem}"
    if not record.rows:
        yield _line(_spoken(test), "", "", trouble, run)
    for row in record.rows:
        seen = f"{row.seen}; {trouble}" if trouble else row.seen
        yield _line(row.fault, row.injected, str(row.times), seen, run)
        trouble = trouble and f"**{record.outcome}**: see above"


def _spoken(test: str) -> str:
    """Return the name of a test in words."""
    name, _, case = test.rpartition("::")[2].partition("[")
    words = name.removeprefix("test_").replace("_", " ")
    return f"{words} ({case.removesuffix(']')})" if case else words


def _line(*cells: str) -> str:
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(text: str) -> str:
    """Return a text as a cell of a table: on one line, with nothing that a table or HTML would take for its own."""
    flat = " ".join(text.split()).replace("|", "\\|")
    return flat.replace("<", "&lt;")


def main() -> None:
    """Take over the results of runs, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("results", nargs="*", type=Path, default=[RESULTS], help="results of runs, newest last")
    records = read(KEPT)
    for path in parser.parse_args().results:
        records = merged(records, read(path))
    records = existing(records)
    write(KEPT, records)
    PAGE.write_text(page(records))
    print(f"{PAGE.relative_to(REPO_DIR)}: {_summary(records)}")


if __name__ == "__main__":
    main()
