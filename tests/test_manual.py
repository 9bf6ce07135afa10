"""What a build makes: the man page, the completions for shells, and the description for an index."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from blackhole.action_table import ACTION_HELP
from blackhole.option_table import OPTIONS
from tests.external_programs import output_of, requires
from tests.program import ROOT

pytestmark = pytest.mark.pure


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the files below "share"."""
    folder = tmp_path_factory.mktemp("manual")
    command = [sys.executable, "-W", "error", str(ROOT / "docs/manual.py"), str(folder)]
    subprocess.run(command, check=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})
    return folder / "share"


def test_man_page_names_every_option_and_action(made: Path) -> None:
    text = (made / "man/man1/blackhole.1").read_text().replace("\\-", "-")
    assert {option.name for option in OPTIONS if f"\n.B {option.flag}" not in text} == set()
    assert "\n.B start\n75: a server runs already, with other options, or is just starting.\n" in text
    assert {name for name in ACTION_HELP if f"\n.B {name}\n" not in text} == set()


@requires("man")
def test_man_page_has_no_mistake_that_man_warns_about(made: Path) -> None:
    done = subprocess.run(
        ["man", "-l", "-E", "UTF-8", "--warnings=w", str(made / "man/man1/blackhole.1")],
        env={"PATH": "/usr/bin:/bin", "MANWIDTH": "80"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert "SMTP server that accepts any mail" in done.stdout


def completions(made: Path, *words: str) -> set[str]:
    """Return what bash offers after these words."""
    script = (
        f"source {made}/bash-completion/completions/blackhole; COMP_WORDS=({' '.join(words)}); "
        f"COMP_CWORD={len(words) - 1}; "
        'function_name=$(complete -p blackhole | grep -o "_shtab[a-z_]*"); $function_name; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    return set(output_of("bash", "--norc", "-c", script).split())


@requires("bash")
def test_bash_offers_actions_options_and_their_values(made: Path) -> None:
    assert {"start", "status", "stop"} <= completions(made, "blackhole", "st")
    assert completions(made, "blackhole", "--message-s") == {"--message-size-limit"}
    assert {"bounce"} == completions(made, "blackhole", "--mode", "b")
    assert {"junit"} == completions(made, "blackhole", "--format", "ju")


@requires("zsh")
def test_completions_for_zsh_have_no_syntax_error(made: Path) -> None:
    assert output_of("zsh", "-n", str(made / "zsh/site-functions/_blackhole")) == ""


def description(folder: Path, urls: str) -> str:
    """Return the description that setup.py makes, for a project with these URLs."""
    for name in ("setup.py", "README.md"):
        (folder / name).write_text((ROOT / name).read_text())
    (folder / "setup.cfg").write_text(f"[metadata]\nproject_urls =\n{urls}")
    code = (
        "import setuptools; setuptools.setup = lambda **more: print(more['long_description']); import setup"
    )
    return output_of(sys.executable, "-c", f"import sys; sys.path[0] = {str(folder)!r}; {code}")


def test_links_of_the_description_are_absolute_or_no_links(tmp_path: Path) -> None:
    relative = re.compile(r"\]\((?!https?://)")
    assert relative.search((ROOT / "README.md").read_text())
    with_source = description(tmp_path, "    Source = https://example.com/blackhole\n")
    assert "[Quickstart](https://example.com/blackhole/blob/HEAD/docs/quickstart.md)" in with_source
    assert not relative.search(with_source)
    without = description(tmp_path, "    Other = https://example.com/other\n")
    assert not relative.search(without)
    assert "Quickstart, " in without
