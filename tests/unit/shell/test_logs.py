import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from canaryrollout.shell.logs import configure
from canaryrollout.shell.settings import LogFormat, LogLevel


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in ("kopf", "kopf.objects", "asyncio")}
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, least in levels.items():
        logging.getLogger(name).setLevel(least)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_lines_carry_event_level_time_and_rollout() -> None:
    stream = io.StringIO()
    configure(LogFormat.JSON, LogLevel.INFO, stream)
    structlog.get_logger("canaryrollout.engine.worker").info("v2 has 10 %", rollout="shop/reviews")
    (line,) = lines(stream)
    assert line["event"] == "v2 has 10 %"
    assert line["rollout"] == "shop/reviews"
    assert line["level"] == "info"
    assert line["logger"] == "engine.worker"
    assert str(line["timestamp"]).endswith("Z")


def test_the_standard_library_comes_out_the_same_way() -> None:
    stream = io.StringIO()
    configure(LogFormat.JSON, LogLevel.INFO, stream)
    logging.getLogger("somebody").warning("%d of %d", 1, 2)
    (line,) = lines(stream)
    assert (line["event"], line["level"], line["logger"]) == ("1 of 2", "warning", "somebody")


def test_a_crash_is_one_line_with_its_traceback() -> None:
    stream = io.StringIO()
    configure(LogFormat.JSON, LogLevel.INFO, stream)
    try:
        _ = 1 // 0
    except ZeroDivisionError:
        structlog.get_logger("x").exception("pass crashed", rollout="shop/reviews")
    (line,) = lines(stream)
    assert "ZeroDivisionError: " in str(line["exception"])


def test_kopf_is_heard_only_when_something_is_wrong() -> None:
    stream = io.StringIO()
    configure(LogFormat.JSON, LogLevel.DEBUG, stream)
    logging.getLogger("kopf.objects").info("Handler 'on_event' succeeded.")
    logging.getLogger("kopf._core.reactor.running").warning("OS signals are ignored")
    logging.getLogger("kopf._cogs.clients.api").warning("Request attempt #1 failed")
    assert [line["event"] for line in lines(stream)] == ["Request attempt #1 failed"]


def test_less_important_lines_are_left_out() -> None:
    stream = io.StringIO()
    configure(LogFormat.JSON, LogLevel.WARNING, stream)
    structlog.get_logger("x").info("hardly")
    structlog.get_logger("x").warning("certainly")
    assert [line["event"] for line in lines(stream)] == ["certainly"]


def test_people_at_a_terminal_get_lines_to_read_in_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    configure(LogFormat.AUTO, LogLevel.INFO, stream)
    structlog.get_logger("x").info("v2 has 10 %", rollout="shop/reviews")
    assert "v2 has 10 %" in stream.getvalue()
    assert "\x1b[" in stream.getvalue()


def test_a_pipe_gets_json_by_itself_and_never_color() -> None:
    stream = io.StringIO()
    configure(LogFormat.AUTO, LogLevel.INFO, stream)
    structlog.get_logger("x").info("a", rollout="b")
    assert lines(stream)[0]["rollout"] == "b"
    stream = io.StringIO()
    configure(LogFormat.CONSOLE, LogLevel.INFO, stream)
    structlog.get_logger("x").info("a", rollout="b")
    assert "\x1b[" not in stream.getvalue()
    assert "rollout=b" in stream.getvalue()
