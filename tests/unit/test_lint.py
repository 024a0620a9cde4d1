# SPDX-License-Identifier: MIT
"""The tree is clean to its tools. One that is missing is a failure: `pip install -e '.[dev]'`."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import support

PROGRAMS = [support.GENERATOR, support.GENERATOR.with_name("wsl-binfmt")]
SOURCES = [*PROGRAMS, *sorted((support.TREE / "generator/wsl_binfmt").rglob("*.py"))]
TESTS = sorted(path for path in (support.TREE / "tests").rglob("*.py") if "golden" not in path.parts)


def run(tool: str, *args: str | Path) -> str:
    """Run a tool in the tree, of this Python's environment, and return what it said; it must succeed."""
    # vermin has no __main__.
    start = ["-c", "import vermin; vermin.main()"] if tool == "vermin" else ["-m", tool]
    done = subprocess.run(
        [sys.executable, *start, *map(str, args)],
        check=False,
        cwd=support.TREE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_ruff() -> None:
    """The linter."""
    run("ruff", "check", "--no-cache", "--no-fix", "--output-format=concise")


def test_ruff_sees_all() -> None:
    """It sees the files that have no .py as well."""
    seen = {Path(line) for line in run("ruff", "check", "--no-cache", "--show-files").splitlines()}
    assert {*SOURCES, *TESTS} <= seen


def test_mypy(tmp_path: Path) -> None:
    """The types, strictly."""
    run("mypy", f"--cache-dir={tmp_path}")


def test_vermin() -> None:
    """Neither the generator nor the command needs more than Python 3.8."""
    later = [path for path in SOURCES if "from __future__ import annotations" in path.read_text()]
    options = "--quiet", "--no-tips", "--violations", "--target=3.8-"
    run("vermin", *options, *later)
    run("vermin", *options, "--eval-annotations", *(path for path in SOURCES if path not in later))


def test_workflows() -> None:
    """The workflows for GitHub; their shell scripts as well, where shellcheck is installed."""
    workflows = sorted((support.TREE / ".github/workflows").glob("*.yml"))
    assert len(workflows) == 2
    actionlint = Path(sys.executable).with_name("actionlint")
    done = subprocess.run([actionlint, "-no-color", *workflows], check=False, capture_output=True, text=True)
    assert done.stdout + done.stderr == ""


def test_compiles() -> None:
    """Their syntax is that of Python 3.8, annotations that are text included."""
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text(), feature_version=(3, 8))):
            annotation = getattr(node, "annotation", None) or getattr(node, "returns", None)
            if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
                ast.parse(annotation.value, mode="eval")


# Of the modules that Debian 12's python3-minimal has, those that are imported here; `dpkg --listfiles
# libpython3.11-minimal` lists all. Not in it are, among others, difflib, json, shlex and shutil.
MINIMAL = frozenset(
    """__future__ _signal _socket argparse collections errno fcntl glob importlib io marshal os posix re select signal
    socket stat subprocess sys threading time types typing""".split()  # noqa: SIM905 - a list would be a page
)


def test_python3_minimal() -> None:
    """All imports are in Debian's python3-minimal, but for `json`, whose absence is said where it is needed."""
    imported = set()
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
    assert imported - MINIMAL == {"json", "wsl_binfmt"}
    cli = (support.TREE / "generator/wsl_binfmt/cli.py").read_text()
    assert cli.count("import json") == 1


def test_no_module_is_long() -> None:
    """A module has at most 400 lines, so that it can be read at once."""
    assert [path.name for path in SOURCES if path.suffix and len(path.read_text().splitlines()) > 400] == []


def test_no_wall_clock() -> None:
    """What changes the table, does so by the monotonic clock: WSL's other one jumps when Windows has slept."""
    for source in (path for path in SOURCES if path.parent.name != "diagnosis"):
        assert not re.search(r"\btime\.(time|time_ns|localtime|gmtime)\b|st_[amc]time\b|datetime", source.read_text())


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=lambda path: str(path.relative_to(support.TREE)))
def test_licence(path: Path) -> None:
    """Each file says under which licence it is."""
    head = path.read_text().splitlines()[:2]
    assert not path.stat().st_size or any(line == "# SPDX-License-Identifier: MIT" for line in head)


def test_what_documents_name() -> None:
    """A test that a document names is there."""
    known = set(re.findall(r"^def (test_\w+)", "".join(path.read_text() for path in TESTS), re.MULTILINE))
    for document in (support.TREE / "docs").glob("*.md"):
        named = set(re.findall(r"`(test_\w+)`", document.read_text()))
        assert named <= known, document
        assert named


def test_nothing_outside() -> None:
    """No test needs a file that is not in the tree, and no file is larger than it should be."""
    outside = re.compile(r"\.\./shared|/work/")
    for path in [*SOURCES, *TESTS]:
        if path != Path(__file__):
            assert not outside.search(path.read_text()), path
    assert support.GENERATOR.stat().st_size < 20_000
