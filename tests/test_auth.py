"""AUTH: the file of users, which passwords are accepted, that none is logged, and real clients."""

from __future__ import annotations

import base64
import hmac
import os
import smtplib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from blackhole.process import auth_file
from blackhole.settings import OperatorError
from blackhole.smtp.auth import MECHANISMS
from blackhole.smtp.session import Session
from blackhole.smtp.state import ListenerConfig
from tests.certificates import Certificate
from tests.engines import make_engine
from tests.external_programs import path_of, requires
from tests.program import Program, run

PASSWORD = "xyzzy-plugh"


@pytest.fixture
def users(tmp_path: Path) -> Path:
    """A file of users that only its owner can read."""
    path = tmp_path / "users"
    path.write_text(f"# who may\n\nann:{PASSWORD}\nbob:a:b c\n")
    path.chmod(0o600)
    return path


# The file


def test_users_and_passwords_are_read(users: Path) -> None:
    assert auth_file.load(str(users)) == ({b"ann": PASSWORD.encode(), b"bob": b"a:b c"}, "")


@pytest.mark.parametrize("first", ["", "# who may\n"])
def test_byte_order_mark_before_the_users_is_skipped(users: Path, first: str) -> None:
    users.write_text(f"\N{BYTE ORDER MARK}{first}ann:{PASSWORD}\r\n")
    assert auth_file.load(str(users))[0] == {b"ann": PASSWORD.encode()}


def test_file_that_everybody_can_read_causes_a_warning(users: Path) -> None:
    users.chmod(0o644)
    assert auth_file.load(str(users))[1] == f"auth {users}: it is world-readable; chmod o-r {users}"
    done = run("--auth", str(users), "--auth_plaintext", "-t")
    assert f"blackhole: auth {users}: it is world-readable; chmod o-r {users}\n" in done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("ann:x\nbob secret\n", ":2: expected user:password"),
        ("ann:\n", ":1: expected user:password"),
        (":secret\n", ":1: expected user:password"),
        ("ann:x\n# more\nann:y\n", ":3: the user has an earlier line"),
        ("# nobody\n", ": it contains no user"),
    ],
)
def test_error_in_the_file_names_the_line_without_quoting_it(tmp_path: Path, text: str, wrong: str) -> None:
    path = tmp_path / "users"
    path.write_text(text)
    with pytest.raises(OperatorError) as caught:
        auth_file.load(str(path))
    assert str(caught.value) == f"auth {path}{wrong}"


def test_missing_file_is_a_configuration_error(tmp_path: Path) -> None:
    done = run("--auth", str(tmp_path / "nobody"), "--auth_plaintext", "-t")
    assert done.returncode == os.EX_CONFIG
    assert f"blackhole: auth {tmp_path / 'nobody'}: No such file or directory\n" in done.stderr


# Sessions


def replies(session: Session, *lines: str) -> list[str]:
    """Return the replies to lines that are sent one by one."""
    return [session.receive(f"{line}\r\n".encode()).decode().strip() for line in lines]


def b64(text: str) -> str:
    """Return the text in base64, as AUTH sends it."""
    return base64.b64encode(text.encode()).decode()


def session_for_ann() -> Session:
    """Return a session that only ann can authenticate to."""
    config = ListenerConfig(
        hostname="mx.test", auth=True, auth_plaintext=True, passwords={b"ann": PASSWORD.encode()}
    )
    session = make_engine(config=config).session()
    session.greet()
    return session


@pytest.mark.parametrize(
    ("user", "password", "code"),
    [("ann", PASSWORD, "235"), ("ann", "no", "535"), ("eve", PASSWORD, "535"), ("ann", "\xe9", "535")],
)
def test_users_in_the_file_authenticate_with_their_passwords_only(
    user: str, password: str, code: str
) -> None:
    plain = b64(f"\0{user}\0{password}")
    token = f"user={user}\x01auth=Bearer {password}\x01\x01"
    assert replies(session_for_ann(), f"AUTH PLAIN {plain}")[0][:3] == code
    assert replies(session_for_ann(), "AUTH LOGIN", b64(user), b64(password))[2][:3] == code
    assert replies(session_for_ann(), f"AUTH XOAUTH2 {b64(token)}", "")[0 if code == "235" else 1][:3] == code


@pytest.mark.parametrize("user", ["", "ann", "fail=1"])
@pytest.mark.parametrize("mechanism", [row.name for row in MECHANISMS])
def test_any_accepts_an_empty_user_with_every_mechanism(mechanism: str, user: str) -> None:
    session = make_engine(auth=True, auth_plaintext=True).session()
    session.greet()
    challenge = replies(session, f"AUTH {mechanism}")[0].removeprefix("334").strip()
    digest = hmac.new(b"", base64.b64decode(challenge), "md5").hexdigest()
    responses = {
        "PLAIN": [f"\0{user}\0"],
        "LOGIN": [user, ""],
        "CRAM-MD5": [f"{user} {digest}"],
        "XOAUTH2": [f"user={user}\x01auth=Bearer \x01\x01"],
    }
    code = "535" if user == "fail=1" else "235"
    answer = replies(session, *map(b64, responses[mechanism]))[-1]
    if mechanism == "XOAUTH2" and code == "535":
        answer = replies(session, "")[-1]
    assert answer[:3] == code


