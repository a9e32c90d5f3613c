"""Structured logs on stderr, one event and its keys per line; stdout has only results.

Bind keys that are constant for a process once (`bind(job_id=..., clip_index=...)`); pass the rest as keys.
"""

import logging
import os
import sys
from typing import Any, TextIO, cast

import structlog

Logger = structlog.stdlib.BoundLogger


def configure(*, json_lines: bool, level: str = "INFO") -> None:
    """Set up logging for this process: readable lines for people, JSON lines for machines."""
    renderers: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if json_lines
        else [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _Lines(sys.stderr))),
        cache_logger_on_first_use=True,
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
    structlog.contextvars.bind_contextvars(**keys)
