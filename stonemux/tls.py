"""TLS: a non-blocking socket that speaks it, and how a connection over TLS differs from one without.

`ssl` does not wrap the socket: `Secured` connects the client's socket, OpenSSL's state machine and two memory buffers,
and moves bytes between them when it is called. To its caller it is a non-blocking socket. The listening socket knows
nothing of TLS, so a client that connects and sends nothing blocks nobody; its handshake has a deadline.

**Receipts** follow the same signs as without TLS, with care for what TLS adds:

* More application *data* from the client means received. Records without data (alerts, key updates) mean nothing.
* The client's library writes its `close_notify`; its system reports unread bytes only a moment later, when the socket
  closes. So the verdict waits for the end of the TCP connection. Only for a client that sends nothing more for
  `PARTING_MS` is it given without that (several wait for our `close_notify`, some for half a minute).
* A `close_notify` that came before the answer was written means that nobody will read the answer, like a TCP close.
* A client that has read its answer must not be left with unread records of ours: closing would then cause a reset, as
  if the answer had not been read. Hence we send no `close_notify` before the verdict. An answer that ends with the
  connection needs one; it then travels in the same segment as the end of the answer, and most libraries read both at
  once.

**Phases** besides those of every connection:

    handshake  the client's first byte                      HEAD_MS        close
    shaking    the rest of the handshake                    the same       close
    parting    the end of TCP behind the client's goodbye   PARTING_MS     conclude: received, unless it was reset

Imported only where a certificate is configured.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
from pathlib import Path

from stonemux import wire
from stonemux.connection import HEAD_MS, IDLE_MS, Attendant, Connection
from stonemux.errors import MuxError
from stonemux.readiness import Ready

log = logging.getLogger("stonemux")

CHUNK = 64 * 1024
"""The most bytes that are encrypted ahead of being sent."""
READ_AHEAD = 64 * 1024
"""The most bytes of data that are decrypted ahead of being read."""
PARTING_MS = 250
HANDSHAKE = 0x16
"""The first byte that every TLS client sends."""


def context(certificate: str, key: str) -> ssl.SSLContext:
    """The server's SSL context for these PEM files; without `key`, `certificate` holds the key, too.

    Raises `bad_setting` for files that cannot be read or do not belong together.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.options |= ssl.OP_NO_RENEGOTIATION
    made.num_tickets = 0  # agents keep their connections open, so there is nothing to resume
    made.set_alpn_protocols(["http/1.1"])
    for name, path in (("server.tls_cert", certificate), ("server.tls_key", key)):
        if path:
            try:
                Path(path).open("rb").close()
            except OSError as trouble:
                raise _refused(name, f"{path} cannot be read: {trouble.strerror}") from trouble
    try:
        made.load_cert_chain(certificate, key or None, password=_no_password)
    except ssl.SSLError as trouble:
        if trouble.reason == "KEY_VALUES_MISMATCH":
            raise _refused("server.tls_key", f"{key or certificate} is not the key of {certificate}") from trouble
        files = f"{certificate} and {key}" if key else f"{certificate} alone (server.tls_key is empty)"
        raise _refused("server.tls_cert", f"{files} must hold a certificate and its key as PEM text") from trouble
    return made


def _no_password() -> str:
    raise _refused("server.tls_key", "the key is encrypted, and nobody can type its password here; decrypt the file")


def _refused(setting: str, problem: str) -> MuxError:
    return MuxError("bad_setting", f"{setting}: {problem}", setting=setting)