def test_cram_md5_challenges_are_unique() -> None:
    session = session_for_ann()
    challenges = [replies(session, "AUTH CRAM-MD5", "*")[0] for _ in range(50)]
    assert len(set(challenges)) == 50
    assert base64.b64decode(challenges[0].removeprefix("334 ")).endswith(b"@mx.test>")


@pytest.mark.parametrize("mechanism", [row.name for row in MECHANISMS])
def test_credentials_are_redacted_in_the_trace(mechanism: str) -> None:
    traced: list[bytes] = []
    engine = make_engine(auth=True, auth_plaintext=True, trace=lambda session, way, line: traced.append(line))
    session = engine.session()
    session.greet()
    text = b64(
        f"user=ann\x01auth=Bearer {PASSWORD}\x01\x01" if mechanism == "XOAUTH2" else f"\0ann\0{PASSWORD}"
    )
    replies(session, f"auth {mechanism} {text}", f"AUTH {mechanism}", text, "*")
    replies(session, f"AUTH {text}", f"AUTH x {text}", f"AUTH {mechanism} x {text}", f"AUTH  {text}")
    shown = b"\n".join(traced)
    assert text.encode() not in shown
    assert f"auth {mechanism} ...".encode() in shown


def test_credentials_are_redacted_in_the_trace_where_auth_is_off() -> None:
    traced: list[bytes] = []
    session = make_engine(trace=lambda session, way, line: traced.append(line)).session()
    session.greet()
    replies(session, f"AUTH PLAIN {b64(PASSWORD)}")
    assert traced[-2:] == [b"AUTH PLAIN ...", b"502 5.5.1 Command not implemented"]


def test_repr_of_the_configuration_shows_no_password() -> None:
    assert PASSWORD not in repr(ListenerConfig(passwords={b"ann": PASSWORD.encode()}))


# Clients


@pytest.fixture
def program(users: Path, certificate: Certificate) -> Iterator[Program]:
    with Program(
        "--hostname=mx.test",
        f"--auth={users}",
        "--debug",
        f"--ssl_cert={certificate.cert}",
        f"--ssl_key={certificate.key}",
        "--ssl_port=0",
    ) as program:
        yield program
        assert program.stop() == 0


def test_smtplib_authenticates_after_starttls_and_the_log_shows_no_password(
    program: Program, certificate: Certificate
) -> None:
    """`login` tries CRAM-MD5 first, then PLAIN, then LOGIN."""
    for mechanism in ("", "auth_cram_md5", "auth_plain", "auth_login"):
        with smtplib.SMTP(*program.address, timeout=20) as client:
            with pytest.raises(smtplib.SMTPNotSupportedError):
                client.login("ann", PASSWORD)
            client.starttls(context=certificate.client)
            if not mechanism:
                assert client.login("ann", PASSWORD)[0] == 235
            else:
                client.ehlo()
                client.user, client.password = "ann", PASSWORD
                name = mechanism.removeprefix("auth_").replace("_", "-").upper()
                assert client.auth(name, getattr(client, mechanism))[0] == 235
            assert client.sendmail("ann@client.test", ["bob@example.com"], "Hello") == {}
    with smtplib.SMTP(*program.address, timeout=20) as client:
        client.starttls(context=certificate.client)
        with pytest.raises(smtplib.SMTPAuthenticationError):
            client.login("ann", "wrong")
    log = program.output()
    assert "RECV: AUTH CRAM-MD5" in log
    assert PASSWORD not in log
    assert b64(PASSWORD) not in log
    assert b64(f"\0ann\0{PASSWORD}") not in log


def exit_code(*command: str, text: str = "") -> int:
    """Run a client and return its exit code."""
    return subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=60, check=False
    ).returncode


@requires("swaks")
@pytest.mark.parametrize(("password", "code"), [(PASSWORD, 0), ("wrong", 28)], ids=["right", "wrong"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_swaks_authenticates_with_the_right_password_only(
    mechanism: str, password: str, code: int, program: Program
) -> None:
    server = (f"--server=127.0.0.1:{program.port}", "--to=bob@example.com", "--tls")
    user = (f"--auth={mechanism}", "--auth-user=ann", f"--auth-password={password}")
    assert exit_code(path_of("swaks"), *server, *user) == code


@requires("curl")
@pytest.mark.parametrize(("password", "code"), [(PASSWORD, 0), ("wrong", 67)], ids=["right", "wrong"])
@pytest.mark.parametrize("mechanism", [row.name for row in MECHANISMS])
def test_curl_authenticates_with_the_right_password_only(
    mechanism: str, password: str, code: int, certificate: Certificate, program: Program
) -> None:
    bearer = mechanism == "XOAUTH2"
    user = ("--user", "ann", "--oauth2-bearer", password) if bearer else ("--user", f"ann:{password}")
    options = (
        *("--silent", "--ssl-reqd", "--cacert", certificate.ca, "--max-time", "20"),
        *("--login-options", f"AUTH={mechanism}"),
        *("--connect-to", f"mx.test:25:127.0.0.1:{program.port}", "smtp://mx.test:25"),
        *("--mail-from", "ann@client.test", "--mail-rcpt", "bob@example.com", "--upload-file", "-"),
    )
    message = "Subject: a test\r\n\r\nHello\r\n"
    assert exit_code(path_of("curl"), *user, *options, text=message) == code
