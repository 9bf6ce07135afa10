"""Write docs/reference/*.md, the tables of docs/metrics.md and docs/design.md, and profile:internet.

python docs/tables.py           write the pages that differ
python docs/tables.py --check   write nothing; name the pages that differ, and exit with 1 if there are any
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from internet_profile import profile_text  # noqa: E402

import blackhole  # noqa: E402
from blackhole import settings  # noqa: E402
from blackhole.metrics import report  # noqa: E402
from blackhole.metrics.tls_events import TLS_FAILURES  # noqa: E402
from blackhole.option_table import LISTENER_ROWS, OPTIONS, Option  # noqa: E402
from blackhole.providers import PROVIDERS  # noqa: E402
from blackhole.rules import scenario  # noqa: E402
from blackhole.smtp import commands, replies, violations  # noqa: E402
from blackhole.smtp.auth import MECHANISMS  # noqa: E402
from blackhole.smtp.extensions import EXTENSIONS  # noqa: E402
from blackhole.tls_menu import TLS_MENU  # noqa: E402
from blackhole.web import prometheus  # noqa: E402

REFERENCE = HERE / "reference"

NOTICE = "<!-- Written by `make reference` from the tables of the program. Do not edit. -->"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield "| " + " | ".join(head) + " |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def code(text: str) -> str:
    """Return the text as a code span; nothing for an empty text."""
    return f"`{text}`" if text else ""


def sentence(text: str) -> str:
    """Return the text with a capital letter and a full stop."""
    return f"{text[0].upper()}{text[1:].removesuffix('.')}." if text else ""


def rfc(number: int, section: str = "") -> str:
    """Return a link to an RFC, or to a section of it."""
    anchor = f"#section-{section}" if section else ""
    return f"[RFC {number} {section}".rstrip() + f"](https://www.rfc-editor.org/rfc/rfc{number}{anchor})"


def option_page() -> Iterator[str]:
    yield from ("How to give options, and which source wins: [Options](../options.md).", "")
    for group in dict.fromkeys(option.group for option in OPTIONS):
        yield from (f"## {group}", "")
        yield from table(
            ("option", "default", "meaning"),
            (
                (code(option.usage), option_default(option), option_meaning(option))
                for option in OPTIONS
                if option.group == group
            ),
        )
        yield ""
    yield from ("## Settings of one listener", "")
    yield from table(
        ("setting", "meaning", "where a listener does not set it"),
        (
            (
                code(row.usage),
                sentence(row.help),
                code(f"--{row.option.replace('_', '-')}") if row.option else "off",
            )
            for row in LISTENER_ROWS
        ),
    )
    yield ""


def option_default(option: Option) -> str:
    default = option.default_note or code(option.default)
    return f"{default}; with `--public` {code(option.public_default)}" if option.public_default else default


def option_meaning(option: Option) -> str:
    """Return the help as a sentence, and the notes as they are: they may begin with a value."""
    return f"{sentence(option.help)} {option.notes}".rstrip()


def mode_page() -> Iterator[str]:
    yield from ("How to choose a mode: [Modes](../modes.md).", "")
    yield from table(
        ("mode", "meaning"), ((code(mode), sentence(about)) for mode, about in settings.MODES.items())
    )


def protocol_tables() -> Iterator[str]:
    """Yield the tables of all verbs, and of all extensions and their parameters."""
    offered = [row for row in commands.COMMANDS if row.about]
    yield from ("## Every command", "")
    yield from table(
        ("command", "what becomes of it"), ((code(row.syntax), sentence(row.about)) for row in offered)
    )
    for verbs, about in (
        (commands.UNOFFERED_VERBS, "not implemented: 502"),
        (commands.HTTP_VERBS, "a client of HTTP: 221, then closed"),
        ((), "unknown: 500"),
    ):
        yield f"| {' '.join(map(code, verbs)) or 'any other'} | {sentence(about)} |"
    yield from ("", "## Every extension", "")
    yield from table(
        ("EHLO keyword", "by default", "source", "parameters of MAIL", "of RCPT", "what becomes of it"),
        (
            (
                code(row.keyword),
                "yes" if row.by_default else "",
                rfc(row.rfc) if row.rfc else f"[Postfix]({row.page})",
                " ".join(code(name.decode()) for name in row.mail),
                " ".join(code(name.decode()) for name in row.rcpt),
                sentence(row.about),
            )
            for row in EXTENSIONS
        ),
    )
    yield from ("", "A value that its RFC does not allow is refused with 501.")


def mechanism_table() -> Iterator[str]:
    """Yield the table of the mechanisms of AUTH."""
    yield from ("## Mechanisms", "")
    yield from table(
        ("mechanism", "by default", "source", "what is checked against a file"),
        ((row.name, "yes" if row.by_default else "", row.source, row.verified) for row in MECHANISMS),
    )


def rfc_link(source: str) -> str:
    """Return a link for a text such as "RFC 8446 6.1"."""
    _, number, *section = source.split()
    return rfc(int(number), *section)


def menu_tables() -> Iterator[str]:
    yield from ("## The menu", "")
    yield from table(
        ("entry", "what the server does", "source"),
        ((code(row.name), sentence(row.meaning), rfc_link(row.source)) for row in TLS_MENU),
    )
    yield from ("", "## Why handshakes fail", "")
    yield from table(
        ("reason", "meaning"), ((code(name), sentence(meaning)) for name, meaning in TLS_FAILURES.items())
    )


def reply_page() -> Iterator[str]:
    yield from (
        "Every fixed reply of the server.",
        "The column *bounce* marks the replies that the modes `bounce` and `random` choose from.",
        "",
        "The greeting (220) and the replies to HELO, EHLO (250) and HELP (214) are not listed.",
        "A command whose argument has the wrong syntax is answered 501 and the right syntax.",
        "",
    )
    named = {value for value in vars(replies).values() if isinstance(value, replies.Reply)}
    sent = (one for one in named.union(replies.CODES.values()) if any(one.lines))
    everything = sorted(sent, key=lambda one: (one.code, one.enhanced, one.lines))
    yield from table(
        ("code", "enhanced code", "text", "closes the connection", "bounce"),
        (
            (
                str(one.code),
                one.enhanced,
                code(" ".join(one.lines)),
                "yes" if one.next_action is replies.NextAction.CLOSE else "",
                "yes" if one in replies.BOUNCES else "",
            )
            for one in everything
        ),
    )


def profile_page() -> Iterator[str]:
    yield from (
        "Scenarios that come with Blackhole: `blackhole --scenario profile:NAME`.",
        "They model kinds of servers. None of them is the official behaviour of a provider.",
        "",
    )
    profiles = (
        (name, scenario.read_source(f"{scenario.PROFILE_PREFIX}{name}")) for name in scenario.profiles()
    )
    yield from table(
        ("profile", "meaning", "variables for `--set`, and their defaults"),
        (
            (
                code(name),
                sentence(scenario.about(source)),
                ", ".join(code(f"{variable}={default:g}") for variable, default in source.variables.items()),
            )
            for name, source in profiles
        ),
    )


def violation_page() -> Iterator[str]:
    yield from ("What [the report](../report.md) can find wrong with a sender.", "")
    yield from table(
        ("rule", "level", "source", "the sender", "what to do", "expected by"),
        (
            (
                code(rule.name),
                report.level_text(rule.level),
                rfc(rule.rfc, rule.section) if rule.rfc else rule.section,
                rule.meaning,
                rule.hint,
                " ".join(map(code, rule.providers)),
            )
            for rule in violations.VIOLATIONS
        ),
    )
    yield from ("", "## Providers", "")
    yield from (
        "What these providers say that they expect of a message.",
        "The rules are modelled on what they publish, and none of them is official.",
        "",
    )
    yield from table(
        ("provider", "of", "source", "since"),
        ((code(name), one.title, one.source, one.date) for name, one in PROVIDERS.items()),
    )


def metrics() -> Iterator[tuple[str, str, str, str, str]]:
    """Yield name, type, labels, meaning and example query of each metric."""
    for row in prometheus.METRICS:
        yield row.full_name, row.kind, " ".join(map(code, row.labels)), row.help, row.query


def metric_table() -> Iterator[str]:
    """Yield the table of all metrics."""
    yield from table(
        ("metric, its type and labels", "meaning, and an example query"),
        (
            (f"{code(name)}<br>{kind} {labels}".rstrip(), f"{meaning}<br>{code(query)}")
            for name, kind, labels, meaning, query in metrics()
        ),
    )


PAGES: dict[str, tuple[str, Callable[[], Iterator[str]]]] = {
    "options": ("Reference: options", option_page),
    "modes": ("Reference: modes", mode_page),
    "replies": ("Reference: replies", reply_page),
    "profiles": ("Reference: profiles", profile_page),
    "violations": ("Reference: violations", violation_page),
}
"""File name without `.md` -> its title, and what yields its lines."""


PACKAGE = Path(blackhole.__file__).parent

FOLDERS = ("web", "process", "net", "metrics", "store", "rules", "smtp", "messages")
"""The folders of the package, from the top."""

ABOVE_FOLDERS = ("__main__", "main", "service")
"""The modules that may import from all folders. The other modules beside them are below all folders."""


def first_sentences(file: Path) -> str:
    """Return the first paragraph of a module's docstring in one line."""
    docstring = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
    return " ".join(docstring.partition("\n\n")[0].split())


