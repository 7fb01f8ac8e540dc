"""The client side of TLS without automation: a blocking socket that a test closes in the way it chooses.

Python's own `SSLSocket` cannot close a single direction, and hides whether `close_notify` was sent.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from pathlib import Path
from typing import Any

CERTIFICATES = Path(__file__).parent / "certificates"
"""A certificate for this machine, valid for a century, and its key: for tests only."""
CERT, KEY = str(CERTIFICATES / "test-only-cert.pem"), str(CERTIFICATES / "test-only-key.pem")


def trusting(**attributes: Any) -> ssl.SSLContext:
    """A client context that trusts the tests' certificate."""
    context = ssl.create_default_context(cafile=CERT)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    for name, value in attributes.items():
        setattr(context, name, value)
    return context


class TlsSocket:
    """Like a connected socket; `sips` reads one record at a time, as OpenSSL does, instead of everything available."""

    def __init__(self, sock: socket.socket, *, context: ssl.SSLContext | None = None, sips: bool = False) -> None:
        self.raw = sock
        self._sips = sips
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = (context or trusting()).wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        try:
            self._through(self._tls.do_handshake)
        except BaseException:
            sock.close()
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)  # the same as without TLS

    def _through(self, act: Any) -> Any:
        while True:
            try:
                done = act()
            except ssl.SSLWantReadError:
                self._flush()
                self._take()
            else:
                self._flush()
                return done

    def _flush(self) -> None:
        if self._outgoing.pending:
            self.raw.sendall(self._outgoing.read())

    def _take(self) -> None:
        if not self._sips:
            data = self.raw.recv(65536)
        else:
            head = self._exactly(5)
            data = head and head + self._exactly(int.from_bytes(head[3:5], "big"))
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _exactly(self, count: int) -> bytes:
        got = b""
        while len(got) < count and (more := self.raw.recv(count - len(got))):
            got += more
        return got

    def recv(self, most: int) -> bytes:
        try:
            return self._through(lambda: self._tls.read(most))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    def hears_goodbye(self) -> bool:
        """Read to the end; returns whether `close_notify` announced it."""
        try:
            while self._through(lambda: self._tls.read(65536)):
                pass
        except ssl.SSLZeroReturnError:
            pass
        except ssl.SSLError:  # SSLEOFError in newer versions of Python
            return False
        return True

    def sendall(self, data: bytes) -> None:
        self._through(lambda: self._tls.write(data))

    def goodbye(self) -> None:
        """Send `close_notify`, and wait for nothing."""
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        self._flush()

    def fileno(self) -> int:
        return self.raw.fileno()
