"""The tables of these pages, printed from the tables of the program."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from blackhole import options, settings
from blackhole.rules import scenario
from blackhole.smtp import commands, replies
from blackhole.smtp.extensions import EXTENSIONS


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield "| " + " | ".join(head) + " |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def mode_rows() -> Iterator[str]:
    return table(("mode", "what it does"), ((code(mode), about) for mode, about in settings.MODES.items()))


def command_rows() -> Iterator[str]:
    offered = (row for row in commands.COMMANDS if row.about)
    return table(("command", "what it is for"), ((code(row.syntax), row.about) for row in offered))


def extension_rows() -> Iterator[str]:
    return table(
        ("EHLO keyword", "RFC", "parameters of MAIL", "parameters of RCPT"),
        (
            (
                code(row.keyword),
                f"[{row.rfc}](https://www.rfc-editor.org/rfc/rfc{row.rfc})",
                " ".join(code(name.decode()) for name in row.mail),
                " ".join(code(name.decode()) for name in row.rcpt),
            )
            for row in EXTENSIONS
        ),
    )


def reply_rows() -> Iterator[str]:
    named = {value for value in vars(replies).values() if isinstance(value, replies.Reply)}
    everything = sorted(
        named.union(replies.CODES.values()), key=lambda one: (one.code, one.enhanced, one.lines)
    )
    return table(
        ("code", "enhanced", "text", "closes", "in `bounce`"),
        (
            (
                str(one.code),
                one.enhanced,
                code(" ".join(one.lines)),
                "yes" if one.next_action is replies.NextAction.HANG_UP else "",
                "yes" if one in replies.BOUNCES else "",
            )
            for one in everything
        ),
    )


def option_rows() -> Iterator[str]:
    for group in dict.fromkeys(option.group for option in options.OPTIONS):
        yield from (f"## {group}", "")
        yield from table(
            ("option", "default", "meaning"),
            (
                (code(option.usage), default(option), ". ".join(sentences(option)))
                for option in options.OPTIONS
                if option.group == group
            ),
        )
        yield ""


def default(option: options.Option) -> str:
    return option.otherwise or code(option.default)


def sentences(option: options.Option) -> Iterator[str]:
    """The help, and behind it the notes, both beginning with a capital letter and ending without a dot."""
    for text in (option.help, option.notes):
        if text:
            yield text[0].upper() + text[1:].removesuffix(".")


def profile_rows() -> Iterator[str]:
    profiles = ((name, scenario.read_source(f"{scenario.PROFILE}{name}")) for name in scenario.profiles())
    return table(
        ("profile", "what it is"), ((code(name), scenario.about(source)) for name, source in profiles)
    )


PAGES = {
    "profiles": profile_rows,
    "options": option_rows,
    "modes": mode_rows,
    "commands": command_rows,
    "extensions": extension_rows,
    "replies": reply_rows,
}


def write(folder: Path) -> None:
    """Write each page that is not there yet as it should be; what did not change is not built again."""
    folder.mkdir(exist_ok=True)
    for name, lines in PAGES.items():
        page = folder / f"{name}.md"
        text = "\n".join(lines()) + "\n"
        if not page.exists() or page.read_text() != text:
            page.write_text(text)
