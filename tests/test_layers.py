"""Imports point one way, the conversation is pure, and importing does nothing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.program import ROOT, environment

pytestmark = pytest.mark.pure

PACKAGE = ROOT / "blackhole"

FOLDERS = (
    "pytest_plugin",
    "testing",
    "main",
    "service",
    "web",
    "fleet",
    "process",
    "net",
    "metrics",
    "store",
    "rules",
    "smtp",
    "messages",
)
"""The folders, with the modules above them, from the top. A module imports from its own or from below."""

LEAVES = frozenset(
    (
        *(
            "blackhole",
            "action_table",
            "addresses",
            "compiled_modules",
            "conf_file",
            "copies",
            "dashboard_client",
            "given_values",
            "health_check",
            "hostname",
            "input_file",
            "listeners",
            "log_format",
            "option_checks",
            "option_table",
            "options",
            "processors",
            "providers",
            "redis_url",
            "settings",
            "tls_menu",
            "usage",
        ),
        "values",
    )
)
"""The modules below all folders. They import only one another."""

CIRCLES: list[tuple[str, ...]] = []
"""Circles of imports that are left: to be removed."""

PURE = frozenset(
    (
        *(
            "__future__",
            "binascii",
            "bisect",
            "codecs",
            "collections",
            "collections.abc",
            "dataclasses",
            "enum",
        ),
        *(
            "functools",
            "marshal",
            "hashlib",
            "hmac",
            "ipaddress",
            "math",
            "operator",
            "re",
            "stringprep",
            "struct",
            "types",
            "typing",
            "unicodedata",
            "weakref",
        ),
    )
)
"""What the pure folders may import of the standard library: no clock, randomness, socket, log or file."""

PURE_FOLDERS = ("messages", "smtp", "rules")

READS_FILES = {
    "rules.scenario": frozenset(("importlib.resources", "tomllib")),
    "rules.scenario_file": frozenset(("difflib", "tomllib")),
}
"""What else a module of theirs may import, which reads the operator's files."""

TORNADO = {
    "net.acceptor",
    "net.connection",
    "net.connection_interface",
    "net.direct",
    "net.direct_loop",
    "net.direct_state",
    "net.server",
    "net.server_namespaces",
    "net.stream",
    "net.tls_choice",
    "net.tls_start",
    "process.worker",
    "web.app",
    "web.base_handler",
    "web.control_handlers",
    "web.events",
    "web.places",
    "web.prometheus",
    "web.server",
    "web.tls_stream",
}
"""Modules that import Tornado; `usage` asks for its version, inside a function."""

BARE = (
    ast.Import,
    ast.ImportFrom,
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Assign,
    ast.AnnAssign,
)
"""What the body of a module consists of."""


def name(path: Path) -> str:
    """A module's name without the package: "smtp.reply"; the package's own is "blackhole"."""
    words = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(word for word in words if word != "__init__") or "blackhole"


MODULES = {name(path): ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}


def for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports(node: ast.AST) -> Iterator[str]:
    """Yield the full names of all modules that are imported: at once, inside functions, or for types only."""
    for one in ast.walk(node):
        if isinstance(one, ast.Import):
            yield from (alias.name for alias in one.names)
        elif isinstance(one, ast.ImportFrom):
            assert one.level == 0, "imports are absolute"
            for alias in one.names:
                inner = f"{one.module}.{alias.name}"
                yield inner if inner.removeprefix("blackhole.") in MODULES else str(one.module)


def ours(full: str) -> str | None:
    """A module of ours as LAYERS spells it."""
    top, _, inner = full.partition(".")
    return (inner or top) if top == "blackhole" else None


def rank(module: str) -> int:
    """Return the height of a module: 0 for a leaf, 1 for `smtp`, more for what may import it."""
    top = "main" if module == "__main__" else module.split(".")[0]
    return 0 if top in LEAVES else len(FOLDERS) - FOLDERS.index(top)


def imported(module: str) -> set[str]:
    """Return the modules of the package that a module imports."""
    return {inner for full in imports(MODULES[module]) if (inner := ours(full))} - {module}


def test_every_module_is_in_a_known_folder() -> None:
    assert {module.split(".")[0] for module in MODULES} <= {"__main__", *FOLDERS, *LEAVES}


def test_imports_point_down() -> None:
    upward = {
        (module, inner) for module in MODULES for inner in imported(module) if rank(inner) > rank(module)
    }
    assert upward == set()


def circles() -> list[tuple[str, ...]]:
    """Return the groups of modules that import one another, each in alphabetical order."""
    reach = {module: imported(module) for module in MODULES}
    for middle in MODULES:
        for module in MODULES:
            if middle in reach[module]:
                reach[module] |= reach[middle]
    return sorted(
        {tuple(sorted(other for other in reach[one] if one in reach[other])) for one in reach} - {()}
    )


