"""The relay's certificate, which may change while it runs."""

from __future__ import annotations

import ssl
from pathlib import Path

from meshpeer.config import RelayConfig
from meshpeer.errors import ConfigError

__all__ = ["Certificate"]


class Certificate:
    """TLS 1.2 (RFC 5246) or newer, with the certificate that was loaded last.

    ``context`` is for the listening socket. Raises `ConfigError` for files that can't be used.
    """

    def __init__(self, certificate: str, key: str) -> None:
        self._certificate = certificate
        self._key = key
        self._current = self._load()
        # The one that listens has no certificate: each connection is given the latest.
        self.context = _context()
        self.context.sni_callback = self._choose

    @classmethod
    def of(cls, config: RelayConfig) -> Certificate | None:
        """The config's, if it has one."""
        if config.tls_cert is None or config.tls_key is None:
            return None
        return cls(config.tls_cert, config.tls_key)

    def reload(self) -> None:
        """Read the files anew. Raises `ConfigError`; then what was loaded before stays in use."""
        self._current = self._load()

    def _choose(
        self,
        connection: ssl.SSLSocket | ssl.SSLObject,
        name: str | None,  # noqa: ARG002
        context: ssl.SSLContext,  # noqa: ARG002
    ) -> None:
        connection.context = self._current

    def _load(self) -> ssl.SSLContext:
        for what, file in (("tls_cert", self._certificate), ("tls_key", self._key)):
            try:
                Path(file).read_bytes()
            except OSError as exc:
                raise ConfigError(f"RelayConfig.{what} can't be read: {exc}") from exc
        context = _context()
        try:
            # A key with a passphrase would be asked for on the terminal.
            context.load_cert_chain(self._certificate, self._key, password="")
        except (ssl.SSLError, OSError) as exc:
            raise ConfigError(
                f"RelayConfig.tls_cert ({self._certificate}) and RelayConfig.tls_key ({self._key}) "
                f"must be a certificate and its private key, in PEM and without a passphrase: {exc}"
            ) from exc
        return context


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
