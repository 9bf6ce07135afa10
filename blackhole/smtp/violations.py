"""The violations that senders commit: one row for each, with the section of the RFC that forbids it.

"must" and "should" are the RFC's own words to a client (RFC 2119). A mistake that no RFC forbids in such
words is a matter of style. What only a provider asks for is of the level "provider".
"""

from __future__ import annotations

from typing import Final, NamedTuple

RFC_LEVELS: Final = ("must", "should", "style")
"""The levels of what is wrong whoever receives the mail, the gravest first."""

LEVELS: Final = (*RFC_LEVELS, "provider")
"""The levels of violations."""

IN_SESSIONS: Final = "sessions"
IN_MESSAGES: Final = "messages"
IN_HEADERS: Final = "headers"
IN_CONTENTS: Final = "contents"
IN_SIGNATURES: Final = "signatures"
OF_CONTENT: Final = (IN_HEADERS, IN_CONTENTS, IN_SIGNATURES)
"""What is inspected of the content of messages (--inspect-content): header sections, whole messages, and DKIM
signatures of which the key is known."""

INSPECTED: Final = (IN_SESSIONS, IN_MESSAGES, *OF_CONTENT)
"""What is inspected in a sample (--inspect)."""


class Violation(NamedTuple):
    """A row of the table. Counters, reports and transcripts use its name."""

    name: str
    level: str
    rfc: int
    """0: it is the rule of a provider."""
    section: str
    """That of the RFC, or the name of the provider's rule."""
    meaning: str
    """What the sender did."""
    hint: str
    """What its author can do about it."""
    sampled_in: str = ""
    """What is inspected for it, where that is a sample: sessions or messages. It may also be found otherwise,
    and is counted then. Empty: it is always counted."""
    providers: tuple[str, ...] = ()
    """Names in `providers.PROVIDERS` of those that say that they expect something else."""

    @property
    def source(self) -> str:
        """The RFC and section that forbids it, or the provider's rule and its date."""
        return f"RFC {self.rfc} {self.section}" if self.rfc else self.section


