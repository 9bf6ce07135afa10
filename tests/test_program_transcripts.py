"""Every transcript against the real program: parsed options, a master, forked workers, real sockets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conftest import Certificate
from program import Program, free_port
from transcript import Transcript, Wire, every, play


class Served(Program):
    """The program with a transcript's options, and a port where TLS comes first if it has a certificate."""

    def __init__(self, transcript: Transcript, certificate: Certificate) -> None:
        self.secure = ("127.0.0.1", free_port())
        implicit = [f"--ssl_port={self.secure[1]}"] if transcript.certified else []
        super().__init__(*transcript.argv(certificate.cert, certificate.key), *implicit)


@pytest.fixture(scope="module")
def program(request: pytest.FixtureRequest, certificate: Certificate) -> Iterator[Served]:
    """One program for all transcripts with the same options; it must end well."""
    with Served(request.param, certificate) as program:
        yield program
        assert program.stop() == 0, program.output()
        assert "Traceback" not in program.output()


def served() -> list[object]:
    """The transcripts, each with the first that has the same options, so that pytest groups them by that."""
    first: dict[tuple[str, ...], Transcript] = {}
    return [
        pytest.param(first.setdefault((*one.options, one.scenario), one), one, id=str(one)) for one in every()
    ]


@pytest.mark.parametrize(("program", "transcript"), served(), indirect=["program"], scope="module")
def test_on_the_program(program: Served, transcript: Transcript, certificate: Certificate) -> None:
    address = program.secure if transcript.implicit else program.address
    with Wire(address, certificate.client) as wire:
        play(transcript, wire)
