"""Certificates for one connection. Their keys never leave the memory of the process."""

from __future__ import annotations

import datetime
import os
import ssl

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

__all__ = ["OneTime"]

_BEGIN = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
_END = datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC)
"""Trust ends with the connection; dates would only make clocks that differ a problem."""


class OneTime:
    """A fresh key with a certificate that it signed itself.

    Attributes:
        pem: the certificate, to be shown to the peer over a connection that is already trusted.

    """

    def __init__(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "vmferry, one connection")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_BEGIN)
            .not_valid_after(_END)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        self.pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
        self._key = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def context(self, peer: str, *, server: bool) -> ssl.SSLContext:
        """TLS 1.3 with whoever holds the key of ``peer``, a certificate in PEM, and nobody else.

        Raises:
            ssl.SSLError: ``peer`` is no certificate.

        """
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        made.minimum_version = ssl.TLSVersion.TLSv1_3
        made.check_hostname = False  # the key is known, which says more than a name
        made.verify_mode = ssl.CERT_REQUIRED
        if server:
            made.num_tickets = 0
        made.load_verify_locations(cadata=peer)
        self._load(made)
        return made

    def _load(self, made: ssl.SSLContext) -> None:
        """Give the key to OpenSSL, which takes it from files only; this one has no name."""
        number = os.memfd_create("vmferry")
        try:
            with os.fdopen(os.dup(number), "wb") as file:
                file.write(self._key + self.pem.encode())
            made.load_cert_chain(f"/proc/self/fd/{number}")
        finally:
            os.close(number)
