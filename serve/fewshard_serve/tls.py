"""Checks the certificate with which the server speaks TLS; `config_file` calls it before anything starts."""

import ssl
from pathlib import Path


def why_unusable(certificate: str, key: str) -> tuple[str, str]:
    """Return which of the keys `certificate` and `key` is wrong, and why; two empty strings if none is.

    certificate: the path of a PEM file with the server's certificate and those between it and its authority.
    key: the path of a PEM file with its private key, without a password.
    """
    for name, path in (("certificate", certificate), ("key", key)):
        try:
            text = Path(path).read_text(encoding="latin-1")
        except OSError as error:
            return name, f"{path} cannot be read ({error.strerror}); name a PEM file that this user may read"
        if name == "key" and "ENCRYPTED" in text:
            return name, f"{path} asks for a password; name a key without one"
    return _mistake(certificate, key)


def _mistake(certificate: str, key: str) -> tuple[str, str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            return "key", f"{key} is not the key of {certificate}; name the key that it was made with"
        if _has_certificate(certificate):
            return "key", f"{key} holds no private key in PEM; name the file of the certificate's key"
        return "certificate", f"{certificate} holds no certificate in PEM; name the file of the certificate"
    return "", ""


def _has_certificate(path: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        return False
    return True
