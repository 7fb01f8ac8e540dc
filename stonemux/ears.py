"""What a command says, through pipes: the beginning of its standard output, and the end of its standard error.

With pipes, `tee /dev/stderr` and `> /dev/stdout` work as in a shell's `$(...)`; they would cut a file off. However much
a command writes, only a bounded part is kept, in memory. A process that it leaves behind may go on writing as long as
the runner lives, but nobody listens any more.
"""

from __future__ import annotations

import os
import selectors
import threading

CHUNK = 65_536
MOST_IN_A_PIPE = 1024 * 1024
"""How many bytes that nobody has read a command may leave in a pipe."""


class Ear:
    """One pipe: the command writes to `mouth`; `_lock` guards the rest."""

    def __init__(self, most: int, *, latest: bool = False) -> None:
        """Keep the first `most` bytes, or with `latest` the last. Raises OSError if no more files may be open."""
        self._most = most
        self._latest = latest
        self._lock = threading.Lock()
        self._kept = bytearray()
        self._over = False
        self.fd, self.mouth = os.pipe()
        os.set_blocking(self.fd, False)

    def hear(self) -> int:
        """Read what is there, up to a chunk; returns its length, 0 at the end, and -1 if nothing is there now."""
        with self._lock:
            if self.fd < 0:
                return 0
            try:
                data = os.read(self.fd, CHUNK)
            except BlockingIOError:
                return -1
            if self._over:
                pass
            elif self._latest:
                self._kept += data
                del self._kept[: -self._most]
            else:
                self._kept += data[: self._most - len(self._kept)]
            return len(data)

    def finish(self) -> str:
        """What the command said, which has ended; bytes that are not UTF-8 become U+FFFD."""
        left = MOST_IN_A_PIPE
        while left > 0 and (length := self.hear()) > 0:
            left -= length
        with self._lock:
            self._over = True
            return self._kept.decode(errors="replace")

    def close_mouth(self) -> None:
        """Let the command be the only one that can write, so that the pipe ends with it."""
        if self.mouth >= 0:
            os.close(self.mouth)
            self.mouth = -1

    def close(self) -> None:
        """Close both ends."""
        self.close_mouth()
        with self._lock:
            if self.fd >= 0:
                os.close(self.fd)
                self.fd = -1


def listen(*ears: Ear) -> None:
    """Hear, in a thread, until nobody can write any more. Raises RuntimeError if the system allows no more threads."""
    for ear in ears:
        ear.close_mouth()
    threading.Thread(target=_listen, args=(ears,), name="listener", daemon=True).start()


def _listen(ears: tuple[Ear, ...]) -> None:
    with selectors.DefaultSelector() as selector:
        for ear in ears:
            selector.register(ear.fd, selectors.EVENT_READ, ear)
        while selector.get_map():
            for key, _ in selector.select():
                if key.data.hear() == 0:
                    selector.unregister(key.fd)
                    key.data.close()
