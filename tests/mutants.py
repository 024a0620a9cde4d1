# SPDX-License-Identifier: MIT
"""`make mutants`: changes a source in one place after the other, and says which changes no unit test notices.

mutmut makes the changes. Its own runner is not used: it changes the tree in place, and knows a mutant by
a number. Here each runs in a copy of the tree and in namespaces of its own, and tests/mutants.txt names those
that may survive by function and line, so that the list outlives other changes.
"""

from __future__ import annotations

import ast
import difflib
import os
import queue
import shutil
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import mutmut

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

TREE = Path(__file__).parents[1]
BUILD = TREE / "build/mutants"
EXPLAINED = TREE / "tests/mutants.txt"
# Which tests are to notice a change, those that are likely to notice it first.
TESTS = {
    "generator/wsl-binfmt-generator": ["wsl_conf", "detection", "output", "arguments", "golden", "hostile_conf"],
    "generator/wsl_binfmt/table.py": ["table", "interop"],
    "generator/wsl_binfmt/interop.py": ["interop", "table", "watch_loop"],
    "generator/wsl_binfmt/watch.py": ["watch_loop"],
}
NOT_COPIED = ".git", ".venv", ".hypothesis", ".*_cache", "__pycache__", "build", "dist"
# A mutant may do anything: here it sees no other process, no table of the kernel's, and has no rights over the machine.
SANDBOX = "unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"
MEMORY_MAX = 3 << 30  # bytes: an endless loop may fill a list


class Mutant(NamedTuple):
    """A change of a source, identified by what does not depend on the rest of the file."""

    file: str
    function: str  # with the class that it is in
    lines: tuple[str, ...]  # of the difference, each with "- " or "+ "

    def __str__(self) -> str:
        return "\n".join([f"{self.file} {self.function}", *self.lines])


def explained() -> set[Mutant]:
    """Read the mutants that may survive: paragraphs as Mutant prints them; a line of "#" says why."""
    found = set()
    for paragraph in EXPLAINED.read_text().split("\n\n"):
        head, *lines = [line for line in paragraph.splitlines() if not line.startswith("#")] or [""]
        if head:
            file, _, function = head.partition(" ")
            found.add(Mutant(file, function, tuple(lines)))
    return found


def meaning(source: str) -> str:
    """What Python makes of a source; annotations of variables are for people."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    return ast.dump(tree)


def function_at(tree: ast.AST, line: int) -> str:
    """Name the innermost class or function that a line is in."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.lineno <= line <= (node.end_lineno or 0):
            return f"{node.name}.{function_at(node, line)}".rstrip(".")
    return ""


def mutants(file: str) -> Iterator[tuple[Mutant, str]]:
    """Make all mutants of a file that mean something else than it does, each with its whole text."""
    source = (TREE / file).read_text()
    means = meaning(source)
    for which in mutmut.list_mutations(mutmut.Context(source=source, filename=file)):
        text, _ = mutmut.mutate(mutmut.Context(source=source, filename=file, mutation_id=which))
        try:
            if meaning(text) == means:
                continue
        except SyntaxError:
            continue
        old, new = source.splitlines(), text.splitlines()
        first = next(number for number, lines in enumerate(zip(old, new), 1) if lines[0] != lines[1])
        difference = list(difflib.unified_diff(old, new, n=0, lineterm=""))[3:]
        lines = tuple(f"{line[0]} {line[1:].strip()}" for line in difference)
        yield Mutant(file, function_at(ast.parse(source), first) or "(module)", lines), text


def survives(tree: Path, file: str, seconds: float) -> bool:
    """Run the tests of a file in a copy of the tree; whether they all pass, in time."""
    tests = [f"tests/unit/test_{name}.py" for name in TESTS[file]]
    done = subprocess.run(
        [
            *("timeout", "--signal=KILL", str(seconds), "prlimit", f"--as={MEMORY_MAX}", *SANDBOX),
            *(sys.executable, "-B", "-m", "pytest", "-x", "-qq", "-p", "no:cacheprovider"),
            *("--hypothesis-profile=mutants", *tests),
        ],
        check=False,
        cwd=tree,
        env={**os.environ, "TMPDIR": str(tree / "build")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return done.returncode == 0


def attempt(trees: queue.SimpleQueue[Path], mutant: Mutant, text: str, seconds: float) -> bool:
    """Whether a mutant survives; uses one of the copies of the tree."""
    tree = trees.get()
    path = tree / mutant.file
    before = path.read_text()
    try:
        path.write_text(text)
        return survives(tree, mutant.file, seconds)
    finally:
        path.write_text(before)
        trees.put(tree)


def main(files: list[str]) -> int:
    """Try all mutants of these files; returns the exit status."""
    listed = {mutant for mutant in explained() if mutant.file in files}
    seen, alive = set(), set()
    unexplained = 0
    trees: queue.SimpleQueue[Path] = queue.SimpleQueue()
    shutil.rmtree(BUILD, ignore_errors=True)
    workers = os.cpu_count() or 1
    for number in range(workers):
        tree = BUILD / str(number)
        shutil.copytree(TREE, tree, symlinks=True, ignore=shutil.ignore_patterns(*NOT_COPIED))
        (tree / "build").mkdir()
        trees.put(tree)
    for file in files:
        begun = time.monotonic()
        if not survives(BUILD / "0", file, 300):
            print(f"{file}: its tests fail without a change")
            return 1
        # All workers at once, and a machine that is busy, take longer.
        seconds = 10 + 8 * (time.monotonic() - begun)
        counts: Counter[str] = Counter()
        with ThreadPoolExecutor(workers) as pool:
            running: dict[Future[bool], Mutant] = {}
            for mutant, text in mutants(file):
                seen.add(mutant)
                running[pool.submit(attempt, trees, mutant, text, seconds)] = mutant
            for done in as_completed(running):
                mutant = running[done]
                result = "killed" if not done.result() else "explained" if mutant in listed else "unexplained"
                counts[result] += 1
                if result != "killed":
                    alive.add(mutant)
                if result == "unexplained":
                    print(mutant, end="\n\n", flush=True)
        print(
            f"{file}: {len(running)} mutants, {counts['killed']} killed, "
            f"{counts['explained'] + counts['unexplained']} survive, {counts['explained']} of them explained",
            flush=True,
        )
        unexplained += counts["unexplained"]
    # Two lines of a function with the same change, as of "break", are one mutant here: it may be killed and survive.
    for mutant in sorted(listed - alive):
        print(f"{'killed' if mutant in seen else 'no mutant any more'}, but explained:\n{mutant}\n")
    shutil.rmtree(BUILD)
    return int(bool(unexplained or listed - seen))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(TESTS)))
