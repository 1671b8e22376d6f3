"""Rules: which requests are disturbed, and how; written as one line of text, on the command line and in tests alike.

A rule is ``[verbs] [resource] [conditions] effect [details]``, in words::

    patch virtualservices n=3 kill-after pid=1234
    write * from=5s for=30s answer=503
    watch canaryrollouts gone
    get,list endpointslices every=2 delay=3s
    patch canaryrollouts/status name=reviews n=2-4 answer=409 message=nope

Every rule counts the requests it matches; of several that would act on one request, the first does.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from lab.errors import LabError
from lab.faultproxy.calls import READS, WRITES, Call
from lab.process import Record

GRAMMAR: Final = """\
[verbs] [resource] [conditions] effect [details]

verbs       by comma: get list watch create update patch delete; `read`, `write` or `*` for many
resource    plural, with its subresource: virtualservices, canaryrollouts/status, leases; `*` for any
conditions  name=REGEX namespace=NAME path=REGEX method=METHOD
            n=3 (the third that matches), n=3-5, n=3-, every=2
            from=10s for=30s (since the rule was made; what comes earlier or later is not counted)
effects     delay=2s          answer late
            hang              do not answer until the rule ends, or the client gives up; then go on
            drop              close the connection before an answer
            cut, cut=100      close it in the middle of the answer (after so many bytes; a watch: after so many events)
            answer=503        answer this; details: reason=WORD message=TEXT retry-after=SECONDS
            gone              end a watch with 410 Expired
            kill, stop        SIGKILL or SIGSTOP the process named by pid=NUMBER; stop=5s keeps the request so long
            These act before the request is forwarded. With `-after` (kill-after, drop-after, answer-after=504, ...)
            they act once the API server has done what was asked, and before the client hears of it.
            A watch that runs when its rule begins is cut or gone at that moment; `hang` silences it meanwhile.
"""

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m)?")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, None: 1.0}
_AFTER: Final = "-after"
_GROUPS: Final = {"read": READS, "write": WRITES, "*": frozenset[str]()}
_VERBS: Final = READS | WRITES


class RuleError(LabError):
    """A rule makes no sense; the message says which word, and what would."""


class Fault(StrEnum):
    """What can be done to a request."""

    DELAY = "delay"
    HANG = "hang"
    DROP = "drop"
    CUT = "cut"
    ANSWER = "answer"
    GONE = "gone"
    KILL = "kill"
    STOP = "stop"


_EITHER_SIDE: Final = frozenset({Fault.DELAY, Fault.HANG, Fault.DROP, Fault.ANSWER, Fault.KILL, Fault.STOP})
_ON_PROCESSES: Final = frozenset({Fault.KILL, Fault.STOP})
Process = Callable[[], int | None]
"""Gives the id of the process to signal, when it comes to that; ``None`` while there is none."""


@dataclass(frozen=True, slots=True)
class Match:
    """Which requests; what is empty matches all.

    Attributes:
        verbs: Verbs.
        resource: Plural, with subresource.
        name: What the whole name of the object looks like.
        namespace: Namespace.
        path: What is to be found in the path.
        method: HTTP method.
    """

    verbs: frozenset[str] = frozenset()
    resource: str = ""
    name: re.Pattern[str] | None = None
    namespace: str = ""
    path: re.Pattern[str] | None = None
    method: str = ""

    def __call__(self, call: Call) -> bool:
        """Whether a request is meant."""
        return (
            (not self.verbs or call.verb in self.verbs)
            and self.resource in ("", call.resource)
            and self.namespace in ("", call.namespace)
            and self.method in ("", call.method)
            and (self.name is None or self.name.fullmatch(call.name) is not None)
            and (self.path is None or self.path.search(call.path) is not None)
        )


@dataclass(frozen=True, slots=True)
class When:
    """Which of the requests that match.

    Attributes:
        first: Number of the first, from 1.
        last: Number of the last; ``None`` for all that follow.
        every: Of those, every so many.
        start: Seconds from the making of the rule until it begins.
        seconds: For how long; ``None`` for ever.
    """

    first: int = 1
    last: int | None = None
    every: int = 1
    start: float = 0.0
    seconds: float | None = None

    def open(self, age: float) -> bool:
        """Whether a rule of this age (seconds) is in force."""
        return self.start <= age and (self.seconds is None or age < self.start + self.seconds)

    def hits(self, number: int) -> bool:
        """Whether the request of this number is meant."""
        past = self.last is not None and number > self.last
        return number >= self.first and not past and (number - self.first + 1) % self.every == 0


@dataclass(frozen=True, slots=True)
class Effect:
    """What is done.

    Attributes:
        fault: What.
        after: Whether the API server gets the request first.
        seconds: How long it takes; ``None`` where it has no end, or takes no time.
        size: For `Fault.CUT`: bytes, or events of a watch, that still arrive; ``None`` for half of the body, no event.
        code: For `Fault.ANSWER`: HTTP status.
        reason: Likewise, the Status' word.
        message: Likewise, its text.
        retry_after: Likewise, the header's seconds.
        process: For `Fault.KILL` and `Fault.STOP`: whom.
    """

    fault: Fault
    after: bool = False
    seconds: float | None = None
    size: int | None = None
    code: int = 0
    reason: str = ""
    message: str = ""
    retry_after: int | None = None
    process: Process | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """A fault and its occasions; ``text`` is how it was written."""

    match: Match
    when: When
    effect: Effect
    text: str = ""


def parse(text: str, process: Process | None = None) -> Rule:
    """Read a rule, see `GRAMMAR`.

    Args:
        text: The rule.
        process: Whom to kill or stop, where the text has no ``pid``.

    Raises:
        RuleError: It makes no sense.
    """
    words = _Words(text)
    try:
        verbs = words.verbs()
        match = Match(
            verbs=verbs,
            resource=words.resource(),
            name=words.pattern("name"),
            namespace=words.take("namespace") or "",
            path=words.pattern("path"),
            method=(words.take("method") or "").upper(),
        )
        when = words.when()
        effect = words.effect(process)
    except ValueError as error:
        raise RuleError(f"the rule {text!r} makes no sense: {error}") from None
    if rest := words.left():
        raise RuleError(f"the rule {text!r} makes no sense: {', '.join(rest)} means nothing here\n\n{GRAMMAR}")
    return Rule(match, when, effect, text)


def seconds(text: str) -> float:
    """Read a duration: ``250ms``, ``3s``, ``2m``, or a number of seconds; raises `ValueError`."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no duration; write 250ms, 3s or 2m")
    return float(found[1]) * _UNITS[found[2]]


