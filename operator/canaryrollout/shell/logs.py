"""Log lines: one event each, with its facts as fields, so that ``rollout=shop/reviews`` finds all that happened to one.

Libraries that log by the standard library come out the same way, and kopf only when something is wrong with it.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from typing import Any, Final, TextIO

import structlog
from structlog.typing import Processor

from canaryrollout.api.text import plain, plain_value
from canaryrollout.shell.settings import LogFormat, LogLevel

_QUIET: Final = {
    "kopf": logging.WARNING,
    "kopf.objects": logging.ERROR,
    "kopf._core.reactor.running": logging.ERROR,  # it runs in a thread of its own, and says so each time
    "kopf._core.reactor.orchestration": logging.ERROR,
    "asyncio": logging.WARNING,
    "aiohttp.access": logging.WARNING,
    "kubernetes": logging.WARNING,
    "urllib3": logging.WARNING,
}

_LONGEST_TRACE: Final = 200
"""How many lines of a traceback are shown."""


def configure(log_format: LogFormat, level: LogLevel, stream: TextIO | None = None) -> None:
    """Set logging up for the whole process.

    Args:
        log_format: How lines look; ``auto`` is for people where ``stream`` is a terminal, and JSON elsewhere.
        level: The least important lines that appear.
        stream: Where they go; standard error by default.
    """
    target = stream or sys.stderr
    terminal = target.isatty()
    json = log_format is LogFormat.JSON or (log_format is LogFormat.AUTO and not terminal)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    final: list[Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,
        _plain,
        _short_logger,
    ]
    if json:
        final.append(structlog.processors.JSONRenderer())
    else:
        colors = terminal and "NO_COLOR" not in os.environ
        final.append(structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback))
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=final))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name, least in _QUIET.items():
        logging.getLogger(name).setLevel(max(least, root.level))


def _plain(_: Any, __: str, event: Any) -> Mapping[str, Any]:
    """Make every text plain: what others have chosen the words of cannot look like a line of its own, or as another."""
    trace = event.pop("exception", None)
    fields = {plain(str(key)): plain_value(value) for key, value in event.items()}
    if isinstance(trace, str):
        fields["exception"] = "\n".join(f"  {plain(line)}" for line in trace.split("\n")[-_LONGEST_TRACE:])
    return fields


def _short_logger(_: Any, __: str, event: Any) -> Mapping[str, Any]:
    """Leave the package's name out of the logger's."""
    name = event.get("logger")
    if isinstance(name, str):
        event["logger"] = name.removeprefix("canaryrollout.")
    fields: Mapping[str, Any] = event
    return fields
