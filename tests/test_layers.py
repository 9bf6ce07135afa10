"""Imports point one way, the conversation is pure, and importing does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from program import ROOT, environment

PACKAGE = ROOT / "blackhole"

LAYERS = (
    (
        "blackhole",
        "settings",
        "stream",
        "networks",
        "smtp.reply",
        "smtp.dice",
        "smtp.framing",
        "smtp.pattern",
        "smtp.shape",
        "smtp.header",
        "smtp.switch",
        "smtp.gate",
    ),
    (
        *("smtp.policy", "smtp.auth", "smtp.violations", "smtp.witness"),
        *("activation", "attempts", "users", "logs", "options", "tls", "clients", "proxy", "maps"),
    ),
    ("smtp.state", "daemon", "fleet"),
    ("roster", "smtp.extensions", "smtp.conduct", "smtp.judge", "scenario"),
    ("smtp.commands", "explain", "orders"),
    ("smtp.session",),
    ("smtp", "stats", "guard"),
    ("connection", "report", "supervisor", "web", "web.ledger", "web.metrics", "web.pages"),
    ("server", "top", "web.figures", "web.control"),
    ("worker", "web.dashboard"),
    ("main",),
    ("__main__",),
)
"""Every module, the lowest first; it may import from the layers below its own."""

PURE = frozenset(
    (
        *("__future__", "binascii", "bisect", "collections", "collections.abc", "dataclasses", "enum"),
        *("functools", "hashlib", "hmac", "ipaddress", "math", "operator", "re", "struct", "types", "typing"),
    )
)
"""What `smtp` may have of the standard library: no clock, no dice, no socket, no log, no file."""

TORNADO = {
    "stream",
    "connection",
    "server",
    "worker",
    "web.dashboard",
    "web.pages",
    "web.control",
    "web.metrics",
}
"""Who may know Tornado; `options` asks for its version, inside a function."""

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
RANK = {module: number for number, layer in enumerate(LAYERS) for module in layer}


def for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker sees."""
    if not for_types_only(node):
        yield node
        for child in ast.iter_child_nodes(node):
            yield from at_run_time(child)


def imports(node: ast.AST) -> Iterator[str]:
    """The full names of all modules that are imported, at once or later."""
    for one in at_run_time(node):
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


def test_every_module_has_a_layer() -> None:
    assert sorted(RANK) == sorted(MODULES)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module: str) -> None:
    used = {inner for full in imports(MODULES[module]) if (inner := ours(full))}
    assert {inner for inner in used if RANK[inner] >= RANK[module]} == set()


@pytest.mark.parametrize("module", sorted(one for one in MODULES if one.startswith("smtp")))
def test_the_conversation_is_pure(module: str) -> None:
    used = set(imports(MODULES[module]))
    assert {full for full in used - PURE if not full.startswith("blackhole.smtp")} == set()
    called = {ast.unparse(node.func) for node in ast.walk(MODULES[module]) if isinstance(node, ast.Call)}
    assert called.isdisjoint({"Random", "open", "print", "hash", "id"}), "it has no dice of its own"


def users(library: str, at_once: bool = False) -> set[str]:
    """Who imports a library; `at_once`: when the module itself is imported."""
    return {
        module
        for module, tree in MODULES.items()
        for node in (tree.body if at_once else [tree])
        if not (at_once and isinstance(node, ast.FunctionDef | ast.ClassDef))
        if any(full.split(".")[0] == library for full in imports(node))
    }


def test_who_knows_tornado() -> None:
    assert users("tornado") == TORNADO | {"options"}
    assert users("tornado", at_once=True) == TORNADO


def test_who_knows_the_daemon_library() -> None:
    assert users("daemon") == {"daemon"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_defines_and_does_not_act(module: str) -> None:
    for node in MODULES[module].body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        entry = module == "__main__" and isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)
        assert docstring or entry or for_types_only(node) or isinstance(node, BARE), ast.unparse(node)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_says_what_it_is(module: str) -> None:
    assert ast.get_docstring(MODULES[module])


WITNESS = """
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


def witness(code: str, *argv: str) -> None:
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
    witness(WITNESS, every, "start", "--port=nonsense")


def test_the_master_needs_no_event_loop() -> None:
    """None may exist before a fork; what is not imported cannot be started by mistake."""
    witness("import sys, blackhole.main; sys.exit('asyncio' in sys.modules or 'tornado' in sys.modules)")
