"""The TLS menu: what clients meet at each entry, however it is selected, and what is counted of it."""

from __future__ import annotations

import os
import re
import signal
import smtplib
import socket
import ssl
import sys
import urllib.request
import warnings
from contextlib import suppress
from pathlib import Path

import pytest

from blackhole import options
from blackhole.metrics import report
from blackhole.metrics.layout import CELL_INDEX
from blackhole.metrics.tls_events import TLS_FAILURES, entry_cell, failure_cell
from blackhole.net import menu_certificates
from blackhole.net.client_hello import server_name
from blackhole.net.menu_certificates import CERTIFICATE_TEMPLATES, MenuCertificates, issue
from blackhole.net.tls import TLSContexts, make_context
from blackhole.net.tls_choice import OPENSSL_REASONS, client_identity, failure_reason
from blackhole.process import tls_configuration
from blackhole.settings import ACCELERATORS, OperatorError
from blackhole.tls_menu import (
    CERTIFICATES,
    HANDSHAKE_FAULTS,
    TLS_MENU,
    USUAL_TLS,
    TLSParameters,
    entry_name,
)
from tests.certificates import Certificate, read_certificate
from tests.http_api import Sink, ask
from tests.program import Program, run, wait_for
from tests.service import Serve, Service

REFUSALS = {
    "self-signed": "self-signed certificate",
    "untrusted": "unable to get local issuer certificate",
    "no-intermediate": "unable to get local issuer certificate",
    "expired": "certificate has expired",
    "not-yet-valid": "certificate is not yet valid",
    "wrong-name": "Hostname mismatch",
    "no-san": "Hostname mismatch",
    "wrong-usage": "unsuitable certificate purpose",
}
"""Entry with a bad certificate -> what OpenSSL says against it, if it trusts the authority."""


@pytest.fixture(params=[ACCELERATORS, frozenset()], ids=["fast", "simple"])
def accelerators(request: pytest.FixtureRequest) -> frozenset[str]:
    """Run each test with all accelerators, and with none."""
    return frozenset(request.param)


@pytest.fixture(scope="module")
def issued() -> MenuCertificates:
    return issue(("mx.test",), "a test")


