# SPDX-License-Identifier: MIT
"""The man pages: without a warning, and with what the programs really say."""

from __future__ import annotations

import ast
import fnmatch
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

import bed
from wsl_binfmt.diagnosis import conclude

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.packages

# Functions that return or yield what is logged or told.
REASONS = ("look", "not_a_distro", "parse_wsl_conf", "settings")
PAGES = {
    "wsl-binfmt-generator.8": ("generator/wsl-binfmt-generator",),
    "wsl-binfmt.1": tuple(
        f"generator/wsl_binfmt/{name}.py" for name in ("cli", "command", "interop", "own", "restore", "watch")
    ),
}


@pytest.mark.parametrize("page", PAGES)
def test_mandoc_has_nothing_to_say(release: Path, make: Callable[..., None], page: str) -> None:
    make(release, "man")
    done = subprocess.run(
        ["mandoc", "-T", "lint", release / "build/man" / page], capture_output=True, text=True, check=False
    )
    assert done.stdout + done.stderr == ""


def source(page: str) -> str:
    """The source of a page."""
    return (bed.TREE / f"man/{page}.scd").read_text()


def documented(page: str) -> list[str]:
    """Messages of a page's DIAGNOSTICS, with "*" for what differs."""
    section = source(page).partition("# DIAGNOSTICS\n")[2].partition("\n# ")[0]
    messages = []
    # A message is in bold, but for its parts in _ITALICS_; "++" ends a line.
    for paragraph in re.findall(r"^(?:\*|_[A-Z]+_\*)(?:.+\n)+?(?=\t|\n)", section, re.MULTILINE):
        for line in paragraph.replace("++\n", "\0").replace("\n", " ").split("\0"):
            parts = re.split("_[A-Z]+_", line.strip())
            messages.append("*".join(part.replace("*", "") for part in parts))
    return messages


def template(node: ast.expr) -> str:
    """What an expression gives, as far as that is written there: "*" for the rest."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(template(value) for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left) + template(node.right)
    return "*"


def texts(node: ast.AST) -> Iterator[str]:
    """Templates of the texts in a program, but for its docstrings."""
    if isinstance(node, (ast.Constant, ast.JoinedStr, ast.BinOp)):
        yield template(node)
    elif isinstance(node, ast.AnnAssign):
        yield from texts(node.value) if node.value else ()
    elif not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant):
        for child in ast.iter_child_nodes(node):
            yield from texts(child)


def said(tree: ast.AST) -> Iterator[str]:
    """Templates of the messages in a program: what it logs or tells, and what REASONS give."""
    for node in ast.walk(tree):
        function = node.func if isinstance(node, ast.Call) else None
        name = getattr(function, "id", getattr(function, "attr", ""))
        if isinstance(node, ast.Call) and name.lstrip("_") in ("log", "tell"):
            for argument in node.args:
                yield from texts(argument)
        elif isinstance(node, ast.FunctionDef) and node.name in REASONS:
            # Other texts in them are paths and single letters.
            yield from (text for line in node.body for text in texts(line) if " " in text.strip())


def programs(page: str) -> list[ast.AST]:
    """What a page describes, parsed."""
    return [ast.parse((bed.TREE / path).read_text()) for path in PAGES[page]]


@pytest.mark.parametrize("page", PAGES)
def test_every_message_is_documented(page: str) -> None:
    messages = documented(page)
    assert len(messages) > 5
    for program in programs(page):
        for text in said(program):
            if re.search("[a-z]", text):
                assert fnmatch.filter(messages, f"*{glob(text)}*"), text


@pytest.mark.parametrize("page", PAGES)
def test_every_documented_message_is_said(page: str) -> None:
    known = [text for program in programs(page) for text in texts(program)]
    everything = "\0".join(known)
    for message in documented(page):
        if not [text for text in known if re.search("[a-z]{4}", text) and fnmatch.fnmatchcase(message, glob(text))]:
            for part in re.split(r"\*|:", message):
                assert part.strip() in everything, message


def glob(text: str) -> str:
    """A pattern that matches what `text` does, of which only "*" is special."""
    return re.sub(r"([\[?])", r"[\1]", text)


@pytest.mark.parametrize("page", PAGES)
def test_sections(page: str) -> None:
    headings = re.findall("^# (.*)$", source(page), re.MULTILINE)
    wanted = ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "ENVIRONMENT", "FILES", "DIAGNOSTICS"]
    assert [heading for heading in wanted if heading not in headings] == []
    assert headings[:3] == wanted[:3]
    assert headings[-1] == "SEE ALSO"


def test_every_problem_is_listed(release: Path, make: Callable[..., None]) -> None:
    make(release, "man")
    page = (release / "build/man/wsl-binfmt.1").read_text().replace("\\-", "-").replace("\\&", "")
    for problem in conclude.CATALOGUE.values():
        assert problem.id in page


def test_every_unit_and_every_file_that_is_written_is_named() -> None:
    text = source("wsl-binfmt-generator.8")
    units = [path.name for path in (bed.TREE / "units").iterdir() if "." in path.name]
    assert len(units) == 4
    assert [name for name in (*units, "50-wsl-binfmt.conf", "sysinit.target.wants") if name not in text] == []
    assert "implements *systemd.generator*(7)" in text
