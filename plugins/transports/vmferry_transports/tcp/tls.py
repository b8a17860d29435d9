"""TLS 1.3 in which both ends show certificates, and what its errors mean to a user."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from typing import Any

from vmferry.errors import InputError, LinkError
from vmferry_transports.tcp.options import TcpOptions

__all__ = ["context", "explain", "identity", "names", "wanted"]

_OURS = "this host's certificate (tls_cert)"
_EXPIRED, _NOT_YET, _NAME, _IP = 10, 9, 62, 64
_VERIFY = {
    _NOT_YET: "the peer's certificate is not valid yet; compare the clocks of both hosts",
    _EXPIRED: "the peer's certificate has expired; renew tls_cert there, or correct the clock",
    18: "the peer's certificate is self-signed and not in tls_ca here",
    19: "the peer's certificate is not signed by an authority in tls_ca here",
    20: "the peer's certificate is not signed by an authority in tls_ca here",
    21: "the peer's certificate is not signed by an authority in tls_ca here",
}
"""By X509_V_ERR_* of openssl/x509_vfy.h."""

_REASONS = {
    "TLSV1_ALERT_UNKNOWN_CA": f"refuses {_OURS}: no authority in its tls_ca signed it",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": f"refuses {_OURS}: it has expired or a clock is wrong",
    "SSLV3_ALERT_BAD_CERTIFICATE": f"refuses {_OURS}: wrong name or not valid; see its tls_name",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": f"refuses {_OURS}; its log says why",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "wants a certificate of this host; set tls_cert",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "showed no certificate; set tls_cert and tls_key there",
    "TLSV1_ALERT_PROTOCOL_VERSION": "does not speak TLS 1.3",
    "UNSUPPORTED_PROTOCOL": "does not speak TLS 1.3",
    "WRONG_VERSION_NUMBER": "does not speak TLS; is the port right, and are tls_* set there?",
    "HTTP_REQUEST": "does not speak TLS but HTTP; is the port right?",
}


def wanted(options: TcpOptions) -> bool:
    """True when TLS is on. Raises ``InputError`` when it is half configured."""
    files = {name: getattr(options, name) for name in ("tls_cert", "tls_key", "tls_ca")}
    missing = [name for name, value in files.items() if not value]
    if missing and len(missing) < len(files):
        raise InputError(f"TLS needs tls_cert, tls_key and tls_ca; {', '.join(missing)} is missing")
    if options.allow and missing:
        raise InputError("allow names certificates; it needs tls_cert, tls_key and tls_ca")
    return not missing


def context(options: TcpOptions, *, server: bool) -> ssl.SSLContext:
    """Read the files and return the context of one side.

    Raises:
        InputError: a file cannot be read or used; says which option names it.

    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.check_hostname = not server and options.tls_name != "*"
    made.verify_mode = ssl.CERT_REQUIRED
    if server:
        made.num_tickets = 0  # sessions are not resumed
    try:
        made.load_verify_locations(options.tls_ca)
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"tls_ca {options.tls_ca!r} cannot be used: {_short(error)}") from None
    try:
        made.load_cert_chain(options.tls_cert, options.tls_key, password=_no_password)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise InputError(
            f"tls_cert {options.tls_cert!r} with tls_key {options.tls_key!r} cannot be used:"
            f" {_short(error)}"
        ) from None
    return made


def _no_password() -> str:
    raise ValueError("the key needs a password; give one without")


def _short(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return str(error.reason or "not PEM").replace("_", " ").lower()
    return getattr(error, "strerror", None) or str(error)


def explain(error: ssl.SSLError, name: str | None) -> LinkError:
    """Say what a TLS error means, and which option to look at.

    Args:
        error: what the handshake, or the first read after it, raised.
        name: the name that the listener's certificate had to carry, at the connecting end.

    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return LinkError(_explain_verification(error, name))
    text = _REASONS.get(error.reason or "")
    return LinkError(text or f"TLS failed: {_short(error)}")


def _explain_verification(error: ssl.SSLCertVerificationError, name: str | None) -> str:
    if error.verify_code in (_NAME, _IP):
        return (
            f"the peer's certificate is not for {name!r}; connect by the name it carries, or set"
            " tls_name to it"
        )
    known = _VERIFY.get(error.verify_code)
    return known or f"the peer's certificate is refused: {error.verify_message}"


def names(certificate: Mapping[str, Any] | None) -> Iterator[str]:
    """The common names of a certificate's subject, then its alternative names."""
    for attributes in (certificate or {}).get("subject", ()):
        for key, value in attributes:
            if key == "commonName":
                yield str(value)
    for _, value in (certificate or {}).get("subjectAltName", ()):
        yield str(value)


def identity(certificate: Mapping[str, Any] | None) -> str:
    """Return the common name of a certificate's subject, or else its first alternative name."""
    return next(names(certificate), "")
