"""Who may ask a board, and how hub and board know each other: a shared token, TLS, or both."""

from __future__ import annotations

import hmac
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from anyvit.errors import SettingError

TOKEN_VARIABLE = "ANYVIT_TOKEN"
MAX_TOKEN = 4096


@dataclass(frozen=True, slots=True)
class Security:
    """What one side has to show, and to check the other side with. Nothing at all: a plain connection.

    Attributes:
        token: Shared by the hub and all boards.
        certificate: Of this side, PEM.
        key: Of that certificate, PEM.
        authority: The certificates that sign those of the other side, PEM.
    """

    token: str | None = None
    certificate: bytes | None = None
    key: bytes | None = None
    authority: bytes | None = None

    @classmethod
    def from_files(
        cls,
        *,
        token_file: str | None = None,
        tls_cert: str | None = None,
        tls_key: str | None = None,
        tls_ca: str | None = None,
    ) -> Security:
        """Read them. Without a file of it, the token is what the environment variable ANYVIT_TOKEN holds.

        Raises:
            SettingError: A file cannot be read, a token is empty or not one word, or a certificate has no key.
        """
        if (tls_cert is None) != (tls_key is None):
            raise SettingError("tls_cert and tls_key belong together: name both files, or none.")
        return cls(_read_token(token_file), *(_read(file) if file else None for file in (tls_cert, tls_key, tls_ca)))

    @property
    def encrypted(self) -> bool:
        """Whether the connection is under TLS."""
        return self.certificate is not None or self.authority is not None

    def admits(self, token: str | bytes) -> bool:
        """Whether `token` is the right one, in a time that does not depend on how much of it is."""
        given = token.encode() if isinstance(token, str) else token
        return self.token is None or hmac.compare_digest(given, self.token.encode())


PLAIN = Security()
"""Nothing to show, nothing to check."""


def see_that_guarded(host: str, security: Security) -> None:
    """See that only those who may can reach a worker that listens on `host`.

    Raises:
        SettingError: Others than this machine can, and need neither a token nor a certificate; or a certificate is to
            be asked for, and there is none of this side.
    """
    if security.authority and not security.certificate:
        raise SettingError("tls_ca asks hubs for certificates, and the worker has none: name tls_cert and tls_key too.")
    if not _is_loopback(host) and not (security.token or security.authority):
        raise SettingError(
            f"listening on {host} lets anybody in the network ask this worker. Give hub and workers a token "
            f"(--token-file FILE or {TOKEN_VARIABLE}), or ask hubs for certificates (--tls-ca FILE)."
        )


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port`; an IPv6 host is in brackets.

    Raises:
        SettingError: It is no such address.
    """
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 65536) or (
        ":" in host and not bracketed
    ):
        raise SettingError(f"address {address!r} is not host:port. Example: 127.0.0.1:7002.")
    return host.strip("[]"), int(port)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read_token(file: str | None) -> str | None:
    text = _read(file).decode(errors="replace") if file else os.environ.get(TOKEN_VARIABLE)
    if text is None:
        return None
    token = text.strip()
    if not (token.isascii() and token.isprintable() and 0 < len(token) <= MAX_TOKEN and " " not in token):
        source = file or TOKEN_VARIABLE
        raise SettingError(
            f"the token in {source} must be one word of printable ASCII, {MAX_TOKEN} characters at most."
        )
    return token


def _read(file: str) -> bytes:
    try:
        return Path(file).expanduser().read_bytes()
    except OSError as error:
        raise SettingError(f"{file} cannot be read ({error.strerror}).") from error
