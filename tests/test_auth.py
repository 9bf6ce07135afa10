"""AUTH: the file of users, which passwords are accepted, that none is logged, and real clients."""

from __future__ import annotations

import asyncio
import base64
import hmac
import os
import smtplib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import aiosmtplib
import pytest
from scramp import ScramClient

from blackhole.process import auth_file, configuration
from blackhole.settings import OperatorError
from blackhole.smtp.auth import MECHANISMS, choose_mechanisms
from blackhole.smtp.scram import saslprep
from blackhole.smtp.session import Session
from blackhole.smtp.state import ListenerConfig
from tests.certificates import Certificate
from tests.engines import make_engine
from tests.external_programs import path_of, requires
from tests.option_samples import read
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


WITHOUT_PASSWORDS = choose_mechanisms(["all"], has_passwords=False)


@pytest.mark.parametrize("user", ["", "ann", "fail=1"])
@pytest.mark.parametrize("mechanism", sorted(WITHOUT_PASSWORDS))
def test_any_accepts_an_empty_user_with_every_mechanism(mechanism: str, user: str) -> None:
    session = make_engine(auth=True, auth_plaintext=True, auth_mechanisms=WITHOUT_PASSWORDS).session()
    session.greet()
    challenge = replies(session, f"AUTH {mechanism}")[0].removeprefix("334").strip()
    digest = hmac.new(b"", base64.b64decode(challenge), "md5").hexdigest()
    responses = {
        "PLAIN": [f"\0{user}\0"],
        "LOGIN": [user, ""],
        "CRAM-MD5": [f"{user} {digest}"],
        "XOAUTH2": [f"user={user}\x01auth=Bearer \x01\x01"],
        "OAUTHBEARER": [f"n,a={user.replace('=', '=3D')},\x01auth=Bearer \x01\x01"],
        "ANONYMOUS": [user],
        "EXTERNAL": [user],
    }
    code = "535" if user == "fail=1" and mechanism != "ANONYMOUS" else "235"
    answer = replies(session, *map(b64, responses[mechanism]))[-1]
    if mechanism in ("XOAUTH2", "OAUTHBEARER") and code == "535":
        answer = replies(session, "")[-1]
    assert answer[:3] == code


@pytest.mark.parametrize(
    ("name", "token", "code"),
    [("a=ann", PASSWORD, "235"), ("", PASSWORD, "235"), ("a=bob", PASSWORD, "535"), ("", "no", "535")],
)
def test_bearer_token_has_to_be_the_password_of_its_user(name: str, token: str, code: str) -> None:
    """RFC 7628 3.1: the client may leave it to the server to find out whose token it is."""
    text = b64(f"n,{name},\x01host=mx.test\x01auth=Bearer {token}\x01\x01")
    answers = replies(session_for_ann(), f"AUTH OAUTHBEARER {text}", "AQ==")
    assert answers[0 if code == "235" else 1][:3] == code


@pytest.mark.parametrize("octets", [b"n,a=a,\x01auth=Bearer" + b" " * 9000, b"n,a=," + b"\x01a=" * 3000])
def test_wrong_tokens_are_refused_in_linear_time(octets: bytes) -> None:
    session, text = session_for_ann(), base64.b64encode(octets).decode()
    began = time.process_time()
    for mechanism in ("OAUTHBEARER", "XOAUTH2"):
        assert replies(session, f"AUTH {mechanism} {text}")[0][:3] == "501"
    assert time.process_time() - began < 0.2


def scram(session: Session, user: str, password: str, change: tuple[str, str] = ("", "")) -> list[str]:
    """Authenticate with the client of scramp; `change` replaces a text in its last message."""
    client = ScramClient(["SCRAM-SHA-256"], user, password)
    first = replies(session, f"AUTH SCRAM-SHA-256 {b64(client.get_client_first())}")[0]
    if not first.startswith("334"):
        return [first]
    client.set_server_first(base64.b64decode(first[4:]).decode())
    final = client.get_client_final().replace(*change) if change[0] else client.get_client_final()
    answer = replies(session, b64(final))[0]
    if not answer.startswith("334"):
        return [first, answer]
    client.set_server_final(base64.b64decode(answer[4:]).decode())  # raises if the server knows no password
    return [first, answer, *replies(session, "")]


@pytest.mark.parametrize(
    ("user", "password", "code"), [("ann", PASSWORD, "235"), ("ann", "no", "535"), ("eve", PASSWORD, "535")]
)
def test_scram_proves_the_password_to_both_sides(user: str, password: str, code: str) -> None:
    assert scram(session_for_ann(), user, password)[-1][:3] == code


def test_scram_takes_names_with_commas_and_passwords_outside_ascii() -> None:
    """RFC 5802 5.1 and RFC 4013: the client and the file write the same password in two ways."""
    config = ListenerConfig(
        auth=True, auth_plaintext=True, passwords={b"a,b=c": "pa\u00a0ss\u2168\u00ad".encode()}
    )
    session = make_engine(config=config).session()
    session.greet()
    assert scram(session, "a,b=c", "pa ssIX")[-1][:3] == "235"


@pytest.mark.parametrize(
    "change", [("c=biws", "c=eSws"), ("r=", "r=x"), (",p=", ",q="), (",p=", ",p=="), (",p=", ",p=AA==")]
)
def test_scram_refuses_a_final_message_that_was_changed(change: tuple[str, str]) -> None:
    code = "535" if change[1].endswith("AA==") else "501"
    if code == "535":
        session = session_for_ann()
        first = replies(session, f"AUTH SCRAM-SHA-256 {b64('n,,n=ann,r=abc')}")[0]
        nonce = base64.b64decode(first[4:]).decode().partition(",")[0]
        assert replies(session, b64(f"c=biws,{nonce},p=AA=="))[0][:3] == code
    else:
        assert scram(session_for_ann(), "ann", PASSWORD, change)[-1][:3] == code


@pytest.mark.parametrize("first", ["", "n,,", "n,,m=x,n=ann,r=abc", "p=x,,n=ann,r=abc", "n,,n=a=nn,r=abc"])
def test_scram_refuses_a_wrong_first_message(first: str) -> None:
    assert replies(session_for_ann(), f"AUTH SCRAM-SHA-256 {b64(first) or '='}")[0][:3] == "501"


@pytest.mark.parametrize(
    ("given", "prepared"),
    [
        ("I\u00adX", "IX"),
        ("user", "user"),
        ("USER", "USER"),
        ("\u00aa", "a"),
        ("\u2168", "IX"),
        ("\u0007", "\u0007"),
        ("\u0627\u0031", "\u0627\u0031"),
        ("\u0627a\u0627", "\u0627a\u0627"),
        ("\u0627\u00a0\u0627", "\u0627 \u0627"),
    ],
)
def test_passwords_are_prepared_as_rfc_4013_says(given: str, prepared: str) -> None:
    """The examples of its section 3. What it refuses stays as it is, and equals itself."""
    assert saslprep(given.encode()) == prepared.encode()
    assert saslprep(b"\xff") == b"\xff"


def test_external_needs_a_certificate_where_there_is_a_file_of_users() -> None:
    config = ListenerConfig(
        auth=True, auth_plaintext=True, auth_mechanisms=frozenset(("EXTERNAL",)), passwords={b"ann": b"x"}
    )
    for identity, name, code in ((b"", "ann", "535"), (b"ann", "", "235"), (b"ann", "bob", "535")):
        session = make_engine(config=config).session()
        session.client_identity = identity
        assert replies(session, f"AUTH EXTERNAL {b64(name) or '='}")[0][:3] == code


def test_anonymous_is_no_user_of_the_file_and_accepted_all_the_same() -> None:
    config = ListenerConfig(
        auth=True, auth_plaintext=True, auth_mechanisms=frozenset(("ANONYMOUS",)), passwords={b"ann": b"x"}
    )
    for text, code in (("", "235"), ("x" * 2000, "501")):
        session = make_engine(config=config).session()
        assert replies(session, f"AUTH ANONYMOUS {b64(text) or '='}")[0][:3] == code


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (
            ("--auth=any", "--auth_mechanisms=SCRAM-SHA-256"),
            "auth_mechanisms: SCRAM-SHA-256 needs the passwords",
        ),
        (
            ("--auth=any", "--auth_mechanisms=NTLM"),
            "auth_mechanisms: unknown keyword NTLM; the keywords are ",
        ),
        (("--auth_required",), "auth_required: nobody can authenticate"),
        (("--auth_required", "--auth=any", "--extensions=SIZE"), "auth_required: nobody can authenticate"),
    ],
)
def test_wrong_choice_is_an_error_before_the_start(options: tuple[str, ...], error: str) -> None:
    with pytest.raises(OperatorError) as caught:
        configuration.read(read(*options), print)
    assert str(caught.value).startswith(error)


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
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_swaks_authenticates_with_the_right_password_only(
    mechanism: str, password: str, code: int, program: Program
) -> None:
    server = (f"--server=127.0.0.1:{program.port}", "--to=bob@example.com", "--tls")
    user = (f"--auth={mechanism}", "--auth-user=ann", f"--auth-password={password}")
    assert exit_code(path_of("swaks"), *server, *user) == code


@requires("curl")
@pytest.mark.parametrize(("password", "code"), [(PASSWORD, 0), ("wrong", 67)], ids=["right", "wrong"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2", "OAUTHBEARER"])
def test_curl_authenticates_with_the_right_password_only(
    mechanism: str, password: str, code: int, certificate: Certificate, program: Program
) -> None:
    bearer = mechanism in ("XOAUTH2", "OAUTHBEARER")
    user = ("--user", "ann", "--oauth2-bearer", password) if bearer else ("--user", f"ann:{password}")
    options = (
        *("--silent", "--ssl-reqd", "--cacert", certificate.ca, "--max-time", "20"),
        *("--login-options", f"AUTH={mechanism}"),
        *("--connect-to", f"mx.test:25:127.0.0.1:{program.port}", "smtp://mx.test:25"),
        *("--mail-from", "ann@client.test", "--mail-rcpt", "bob@example.com", "--upload-file", "-"),
    )
    message = "Subject: a test\r\n\r\nHello\r\n"
    assert exit_code(path_of("curl"), *user, *options, text=message) == code


@pytest.mark.parametrize(("password", "code"), [(PASSWORD, 235), ("wrong", 535)], ids=["right", "wrong"])
@pytest.mark.parametrize("mechanism", ["plain", "login", "crammd5", "xoauth2"])
def test_aiosmtplib_authenticates_with_the_right_password_only(
    mechanism: str, password: str, code: int, certificate: Certificate, program: Program
) -> None:
    async def authenticate() -> int:
        host, port = program.address
        client = aiosmtplib.SMTP(hostname=host, port=port, start_tls=True, tls_context=certificate.client)
        await client.connect()
        try:
            await client.ehlo()
            return (await getattr(client, f"auth_{mechanism}")("ann", password)).code
        except aiosmtplib.SMTPAuthenticationError as error:
            return error.code
        finally:
            assert client.transport is not None
            connection = client.transport.get_extra_info("socket")
            await client.quit()
            while connection.fileno() >= 0:  # until the server has closed its side too
                await asyncio.sleep(0.01)

    assert asyncio.run(authenticate()) == code
