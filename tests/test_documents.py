"""The documents agree with the program: reference pages, names of options and metrics, links, form."""

from __future__ import annotations

import configparser
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from blackhole.option_table import NAMES
from blackhole.options import EXPLAIN_OPTIONS
from tests.external_programs import output_of, path_of, requires
from tests.program import ROOT

pytestmark = pytest.mark.pure

DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
WRITTEN = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", ".github/**/*.md", "tests/README.md", "benchmarks/README.md")
    for path in ROOT.glob(pattern)
    if "_build" not in path.parts
)
"""Every document of the repository."""

FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2 *$", re.MULTILINE | re.DOTALL)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def load_tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_tables", DOCS / "tables.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLES = load_tables()


def prose(path: Path) -> str:
    """Return the text without fenced and indented code."""
    return re.sub(r"^ {4}.*\n", "", FENCE.sub("", path.read_text("utf-8")), flags=re.MULTILINE)


def headings(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub and MyST spell them."""
    titles = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", re.sub(r"\]\(.*?\)|[`*]", "", title)).strip().lower().replace(" ", "-")
        for title in titles
    }


# The reference


@pytest.mark.parametrize("page", sorted(TABLES.pages()), ids=lambda path: path.stem)
def test_reference_page_matches_the_tables_of_the_program(page: Path) -> None:
    assert page.read_text("utf-8") == TABLES.pages()[page], "run `make reference`, and commit the result"


def test_reference_has_no_page_that_is_not_generated() -> None:
    assert sorted(REFERENCE.iterdir()) == sorted(page for page in TABLES.pages() if page.parent == REFERENCE)


def test_check_of_the_reference_names_a_page_that_differs(tmp_path: Path) -> None:
    copy = tmp_path / "docs"
    (copy / "reference").mkdir(parents=True)
    for name in (
        "tables.py",
        "internet_profile.py",
        "metrics.md",
        "design.md",
        "smtp.md",
        "auth.md",
        "tls.md",
    ):
        (copy / name).write_text((DOCS / name).read_text("utf-8"), "utf-8")
    command = [sys.executable, str(copy / "tables.py")]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *arguments], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )

    assert run("--check").returncode == 1
    assert run().returncode == 0
    (copy / "reference" / "modes.md").write_text("# Modes\n", "utf-8")
    differs = run("--check")
    assert (differs.returncode, differs.stdout) == (
        1,
        "docs/reference/modes.md is out of date: run `make reference`\n",
    )
    assert (run().returncode, run("--check").returncode) == (0, 0)


def test_every_metric_has_an_example_query() -> None:
    rows = list(TABLES.metrics())
    assert [name for name, *_, query in rows if name not in query] == []
    assert len({name for name, *_ in rows}) == len(rows)


@requires("promtool")
def test_prometheus_can_parse_every_query_of_the_documents(tmp_path: Path) -> None:
    shown = re.findall(r"^ {4}(.*blackhole_.*)$", (DOCS / "metrics.md").read_text("utf-8"), re.MULTILINE)
    rules = [
        {"record": f"query:{number}", "expr": query}
        for number, query in enumerate((*shown, *(query for *_, query in TABLES.metrics())))
    ]
    assert len(rules) > len(shown) > 0
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "documents", "rules": rules}]}))
    assert f"{len(rules)} rules found" in output_of(path_of("promtool"), "check", "rules", str(file))


# Form


@pytest.mark.parametrize("page", WRITTEN, ids=named)
def test_lines_of_documents_are_at_most_100_columns(page: Path) -> None:
    """Rows of tables, output of programs, and links that cannot be broken may be longer."""
    lines = prose(page).splitlines()
    long = [line for line in lines if len(line) > 100 and "|" not in line and " " in line.strip()]
    assert long == []


@pytest.mark.parametrize("page", WRITTEN, ids=named)
def test_links_between_documents_lead_to_a_file_and_a_heading(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name) if name else page
        if not path.exists() or (anchor and anchor not in headings(path)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", sorted({*DOCS.glob("*.md")} - {DOCS / "index.md"}), ids=named)
def test_every_page_is_in_the_table_of_contents(page: Path) -> None:
    assert page.stem in re.findall(r"^[a-z/]+$", (DOCS / "index.md").read_text("utf-8"), re.MULTILINE)


FLOW_STEPS = re.findall(
    r"^(?: \d  )?((?:net|smtp|rules)/\w+\.py) +([\w.]+)", (DOCS / "flow.md").read_text("utf-8"), re.MULTILINE
)


@pytest.mark.parametrize(("module", "name"), FLOW_STEPS, ids=lambda part: part)
def test_functions_in_the_data_flow_are_in_the_modules_beside_them(module: str, name: str) -> None:
    source = (ROOT / "blackhole" / module).read_text("utf-8")
    for part in name.split("."):
        known = part in ("policy", "command") or re.search(
            rf"(def|class) {part}\b|^    {part}: ", source, re.MULTILINE
        )
        assert known, f"{module} has no {part}"


def test_glossary_has_at_most_60_terms_each_with_a_sentence() -> None:
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", (DOCS / "glossary.md").read_text("utf-8"), re.MULTILINE)[1:]
    assert 0 < len(rows) <= 60
    assert [term for term, meaning in rows if not meaning.endswith(".")] == []
    assert sorted((term for term, _ in rows), key=str.lower) == [term for term, _ in rows]


# Names


def blackhole_commands() -> list[tuple[str, str]]:
    """Return every shown command line of `blackhole` with its document, continued lines joined."""
    found = []
    for path in WRITTEN:
        text = path.read_text("utf-8").replace("\\\n", " ")
        for line in re.findall(r"(?:^ {4}|^|`)(?:\$ )?(blackhole [^`\n]*)", text, re.MULTILINE):
            found.append((named(path), line.split("#")[0].split("|")[0].split("&&")[0].strip()))
    return found


COMMANDS = sorted(set(blackhole_commands()))

WORDS = {*NAMES, *EXPLAIN_OPTIONS}


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_options_of_shown_commands_exist(page: str, command: str) -> None:
    given = {word.replace("-", "_") for word in re.findall(r"--([a-z][\w-]*)", command)}
    assert given - WORDS - {"help", "version", "print_config"} == set()


def test_commands_are_found_in_the_documents() -> None:
    assert len(COMMANDS) > 10


@pytest.mark.parametrize("page", WRITTEN, ids=named)
def test_options_named_in_code_spans_exist(page: Path) -> None:
    spans = re.findall(r"`--([a-z][\w-]*)[^`]*`", prose(page))
    elsewhere = {
        *("bless", "full", "seed", "json", "markdown", "variant", "warm"),  # of the tests, of the benchmarks
        *("crlf", "domain", "helo"),  # of curl, msmtp, swaks
        *("help", "print_config", "version"),
        "blackhole_option",  # of the pytest plugin
    }
    assert {span.replace("-", "_") for span in spans} - WORDS - elsewhere == set()


TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


@pytest.mark.parametrize("page", WRITTEN, ids=named)
def test_make_targets_named_in_documents_exist(page: Path) -> None:
    used = set(re.findall(r"(?:^ {4}|`)make ([a-z-]+)", page.read_text("utf-8"), re.MULTILINE))
    assert used - TARGETS == set()


def test_hosted_workflow_runs_make_check_test_docs_and_dist() -> None:
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text("utf-8")
    lines = re.findall(r"run: make (.*)$", workflow, re.MULTILINE)
    used = {word for line in lines for word in line.split() if "=" not in word}
    assert used == {"check", "test", "docs", "dist"}
    assert used <= TARGETS


def test_files_that_pre_commit_runs_exist() -> None:
    hooks = re.findall(r"entry: (.*)$", (ROOT / ".pre-commit-config.yaml").read_text("utf-8"), re.MULTILINE)
    assert len(hooks) == 5
    files = {word for hook in hooks for word in hook.split() if re.match(r"(tests|docs)/", word)}
    assert {file for file in files if not (ROOT / file).is_file()} == set()


# The package


def test_every_data_file_of_the_package_is_shipped() -> None:
    """Among them `py.typed`, by which type checkers know that the package has annotations (PEP 561)."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    shipped = {
        path
        for package, patterns in setup["options.package_data"].items()
        for pattern in patterns.split()
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    there = {
        path
        for path in (ROOT / "blackhole").rglob("*")
        if path.is_file() and path.suffix != ".py" and path.parent.name != "__pycache__"
    }
    assert ROOT / "blackhole" / "py.typed" in there
    assert there == shipped