class _Words:
    """The words of a rule, taken one by one."""

    def __init__(self, text: str) -> None:
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise RuleError(f"the rule {text!r} makes no sense: {error}") from None
        self._plain = [word for word in words if "=" not in word]
        self._valued = dict(word.split("=", 1) for word in words if "=" in word)

    def left(self) -> list[str]:
        return [*self._plain, *(f"{key}={value}" for key, value in self._valued.items())]

    def take(self, key: str) -> str | None:
        return self._valued.pop(key, None)

    def pattern(self, key: str) -> re.Pattern[str] | None:
        text = self.take(key)
        if text is None:
            return None
        try:
            return re.compile(text)
        except re.error as error:
            raise ValueError(f"{key}={text} is no regular expression: {error}") from None

    def verbs(self) -> frozenset[str]:
        if not self._plain:
            return frozenset()
        verbs = self._plain[0].split(",")
        if not all(verb in _VERBS or verb in _GROUPS for verb in verbs):
            return frozenset()
        del self._plain[0]
        return frozenset[str]() if "*" in verbs else frozenset(_expanded(verbs))

    def resource(self) -> str:
        if not self._plain or _effect_name(self._plain[0]) is not None:
            return ""
        word = self._plain.pop(0)
        if word != "*" and re.fullmatch(r"[a-z]+(/[a-z]+)?", word) is None:
            raise ValueError(f"{word!r} is neither a verb, nor a resource (its plural, lower case), nor an effect")
        return "" if word == "*" else word

    def when(self) -> When:
        first, last = _span(self.take("n") or "1-")
        every = int(self.take("every") or 1)
        if first < 1 or every < 1 or (last is not None and last < first):
            raise ValueError("n and every count from 1, upwards")
        lasts = self.take("for")
        return When(first, last, every, seconds(self.take("from") or "0"), None if lasts is None else seconds(lasts))

    def effect(self, process: Process | None) -> Effect:
        name, value = self._effect()
        fault = Fault(name.removesuffix(_AFTER))
        after = name.endswith(_AFTER)
        if after and fault not in _EITHER_SIDE:
            raise ValueError(f"{fault} cannot come {_AFTER[1:]}; it is always made of the API server's own answer")
        timed = fault in (Fault.DELAY, Fault.STOP)
        pid = self.take("pid")
        retry_after = self.take("retry-after")
        effect = Effect(
            fault,
            after,
            seconds=seconds(value) if timed and value else None,
            size=int(value) if fault is Fault.CUT and value else None,
            code=int(value) if fault is Fault.ANSWER else 0,
            reason=self.take("reason") or "",
            message=self.take("message") or "",
            retry_after=None if retry_after is None else int(retry_after),
            process=process if pid is None else _pinned(int(pid)),
        )
        if fault in _ON_PROCESSES and effect.process is None:
            raise ValueError(f"{fault} needs pid=NUMBER")
        if fault is Fault.DELAY and effect.seconds is None:
            raise ValueError("delay needs a duration, as in delay=2s")
        if fault is Fault.ANSWER and not 400 <= effect.code <= 599:
            raise ValueError(f"answer={value} is no error; write 400 to 599")
        return effect

    def _effect(self) -> tuple[str, str]:
        found = [(word, "") for word in self._plain if _effect_name(word)]
        found += [(key, value) for key, value in self._valued.items() if _effect_name(key)]
        if len(found) != 1:
            names = ", ".join(word for word, _ in found) or "none"
            raise ValueError(f"it needs one effect and has {names}; effects are {', '.join(Fault)}")
        name, value = found[0]
        if name in self._valued:
            del self._valued[name]
        else:
            self._plain.remove(name)
        return name, value


def _effect_name(word: str) -> Fault | None:
    name = word.removesuffix(_AFTER)
    return Fault(name) if name in Fault._value2member_map_ else None


def _expanded(verbs: Iterable[str]) -> Iterator[str]:
    for verb in verbs:
        yield from _GROUPS.get(verb, (verb,))


def _span(text: str) -> tuple[int, int | None]:
    first, dash, last = text.partition("-")
    if not dash:
        return int(first), int(first)
    return int(first), int(last) if last else None


def _pinned(pid: int) -> Process:
    """Name this very process: should its id pass to another one later, nobody is named."""
    record = Record.of(pid)
    if record is None:
        raise ValueError(f"pid={pid}: there is no such process")
    return lambda: pid if record.alive() else None
