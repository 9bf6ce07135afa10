"""Guilty and barely innocent senders for each row of the table of violations.

`guilty` and `innocent` add a case each. Where its verdict may differ in a setting or a cut, `legal` has the
verdicts there, or None where the case has no meaning, and the line says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from blackhole.smtp.extensions import EXTENSIONS
from tests.verdict_player import (
    BODY,
    DATA,
    EHLO,
    MAIL,
    QUIT,
    RCPT,
    STARTTLS,
    TLS,
    AuthResponse,
    Case,
    Chunk,
    MailData,
    Pipelined,
    Reconnect,
    Step,
    Verdicts,
)

CASES: Final[list[Case]] = []

HOUR: Final = 3600.0

HELO: Final = b"HELO client.test\r\n"
RSET: Final = b"RSET\r\n"
NOOP: Final = b"NOOP\r\n"
ENVELOPE: Final = (MAIL, RCPT)
MESSAGE: Final = (MAIL, RCPT, DATA, BODY)

PLAIN: Final = b"AUTH PLAIN AGFubgBzZWNyZXQ=\r\n"

Legal = Mapping[str, Verdicts | None]

NO_LEGAL: Final[Legal] = {}

AFTER_TLS: Final[Legal] = {"starttls": None, "implicit tls": None}
"""The client does STARTTLS, which is not offered under TLS."""


def guilty(
    rule: str,
    about: str,
    *steps: Step,
    also: Verdicts = (),
    rules: str = "",
    legal: Legal = NO_LEGAL,
    **options: Any,
) -> None:
    CASES.append(Case(rule, about, steps, (rule, *also), rules, options, legal))


def innocent(
    rule: str,
    about: str,
    *steps: Step,
    also: Verdicts = (),
    rules: str = "",
    legal: Legal = NO_LEGAL,
    **options: Any,
) -> None:
    CASES.append(Case(rule, about, steps, also, rules, options, legal))


def rule(phase: str, text: str) -> str:
    return f"[[rule]]\nphase = '{phase}'\n{text}\n\n"


def mail(parameters: str, address: str = "ann@a.test") -> bytes:
    return f"MAIL FROM:<{address}> {parameters}".encode().rstrip() + b"\r\n"


def rcpt(parameters: str, address: str = "bob@b.test") -> bytes:
    return f"RCPT TO:<{address}> {parameters}".encode().rstrip() + b"\r\n"


def text(octets: bytes, anyway: bool = False) -> MailData:
    return MailData(b"Subject: a test\r\n\r\n" + octets + b"\r\n.\r\n", anyway)


def message(body: bytes | MailData, first: bytes = MAIL) -> tuple[Step, ...]:
    return (EHLO, first, RCPT, DATA, text(body) if isinstance(body, bytes) else body, QUIT)


OF_A: Final = "sender = '*@a.test'\n"
"""Rules refuse only this sender, so that messages of others can come before."""

REFUSES_MAIL: Final = rule("MAIL", OF_A + "reply = '451 4.3.0 Later'")
REFUSES_RCPT: Final = rule("RCPT", OF_A + "reply = '550 5.1.1 No'")
REFUSES_NOBODY: Final = rule("RCPT", OF_A + "recipient = 'nobody*'\nreply = '550 5.1.1 No'")
REFUSES_DATA: Final = rule("DATA", OF_A + "reply = '451 4.3.0 Later'")
HIDES_PIPELINING: Final = rule("EHLO", "hide = 'PIPELINING'")


REFUSED_EHLO: Final[Legal] = {"starttls": None, "20th message": None}
"""The rule refuses the EHLO that belongs to these settings."""


def hides(keyword: str) -> str:
    return rule("EHLO", f"hide = '{keyword}'")


def adds(line: str) -> str:
    return rule("EHLO", f"add = '{line}'")


def verb(command: bytes) -> str:
    return command.split()[0].decode()


SEE_NOTHING: Final[Legal] = {"unseen": None}
"""The client cannot have seen the reply that it is to have heeded."""


# The table is easier to read with a case on a line.
# fmt: off


def _hello() -> None:
    """Greetings and their names."""
    first = {"20th message": None, "starttls": ("no-hello-after-starttls",)}
    # MAIL is refused there, and the client goes on.
    ignores = first | {"strict": ("no-hello", "wrong-order", "no-recipient"), "strict unseen": None}
    guilty("no-hello", "MAIL first", *MESSAGE, QUIT, legal=ignores)
    guilty("no-hello", "RSET and MAIL first", RSET, *MESSAGE, QUIT, legal=ignores)
    guilty("no-hello", "two messages, counted once", *MESSAGE, *MESSAGE, QUIT,
           legal=first | {"strict": ("no-hello", *(2 * ("wrong-order", "no-recipient"))),
               "strict unseen": None})
    guilty("no-hello", "AUTH first", PLAIN, QUIT, legal=first, auth=True, auth_plaintext=True)
    refused = rule("EHLO", "reply = '550 5.0.0 No'")
    guilty("no-hello", "EHLO refused, and MAIL", EHLO, *MESSAGE, QUIT, rules=refused,
        legal=ignores | {"starttls": None})
    innocent("no-hello", "HELO", HELO, *MESSAGE, QUIT)
    innocent("no-hello", "EHLO in lower case", b"ehlo client.test\r\n", *MESSAGE, QUIT)
    innocent("no-hello", "EHLO refused, and HELO", EHLO, HELO, *MESSAGE, QUIT, rules=refused,
        legal=REFUSED_EHLO)
    innocent("no-hello", "no transaction", NOOP, RSET, b"VRFY ann\r\n", b"HELP\r\n", QUIT)
    innocent("no-hello", "EHLO again after a message", EHLO, *MESSAGE, EHLO, *MESSAGE, QUIT)
    innocent("no-hello", "QUIT alone", QUIT)

    for name in (b"laptop", b"localhost", b"a", b"mail_1", b"LOCALHOST"):
        for verb in (b"EHLO", b"HELO"):
            guilty("hello-name", f"{verb.decode()} {name.decode()}", b"%s %s\r\n" % (verb, name), QUIT)
    for name in (b"192.0.2.1", b"2001:db8::1", b"::1", b"[2001:db8::1]", b"[192.0.2.256]", b"[192.0.2]",
        b"[mx]", b"[]",
                 b"[IPv6:192.0.2.1]", b"[IPv6:2001:db8::1", b"[192.0.2.1", b"[IPv6:fe80::1%eth0]",
                     b"[192.0.2.1]x"):
        guilty("hello-literal", name.decode(), b"EHLO %s\r\n" % name, QUIT)
    for name in (b"client.test", b"a.b", b"[192.0.2.1]", b"[IPv6:2001:db8::1]", b"[ipv6:::1]",
        b"xn--bcher-kva.test",
                 b"[IPv6:::ffff:192.0.2.1]", b"1.client.test", b"192.0.2.1.test", b"[192.000.002.001]",
                 b"a-b.c-d.test", b"mail.4u", b"x." + 61 * b"y" + b".test"):
        innocent("hello-name", name.decode(), b"EHLO %s\r\n" % name, *MESSAGE, QUIT)
        innocent("hello-literal", "HELO " + name.decode(), b"HELO %s\r\n" % name, *MESSAGE, QUIT)
    for name in (b"a..b", b"-a.test", b"a-.test", b".test", b"a_b.test", b"a.test.", b"a/b.test",
        b"a@b.test", b"<a.test>",
                 b"192.0.2.1:25", b"a.test,"):
        guilty("syntax", "EHLO " + name.decode(), b"EHLO %s\r\n" % name, QUIT)
    guilty("syntax", "two names", b"EHLO client.test x\r\n", QUIT)
    guilty("syntax", "EHLO without a name", b"EHLO\r\n", QUIT)
    guilty("syntax", "HELO with a blank", b"HELO \r\n", QUIT)
    guilty("utf8-undeclared", "EHLO in UTF-8", "EHLO bücher.test\r\n".encode(), QUIT)
    guilty("utf8-undeclared", "HELO in UTF-8", "HELO bücher\r\n".encode(), QUIT)


def _order() -> None:
    """The order of commands, and what is refused."""
    guilty("wrong-order", "MAIL in a transaction", EHLO, MAIL, MAIL, RCPT, DATA, BODY, QUIT)
    guilty("wrong-order", "MAIL behind RCPT", EHLO, MAIL, RCPT, *MESSAGE, QUIT)
    guilty("wrong-order", "RCPT without MAIL", EHLO, RCPT, QUIT)
    guilty("wrong-order", "RCPT after a message", EHLO, *MESSAGE, RCPT, QUIT)
    guilty("wrong-order", "RCPT after RSET", EHLO, *ENVELOPE, RSET, RCPT, QUIT)
    guilty("wrong-order", "RCPT after EHLO", EHLO, MAIL, EHLO, RCPT, QUIT)
    guilty("wrong-order", "DATA without RCPT", EHLO, MAIL, DATA, BODY, QUIT, legal={"strict unseen": None})
    guilty("wrong-order", "DATA first", EHLO, DATA, BODY, QUIT, legal={"strict unseen": None})
    guilty("wrong-order", "DATA after a message", EHLO, *MESSAGE, DATA, BODY, QUIT)
    guilty("wrong-order", "AUTH in a transaction", EHLO, MAIL, PLAIN, RCPT, DATA, BODY, QUIT, auth=True,
        auth_plaintext=True)
    guilty("wrong-order", "AUTH twice", EHLO, PLAIN, PLAIN, *MESSAGE, QUIT, auth=True, auth_plaintext=True)
    guilty("wrong-order", "MAIL behind DATA that was refused", EHLO, *ENVELOPE, DATA, MAIL, RCPT, QUIT,
        rules=REFUSES_DATA)
    innocent("wrong-order", "RSET between", EHLO, MAIL, RSET, *MESSAGE, QUIT)
    innocent("wrong-order", "EHLO between", EHLO, *ENVELOPE, EHLO, *MESSAGE, QUIT)
    innocent("wrong-order", "HELO between", EHLO, *ENVELOPE, HELO, *MESSAGE, QUIT)
    innocent("wrong-order", "three messages", EHLO, *MESSAGE, *MESSAGE, *MESSAGE, QUIT)
    innocent("wrong-order", "RSET after a message", EHLO, *MESSAGE, RSET, *MESSAGE, RSET, QUIT)
    innocent("wrong-order", "MAIL after a refused MAIL", EHLO, MAIL, MAIL, MAIL, QUIT, rules=REFUSES_MAIL)
    innocent("wrong-order", "RCPT after a refused RCPT", EHLO, MAIL, rcpt("", "nobody@b.test"), RCPT, DATA,
        BODY, QUIT, rules=REFUSES_NOBODY)
    innocent("wrong-order", "MAIL after a refused message", EHLO, *MESSAGE, *MESSAGE, QUIT, rules=rule(".",
        OF_A + "reply = '554 5.6.0 No'"))
    innocent("wrong-order", "NOOP and VRFY in a transaction", EHLO, MAIL, NOOP, RCPT, b"VRFY bob\r\n", DATA,
        BODY, QUIT)
    innocent("wrong-order", "fifty recipients", EHLO, MAIL, *(50 * (RCPT,)), DATA, BODY, QUIT)
    innocent("wrong-order", "AUTH after a failed AUTH", EHLO, b"AUTH PLAIN AGZhaWw9AHg=\r\n", PLAIN,
        *MESSAGE, QUIT, auth=True, auth_plaintext=True)
    innocent("wrong-order", "AUTH again after EHLO that came before it", EHLO, EHLO, PLAIN, *MESSAGE, QUIT,
        auth=True, auth_plaintext=True)
    innocent("wrong-order", "RCPT on its way behind a refused MAIL", EHLO, *ENVELOPE, RSET, QUIT,
        rules=REFUSES_MAIL)
    innocent("wrong-order", "a group on its way behind a refused MAIL", EHLO, *ENVELOPE, RCPT, DATA, RSET,
        QUIT, rules=REFUSES_MAIL)
    innocent("wrong-order", "a group on its way behind a MAIL that is too large", EHLO, mail("SIZE=1001"),
        RCPT, DATA, RSET, QUIT, message_size_limit=1000)
    innocent("wrong-order", "a group on its way behind a MAIL with a syntax error", EHLO,
        b"MAIL TO:<ann@a.test>\r\n", RCPT, DATA, RSET, QUIT, also=("syntax",))
    guilty("wrong-order", "RCPT behind a refused MAIL, after HELO", HELO, MAIL, RCPT, RSET, QUIT,
        rules=REFUSES_MAIL,
           legal=SEE_NOTHING)
    guilty("wrong-order", "RCPT behind a refused MAIL and NOOP", EHLO, MAIL, NOOP, RCPT, QUIT,
        rules=REFUSES_MAIL, legal=SEE_NOTHING)
    guilty("wrong-order", "RCPT behind a refused MAIL, PIPELINING hidden", EHLO, *ENVELOPE, QUIT,
        rules=REFUSES_MAIL + HIDES_PIPELINING, legal=SEE_NOTHING)
    guilty("wrong-order", "RCPT behind a refused MAIL and DATA", EHLO, *ENVELOPE, DATA, RCPT, QUIT,
        rules=REFUSES_MAIL, legal=SEE_NOTHING)
    guilty("wrong-order", "DATA after RSET behind a refused MAIL", EHLO, MAIL, RSET, DATA, QUIT,
        rules=REFUSES_MAIL, legal={"strict": ("wrong-order",)})

    guilty("no-recipient", "DATA behind a refused RCPT, after HELO", HELO, *ENVELOPE, DATA, QUIT,
        rules=REFUSES_RCPT, legal=SEE_NOTHING)
    guilty("no-recipient", "DATA again behind a refused RCPT", EHLO, *ENVELOPE, DATA, DATA, QUIT,
        rules=REFUSES_RCPT, legal=SEE_NOTHING)
    guilty("no-recipient", "DATA behind a refused RCPT and NOOP", EHLO, *ENVELOPE, NOOP, DATA, QUIT,
        rules=REFUSES_RCPT, legal=SEE_NOTHING)
    guilty("no-recipient", "DATA behind a refused RCPT, PIPELINING hidden", EHLO, *ENVELOPE, DATA, QUIT,
        rules=REFUSES_RCPT + HIDES_PIPELINING, legal=SEE_NOTHING)
    guilty("no-recipient", "DATA behind a RCPT that was wrong, after HELO", HELO, MAIL, b"RCPT TO:\r\n",
        DATA, QUIT, also=("syntax",), legal=SEE_NOTHING)
    innocent("no-recipient", "DATA on its way behind a refused RCPT", EHLO, *ENVELOPE, DATA, RSET, QUIT,
        rules=REFUSES_RCPT)
    innocent("no-recipient", "RSET behind a refused RCPT", HELO, *ENVELOPE, RSET, QUIT, rules=REFUSES_RCPT)
    innocent("no-recipient", "QUIT behind a refused RCPT", HELO, *ENVELOPE, QUIT, rules=REFUSES_RCPT)
    innocent("no-recipient", "one of two recipients refused", HELO, MAIL, RCPT, rcpt("", "nobody@b.test"),
        DATA, BODY, QUIT, rules=REFUSES_NOBODY)
    innocent("no-recipient", "the other of two recipients refused", HELO, MAIL, rcpt("", "nobody@b.test"),
        RCPT, DATA, BODY, QUIT, rules=REFUSES_NOBODY)
    innocent("no-recipient", "a refusal in the transaction before", HELO, MAIL, rcpt("", "nobody@b.test"),
        RSET, *MESSAGE, QUIT, rules=REFUSES_NOBODY)

    body = MailData(BODY.octets, anyway=True)
    guilty("body-after-refusal", "the message", EHLO, *ENVELOPE, DATA, body, rules=REFUSES_DATA)
    guilty("body-after-refusal", "a text without a header section", EHLO, *ENVELOPE, DATA,
        MailData(b"one\r\ntwo\r\n.\r\n", True), QUIT, rules=REFUSES_DATA)
    guilty("body-after-refusal", "the final dot alone", EHLO, *ENVELOPE, DATA, MailData(b".\r\n", True), QUIT,
        rules=REFUSES_DATA)
    guilty("body-after-refusal", "after HELO", HELO, *ENVELOPE, DATA, body, rules=REFUSES_DATA)
    guilty("body-after-refusal", "each recipient refused", EHLO, *ENVELOPE, DATA, body, rules=REFUSES_RCPT)
    guilty("body-after-refusal", "MAIL refused", EHLO, *ENVELOPE, DATA, body, rules=REFUSES_MAIL)
    innocent("body-after-refusal", "RSET", EHLO, *ENVELOPE, DATA, RSET, QUIT, rules=REFUSES_DATA)
    innocent("body-after-refusal", "QUIT", EHLO, *ENVELOPE, DATA, QUIT, rules=REFUSES_DATA)
    innocent("body-after-refusal", "DATA again", EHLO, *ENVELOPE, DATA, DATA, QUIT, rules=REFUSES_DATA)
    innocent("body-after-refusal", "a private verb", EHLO, *ENVELOPE, DATA, b"XYZ\r\n", QUIT,
        rules=REFUSES_DATA)
    innocent("body-after-refusal", "RSET, and a message", EHLO, *ENVELOPE, DATA, RSET, *MESSAGE, QUIT,
        rules=REFUSES_DATA, legal=SEE_NOTHING)


def _commands() -> None:
    """The syntax of commands, and what was offered."""
    guilty("long-command", "513 octets", EHLO, b"NOOP %s\r\n" % (506 * b"x"), QUIT)
    innocent("long-command", "512 octets", EHLO, b"NOOP %s\r\n" % (505 * b"x"), QUIT)
    guilty("long-command", "3000 octets", EHLO, b"NOOP %s\r\n" % (3000 * b"x"), QUIT)
    guilty("long-command", "513 octets of a recipient", EHLO, MAIL,
        b"RCPT TO:<%s@b.test>\r\n" % (494 * b"x"), RSET, QUIT, also=("long-path",))
    innocent("long-command", "700 octets with parameters", EHLO, MAIL, rcpt("ORCPT=rfc822;" + 480 * "x",
        150 * "y" + "@b.test"), RSET, QUIT)
    innocent("long-path", "256 octets", EHLO, MAIL, rcpt("", 247 * "x" + "@b.test"), RSET, QUIT)
    guilty("long-path", "257 octets", EHLO, MAIL, rcpt("", 248 * "x" + "@b.test"), RSET, QUIT)
    innocent("long-path", "256 octets of a sender", EHLO, mail("SIZE=100", 247 * "x" + "@a.test"), RSET, QUIT)
    guilty("long-path", "257 octets of a sender", EHLO, mail("SIZE=100", 248 * "x" + "@a.test"), RSET, QUIT)

    for command in (
        b"MAIL FROM: <ann@a.test>", b"MAIL FROM :<ann@a.test>", b"MAIL FROM:ann@a.test", b"MAIL ann@a.test",
            b"MAIL",
        b"MAIL FROM:<ann>", b"MAIL FROM:<ann@>", b"MAIL FROM:<@a.test>", b"MAIL FROM:<a b@a.test>",
            b"MAIL FROM:<a..b@a.test>",
        b"MAIL FROM:<.a@a.test>", b"MAIL FROM:<a.@a.test>", b"MAIL FROM:<a@b@a.test>",
            b"MAIL FROM:<ann@-a.test>", b"MAIL FROM:<ann@a..test>",
        b"MAIL FROM:<ann@a.test.>", b"MAIL FROM:<ann@[192.0.2.256]>", b"MAIL FROM:<ann@[2001:db8::1]>",
            b"MAIL FROM:<a(b)@a.test>",
        b'MAIL FROM:<"ann@a.test>', b'MAIL FROM:<"a"b@a.test>', b"MAIL FROM:<<ann@a.test>>",
            b"MAIL FROM:Ann <ann@a.test>",
        b"MAIL FROM:<ann@a_b.test>", b"MAIL TO:<ann@a.test>", b"MAIL  FROM:<ann@a.test>",
            b"MAIL FROM:<ann@a.test>SIZE=9",
        b"MAIL FROM:<ann@a.test", b"MAIL FROM:<a,b@a.test>", b"MAIL FROM:<ann@a.test,b.test>",
            b"MAIL FROM:<a\tb@a.test>", b"MAIL FROM:<ann@a-.test>",
        b"MAIL FROM=<ann@a.test>", b"MAIL FROM:<a:b@a.test>", b"MAIL FROM:<a;b@a.test>",
            b"MAIL FROM:<a\\b@a.test>", b"MAIL FROM:<postmaster>",
    ):
        guilty("syntax", command.decode(), EHLO, command + b"\r\n", RSET, QUIT)
    for command in (
        b"RCPT TO:<>", b"RCPT TO: <bob@b.test>", b"RCPT TO:bob@b.test", b"RCPT TO:<bob>",
            b"RCPT TO:<a b@b.test>", b"RCPT TO:<bob@b..test>",
        b"RCPT FROM:<bob@b.test>", b"RCPT TO:<bob@b.test>,<eve@b.test>", b"RCPT", b"RCPT TO:<bob@@b.test>",
    ):
        guilty("syntax", command.decode(), EHLO, MAIL, command + b"\r\n", RSET, QUIT)
    for command in (b"DATA now", b"RSET now", b"QUIT now", b"VRFY", b"EXPN", b"VRFY ", b"STARTTLS now",
        b"EHLO", b" NOOP", b"NOOP\tx", b"\tNOOP"):
        # Under TLS, STARTTLS is not offered besides.
        legal = {"starttls": None, "implicit tls": None} if b"STARTTLS" in command else {}
        if command[:1].isspace() or b"\t" in command:
            legal["strict"] = ("unknown-command",)  # such a verb is unknown there
        guilty("syntax", repr(command), EHLO, *ENVELOPE, command + b"\r\n", RSET, QUIT, legal=legal)
    for command in (
        b"mail from:<ann@a.test>", b"Mail From:<ann@a.test>", b"MAIL FROM:<>", b'MAIL FROM:<"a b"@a.test>',
            b'MAIL FROM:<"a\\"b"@a.test>',
        b"MAIL FROM:<ann@[192.0.2.1]>", b"MAIL FROM:<ann@[IPv6:2001:db8::1]>", b"MAIL FROM:<ann@localhost>",
            b"MAIL FROM:<a+b=c!d#e$f%g&h'i*j/k?l^m_n`o{p|q}r~s@a.test>",
        b"MAIL FROM:<@x.test,@y.test:ann@a.test>", b"MAIL FROM:<ann@a.test> ", b"MAIL FROM:<ann@A-B.Test>",
            b"MAIL FROM:<ann@xn--bcher-kva.test>", b"MAIL FROM:<1@2.test>",
        b"MAIL FROM:<ann@[192.000.002.001]>", b'MAIL FROM:<""@a.test>', b"MAIL FROM:<ann@a.test>  SIZE=9",
            b'MAIL FROM:<"a>b"@a.test>', b'MAIL FROM:<"<>"@a.test> SIZE=9', b"MAIL FROM:<ann@9.9>",
    ):
        innocent("syntax", command.decode(), EHLO, command + b"\r\n", RCPT, RSET, QUIT)
    for command in (b"RCPT TO:<Postmaster>", b"RCPT TO:<postmaster>", b"rcpt to:<bob@b.test>",
        b"RCPT TO:<@x.test:bob@b.test>", b'RCPT TO:<"b o b"@b.test>'):
        innocent("syntax", command.decode(), EHLO, MAIL, command + b"\r\n", DATA, BODY, QUIT)
    for command in (b"NOOP anything", b"VRFY ann", b"EXPN list", b"HELP", b"HELP MAIL", b"RSET ", b"noop",
        b"VRFY <ann@a.test>", b"VRFY ann smith", b"HELP anything at all", b"data ", b"NOOP "):
        innocent("syntax", repr(command), EHLO, *ENVELOPE, command + b"\r\n", BODY, QUIT)

    guilty("unknown-parameter", "SIZE after HELO", HELO, mail("SIZE=99"), RSET, QUIT)
    guilty("unknown-parameter", "BODY after HELO", HELO, mail("BODY=8BITMIME"), RSET, QUIT)
    guilty("unknown-parameter", "an invented one", EHLO, mail("FUTURE=1"), RSET, QUIT)
    guilty("unknown-parameter", "an invented one of RCPT", EHLO, MAIL, rcpt("FUTURE"), RSET, QUIT)
    guilty("unknown-parameter", "SIZE of RCPT", EHLO, MAIL, rcpt("SIZE=9"), RSET, QUIT)
    guilty("unknown-parameter", "NOTIFY of MAIL", EHLO, mail("NOTIFY=NEVER"), RSET, QUIT)
    guilty("unknown-parameter", "AUTH where it is not offered", EHLO, mail("AUTH=<>"), RSET, QUIT)
    guilty("unknown-parameter", "RET where DSN is hidden", EHLO, mail("RET=HDRS"), RSET, QUIT,
        rules=hides("DSN"))
    guilty("unknown-parameter", "NOTIFY where DSN is hidden", EHLO, MAIL, rcpt("NOTIFY=NEVER"), RSET, QUIT,
        rules=hides("DSN"))
    guilty("unknown-parameter", "SIZE where it is hidden", EHLO, mail("SIZE=9"), RSET, QUIT,
        rules=hides("SIZE"))
    guilty("unknown-parameter", "BODY where it is hidden", EHLO, mail("BODY=8BITMIME"), RSET, QUIT,
        rules=hides("8BITMIME"))
    guilty("unknown-parameter", "SMTPUTF8 where it is hidden", EHLO, mail("SMTPUTF8"), RSET, QUIT,
        rules=hides("SMTPUTF8"))
    guilty("unknown-parameter", "BY where it is not offered", EHLO, mail("BY=120;R"), RSET, QUIT)
    guilty("unknown-parameter", "HELO after EHLO", EHLO, HELO, mail("SIZE=9"), RSET, QUIT)
    innocent("unknown-parameter", "SIZE, BODY, RET and ENVID", EHLO,
        mail("SIZE=99 BODY=8BITMIME RET=HDRS ENVID=x1"),
        rcpt("NOTIFY=FAILURE,DELAY ORCPT=rfc822;bob@b.test"), RSET, QUIT)
    innocent("unknown-parameter", "in lower case", EHLO, mail("size=99 body=8bitmime ret=hdrs"),
        rcpt("notify=never"), RSET, QUIT)
    innocent("unknown-parameter", "BY that a rule added", EHLO, mail("BY=120;R"), RCPT, RSET, QUIT,
        rules=adds("DELIVERBY 240"))
    innocent("unknown-parameter", "MT-PRIORITY that a rule added", EHLO, mail("MT-PRIORITY=3"), RCPT, RSET,
        QUIT, rules=adds("MT-PRIORITY"))
    innocent("unknown-parameter", "REQUIRETLS that a rule added", EHLO, mail("REQUIRETLS"), RCPT, RSET, QUIT,
        rules=adds("REQUIRETLS"))
    innocent("unknown-parameter", "one of an extension that nobody knows", EHLO, mail("NEW=1"), RCPT, RSET,
        QUIT, rules=adds("XNEW"))
    innocent("unknown-parameter", "one of RCPT that nobody knows", EHLO, MAIL, rcpt("NEW=1"), RSET, QUIT,
        rules=adds("XNEW"))
    innocent("unknown-parameter", "RRVS that a rule added", EHLO, MAIL, rcpt("RRVS=2014-04-03T23:01:00Z"),
        RSET, QUIT, rules=adds("RRVS"))
    innocent("unknown-parameter", "EHLO after HELO", HELO, EHLO, mail("SIZE=9"), RSET, QUIT)
    innocent("unknown-parameter", "AUTH where it is offered", EHLO, mail("AUTH=<>"), RSET, QUIT, auth=True,
        auth_plaintext=True)

    for parameters in ("SIZE=", "SIZE", "SIZE=x", "SIZE=-1", "SIZE=1 SIZE=1", "SIZE=1k", "BODY=9BIT", "BODY",
        "BODY=", "RET=ALL", "RET", "SMTPUTF8=1",
                       "ENVID=a+0D+0Ab", "ENVID=a=b", "ENVID=", "ENVID=a+zz", "ENVID=" + 101 * "x",
                           "RET=FULL ret=full", "BODY=7BIT BODY=8BITMIME", "ENVID=a+2b", "SIZE=0x10",
                           "SIZE=1.5", "SIZE=+5", "SIZE=" + 21 * "1"):
        guilty("bad-parameter", parameters, EHLO, mail(parameters), RSET, QUIT)
    for parameters in ("NOTIFY=", "NOTIFY", "NOTIFY=NEVER,SUCCESS", "NOTIFY=ALWAYS", "NOTIFY=SUCCESS,,DELAY",
        "ORCPT=bob@b.test", "ORCPT=rfc822;", "ORCPT=;bob@b.test",
                       "ORCPT=rfc822;a+b@b.test", "ORCPT=rfc822;a=b@b.test", "ORCPT",
                           "NOTIFY=NEVER NOTIFY=NEVER", "ORCPT=rfc822;" + 500 * "x", "ORCPT=rfc822;a+0Ab"):
        guilty("bad-parameter", parameters, EHLO, MAIL, rcpt(parameters), RSET, QUIT)
    for parameters in ("SIZE=0", "SIZE=" + 20 * "0", "BODY=7BIT", "BODY=8bitmime", "RET=full",
        "ENVID=QQ314159", "ENVID=a+2Bb+3D", "SMTPUTF8", "ENVID=" + 100 * "x", "ENVID=<a@b>", "ENVID=a+20b",
        "SMTPUTF8 BODY=8BITMIME SIZE=1"):
        innocent("bad-parameter", parameters, EHLO, mail(parameters), RSET, QUIT)
    for parameters in ("NOTIFY=NEVER", "NOTIFY=SUCCESS,FAILURE,DELAY", "NOTIFY=success",
        "ORCPT=rfc822;bob@b.test", "ORCPT=rfc822;a+2Bb@b.test", "ORCPT=x400;/C+3DDE",
        "ORCPT=utf-8;b\\x{F6}b@b.test",
                       "ORCPT=unknown;bob", "ORCPT=RFC822;bob@b.test NOTIFY=DELAY", "NOTIFY=FAILURE,FAILURE"):
        innocent("bad-parameter", parameters, EHLO, MAIL, rcpt(parameters), RSET, QUIT)
    innocent("bad-parameter", "ORCPT in UTF-8", EHLO, mail("SMTPUTF8"), rcpt("ORCPT=utf-8;böb@b.test"), RSET,
        QUIT)
    innocent("bad-parameter", "ORCPT in UTF-8 of a message in ASCII", EHLO, MAIL,
        rcpt("ORCPT=utf-8;böb@b.test"), RSET, QUIT)
    innocent("bad-parameter", "the same parameter in two commands", EHLO, mail("SIZE=30"), RCPT, DATA, BODY,
        mail("SIZE=30"), RCPT, DATA, BODY, QUIT)

    for command in (b"BOGUS", b"ETRN b.test", b"TURN", b"SEND FROM:<a@b.test>", b"SAML FROM:<a@b.test>",
        b"HELLO client.test", b"AUTH PLAIN =", b"ATRN", b"BURL imap://x", b"Y", b"LHLO client.test",
        b"QUIT;"):
        guilty("unknown-command", command.decode(), EHLO, command + b"\r\n", QUIT)
    for command in (b"XYZ", b"xdebug 1", b"XCLIENT NAME=x", b"X", b"XFORWARD NAME=x"):
        innocent("unknown-command", command.decode(), EHLO, command + b"\r\n", *MESSAGE, QUIT)
    guilty("unknown-command", "under a rule for all commands", EHLO, b"BOGUS\r\n", QUIT, rules=rule("*",
        "client = '203.0.113.9'\nreply = '451 4.3.0 Later'"))
    guilty("unknown-command", "that a rule answers with 250", EHLO, b"BOGUS\r\n", QUIT, rules=rule("other",
        "reply = '250 2.0.0 OK'"))
    innocent("unknown-command", "ETRN that a rule added", EHLO, b"ETRN b.test\r\n", QUIT, rules=adds("ETRN"))
    innocent("unknown-command", "a verb that a rule added", EHLO, b"BOGUS x\r\n", QUIT, rules=adds("BOGUS"))
    guilty("unknown-command", "a verb that a rule added, after HELO", EHLO, HELO, b"BOGUS x\r\n", QUIT,
        rules=adds("BOGUS"))
    innocent("unknown-command", "HELP and EXPN that a rule hides", EHLO, b"HELP\r\n", b"EXPN x\r\n",
        b"VRFY x\r\n", QUIT, rules=rule("EHLO", "hide = ['HELP', 'VRFY', 'EXPN']"))
    guilty("unknown-command", "AUTH after HELO", HELO, PLAIN, QUIT, auth=True, auth_plaintext=True)
    guilty("unknown-command", "AUTH that a rule hid", EHLO, PLAIN, QUIT, rules=hides("AUTH"), auth=True,
        auth_plaintext=True)
    guilty("unknown-command", "a mechanism that was not offered", EHLO, b"AUTH GSSAPI\r\n", QUIT, auth=True,
        auth_plaintext=True)
    guilty("unknown-command", "AUTH in the clear", EHLO, PLAIN, QUIT, auth=True, legal={"starttls": (),
        "implicit tls": ()})
    guilty("unknown-command", "AUTH in the clear, in lower case", EHLO, PLAIN.lower(), QUIT, auth=True,
        legal=AFTER_TLS)
    innocent("unknown-command", "AUTH that is offered", EHLO, PLAIN, *MESSAGE, QUIT, auth=True,
        auth_plaintext=True)
    innocent("unknown-command", "a mechanism in lower case", EHLO, b"auth plain AGFubgBzZWNyZXQ=\r\n",
        *MESSAGE, QUIT, auth=True, auth_plaintext=True)
    innocent("unknown-command", "AUTH that is cancelled", EHLO, b"AUTH LOGIN\r\n", AuthResponse(b"*\r\n"),
        *MESSAGE, QUIT, auth=True, auth_plaintext=True)
    innocent("unknown-command", "AUTH in three steps", EHLO, b"AUTH LOGIN\r\n", AuthResponse(b"YW5u\r\n"),
        AuthResponse(b"c2VjcmV0\r\n"), *MESSAGE, QUIT, auth=True, auth_plaintext=True)
    innocent("unknown-command", "HTTP", Pipelined((b"GET / HTTP/1.1\r\n", b"Host: x\r\n", b"\r\n")))
    innocent("unknown-command", "HTTP with a body", Pipelined((b"POST / HTTP/1.1\r\n", b"\r\n", EHLO, MAIL)))
    innocent("unknown-command", "TLS", b"\x16\x03\x01\x00\n" + 40 * b"\n\x00", EHLO)
    guilty("unknown-command", "SSH", b"SSH-2.0-OpenSSH_9.2\r\n")
    guilty("unknown-command", "STARTTLS after HELO", HELO, STARTTLS)
    guilty("unknown-command", "STARTTLS first", STARTTLS, legal={"20th message": None})
    guilty("unknown-command", "STARTTLS that a rule hid", EHLO, STARTTLS, rules=hides("STARTTLS"),
        legal={"starttls": None})
    guilty("unknown-command", "STARTTLS that is not offered", EHLO, STARTTLS, QUIT, starttls=False,
        legal={"starttls": None})
    guilty("unknown-command", "STARTTLS under TLS", EHLO, STARTTLS, TLS, EHLO, STARTTLS, QUIT,
        legal=AFTER_TLS)
    innocent("unknown-command", "STARTTLS", EHLO, STARTTLS, TLS, EHLO, *MESSAGE, QUIT, legal=AFTER_TLS)

    guilty("utf8-undeclared", "a sender", EHLO, mail("", "änn@a.test"), RSET, QUIT)
    guilty("utf8-undeclared", "a recipient", EHLO, MAIL, rcpt("", "böb@b.test"), RSET, QUIT)
    guilty("utf8-undeclared", "a recipient of a later message", EHLO, mail("SMTPUTF8"), RCPT, DATA, BODY,
        MAIL, rcpt("", "böb@b.test"), RSET, QUIT)
    guilty("utf8-undeclared", "octets that are no UTF-8", EHLO, b"MAIL FROM:<\xff@a.test>\r\n", RSET, QUIT)
    guilty("utf8-undeclared", "VRFY", EHLO, "VRFY bücher\r\n".encode(), QUIT)
    guilty("utf8-undeclared", "EXPN", EHLO, "EXPN bücher\r\n".encode(), QUIT)
    innocent("utf8-undeclared", "a sender with SMTPUTF8", EHLO, mail("SMTPUTF8", "änn@bücher.test"), rcpt("",
        "böb@b.test"), DATA, BODY, QUIT)
    innocent("utf8-undeclared", "VRFY with SMTPUTF8", EHLO, "VRFY bücher SMTPUTF8\r\n".encode(), QUIT)
    innocent("utf8-undeclared", "NOOP and HELP in ASCII", EHLO, b"NOOP x\r\n", QUIT)
    guilty("nul", "a command", EHLO, b"NOOP a\0b\r\n", QUIT)
    guilty("nul", "an address", EHLO, b"MAIL FROM:<a\0b@a.test>\r\n", RSET, QUIT)
    guilty("bare-cr", "a command", EHLO, b"NOOP a\rb\r\n", QUIT)
    guilty("bare-cr", "a command that ends with CR CR LF", EHLO, b"NOOP\r\r\n", QUIT)
    guilty("bare-lf", "a command", EHLO, b"NOOP\n", QUIT)


def _pipelining() -> None:
    """What is sent before the reply to what was before."""
    guilty("unoffered-pipelining", "behind EHLO", Pipelined((EHLO, MAIL)), RCPT, DATA, BODY, QUIT,
        legal={"20th message": None})
    guilty("unoffered-pipelining", "after HELO", HELO, Pipelined((MAIL, RCPT)), DATA, BODY, QUIT)
    guilty("unoffered-pipelining", "PIPELINING hidden", EHLO, Pipelined((MAIL, RCPT)), DATA, BODY, QUIT,
        rules=HIDES_PIPELINING)
    guilty("unoffered-pipelining", "before EHLO", Pipelined((RSET, EHLO)), *MESSAGE, QUIT,
        legal={"20th message": None})
    guilty("unoffered-pipelining", "after STARTTLS", EHLO, STARTTLS, TLS, Pipelined((EHLO, MAIL)), RCPT, DATA,
        BODY, QUIT, legal=AFTER_TLS)
    guilty("unoffered-pipelining", "EHLO refused", EHLO, Pipelined((RSET, NOOP)), QUIT, rules=rule("EHLO",
        "reply = '550 5.0.0 No'"), legal={"starttls": None, "20th message": None})
    innocent("unoffered-pipelining", "a group", EHLO, Pipelined((*ENVELOPE, RCPT, DATA)), BODY, QUIT)
    innocent("unoffered-pipelining", "PIPELINING that a rule added again", EHLO, Pipelined((*ENVELOPE, RCPT,
        DATA)), BODY, QUIT, rules=rule("EHLO", "hide = 'PIPELINING'\nadd = 'PIPELINING'"))
    innocent("unoffered-pipelining", "the next message behind a body", EHLO, Pipelined((*ENVELOPE, DATA)),
        Pipelined((BODY, *ENVELOPE, DATA)), Pipelined((BODY, QUIT)))
    innocent("unoffered-pipelining", "RSET in front", EHLO, Pipelined((RSET, *ENVELOPE, DATA)),
        Pipelined((BODY, RSET, QUIT)))
    for last in (b"NOOP\r\n", b"VRFY a\r\n", b"EXPN a\r\n", EHLO):
        guilty("pipelined-behind-last", verb(last), EHLO, Pipelined((last, MAIL)), RCPT, DATA, BODY, QUIT)
    guilty("pipelined-behind-last", "DATA", EHLO, Pipelined((*ENVELOPE, DATA, BODY)), QUIT)
    guilty("pipelined-behind-last", "QUIT", EHLO, Pipelined((QUIT, NOOP)))
    guilty("pipelined-behind-last", "DATA that is refused", EHLO, Pipelined((*ENVELOPE, DATA, RSET)), QUIT,
        rules=REFUSES_DATA)
    guilty("pipelined-behind-last", "AUTH", EHLO, Pipelined((PLAIN, MAIL)), RCPT, DATA, BODY, QUIT, auth=True,
        auth_plaintext=True)
    innocent("pipelined-behind-last", "NOOP last", EHLO, Pipelined((RSET, NOOP)), *MESSAGE, QUIT)
    innocent("pipelined-behind-last", "QUIT last", EHLO, Pipelined((*ENVELOPE, RSET, QUIT)))
    innocent("pipelined-behind-last", "HELP in a group", EHLO, Pipelined((b"HELP\r\n", *ENVELOPE, DATA)),
        BODY, QUIT)
    innocent("pipelined-behind-last", "unknown commands in a group", EHLO, Pipelined((b"XYZ\r\n", *ENVELOPE,
        b"XYZ\r\n", DATA)), BODY, QUIT)
    guilty("talk-behind-starttls", "EHLO", EHLO, Pipelined((STARTTLS, EHLO)), legal=AFTER_TLS)
    guilty("talk-behind-starttls", "an octet", EHLO, Pipelined((STARTTLS, b"x\r\n")), legal=AFTER_TLS)
    innocent("talk-behind-starttls", "the handshake", EHLO, STARTTLS, TLS, EHLO, *MESSAGE, QUIT,
        legal=AFTER_TLS)
    innocent("talk-behind-starttls", "the end of a group", EHLO, Pipelined((RSET, STARTTLS)), TLS, EHLO,
        *MESSAGE, QUIT, legal=AFTER_TLS)
    innocent("talk-behind-starttls", "STARTTLS that is refused", EHLO, STARTTLS, *MESSAGE, QUIT,
        rules=rule("STARTTLS", "reply = '454 4.7.0 Later'"), legal=AFTER_TLS)
    guilty("no-hello-after-starttls", "MAIL", EHLO, STARTTLS, TLS, *MESSAGE, QUIT,
           legal=AFTER_TLS | {"strict": ("no-hello-after-starttls", "wrong-order", "no-recipient"),
               "strict unseen": None})
    guilty("no-hello-after-starttls", "RSET and MAIL", EHLO, STARTTLS, TLS, RSET, *MESSAGE, *MESSAGE, QUIT,
           legal=AFTER_TLS | {"strict": ("no-hello-after-starttls", *(2 * ("wrong-order", "no-recipient"))),
               "strict unseen": None})
    innocent("no-hello-after-starttls", "EHLO", EHLO, STARTTLS, TLS, EHLO, *MESSAGE, QUIT, legal=AFTER_TLS)
    innocent("no-hello-after-starttls", "HELO", EHLO, STARTTLS, TLS, HELO, *MESSAGE, QUIT, legal=AFTER_TLS)
    innocent("no-hello-after-starttls", "QUIT", EHLO, STARTTLS, TLS, NOOP, QUIT, legal=AFTER_TLS)

    rcpt_421, data_421 = rule("RCPT", OF_A + "reply = '421 4.3.2 Bye'"), rule("DATA",
        OF_A + "reply = '421 4.3.2 Bye'")
    guilty("talk-after-421", "RCPT after HELO", HELO, MAIL, RCPT, RCPT, rules=rcpt_421, legal=SEE_NOTHING)
    guilty("talk-after-421", "MAIL behind the group", EHLO, *ENVELOPE, DATA, MAIL, rules=rcpt_421,
        legal=SEE_NOTHING)
    guilty("talk-after-421", "RSET behind DATA", EHLO, *ENVELOPE, DATA, RSET, QUIT, rules=data_421,
        legal=SEE_NOTHING)
    guilty("talk-after-421", "the message", EHLO, *ENVELOPE, DATA, MailData(BODY.octets, True),
        rules=data_421, legal=SEE_NOTHING)
    innocent("talk-after-421", "nothing", EHLO, *ENVELOPE, rules=rcpt_421)
    innocent("talk-after-421", "QUIT", EHLO, *ENVELOPE, DATA, QUIT, rules=data_421)
    innocent("talk-after-421", "quit in lower case", HELO, *ENVELOPE, b"quit\r\n", rules=rcpt_421)
    innocent("talk-after-421", "the rest of the group", EHLO, *ENVELOPE, RCPT, RCPT, DATA, QUIT,
        rules=rcpt_421)

    for code in ("554 5.3.2 No mail", "521 5.3.2 No mail"):
        refused = rule("CONNECT", f"reply = '{code}'")
        first = {"20th message": None, "starttls": None}
        guilty("talk-after-521", f"EHLO behind {code[:3]}", EHLO, QUIT, rules=refused, legal=first)
        guilty("talk-after-521", f"NOOP behind {code[:3]}", NOOP, rules=refused, legal=first)
        innocent("talk-after-521", f"QUIT behind {code[:3]}", QUIT, rules=refused, legal=first)
        innocent("talk-after-521", f"nothing behind {code[:3]}", rules=refused, legal=first)


def _bodies() -> None:
    """What is wrong with the octets of a message."""
    eight = mail("BODY=8BITMIME")
    for about, octets in (("LF in the text", b"one\ntwo"), ("LF at the beginning", b"\none"), ("LF LF",
        b"one\n\ntwo"), ("LF CR", b"one\n\rtwo")):
        also = ("bare-cr",) if b"\r" in octets else ()
        guilty("bare-lf", about, *message(octets), also=also)
    guilty("bare-lf", "in the header section", *message(MailData(b"Subject: x\nTo: y\r\n\r\nHello\r\n.\r\n")))
    guilty("bare-lf", "LF.LF", *message(b"one\n.\ntwo"))
    guilty("bare-lf", "in a second message", EHLO, *MESSAGE, *message(b"one\ntwo")[1:])
    guilty("bare-lf", "the first octet", *message(MailData(b"\n.\r\n\r\n.\r\n")))
    innocent("bare-lf", "CR LF", *message(b"one\r\ntwo\r\n\r\nthree"))
    innocent("bare-lf", "an empty message", *message(MailData(b".\r\n")))
    for about, octets in (("CR in the text", b"one\rtwo"), ("CR at the beginning", b"\rone"), ("CR CR LF",
        b"one\r\r\ntwo"), ("CR at the end", b"one\r")):
        guilty("bare-cr", about, *message(octets))
    innocent("bare-cr", "CR LF", *message(b"one\r\n\r\ntwo"))
    guilty("long-line", "999 octets", *message(999 * b"x"))
    guilty("long-line", "999 octets, the last line", *message(b"a\r\n" + 999 * b"x"))
    guilty("long-line", "999 octets, the first line", *message(MailData(999 * b"x" + b"\r\n.\r\n")))
    guilty("long-line", "999 octets behind a doubled dot", *message(b".." + 998 * b"x"))
    guilty("long-line", "1999 octets", *message(1999 * b"x"))
    innocent("long-line", "998 octets", *message(998 * b"x"))
    innocent("long-line", "998 octets twice", *message(998 * b"x" + b"\r\n" + 998 * b"x"))
    innocent("long-line", "998 octets, the first line", *message(MailData(998 * b"x" + b"\r\n.\r\n")))
    innocent("long-line", "998 octets behind a doubled dot", *message(b".." + 997 * b"x"))
    innocent("long-line", "998 octets of UTF-8", *message(499 * "ü".encode(), eight))
    guilty("nul", "a message", *message(b"one\0two"))
    guilty("nul", "the first octet", *message(MailData(b"\0\r\n.\r\n")))
    innocent("nul", "other control characters", *message(b"one\x01\x07\x1b\x7ftwo"))
    guilty("8bit-undeclared", "UTF-8", *message("Grüße".encode()))
    guilty("8bit-undeclared", "an octet", *message(b"\x80"))
    guilty("8bit-undeclared", "BODY=7BIT", *message("Grüße".encode(), mail("BODY=7BIT")))
    guilty("8bit-undeclared", "BODY of the message before", EHLO, eight, RCPT, DATA, BODY,
        *message("Grüße".encode())[1:])
    guilty("8bit-undeclared", "after HELO", HELO, *message("Grüße".encode())[1:])
    guilty("8bit-undeclared", "8BITMIME that a rule hid", *message("Grüße".encode()), rules=hides("8BITMIME"))
    innocent("8bit-undeclared", "BODY=8BITMIME", *message("Grüße".encode(), eight))
    innocent("8bit-undeclared", "body=8bitmime", *message("Grüße".encode(), mail("body=8bitmime")))
    innocent("8bit-undeclared", "SMTPUTF8", *message("Grüße".encode(), mail("SMTPUTF8 BODY=8BITMIME")))
    innocent("8bit-undeclared", "ASCII with BODY=8BITMIME", *message(b"Hello", eight))
    guilty("unstuffed-dot", ".x", *message(b".x"))
    guilty("unstuffed-dot", ".x in the first line", *message(MailData(b".x\r\n.\r\n")))
    guilty("unstuffed-dot", ".x behind a doubled dot", *message(b"..y\r\n.x"))
    guilty("unstuffed-dot", ". and a blank", *message(b". \r\nx"))
    for octets in (b"..x", b"..", b"...", b"x.", b"x\r\n..\r\ny", b"..\r\n..\r\n..", b"a.b"):
        innocent("unstuffed-dot", repr(octets), *message(octets))
    innocent("unstuffed-dot", "doubled in the first line", *message(MailData(b"..\r\n.\r\n")))

    for declared, actual in ((1025 + 100, 100), (0, 10000), (1000, 3049), (25000, 20000), (9000, 12100), (1,
        2050)):
        guilty("size-wrong", f"{declared} for {actual}", *message(sized(actual), mail(f"SIZE={declared}")))
    for declared, actual in ((1024 + 100, 100), (0, 2048), (1000, 3048), (22000, 20000), (9000, 12000), (100,
        100), (10000, 10000)):
        innocent("size-wrong", f"{declared} for {actual}", *message(sized(actual), mail(f"SIZE={declared}")))
    innocent("size-wrong", "none declared", *message(sized(9000)))
    innocent("size-wrong", "dots that were doubled", *message(MailData(b"\r\n" + 2000 * b"..\r\n" + b".\r\n"),
        mail("SIZE=6002")))
    innocent("size-wrong", "one declared for a message that is not sent", EHLO, mail("SIZE=90000"), RCPT,
        RSET, *MESSAGE, QUIT)
    innocent("size-wrong", "one declared after a message", EHLO, mail("SIZE=90000"), RCPT, EHLO, *MESSAGE,
        QUIT)
    far_more = (*message(sized(9000), mail("SIZE=9"))[:-1],)
    also = ("size-over-limit",)
    guilty("size-wrong", "9 for over 4000", *far_more, also=also, message_size_limit=2000)
    innocent("size-wrong", "9 for over 2000", *far_more, also=also, message_size_limit=1000)
    guilty("size-over-limit", "a third more", *message(sized(1334)), message_size_limit=1000)
    guilty("size-over-limit", "far more", *message(sized(5000))[:-1], message_size_limit=1000)
    guilty("size-over-limit", "that a rule offered", *message(sized(1334)), rules=rule("EHLO",
        "hide = 'SIZE'\nadd = 'SIZE 1000'"))
    innocent("size-over-limit", "just the limit", *message(sized(1000)), message_size_limit=1000)
    innocent("size-over-limit", "a quarter of it doubled dots", *message(sized(1333)),
        message_size_limit=1000)
    innocent("size-over-limit", "MAIL refused for it", EHLO, mail("SIZE=1001"), RSET, *MESSAGE, QUIT,
        message_size_limit=1000)
    innocent("size-over-limit", "after HELO, without knowing", HELO, *message(sized(1900))[1:],
        message_size_limit=1000)
    innocent("size-over-limit", "the offer is hidden", *message(sized(1900)), message_size_limit=1000,
        rules=hides("SIZE"))
    innocent("size-over-limit", "no limit", *message(sized(9000)))


BINARY_OFFERED: Final = frozenset(row.keyword for row in EXTENSIONS if row.by_default) | {"BINARYMIME"}


def _chunks() -> None:
    """Messages in chunks."""
    start, rest, end = Chunk(b"Subject: a test\r\n"), Chunk(b"\r\nHello\r\n"), Chunk(b"Bye\r\n", True)
    too_large = Chunk(101 * b"12345678\r\n")
    whole = (*ENVELOPE, start, rest, end)
    guilty("data-after-bdat", "DATA behind a chunk", EHLO, *ENVELOPE, start, DATA, RSET, QUIT)
    guilty("data-after-bdat", "DATA behind two chunks", EHLO, *ENVELOPE, start, rest, DATA, end, QUIT)
    innocent("data-after-bdat", "DATA after RSET", EHLO, *ENVELOPE, start, RSET, *MESSAGE, QUIT)
    innocent("data-after-bdat", "DATA after the last chunk", EHLO, *whole, *MESSAGE, *whole, QUIT)
    limit: dict[str, Any] = {"message_size_limit": 1000}
    guilty("chunk-after-refusal", "without PIPELINING", EHLO, *ENVELOPE, too_large, end, QUIT,
        rules=HIDES_PIPELINING,
           legal=SEE_NOTHING, **limit)
    guilty("chunk-after-refusal", "behind NOOP", EHLO, *ENVELOPE, too_large, NOOP, end, QUIT,
        legal=SEE_NOTHING, **limit)
    guilty("chunk-after-refusal", "refused by a rule", EHLO, *ENVELOPE, start, NOOP, end, QUIT,
        legal=SEE_NOTHING,
           rules=rule("BDAT", OF_A + "reply = '451 4.3.0 Later'"))
    innocent("chunk-after-refusal", "on its way", EHLO, *ENVELOPE, too_large, rest, end, QUIT, **limit)
    innocent("chunk-after-refusal", "RSET", EHLO, *ENVELOPE, too_large, RSET, *whole, QUIT, **limit)
    innocent("chunk-after-refusal", "QUIT", EHLO, *ENVELOPE, too_large, QUIT, **limit)
    binary = mail("BODY=BINARYMIME")
    offers: dict[str, Any] = {"extensions": BINARY_OFFERED}
    guilty("binary-data", "DATA", EHLO, binary, RCPT, DATA, BODY, QUIT, **offers,
        legal={"strict unseen": None})
    innocent("binary-data", "chunks", EHLO, binary, RCPT, start, Chunk(b"a\0\n\r\xff.\r\n.x", True), QUIT,
        **offers)
    innocent("binary-data", "DATA of the next message", EHLO, binary, RCPT, end, *MESSAGE, QUIT, **offers)
    innocent("binary-data", "DATA after RSET", EHLO, binary, RCPT, RSET, *MESSAGE, QUIT, **offers)
    guilty("wrong-order", "BDAT first", EHLO, start, RSET, QUIT)
    guilty("wrong-order", "BDAT without RCPT", EHLO, MAIL, start, RSET, QUIT)
    guilty("wrong-order", "RCPT between chunks", EHLO, *ENVELOPE, start, RCPT, end, QUIT)
    guilty("wrong-order", "MAIL between chunks", EHLO, *ENVELOPE, start, MAIL, RSET, QUIT)
    innocent("wrong-order", "NOOP between chunks", EHLO, *ENVELOPE, start, NOOP, rest, end, QUIT)
    innocent("wrong-order", "BDAT on its way behind a refused MAIL", EHLO, *ENVELOPE, start, end, RSET, QUIT,
             rules=REFUSES_MAIL)
    innocent("wrong-order", "a last chunk without octets", EHLO, *ENVELOPE, start, Chunk(b"", True), *whole,
        QUIT)
    guilty("no-recipient", "BDAT behind a refused RCPT and NOOP", EHLO, *ENVELOPE, NOOP, start, RSET, QUIT,
           rules=REFUSES_RCPT, legal=SEE_NOTHING)
    innocent("no-recipient", "BDAT on its way behind a refused RCPT", EHLO, *ENVELOPE, start, end, RSET, QUIT,
             rules=REFUSES_RCPT)
    guilty("unknown-command", "BDAT after HELO", HELO, *ENVELOPE, start, end, QUIT, also=("unknown-command",))
    guilty("unknown-command", "BDAT that a rule hid", EHLO, *ENVELOPE, start, end, QUIT,
        also=("unknown-command",),
           rules=hides("CHUNKING"))
    innocent("unknown-command", "BDAT in lower case", EHLO, *ENVELOPE, b"bdat 3 last\r\na\r\n", QUIT)
    for octets, name in ((b"a\nb", "bare-lf"), (b"a\rb", "bare-cr"), (b"a\0b", "nul"), (b"a\xffb",
        "8bit-undeclared"),
                         (999 * b"x", "long-line")):
        guilty(name, "a chunk", EHLO, *ENVELOPE, start, Chunk(octets + b"\r\n"), end, QUIT)
    guilty("bare-lf", "between chunks", EHLO, *ENVELOPE, Chunk(b"a"), Chunk(b"\nb\r\n", True), QUIT)
    guilty("long-line", "999 octets in two chunks", EHLO, *ENVELOPE, Chunk(500 * b"x"),
        Chunk(499 * b"x" + b"\r\n", True),
           QUIT)
    innocent("bare-lf", "CR LF in two chunks", EHLO, *ENVELOPE, Chunk(b"a\r"), Chunk(b"\nb\r\n", True), QUIT)
    innocent("long-line", "998 octets in two chunks", EHLO, *ENVELOPE, Chunk(500 * b"x"),
             Chunk(498 * b"x" + b"\r\n", True), QUIT)
    innocent("8bit-undeclared", "a chunk with BODY=8BITMIME", EHLO, mail("BODY=8BITMIME"), RCPT,
             Chunk("Grüße\r\n".encode(), True), QUIT)
    innocent("unstuffed-dot", "a chunk", EHLO, *ENVELOPE, Chunk(b".x\r\n.\r\n..\r\n", True), QUIT)
    guilty("size-wrong", "chunks", EHLO, mail("SIZE=5000"), RCPT, start, end, QUIT)
    innocent("size-wrong", "chunks, declared", EHLO, mail("SIZE=22"), RCPT, start, end, QUIT)
    guilty("size-over-limit", "chunks", EHLO, *ENVELOPE, Chunk(134 * b"12345678\r\n"), RSET, QUIT, **limit)
    innocent("size-over-limit", "chunks within it", EHLO, *ENVELOPE, Chunk(900 * b"x"),
        Chunk(98 * b"y" + b"\r\n", True), QUIT, **limit)
    guilty("pipelined-behind-last", "NOOP in front of a chunk", EHLO, Pipelined((*ENVELOPE, NOOP, start)),
        end, QUIT)
    innocent("pipelined-behind-last", "whole messages", EHLO, Pipelined(whole), Pipelined((*whole, *whole,
        QUIT)))
    guilty("unoffered-pipelining", "chunks", EHLO, *ENVELOPE, Pipelined((start, end)), QUIT,
        rules=HIDES_PIPELINING)
    guilty("syntax", "BDAT with another word", EHLO, *ENVELOPE, b"BDAT 2 FIRST\r\nab", RSET, QUIT)
    guilty("syntax", "BDAT without a size", EHLO, *ENVELOPE, b"BDAT LAST\r\n")
    guilty("syntax", "BDAT with a size that is no number", EHLO, *ENVELOPE, b"BDAT 0x2 LAST\r\n")
    innocent("syntax", "BDAT with leading zeros", EHLO, *ENVELOPE, b"BDAT 002 LAST\r\n\r\n", QUIT)


def sized(octets: int) -> MailData:
    """Return a message of so many octets."""
    lines = b"".join([98 * b"x" + b"\r\n"] * (octets // 100 + 1))
    return MailData((lines[: octets - 2] if octets >= 2 else b"").rstrip(b"\r\n").ljust(octets - 2,
        b"y") + b"\r\n.\r\n")


def _retries() -> None:
    """The same message again."""
    def named(name: str, more: str = "") -> tuple[Step, ...]:
        return (EHLO, *ENVELOPE, DATA,
            MailData(f"Message-ID: <{name}@a.test>\r\nSubject: x\r\n\r\nHello{more}\r\n.\r\n".encode()), QUIT)

    end_554, end_451 = rule(".", OF_A + "reply = '554 5.6.0 No'"), rule(".",
        OF_A + "reply = '451 4.3.0 Later'")
    never = rule(".", OF_A + "recipient = 'nobody@b.test'\nreply = '451 4.3.0 Later'")
    guilty("retried-5xx", "after a minute", *named("1"), Reconnect(60), *named("1"), rules=end_554)
    guilty("retried-5xx", "at once", *named("1"), Reconnect(0), *named("1"), rules=end_554)
    guilty("retried-5xx", "in the same connection", *named("1")[:-1], *named("1")[1:], Reconnect(0), QUIT,
        rules=end_554)
    innocent("retried-5xx", "another message", *named("1"), Reconnect(60), *named("2"), rules=end_554)
    innocent("retried-5xx", "no Message-ID", *message(b"Hello"), Reconnect(60), *message(b"Hello"),
        rules=end_554)
    innocent("retried-5xx", "deferred, not refused", *named("1"), Reconnect(60), *named("1"), rules=end_451)
    innocent("retried-5xx", "552 at RCPT", EHLO, MAIL, RCPT, rcpt("", "eve@b.test"), *named("1")[3:],
        Reconnect(60), EHLO, MAIL, rcpt("", "eve@b.test"), *named("1")[3:],
             rules=rule("RCPT",
                 OF_A + "recipient = 'eve@b.test'\nattempt = 1\nreply = '552 5.5.3 Too many recipients'"))
    guilty("retried-at-once", "twice within half a second", *named("1"), Reconnect(0.3), *named("1"),
        Reconnect(0.3), *named("1"), rules=end_451)
    innocent("retried-at-once", "once", *named("1"), Reconnect(0.3), *named("1"), Reconnect(1800),
        *named("1"), rules=end_451)
    innocent("retried-at-once", "every second", *named("1"), Reconnect(1), *named("1"), Reconnect(1),
        *named("1"), rules=end_451)
    guilty("duplicate", "after a minute", *named("1"), Reconnect(60), *named("1"), rules=never)
    guilty("duplicate", "in the same connection", *named("1")[:-1], *named("1")[1:], Reconnect(0), QUIT,
        rules=never)
    innocent("duplicate", "another message", *named("1"), Reconnect(60), *named("2"), rules=never)
    innocent("duplicate", "another recipient", *named("1"), Reconnect(60), EHLO, MAIL, rcpt("", "eve@b.test"),
        *named("1")[3:], rules=never)
    innocent("duplicate", "after a deferral", *named("1"), Reconnect(60), *named("1"), rules=rule(".",
        OF_A + "attempt = 1\nreply = '451 4.3.0 Later'"))
    innocent("duplicate", "a reply that may not have arrived", *named("1")[:-1], Reconnect(60), *named("1"),
        rules=never)
    at_rcpt = rule("RCPT", OF_A + "attempt = 1\nreply = '451 4.3.0 Later'")
    guilty("never-retried", "a recipient", EHLO, *ENVELOPE, RSET, QUIT, Reconnect(13 * HOUR), rules=at_rcpt)
    guilty("never-retried", "a message", *named("1"), Reconnect(13 * HOUR), rules=end_451)
    innocent("never-retried", "after eleven hours", *named("1"), Reconnect(11 * HOUR), rules=end_451)
    innocent("never-retried", "retried, and accepted", EHLO, *ENVELOPE, RSET, QUIT, Reconnect(HOUR),
        *named("1"), Reconnect(13 * HOUR), rules=at_rcpt)
    innocent("never-retried", "retried, and given up", *named("1"), Reconnect(HOUR), *named("1"),
        Reconnect(13 * HOUR), rules=end_451)
    innocent("never-retried", "refused, not deferred", *named("1"), Reconnect(13 * HOUR), rules=end_554)


for make in (_hello, _order, _commands, _pipelining, _bodies, _chunks, _retries):
    make()
