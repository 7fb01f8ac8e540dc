"""Log lines on standard error: text for people, or JSON for programs. Message contents and tokens are never logged."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select

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
    """Writes each line at once, bypassing Python's buffer, and never waits for whoever reads it.

    A line that a full disk refuses would stay in that buffer and turn the exit status into 120. A full pipe, or a
    terminal that was stopped with Ctrl-S, would hold up the thread that logs, which may be the one at the door. Lines
    that cannot be written at once are left out, and the next line that can be is preceded by their number.
    """

    def __init__(self) -> None:
        super().__init__()
        self._left_out = 0
        self._torn = False  # what was written last is the beginning of a line

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, MemoryError):
            if self._left_out and self._wrote(_left_out(self._left_out)):
                self._left_out = 0
            if self._left_out or not self._wrote(record):
                self._left_out += 1

    def _wrote(self, record: logging.LogRecord) -> bool:
        line = f"{self.format(record)}\n"
        rest = (f"\n{line}" if self._torn else line).encode(errors="backslashreplace")
        while rest:
            if not select.select((), (STANDARD_ERROR,), (), 0)[1]:
                return False
            # What is ready takes so much without waiting; a longer line needs several writes.
            rest = rest[os.write(STANDARD_ERROR, rest[: select.PIPE_BUF]) :]
            self._torn = bool(rest)
        return True


def _left_out(count: int) -> logging.LogRecord:
    message = f"lines of the log that nobody took, and that are missing here: {count}"
    return logging.makeLogRecord({"levelno": logging.WARNING, "levelname": "WARNING", "msg": message})


def set_up(level: str, form: str) -> None:
    """Log to standard error; neither a full disk nor a stuck reader disturbs the daemon."""
    handler = _StandardError()
    handler.setFormatter(_Json() if form == "json" else _Text())
    logger = logging.getLogger("stonemux")
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
    logging.raiseExceptions = False
