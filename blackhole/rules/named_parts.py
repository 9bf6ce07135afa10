"""Globs with named parts: what a client wrote in their place is known to the reply and the delay.

A named part has few forms, and nothing in a glob is tried a second time, so that to compare a text takes time
that grows with its length alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import Final, NamedTuple

from blackhole.rules.context import RuleContext
from blackhole.rules.delays import LONGEST_DELAY
from blackhole.rules.globs import GlobSet
from blackhole.rules.letters import fold
from blackhole.smtp.state import PHASES

NAMED_PART: Final = re.compile(r"\{([a-z][a-z0-9_]*)\}")
"""The name of a part, in a glob or in the text of a reply."""

MAX_NAMED_PARTS: Final = 8
"""Named parts of a glob."""

MAX_PART_LENGTH: Final = 64
"""Characters of a part that may be any text."""

PHASE_WORDS: Final[Mapping[str, str]] = MappingProxyType(
    {phase: "end-of-data" if phase == "." else phase.lower() for phase in PHASES}
)
"""Phase -> what `{phase}` compares with."""


class PartForm(NamedTuple):
    """What may stand in the place of a named part."""

    pattern: str
    glob: str
    """A glob that matches whatever the part does."""
    meaning: str


FORMS: Final[Mapping[str, PartForm]] = MappingProxyType(
    {
        "code": PartForm("[245][0-5][0-9]", "???", "the code of a reply: 2xx, 4xx or 5xx"),
        "status": PartForm(
            r"[245]\.[0-9]{1,3}\.[0-9]{1,3}", "?.?*.?*", "an enhanced status code, of the class of {code}"
        ),
        "phase": PartForm(
            "|".join(map(re.escape, PHASE_WORDS.values())), "*", "the phase at which the rule is tried"
        ),
        "seconds": PartForm(
            r"[0-9]{1,4}(?:\.[0-9]{1,3})?", "?*", f"seconds for delay, up to {LONGEST_DELAY:g}"
        ),
    }
)
"""Named parts of one form each. A part with any other name is a text up to the character that follows."""

RESERVED: Final = frozenset(("client", "helo", "user", "sender", "recipient", "id"))
"""Placeholders of replies that are no named parts."""

Parts = Mapping[str, str]
"""Name of a part -> what the client wrote, in small letters."""

NO_PARTS: Final[Parts] = MappingProxyType({})


class NamedGlob:
    """A glob with named parts, for a whole folded text.

    >>> NamedGlob("reply-{code}@*").find("reply-450@example.com")
    {'code': '450'}
    """

    __slots__ = ("_pattern", "bare", "names")

    def __init__(self, text: str) -> None:
        """Raise ValueError for a part that cannot be told from what stands beside it."""
        pieces = NAMED_PART.split(fold(text.encode()))
        self.names: Final = tuple(pieces[1::2])
        if len(self.names) > MAX_NAMED_PARTS or len({*self.names}) < len(self.names):
            raise ValueError(f"at most {MAX_NAMED_PARTS} named parts, each once, in {text}")
        for name in RESERVED.intersection(self.names):
            raise ValueError(f"{{{name}}} is the whole text; call the part something else")
        self.bare: Final = "".join(
            (FORMS[piece].glob if piece in FORMS else "?*") if number % 2 else piece
            for number, piece in enumerate(pieces)
        )
        """The glob without names, which matches all that this one does."""
        self._pattern: Final = re.compile(_pattern(pieces), re.DOTALL)

    def find(self, folded: str) -> dict[str, str] | None:
        """Return the parts of a text; None if it does not match."""
        match = self._pattern.fullmatch(folded)
        return None if match is None else match.groupdict()


def _pattern(pieces: list[str]) -> str:
    """Return the regular expression for the pieces of a glob: texts, and between them names.

    The first place where what stands between two stars fits is taken, as by `Glob`.
    """
    first, *others = "".join(
        _part_pattern(piece, pieces[number + 1 :]) if number % 2 else _literal_pattern(piece)
        for number, piece in enumerate(pieces)
    ).split(STAR)
    if not others:
        return first
    *inner, last = others
    return "".join((first, *(f"(?>.*?{part})" for part in inner), ".*", last))


STAR: Final = "\0"
"""Stands for a star in a pattern that is being made. No glob contains it."""


def _literal_pattern(text: str) -> str:
    return "".join(STAR if sign == "*" else "." if sign == "?" else re.escape(sign) for sign in text)


def _part_pattern(name: str, behind: list[str]) -> str:
    """Return the pattern of a named part, which knows the pieces behind it."""
    if name in FORMS:
        return f"(?P<{name}>{FORMS[name].pattern})"
    following, *others = behind
    if following[:1] in ("*", "?") or (others and not following):
        raise ValueError(f"{{{name}}} is any text, so a character that ends it has to follow")
    end = f"[^{re.escape(following[0])}]" if following else "."
    return f"(?P<{name}>{end}{{1,{MAX_PART_LENGTH}}}+)"


class NamedGlobs:
    """Globs with named parts, and others, of which any may match.

    >>> globs = NamedGlobs(["{code}-{status}@*", "{code}@*"])
    >>> globs.find(b"450-4.2.1@example.com", "RCPT"), globs.find(b"450-5.1.1@example.com", "RCPT")
    ({'code': '450', 'status': '4.2.1'}, None)
    """

    __slots__ = ("_globs", "certain_names", "globs", "names")

    def __init__(self, texts: Iterable[str]) -> None:
        self._globs: Final = tuple(map(NamedGlob, texts))
        self.globs: Final = GlobSet(glob.bare for glob in self._globs)
        """Globs without names, by which rules are indexed: they match all that these do, and more."""
        self.names: Final = frozenset(name for glob in self._globs for name in glob.names)
        self.certain_names: Final = self.names.intersection(*(glob.names for glob in self._globs))
        """The names that each glob has."""

    def find(self, text: bytes, phase: str) -> Parts | None:
        """Return the parts of a text by the first glob that matches it; None where none does."""
        if not self.globs.match(text):
            return None
        folded = fold(text)
        for glob in self._globs:
            parts = glob.find(folded)
            if parts is not None and _is_valid(parts, phase):
                return parts
        return None


def _is_valid(parts: Parts, phase: str) -> bool:
    """Return whether the parts go together, and with the phase."""
    code, status = parts.get("code"), parts.get("status")
    if code is not None and status is not None and code[0] != status[0]:
        return False
    if "phase" in parts and parts["phase"] != PHASE_WORDS[phase]:
        return False
    return float(parts.get("seconds", 0)) <= LONGEST_DELAY


class PartFinder:
    """Finds the named parts of all conditions of a rule, in a context that the rule matches."""

    __slots__ = ("_sources", "certain_names", "names")

    def __init__(self, sources: Mapping[str, NamedGlobs]) -> None:
        """`sources` are the globs by the attribute of the context that they are compared with."""
        self._sources: Final[tuple[tuple[Callable[[RuleContext], bytes], NamedGlobs], ...]] = tuple(
            (attrgetter(key), globs) for key, globs in sources.items()
        )
        self.names: Final = frozenset(name for globs in sources.values() for name in globs.names)
        self.certain_names: Final = frozenset(
            name for globs in sources.values() for name in globs.certain_names
        )
        """The names of the parts that a context always has."""

    def find(self, context: RuleContext) -> Parts:
        """Return the parts; of two with the same name the one of the later condition."""
        found: dict[str, str] = {}
        for text, globs in self._sources:
            found |= globs.find(text(context), context.phase) or {}
        return found


NO_PART_FINDER: Final = PartFinder({})
