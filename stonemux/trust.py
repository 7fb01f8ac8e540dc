"""Which daemon a client trusts: one that shows the certificate in a given file, or a certificate signed by it.

Nothing else is trusted, so no public certificate authority can vouch for an impostor. On the same machine the client
reaches the daemon by a loopback address, for which the name in a certificate proves nothing; there the daemon must show
exactly a certificate in the file. On another machine, the certificate's name must match the host.

Imported only by clients of a daemon with TLS, since loading OpenSSL takes longer than the rest of a call.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
from pathlib import Path

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_HERE = re.compile(r"localhost|127\..*|0\.0\.0\.0|::1?", re.IGNORECASE)


class Trust:
    """The certificates in a file, for connections to one host."""

    def __init__(self, certificate: str, host: str) -> None:
        """Read the file; raises OSError if it cannot be read, or ValueError if it holds no certificate."""
        self._host, self._file = host, certificate
        self._read = _stamp(certificate)
        self._here = _HERE.fullmatch(host) is not None
        text = Path(certificate).read_text(encoding="utf-8", errors="replace")
        self._known = [ssl.PEM_cert_to_DER_cert(found) for found in _PEM.findall(text)]
        if not self._known:
            raise ValueError(f"{certificate} contains no certificate")
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the daemon's own is enough, whoever signed it
        self._context.check_hostname = not self._here
        self._context.load_verify_locations(certificate)

    def secure(self, sock: socket.socket) -> ssl.SSLSocket:
        """Start TLS on a connected socket; raises OSError if the peer is not the trusted daemon."""
        try:
            secured = self._context.wrap_socket(sock, server_hostname=self._host)
        except ssl.SSLCertVerificationError as error:
            told = f"certificate verify failed: {error.verify_message.rstrip('.')}; trusted is {self._file}"
            raise OSError(told) from error
        if self._here and secured.getpeercert(binary_form=True) not in self._known:
            secured.close()
            raise OSError(
                f"the daemon presents a certificate that is not in {self._file}; send it SIGHUP if the file is newer"
            )
        return secured

    def is_current(self) -> bool:
        """Whether the file is unchanged since it was read: certificates are renewed while clients run."""
        return _stamp(self._file) == self._read


def _stamp(path: str) -> tuple[int, int, int]:
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns
