"""AUTH: who is let in, which file says so, and that no password is ever logged; with clients of others."""

from __future__ import annotations

import base64
import os
import shutil
import smtplib
import subprocess
from pathlib import Path
from random import Random

import pytest
from conftest import Certificate
from program import Program, run

from blackhole.process import auth_file
from blackhole.settings import OperatorError
from blackhole.smtp.auth import MECHANISMS
from blackhole.smtp.session import Session, SMTPEngine
from blackhole.smtp.state import ListenerConfig

SECRET = "xyzzy-plugh"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of users that only its owner can read."""
    path = tmp_path / "users"
    path.write_text(f"# who may\n\nann:{SECRET}\nbob:a:b c\n")
    path.chmod(0o600)
    return path


# The file


def test_users_and_passwords_are_read(file: Path) -> None:
    assert auth_file.load(str(file)) == ({b"ann": SECRET.encode(), b"bob": b"a:b c"}, "")


def test_a_file_that_everybody_can_read_is_warned_about(file: Path) -> None:
    file.chmod(0o644)
    assert auth_file.load(str(file))[1] == f"auth {file}: everybody can read it; chmod o-r it"
    done = run("--auth", str(file), "--auth_plaintext", "-t")
    assert f"blackhole: auth {file}: everybody can read it; chmod o-r it\n" in done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("ann:x\nbob secret\n", ":2: expected user:password"),
        ("ann:\n", ":1: expected user:password"),
        (":secret\n", ":1: expected user:password"),
        ("ann:x\n# more\nann:y\n", ":3: this user has a line before"),
        ("# nobody\n", ": there is no user in it"),
    ],
)
def test_mistakes_name_the_line_and_do_not_show_it(tmp_path: Path, text: str, wrong: str) -> None:
    path = tmp_path / "users"
    path.write_text(text)
    with pytest.raises(OperatorError) as caught:
        auth_file.load(str(path))
    assert str(caught.value) == f"auth {path}{wrong}"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    done = run("--auth", str(tmp_path / "nobody"), "--auth_plaintext", "-t")
    assert done.returncode == os.EX_CONFIG
    assert f"blackhole: auth {tmp_path / 'nobody'}: No such file or directory\n" in done.stderr


# The conversation


def talk(session: Session, *lines: str) -> list[str]:
    """The replies to lines that are sent one by one."""
    return [session.receive(f"{line}\r\n".encode()).decode().strip() for line in lines]


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def listed() -> Session:
    """A session where ann alone may log in."""
    config = ListenerConfig(
        hostname="mx.test", auth=True, auth_plaintext=True, passwords={b"ann": SECRET.encode()}
    )
    session = SMTPEngine(config, Random(7)).session()
    session.greet()
    return session


@pytest.mark.parametrize(
    ("user", "password", "code"),
    [("ann", SECRET, "235"), ("ann", "no", "535"), ("eve", SECRET, "535"), ("ann", "\xe9", "535")],
)
def test_a_file_decides_who_is_let_in(user: str, password: str, code: str) -> None:
    token = f"user={user}\x01auth=Bearer {password}\x01\x01"
    assert talk(listed(), f"AUTH PLAIN {b64(f'{chr(0)}{user}{chr(0)}{password}')}")[0][:3] == code
    assert talk(listed(), "AUTH LOGIN", b64(user), b64(password))[2][:3] == code
    assert talk(listed(), f"AUTH XOAUTH2 {b64(token)}", "")[0 if code == "235" else 1][:3] == code


def test_challenges_are_never_the_same() -> None:
    session = listed()
    asked = [talk(session, "AUTH CRAM-MD5", "*")[0] for _ in range(50)]
    assert len(set(asked)) == 50
    assert base64.b64decode(asked[0].removeprefix("334 ")).endswith(b"@mx.test>")


@pytest.mark.parametrize("mechanism", [row.name for row in MECHANISMS])
def test_no_secret_gets_into_the_trace(mechanism: str) -> None:
    seen: list[bytes] = []
    engine = SMTPEngine(
        ListenerConfig(auth=True, auth_plaintext=True),
        Random(7),
        lambda session, way, line: seen.append(line),
    )
    session = engine.session()
    session.greet()
    text = b64(f"user=ann\x01auth=Bearer {SECRET}\x01\x01" if mechanism == "XOAUTH2" else f"\0ann\0{SECRET}")
    talk(session, f"auth {mechanism} {text}", f"AUTH {mechanism}", text, "*")
    talk(session, f"AUTH {text}", f"AUTH x {text}", f"AUTH {mechanism} x {text}", f"AUTH  {text}")
    shown = b"\n".join(seen)
    assert text.encode() not in shown
    assert f"auth {mechanism} ...".encode() in shown


def test_no_secret_gets_into_a_trace_where_auth_is_off() -> None:
    seen: list[bytes] = []
    session = SMTPEngine(ListenerConfig(), Random(7), lambda session, way, line: seen.append(line)).session()
    session.greet()
    talk(session, f"AUTH PLAIN {b64(SECRET)}")
    assert seen[-2:] == [b"AUTH PLAIN ...", b"502 5.5.1 Command not implemented"]


def test_passwords_are_not_shown() -> None:
    assert SECRET not in repr(ListenerConfig(passwords={b"ann": SECRET.encode()}))


# Clients


@pytest.fixture
def program(file: Path, certificate: Certificate) -> Program:
    return Program(
        "--hostname=mx.test",
        f"--auth={file}",
        "--debug",
        f"--ssl_cert={certificate.cert}",
        f"--ssl_key={certificate.key}",
        "--ssl_port=0",
    )


def test_smtplib(program: Program, certificate: Certificate) -> None:
    """It takes CRAM-MD5 first, then PLAIN, then LOGIN; --debug shows no secret of any."""
    with program:
        for mechanism in ("", "auth_cram_md5", "auth_plain", "auth_login"):
            with smtplib.SMTP(*program.address, timeout=20) as client:
                with pytest.raises(smtplib.SMTPNotSupportedError):
                    client.login("ann", SECRET)
                client.starttls(context=certificate.client)
                if not mechanism:
                    assert client.login("ann", SECRET)[0] == 235
                else:
                    client.ehlo()
                    client.user, client.password = "ann", SECRET
                    name = mechanism.removeprefix("auth_").replace("_", "-").upper()
                    assert client.auth(name, getattr(client, mechanism))[0] == 235
                assert client.sendmail("ann@client.test", ["bob@example.com"], "Hello") == {}
        with smtplib.SMTP(*program.address, timeout=20) as client:
            client.starttls(context=certificate.client)
            with pytest.raises(smtplib.SMTPAuthenticationError):
                client.login("ann", "wrong")
        assert program.stop() == 0
        shown = program.output()
    assert "RECV: AUTH CRAM-MD5" in shown
    assert SECRET not in shown
    assert b64(SECRET) not in shown
    assert b64(f"\0ann\0{SECRET}") not in shown


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_swaks(mechanism: str, certificate: Certificate, program: Program) -> None:
    swaks = shutil.which("swaks")
    if swaks is None:
        pytest.skip("swaks is not installed")
    with program:
        for password, code in ((SECRET, 0), ("wrong", 28)):
            done = subprocess.run(
                [
                    *(swaks, f"--server=127.0.0.1:{program.port}", "--to=bob@example.com", "--tls"),
                    *(f"--auth={mechanism}", "--auth-user=ann", f"--auth-password={password}"),
                ],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == code, done.stdout
        assert program.stop() == 0


@pytest.mark.parametrize("mechanism", [row.name for row in MECHANISMS])
def test_curl(mechanism: str, certificate: Certificate, program: Program) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    with program:
        for password, code in ((SECRET, 0), ("wrong", 67)):
            who = (
                ("--user=ann", f"--oauth2-bearer={password}")
                if mechanism == "XOAUTH2"
                else (f"--user=ann:{password}",)
            )
            done = subprocess.run(
                [
                    *(curl, "--silent", "--ssl-reqd", "--cacert", certificate.ca, "--max-time", "20"),
                    *(word for option in who for word in option.split("=", 1)),
                    *(f"--login-options=AUTH={mechanism}".split("=", 1)),
                    *("--connect-to", f"mx.test:25:127.0.0.1:{program.port}", "smtp://mx.test:25"),
                    *("--mail-from", "ann@client.test", "--mail-rcpt", "bob@example.com"),
                    *("--upload-file", "-"),
                ],
                input="Subject: a test\r\n\r\nHello\r\n",
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == code, done.stderr
        assert program.stop() == 0