VIOLATIONS: Final = (
    # The connection.
    Violation(
        "early-talk", "should", 5321, "4.3.1",
        "sent a command before the greeting",
        "wait for the 220 greeting before the first command",
        IN_SESSIONS,
    ),
    Violation(
        "no-quit", "must", 5321, "4.1.1.10",
        "closed the connection without QUIT",
        "send QUIT, and wait for the 221 reply",
    ),
    Violation(
        "hung-up-in-body", "must", 5321, "4.1.1.10",
        "closed the connection in the middle of a message",
        "end the message with CRLF.CRLF or BDAT LAST, or do not begin it",
    ),
    Violation(
        "talk-after-421", "style", 5321, "3.8",
        "sent another command after a 421 reply",
        "close the connection after 421, and try again later",
    ),
    Violation(
        "talk-after-521", "style", 5321, "3.1",
        "sent a command other than QUIT after a greeting that refused the session",
        "send nothing but QUIT after a 521 or 554 greeting",
    ),
    # Greetings and order.
    Violation(
        "no-hello", "must", 5321, "4.1.1.1",
        "began a transaction without EHLO or HELO",
        "send EHLO first, and HELO if EHLO is refused",
    ),
    Violation(
        "hello-name", "should", 5321, "4.1.1.1",
        "gave a name without a dot in EHLO or HELO",
        "give the fully qualified name of the host, or its address in brackets: [192.0.2.1]",
        IN_SESSIONS,
    ),
    Violation(
        "hello-literal", "must", 5321, "2.3.5",
        "gave an address without brackets in EHLO or HELO",
        "write [192.0.2.1] or [IPv6:2001:db8::1]",
        IN_SESSIONS,
    ),
    Violation(
        "wrong-order", "must", 5321, "4.1.4",
        "sent MAIL inside a transaction, RCPT without MAIL, or DATA or BDAT without RCPT",
        "send MAIL, then each RCPT, then DATA or BDAT; send RSET to abandon a transaction",
    ),
    Violation(
        "no-recipient", "style", 5321, "3.3",
        "sent DATA although MAIL or every RCPT had been refused",
        "send RSET or QUIT when no recipient was accepted",
    ),
    Violation(
        "body-after-refusal", "must", 5321, "4.1.1.4",
        "sent the message though DATA had been refused",
        "begin the message only when DATA is answered with 354",
    ),
    Violation(
        "data-after-bdat", "must", 3030, "2",
        "sent DATA for a message that it had begun with BDAT",
        "send each message with DATA or with BDAT, and RSET to abandon one",
    ),
    Violation(
        "chunk-after-refusal", "must", 3030, "2",
        "sent another chunk of a message after one had been refused",
        "send RSET or QUIT when BDAT is answered with 4xx or 5xx",
    ),
    Violation(
        "binary-data", "must", 3030, "3",
        "sent DATA for a message with BODY=BINARYMIME",
        "send such a message with BDAT: DATA has lines, and a binary message has none",
    ),
    # Commands.
    Violation(
        "long-command", "should", 5321, "4.5.3.1.4",
        "sent a command line of more than 512 octets",
        "shorten the address; only the parameters of extensions may make the line longer",
    ),
    Violation(
        "long-path", "should", 5321, "4.5.3.1.3",
        "sent an address of more than 256 octets with its brackets",
        "shorten the address; a server may refuse it",
    ),
    Violation(
        "syntax", "must", 5321, "4.1.1",
        "sent a command whose syntax is wrong",
        "write MAIL FROM:<address> and RCPT TO:<address>: with brackets, without a blank after the colon; "
        "a domain has letters, digits, hyphens and dots",
        IN_SESSIONS,
    ),
    Violation(
        "unknown-parameter", "must", 5321, "4.1.1.2",
        "used a parameter of MAIL or RCPT that the reply to EHLO did not offer",
        "use only what the reply to EHLO offers; after HELO there are no parameters",
    ),
    Violation(
        "bad-parameter", "must", 5321, "4.1.2",
        "used a parameter of MAIL or RCPT twice, or with an invalid value",
        "write the value as the RFC of the extension defines it",
    ),
    Violation(
        "unknown-command", "must", 5321, "4.1.5",
        "sent a command that does not exist, or that the reply to EHLO did not offer",
        "read the reply to EHLO before AUTH, BDAT, STARTTLS or a private command",
    ),
    Violation(
        "utf8-undeclared", "must", 5321, "4.1.2",
        "sent a command with octets outside ASCII without SMTPUTF8",
        "add SMTPUTF8 to MAIL if the reply to EHLO offers it; otherwise do not send such an address",
    ),
    # Pipelining and TLS.
    Violation(
        "unoffered-pipelining", "must", 5321, "4.3.1",
        "sent a command before the reply to the one before, although PIPELINING was not offered",
        "wait for each reply, or for the offer of PIPELINING in the reply to EHLO",
    ),
    Violation(
        "pipelined-behind-last", "must", 2920, "3.1",
        "sent more after a command that must be the last of a pipelined group",
        "wait for the reply to EHLO, DATA, NOOP, VRFY, EXPN and QUIT",
    ),
    Violation(
        "talk-behind-starttls", "must", 3207, "4",
        "sent octets in the clear after STARTTLS",
        "begin the TLS handshake after the 220 reply, and send nothing before it (CVE-2011-0411)",
    ),
    Violation(
        "no-hello-after-starttls", "should", 3207, "4.2",
        "did not send EHLO again after the TLS handshake",
        "send EHLO again: what the server offered in the clear is no longer valid",
    ),
    # Messages.
    Violation(
        "bare-lf", "must", 5321, "2.3.8",
        "ended a line with LF alone",
        "lines end with CR LF; most languages write LF by default",
        IN_MESSAGES,
    ),
    Violation(
        "bare-cr", "must", 5321, "2.3.8",
        "sent CR without LF after it",
        "send CR only as part of CR LF",
        IN_MESSAGES,
    ),
    Violation(
        "long-line", "must", 5322, "2.1.1",
        "sent a line of more than 998 octets in a message",
        "encode the part as quoted-printable or base64",
        IN_MESSAGES,
    ),
    Violation(
        "nul", "must", 5322, "4",
        "sent a NUL octet",
        "encode the part as base64; never send NUL in a command",
        IN_MESSAGES,
    ),
    Violation(
        "8bit-undeclared", "must", 5321, "2.4",
        "sent octets above 127 in a message without BODY=8BITMIME",
        "add BODY=8BITMIME to MAIL if the reply to EHLO offers it; otherwise encode the part",
        IN_MESSAGES,
    ),
    Violation(
        "unstuffed-dot", "must", 5321, "4.5.2",
        "sent a line that begins with a single dot",
        "double each dot that begins a line: a line of a single dot ends the message",
        IN_MESSAGES,
    ),
    Violation(
        "size-wrong", "style", 1870, "6",
        "declared a SIZE that is more than a tenth too large, or a third too small",
        "count the octets as they are sent, with CR LF at the end of each line",
    ),
    Violation(
        "size-over-limit", "style", 1870, "5",
        "sent a message larger than the SIZE that the server offered",
        "compare the message with the SIZE in the reply to EHLO, and do not send a larger one",
    ),
    # The content of messages: the header section.
    Violation(
        "no-from", "must", 5322, "3.6",
        "sent a message without a From field",
        "give each message one From field with the address of its author",
        IN_HEADERS, ("gmail", "microsoft"),
    ),
    Violation(
        "several-from", "must", 5322, "3.6",
        "sent a message with several From fields",
        "write all authors into one From field",
        IN_HEADERS, ("gmail",),
    ),
    Violation(
        "bad-from", "must", 5322, "3.4",
        "sent a message whose From field is not well formed",
        'write From: "A name" <name@example.com>; quote names with dots or commas, and encode others '
        "(RFC 2047)",
        IN_HEADERS, ("gmail", "microsoft"),
    ),
    Violation(
        "several-authors", "provider", 0, "Gmail's sender guidelines, 2024-02-01",
        "sent a message with several addresses in From",
        "write one address into From",
        IN_HEADERS, ("gmail",),
    ),
    Violation(
        "no-sender", "must", 5322, "3.6.2",
        "sent a message with several authors in From and without a Sender field",
        "name the one who sends the message in a Sender field",
        IN_HEADERS, ("gmail",),
    ),
    Violation(
        "no-date", "must", 5322, "3.6",
        "sent a message without a Date field",
        "give each message a Date field: the time at which its author finished it",
        IN_HEADERS, ("gmail",),
    ),
    Violation(
        "bad-date", "must", 5322, "3.3",
        "sent a message whose Date field is not well formed",
        "write Date: Sun, 29 Nov 2026 06:25:31 +0000: a year of four digits and a numeric zone",
        IN_HEADERS, ("gmail",),
    ),
    Violation(
        "no-message-id", "should", 5322, "3.6.4",
        "sent a message without a Message-ID field",
        "give each message a Message-ID that no other message has",
        IN_HEADERS, ("gmail",),
    ),
    Violation(
        "bad-message-id", "must", 5322, "3.6.4",
        "sent a message whose Message-ID field is not well formed",
        "write Message-ID: <unique@example.com>, with one @ and without blanks",
        IN_HEADERS, ("gmail",),
    ),
    Violation(
        "repeated-field", "must", 5322, "3.6",
        "sent a message with two fields of which it may have one",
        "write Date, To, Cc, Subject, Message-ID, Reply-To, Sender and References once",
        IN_HEADERS, ("gmail",),
    ),
    Violation(
        "bad-field", "must", 5322, "2.2",
        "sent a header section with a line that is no field",
        "write Name: value without a blank before the colon, and a blank line behind the last field",
        IN_HEADERS, ("gmail",),
    ),
    Violation(
        "8bit-header", "must", 6532, "3.1",
        "sent a header field with octets above 127 without SMTPUTF8, or that are not UTF-8",
        "encode the value (RFC 2047), or add SMTPUTF8 to MAIL if the reply to EHLO offers it",
        IN_HEADERS, ("gmail",),
    ),
    # Ways to unsubscribe.
    Violation(
        "no-list-unsubscribe", "provider", 0, "Gmail's sender guidelines, 2024-02-01",
        "sent a message without List-Unsubscribe",
        "add List-Unsubscribe to what a list or a campaign sends; other mail needs none",
        IN_HEADERS, ("gmail", "yahoo"),
    ),
    Violation(
        "bad-list-unsubscribe", "must", 2369, "2",
        "sent a message whose List-Unsubscribe is not well formed",
        "write List-Unsubscribe: <https://example.com/u/1>, <mailto:u@example.com>",
        IN_HEADERS, ("gmail", "yahoo"),
    ),
    Violation(
        "no-one-click", "provider", 0, "Gmail's sender guidelines, 2024-02-01",
        "sent a message with List-Unsubscribe and without List-Unsubscribe-Post",
        "add List-Unsubscribe-Post: List-Unsubscribe=One-Click (RFC 8058)",
        IN_HEADERS, ("gmail", "yahoo"),
    ),
    Violation(
        "bad-one-click", "must", 8058, "3.1",
        "sent a message whose List-Unsubscribe-Post is wrong, or whose List-Unsubscribe has no https URI",
        "write List-Unsubscribe-Post: List-Unsubscribe=One-Click, and an https URI in List-Unsubscribe",
        IN_HEADERS, ("gmail", "yahoo"),
    ),
    Violation(
        "one-click-unsigned", "must", 8058, "4",
        "sent a message with List-Unsubscribe-Post that no DKIM-Signature covers",
        "sign List-Unsubscribe and List-Unsubscribe-Post: name both in h=",
        IN_HEADERS, ("gmail", "yahoo"),
    ),
    # Signatures, as far as no key is needed.
    Violation(
        "no-dkim-signature", "provider", 0, "Gmail's sender guidelines, 2024-02-01",
        "sent a message without a DKIM-Signature",
        "sign each message with a key of the domain in From",
        IN_HEADERS, ("gmail", "yahoo", "microsoft", "orange"),
    ),
    Violation(
        "bad-dkim-signature", "must", 6376, "3.5",
        "sent a message whose DKIM-Signature is not well formed",
        "a signature needs v, a, b, bh, d, h and s, and h= needs From",
        IN_HEADERS, ("gmail", "yahoo", "microsoft", "orange"),
    ),
    Violation(
        "dkim-sha1", "must", 8301, "3.1",
        "sent a message that is signed with rsa-sha1",
        "sign with rsa-sha256",
        IN_HEADERS, ("gmail", "yahoo", "microsoft", "orange"),
    ),
    Violation(
        "unaligned-dkim", "provider", 0, "Gmail's sender guidelines, 2024-02-01",
        "sent a message that is signed, but not by the domain in From",
        "sign with d= of the domain in From, or of one that it belongs to (RFC 7489 3.1.1)",
        IN_HEADERS, ("gmail", "yahoo", "microsoft", "orange"),
    ),
    # Signatures whose key is known.
    Violation(
        "bad-body-hash", "must", 6376, "3.7",
        "sent a signed message whose body is not the one that was signed",
        "sign last: nothing may convert, wrap or append to a message that is signed",
        IN_SIGNATURES, ("gmail", "yahoo", "microsoft", "orange"),
    ),
    Violation(
        "bad-signature", "must", 6376, "3.7",
        "sent a signed message whose signature does not belong to its fields or to the published key",
        "publish the key that signs, and sign last: nothing may change a field that is signed",
        IN_SIGNATURES, ("gmail", "yahoo", "microsoft", "orange"),
    ),
    Violation(
        "weak-dkim-key", "must", 8301, "3.2",
        "sent a message that is signed with an RSA key of less than 1024 bits",
        "sign with a key of 2048 bits",
        IN_SIGNATURES, ("gmail", "yahoo", "microsoft", "orange"),
    ),
    # The parts of messages.
    Violation(
        "no-mime-version", "must", 2045, "4",
        "sent a message with Content-Type or Content-Transfer-Encoding and without MIME-Version",
        "add MIME-Version: 1.0",
        IN_CONTENTS,
    ),
    Violation(
        "bad-content-type", "must", 2045, "5.1",
        "sent a message with a Content-Type that is not well formed",
        'write Content-Type: text/plain; charset="utf-8"',
        IN_CONTENTS,
    ),
    Violation(
        "bad-transfer-encoding", "must", 2045, "6.4",
        "sent a part with an unknown Content-Transfer-Encoding, or a multipart that is encoded as a whole",
        "encode the innermost parts: 7bit, 8bit, binary, quoted-printable or base64",
        IN_CONTENTS,
    ),
    Violation(
        "bad-boundary", "must", 2046, "5.1.1",
        "sent a multipart without a valid boundary, or whose boundary does not occur in it",
        "begin each part with a line of -- and the boundary, which has 1 to 70 characters",
        IN_CONTENTS,
    ),
    Violation(
        "open-multipart", "must", 2046, "5.1.1",
        "sent a multipart without its closing line",
        "end a multipart with a line of --, the boundary and --",
        IN_CONTENTS,
    ),
    Violation(
        "8bit-in-part", "must", 2045, "6.2",
        "sent a part with octets above 127 that is not declared as 8bit or binary",
        "write Content-Transfer-Encoding: 8bit, or encode the part",
        IN_CONTENTS,
    ),
    Violation(
        "html-clipped", "provider", 0, "Gmail, as observed 2022-01-12",
        "sent a message with more than 102 KiB of HTML, of which Gmail displays the beginning only",
        "shorten the HTML: styles, addresses of links, blanks",
        IN_HEADERS, ("gmail",),
    ),
    # Once more. A message is known again by its Message-ID, and by it alone.
    Violation(
        "retried-5xx", "should", 5321, "4.2.1",
        "sent a message again that had been refused permanently (5xx)",
        "return the message to its author; retry only after 4xx",
    ),
    Violation(
        "retried-at-once", "must", 5321, "4.5.4.1",
        "sent a message again at once after a 4xx reply, more than once",
        "wait before each attempt, usually 30 minutes; only another address may be tried at once",
    ),
    Violation(
        "never-retried", "must", 5321, "4.5.4.1",
        "did not send a message again within twelve hours after a 4xx reply",
        "keep the message in a queue and retry for 4 to 5 days, unless another host accepts it",
    ),
    Violation(
        "duplicate", "style", 5321, "4.2.5",
        "sent a message again to a recipient for whom it had been accepted (250)",
        "remove a recipient from the queue once the reply is 250, and let one process deliver a message",
    ),
)  # fmt: skip
"""The table of violations."""

SAMPLED: Final = tuple(violation.name for violation in VIOLATIONS if violation.sampled_in)
"""The names of the violations that are found in samples."""
