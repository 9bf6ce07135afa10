"""Programs that share a Redis, or run without it."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.program import ROOT, Program, children, run, scenario_option, wait_for
from tests.program import SCRIPT as PROGRAM
from tests.redis_server import RedisServer, querying_scenario
from tests.smtp_client import SMTPClient
from tests.test_shared_limits import KEPT, QUOTAS, send_messages
from tests.test_shared_limits import attempt as attempted
from tests.transcript import REPLY_TIMEOUT


def two_programs(redis: RedisServer, tmp_path: Path, text: str, more: str = "") -> tuple[Program, Program]:
    scenario = scenario_option(tmp_path, text)
    one, other = (Program(scenario, f"--attempt_store={redis.url(more)}") for _ in range(2))
    return one, other


def test_a_client_greylisted_by_one_program_passes_at_the_other(redis: RedisServer, tmp_path: Path) -> None:
    one, other = two_programs(redis, tmp_path, "[[rule]]\ngreylist = { min = '1s', max = '1h' }\n")
    with one, other:
        began = time.monotonic()
        assert attempted(one) == "450"
        assert attempted(other) == "450" or time.monotonic() - began > 1
        time.sleep(1.1)
        assert attempted(other) == "250"
        assert attempted(one) == "250"
        assert (one.stop(), other.stop()) == (0, 0)
        assert "attempts are stored in redis://127.0.0.1" in one.output()


@pytest.mark.parametrize("quota", QUOTAS)
def test_a_rate_limit_is_exact_over_two_programs(redis: RedisServer, tmp_path: Path, quota: str) -> None:
    """Sixteen clients send as fast as they can."""
    text = f"[[rule]]\nthrottle = {{ {quota} }}\nreply = '452 4.5.3 Slow down'\n"
    one, other = two_programs(redis, tmp_path, text)
    with one, other:
        clients = [SMTPClient(program.address) for program in (one, other) for _ in range(8)]
        for client in clients:
            client.command_code("MAIL FROM:<ann@a>")
        for client in clients:
            client.socket.sendall(b"".join(b"RCPT TO:<%d@b>\r\n" % number for number in range(60)))
        replies = Counter(client.read_reply()[:3] for client in clients for _ in range(60))
        for client in clients:
            client.__exit__()
        assert replies == {"250": 500, "452": 460}
        assert (one.stop(), other.stop()) == (0, 0)


def test_limit_of_a_provider_is_exact_behind_redis(redis: RedisServer) -> None:
    """300 messages of a client in half an hour, of which each program gets a half, and 15 in a connection."""
    options = ["--scenario=profile:barracuda", f"--attempt_store={redis.url()}"]
    options += [f"--set={share}" for share in KEPT]
    with Program("--workers=1", *options) as one, Program("--workers=4", *options) as other:
        assert send_messages(one, 150, 15) == send_messages(other, 150, 15) == {"250": 150}
        assert send_messages(one, 15, 1) == send_messages(other, 15, 1) == {"421": 15}
        assert (one.stop(), other.stop()) == (0, 0)


def test_a_concurrency_limit_is_exact_over_two_programs(redis: RedisServer, tmp_path: Path) -> None:
    text = "[[rule]]\nthrottle = { concurrent = 6, by = 'all' }\nreply = '421 4.7.0 Too many'\n"
    one, other = two_programs(redis, tmp_path, text)
    with one, other:
        clients = [SMTPClient(program.address) for _ in range(4) for program in (one, other)]
        assert Counter(client.greeting[:3] for client in clients) == {"220": 6, "421": 2}
        for client in clients[:6]:
            client.command_code("QUIT")

        def slot_is_free() -> bool:
            with SMTPClient(other.address) as late:
                return late.greeting[:3] == "220"

        wait_for(slot_is_free, "a slot is free")
        with SMTPClient(one.address) as late:
            assert late.greeting[:3] == "220"
            assert (one.stop(), other.stop()) == (0, 0)
        for client in clients:
            client.__exit__()
    assert redis.names("blackhole:slots:*") == [], "who stops takes along who was there"


CHANCE = "seed = 7\n[[rule]]\nphase = 'RCPT'\nchance = 0.4\nreply = ['450 4.2.1 One', '451 4.2.1 Two']\n"


def outcomes(*programs: Program) -> list[str]:
    """Return the replies to a hundred recipients, each three times, from the programs in turn."""
    replies = []
    for turn in range(3):
        with SMTPClient(programs[turn % len(programs)].address) as client:
            client.command_code("MAIL FROM:<ann@a>")
            replies += [client.command_code(f"RCPT TO:<r{number}@b>") for number in range(100)]
    return replies


def test_the_same_seed_gives_the_same_replies_with_and_without_redis(
    redis: RedisServer, tmp_path: Path
) -> None:
    one, other = two_programs(redis, tmp_path, CHANCE)
    with one, other, Program(f"--scenario={tmp_path / 'rules.toml'}") as alone:
        replies = outcomes(alone)
        assert outcomes(one, other) == replies
        assert {"250", "450", "451"} == {*replies}


WHEN_UNKNOWN = """
[[rule]]
name = "refuses"
throttle = { recipients = 1000, per = "hour", by = "all" }
recipient = "*@sure"
reply = "452 4.5.3 Slow down"
when_unknown = "451 4.3.0 Try again later"
[[rule]]
name = "accepts"
throttle = { recipients = 1, per = "hour", by = "all" }
reply = "452 4.5.3 Slow down"
"""


def strict_reply(program: Program) -> str:
    """Return the reply to a recipient whose rule refuses when Redis does not answer."""
    with SMTPClient(program.address) as client:
        client.command_code("MAIL FROM:<ann@a>")
        return client.command_code("RCPT TO:<bob@sure>")


def logged_warnings(program: Program) -> list[str]:
    return [line for line in program.output().splitlines() if "WARNING attempt_store: " in line]


@pytest.mark.parametrize("harm", [RedisServer.kill, RedisServer.freeze], ids=["killed", "frozen"])
def test_mail_is_accepted_while_redis_does_not_answer(
    harm: Callable[[RedisServer], None], own_redis: RedisServer, tmp_path: Path
) -> None:
    one, other = programs = two_programs(own_redis, tmp_path, WHEN_UNKNOWN, "&timeout=0.25")
    with one, other:
        for program in programs:
            wait_for(lambda program=program: strict_reply(program) != "451", "queries are accepted")  # type: ignore[misc]
        harm(own_redis)
        for program in programs:
            with SMTPClient(program.address) as client:
                client.command_code("MAIL FROM:<ann@a>")
                began = time.monotonic()
                replies = [
                    client.command_code(f"RCPT TO:<{n}@{'sure' if n % 2 else 'b'}>") for n in range(60)
                ]
                took = time.monotonic() - began
                assert replies == ["250", "451"] * 30
                assert took < 30 * 0.25 * 2 / 3, "the first one waits, and no other"
            wait_for(lambda program=program: logged_warnings(program), "a warning is logged")  # type: ignore[misc]
        own_redis.thaw() if own_redis.alive else own_redis.start()
        for program in programs:
            wait_for(lambda program=program: strict_reply(program) != "451", "queries are accepted again")  # type: ignore[misc]
        assert (one.stop(), other.stop()) == (0, 0)
        for program in programs:
            (line,) = logged_warnings(program)
            assert line.endswith("; each rule's when_unknown applies")


def test_the_password_appears_in_no_output_and_no_command_line(tmp_path: Path) -> None:
    with RedisServer("--requirepass", "geheim") as own:
        url = own.url(password="geheim")
        assert "geheim" not in run(f"--attempt_store={url}", "--print-config").stdout
        assert ":***@" in run(f"--attempt_store={url}", "--print-config").stdout
        options = ("--debug", querying_scenario(tmp_path, "RCPT"), f"--attempt_store={url}")
        with Program(*options) as program:
            assert attempted(program) == "250"
            for pid in (program.pid, *children(program.pid)):
                assert b"geheim" not in Path(f"/proc/{pid}/cmdline").read_bytes()
            own.kill()
            assert attempted(program) == "250"
            assert program.stop() == 0
            assert "geheim" not in program.output()


def test_a_reload_can_switch_redis_on(redis: RedisServer, tmp_path: Path) -> None:
    conf = tmp_path / "blackhole.conf"
    conf.write_text("host = 127.0.0.1\nport = 0\nworkers = 2\n")
    with Program(f"--conf={conf}", querying_scenario(tmp_path, "RCPT")) as program:
        assert redis.names() == []
        # By name, which takes more of Python than an address; root's workers may not be able to read that.
        url = redis.url().replace("127.0.0.1", "localhost")
        conf.write_text(conf.read_text() + f"attempts = {url}\n")
        program.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "reloaded: attempts are stored in" in program.output(), "the reload")
        wait_for(lambda: redis.names() == ["blackhole:secret"], "workers have opened it")
        assert program.stop() == 0


@pytest.mark.parametrize(
    ("option", "others"), [("attempt_store", ()), ("fleet", ("--dashboard=127.0.0.1:0",))]
)
def test_a_missing_redis_package_is_a_configuration_error(
    option: str, others: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "redis.py").write_text("raise ImportError('as if it were not installed')\n")
    path = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = run("-t", f"--{option}=redis://127.0.0.1", *others, **path)
    assert done.returncode == os.EX_CONFIG
    assert done.stderr == (
        f'blackhole: {option}: Redis needs the package redis: pip install "blackhole-smtp[redis]"\n'
    )
    assert run("-t", "--attempt_store=local", **path).returncode == 0


def test_the_redis_package_is_not_imported_without_the_option(tmp_path: Path) -> None:
    (tmp_path / "redis.py").write_text("raise SystemExit('loaded')\n")
    env = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    with Program(querying_scenario(tmp_path, "RCPT"), env=env) as program:
        assert attempted(program) == "250"
        assert program.stop() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may bind port 53 and mount")
def test_a_worker_stops_while_the_name_of_redis_is_resolved(tmp_path: Path) -> None:
    """The name server, at an address of its own, receives the query and does not answer for half a minute."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver:
        address = f"127.53.{os.getpid() % 250}.{os.getpid() // 250 % 250}"
        resolver.bind((address, 53))
        resolver.settimeout(REPLY_TIMEOUT)
        conf = tmp_path / "resolv.conf"
        conf.write_text(f"nameserver {address}\noptions timeout:30\n")
        inside = f'mount --bind {conf} /etc/resolv.conf && exec "$@"'
        command = ("unshare", "--mount", "sh", "-c", inside, "sh", *PROGRAM)
        options = (
            "--attempt_store=redis://silent.example",
            querying_scenario(tmp_path, "RCPT"),
            "--drain_timeout=10",
        )
        with Program(*options, command=command) as program:
            assert b"silent" in resolver.recv(999)
            assert attempted(program) == "250"
            assert program.stop() == 0
            assert "is killed" not in program.output()
