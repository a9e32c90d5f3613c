"""Structured logs on stderr, one event and its keys per line; stdout has only results.

Bind keys that are constant for a process once (`bind(job_id=..., clip_index=...)`); pass the rest as keys.
"""

import io
import logging
import os
import sys
import threading
from collections.abc import MutableMapping
from typing import Any, TextIO, cast

import structlog

Logger = structlog.stdlib.BoundLogger
_bound: dict[str, Any] = {}  # of all threads: a new thread has no context variables


def configure(*, json_lines: bool, level: str = "INFO") -> None:
    """Set up logging for this process: readable lines for people, JSON lines for machines."""
    stderr = sys.stderr.stream if isinstance(sys.stderr, _PrintedLines) else sys.stderr
    renderers: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if json_lines
        else [_for_people(stderr)]
    )
    structlog.configure(
        processors=[
            _with_bound_keys,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _Lines(stderr))),
        cache_logger_on_first_use=True,
    )
    if json_lines and not stderr.isatty():
        _take_over_other_messages(stderr)


def _for_people(stderr: TextIO) -> structlog.dev.ConsoleRenderer:
    """Return the renderer of readable lines. Its tracebacks have no variables, which may hold secrets."""
    return structlog.dev.ConsoleRenderer(
        colors=stderr.isatty(), pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
    )


class _Lines:
    """The stream of the lines. If its reader has ended, as with a killed task, lines are lost, but not the work."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write a line."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:
            # What is still in buffers, and later lines of all modules, go to the null device.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)

    def flush(self) -> None:
        """Do nothing: each line is written at once."""


def get_logger() -> Logger:
    """Return the logger of this process; it adds the bound keys to every line."""
    return structlog.get_logger()  # type: ignore[no-any-return]


def bind(**keys: Any) -> None:
    """Add keys to every later line of this process (job_id, clip_index, rank)."""
    _bound.update(keys)


def show_error(error: Exception) -> None:
    """Write the sentence of an error that ends this process, for people or as a JSON line."""
    if isinstance(structlog.get_config()["processors"][-1], structlog.processors.JSONRenderer):
        get_logger().error("command_failed", error=str(error), kind=type(error).__name__)
    else:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)


def _with_bound_keys(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {**_bound, **event}


class _LibraryMessages(logging.Handler):
    """Writes the messages of libraries as lines of this process."""

    def emit(self, record: logging.LogRecord) -> None:
        level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)
        get_logger().log(level, record.getMessage(), logger=record.name, exc_info=record.exc_info)


class _PrintedLines(io.TextIOBase):
    """Writes what a library prints to stderr, also by a handler of its own, as lines of this process."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._pending = ""

    def write(self, text: str) -> int:
        *lines, self._pending = (self._pending + text).split("\n")
        for line in filter(str.strip, lines):
            get_logger().warning(line)
        return len(text)

    def flush(self) -> None:
        if self._pending:
            self.write("\n")

    def fileno(self) -> int:
        return self.stream.fileno()


def _take_over_other_messages(stderr: TextIO) -> None:
    """Write messages and warnings of libraries, and the traceback that ends a thread or this process, as JSON lines."""
    logging.basicConfig(handlers=[_LibraryMessages()], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    sys.stderr = _PrintedLines(stderr)
    sys.excepthook = lambda *error: get_logger().error("unexpected_error", exc_info=error)
    threading.excepthook = lambda error: get_logger().error("unexpected_error", exc_info=error[:3])
