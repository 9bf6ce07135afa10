"""Guilty and barely innocent messages for each rule on the content of messages."""

from __future__ import annotations

SIGNATURE = (
    "v=1; a=rsa-sha256; c=relaxed/simple; d=a.test; s=x; "
    "h=from:to:list-unsubscribe:list-unsubscribe-post; bh=YQ==; b=YQ=="
)

GOOD = {
    "From": "Ann <ann@a.test>",
    "To": "bob@b.test",
    "Date": "Sun, 29 Nov 2026 06:25:31 +0000",
    "Message-ID": "<1@a.test>",
    "List-Unsubscribe": "<mailto:off@a.test>, <https://a.test/off>",
    "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
    "DKIM-Signature": SIGNATURE,
}


def message(body: str = "Hello\r\n", **changes: str | None) -> bytes:
    """Return a message without a fault, but for fields that are changed, added or, with None, left out.

    A name in a keyword has `_` in place of `-`.
    """
    fields = GOOD | {name.replace("_", "-"): value for name, value in changes.items()}
    lines = [f"{name}: {value}\r\n" for name, value in fields.items() if value is not None]
    return ("".join(lines) + "\r\n" + body).encode("utf-8", "surrogateescape")


def signed(value: str) -> bytes:
    return message(DKIM_Signature=value)


def unsubscribe(value: str) -> bytes:
    return message(List_Unsubscribe=value)


def multipart(body: str, content_type: str = "multipart/mixed; boundary=x") -> bytes:
    return message(body, MIME_Version="1.0", Content_Type=content_type)


def part(encoding: str, body: str, content_type: str = "text/plain") -> bytes:
    return message(body, MIME_Version="1.0", Content_Type=content_type, Content_Transfer_Encoding=encoding)


NESTED = "\r\n".join(
    [
        "--x", 'Content-Type: multipart/alternative; boundary="x y"', "", "preamble",
        "--x y", "", "plain", "--x y", "Content-Type: text/html", "", "<p>", "--x y--", "epilogue",
        "--x", "Content-Type: message/rfc822", "", "From: b@b.test", "", "inner", "--x--", "",
    ]
)  # fmt: skip

HTML = 103 * 1024
HTML_PART = "--x\r\nContent-Type: text/html\r\n"

