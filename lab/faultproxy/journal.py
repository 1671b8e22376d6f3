"""What went through the proxy, request by request: what tests reason from, and what the command prints."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from lab.faultproxy.calls import Call

_HIDDEN_IN_JSON: Final = ("body",)


@dataclass(frozen=True, slots=True)
class Entry:
    """One request.

    Attributes:
        number: Requests are numbered from 1 as they arrive.
        at: When it arrived, in seconds since the epoch.
        call: What it asks for.
        rule: The rule that disturbed it, as written; empty where none did.
        code: HTTP status that the client was given; ``None`` where it was given none.
        upstream: HTTP status that the API server answered with; ``None`` while and where it was not asked.
        seconds: How long it took, or has taken a watch; ``None`` while it is under way.
        version: The resourceVersion in the API server's answer to a write; empty elsewhere.
        body: A write's content, as JSON; ``None`` elsewhere.
        events: How many events of a watch were passed on.
    """

    number: int
    at: float
    call: Call
    rule: str = ""
    code: int | None = None
    upstream: int | None = None
    seconds: float | None = None
    version: str = ""
    body: Any = None
    events: int = 0

    @property
    def applied(self) -> bool:
        """Whether it is a write that the API server did."""
        return self.call.writes and self.upstream is not None and self.upstream < 300

    def as_line(self) -> str:
        """For people: time, number, what, codes, how long, and which rule."""
        time = datetime.fromtimestamp(self.at, UTC).strftime("%H:%M:%S.%f")[:-3]
        call = self.call
        where = "/".join(filter(None, (call.namespace, call.name)))
        code = "---" if self.code is None else str(self.code)
        if self.upstream not in (None, self.code):
            code += f" (API server: {self.upstream})"
        took = "under way" if self.seconds is None else f"{self.seconds * 1000:.0f} ms"
        events = f" {self.events} events" if call.verb == "watch" else ""
        rule = f"  <- {self.rule}" if self.rule else ""
        return f"{time} {self.number:>5} {' '.join(filter(None, (call.kind, where)))}: {code}, {took}{events}{rule}"

    def as_json(self) -> str:
        """One line of JSON, the content of writes left out."""
        fields = {key: value for key, value in asdict(self).items() if key not in _HIDDEN_IN_JSON}
        return json.dumps(fields | fields.pop("call"))


class Journal:
    """All entries; written by the proxy and read by whoever wants, from any thread.

    Args:
        on_entry: Called with each entry when its request ends, and with that of a watch when it begins, too.
    """

    def __init__(self, on_entry: Callable[[Entry], None] | None = None) -> None:
        self._on_entry = on_entry
        self._lock = threading.Lock()
        self._entries: dict[int, Entry] = {}

    def begin(self, at: float, call: Call, rule: str) -> int:
        """Note a request that arrived, and return its number."""
        with self._lock:
            number = len(self._entries) + 1
            self._entries[number] = Entry(number, at, call, rule)
        return number

    def change(self, number: int, **fields: Any) -> Entry:
        """Note more about it."""
        with self._lock:
            entry = self._entries[number] = replace(self._entries[number], **fields)
        return entry

    def tell(self, number: int) -> None:
        """Hand an entry to ``on_entry``."""
        if self._on_entry is not None:
            self._on_entry(self._entries[number])

    def entries(self, matches: Callable[[Call], bool] | None = None, since: int = 0) -> list[Entry]:
        """Entries so far, oldest first, those under way among them.

        Args:
            matches: Which calls; all where ``None``.
            since: Only those with a higher number.
        """
        with self._lock:
            found = list(self._entries.values())
        return [entry for entry in found if entry.number > since and (matches is None or matches(entry.call))]
