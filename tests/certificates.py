"""Certificates for the servers that tests start."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NamedTuple

import trustme

from blackhole.net.tls import CertificateAndKey, PEMFile


class Certificate(NamedTuple):
    """A server's certificate for mx.test and 127.0.0.1, and a client that trusts it and no other.

    The first three are the paths of PEM files: the certificate, its key, and the authority that issued it.
    """

    cert: str
    key: str
    ca: str
    client: ssl.SSLContext

    @property
    def options(self) -> tuple[str, str]:
        """The options with which the program uses the certificate."""
        return f"--ssl_cert={self.cert}", f"--ssl_key={self.key}"


def issue(folder: Path) -> Certificate:
    """Write a new certificate, its key and its authority into `folder`, over those of an earlier call."""
    authority = trustme.CA()
    issued = authority.issue_cert("mx.test", "127.0.0.1")
    cert, key, ca = folder / "cert.pem", folder / "key.pem", folder / "ca.pem"
    issued.private_key_pem.write_to_path(str(key))
    key.chmod(0o600)
    cert.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    authority.cert_pem.write_to_path(str(ca))
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return Certificate(str(cert), str(key), str(ca), client)


def read_certificate(cert: str, key: str) -> CertificateAndKey:
    """Return the certificate and the key in these files. With an empty `key`, `cert` contains the key too."""
    return CertificateAndKey(*(PEMFile(path, Path(path).read_bytes()) for path in (cert, key or cert)))
