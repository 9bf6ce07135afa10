"""DKIM signatures are verified as dkimpy does, with keys from a file."""

from __future__ import annotations

import base64
import os
import re
import smtplib
from pathlib import Path
from random import Random
from typing import NamedTuple

import dkim
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from dkim.canonicalization import Relaxed, Simple

from blackhole.messages.canonical_form import canonical_body, single_blanks
from blackhole.messages.dkim_verification import MAX_VERIFIED_SIGNATURES
from blackhole.messages.message_checks import check_message
from blackhole.net.dkim_keys import PublishedKey, published_keys
from blackhole.process.dkim_key_file import load_records
from blackhole.settings import OperatorError
from tests.engines import EVENT_NUMBERS, make_engine
from tests.program import Program, run

NAME = b"s._domainkey.a.test"

OF_SIGNATURES = {"bad-body-hash", "bad-signature"}


class KeyPair(NamedTuple):
    """A private key in PEM, and the record of its public key."""

    private: bytes
    record: bytes


def rsa_keys(bits: int) -> KeyPair:
    key = rsa.generate_private_key(65537, bits)
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    return KeyPair(private, b"v=DKIM1; k=rsa; p=" + base64.b64encode(public))


@pytest.fixture(scope="module")
def keys() -> KeyPair:
    return rsa_keys(1024)


HEADERS = ("From", "To", "Subject", "Date", "Message-ID", "X-Blank", "Subject", "Received")

WORDS = (
    b"Hello",
    b"a  b",
    b"\t x",
    b"",
    b" ",
    b"Bye. ",
    b"..",
    b"\t",
    b"-" * 70,
    b"=20",
    b"\xc3\xa4",
    b"a\rb",
)


def random_message(random: Random) -> bytes:
    """Return a message with fields and lines that the two canonical forms treat in different ways."""
    lines = [b"From: Ann <ann@a.test>"]
    for name in random.sample(HEADERS[1:], random.randrange(1, 7)):
        fold = random.choice((b" ", b"\r\n ", b"\r\n\t  ", b"  "))
        lines.append(
            name.encode()
            + random.choice((b": ", b":", b":\t "))
            + b"a"
            + fold
            + b"b"
            + random.choice((b"", b"  "))
        )
    random.shuffle(lines)
    body = [random.choice(WORDS) for _ in range(random.randrange(8))]
    return b"\r\n".join((*lines, b"", *body)) + b"\r\n" * random.randrange(1, 4)


def sign(text: bytes, keys: KeyPair, random: Random) -> bytes:
    """Return a message with a signature of dkimpy."""
    forms = random.choice((b"simple", b"relaxed")), random.choice((b"simple", b"relaxed"))
    field = dkim.sign(text, b"s", b"a.test", keys.private, canonicalize=forms, length=random.random() < 0.2)
    return bytes(field) + text


def no_change(text: bytes, random: Random) -> bytes:
    return text


def changed_octet(text: bytes, random: Random) -> bytes:
    place = random.randrange(len(text))
    return text[:place] + random.choice((b"x", b" ", b"\t", b"")) + text[place + 1 :]


def added_blank(text: bytes, random: Random) -> bytes:
    places = [found.start() for found in re.finditer(rb"[ \t]|\r\n", text)]
    place = random.choice(places)
    return text[:place] + random.choice((b" ", b"\t")) + text[place:]


def added_lines(text: bytes, random: Random) -> bytes:
    return text + random.choice((b"\r\n", b"\r\n\r\n", b"x\r\n", b" \r\n"))


def added_field(text: bytes, random: Random) -> bytes:
    return random.choice((b"X-New: a\r\n", b"From: eve@b.test\r\n", b"Subject: c\r\n")) + text


def other_case(text: bytes, random: Random) -> bytes:
    return text.replace(b"Subject:", b"SUBJECT:").replace(b"From:", b"from:")


def refolded(text: bytes, random: Random) -> bytes:
    return text.replace(b"a\r\n b", b"a b").replace(b"; ", b";\r\n ", 1)


def cut_end(text: bytes, random: Random) -> bytes:
    return text[: -random.randrange(1, 4)]


CHANGES = (
    *(no_change, no_change, changed_octet, added_blank, added_lines, added_field),
    *(other_case, refolded, cut_end),
)


def of_dkimpy(text: bytes, record: bytes) -> bool:
    """Return dkimpy's verdict."""
    try:
        return bool(dkim.verify(text, dnsfunc=lambda name, timeout=5: record))
    except (dkim.DKIMException, ValueError, KeyError):
        return False


