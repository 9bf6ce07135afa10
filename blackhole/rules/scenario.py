"""Scenarios: files of rules, and the profiles that come with Blackhole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final, NamedTuple

from blackhole import input_file
from blackhole.rules.model import Rule
from blackhole.rules.scenario_file import make_rules, parse_toml
from blackhole.rules.variables import with_values
from blackhole.settings import OperatorError, ScenarioVariable
from blackhole.tls_menu import USUAL_TLS, TLSParameters
from blackhole.values import did_you_mean, shown

PROFILES: Final = files("blackhole.rules") / "profiles"
"""Where the files of `profile:NAME` are: a folder, perhaps in an archive (zipapp)."""

PROFILE_PREFIX: Final = "profile:"


class ScenarioSource(NamedTuple):
    """The text of one scenario, as it was written, and its tables."""

    name: str
    """A path, or `profile:NAME`; errors begin with it."""
    text: str
    tables: Mapping[str, Any]
    """What the text says, as TOML: reading it may take long, making rules of it does not."""

    @property
    def variables(self) -> Mapping[str, Any]:
        """The variables of the scenario, with their values in force."""
        found = self.tables.get("set", {})
        return found if isinstance(found, dict) else {}

    def with_variables(self, given: Mapping[str, str]) -> ScenarioSource:
        """Return the scenario with other values of variables, which it has. Raises OperatorError."""
        if not given:
            return self
        try:
            text = with_values(self.text, self.variables, given)
        except ValueError as error:
            raise OperatorError(f"{self.name}: {error}") from None
        return parse_source(self.name, text)


@dataclass(frozen=True, slots=True)
class Scenario:
    """Rules in their order, and the sources that they were read from.

    >>> source = parse_source("example", '[[rule]]\\nphase = "RCPT"\\nreply = "450 4.2.1 Later"')
    >>> [rule.name for rule in Scenario.of([source]).rules]
    ['1']
    """

    rules: tuple[Rule, ...] = ()
    sources: tuple[ScenarioSource, ...] = ()
    loaded_at: float = 0.0
    """Seconds since 1970 when the sources were read."""

    @property
    def variables(self) -> dict[str, Any]:
        """The variables of all sources, with their values in force."""
        return {name: value for source in self.sources for name, value in source.variables.items()}

    @classmethod
    def of(cls, sources: Iterable[ScenarioSource], loaded_at: float = 0.0) -> Scenario:
        """Return the scenario that several sources make, one behind the other. Raises OperatorError."""
        sources = tuple(sources)
        return cls(parse_sources(sources), sources, loaded_at)


def profiles() -> list[str]:
    """Return the names of the profiles that come with Blackhole."""
    names = [file.name for file in PROFILES.iterdir()]
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def read_profiles() -> tuple[ScenarioSource, ...]:
    """Read all profiles."""
    return tuple(read_source(f"{PROFILE_PREFIX}{name}") for name in profiles())


def read_source(name: str) -> ScenarioSource:
    """Read a file, or a `profile:NAME`. Raises OperatorError."""
    try:
        is_profile = name.startswith(PROFILE_PREFIX)
        octets = _read_profile(name) if is_profile else input_file.read(name).octets
    except OSError as error:
        raise OperatorError(f"scenario {name}: {error.strerror}") from None
    return parse_source(name, decode_source(octets, f"scenario {name}"))


def read_sources(
    names: Iterable[str], variables: Iterable[ScenarioVariable] = ()
) -> tuple[ScenarioSource, ...]:
    """Read several files or `profile:NAME`s, with other values of their variables. Raises OperatorError."""
    return set_variables(tuple(map(read_source, names)), variables)


def set_variables(
    sources: Sequence[ScenarioSource], variables: Iterable[ScenarioVariable], where: str = "set"
) -> tuple[ScenarioSource, ...]:
    """Return sources with other values of their variables, each in all sources that have it.

    Raises OperatorError, which begins with `where`, for a variable that none has.
    """
    given = dict(variables)
    known = sorted({name for source in sources for name in source.variables})
    for name in given:
        if name not in known:
            there_are = f"there are {', '.join(known)}" if known else "the scenario has no table [set]"
            raise OperatorError(
                f"{where}: {shown(name)}: unknown variable; {there_are}{did_you_mean(name, known)}"
            )
    return tuple(
        source.with_variables({name: text for name, text in given.items() if name in source.variables})
        for source in sources
    )


def parse_source(name: str, text: str) -> ScenarioSource:
    """Return a source of this text. Raises OperatorError."""
    return ScenarioSource(name, text, parse_toml(text, name))


def _read_profile(name: str) -> bytes:
    profile, known = name.removeprefix(PROFILE_PREFIX), profiles()
    if profile not in known:
        raise OperatorError(
            f"scenario {name}: no such profile; expected one of {', '.join(known)}"
            f"{did_you_mean(profile, known)}"
        )
    return (PROFILES / f"{profile}.toml").read_bytes()


def decode_source(octets: bytes, source: str) -> str:
    """Return the text of a file, without a byte order mark. Raises OperatorError, which names `source`."""
    try:
        return octets.decode().removeprefix("\N{BYTE ORDER MARK}")
    except UnicodeDecodeError:
        raise OperatorError(f"{source}: not UTF-8 text") from None


def about(source: ScenarioSource) -> str:
    """Return the description in a scenario; empty where it has none."""
    return str(source.tables.get("about", ""))


def tls_parameters(rules: Iterable[Rule]) -> frozenset[TLSParameters]:
    """Return the ways in which rules have the TLS handshake done, other than the listener's."""
    return frozenset(rule.effect.tls for rule in rules) - {USUAL_TLS}


def parse_sources(sources: Iterable[ScenarioSource], rules_before: Sequence[Rule] = ()) -> tuple[Rule, ...]:
    """Return the rules of several sources, one behind the other, numbered after `rules_before`.

    Raises OperatorError.
    """
    rules: list[Rule] = [*rules_before]
    for source in sources:
        rules += make_rules(source.tables, source.name, source.text, rules)
    return tuple(rules[len(rules_before) :])


def load_rules(names: Iterable[str], variables: Iterable[ScenarioVariable] = ()) -> tuple[Rule, ...]:
    """Read the rules of several files or `profile:NAME`s, one behind the other. Raises OperatorError."""
    return parse_sources(read_sources(names, variables))
