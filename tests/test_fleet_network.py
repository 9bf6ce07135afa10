"""A fleet of three machines behind HAProxy, each in a network namespace, while parts of it break."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.external_programs import output_of, path_of, requires
from tests.network import Network
from tests.postfix import QUICK_RETRIES, RECIPIENT, Postfix, requires_postfix, smtp_source
from tests.program import PYTHON, Program, children, wait_for
from tests.resource_usage import master_and_workers, proportional_memory
from tests.store_waits import REPORTED, StoreWait, read_waits

MACHINES = ("one", "two", "three")

FROM_SMTP_SOURCE = int(os.environ.get("BLACKHOLE_FLEET_MESSAGES", "5000"))
"""Messages from smtp-source, while nothing breaks."""

MEASURED = "BLACKHOLE_FLEET_MESSAGES" in os.environ
"""Whether the figures are printed, and memory is checked, which a busy machine does not allow."""

MAX_STORE_WAIT = REPORTED
"""Seconds that mail may wait for the store, which has 50 ms to answer.

The time in which the kernel does not let a worker run comes on top of it.
"""

MAX_GROWTH = 8192
"""KiB by which the memory of a machine may grow."""

ASKING = """\
[[rule]]
name = "asks"
throttle = { recipients = 100000000, per = "hour", by = "all" }
reply = "452 4.5.3 Slow down"
"""
"""A rule that asks the store about each recipient."""

FROM_POSTFIX = max(120, FROM_SMTP_SOURCE // 100)
"""Messages from Postfix, while everything does."""

CUT_OFF = 10
"""Seconds for which a machine is off the network."""

HAPROXY = """\
defaults
    mode tcp
    timeout connect 1s
    timeout client 60s
    timeout server 60s
frontend smtp
    bind {hub}:25
    default_backend sinks
