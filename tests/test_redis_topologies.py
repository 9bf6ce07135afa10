"""Redis behind Sentinel and in a cluster, with a fail-over; TLS and an ACL user for a whole fleet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from blackhole import redis_url
from blackhole.fleet.namespace_store import NamespaceStore
from blackhole.fleet.replies import FleetOrder, StoreError
from blackhole.fleet.store import FleetStore
from blackhole.rules.attempt_store import PendingAnswer, count_attempt
from blackhole.store.redis_attempts import RedisAttemptStore
from tests.certificates import Certificate
from tests.http_api import Answer, Sink, ask, figures, send
from tests.program import children, free_port, run, wait_for
from tests.redis_server import RedisServer, querying_scenario


async def until(look: Callable[[], Awaitable[object]], what: str) -> None:
    end = time.monotonic() + 60
    while not await look():
        assert time.monotonic() < end, f"waited in vain: {what}"
        await asyncio.sleep(0.1)


async def counted(store: RedisAttemptStore) -> int | None:
    """Count an attempt, and return its number; None without an answer."""
    asked = store.update(b"ann", 0.0, count_attempt)
    return await asked if isinstance(asked, PendingAnswer) else None


async def written(store: FleetStore) -> bool:
    """Write figures of a machine, and return whether the store has taken them."""
    try:
        await store.write("x:1", {"reply . 250": 5}, "")
    except StoreError:
        return False
    return True


def survives(url: str, fail_over: Callable[[], None]) -> None:
    """Check that both kinds of clients of a store go on after a fail-over."""

    async def work() -> None:
        attempts = RedisAttemptStore(redis_url.attempt_store(url))
        fleet = FleetStore(redis_url.fleet(url), "f")
        await attempts.open()
        try:
            await until(lambda: counted(attempts), "the store of attempts answers")
            await until(lambda: written(fleet), "the store of the fleet answers")
            namespaces = NamespaceStore(fleet)
            assert await namespaces.publish("job", FleetOrder(), False) == 1
            (job,) = (await namespaces.index()).namespaces.values()
            assert await namespaces.touch([(job, 0.0)]) == []
            fail_over()
            await until(lambda: counted(attempts), "the store of attempts answers again")
            await until(lambda: written(fleet), "the store of the fleet answers again")
            assert (await fleet.total()).fields == {"reply . 250": 5}
        finally:
            await attempts.close()
            await fleet.close()

    asyncio.run(work())


COPIED_AT_ONCE = ("--repl-diskless-sync-delay", "0")
"""Redis waits five seconds for further copies unless told otherwise."""


class Sentinel(RedisServer):
    """A Sentinel that watches a server, and decides alone."""

    def __init__(self, watched: RedisServer) -> None:
        super().__init__()
        self.kill()
        conf = Path(self.folder.name) / "sentinel.conf"
        conf.write_text(
            f"port {self.port}\nbind 127.0.0.1\nsentinel monitor sinks 127.0.0.1 {watched.port} 1\n"
            "sentinel down-after-milliseconds sinks 500\nsentinel failover-timeout sinks 2000\n"
        )
        self.command = [self.command[0], str(conf), "--sentinel"]
        self.start()


def test_sentinel_leads_to_the_server_that_took_over() -> None:
    with (
        RedisServer(*COPIED_AT_ONCE) as first,
        RedisServer("--replicaof", "127.0.0.1", str(first.port)) as second,
    ):
        wait_for(lambda: second.ask("INFO", "replication")["master_link_status"] == "up", "it is a copy")
        with Sentinel(first) as sentinel:
            wait_for(lambda: "flags" in str(sentinel.ask("SENTINEL", "REPLICAS", "sinks")), "it is known")
            url = f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{sentinel.port}/sinks/0?timeout=5"
            survives(url, first.kill)
            assert second.ask("INFO", "replication")["role"] == "master"
            assert [key for key in second.names() if "attempt" in key]


@contextmanager
def cluster(size: int) -> Iterator[list[RedisServer]]:
    """Run a cluster in which each node has the same number of slots."""
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(
                RedisServer(
                    *("--cluster-enabled", "yes", "--cluster-port", str(free_port()), *COPIED_AT_ONCE),
                    *("--cluster-node-timeout", "2000", "--cluster-require-full-coverage", "no"),
                )
            )
            for _ in range(size)
        ]
        for number, node in enumerate(nodes):
            node.ask("CLUSTER", "ADDSLOTSRANGE", 16384 * number // size, 16384 * (number + 1) // size - 1)
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in nodes[1:]:
            meet(node, nodes[0])
        for node in nodes:
            wait_for(lambda node=node: "cluster_state:ok" in state(node), "the cluster is complete", 60)  # type: ignore[misc]
        yield nodes


def meet(node: RedisServer, other: RedisServer) -> None:
    bus = other.command[other.command.index("--cluster-port") + 1]
    node.ask("CLUSTER", "MEET", "127.0.0.1", other.port, bus)


def state(node: RedisServer) -> str:
    """Return what a node knows of its cluster."""
    return str(node.ask("CLUSTER", "INFO")).replace("'", "").replace(": ", ":")


def test_a_cluster_is_followed_to_the_node_with_the_keys_and_to_its_copy() -> None:
    with (
        cluster(3) as nodes,
        RedisServer(
            *("--cluster-enabled", "yes", "--cluster-port", str(free_port())),
            *("--cluster-node-timeout", "2000", "--cluster-require-full-coverage", "no"),
        ) as copy,
    ):
        slots = {key: nodes[0].ask("CLUSTER", "KEYSLOT", key) for key in ("{blackhole}:x", "blackhole:{f}:x")}
        owner = nodes[slots["{blackhole}:x"] * 3 // 16384]
        other = next(node for node in nodes if node is not owner)
        meet(copy, owner)
        name = owner.ask("CLUSTER", "MYID")
        wait_for(lambda: name in str(copy.ask("CLUSTER", "NODES")), "they know each other", 60)

        def follows() -> bool:
            return bool(copy.ask("CLUSTER", "REPLICATE", name))

        wait_for(follows, "it is a copy of the node")
        wait_for(lambda: copy.ask("INFO", "replication")["master_link_status"] == "up", "it has the data", 60)

        role = f"slave {name}"

        def is_known() -> bool:
            return all(role in str(node.ask("CLUSTER", "NODES")) for node in nodes)

        wait_for(is_known, "all nodes know it as a copy", 60)

        def fail_over() -> None:
            owner.kill()
            copy.ask("CLUSTER", "FAILOVER", "TAKEOVER")

        hosts = ",".join(f"127.0.0.1:{port}" for port in (free_port(), other.port, copy.port))
        survives(f"redis+cluster://{hosts}?timeout=5", fail_over)
        assert copy.names("{blackhole}:attempt:*")


ACL = (
    "~blackhole:*",
    "&blackhole:*",
    "+@read",
    "+@write",
    "+@scripting",
    "+@pubsub",
    "+@connection",
    "+time",
)
"""What a machine may do: the rules of docs/fleet.md."""


def test_a_fleet_uses_tls_and_an_acl_user_whose_password_is_never_shown(
    certificate: Certificate, tmp_path: Path
) -> None:
    with RedisServer() as redis:
        redis.kill()
        redis.command += ["--port", "0", "--tls-port", str(redis.port), "--tls-auth-clients", "no"]
        redis.command += ["--tls-cert-file", certificate.cert, "--tls-key-file", certificate.key]
        redis.command += ["--user", "default", "off", "--user", "sink", "on", ">geheim", *ACL]
        redis.start()
        url = f"rediss://sink:geheim@127.0.0.1:{redis.port}/0?timeout=5"
        scenario = querying_scenario(tmp_path, "RCPT")

        def started(url: str) -> Sink:
            options = scenario, "--fleet_control", "--client_connections=9", "--namespace_by=tag"
            return Sink(*options, env={"BLACKHOLE_FLEET": url})

        with started(f"{url}&ca={certificate.ca}") as right, started(url) as untrusting:
            wrong = started(f"{url.replace('geheim', 'falsch')}&ca={certificate.ca}")
            with wrong:
                for sink in right, untrusting, wrong:
                    sink.dashboard()
                    send(sink.port)
                wait_for(lambda: of_fleet(right).status == 200, "the store of the fleet answers")
                assert ask(right.http, "/scenario", "PUT", "").status == 200
                assert ask(right.http, "/namespaces/job", "PUT").status == 201
                wait_for(lambda: figures(right.http)["store"]["questions"], "questions are counted")
                assert figures(right.http)["store"]["unanswered"] == 0
                for sink in untrusting, wrong:
                    assert of_fleet(sink).status == 503
                    wait_for(lambda sink=sink: figures(sink.http)["store"]["unanswered"], "they are counted")  # type: ignore[misc]
                shown = b"".join(
                    ask(sink.http, path).body
                    for sink in (right, untrusting, wrong)
                    for path in ("/stats.json", "/stats.json?scope=fleet", "/metrics", "/report", "/")
                ).decode()
                pids = [pid for sink in (right, wrong) for pid in (sink.pid, *children(sink.pid))]
                shown += "".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in pids)
                shown += run("--print-config", BLACKHOLE_FLEET=url).stdout
                for sink in right, untrusting, wrong:  # which try their last writes at the same time
                    sink.process.terminate()
                for sink in right, untrusting, wrong:
                    assert sink.process.wait(40) == 0
                    shown += sink.output()
        assert "certificate verify failed" in shown
        assert "sink:***@127.0.0.1" in shown
        assert "geheim" not in shown and "falsch" not in shown


def of_fleet(sink: Sink) -> Answer:
    return ask(sink.http, "/stats.json?scope=fleet")