@pytest.fixture(autouse=True)
def same_certificates(issued: MenuCertificates, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all servers of this process have the same certificates."""
    monkeypatch.setattr(menu_certificates, "issue", lambda hostnames, why: issued)


def trusting(authority: bytes) -> ssl.SSLContext:
    """A client that trusts this authority and no other, and looks for names as RFC 9525 says."""
    context = ssl.create_default_context(cadata=authority.decode())
    context.hostname_checks_common_name = False
    return context


def speak(
    address: tuple[str, int], context: ssl.SSLContext, name: str = "mx.test", starttls: bool = True
) -> bytes:
    """Send a message after the handshake, and return what the server says; ends without QUIT."""
    with socket.create_connection(address, 20) as plain:
        if starttls:
            assert plain.recv(4096).startswith(b"220 ")
            plain.sendall(b"STARTTLS\r\n")
            assert plain.recv(4096).startswith(b"220 ")
        with context.wrap_socket(plain, server_hostname=name) as client:
            if not starttls:
                assert client.recv(4096).startswith(b"220 ")
            client.sendall(b"EHLO c.test\r\nMAIL FROM:<>\r\nRCPT TO:<b@b.test>\r\nDATA\r\n")
            heard = b""
            while b"354 " not in heard:
                data = client.recv(4096)
                assert data, heard
                heard += data
            client.sendall(b".\r\n")
            return client.recv(4096)


def results(service: Service, entry: str) -> tuple[int, int, int]:
    """Connections at an entry: the handshake failed, no message was sent, one was."""
    service.settle()
    failed, left, sent = (
        service.cells[CELL_INDEX[entry_cell(entry, one)]] for one in ("failed", "left", "sent")
    )
    return failed, left, sent


def test_every_certificate_of_the_menu_is_issued(issued: MenuCertificates) -> None:
    assert CERTIFICATE_TEMPLATES.keys() == CERTIFICATES.keys() == issued.pem.keys()
    assert not REFUSALS.keys() ^ CERTIFICATES.keys() ^ {"good"}


def test_names_of_entries_are_labels_of_host_names_and_tell_entries_apart() -> None:
    names = [entry.name for entry in TLS_MENU]
    assert all(re.fullmatch("[a-z0-9]([a-z0-9-]*[a-z0-9])?", name) for name in names)
    assert len({*names}) == len(names)
    assert [entry_name(entry.parameters) for entry in TLS_MENU] == names


@pytest.mark.parametrize("entry", REFUSALS)
def test_each_bad_certificate_has_its_one_fault(entry: str, issued: MenuCertificates, serve: Serve) -> None:
    """By STARTTLS and by implicit TLS, on a listener whose entry it is."""
    context = trusting(issued.authority)
    for secure in (False, True):
        service = serve(f"--tls_menu={entry}", secure=secure)
        with pytest.raises(ssl.SSLCertVerificationError, match=REFUSALS[entry]):
            speak(service.address, context, starttls=not secure)
        assert results(service, entry) == (1, 0, 0)


def test_the_fault_of_a_certificate_is_one_that_a_careless_client_does_not_see(
    issued: MenuCertificates, serve: Serve
) -> None:
    service = serve("--tls_menu=sni")
    careless = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    careless.check_hostname, careless.verify_mode = False, ssl.CERT_NONE
    for entry in CERTIFICATES:
        assert speak(service.address, careless, f"{entry}.badtls.test").startswith(b"250 ")
        assert results(service, entry) == (0, 0, 1)


def test_the_name_that_a_client_asks_for_selects_the_entry(issued: MenuCertificates, serve: Serve) -> None:
    service = serve("--tls_menu=sni", "--ssl_cert=auto")
    context = trusting(issued.authority)
    assert speak(service.address, context).startswith(b"250 ")
    for entry, error in REFUSALS.items():
        with pytest.raises(ssl.SSLCertVerificationError, match=error):
            speak(service.address, context, f"{entry.upper()}.mx.test")
        assert results(service, entry) == (1, 0, 0)
    assert results(service, "good") == (0, 0, 1)


def test_a_rule_selects_for_some_clients_and_goes_before_the_name(
    issued: MenuCertificates, serve: Serve, tmp_path: Path
) -> None:
    scenario = tmp_path / "s.toml"
    scenario.write_text(
        '[[rule]]\nphase = "STARTTLS"\nclient = "127.0.0.1"\nhelo = "liar*"\ncertificate = "expired"\n'
    )
    service = serve("--tls_menu=sni", f"--scenario={scenario}")
    context = trusting(issued.authority)
    assert speak(service.address, context).startswith(b"250 ")
    with smtplib.SMTP(*service.address, "liar.test", timeout=20) as client:
        client.ehlo()
        client._host = "wrong-name.badtls.test"  # type: ignore[attr-defined]
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            client.starttls(context=context)
        client.close()
    assert results(service, "expired") == (1, 0, 0)
    assert results(service, "wrong-name") == (0, 0, 0)


@pytest.mark.parametrize(("entry", "version"), [(f"tls1-{minor}", f"1.{minor}") for minor in range(4)])
def test_an_entry_speaks_one_version_only(
    entry: str, version: str, issued: MenuCertificates, serve: Serve
) -> None:
    service = serve(f"--tls_menu={entry}")
    for minor in range(4):
        context = trusting(issued.authority)
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            spoken = ssl.TLSVersion.TLSv1 + minor
            context.minimum_version = context.maximum_version = ssl.TLSVersion(spoken)
        if version == f"1.{minor}":
            assert speak(service.address, context).startswith(b"250 ")
        else:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                speak(service.address, context)
    assert results(service, entry) == (3, 0, 1)


def test_ciphers_are_those_of_the_entry(issued: MenuCertificates, serve: Serve) -> None:
    service = serve("--tls_menu=cbc-cipher")
    context = trusting(issued.authority)
    context.set_ciphers("ECDHE+AESGCM")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        speak(service.address, context)
    context.set_ciphers("ECDHE-ECDSA-AES128-SHA")
    assert speak(service.address, context).startswith(b"250 ")
    assert results(service, "cbc-cipher") == (1, 0, 1)
    assert service.cells[CELL_INDEX[failure_cell("no_common_cipher")]] == 1


@pytest.mark.parametrize("how", ["listener", "name", "rule"])
@pytest.mark.parametrize("fault", ["close-in-handshake", "reset-in-handshake"])
@pytest.mark.parametrize("secure", [False, True], ids=["starttls", "implicit"])
def test_the_server_ends_the_handshake_when_the_client_hello_has_come(
    fault: str, how: str, secure: bool, issued: MenuCertificates, serve: Serve, tmp_path: Path
) -> None:
    scenario = tmp_path / "s.toml"
    scenario.write_text(f'[[rule]]\nphase = "STARTTLS"\nthen = "{fault}"\n')
    service = serve(
        *{
            "listener": [f"--tls_menu={fault}"],
            "name": ["--tls_menu=sni"],
            "rule": ["--ssl_cert=auto", f"--scenario={scenario}"],
        }[how],
        secure=secure,
    )
    error = ConnectionResetError if fault == "reset-in-handshake" else ssl.SSLEOFError
    with pytest.raises(error):
        speak(service.address, trusting(issued.authority), f"{fault}.badtls.test", not secure)
    assert results(service, fault) == (1, 0, 0)
    assert service.cells[CELL_INDEX["tls_failed"]] == 0


def test_the_server_stalls_in_the_handshake(issued: MenuCertificates, serve: Serve) -> None:
    service = serve("--tls_menu=sni")
    with socket.create_connection(service.address, 20) as plain:
        plain.recv(4096)
        plain.sendall(b"STARTTLS\r\n")
        plain.recv(4096)
        plain.settimeout(0.3)
        with pytest.raises(TimeoutError):
            trusting(issued.authority).wrap_socket(plain, server_hostname="stall-in-handshake.badtls.test")
    assert results(service, "stall-in-handshake") == (1, 0, 0)


@pytest.mark.parametrize("entry", ["good", "no-close-notify"])
def test_the_server_closes_without_close_notify(entry: str, issued: MenuCertificates, serve: Serve) -> None:
    service = serve("--tls_menu=sni")
    with socket.create_connection(service.address, 20) as plain:
        plain.recv(4096)
        plain.sendall(b"STARTTLS\r\n")
        plain.recv(4096)
        with trusting(issued.authority).wrap_socket(
            plain, server_hostname=f"{entry}.badtls.test", suppress_ragged_eofs=False
        ) as client:
            client.sendall(b"QUIT\r\n")
            assert client.recv(4096).startswith(b"221 ")
            if entry == "good":
                assert client.recv(4096) == b""
            else:
                with pytest.raises(ssl.SSLEOFError):
                    client.recv(4096)
    assert results(service, entry) == (0, 1, 0)


# Certificates of clients.


@pytest.fixture(scope="module")
def client_certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Two authorities, and a file with certificate and key of each: of ann@example.com and of a stranger."""
    import trustme

    folder = tmp_path_factory.mktemp("clients")
    authority, stranger = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    for name, of in (("ann", authority), ("stranger", stranger)):
        of.issue_cert("ann@example.com", "client.test").private_key_and_cert_chain_pem.write_to_path(
            str(folder / f"{name}.pem")
        )
    return folder / "ca.pem", folder / "ann.pem", folder / "stranger.pem"


@pytest.mark.parametrize("wanted", ["ask", "require"])
def test_a_client_may_or_must_have_a_certificate(
    wanted: str, issued: MenuCertificates, client_certificates: tuple[Path, Path, Path], serve: Serve
) -> None:
    authority, ann, stranger = client_certificates
    service = serve("--ssl_cert=auto", f"--client_cert={wanted}", f"--client_ca={authority}")
    for file, succeeds in ((None, wanted == "ask"), (ann, True), (stranger, False)):
        context = trusting(issued.authority)
        context.maximum_version = ssl.TLSVersion.TLSv1_2  # later, a client learns of it after the handshake
        if file is not None:
            context.load_cert_chain(file)
        if succeeds:
            assert speak(service.address, context).startswith(b"250 ")
        else:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                speak(service.address, context)
    service.settle()
    reasons = {one: service.cells[CELL_INDEX[failure_cell(one)]] for one in TLS_FAILURES}
    assert {one: count for one, count in reasons.items() if count} == {
        "untrusted_client_certificate": 1,
        **({"no_client_certificate": 1} if wanted == "require" else {}),
    }


def test_the_certificate_of_a_client_says_who_it_is_to_auth_external(
    issued: MenuCertificates, client_certificates: tuple[Path, Path, Path], serve: Serve, tmp_path: Path
) -> None:
    authority, ann, _ = client_certificates
    users = tmp_path / "users"
    users.write_text("ann@example.com:x\nbob@example.com:y\n")
    users.chmod(0o600)
    for secure in (False, True):
        service = serve(
            *("--ssl_cert=auto", "--client_cert=ask", f"--client_ca={authority}", f"--auth={users}"),
            "--auth_mechanisms=EXTERNAL,PLAIN",
            secure=secure,
        )
        for file, response, code in (
            (ann, "", 235),
            (ann, "ann@example.com", 235),
            (ann, "bob@example.com", 535),
            (None, "ann@example.com", 535),
            (None, "", 535),
        ):
            context = trusting(issued.authority)
            if file is not None:
                context.load_cert_chain(file)
            with smtplib_client(service, context, secure) as client:
                client.ehlo()
                assert "EXTERNAL" in client.esmtp_features["auth"]
                with suppress(smtplib.SMTPAuthenticationError):
                    client.auth("EXTERNAL", lambda challenge=None, response=response: response)
                assert client.docmd("NOOP")[0] == 250
                assert client.docmd("AUTH PLAIN")[0] == (503 if code == 235 else 334)
                if code == 535:
                    client.docmd("*")


def smtplib_client(service: Service, context: ssl.SSLContext, secure: bool) -> smtplib.SMTP:
    """A client under TLS that calls the server mx.test."""
    host, port = service.address
    if secure:
        client: smtplib.SMTP = smtplib.SMTP_SSL(timeout=20, context=context)
        client._host = "mx.test"  # type: ignore[attr-defined]
        client.connect(host, port)
        return client
    client = smtplib.SMTP(host, port, timeout=20)
    client._host = "mx.test"  # type: ignore[attr-defined]
    client.starttls(context=context)
    return client


@pytest.mark.pure
@pytest.mark.parametrize(
    ("certificate", "name"),
    [
        (None, b""),
        ({}, b""),
        ({"subjectAltName": (("DNS", "a.test"), ("email", "ann@a.test"))}, b"ann@a.test"),
        ({"subjectAltName": (("IP Address", "192.0.2.1"), ("DNS", "a.test"))}, b"a.test"),
        ({"subject": ((("organizationName", "A"),), (("commonName", "J\xf6rg"),))}, "J\xf6rg".encode()),
        ({"subject": ((("organizationName", "A"),),)}, b""),
    ],
)
def test_the_name_of_a_client_is_its_mail_address_its_host_or_its_common_name(
    certificate: dict[str, object] | None, name: bytes
) -> None:
    assert client_identity(certificate) == name


# The name that a client asks for, as a condition of rules.


def test_rules_know_the_name_after_the_handshake(
    issued: MenuCertificates, serve: Serve, tmp_path: Path
) -> None:
    scenario = tmp_path / "s.toml"
    scenario.write_text('[[rule]]\nphase = "MAIL"\nsni = "busy.*"\nreply = "451 4.3.0 Busy"\n')
    for options_of_tls in (["--ssl_cert=auto"], ["--tls_menu=sni"]):
        service = serve(*options_of_tls, f"--scenario={scenario}", secure=True)
        context = trusting(issued.authority)
        for name, code in (("busy.mx.test", b"451 "), ("mx.test", b"250 ")):
            with (
                socket.create_connection(service.address, 20) as plain,
                context.wrap_socket(plain, server_hostname=name) as client,
            ):
                assert client.recv(4096).startswith(b"220 ")
                client.sendall(b"MAIL FROM:<>\r\n")
                assert client.recv(4096).startswith(code)


def hello(name: str | None) -> bytes:
    """The first record of a client that asks for a name, or for none."""
    outgoing = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


@pytest.mark.pure
def test_a_client_hello_that_is_cut_or_damaged_asks_for_no_name() -> None:
    whole = hello("mx.test")
    assert server_name(whole) == b"mx.test"
    assert server_name(hello(None)) == server_name(hello("127.0.0.1")) == b""
    for length in range(len(whole)):
        assert server_name(whole[:length]) == b""
    for place in range(len(whole)):
        damaged = whole[:place] + bytes((whole[place] ^ 0xFF,)) + whole[place + 1 :]
        assert len(server_name(damaged)) <= 255


# Why handshakes fail.


@pytest.mark.pure
def test_every_reason_that_is_counted_is_in_the_table() -> None:
    assert {*OPENSSL_REASONS.values()} <= TLS_FAILURES.keys()
    for reason, expected in (
        ("TLSV1_ALERT_UNKNOWN_CA", "unknown_ca"),
        ("SSLV3_ALERT_CERTIFICATE_EXPIRED", "certificate_expired"),
        ("TLSV1_ALERT_EXPORT_RESTRICTION", "other_alert"),
        ("NO_SHARED_CIPHER", "no_common_cipher"),
        ("BAD_EXTENSION", "other"),
    ):
        error = ssl.SSLError(1, reason)
        error.reason = reason
        assert failure_reason(error) == expected
    assert failure_reason(ssl.SSLZeroReturnError()) == "closed"
    assert failure_reason(BrokenPipeError()) == "reset"
    assert failure_reason(ValueError()) == "other"


def test_what_is_not_tls_and_who_leaves_in_the_handshake_is_told_apart(
    issued: MenuCertificates, serve: Serve
) -> None:
    service = serve("--ssl_cert=auto", secure=True)
    for octets in (b"GET / HTTP/1.0\r\n\r\n", hello("mx.test")):
        with socket.create_connection(service.address, 20) as plain:
            plain.sendall(octets)
            with suppress(OSError):
                plain.recv(1)
    service.settle()
    assert service.cells[CELL_INDEX[failure_cell("not_tls")]] == 1
    assert sum(service.cells[CELL_INDEX[failure_cell(one)]] for one in ("closed", "reset")) == 1
    assert results(service, "good") == (2, 0, 0)


# What the program says.


def test_the_authority_can_be_fetched_and_stays_over_a_reload(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    tls = "--tls_menu=sni", "--ssl_port=0", "--hostname=mx.test"
    with Program(*tls, "--dashboard=127.0.0.1:0", f"--pid={pid}") as program:
        (line,) = (line for line in program.output().splitlines() if "authority" in line)
        assert ", STARTTLS (certificate good, menu by name)\n" in program.output()
        (url,) = re.findall(r"http://\S+/authority\.pem", line)
        (fingerprint,) = re.findall(r"SHA-256 ([0-9A-F:]{95});", line)
        with urllib.request.urlopen(url, timeout=20) as response:
            assert response.headers["Content-Type"] == "application/x-pem-file"
            authority = response.read()
        assert run("authority", f"--pid={pid}").stdout.encode() == authority
        assert speak(program.address, trusting(authority)).startswith(b"250 ")
        os.kill(program.pid, signal.SIGHUP)
        wait_for(lambda: "reloaded: certificates" in program.output(), "the program has reloaded")
        assert speak(program.address, trusting(authority)).startswith(b"250 ")
        assert program.output().count(fingerprint) == 2
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            speak(program.address, trusting(authority), "expired.badtls.test")
        wait_for(lambda: program.snapshot().tls_menu["expired"]["failed"], "the refusal is counted")
        wait_for(lambda: program.snapshot().tls_menu["good"]["sent"] == 2, "the messages are counted")
        assert program.snapshot().tls_menu["expired"] == {"failed": 1, "left": 0, "sent": 0}
        text = report.report_text(program.snapshot())
    assert "\n1 handshake failed, certificate_expired: the client refused the certificate as expired" in text
    assert "\nat expired: 1 handshake failed, 0 connections without a message, 0 connections with" in text


def put_rule(program: Sink, rule: str) -> tuple[int, str]:
    """The status and the error of a scenario with one rule for STARTTLS."""
    response = ask(program.http, "/scenario", "PUT", f'[[rule]]\nphase = "STARTTLS"\n{rule}\n')
    return response.status, response.json.get("error", "")


def test_rules_that_come_at_run_time_are_checked_and_bring_their_certificates(
    certificate: Certificate,
) -> None:
    """The server has a certificate of its own, and issued none at the start."""
    with Sink(*certificate.options, "--hostname=mx.test") as program:
        program.dashboard()
        status, error = put_rule(program, 'tls_ciphers = "NOSUCH"')
        assert (status, error) == (400, "tls_ciphers NOSUCH: OpenSSL has none of these ciphers")
        status, error = put_rule(program, 'client_cert = "ask"')
        assert status == 400
        assert error.startswith("client_cert needs client_ca")
        assert put_rule(program, 'certificate = "expired"')[0] == 200
        with pytest.raises(ssl.SSLCertVerificationError, match="local issuer"):
            speak(program.address, certificate.client)
        authority = ask(program.http, "/authority.pem").body
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            speak(program.address, trusting(authority))
        assert put_rule(program, 'tls_max = "1.2"')[0] == 200
        with socket.create_connection(program.address, 20) as plain:
            plain.recv(4096)
            plain.sendall(b"STARTTLS\r\n")
            plain.recv(4096)
            with certificate.client.wrap_socket(plain, server_hostname="mx.test") as client:
                assert client.version() == "TLSv1.2"


def test_rules_that_come_at_run_time_need_tls() -> None:
    with Sink() as program:
        program.dashboard()
        status, error = put_rule(program, 'then = "close-in-handshake"')
    assert status == 400
    assert error == 'scenario: then = "close-in-handshake" needs TLS; give ssl_cert too'


def test_a_server_without_certificates_of_its_own_has_no_authority(tmp_path: Path) -> None:
    with Sink(f"--pid={tmp_path / 'pid'}") as program:
        program.dashboard()
        assert ask(program.http, "/authority.pem").status == 404
        done = run("authority", f"--pid={tmp_path / 'pid'}")
    assert done.returncode == os.EX_CONFIG
    assert done.stderr == (
        "blackhole: the server has issued no certificates; give it ssl_cert = auto, or tls_menu\n"
    )


def configuration_error(*argv: str) -> str:
    """The error of a configuration."""
    settings = options.parse(["--hostname=mx.test", *argv], {}).settings
    with pytest.raises(OperatorError) as raised:
        inputs = tls_configuration.read(settings, (), None)
        tls_configuration.make(settings, inputs, (), pytest.fail)
    assert raised.value.code == os.EX_CONFIG
    return str(raised.value)


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        ("--tls_min=1.3 --tls_max=1.2", "tls_min 1.3 is above tls_max 1.2"),
        ("--tls_ciphers=NOSUCH", "tls_ciphers NOSUCH: OpenSSL has none of these ciphers"),
        (
            "--tls_max=1.1 --tls_ciphers=ECDHE",
            "; TLS 1.0 and 1.1 need :@SECLEVEL=0 at the end of tls_ciphers",
        ),
        (
            "--tls_max=1.2 --tls_ciphers=ECDHE-RSA-AES128-SHA",
            " cannot do this with the certificate: NO_SHARED_C",
        ),
        ("--client_cert=ask", "client_cert needs client_ca, the authorities of the certificates of clients"),
        (
            "--client_cert=ask --client_ca=KEY",
            "/key.pem; it must be in PEM",
        ),
        ("--client_ca=/nonexistent", "cannot read /nonexistent: No such file or directory"),
    ],
)
def test_what_openssl_cannot_do_is_one_line_for_the_operator(
    argv: str, error: str, certificate: Certificate
) -> None:
    assert error in configuration_error("--ssl_cert=auto", *argv.replace("KEY", certificate.key).split())