backend sinks
    balance roundrobin
    option redispatch
    retries 3
    option tcp-check
    tcp-check expect rstring ^220
    default-server check check-send-proxy inter 500ms fall 2 rise 1 send-proxy-v2
    default-server on-marked-down shutdown-sessions
{servers}
"""

pytestmark = [
    requires("ip", "haproxy", "redis-server", "curl", "smtp-source", root=True),
    requires_postfix,
]


class FleetOfMachines:
    """Redis and HAProxy on the machine `hub`, and three sinks."""

    def __init__(self, network: Network, folder: Path, stack: ExitStack) -> None:
        self.network = network
        self._folder, self._stack = folder, stack
        (folder / "asking.toml").write_text(ASKING)
        self.redis = self.start_redis()
        self.sinks = {name: stack.enter_context(self._sink(name)) for name in MACHINES}
        servers = "\n".join(f"    server {name} {network.address(name)}:25" for name in MACHINES)
        (folder / "haproxy.cfg").write_text(HAPROXY.format(hub=network.address("hub"), servers=servers))
        self._run("hub", path_of("haproxy"), "-db", "-f", str(folder / "haproxy.cfg"))

    def _run(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [*self.network.inside(name), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process

    def start_redis(self) -> subprocess.Popen[bytes]:
        """Start a Redis that keeps nothing when it ends."""
        return self._run(
            "hub",
            *(path_of("redis-server"), "--bind", self.network.address("hub"), "--protected-mode", "no"),
            *("--save", "", "--appendonly", "no", "--dir", str(self._folder)),
        )

    def _sink(self, name: str) -> Program:
        address = self.network.address(name)
        return Program(
            f"--listen={address}:25,proxy",
            f"--proxy_from={self.network.address('hub')}",
            f"--dashboard={address}:8025",
            f"--fleet=redis://{self.network.address('hub')}/0",
            "--fleet_control",
            f"--scenario={self._folder / 'asking.toml'}",
            "--workers=2",
            f"--hostname={name}.test",
            "--user=nobody",
            command=(
                *(*self.network.inside(name), *PYTHON, "-m", "tests.store_waits"),
                str(self._folder / f"waits-{name}"),
            ),
        )

    def figures(self, name: str) -> Any:
        """Return the figures of the fleet as a machine tells them; None while it cannot."""
        url = f"http://{self.network.address(name)}:8025/stats.json?scope=fleet"
        done = subprocess.run(
            [*self.network.inside(name), path_of("curl"), "-sfm", "5", url], capture_output=True, check=False
        )
        return json.loads(done.stdout) if not done.returncode else None

    def order(self, name: str, scenario: str) -> bool:
        """Give a scenario to one machine, and return whether it says that all obey."""
        url = f"http://{self.network.address(name)}:8025/scenario"
        request = ("-sfm", "10", "-X", "PUT", "--data-binary", scenario, url)
        done = subprocess.run(
            [*self.network.inside(name), path_of("curl"), *request], capture_output=True, check=False
        )
        return not done.returncode

    def scenarios(self) -> list[str]:
        """Return the names of the scenarios of all machines that are alive."""
        found = self.figures("two")
        return [machine["scenario"] for machine in found["machines"] if machine["alive"]] if found else []

    def memory(self, name: str) -> float:
        """Return the KiB of memory of a machine."""
        return proportional_memory(*master_and_workers(self.sinks[name].pid))

    def store_waits(self) -> dict[str, list[StoreWait]]:
        """Return the long waits for the store, by machine."""
        return {name: read_waits(self._folder / f"waits-{name}") for name in MACHINES}

    def accepted(self, name: str = "two") -> int:
        found = self.figures(name)
        return found["messages"]["accepted"] if found else -1

    def alive(self) -> int:
        found = self.figures("two")
        return sum(machine["alive"] for machine in found["machines"]) if found else -1


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[FleetOfMachines]:
    with Network("hub", *MACHINES) as network, ExitStack() as stack:
        yield FleetOfMachines(network, tmp_path, stack)


@pytest.mark.timeout(120 + FROM_SMTP_SOURCE / 100)
def test_the_sum_is_what_the_senders_counted(fleet: FleetOfMachines, postfix_folder: Path) -> None:
    network, hub = fleet.network, (fleet.network.address("hub"), 25)
    wait_for(lambda: fleet.alive() == 3, "all machines have written")
    first = [*network.inside("hub"), *smtp_source(hub, 1)]
    wait_for(lambda: not subprocess.run(first, capture_output=True, check=False).returncode, "HAProxy runs")
    output_of(*network.inside("hub"), *smtp_source(hub, FROM_SMTP_SOURCE - 1), timeout=600)
    wait_for(lambda: fleet.accepted() == FROM_SMTP_SOURCE, "the fleet has counted all of them")
    memory = fleet.memory("two")
    found = fleet.figures("one")
    assert all(machine["messages"] for machine in found["machines"]), "HAProxy used all machines"

    with Postfix(postfix_folder, hub, more=QUICK_RETRIES, before=network.inside("hub")) as postfix:
        began = time.monotonic()
        steps = {
            FROM_POSTFIX // 6: lambda: fleet.sinks["one"].process.kill(),
            FROM_POSTFIX // 3: lambda: fleet.sinks["two"].process.send_signal(signal.SIGHUP),
            FROM_POSTFIX * 5 // 12: lambda: wait_for(lambda: fleet.alive() == 2, "one is gone", 60),
            FROM_POSTFIX // 2: lambda: (time.sleep(2.5), network.cut_off("three")),  # its figures are copied
            FROM_POSTFIX * 2 // 3: fleet.redis.kill,
            FROM_POSTFIX * 5 // 6: fleet.start_redis,
        }
        for number in range(FROM_POSTFIX):
            if number in steps:
                steps[number]()
            postfix.send(f"Subject: {number}\n\n{number}\n", RECIPIENT)
        time.sleep(max(0, began + CUT_OFF - time.monotonic()))
        network.cut_off("three", down=False)
        wait_for(lambda: postfix.has_delivered(FROM_POSTFIX), "Postfix has delivered everything", 120)
        log = postfix.log.read_text()
    delivered = FROM_SMTP_SOURCE + FROM_POSTFIX
    twice = len(re.findall("message may be sent more than once", log))
    wait_for(lambda: fleet.alive() == 2, "two machines are left, and write")
    wait_for(
        lambda: delivered <= fleet.accepted() <= delivered + twice, "all is counted, and nothing twice", 60
    )
    assert fleet.accepted("three") == fleet.accepted("two")
    wait_for(
        lambda: fleet.order("three", '[[rule]]\nphase = "NOOP"\nreply = "250 2.0.0 Ordered"\n'),
        "all obey",
        60,
    )
    wait_for(lambda: fleet.scenarios() == ["PUT /scenario"] * 2, "they show it")
    waits = fleet.store_waits()
    for name in MACHINES:
        assert waits[name], "each machine has asked the store"
    late = [(name, wait) for name in MACHINES for wait in waits[name] if wait.own > MAX_STORE_WAIT]
    assert not late, "the worker could run, and mail waited for the store"
    if MEASURED:
        found = fleet.figures("two")
        print(f"accepted {found['messages']['accepted']} of {delivered} sent, {twice} perhaps twice")
        print(found["store"], found["histograms"]["store_seconds"])
        for name in MACHINES:
            own = max(waits[name], key=lambda wait: wait.own)
            print(name, "longest", max(waits[name], key=lambda wait: wait.seconds), "longest own", own)
            print(*(wait for wait in waits[name] if wait.seconds > MAX_STORE_WAIT), sep="\n")
        print("memory", memory, fleet.memory("two"), fleet.memory("three"))
        assert found["histograms"]["store_seconds"]["count"] > 2 * FROM_SMTP_SOURCE / 3
        assert fleet.memory("two") - memory < MAX_GROWTH
    assert not any(map(children, [fleet.sinks["one"].pid]))
