"""A doorbell that is a command on this machine: `exec:/path/to/program argument ...`.

Without this check, anyone who may register an agent could run programs as the daemon's user. So a command runs only if
the settings list it (`webhooks.exec`), word for word. There is no shell. The command gets the doorbell's JSON on
standard input, and its output is discarded. When its time is up, it is killed together with every process it started
that is still in its session.
"""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from stonemux import signals
from stonemux.addresses import ForbiddenURL
from stonemux.clock import Clock
from stonemux.endpoints import Outcome
from stonemux.setting import ANY_COMMAND

if TYPE_CHECKING:
    import subprocess

SCHEME = "exec:"
MOST_CHARACTERS = 2048
_PASSED_ON = ("HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER")
"""The environment variables that a command gets from the daemon: none that could be secret."""

_clock = Clock()


def check(url: str, allowed: Sequence[str]) -> list[str]:
    """The words of the command in an `exec:` URL; raises ForbiddenURL unless the settings allow it."""
    text = url.removeprefix(SCHEME)
    if len(text) > MOST_CHARACTERS or not text.isprintable():
        raise ForbiddenURL(f"must name a command of at most {MOST_CHARACTERS} printable characters")
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ForbiddenURL(f"is not a command line: {error}") from error
    if not words or not os.path.isabs(words[0]):
        raise ForbiddenURL("must name the command by its full path, as in exec:/usr/local/bin/ring")
    if ANY_COMMAND not in allowed and text not in allowed:
        raise ForbiddenURL(
            "is a command that the settings do not allow; the machine's owner may list it under webhooks.exec, word "
            "for word"
        )
    return words


class Run:
    """One run of a command, which another thread may cut short."""

    def __init__(self, words: Sequence[str], *, total_ms: int) -> None:
        self._words = words
        self._total_ms = total_ms
        self._process: subprocess.Popen[bytes] | None = None
        self.was_cut = False

    def cut(self) -> None:
        """Kill it at once."""
        self.was_cut = True
        if (process := self._process) is not None:
            signals.to_session(process.pid, signal.SIGKILL)

    def ring(self, variables: Mapping[str, str], body: bytes) -> Outcome:
        """Run the command to its end; never raises."""
        import subprocess  # few daemons have such a doorbell, so the others start without loading it

        started = _clock.ticks_ms()
        environ = {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | dict(variables)
        status: int | None = None
        try:
            with subprocess.Popen(
                self._words,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=environ,
                start_new_session=True,
            ) as process:
                self._process = process
                if self.was_cut:  # cut before the process was visible to `cut`
                    signals.to_session(process.pid, signal.SIGKILL)
                try:
                    process.communicate(body, self._total_ms / 1000)
                    status = process.returncode
                    error = "" if status == 0 else f"exit status {status}"
                except subprocess.TimeoutExpired:
                    signals.to_session(process.pid, signal.SIGKILL)
                    error = f"killed: it ran longer than {self._total_ms / 1000:g} seconds"
        except (OSError, ValueError) as failed:
            error = f"it could not be started: {getattr(failed, 'strerror', None) or failed}"
        return Outcome(status, error, _clock.ticks_ms() - started)