@pytest.mark.pure
def test_verdicts_on_a_thousand_messages_are_those_of_dkimpy(keys: KeyPair) -> None:
    random = Random(2026)
    known = {NAME: PublishedKey(keys.record)}
    verdicts = {True: 0, False: 0}
    while sum(verdicts.values()) < 1000:
        change = random.choice(CHANGES)
        text = change(sign(random_message(random), keys, random), random)
        if not text.count(b"\r") == text.count(b"\n") == text.count(b"\r\n"):
            continue  # no message of SMTP (RFC 5321 2.3.8)
        checked = check_message(text, True, keys=known)
        found = {fault.violation for fault in checked.faults} & {*OF_SIGNATURES, "bad-dkim-signature"}
        is_good = checked.is_verified and not found
        assert is_good == of_dkimpy(text, keys.record), (change.__name__, found, text)
        verdicts[is_good] += 1
        if change is no_change:
            assert is_good, text
    assert min(verdicts.values()) > 200


def signed_message(keys: KeyPair, text: bytes = b"From: ann@a.test\r\n\r\nHello\r\n") -> bytes:
    return sign(text, keys, Random(1))


def rules(text: bytes, record: bytes, name: bytes = NAME, is_whole: bool = True) -> set[str]:
    found = check_message(text, is_whole, keys={name: PublishedKey(record)})
    return {fault.violation for fault in found.faults if fault.violation in {*OF_SIGNATURES, "weak-dkim-key"}}


@pytest.mark.pure
def test_fault_of_a_signature_is_told_from_one_of_the_body(keys: KeyPair) -> None:
    text = signed_message(keys)
    assert rules(text, keys.record) == set()
    assert rules(text + b"x\r\n", keys.record) == {"bad-body-hash"}
    assert rules(text.replace(b"From: ann", b"From: eve"), keys.record) == {"bad-signature"}
    assert rules(text, rsa_keys(1024).record) == {"bad-signature"}
    assert rules(text, b"v=DKIM1; p=") == {"bad-signature"}
    assert rules(re.sub(rb" b=.*?\r\nFrom", b" b=a\r\nFrom", text, flags=re.DOTALL), keys.record) == {
        "bad-signature"
    }
    assert rules(text.replace(b"; s=", b"; l=x; s="), keys.record) == OF_SIGNATURES
    assert rules(text.replace(b"; s=", b"; l=99; s="), keys.record) == OF_SIGNATURES


@pytest.mark.pure
def test_signature_is_not_judged_where_its_key_or_its_message_is_not_known(keys: KeyPair) -> None:
    text = signed_message(keys) + b"x\r\n"
    assert rules(text, keys.record, b"other._domainkey.a.test") == set()
    assert rules(text, keys.record, is_whole=False) == set()
    assert rules(text.replace(b"rsa-sha256", b"rsa-sha1"), keys.record) == set()
    assert rules(text.replace(b"v=1", b"v=2"), keys.record) == set()
    assert rules(text.replace(b"; s=", b"; z=" + 20000 * b"x" + b"; s="), keys.record) == set()
    assert not check_message(text, True).is_verified


@pytest.mark.pure
def test_a_few_signatures_of_a_message_are_verified(keys: KeyPair) -> None:
    text = signed_message(keys)
    signature = text[: text.index(b"From:")]
    checked = check_message(signature * 5 + text + b"x\r\n", True, keys={NAME: PublishedKey(keys.record)})
    assert checked.is_verified
    assert MAX_VERIFIED_SIGNATURES < 5


@pytest.mark.pure
def test_short_key_is_told() -> None:
    short = rsa_keys(1024)
    key = PublishedKey(short.record)
    key.bits = 512  # cryptography makes none so short
    found = check_message(signed_message(short), True, keys={NAME: key})
    assert "weak-dkim-key" in {fault.violation for fault in found.faults}


@pytest.mark.pure
def test_ed25519_is_verified() -> None:
    private = ed25519.Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    record = b"v=DKIM1; k=ed25519; p=" + base64.b64encode(public)
    secret = base64.b64encode(private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption()))
    text = b"From: ann@a.test\r\n\r\nHello\r\n"
    pytest.importorskip("nacl")
    signed = dkim.sign(text, b"s", b"a.test", secret, signature_algorithm=b"ed25519-sha256") + text
    assert rules(signed, record) == set()
    assert rules(signed.replace(b"From: ann", b"From: eve"), record) == {"bad-signature"}
    assert rules(signed, rsa_keys(1024).record) == {"bad-signature"}


@pytest.mark.pure
@pytest.mark.parametrize("is_relaxed", [True, False])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\r\n",
        b"\r\n\r\n",
        b"a",
        b"a\r\r\n\r\n",
        b"a\r\n \r\n\t\r\n",
        b"\r",
        b" \r\n",
        b"a b",
        b" a\t\r\n",
    ],
)
def test_canonical_body_is_that_of_dkimpy(body: bytes, is_relaxed: bool) -> None:
    form = Relaxed if is_relaxed else Simple
    assert canonical_body(body, is_relaxed) == form.canonicalize_body(body)


