"""The built documentation shows what its source says: admonitions, definition lists, tables, links."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.program import ROOT

pytest.importorskip("sphinx")
pytest.importorskip("myst_parser")
pytest.importorskip("furo")

SOURCES = sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)


class PlainText(HTMLParser):
    """Collect the text of an HTML page, without that of code, scripts and styles."""

    HIDDEN = frozenset(("pre", "code", "script", "style"))

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._hidden += tag in self.HIDDEN

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in self.HIDDEN

    def handle_data(self, data: str) -> None:
        self.pieces.append("(code)" if self._hidden else data)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Build the documentation; a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    built = subprocess.run(
        [*command, "-d", str(folder / "doctrees"), str(ROOT / "docs"), str(folder / "html")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    yield folder / "html"


def html(site: Path, source: Path) -> str:
    return (site / source.relative_to(ROOT / "docs")).with_suffix(".html").read_text("utf-8")


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "docs")))
def test_page_shows_no_markup_as_text(site: Path, source: Path) -> None:
    page = PlainText()
    page.feed(html(site, source))
    text = "".join(page.pieces)
    assert re.findall(r":::|```|^: \w.*|\{(?:warning|note|include|toctree)\}|\]\(", text, re.MULTILINE) == []


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "docs")))
def test_page_renders_every_admonition_definition_and_table_of_its_source(site: Path, source: Path) -> None:
    markdown = re.sub(r"^```.*?^```$", "", source.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    page = html(site, source)
    for kind in ("warning", "note", "tip"):
        wanted = len(re.findall(rf"^:::\{{{kind}\}}", markdown, re.MULTILINE))
        assert len(re.findall(rf'<div class="admonition {kind}"', page)) == wanted
    definitions = len(re.findall(r"^: ", markdown, re.MULTILINE))
    assert len(re.findall(r"<dd>", page)) == definitions
    tables = len(re.findall(r"^ *\|[-|: ]+\|$", markdown, re.MULTILINE))
    assert len(re.findall(r"<table ", page)) == tables


def test_documents_have_an_admonition_and_a_definition_list() -> None:
    text = "\n".join(path.read_text("utf-8") for path in SOURCES)
    assert re.search(r"^:::\{warning\}", text, re.MULTILINE)
    assert re.search(r"^: ", text, re.MULTILINE)
