"""Trials of the conversation and of security: what hostile octets can do, and what the processes may."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from contextlib import suppress
from pathlib import Path

from blackhole.metrics.counters import Counters
from tests.faults.clients import Client, family, percentile, pss
from tests.faults.processes import issue, secured
from tests.faults.row import Trial, row
from tests.program import ROOT, Program, descriptors, environment, free_port, status, title

ENDS = (
    b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r.\n", b"\n.\r", b"\r.\r\n", b"\r\n.\r",
    b"\r\n.\r\r\n", b"\r\n\0.\r\n", b"\r\n.\0\r\n", b"\r\n.x\n", b"\n.\r\r\n",
)  # fmt: skip
"""What some server or other once took for the end of a message."""


@row(
    "S1",
    "13 ends of messages that are none, in the clear, under STARTTLS and under TLS, in pieces of 1 to"
    " 7 octets",
    "none ends a message; each message is counted once",
)
def ends(trial: Trial) -> None:
    """Each piece leaves in a segment or a record of its own (small: pieces of 1 and 7)."""
    issue(trial.folder)
    plain, tls = free_port(), free_port()
    listeners = f"--listen=127.0.0.1:{plain}", f"--listen=127.0.0.1:{tls},tls"
    wrong = conversations = 0
    with Program("--workers=1", *listeners, *secured(trial.folder)) as program:
        for way in ("plain", "starttls", "tls"):
            for size in range(1, 8, 1 if trial.full else 6):
                with Client(("127.0.0.1", tls if way == "tls" else plain), greeted=way != "tls") as client:
                    if way == "tls":
                        client.wrap()
                        client.hear()
                    elif way == "starttls":
                        client.starttls()
                    for end in ENDS:
                        conversations += 1
                        client.begin()
                        body = b"x" + end + b"MAIL FROM:<smuggled@example.com>\r\nNOOP\r\n.\r\n"
                        for start in range(0, len(body), size):
                            client.send(body[start : start + size])
                        wrong += not client.hear().startswith("250 2.0.0 OK: queued")
                        # Had it ended before, this would be the answer to the smuggled command.
                        wrong += not client.say("HELP VRFY").startswith("214")
        messages = sum(Counters.of(program.pid).snapshot().messages.values())
        trial.count("messages that ended wrong", wrong)
        trial.count("counted beside the truth:", abs(messages - conversations))
        trial.note(f"{conversations} messages")


@row(
    "S2",
    "commands injected before a handshake",
    "none is run under TLS; STARTTLS as RFC 3207 has it",
    quick=False,
)
def injection(trial: Trial) -> None:
    """Tests of what comes in the clear before a handshake; then three injections into the real program."""
    trial.tests(
        "test_server.py::test_what_comes_during_a_delay_is_never_run_under_tls",
        "test_server.py::test_what_comes_before_the_handshake_ends_the_connection",
    )
    port = free_port()
    issue(trial.folder)
    with Program("--workers=1", f"--ssl_port={port}", *secured(trial.folder)) as program:
        ran = 0
        for said in (b"STARTTLS\r\nNOOP\r\n", b"STARTTLS\r\nR", b"STARTTLS\r\n" + b"RSET\r\n" * 500):
            with Client(program.address) as client:
                client.send(said)
                heard = client.rest()
                ran += not (heard.startswith(b"554 5.5.0 ") and heard.count(b"\n") == 1)
        trial.count("of 3 injections, not refused with 554 and closed:", ran)


@row(
    "S3",
    "HTTP, header lines, a ClientHello, NUL as the first octets",
    "221 or 501, closed within 1 s, none of what follows is run",
)
def other_protocols(trial: Trial) -> None:
    """Behind each of them stands a message that must not be taken; the connections are not closed by us."""
    firsts = (
        b"GET / HTTP/1.1\r\nHost: mx\r\n\r\n", b"POST / HTTP/1.1\r\nHost: mx\r\n\r\n",
        b"CONNECT mx:25 HTTP/1.1\r\n\r\n", b"OPTIONS * HTTP/1.1\r\n\r\n", b"Host: mx.test\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\0\r\n", b"\x80\x80",
        b"<xml>\r\n", b"{\r\n",
    )  # fmt: skip
    with Program("--workers=1") as program:
        slowest, wrong = 0.0, 0
        for first in firsts:
            with Client(program.address) as client:
                client.send(first + b"MAIL FROM:<a@b.test>\r\nDATA\r\n.\r\n")
                began = time.monotonic()
                heard = client.rest()
                slowest = max(slowest, time.monotonic() - began)
                wrong += not (heard[:3] in (b"221", b"501") and heard.count(b"\n") == 1)
        snapshot = Counters.of(program.pid).snapshot()
        trial.count(f"of {len(firsts)}, answered otherwise:", wrong)
        trial.count("messages taken", sum(snapshot.messages.values()))
        trial.time("closed after", slowest, 1.0, 10.0)


@row(
    "S4",
    "one mistake after the other, with --public",
    "from the 11th on 1 s later each; 421 and closed at the 20th; neighbours do not notice",
    quick=False,
)
def mistakes(trial: Trial) -> None:
    """Unknown commands one by one; another session says NOOP between them."""
    with (
        Program("--workers=1", "--public", "--trusted=none") as program,
        Client(program.address) as other,
        Client(program.address) as client,
    ):
        taken, neighbour, last = [], [], ""
        while len(taken) < 30 and not last.startswith("421"):
            began = time.monotonic()
            client.send(b"XYZZY\r\n")
            if len(taken) % 4 == 0:
                start = time.monotonic()
                other.say("RSET")
                neighbour.append(time.monotonic() - start)
            last = client.hear()
            taken.append(time.monotonic() - began)
        trial.count("mistakes until 421", len(taken), 20)
        trial.count(
            "the first that is slow", next((n for n, one in enumerate(taken, 1) if one > 0.9), 99), 11
        )
        trial.count("of those behind it, not slow:", sum(one < 0.9 for one in taken[10:-1]), 1)
        trial.count("closed", int(client.rest() == b""), 1, least=True)
        trial.time("neighbour's slowest answer", max(neighbour), 0.1, 2.0)


@row("S5", "more than 1,000 recipients, with --public", "1000 times 250, then 452")
def recipients(trial: Trial) -> None:
    """1,100 of them for one message, which is taken."""
    with Program("--workers=1", "--public", "--trusted=none") as program, Client(program.address) as client:
        client.say("MAIL FROM:<a@b.test>")
        replies = [client.say(f"RCPT TO:<u{number}@b.test>")[:9] for number in range(1100)]
        trial.count("250", replies[:1000].count("250 2.1.5"), 1000, least=True)
        trial.count("452 behind them", replies[1000:].count("452 4.5.3"), 100, least=True)
        client.begin()
        trial.count("messages taken:", int(client.end().startswith("250")), 1, least=True)


def cores() -> int:
    return os.cpu_count() or 1


@row("S6", "10^6 random conversations against a model of the transaction", "no disagreement", quick=False)
def model(trial: Trial) -> None:
    """python -m tests.fuzz --model, an independent model of the order of commands and of every reset."""
    from tests.fuzz import model as fuzz
    from tests.fuzz.__main__ import made

    done = fuzz.Done()
    count = 1_000_000 if trial.whole else 20_000 if trial.full else 500
    for block in made(fuzz.run, int(time.time()), count, fuzz.BLOCK, cores()):
        done.add(block)
    trial.count("disagreements", done.disagreements)
    trial.note(
        f"{done.conversations} conversations, {done.commands} commands; larger runs: docs/reliability.md"
    )


@row("S7", "10^7 random inputs", "no exception, none takes more than 0.1 s, memory bounded", quick=False)
def random_inputs(trial: Trial) -> None:
    """python -m tests.fuzz, with the invariants that are listed there; then noise over sockets."""
    from tests.fuzz import inputs, live
    from tests.fuzz.__main__ import made

    done = inputs.Done()
    count = 10_000_000 if trial.whole else 100_000 if trial.full else 2000
    for block in made(inputs.run, int(time.time()), count, inputs.BLOCK, cores()):
        done.add(block)
    trial.count("findings", len(done.findings))
    seconds = 3600 if trial.whole else 21 if trial.full else 3
    heard = live.Heard()
    for options in live.OPTIONS:
        heard.add(live.run(options, seconds / len(live.OPTIONS), int(time.time()))[0])
    trial.count("findings of those who watch the program", len(heard.findings))
    trial.note(
        f"{done.inputs} inputs; {heard.connections} connections in {seconds} s; "
        "larger runs: docs/reliability.md"
    )


@row(
    "S8",
    "every octet from 0 to 255, escapes and line ends in each field",
    "log lines are events, of printable ASCII alone; so are replies and titles",
)
def hostile_octets(trial: Trial) -> None:
    """Each octet in the argument of each command and in a body, with --debug, which logs every line."""
    log = trial.folder / "log"
    trial.folder.chmod(0o1777)
    with Program("--workers=1", f"--log={log}", "--debug") as program:
        replies, sent = b"", 0
        for verb in (
            b"EHLO ",
            b"HELO ",
            b"MAIL FROM:<",
            b"RCPT TO:<",
            b"VRFY ",
            b"HELP ",
            b"NOOP ",
            b"XYZZY",
            b"STARTTLS ",
        ):
            for start in range(0, 256, 32):
                with Client(program.address) as client:
                    said = b"".join(
                        verb + b"a" + bytes([octet]) + b"\x1b[2J\xe2\x80\xae>\r\n"
                        for octet in range(start, start + 32)
                    )
                    client.send(said + b"QUIT\r\n")
                    replies += client.rest()
                    sent += 33
        with Client(program.address) as client:
            client.begin()
            client.send(bytes(range(256)) * 4 + b"\r\n.\r\nQUIT\r\n")
            replies += client.rest()
        lines = log.read_bytes().split(b"\n")[:-1]
        trial.count("log lines with other octets", sum(not re.fullmatch(rb"[ -~]*", line) for line in lines))
        start_of_line = re.compile(rb"\d{4}-\d\d-\d\d.{8,}? \w+ ")
        trial.count("log lines that begin like none", sum(not start_of_line.match(line) for line in lines))
        trial.count(
            "reply lines with other octets",
            sum(not re.fullmatch(rb"[ -~]*\r", line) for line in replies.split(b"\n")[:-1]),
        )
        trial.count(
            "titles with other octets",
            sum(not re.fullmatch(r"[ -~]*", title(pid)) for pid in family(program.pid)),
        )
        trial.note(f"{sent} commands, {len(lines)} log lines")


@row(
    "S9",
    "what a worker may do, as /proc has it",
    "uid and gid of the service, no other group, no capability, no_new_privs, no way back to root, no"
    " file of root's",
    root=True,
)
def privileges(trial: Trial) -> None:
    """All uids, gids and sets of each worker; strace shows the order of the calls in a test of its own."""
    with Program("--workers=2") as program:
        wrong = roots = 0
        for pid in program.workers():
            is_now = status(pid)
            wrong += "0" in is_now["Uid"].split()
            wrong += "0" in is_now["Gid"].split()
            wrong += is_now["Groups"].split() not in ([], is_now["Gid"].split()[:1])
            wrong += any(int(is_now[name], 16) for name in ("CapEff", "CapPrm", "CapAmb"))
            wrong += is_now["NoNewPrivs"] != "1"
            for link in descriptors(pid):
                if link.startswith("/") and not link.startswith(("/dev/null", "/memfd:", "/tmp/blackhole-")):
                    roots += Path(link).stat().st_uid == 0
        trial.count("of 5 for each worker, not as they should be:", wrong)
        trial.count("files of root's", roots)
        trial.count(
            "root in the worker's limits: core", int(limit(program.workers()[0], "Max core file size"))
        )


def limit(pid: int, name: str) -> str:
    for line in Path(f"/proc/{pid}/limits").read_text().splitlines():
        if line.startswith(name):
            return line[len(name) :].split()[0].replace("unlimited", "-1")
    return "-1"


@row(
    "S10",
    "hostile or world-writable configuration, linked log and pidfile",
    "refused with 78 or 73, nothing executed, nothing written",
    quick=False,
)
def hostile_files(trial: Trial) -> None:
    """A conf with Python in it, one that anybody may write, links in place of the files."""
    from tests.program import run

    mark, conf, target = trial.folder / "mark", trial.folder / "conf", trial.folder / "target"
    conf.write_text(f"import os\nport = __import__('os').system('touch {mark}')\nos.system('touch {mark}')\n")
    trial.count(
        "refused a conf with code in it:",
        int(run(f"--conf={conf}", "--test-config").returncode == 78),
        1,
        least=True,
    )
    trial.count("executed", int(mark.exists()))
    conf.write_text("hostname = mx.test\n")
    conf.chmod(0o666)
    done = run(f"--conf={conf}", "--test-config")
    trial.count("refused a conf that anybody may write:", int(done.returncode == 78), 1, least=True)
    for name in ("log", "pid"):
        (trial.folder / name).symlink_to(target)
        done = run(f"--{name}={trial.folder / name}", f"--port={free_port()}", "--host=127.0.0.1")
        trial.count(f"refused a linked {name}:", int(done.returncode != 0), 1, least=True)
    trial.count("written through a link", int(target.exists()))


HEADER = b"\r\n\r\n\0\r\nQUIT\n"


@row(
    "S11",
    "PROXY headers: none, spoofed, slow, endless, in part, of a wrong length",
    "closed without a word within 5 s, 4 KiB of memory at most; peers that are listed are served",
    quick=False,
)
def proxies(trial: Trial) -> None:
    """proxy_timeout is 1 s here; a stranger is one that is not in proxy_from."""
    port, closed_port = free_port(), free_port()
    said = {
        "none": b"EHLO x\r\n", "garbage": b"\0" * 100, "a long line": b"PROXY TCP4 " + b"1" * 10_000_000,
        "in part": b"PROXY TCP4 1.2.3.4", "silence": b"",
        "version 2, wrong length": HEADER + b"\x21\x11\x00\x02" + b"\1" * 50,
        "version 2, endless": HEADER + b"\x21\x11\xff\xff" + b"\1" * 70_000,
        "version 2, in part": HEADER + b"\x21\x11\x00\x0c\1\2",
    }  # fmt: skip
    with (
        Program(
            "--workers=1", f"--listen=127.0.0.1:{port},proxy", "--proxy_from=127.0.0.1", "--proxy_timeout=1"
        ) as program,
        Program("--workers=1", f"--listen=127.0.0.1:{closed_port},proxy", "--proxy_from=192.0.2.1") as closed,
    ):
        (worker,) = program.workers()
        good = b"PROXY TCP4 192.0.2.7 192.0.2.8 9 25\r\n"

        def heard(to: int, what: bytes) -> bytes:
            with Client(("127.0.0.1", to), greeted=False) as client:
                with suppress(OSError):
                    client.send(what)
                return client.rest()

        for what in said.values():
            heard(port, what[:200])
        before, slowest, spoke = pss(worker), 0.0, 0
        for what in said.values():
            began = time.monotonic()
            spoke += heard(port, what) != b""
            slowest = max(slowest, time.monotonic() - began)
        trial.count(f"of {len(said)}, answered:", spoke)
        trial.time("closed after", slowest, 3.0, 20.0)
        trial.size("growth", max(0.0, pss(worker) - before), 64, 1024)
        trial.count("strangers answered", int(heard(closed_port, good + b"QUIT\r\n") != b""))
        trial.count(
            "listed peers served:", int(heard(port, good + b"QUIT\r\n").startswith(b"220 ")), 1, least=True
        )
        trial.count("tracebacks", program.output().count("Traceback") + closed.output().count("Traceback"))


@row(
    "S12",
    "the dashboard: foreign Host and Origin, script in names, 500 slow clients",
    "refused, escaped, a policy; the p99 of SMTP stays as it was",
)
def dashboard(trial: Trial) -> None:
    """NOOPs while 500 clients of the dashboard do not end their headers; the rest is in tests/test_web.py."""
    http = free_port()
    with (
        Program("--workers=1", f"--dashboard=127.0.0.1:{http}") as program,
        Client(program.address) as client,
    ):
        from tests.faults.clients import noops

        count = 1000 if trial.full else 200
        before = noops(client, count, 0.002)
        slow = []
        try:
            for _ in range(500):
                slow.append(socket.create_connection(("127.0.0.1", http), 5))
                slow[-1].send(b"G")
            for one in slow:
                with suppress(OSError):
                    one.send(b"E")
            during = noops(client, count, 0.002)
        finally:
            for one in slow:
                one.close()
        after = noops(client, count, 0.002)
        alone = 1000 * max(percentile(before, 0.99), percentile(after, 0.99))
        # What is within twice as much, or 2 ms, cannot be told from what the machine does besides.
        trial.time("NOOP p99 meanwhile", 1000 * percentile(during, 0.99), max(2.0, 2 * alone), 5000, "ms")
        trial.note(f"{alone:.2g} ms before or after")
        trial.count("tracebacks", program.output().count("Traceback"))


@row(
    "S13",
    "sslyze",
    "TLS 1.2 and later alone, no renegotiation, no compression, nothing it calls vulnerable",
    quick=False,
)
def scanned(trial: Trial) -> None:
    """STARTTLS and TLS from the first octet, with the sslyze of $SSLYZE or the path."""
    sslyze = os.environ.get("SSLYZE") or shutil.which("sslyze")
    if not sslyze:
        trial.count("sslyze is not installed", 1)
        return
    issue(trial.folder)
    tls = free_port()
    with Program(f"--ssl_port={tls}", "--workers=1", *secured(trial.folder)) as program:
        for address in (f"127.0.0.1:{tls}", f"127.0.0.1:{program.port}"):
            starttls = ["--starttls=smtp"] if address.endswith(str(program.port)) else []
            checks = (
                "sslv2",
                "sslv3",
                "tlsv1",
                "tlsv1_1",
                "tlsv1_2",
                "tlsv1_3",
                "reneg",
                "compression",
                "heartbleed",
                "openssl_ccs",
                "robot",
                "fallback",
                "resum",
            )
            done = subprocess.run(
                [sslyze, *starttls, *(f"--{check}" for check in checks), address],
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            text = done.stdout
            trial.count(
                f"{'STARTTLS' if starttls else 'TLS'}: vulnerable",
                len(re.findall(r"VULNERABLE - |NOT SUPPORTED - Secure", text)),
            )
            for old in ("SSL 2.0", "SSL 3.0", "TLS 1.0", "TLS 1.1"):
                section = text.partition(f"{old} Cipher Suites")[2].partition("* ")[0]
                trial.count(f"{old} refused:", int("rejected all" in section), 1, least=True)
        trial.count("tracebacks", program.output().count("Traceback"))


@row("S14", "static checks", "no finding of ruff's S rules, mypy strict, pip-audit", quick=False)
def static(trial: Trial) -> None:
    """ruff check blackhole, S among its rules; mypy; the pip-audit of $PIP_AUDIT or of the path, if any."""
    for name, command in {"ruff S": ["ruff", "check", "--quiet", "blackhole"], "mypy": ["mypy"]}.items():
        program = Path(sys.executable).parent / command[0]
        done = subprocess.run(
            [program if program.exists() else command[0], *command[1:]],
            cwd=ROOT,
            capture_output=True,
            env=environment(),
            check=False,
        )
        trial.count(f"{name}: exit code", done.returncode)
    audit = os.environ.get("PIP_AUDIT") or shutil.which("pip-audit")
    if audit is None:
        trial.note("pip-audit is not installed here")
        return
    done = subprocess.run(
        [audit, "--path", sysconfig.get_path("purelib")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    unknown = done.stdout.count("could not be audited")
    trial.note(f"pip-audit: exit code {done.returncode}, {unknown} packages of which it learns nothing here")
