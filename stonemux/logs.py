"""Log lines on standard error: text for people, or JSON for programs. Message contents and tokens are never logged."""

from __future__ import annotations

import contextlib
import json
import logging
import os

from stonemux.clock import rfc3339

STANDARD_ERROR = 2


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = f"{rfc3339(int(record.created * 1000))} {record.levelname.lower():<8} {_one_line(record.getMessage())}"
        return line if record.exc_info is None else f"{line}\n{self.formatException(record.exc_info)}"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "at": rfc3339(int(record.created * 1000)),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info is not None:
            entry["trace"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=True)


def _one_line(text: str) -> str:
    """Escape control characters, so that a name cannot forge a second log line."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


class _StandardError(logging.Handler):
    """Writes each line with one system call, bypassing Python's buffer.

    A line that a full disk refuses would stay in that buffer and turn the exit status into 120.
    """

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            os.write(STANDARD_ERROR, f"{self.format(record)}\n".encode(errors="backslashreplace"))


def set_up(level: str, form: str) -> None:
    """Log to standard error; write failures, as on a full disk, do not disturb the daemon."""
    handler = _StandardError()
    handler.setFormatter(_Json() if form == "json" else _Text())
    logger = logging.getLogger("stonemux")
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
    logging.raiseExceptions = False