def module_tables() -> Iterator[str]:
    """Yield a table for each folder, with a row for each module."""
    top = [file for file in sorted(PACKAGE.glob("*.py")) if file.stem != "__init__"]
    groups = [("blackhole/", [file for file in top if file.stem in ABOVE_FOLDERS])]
    groups += [
        (
            f"blackhole/{folder}/",
            [one for one in sorted((PACKAGE / folder).glob("*.py")) if one.stem != "__init__"],
        )
        for folder in FOLDERS
    ]
    groups.append(("blackhole/, below all folders", [file for file in top if file.stem not in ABOVE_FOLDERS]))
    for name, files in groups:
        yield from (f"### {name}", "")
        about = files[0].with_name("__init__.py")
        if about.parent != PACKAGE:
            yield from (first_sentences(about), "")
        yield from table(("module", "content"), ((code(file.name), first_sentences(file)) for file in files))
        yield ""


GENERATED_ENDS: dict[str, Callable[[], Iterator[str]]] = {
    "metrics": metric_table,
    "design": module_tables,
    "smtp": protocol_tables,
    "auth": mechanism_table,
    "tls": menu_tables,
}
"""File name without `.md` of a page whose end, from NOTICE on, is generated -> what yields its lines."""


INTERNET = HERE.parent / "blackhole" / "rules" / "profiles" / "internet.toml"


def pages() -> dict[Path, str]:
    """Return the text of every page, and of the profile that is made of others, by its path."""
    ends: dict[Path, str] = {}
    for name, lines in GENERATED_ENDS.items():
        page = HERE / f"{name}.md"
        head = page.read_text("utf-8").partition(NOTICE)[0]
        ends[page] = "\n".join((head + NOTICE, "", *lines())).rstrip("\n") + "\n"
    return (
        ends
        | {
            REFERENCE / f"{name}.md": "\n".join((NOTICE, "", f"# {title}", "", *lines())).rstrip("\n") + "\n"
            for name, (title, lines) in PAGES.items()
        }
        | {INTERNET: profile_text()}
    )


def stale() -> dict[Path, str]:
    """Return the pages whose file is missing or differs, with the text they should have."""
    return {
        path: text for path, text in pages().items() if not path.exists() or path.read_text("utf-8") != text
    }


def main(arguments: list[str]) -> int:
    """Write the pages that differ, or only name them; return the exit status."""
    check = arguments == ["--check"]
    if arguments and not check:
        sys.exit("usage: python docs/tables.py [--check]")
    differing = stale()
    for path, text in differing.items():
        if check:
            print(f"{path.relative_to(HERE.parent)} is out of date: run `make reference`")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
    return int(check and bool(differing))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
