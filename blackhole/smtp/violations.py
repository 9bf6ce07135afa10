"""The violations that senders commit: one row for each, with the section of the RFC that forbids it.

"must" and "should" are the RFC's own words to a client (RFC 2119). A mistake that no RFC forbids in such
words is a matter of style.
"""

from __future__ import annotations

from typing import Final, NamedTuple

LEVELS: Final = ("must", "should", "style")
"""The levels of violations, the gravest first."""


class Violation(NamedTuple):
    """A row of the table. Counters, reports and transcripts use its name."""

    name: str
    level: str
    rfc: int
    section: str
    meaning: str
    """What the sender did."""
    hint: str
    """What its author can do about it."""

    @property
    def source(self) -> str:
        """The RFC and section that forbids it."""
        return f"RFC {self.rfc} {self.section}"


VIOLATIONS: Final = (
    # The connection.
    Violation(
        "early-talk", "should", 5321, "4.3.1",
        "talked before the greeting",
        "wait for the 220 line before the first command",
    ),
    Violation(
        "no-quit", "must", 5321, "4.1.1.10",
        "closed the connection without QUIT",
        "send QUIT, and wait for the 221",
    ),
    Violation(
        "hung-up-in-body", "must", 5321, "4.1.1.10",
        "closed the connection in the middle of a message",
        "end the message with CRLF.CRLF, or never begin it",
    ),
    Violation(
        "talk-after-421", "style", 5321, "3.8",
        "went on after 421",
        "421 ends the session at any point: close, and try again later",
    ),
    Violation(
        "talk-after-521", "style", 5321, "3.1",
        "went on after a refusal in place of the greeting",
        "all that may follow a 521 or 554 greeting is QUIT",
    ),
    # Greetings and order.
    Violation(
        "no-hello", "must", 5321, "4.1.1.1",
        "began a message without EHLO or HELO",
        "say EHLO first, and HELO where that is refused",
    ),
    Violation(
        "hello-name", "should", 5321, "4.1.1.1",
        "gave a name without a dot in EHLO or HELO",
        "give the host's full name, or its address in brackets: [192.0.2.1]",
    ),
    Violation(
        "hello-literal", "must", 5321, "2.3.5",
        "gave an address without brackets in EHLO or HELO",
        "write [192.0.2.1] or [IPv6:2001:db8::1]",
    ),
    Violation(
        "wrong-order", "must", 5321, "4.1.4",
        "said MAIL in the middle of a transaction, or RCPT without MAIL, or DATA without RCPT",
        "MAIL, then every RCPT, then DATA; RSET to begin anew",
    ),
    Violation(
        "no-recipient", "style", 5321, "3.3",
        "said DATA though MAIL or every RCPT had been refused",
        "if every RCPT was refused, the message is refused: RSET or QUIT",
    ),
    # Commands.
    Violation(
        "long-command", "should", 5321, "4.5.3.1.4",
        "sent a command line of more than 512 octets",
        "shorten the address; the parameters of extensions have room of their own",
    ),
    Violation(
        "syntax", "must", 5321, "4.1.1",
        "wrote a command otherwise than it is to be written",
        "MAIL FROM:<address> and RCPT TO:<address>: in brackets, and no blank behind the colon",
    ),
    Violation(
        "unknown-parameter", "must", 5321, "4.1.1.2",
        "gave MAIL or RCPT a parameter that EHLO did not offer",
        "read the answer to EHLO; after HELO there are no parameters at all",
    ),
    Violation(
        "bad-parameter", "must", 5321, "4.1.2",
        "gave MAIL or RCPT a parameter twice, or with a value it cannot have",
        "the RFC of the extension says how its value is written",
    ),
    Violation(
        "unknown-command", "must", 5321, "4.1.5",
        "said a command that is none, or that EHLO did not offer",
        "read the answer to EHLO before AUTH, BDAT, STARTTLS or a command of one's own",
    ),
    Violation(
        "utf8-undeclared", "must", 5321, "4.1.2",
        "said something that is not ASCII without SMTPUTF8",
        "add SMTPUTF8 to MAIL if EHLO offered it; else such an address cannot be served",
    ),
    # Pipelining and TLS.
    Violation(
        "unoffered-pipelining", "must", 5321, "4.3.1",
        "sent a command before the answer to the last one, though EHLO had not offered PIPELINING",
        "wait for each answer, or read the answer to EHLO first",
    ),
    Violation(
        "pipelined-behind-last", "must", 2920, "3.1",
        "sent something behind a command that has to be the last of a group",
        "wait for the answer to EHLO, DATA, NOOP, VRFY, EXPN and QUIT",
    ),
    Violation(
        "talk-behind-starttls", "must", 3207, "4",
        "sent something in the clear behind STARTTLS",
        "wait for the 220, then shake hands; whoever takes more can be fooled (CVE-2011-0411)",
    ),
    Violation(
        "no-hello-after-starttls", "should", 3207, "4.2",
        "did not say EHLO again once TLS was on",
        "what was learnt in the clear is void; say EHLO again",
    ),
    # Messages.
    Violation(
        "bare-lf", "must", 5321, "2.3.8",
        "ended a line with LF alone",
        "lines end with CR LF; most languages write LF unless told otherwise",
    ),
    Violation(
        "bare-cr", "must", 5321, "2.3.8",
        "sent CR without LF behind it",
        "CR stands nowhere but before LF",
    ),
    Violation(
        "long-line", "must", 5322, "2.1.1",
        "sent a line of more than 998 octets in a message",
        "encode the part: quoted-printable or base64",
    ),
    Violation(
        "nul", "must", 5322, "4",
        "sent a NUL octet",
        "encode the part: base64; a NUL in a command is a bug",
    ),
    Violation(
        "8bit-undeclared", "must", 5321, "2.4",
        "sent octets above 127 in a message without BODY=8BITMIME",
        "add BODY=8BITMIME to MAIL if EHLO offered it; else encode",
    ),
    Violation(
        "unstuffed-dot", "must", 5321, "4.5.2",
        "sent a line that begins with a single dot",
        "put a dot before every dot that begins a line; a line of just one would end the message",
    ),
    Violation(
        "size-wrong", "style", 1870, "6",
        "declared a SIZE that is more than a tenth too large, or a third too small",
        "count the octets as they go over the wire, with CR LF at the end of each line",
    ),
    Violation(
        "size-over-limit", "style", 1870, "5",
        "sent a message larger than EHLO said is taken",
        "compare with the SIZE of EHLO's answer, and do not send what cannot be taken",
    ),
    # Once more. A message is known again by its Message-ID, and by it alone.
    Violation(
        "retried-5xx", "should", 5321, "4.2.1",
        "sent a message again that had been refused for good, with 5xx",
        "give up, and tell the sender; only 4xx asks for another attempt",
    ),
    Violation(
        "retried-at-once", "must", 5321, "4.5.4.1",
        "sent a message again that had been put off with 4xx, twice and more, without a pause",
        "wait before each attempt, 30 minutes as a rule; only another address may be tried at once",
    ),
    Violation(
        "never-retried", "must", 5321, "4.5.4.1",
        "did not come again for twelve hours with what had been put off with 4xx",
        "keep it in a queue, and try again for 4 to 5 days; unless another host has taken it",
    ),
    Violation(
        "duplicate", "style", 5321, "4.2.5",
        "sent a message again to a recipient for whom it had been taken, with 250",
        "what was answered 250 is no longer the sender's: see that no two deliver one message",
    ),
)  # fmt: skip
"""The table of violations."""