class Secured:
    """A client's socket with TLS on it; behaves like a non-blocking socket once `shake` has returned True.

    After BlockingIOError, call `send` again with the same bytes.
    """

    def __init__(self, sock: socket.socket, secrets: ssl.SSLContext) -> None:
        self.raw = sock
        self.farewell = False
        """Send `close_notify` right behind the next bytes."""
        self.quiet_end = False
        """Our side was shut down without `close_notify`."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = secrets.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._shaken = False
        self._plain = b""  # decrypted, not yet read
        self._sealed = b""  # encrypted, not yet sent
        self._promised = 0  # how many of the caller's bytes `_sealed` holds
        self._said_goodbye = False
        self._ended = False  # the client has closed its side of TLS or TCP
        self.parted = False
        """Whether the client has closed the TCP connection."""
        self._failure: OSError | None = None

    # -- the socket interface, as without TLS

    @property
    def family(self) -> int:
        """See `Socket.family`."""
        return self.raw.family

    def fileno(self) -> int:
        """See `Socket.fileno`."""
        return self.raw.fileno()

    def setblocking(self, flag: bool, /) -> None:
        """See `Socket.setblocking`."""
        self.raw.setblocking(flag)

    def settimeout(self, seconds: float | None, /) -> None:
        """See `Socket.settimeout`."""
        self.raw.settimeout(seconds)

    def setsockopt(self, level: int, option: int, value: int | bytes, /) -> None:
        """See `Socket.setsockopt`; setting SO_LINGER announces a reset, so `close_notify` is then left out, too."""
        self._said_goodbye = self._said_goodbye or (level, option) == (socket.SOL_SOCKET, socket.SO_LINGER)
        self.raw.setsockopt(level, option, value)

    def getsockopt(self, level: int, option: int, /) -> int:
        """See `Socket.getsockopt`."""
        return self.raw.getsockopt(level, option)

    # -- the handshake

    def first_byte(self) -> int | None:
        """Peek at the client's first byte; None if it has sent nothing. Raises OSError if it is gone."""
        try:
            data = self.raw.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        if not data:
            raise ConnectionResetError
        return data[0]

    def shake(self) -> bool:
        """Continue the handshake; returns whether it is complete. Raises OSError if it failed."""
        while not self._shaken:
            try:
                self._tls.do_handshake()
                self._shaken = True
            except ssl.SSLWantReadError:
                self._flush()
                try:
                    if not self._take():
                        raise ConnectionResetError
                except BlockingIOError:
                    return False
            except ssl.SSLError:
                with contextlib.suppress(OSError):  # send the alert that says why
                    self._flush()
                raise
        self._flush()
        return True

    # -- reading

    def _take(self) -> bool:
        """Pass what has arrived to OpenSSL; False at the end of the TCP connection."""
        data = self.raw.recv(READ_AHEAD)
        self._incoming.write(data)
        return bool(data)

    def _fill(self, wanted: int) -> None:
        """Decrypt until `wanted` bytes are there, or nothing more has come."""
        if self._failure is not None:
            return
        try:
            while len(self._plain) < wanted and not self._ended:
                try:
                    data = self._tls.read(wanted - len(self._plain))
                    self._plain += data
                    self._ended = not data
                except ssl.SSLZeroReturnError:
                    self._ended = True
                except ssl.SSLWantReadError:
                    # A close without close_notify is as good: every request and answer states its length.
                    self._ended = self.parted = not self._take()
                except ssl.SSLError as alert:
                    if not self.quiet_end or alert.reason != "TLSV1_ALERT_DECODE_ERROR":
                        raise
                    self._ended = True  # OpenSSL's client reports such a shutdown of ours this way
            if self._ended and not self.parted:
                self.parted = not self.raw.recv(READ_AHEAD)
        except BlockingIOError:
            pass
        except OSError as failure:
            self._failure = failure

    def recv(self, most: int, flags: int = 0, /) -> bytes:
        """See `Socket.recv`; supports MSG_PEEK."""
        if not self._shaken:
            raise BlockingIOError
        if len(self._plain) < most:
            self._fill(most)
        if not self._plain:
            if self._failure is not None:
                raise self._failure
            if self._ended:
                return b""
            raise BlockingIOError
        data = self._plain[:most]
        if not flags & socket.MSG_PEEK:
            self._plain = self._plain[most:]
        return data

    def listen(self) -> bool:
        """Read ahead; returns whether the client has closed its side."""
        self._fill(READ_AHEAD)
        return self._ended

    # -- writing

    def _flush(self) -> bool:
        """Send what is encrypted; returns whether all of it is sent."""
        if self._outgoing.pending:
            self._sealed += self._outgoing.read()
        while self._sealed:
            try:
                sent = self.raw.send(self._sealed)
            except BlockingIOError:
                return False
            self._sealed = self._sealed[sent:]
        return True

    def send(self, data: bytes, /) -> int:
        """See `Socket.send`; bytes count as sent once the records that hold them are."""
        if not self._promised:
            piece = data[:CHUNK]
            self._promised = self._tls.write(piece)
            if self.farewell and len(piece) == len(data):
                self._say_goodbye()
        if not self._flush():
            raise BlockingIOError
        sent, self._promised = self._promised, 0
        return sent

    def sendall(self, data: bytes, /) -> None:
        """See `Socket.sendall`."""
        while data:
            data = data[self.send(data) :]

    def _say_goodbye(self) -> None:
        if not self._said_goodbye and self._shaken:
            self._said_goodbye = True
            with contextlib.suppress(ssl.SSLError, ValueError):  # it then wants the client's, which we need not
                self._tls.unwrap()

    def shutdown(self, how: int, /) -> None:
        """See `Socket.shutdown`; sends our `close_notify` first."""
        self._say_goodbye()
        self._flush()
        self.raw.shutdown(how)

    def close(self) -> None:
        """See `Socket.close`; sends our `close_notify` first."""
        self._say_goodbye()
        with contextlib.suppress(OSError):
            self._flush()
        self.raw.close()


