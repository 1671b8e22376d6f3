import io
import json
import logging
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog
from hypothesis import example, given
from hypothesis import strategies as st

from canaryrollout.adapters.events import event_body
from canaryrollout.adapters.rollouts import LONGEST_COMMAND, rollout_of, status_patch
from canaryrollout.api.problems import problems
from canaryrollout.api.spec import CanaryRolloutSpec
from canaryrollout.api.status import CanaryRolloutStatus, Condition, HistoryEntry
from canaryrollout.api.text import LONGEST, LONGEST_EVENT, plain
from canaryrollout.domain.decide import decide_invalid
from canaryrollout.domain.decision import Decision, Event
from canaryrollout.domain.observation import Identity
from canaryrollout.engine.ports import Rollout
from canaryrollout.shell.logs import configure
from canaryrollout.shell.settings import LogFormat, LogLevel

NOW = datetime(2026, 1, 1, tzinfo=UTC)
IDENTITY = Identity("shop", "reviews", "u", 1, NOW, False, False, "")
HOSTILE = "\x1b[2J\x1b]0;owned\x07 a\r\nlevel=error b\u202e\u200b\u2066\ufeff\x00\x9b31m\u2028\ud800 \U000e0041"
HOSTILE += "\ufe0f\U000e0100\u3164"
"""Colors, a window's title, a second line, a turn of direction, nothing to see, half a character, an invisible tag, and
what has no shape of its own: selectors of variants, in which whole texts can be hidden, and a filler."""
any_text = st.text(st.characters(), max_size=50) | st.text(st.sampled_from(HOSTILE), min_size=1)


def harmless(text: str) -> bool:
    """Whether no character controls, hides or turns anything; an independent account of what `plain` promises."""
    return not any(
        unicodedata.category(char) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
        or "VARIATION SELECTOR" in (name := unicodedata.name(char, ""))
        or name.endswith((" FILLER", "BLANK"))
        for char in text
    )


@given(any_text, st.integers(16, 300))
@example(HOSTILE, 64)
@example("\x1b" * 5000, 1024)
def test_what_is_plain_is_harmless_short_and_stays(text: str, longest: int) -> None:
    shown = plain(text, longest)
    assert harmless(shown)
    assert len(shown) <= longest
    assert plain(shown, longest) == shown
    shown.encode()  # a lone half of a pair would not go through


@given(st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=100))
def test_what_is_harmless_is_shown_as_it_is(text: str) -> None:
    assert plain(text) == text


@given(any_text)
@example(HOSTILE)
def test_events_are_plain_and_as_long_as_the_api_server_takes(text: str) -> None:
    rollout = Rollout(IDENTITY, "1", None, CanaryRolloutStatus())
    for message in (text, text * 200):
        body = event_body(rollout, Event("Reason", message), NOW, "replica")
        assert harmless(body["message"])
        assert len(body["message"]) <= LONGEST_EVENT


def texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case list():
            for item in value:
                yield from texts(item)
        case dict():
            for key, item in value.items():
                yield key
                yield from texts(item)


@given(any_text)
@example(HOSTILE)
@example("x" * 200_000)
def test_status_is_plain_and_bounded_wherever_the_words_come_from(text: str) -> None:
    condition = Condition(type="Ready", status="False", reason="R", message=text, last_transition_time=NOW)
    entry = HistoryEntry(time=NOW, reason="R", message=text)
    status = CanaryRolloutStatus(message=text, conditions=(condition,), history=(entry,), subsets={"v1": text})
    written = status_patch("1", Decision(status).status)
    assert all(harmless(found) and len(found) <= LONGEST for found in texts(written))


def test_a_status_that_is_plain_is_not_made_anew() -> None:
    status = CanaryRolloutStatus(message="all is well", history=(HistoryEntry(time=NOW, reason="R"),))
    assert Decision(status).status is status


@given(any_text, st.integers(0, 30))
@example(HOSTILE, 0)
@example("more than status holds " * 20, 30)
def test_a_spec_that_cannot_be_read_is_quoted_plainly(text: str, metrics: int) -> None:
    spec = {"version": text, "hold": text, "steps": text, text: text, "host": "reviews"}
    body = {
        "metadata": {"name": "reviews", "namespace": "shop"},
        "spec": spec | {"analysis": {"metrics": [{"name": text, "query": {text: text}, "min": text}] * metrics}},
    }
    read = rollout_of(body)
    decision = decide_invalid(read.status, read.identity, read.problems, NOW)
    assert all(harmless(found) for found in texts(decision.status.as_object()))
    assert all(harmless(event.message) for event in decision.events)
    again = decide_invalid(decision.status, read.identity, read.problems, NOW)
    assert again.status == decision.status, "the same words are no news"
    assert not again.events


@given(any_text)
@example("approve/v2/" + "1" * 600)
@example(HOSTILE)
def test_a_command_is_compared_as_it_is_kept(text: str) -> None:
    body = {"metadata": {"annotations": {"canaryrollout.io/command": text}}}
    command = rollout_of(body).identity.command
    assert len(command) <= LONGEST_COMMAND
    assert harmless(command)


def test_routes_with_names_that_deceive_are_named() -> None:
    spec = CanaryRolloutSpec.model_validate(
        {
            "version": "v2",
            "host": "reviews",
            "istio": {
                "virtualServices": [{"name": "reviews", "routes": ["prim\u200bary"]}],
                "destinationRule": {"name": "reviews"},
            },
        }
    )
    (problem,) = problems(spec, "shop")
    assert problem.startswith("spec.istio.virtualServices[0].routes[0] is 'prim\\u200bary': must be of printable")


def test_a_metric_cannot_take_the_name_of_a_built_in_gate() -> None:
    spec = CanaryRolloutSpec.model_validate(
        {
            "version": "v2",
            "host": "reviews",
            "istio": {"virtualServices": [{"name": "reviews"}], "destinationRule": {"name": "reviews"}},
            "analysis": {"metrics": [{"name": "latency", "query": "1", "max": "1"}]},
        }
    )
    (problem,) = problems(spec, "shop")
    assert (
        problem == "spec.analysis.metrics[0].name is 'latency': must not be the name of a built-in gate; choose another"
    )


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def crash() -> None:
    raise ValueError(HOSTILE)


@pytest.mark.usefixtures("logging_as_before")
@pytest.mark.parametrize("log_format", [LogFormat.JSON, LogFormat.CONSOLE])
def test_log_lines_are_plain_whoever_wrote_the_words(log_format: LogFormat) -> None:
    stream = io.StringIO()
    configure(log_format, LogLevel.INFO, stream)
    log = structlog.get_logger("x")
    log.info(HOSTILE, rollout=HOSTILE, problems=[HOSTILE, {"a": HOSTILE}], **{HOSTILE: 1})
    logging.getLogger("kopf").error("said %s", HOSTILE)
    written = stream.getvalue()
    assert len(written.splitlines()) == 2
    assert all(harmless(line) for line in written.splitlines())
    try:
        crash()
    except ValueError:
        log.exception("crashed", error=HOSTILE)
    lines = stream.getvalue().splitlines()
    assert all(harmless(line) for line in lines)
    if log_format is LogFormat.JSON:
        assert [json.loads(line)["level"] for line in lines] == ["info", "error", "error"]
    else:
        assert not [line for line in lines if line.startswith("level=error")], "no line of its own"
    stream.truncate(0)
    log.info("x" * 1_000_000)
    assert len(stream.getvalue()) < 10_000
