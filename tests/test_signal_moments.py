"""Signals at moments of a start, a reload and a stop: the program does as if they came at a quiet moment."""

from __future__ import annotations

import signal

from tests.signal_moments import (
    ENDING,
    MASTER_MOMENTS,
    OTHERS,
    WORKER_MOMENTS,
    Case,
    cases,
    play,
    play_all,
)

PAIRED: list[Case] = [
    ("process.pidfile:Pidfile._take_lock", (signal.SIGTERM, signal.SIGINT)),
    ("process.supervisor:Supervisor.run", (signal.SIGINT, signal.SIGTERM)),
    ("service:Service.reload", (signal.SIGHUP, signal.SIGTERM)),
    ("process.pidfile:Pidfile.remove", (signal.SIGTERM, signal.SIGINT)),
    ("process.children:run_child", (signal.SIGTERM, signal.SIGINT)),
    ("process.worker:Worker.retire", (signal.SIGINT, signal.SIGTERM)),
]


def test_signals_at_every_moment_have_their_usual_effect() -> None:
    """At each moment one signal, at some two, which end the program or do not: `signal_moments` plays all."""
    signals = [number for pair in zip(ENDING * 4, OTHERS, strict=False) for number in pair]
    moments = MASTER_MOMENTS + WORKER_MOMENTS
    chosen: list[Case] = [
        (moment, (signals[number % len(signals)],)) for number, moment in enumerate(moments)
    ]
    chosen.append(("process.worker:Worker.serve", (signal.SIGKILL,)))
    chosen += PAIRED
    assert {*chosen} <= {*cases()}
    played, found = play_all(chosen, 3)
    assert found == []
    assert played == len(chosen)


def test_signal_without_its_usual_effect_is_found() -> None:
    assert play("process.supervisor:Supervisor.run", (signal.SIGKILL,)).startswith("exit status -9")
