"""The gate's own questions, asked ten times a second: the first moment at which anybody could have known.

The operator asks when a block of its grid is complete. This asks all the time, for everything from the beginning of
the same grid until now, with the shipped queries, the shipped reading of their answers and the shipped gates. Evidence
is weighed block by block, so what was counted is cut where the operator's blocks end; the newest may be incomplete.
What is between its first Fail that stood and weight 0 on the API server is the operator's own doing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Final, Protocol, Self

import requests

from canaryrollout.adapters.prometheus_counts import BadAnswer, milliseconds_of, read_block, rows_of
from canaryrollout.adapters.prometheus_queries import Labels, durations_query, requests_query
from canaryrollout.adapters.rollouts import rollout_of
from canaryrollout.api.status import Counts, Verdict
from canaryrollout.domain.evidence import Block, Evidence, EvidenceRequest, after, total
from canaryrollout.domain.gates import judge
from canaryrollout.domain.needs import needs
from canaryrollout.domain.results import Judgement
from canaryrollout.domain.settings import DomainSettings
from canaryrollout.engine.ports import Rollout
from lab.demo.watch import ROLLOUT

PERIOD_SECONDS: Final = 0.1
LABELS: Final = Labels()


@dataclass(frozen=True, slots=True)
class Breach:
    """The first Fail of a canary that later looks did not take back.

    Attributes:
        at: For when the queries that gave it were asked, in seconds since the epoch.
        message: What the gate said.
        pause: How long before nobody had asked, in seconds: the breach may have been visible for so long.
    """

    at: float
    message: str
    pause: float = 0.0


class Knows(Protocol):
    """Knows the newest version of an object, as `lab.demo.watch.Witness` does."""

    def latest(self, kind: str, name: str) -> Mapping[str, Any] | None:
        """The newest version of an object; ``None`` where there is none."""
        ...


class Replay:
    """Asks from ``with`` to the end of its block, or until `stop`, in a thread of its own.

    Args:
        prometheus_url: Base URL of Prometheus.
        witness: Knows the present state of the rollout.
        name: Name of the CanaryRollout.
        scrape_interval: How often Prometheus scrapes, as the operator is told.
        settings: The times that the operator is told.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        prometheus_url: str,
        witness: Knows,
        name: str,
        *,
        scrape_interval: timedelta,
        settings: DomainSettings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._url = f"{prometheus_url}/api/v1/query"
        self._witness = witness
        self._name = name
        self._scrape_interval = scrape_interval
        self._settings = settings
        self._clock = clock
        self._session = requests.Session()
        self._session.trust_env = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="replay", daemon=True)
        self._asked_at: float | None = None
        self._cut = Cut()
        self.breaches: dict[str, Breach] = {}
        self.judgement: Judgement | None = None
        self.problems: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ask nothing more."""
        self._stopping.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                self.look()
            except (requests.RequestException, BadAnswer, KeyError, ValueError) as error:
                self.problems.append(f"{type(error).__name__}: {error}")
            self._stopping.wait(max(0.0, PERIOD_SECONDS - (time.monotonic() - started)))

    def look(self) -> None:
        """Judge everything up to now, if a canary has traffic."""
        document = self._witness.latest(ROLLOUT, self._name)
        rollout = rollout_of(document) if document is not None else None
        now = self._clock()
        question = _question(rollout, now, self._settings) if rollout is not None else None
        if rollout is None or rollout.spec is None or question is None:
            self._asked_at = self.judgement = None
            return
        record = rollout.status.rollout
        assert record is not None
        evidence = Evidence(question, self._cut.take(self._block(question), rollout.spec.analysis.interval))
        self.judgement = judge(
            rollout.spec.analysis, evidence, weight=record.weight, finished=record.finished, baseline=record.baseline
        )
        self._note(record.version, now)

    def _note(self, canary: str, now: float) -> None:
        pause = 0.0 if self._asked_at is None else now - self._asked_at
        self._asked_at = now
        if self.judgement is not None and self.judgement.verdict is Verdict.FAIL:
            self.breaches.setdefault(canary, Breach(now, self.judgement.message, pause))
        else:
            self.breaches.pop(canary, None)

    def _block(self, request: EvidenceRequest) -> Block:
        """Everything from the start of the grid until now, as one block."""
        end, labels = request.start + request.interval, LABELS
        texts = [requests_query([request], request.interval, labels, self._scrape_interval)]
        if request.slow_above is not None:
            texts.append(durations_query([request], request.interval, labels, self._scrape_interval))
        at = milliseconds_of(end)
        rows = []
        for text in texts:
            data = self._ask(text, at)
            rows.append(rows_of(data["resultType"], data["result"]).get(at, ()))
        return read_block(request, labels, request.start, end, rows[0], rows[1] if len(rows) > 1 else ()).block

    def _ask(self, query: str, at: int) -> dict[str, Any]:
        answer = self._session.post(self._url, data={"query": query, "time": f"{at / 1000:.3f}"}, timeout=5)
        answer.raise_for_status()
        data: dict[str, Any] = answer.json()["data"]
        return data


class Cut:
    """Cuts what was counted since the start where the operator's blocks end: at the first look after each of them."""

    def __init__(self) -> None:
        self._complete: list[Block] = []

    def take(self, whole: Block, interval: timedelta) -> tuple[Block, ...]:
        """Return the blocks of everything counted so far, the newest of which may be incomplete.

        Args:
            whole: What was counted from the start until now; an earlier start begins anew.
            interval: The distance of the points of the operator's grid.
        """
        if self._complete and self._complete[0].start != whole.start:
            self._complete = []
        newest = _beyond(whole, self._complete)
        if after(newest.start, interval) > newest.end:
            return (*self._complete, newest)
        self._complete.append(newest)
        return tuple(self._complete)


def _beyond(whole: Block, known: Sequence[Block]) -> Block:
    """Return what was counted since the end of the known blocks."""
    if not known:
        return whole
    return replace(
        whole,
        start=known[-1].end,
        canary=_less(whole.canary, total(tuple(block.canary for block in known))),
        stable=_less(whole.stable, total(tuple(block.stable for block in known))),
        unreached=max(0, whole.unreached - sum(block.unreached for block in known)),
    )


def _less(counts: Counts, known: Counts) -> Counts:
    return Counts(
        requests=max(0, counts.requests - known.requests),
        errors=max(0, counts.errors - known.errors),
        timed=max(0, counts.timed - known.timed),
        slow=max(0, counts.slow - known.slow),
    )


def _question(rollout: Rollout, now: float, settings: DomainSettings) -> EvidenceRequest | None:
    """The operator's own question about the weight in force, with a block that ends now; ``None`` where it has none."""
    record = rollout.status.rollout
    if rollout.spec is None or record is None or record.reason or record.target is not None:
        return None
    end = datetime.fromtimestamp(round(now, 3), UTC)
    asked = needs(rollout.spec, rollout.status, rollout.identity, end, settings).evidence
    if asked is None:
        return None
    start = max(asked.start, record.in_effect_at or asked.start)
    return replace(asked, start=start, interval=end - start) if end - start >= timedelta(milliseconds=1) else None
