"""Faults of the protocol and of security: hostile input, and what the processes are allowed to do."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import sysconfig
import time
from contextlib import suppress
from pathlib import Path

from tests.certificates import issue
from tests.external_programs import find_program
from tests.faults.fault import Trial, fault
from tests.faults.load_clients import noop_times, percentile
from tests.fuzz import inputs, live
from tests.fuzz import model as fuzz_model
from tests.fuzz.__main__ import run_blocks
from tests.program import ROOT, Program, descriptors, environment, free_port, run, status, title
from tests.resource_usage import master_and_workers, proportional_memory
from tests.smtp_client import SMTPClient

WRONG_ENDS = (
    b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r.\n", b"\n.\r", b"\r.\r\n", b"\r\n.\r",
    b"\r\n.\r\r\n", b"\r\n\0.\r\n", b"\r\n.\0\r\n", b"\r\n.x\n", b"\n.\r\r\n",
)  # fmt: skip
"""Octets that some server has taken for the end of a message."""


@fault(
    "S1",
    "13 sequences that look like the end of a message, without TLS, under STARTTLS and implicit TLS, in "
    "pieces of 1 to 7 octets",
    "none ends a message; each message is counted once",
)
def smuggling(trial: Trial) -> None:
    """Send each piece in a segment or a TLS record of its own (small: pieces of 1 and 7)."""
    certificate = issue(trial.folder)
    plain, tls = free_port(), free_port()
    listeners = f"--listen=127.0.0.1:{plain}", f"--listen=127.0.0.1:{tls},tls"
    wrong = sent = 0
    with Program("--workers=1", *listeners, *certificate.options) as program:
        for way in ("plain", "starttls", "tls"):
            for size in range(1, 8, 1 if trial.full else 6):
                with SMTPClient(
                    ("127.0.0.1", tls if way == "tls" else plain), read_greeting=way != "tls"
                ) as client:
                    if way == "tls":
                        client.start_tls()
                        client.read_reply()
                    elif way == "starttls":
                        client.starttls()
                    for end in WRONG_ENDS:
                        sent += 1
                        client.start_data()
                        body = b"x" + end + b"MAIL FROM:<smuggled@example.com>\r\nNOOP\r\n.\r\n"
                        for start in range(0, len(body), size):
                            client.send(body[start : start + size])
                        wrong += not client.read_reply().startswith("250 2.0.0 OK: queued")
                        # If it had ended earlier, the next reply would be that to the smuggled command.
                        wrong += not client.command("HELP VRFY").startswith("214")
        messages = sum(program.snapshot().messages.values())
        trial.count("messages that ended too early", wrong)
        trial.count("messages miscounted", abs(messages - sent))
        trial.note(f"{sent} messages")


@fault(
    "S2",
    "commands injected before a handshake",
    "none is run under TLS (RFC 3207)",
    quick=False,
)
def injection(trial: Trial) -> None:
    """Run the tests of commands sent before a handshake; then try three injections on the real program."""
    trial.pytest(
        "test_server.py::test_input_during_a_delayed_starttls_is_never_executed_under_tls",
        "test_server.py::test_input_before_the_handshake_closes_the_connection",
    )
    options = f"--ssl_port={free_port()}", *issue(trial.folder).options
    with Program("--workers=1", *options) as program:
        wrong = 0
        for data in (b"STARTTLS\r\nNOOP\r\n", b"STARTTLS\r\nR", b"STARTTLS\r\n" + b"RSET\r\n" * 500):
            with SMTPClient(program.address) as client:
                client.send(data)
                reply = client.read_to_end()
                wrong += not (reply.startswith(b"554 5.5.0 ") and reply.count(b"\n") == 1)
        trial.count("of 3 injections, not refused with 554 and closed", wrong)


@fault(
    "S3",
    "HTTP, header lines, a ClientHello or NUL as the first octets",
    "221 or 501, closed within 1 s; nothing that follows is run",
)
def other_protocols(trial: Trial) -> None:
    """Follow each with a message that must not be accepted, and wait for the server to close."""
    firsts = (
        b"GET / HTTP/1.1\r\nHost: mx\r\n\r\n", b"POST / HTTP/1.1\r\nHost: mx\r\n\r\n",
        b"CONNECT mx:25 HTTP/1.1\r\n\r\n", b"OPTIONS * HTTP/1.1\r\n\r\n", b"Host: mx.test\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\0\r\n", b"\x80\x80",
        b"<xml>\r\n", b"{\r\n",
    )  # fmt: skip
    with Program("--workers=1") as program:
        slowest, wrong = 0.0, 0
        for first in firsts:
            with SMTPClient(program.address) as client:
                client.send(first + b"MAIL FROM:<a@b.test>\r\nDATA\r\n.\r\n")
                began = time.monotonic()
                reply = client.read_to_end()
                slowest = max(slowest, time.monotonic() - began)
                wrong += not (reply[:3] in (b"221", b"501") and reply.count(b"\n") == 1)
        snapshot = program.snapshot()
        trial.count(f"of {len(firsts)}, answered otherwise", wrong)
        trial.count("messages accepted", sum(snapshot.messages.values()))
        trial.time("time until closed, longest", slowest, 1.0, 10.0)


@fault(
    "S4",
    "one error after another, with --public",
    "replies are 1 s late from the 11th on; 421 and closed at the 20th; other clients do not notice",
    quick=False,
)
def repeated_errors(trial: Trial) -> None:
    """Send unknown commands one by one, and RSET on another session between them."""
    with (
        Program("--workers=1", "--public", "--trusted=none") as program,
        SMTPClient(program.address) as other,
        SMTPClient(program.address) as client,
    ):
        seconds: list[float] = []
        other_seconds: list[float] = []
        last = ""
        while len(seconds) < 30 and not last.startswith("421"):
            began = time.monotonic()
            client.send(b"XYZZY\r\n")
            if len(seconds) % 4 == 0:
                start = time.monotonic()
                other.command("RSET")
                other_seconds.append(time.monotonic() - start)
            last = client.read_reply()
            seconds.append(time.monotonic() - began)
        trial.count("errors until 421", len(seconds), 20)
        trial.count("first late reply", next((n for n, one in enumerate(seconds, 1) if one > 0.9), 99), 11)
        trial.count("of the later ones, not late", sum(one < 0.9 for one in seconds[10:-1]), 1)
        trial.check("closed", client.read_to_end() == b"")
        trial.time("slowest reply to the other session", max(other_seconds), 0.1, 2.0)


@fault("S5", "more than 1,000 recipients, with --public", "1,000 times 250, then 452")
def recipients(trial: Trial) -> None:
    """Send 1,100 RCPT commands for one message, which is accepted."""
    with (
        Program("--workers=1", "--public", "--trusted=none") as program,
        SMTPClient(program.address) as client,
    ):
        client.command("MAIL FROM:<a@b.test>")
        replies = [client.command(f"RCPT TO:<u{number}@b.test>")[:9] for number in range(1100)]
        trial.count("250", replies[:1000].count("250 2.1.5"), 1000, at_least=True)
        trial.count("452 after them", replies[1000:].count("452 4.5.3"), 100, at_least=True)
        client.start_data()
        trial.check("message accepted", client.end_data().startswith("250"))


def cores() -> int:
    """Return the number of processes to divide the work among."""
    return os.cpu_count() or 1


@fault("S6", "10^6 random conversations against a model of the transaction", "no difference", quick=False)
def model(trial: Trial) -> None:
    """Run `python -m tests.fuzz --model`, whose model of the transaction is independent of the engine."""
    total = fuzz_model.ModelResult()
    count = 1_000_000 if trial.whole else 20_000 if trial.full else 500
    for block in run_blocks(
        fuzz_model.run_block, int(time.time()), count, fuzz_model.BLOCK_CONVERSATIONS, cores()
    ):
        total.add(block)
    trial.count("differences", total.differences)
    trial.note(f"{total.conversations} conversations, {total.commands} commands")


@fault("S7", "10^7 random inputs", "no exception; none takes more than 0.1 s; memory is bounded", quick=False)
def random_inputs(trial: Trial) -> None:
    """Run `python -m tests.fuzz --inputs`, and then `--live`, which sends random octets over sockets."""
    total = inputs.InputResult()
    count = 10_000_000 if trial.whole else 100_000 if trial.full else 2000
    for block in run_blocks(inputs.run_block, int(time.time()), count, inputs.BLOCK_INPUTS, cores()):
        total.add(block)
    trial.count("findings", len(total.findings))
    seconds = 3600 if trial.whole else 21 if trial.full else 3
    connections = live.LiveResult()
    for options in live.OPTIONS:
        connections.add(live.fuzz_program(options, seconds / len(live.OPTIONS), int(time.time()))[0])
    trial.count("findings over sockets", len(connections.findings))
    trial.note(f"{total.inputs} inputs; {connections.connections} connections in {seconds} s")


@fault(
    "S8",
    "every octet from 0 to 255, escapes and line endings in each field",
    "log lines, replies and process titles are printable ASCII; no log line is forged",
)
def hostile_octets(trial: Trial) -> None:
    """Send each octet in the argument of each command and in a body; --debug logs every line."""
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
                with SMTPClient(program.address) as client:
                    commands = b"".join(
                        verb + b"a" + bytes([octet]) + b"\x1b[2J\xe2\x80\xae>\r\n"
                        for octet in range(start, start + 32)
                    )
                    client.send(commands + b"QUIT\r\n")
                    replies += client.read_to_end()
                    sent += 33
        with SMTPClient(program.address) as client:
            client.start_data()
            client.send(bytes(range(256)) * 4 + b"\r\n.\r\nQUIT\r\n")
            replies += client.read_to_end()
        lines = log.read_bytes().split(b"\n")[:-1]
        trial.count("log lines with other octets", sum(not re.fullmatch(rb"[ -~]*", line) for line in lines))
        start_of_line = re.compile(rb"\d{4}-\d\d-\d\d.{8,}? \w+ ")
        trial.count("forged log lines", sum(not start_of_line.match(line) for line in lines))
        trial.count(
            "reply lines with other octets",
            sum(not re.fullmatch(rb"[ -~]*\r", line) for line in replies.split(b"\n")[:-1]),
        )
        trial.count(
            "titles with other octets",
            sum(not re.fullmatch(r"[ -~]*", title(pid)) for pid in master_and_workers(program.pid)),
        )
        trial.note(f"{sent} commands, {len(lines)} log lines")


@fault(
    "S9",
    "privileges of a worker, by /proc",
    "uid and gid of the service, no other group, no capability, no_new_privs, no file of root",
    needs_root=True,
)
def privileges(trial: Trial) -> None:
    """Read all uids, gids, groups and capabilities of each worker, and the owners of its open files."""
    with Program("--workers=2") as program:
        wrong = files_of_root = 0
        for pid in program.workers():
            fields = status(pid)
            wrong += "0" in fields["Uid"].split()
            wrong += "0" in fields["Gid"].split()
            wrong += fields["Groups"].split() not in ([], fields["Gid"].split()[:1])
            wrong += any(int(fields[name], 16) for name in ("CapEff", "CapPrm", "CapAmb"))
            wrong += fields["NoNewPrivs"] != "1"
            for link in descriptors(pid):
                if link.startswith("/") and not link.startswith(("/dev/null", "/memfd:", "/tmp/blackhole-")):
                    files_of_root += Path(link).stat().st_uid == 0
        trial.count("of 5 properties of each worker, wrong", wrong)
        trial.count("files of root", files_of_root)
        trial.count("limit of core dumps", int(limit(program.workers()[0], "Max core file size")))


def limit(pid: int, name: str) -> str:
    """Return a soft limit from /proc/PID/limits; "-1" if it is unlimited or missing."""
    for line in Path(f"/proc/{pid}/limits").read_text().splitlines():
        if line.startswith(name):
            return line[len(name) :].split()[0].replace("unlimited", "-1")
    return "-1"


@fault(
    "S10",
    "hostile or world-writable configuration, symbolic links as log and pidfile",
    "refused with 78 or 73; nothing is run, nothing is written",
    quick=False,
)
def hostile_files(trial: Trial) -> None:
    """Try a configuration that contains Python, one that everybody can write, and links in place of files."""
    mark, conf, target = trial.folder / "mark", trial.folder / "conf", trial.folder / "target"
    conf.write_text(f"import os\nport = __import__('os').system('touch {mark}')\nos.system('touch {mark}')\n")
    trial.check("configuration with code refused", run(f"--conf={conf}", "--test-config").returncode == 78)
    trial.count("programs run from it", int(mark.exists()))
    conf.write_text("hostname = mx.test\n")
    conf.chmod(0o666)
    done = run(f"--conf={conf}", "--test-config")
    trial.check("world-writable configuration refused", done.returncode == 78)
    for name in ("log", "pid"):
        (trial.folder / name).symlink_to(target)
        done = run(f"--{name}={trial.folder / name}", f"--port={free_port()}", "--host=127.0.0.1")
        trial.check(f"link as {name} refused", done.returncode != 0)
    trial.count("files written through a link", int(target.exists()))


PROXY_V2 = b"\r\n\r\n\0\r\nQUIT\n"


@fault(
    "S11",
    "PROXY headers: none, forged, slow, endless, partial, of a wrong length",
    "closed without a reply within 5 s; grows by at most 64 KiB; listed proxies are served",
    quick=False,
)
def proxies(trial: Trial) -> None:
    """Use a proxy_timeout of 1 s; an unlisted proxy is one that is not in proxy_from."""
    port, other_port = free_port(), free_port()
    headers = {
        "none": b"EHLO x\r\n", "garbage": b"\0" * 100, "a long line": b"PROXY TCP4 " + b"1" * 10_000_000,
        "partial": b"PROXY TCP4 1.2.3.4", "silence": b"",
        "version 2, wrong length": PROXY_V2 + b"\x21\x11\x00\x02" + b"\1" * 50,
        "version 2, endless": PROXY_V2 + b"\x21\x11\xff\xff" + b"\1" * 70_000,
        "version 2, partial": PROXY_V2 + b"\x21\x11\x00\x0c\1\2",
    }  # fmt: skip
    with (
        Program(
            "--workers=1", f"--listen=127.0.0.1:{port},proxy", "--proxy_from=127.0.0.1", "--proxy_timeout=1"
        ) as program,
        Program("--workers=1", f"--listen=127.0.0.1:{other_port},proxy", "--proxy_from=192.0.2.1") as other,
    ):
        (worker,) = program.workers()
        good = b"PROXY TCP4 192.0.2.7 192.0.2.8 9 25\r\n"

        def answer(to: int, data: bytes) -> bytes:
            with SMTPClient(("127.0.0.1", to), read_greeting=False) as client:
                with suppress(OSError):
                    client.send(data)
                return client.read_to_end()

        for header in headers.values():
            answer(port, header[:200])
        before, slowest, answered = proportional_memory(worker), 0.0, 0
        for header in headers.values():
            began = time.monotonic()
            answered += answer(port, header) != b""
            slowest = max(slowest, time.monotonic() - began)
        trial.count(f"of {len(headers)}, answered", answered)
        trial.time("time until closed, longest", slowest, 3.0, 20.0)
        trial.size("growth", max(0.0, proportional_memory(worker) - before), 64, 1024)
        trial.check("unlisted proxy not answered", answer(other_port, good + b"QUIT\r\n") == b"")
        trial.check("listed proxy served", answer(port, good + b"QUIT\r\n").startswith(b"220 "))
        trial.count("tracebacks", program.output().count("Traceback") + other.output().count("Traceback"))


@fault(
    "S12",
    "the dashboard: foreign Host and Origin, script in names, 500 slow clients",
    "refused, escaped; the p99 of SMTP is unchanged",
)
def dashboard(trial: Trial) -> None:
    """Send NOOP while 500 clients do not end their HTTP headers. More is in tests/test_web_requests.py."""
    http = free_port()
    with (
        Program("--workers=1", f"--dashboard=127.0.0.1:{http}") as program,
        SMTPClient(program.address) as client,
    ):
        count = 1000 if trial.full else 200
        before = noop_times(client, count, 0.002)
        slow = []
        try:
            for _ in range(500):
                slow.append(socket.create_connection(("127.0.0.1", http), 5))
                slow[-1].send(b"G")
            for connection in slow:
                with suppress(OSError):
                    connection.send(b"E")
            during = noop_times(client, count, 0.002)
        finally:
            for connection in slow:
                connection.close()
        after = noop_times(client, count, 0.002)
        alone = 1000 * max(percentile(before, 0.99), percentile(after, 0.99))
        # A difference of a factor of two, or below 2 ms, may come from the machine.
        trial.time("NOOP p99 during", 1000 * percentile(during, 0.99), max(2.0, 2 * alone), 5000, "ms")
        trial.note(f"{alone:.2g} ms before and after")
        trial.count("tracebacks", program.output().count("Traceback"))


@fault(
    "S13",
    "sslyze",
    "TLS 1.2 and later only; no renegotiation, no compression, nothing vulnerable",
    quick=False,
)
def scanned(trial: Trial) -> None:
    """Scan STARTTLS and implicit TLS with the sslyze of $SSLYZE or of PATH."""
    sslyze = os.environ.get("SSLYZE") or find_program("sslyze")
    if not sslyze:
        trial.check("sslyze is installed", False)
        return
    certificate = issue(trial.folder)
    tls = free_port()
    with Program(f"--ssl_port={tls}", "--workers=1", *certificate.options) as program:
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
                f"vulnerabilities of {'STARTTLS' if starttls else 'implicit TLS'}",
                len(re.findall(r"VULNERABLE - |NOT SUPPORTED - Secure", text)),
            )
            for old in ("SSL 2.0", "SSL 3.0", "TLS 1.0", "TLS 1.1"):
                section = text.partition(f"{old} Cipher Suites")[2].partition("* ")[0]
                trial.check(f"{old} refused", "rejected all" in section)
        trial.count("tracebacks", program.output().count("Traceback"))


@fault("S14", "static checks", "no finding of ruff's S rules, mypy --strict and pip-audit", quick=False)
def static(trial: Trial) -> None:
    """Run ruff, whose rules include S, mypy, and the pip-audit of $PIP_AUDIT or of PATH if there is one."""
    for name, command in {"ruff S": ["ruff", "check", "--quiet", "blackhole"], "mypy": ["mypy"]}.items():
        program = Path(sys.executable).parent / command[0]
        done = subprocess.run(
            [program if program.exists() else command[0], *command[1:]],
            cwd=ROOT,
            capture_output=True,
            env=environment(),
            check=False,
        )
        trial.count(f"exit status of {name}", done.returncode)
    audit = os.environ.get("PIP_AUDIT") or find_program("pip-audit")
    if audit is None:
        trial.note("pip-audit is not installed")
        return
    audited = subprocess.run(
        [audit, "--path", sysconfig.get_path("purelib")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    unknown = audited.stdout.count("could not be audited")
    trial.note(f"pip-audit: exit status {audited.returncode}, {unknown} packages that it could not look up")
