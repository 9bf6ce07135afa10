"""The certificates of the TLS menu: issued at start, kept in memory, by authorities whose keys are forgotten.

    root ---- intermediate ---- good, expired, wrong-name, ...
    another root ---- another intermediate ---- untrusted
                                                self-signed

No client trusts the root by itself. One that is told to (`blackhole authority` prints it) finds in each
certificate the one fault that it is for.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from blackhole.settings import OperatorError
from blackhole.tls_menu import GOOD

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

TEST_DOMAIN: Final = "badtls.test"
"""A domain in which clients may look for entries of the menu: `.test` belongs to nobody (RFC 6761 6.2)."""

OTHER_NAMES: Final = ("localhost", TEST_DOMAIN)
OTHER_ADDRESSES: Final = ("127.0.0.1", "::1")
"""Names and addresses that each certificate is for, besides the name of the server."""

WRONG_NAME: Final = "wrong-name.invalid"

YEAR: Final = timedelta(days=365)

LIFETIME: Final = timedelta(days=396)
"""Of the certificates, from the start on. With CLOCK_SKEW it is less than the 398 days beyond which some
clients refuse one."""

CLOCK_SKEW: Final = timedelta(days=1)
"""By which the clocks of clients may be behind."""

MAX_COMMON_NAME: Final = 64
"""Characters (RFC 5280 A.1)."""

INTERMEDIATE: Final = "intermediate"
ANOTHER_INTERMEDIATE: Final = "another intermediate"
ITSELF: Final = ""
"""Issuers of certificates."""


class _CertificateTemplate(NamedTuple):
    """What a certificate is like, and with it what the server sends."""

    begin: timedelta = -CLOCK_SKEW
    end: timedelta = LIFETIME
    """When it becomes valid, and when it is out of date, from the start on."""
    issuer: str = INTERMEDIATE
    sends_issuer: bool = True
    name: str = ""
    """The only name that it is for; empty: those of the server, and others below them, OTHER_NAMES and
    OTHER_ADDRESSES."""
    has_alternative_names: bool = True
    for_servers: bool = True


CERTIFICATE_TEMPLATES: Final[Mapping[str, _CertificateTemplate]] = {
    GOOD: _CertificateTemplate(),
    "self-signed": _CertificateTemplate(issuer=ITSELF),
    "untrusted": _CertificateTemplate(issuer=ANOTHER_INTERMEDIATE),
    "no-intermediate": _CertificateTemplate(sends_issuer=False),
    "expired": _CertificateTemplate(begin=-2 * YEAR, end=-YEAR),
    "not-yet-valid": _CertificateTemplate(begin=YEAR, end=2 * YEAR),
    "wrong-name": _CertificateTemplate(name=WRONG_NAME),
    "no-san": _CertificateTemplate(has_alternative_names=False),
    "wrong-usage": _CertificateTemplate(for_servers=False),
}
"""Name in CERTIFICATES -> what it is like."""


class MenuCertificates(NamedTuple):
    """What was issued."""

    hostnames: tuple[str, ...]
    """The names of the server, which the certificates are for."""
    pem: Mapping[str, bytes]
    """Name in CERTIFICATES -> the chain that is sent, and the key, as PEM."""
    authority: bytes
    """The certificate of the root, as PEM."""
    fingerprint: str
    """SHA-256 of the good certificate, as OpenSSL writes it."""


def issue(hostnames: tuple[str, ...], why: str) -> MenuCertificates:
    """Issue all certificates, for a server of these names. `why` says what needs them, for an error.

    Raises OperatorError (EX_CONFIG) if the package `cryptography` is not installed.
    """
    try:
        from cryptography.hazmat.primitives import hashes
    except ImportError:
        raise OperatorError(f"{why} needs a package: pip install 'blackhole-smtp[certs]'") from None
    factory = _CertificateFactory(hostnames)
    root = factory.authority("Blackhole test root", None)
    issuers = {
        INTERMEDIATE: factory.authority("Blackhole test intermediate", root),
        ANOTHER_INTERMEDIATE: factory.authority(
            "Another test intermediate", factory.authority("Another test root", None)
        ),
    }
    pem = {}
    for name, template in CERTIFICATE_TEMPLATES.items():
        issuer = issuers.get(template.issuer)
        issued = factory.leaf(template, issuer)
        chain = [issued, issuer] if issuer is not None and template.sends_issuer else [issued]
        pem[name] = b"".join(one.certificate_pem() for one in chain) + issued.key_pem()
        if name == GOOD:
            fingerprint = issued.certificate.fingerprint(hashes.SHA256()).hex(":").upper()
    return MenuCertificates(hostnames, pem, root.certificate_pem(), fingerprint)


class _IssuedCertificate(NamedTuple):
    """A certificate and its key."""

    certificate: x509.Certificate
    key: EllipticCurvePrivateKey

    def certificate_pem(self) -> bytes:
        from cryptography.hazmat.primitives.serialization import Encoding

        return self.certificate.public_bytes(Encoding.PEM)

    def key_pem(self) -> bytes:
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class _CertificateFactory:
    """Issues certificates for one server."""

    def __init__(self, hostnames: tuple[str, ...]) -> None:
        self._hostnames: Final = hostnames
        self._now: Final = datetime.now(UTC)

    def authority(self, name: str, issuer: _IssuedCertificate | None) -> _IssuedCertificate:
        """Return an authority: a root without an issuer, else one that issues for servers only."""
        from cryptography import x509

        return self._issue(
            name,
            _CertificateTemplate(),
            issuer,
            (x509.BasicConstraints(ca=True, path_length=0 if issuer else 1), True),
            (_key_usage(is_authority=True), True),
        )

    def leaf(self, template: _CertificateTemplate, issuer: _IssuedCertificate | None) -> _IssuedCertificate:
        """Return the certificate of a server."""
        from cryptography import x509
        from cryptography.x509.oid import ExtendedKeyUsageOID

        purpose = ExtendedKeyUsageOID.SERVER_AUTH if template.for_servers else ExtendedKeyUsageOID.CLIENT_AUTH
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_key_usage(is_authority=False), True),
            (x509.ExtendedKeyUsage([purpose]), False),
        ]
        if template.has_alternative_names:
            extensions.append((x509.SubjectAlternativeName(self._names(template)), False))
        return self._issue(template.name or self._hostnames[0], template, issuer, *extensions)

    def _names(self, template: _CertificateTemplate) -> list[x509.GeneralName]:
        from cryptography import x509

        if template.name:
            return [x509.DNSName(template.name)]
        names, addresses = [], []
        for host in (*self._hostnames, *OTHER_NAMES, *OTHER_ADDRESSES):
            try:
                addresses.append(x509.IPAddress(ipaddress.ip_address(host)))
            except ValueError:
                names.append(x509.DNSName(host))
        names += [x509.DNSName(f"*.{host}") for host in (*self._hostnames, TEST_DOMAIN) if "." in host]
        return [*dict.fromkeys((*names, *addresses))]

    def _issue(
        self,
        name: str,
        template: _CertificateTemplate,
        issuer: _IssuedCertificate | None,
        *extensions: tuple[x509.ExtensionType, bool],
    ) -> _IssuedCertificate:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name[:MAX_COMMON_NAME])])
        issuing_key = key if issuer is None else issuer.key
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if issuer is None else issuer.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now + template.begin)
            .not_valid_after(self._now + template.end)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuing_key.public_key()), critical=False
            )
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return _IssuedCertificate(builder.sign(issuing_key, hashes.SHA256()), key)


def _key_usage(is_authority: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )
