# SPDX-License-Identifier: MIT
"""Which branches of the watch are reached by histories."""

from __future__ import annotations

import os

import coverage

import histories
import syscalls
from wsl_binfmt import interop

MODULES = "interop.py", "own.py", "watch.py"
HISTORIES = 150


def branches(start: str, count: int = HISTORIES) -> dict[str, list[str]]:
    """Simulate some histories; returns for each module the branches, FROM->TO by lines, that none has reached."""
    directory = os.path.dirname(interop.__file__ or "")
    measured = coverage.Coverage(data_file=None, branch=True, include=[f"{directory}/{name}" for name in MODULES])
    syscalls.install()
    measured.start()
    for number in range(count):
        histories.simulate(histories.draw(f"{start}-{number}"))
    measured.stop()
    missing = {}
    for name in MODULES:
        analysis = measured._analyze(f"{directory}/{name}")
        # Lines of definitions were run when the module was imported.
        inside = inside_functions(f"{directory}/{name}")
        arcs = analysis.missing_branch_arcs()
        missing[name] = [f"{start}->{end}" for start, ends in sorted(arcs.items()) for end in ends if start in inside]
    return missing


def inside_functions(path: str) -> set[int]:
    """List the lines of a module that are indented twice."""
    with open(path, encoding="ascii") as file:
        return {number for number, line in enumerate(file, 1) if line.startswith("    ")}


def report(start: str) -> str:
    """Say which branches are not reached."""
    missing = branches(start)
    lines = [f"{name}: {' '.join(arcs)}" for name, arcs in missing.items() if arcs]
    return "\n".join([f"branches of the watch that {HISTORIES} more histories did not reach:", *(lines or ["none"])])