CASES: dict[str, tuple[list[bytes], list[bytes]]] = {
    "no-from": ([message(From=None)], [message()]),
    "several-from": ([message(FROM="ann@a.test")], [message(From="ann@a.test")]),
    "bad-from": (
        [
            message(From=value)
            for value in (
                "ann",
                "ann@",
                "",
                "Ann. B <ann@a.test>",
                "ann@a.test,",
                "ann@a.test bob@a.test",
                "Ann ann@a.test",
                "<ann@a..test>",
                "Ann <ann@a.test",
                "(ann@a.test",
                '"Ann <ann@a.test>',
                "Ann) <ann@a.test>",
                "a: b;",
            )
        ],
        [
            message(From=value)
            for value in (
                '"Ann. B" <ann@a.test>',
                "ann@[192.0.2.1]",
                "(c (d)) ann@a.test (\\))",
                "=?utf-8?q?=C3=A4?= <ann@a.test>",
                "<ann@a.test>",
                '"a b"@a.test',
                "Group: ;",
                "Group: ann@a.test;",
                f"{'a' * 5000} ann",
            )
        ],
    ),
    "several-authors": (
        [message(From="ann@a.test, Bob <bob@a.test>", Sender="ann@a.test")],
        [message(From='"ann, bob" <ann@a.test>')],
    ),
    "no-sender": ([message(From="ann@a.test, bob@a.test")], [message(From="ann@a.test", Sender=None)]),
    "no-date": ([message(Date=None)], [message()]),
    "bad-date": (
        [
            message(Date=value)
            for value in (
                "",
                "now",
                "29 Nov 26 06:25:31 +0000",
                "Sun, 29 Nov 2026 06:25:31 GMT",
                "Sun 29 Nov 2026 06:25:31 +0000",
                "Mon, 29 Nov 2026 06:25:31 +0000",
                "29 Feb 2026 06:25:31 +0000",
                "31 Apr 2026 06:25 +0000",
                "0 Apr 2026 06:25 +0000",
                "29 Nov 2026 24:25:31 +0000",
                "29 Nov 2026 06:60:31 +0000",
                "29 Nov 2026 06:25:61 +0000",
                "29 Nov 2026 06:25:31 +0060",
                "2026-11-29T06:25:31Z",
                "29 Nov 2026 06:25:31 +0000 (",
                "29 Nov 2026 06:25:31",
            )
        ],
        [
            message(Date=value)
            for value in (
                "29 Nov 2026 06:25 -0000",
                "sun, 29 nov 2026 06:25:60 +1400 (a (comment))",
                "1 Jan 2000 00:00 +0000",
                "Thu, 29 Feb 2024 06:25:31 +0000",
                "Thu,  1  Jan 2026 00:00:00 +0000",
                "x" * 5000,
            )
        ],
    ),
    "no-message-id": ([message(Message_ID=None)], [message()]),
    "bad-message-id": (
        [
            message(**{"Message-ID": value})
            for value in (
                "1@a.test",
                "<1>",
                "<1@a@b>",
                "<1 2@a.test>",
                "<1@a.test> <2@a.test>",
                "",
                "<.1@a.test>",
                "(",
            )
        ],
        [
            message(**{"Message-ID": value})
            for value in ("<1@[a b]>".replace(" ", ""), "(c) <1.2@a.test>", "x" * 5000)
        ],
    ),
    "repeated-field": (
        [message(SUBJECT="a", Subject="b"), message(TO="a@b.test")],
        [message(Subject="b", Received="a", RECEIVED="b")],
    ),
    "bad-field": (
        [
            b"Hello\r\n" + message(),
            message().replace(b"To:", b"To :"),
            b" To: a\r\n" + message(),
            message().replace(b"\r\n\r\n", b"\r\nHello\r\n"),
        ],
        [message(To="a,\r\n b"), message().replace(b"\r\n", b"\n"), message(Subject="")],
    ),
    "8bit-header": ([message(Subject="ä")], [message(Subject="=?utf-8?q?=C3=A4?=")]),
    "no-list-unsubscribe": ([message(List_Unsubscribe=None, List_Unsubscribe_Post=None)], [message()]),
    "bad-list-unsubscribe": (
        [
            unsubscribe(value)
            for value in (
                "https://a.test/off",
                "<off>",
                "<https://a.test/off> <mailto:off@a.test>",
                "",
                "<a:b>,",
                "<a:b> (",
            )
        ],
        [
            unsubscribe(value)
            for value in (
                "<https://a.test/off>",
                "<HTTPS://a.test/off> (comment), < mailto:a@b.test >",
                "x" * 5000,
            )
        ],
    ),
    "no-one-click": (
        [message(List_Unsubscribe_Post=None)],
        [message(List_Unsubscribe=None, List_Unsubscribe_Post=None)],
    ),
    "bad-one-click": (
        [
            message(List_Unsubscribe_Post="One-Click"),
            message(List_Unsubscribe="<mailto:a@b.test>"),
            message(List_Unsubscribe=None),
        ],
        [message(), message(List_Unsubscribe_Post=None)],
    ),
    "one-click-unsigned": (
        [message(DKIM_Signature=SIGNATURE.replace("h=from:to:list-unsubscribe:", "h=from:to:"))],
        [message(), message(DKIM_Signature=SIGNATURE.replace("h=from:", "h=From : \r\n "))],
    ),
    "no-dkim-signature": ([message(DKIM_Signature=None)], [message()]),
    "bad-dkim-signature": (
        [
            signed(value)
            for value in (
                "",
                "v",
                "v=1;v=1",
                SIGNATURE.replace("s=x; ", ""),
                SIGNATURE.replace("v=1", "v=2"),
                SIGNATURE.replace("rsa-sha256", "md5"),
                SIGNATURE.replace(" b=YQ==", " b=Y*"),
                SIGNATURE.replace("bh=YQ==", "bh=="),
                SIGNATURE.replace("relaxed/simple", "nofws"),
                SIGNATURE.replace("a.test", "-a"),
                SIGNATURE.replace("s=x", "s=-"),
                SIGNATURE.replace("from:", ""),
                f"{SIGNATURE}; i=a@b.test",
                f"{SIGNATURE}; t=x",
                f"{SIGNATURE}; t=2; x=2",
            )
        ],
        [
            message(DKIM_Signature=f"{SIGNATURE}{more}")
            for more in (
                "",
                ";",
                "; i=@x.a.test; t=1; x=2",
                "; i=ann@A.test; t=9",
                "; \r\n l=5",
                "; z=" + "x" * 20000,
            )
        ],
    ),
    "dkim-sha1": ([message(DKIM_Signature=SIGNATURE.replace("sha256", "sha1"))], [message()]),
    "unaligned-dkim": (
        [message(From="ann@b.test"), message(DKIM_Signature="v=1; d=b.test")],
        [message(From="ann@mail.A.TEST"), message(From="Group: ;"), message(From="ann")],
    ),
    "no-mime-version": (
        [message(Content_Type="text/plain"), message(Content_Transfer_Encoding="7bit")],
        [message(Content_Type="text/plain", MIME_Version="1.0")],
    ),
    "bad-content-type": (
        [
            part("7bit", "", value)
            for value in (
                "text",
                "text/plain; charset",
                "text/plain charset=x",
                "",
                "a/b; c=(",
                "(a/b",
                "text/" + "a" * 9000 + "@",
            )
        ],
        [
            part("7bit", "", value)
            for value in (
                "text/plain; charset=utf-8;",
                'Text / Plain (c); x="a\\"b"; y*0=z',
                "a/" + "b" * 9000,
            )
        ],
    ),
    "bad-transfer-encoding": (
        [
            part("8-bit", ""),
            part("base64", "--x--", "multipart/mixed; boundary=x"),
            part("quoted-printable", "", "message/rfc822"),
            part("", ""),
        ],
        [
            part("x-uuencode", ""),
            part("BASE64 (c)", ""),
            part("8bit", "--x\r\n\r\n--x--\r\n", "multipart/mixed; boundary=x"),
        ],
    ),
    "bad-boundary": (
        [
            multipart(" --x\r\n--xy\r\n", "multipart/mixed; boundary=x"),
            *(
                multipart(NESTED, value)
                for value in (
                    "multipart/mixed",
                    'multipart/mixed; boundary=""',
                    'multipart/mixed; boundary="x "',
                    f"multipart/mixed; boundary={'x' * 71}",
                    "multipart/mixed; boundary=y",
                )
            ),
        ],
        [
            multipart(NESTED),
            multipart("--x--", "multipart/mixed; BOUNDARY=x"),
            multipart("--x\r\n\r\nA: b\r\n\r\n--x--", "multipart/digest; boundary=x"),
        ],
    ),
    "open-multipart": (
        [
            multipart(NESTED.replace("--x--", "")),
            multipart(NESTED.replace("--x y--", "")),
            multipart("--x\r\n\r\nHello"),
            multipart("--x"),
            multipart("--x\r\n" + NESTED.replace("--x--", "")),
        ],
        [multipart(NESTED), multipart(NESTED.replace("\r\n", "\n")), multipart("--x\t\r\n--x-- \r\n")],
    ),
    "8bit-in-part": (
        [
            message("ä\r\n"),
            part("7bit", "ä"),
            part("base64", "ä"),
            part("x-uuencode", "ä"),
            multipart("--x\r\n\r\nä\r\n--x--\r\n"),
        ],
        [part("8bit", "ä"), part("binary", "ä"), multipart("ä\r\n--x\r\n\r\n--x--\r\nä")],
    ),
    "html-clipped": (
        [
            part("7bit", "x" * HTML, "text/html"),
            part("base64", "eHh4" * (HTML // 3 + 1), "text/html"),
            multipart(f"{HTML_PART}\r\n{'x' * (HTML // 2)}\r\n" * 2 + "--x--"),
        ],
        [
            part("7bit", "x" * HTML),
            part("quoted-printable", "=3D" * (HTML // 3), "text/html"),
            multipart(f"{HTML_PART}Content-Disposition: attachment\r\n\r\n{'x' * HTML}\r\n--x--"),
        ],
    ),
}
"""For each rule, messages that break it, and others that barely do not."""