@pytest.mark.pure
def test_blanks_of_a_whole_message_are_joined_in_a_few_steps() -> None:
    assert single_blanks(b"a" + 100_000 * b" \t" + b"b") == b"a b"


# The file.


def test_file_has_a_line_for_each_key(tmp_path: Path, keys: KeyPair) -> None:
    file = tmp_path / "keys"
    middle = len(keys.record) // 2
    quoted = b'"%b" "%b"' % (keys.record[:middle], keys.record[middle:])
    file.write_bytes(
        b"# keys\n; more\n\nS._domainkey.A.test. 3600 IN TXT "
        + quoted
        + b"\r\nt._domainkey.a.test\t"
        + keys.record
    )
    records = load_records(str(file))
    assert records == {NAME: keys.record, b"t._domainkey.a.test": keys.record}
    assert published_keys(str(file), records)[NAME].bits == 1024


def encoded(key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


CURVE = encoded(ec.generate_private_key(ec.SECP256R1()).public_key())
MODULUS = rsa.generate_private_key(65537, 1024).public_key().public_numbers().n
OTHER_KEY = base64.b64encode(CURVE).decode()
UNKNOWN_CURVE = base64.b64encode(CURVE.replace(b"\xce\x3d\x03\x01\x07", b"\xce\x3d\x03\x01\x63")).decode()
SLOW_KEY = base64.b64encode(encoded(rsa.RSAPublicNumbers(2**33 + 1, MODULUS).public_key())).decode()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it contains no key"),
        ("a.test v=DKIM1; p=", ":1: expected a name and its record"),
        ("s._domainkey.a.test p=\ns._domainkey.a.test p=", ":2: the name has an earlier line"),
        ("s._domainkey.a.test v=DKIM1", "s._domainkey.a.test: it is no DKIM record"),
        ("s._domainkey.a.test v=DKIM2; p=", "s._domainkey.a.test: it is no DKIM record"),
        ("s._domainkey.a.test ; ;", "s._domainkey.a.test: it is no DKIM record"),
        ("s._domainkey.a.test p=YQ==", "s._domainkey.a.test: p= is no public key"),
        ("s._domainkey.a.test p=Y", "s._domainkey.a.test: p= is no public key"),
        ("s._domainkey.a.test k=ed25519; p=YQ==", "s._domainkey.a.test: p= is no public key"),
        (f"s._domainkey.a.test p={OTHER_KEY}", "p= is no RSA key of up to 8192 bits"),
        (f"s._domainkey.a.test p={UNKNOWN_CURVE}", "p= is no public key"),
        (f"s._domainkey.a.test p={SLOW_KEY}", "with an exponent of up to 2^32"),
        (f"s._domainkey.a.test k=x; p={OTHER_KEY}", "k= is neither rsa nor ed25519"),
    ],
)
def test_wrong_file_is_an_error_of_the_operator(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(OperatorError, match=re.escape(said)):
        published_keys(str(file), load_records(str(file)))


def test_file_that_is_missing_is_an_error_of_the_operator(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="No such file"):
        load_records(str(tmp_path / "none"))


# In a session, and in the program.


@pytest.mark.pure
def test_session_counts_a_signature_that_was_verified(keys: KeyPair) -> None:
    engine = make_engine(inspect_content=True, dkim_keys={NAME: PublishedKey(keys.record)})
    session = engine.session()
    session.greet()
    text = signed_message(keys)
    for chunk in (
        b"EHLO c.test\r\n",
        b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n",
        text + b".\r\n",
    ):
        session.receive(chunk)
    assert session.counted_events.count(EVENT_NUMBERS.inspection("signatures")) == 1


def test_program_verifies_signatures_with_keys_from_a_file(tmp_path: Path, keys: KeyPair) -> None:
    pid, file = tmp_path / "pid", tmp_path / "keys"
    file.write_bytes(NAME + b" " + keys.record + b"\n")
    text = signed_message(keys)
    options = "--workers=2", "--inspect=all", "--inspect-content", f"--dkim-keys={file}"
    with Program(f"--pid={pid}", *options) as program:
        for sent in (text, text, text + b"x\r\n"):
            with smtplib.SMTP(*program.address, local_hostname="c.test") as client:
                client.sendmail("ann@a.test", ["bob@b.test"], sent)
        said = run("report", f"--pid={pid}").stdout
    assert "MUST   bad-body-hash: " in said
    assert " in 1 of 3 signatures, all inspected\n" in said
    assert "bad-signature" not in said
    done = run("--port=0", "--dkim-keys=/nonexistent")
    assert (done.returncode, "dkim_keys /nonexistent: No such file" in done.stderr) == (os.EX_CONFIG, True)