def test_no_imports_go_in_a_circle() -> None:
    assert circles() == CIRCLES


@pytest.mark.parametrize("module", sorted(one for one in MODULES if one.split(".")[0] in PURE_FOLDERS))
def test_the_protocol_and_the_rules_are_pure(module: str) -> None:
    below = {inner for inner in imported(module) if rank(inner) <= rank(module)}
    own = {"blackhole"} | {f"blackhole.{inner}" for inner in below}
    allowed = PURE | READS_FILES.get(module, frozenset())
    assert {full for full in imports(MODULES[module]) if full not in allowed and full not in own} == set()
    called = {ast.unparse(node.func) for node in ast.walk(MODULES[module]) if isinstance(node, ast.Call)}
    assert called.isdisjoint({"Random", "print", "hash", "id"})
    assert "open" not in called or module in READS_FILES


def users(library: str, at_once: bool = False) -> set[str]:
    """Who imports a library; `at_once`: when the module itself is imported."""
    return {
        module
        for module, tree in MODULES.items()
        for node in (tree.body if at_once else [tree])
        if not (at_once and isinstance(node, ast.FunctionDef | ast.ClassDef))
        if any(full.split(".")[0] == library for full in imports(node))
    }


def test_only_some_modules_import_tornado() -> None:
    assert users("tornado") == TORNADO | {"usage"}
    assert users("tornado", at_once=True) == TORNADO


def test_only_the_daemonizer_imports_python_daemon() -> None:
    assert users("daemon") == {"process.daemonizer"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_modules_only_define_when_imported(module: str) -> None:
    for node in MODULES[module].body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        entry = module == "__main__" and isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)
        assert docstring or entry or for_types_only(node) or isinstance(node, BARE), ast.unparse(node)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_module_has_a_docstring(module: str) -> None:
    assert ast.get_docstring(MODULES[module])


PROBE = """
import importlib, logging, os, re, signal, sys, threading
from pathlib import Path

def seen():
    return {
        "descriptors": sorted(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "signals": [signal.getsignal(number) for number in sorted(signal.valid_signals())],
        "handlers": logging.getLogger().handlers[:],
        "folder": os.getcwd(),
        "limits": Path("/proc/self/limits").read_text(),
        "umask": re.search("Umask:.*", Path("/proc/self/status").read_text())[0],
    }

before = seen()
for module in sys.argv[1].split():
    importlib.import_module(module)
after = seen()
assert before == after, (before, after)
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    sys.exit(0)
sys.exit("a child was born")
"""


def run_alone(code: str, *argv: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *argv],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_importing_starts_nothing() -> None:
    """No descriptor, so no event loop; no thread, no child, no handler; nothing printed, no argument read."""
    every = " ".join(module if module == "blackhole" else f"blackhole.{module}" for module in MODULES)
    run_alone(PROBE, every, "start", "--port=nonsense")


def test_the_master_needs_no_event_loop() -> None:
    """None may exist before a fork; what is not imported cannot be started by mistake."""
    run_alone("import sys, blackhole.main; sys.exit('asyncio' in sys.modules or 'tornado' in sys.modules)")


def test_nothing_of_the_package_is_imported_after_the_start() -> None:
    """An upgrade replaces the files of a running server: what is imported then is of another version.

    The service imports the dashboard before it forks, and goes on without it if that fails.
    """
    late = {
        (module, full)
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for full in imports(node)
        if full.split(".")[0] == "blackhole"
    }
    assert {module for module, _ in late} == {"__main__", "main", "pytest_plugin", "service"}
    assert {full for module, full in late if module == "service"} == {
        "blackhole.web.control",
        "blackhole.web.dashboard",
        "blackhole.web.static_files",
    }


def definitions(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield the name and the value of each class and constant of a module; "class" for a class."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield node.name, "class"
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            yield node.target.id, ast.unparse(node.value)
        elif isinstance(node, ast.Assign):
            yield from ((ast.unparse(target), ast.unparse(node.value)) for target in node.targets)


def test_no_name_has_two_meanings() -> None:
    """A class or constant of one name stands in one module; short names of one enum's member may repeat."""
    meanings: dict[str, set[str]] = {}
    for module, tree in MODULES.items():
        for defined, value in definitions(tree):
            alias = re.fullmatch(r"[A-Za-z]+\.[A-Z_]+|logging\.getLogger\(__name__\)", value)
            meanings.setdefault(defined, set()).add(value if alias else module)
    assert {name: found for name, found in meanings.items() if len(found) > 1} == {}