class SecuredConnection(Connection):
    """A connection that begins with a handshake; a client that does not speak TLS gets a plain-text refusal."""

    __slots__ = ("_secured", "_shaken")

    def __init__(self, attendant: Attendant, sock: socket.socket, secrets: ssl.SSLContext) -> None:
        self._secured: Secured | None = Secured(sock, secrets)
        self._shaken = False
        super().__init__(attendant, self._secured)
        self._phase = "handshake"
        self._due(HEAD_MS)

    def stir(self, ready: Ready) -> None:
        """Handle a socket event; a `close_notify` counts as a close, too."""
        if self._shaken and self._secured is not None:
            with self.lock:
                if not self._closed and self._secured.listen():
                    ready = ready._replace(ended=True)
        super().stir(ready)

    def _next_request(self) -> tuple[wire.Head, bytes] | None:
        """Complete the handshake before reading requests."""
        if not self._shaken:
            try:
                self._shake()
            except OSError as trouble:
                log.debug("a TLS handshake failed: %s", trouble)
                self._close(arrived=False)
        return super()._next_request() if self._shaken else None

    def _shake(self) -> None:
        """Continue the handshake; raises `tls_required` for a client that does not begin one."""
        secured = self._secured
        assert secured is not None
        if self._phase == "handshake":
            first = secured.first_byte()
            if first is None:
                return
            if first != HANDSHAKE:
                self.sock, self._secured, self._shaken = secured.raw, None, True
                raise MuxError(
                    "tls_required",
                    "this port speaks TLS; use https:// in the address, and for stonemux commands set "
                    "STONEMUX_TLS_CERT to the daemon's certificate",
                    close=True,
                )
            self._phase = "shaking"
        if secured.shake():
            self._shaken = True
            self._drained = False
            self._phase = "idle"
            self._due(IDLE_MS)

    def _put(self, data: bytes) -> None:
        if self._secured is not None and self._answering:
            self._secured.farewell = self._closing and (not self._flights or self._phase == "streaming")
        super()._put(data)

    def _end_output(self) -> None:
        if self._flights and self._secured is not None and not self._secured.farewell:
            self._secured.quiet_end = True
            with contextlib.suppress(OSError):
                self._secured.raw.shutdown(socket.SHUT_WR)
        else:
            super()._end_output()

    def _end_of_input(self) -> None:
        if self._flights and self._secured is not None and not self._secured.parted:
            self._drained = True
            if self._phase != "parting":
                self._phase = "parting"
                self._due(PARTING_MS)
        else:
            super()._end_of_input()

    def overdue(self, now: int) -> int | None:
        """Act if the deadline has passed, as in every connection; a client in phase "parting" then counts as parted."""
        with self.lock:
            parted = self._phase == "parting" and self._deadline is not None and self._deadline <= now
        if parted:
            self.conclude()
        return super().overdue(now)