def test_entries_that_openssl_cannot_do_are_left_out_of_the_menu(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(contexts: TLSContexts, parameters: TLSParameters) -> ssl.SSLContext:
        if parameters.tls_max in ("1.0", "1.1"):
            raise OperatorError("no")
        return contexts.default if parameters != USUAL_TLS else ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    monkeypatch.setattr(TLSContexts, "get", get)
    settings = options.parse(["--tls_menu=sni"], {}).settings
    warned: list[str] = []
    inputs = tls_configuration.read(settings, (), None)
    contexts = tls_configuration.make(settings, inputs, (), warned.append)[settings.listeners[0]]
    assert warned == [f"tls_menu: there is no entry tls1-{minor}: no" for minor in (0, 1)]
    assert contexts.entries.keys() == {entry.name for entry in TLS_MENU} - {"tls1-0", "tls1-1"}


def test_without_cryptography_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for module in [one for one in sys.modules if one.split(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [WithoutCryptography(), *sys.meta_path])
    with pytest.raises(OperatorError) as raised:
        issue(("mx.test",), "tls_menu = expired")
    assert str(raised.value) == "tls_menu = expired needs a package: pip install 'blackhole-smtp[certs]'"


class WithoutCryptography:
    """A finder of modules that does not find the package."""

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name.split(".")[0] == "cryptography":
            raise ModuleNotFoundError(name)


def test_the_own_certificate_serves_other_versions_too(certificate: Certificate) -> None:
    own = read_certificate(certificate.cert, certificate.key)
    made = make_context(own, TLSParameters(tls_max="1.2"))
    assert made.maximum_version is ssl.TLSVersion.TLSv1_2
    assert make_context(own).maximum_version is ssl.TLSVersion.TLSv1_3
    assert not {*HANDSHAKE_FAULTS} & {*CERTIFICATES}
