# SPDX-License-Identifier: MIT
"""The simulation: no history of a fixed set breaks a promise, each fault is found, and a history repeats itself."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import histories
import planted
import reached
import simulate
import support
import syscalls

if TYPE_CHECKING:
    import pytest

HISTORIES = 1000
FAULT_MAX = 400  # histories within which a fault is found


def test_promises(capsys: pytest.CaptureFixture[str]) -> None:
    """What breaks one is shown by `make simulate SEED=check-...`."""
    broken, summary = simulate.run((f"check-{number}" for number in range(HISTORIES)), 600, 2)
    with capsys.disabled():
        print(f"\n{summary}")
    assert broken == []
    assert "never happened" not in summary


def find(fault: planted.Fault) -> str:
    """Plant a fault, and find it; returns the promise that it breaks."""
    planted.plant(fault)
    syscalls.install()
    seeds = (f"check-{number}" for number in range(FAULT_MAX))
    found = (histories.simulate(histories.draw(seed, fault.kinds)).broken for seed in seeds)
    return next(filter(None, found), "")


def test_faults() -> None:
    """Each breaks a promise."""
    with multiprocessing.Pool(2, maxtasksperchild=1) as pool:
        found = dict(zip(planted.FAULTS, pool.map(find, planted.FAULTS, 1)))
    assert [fault.name for fault, promise in found.items() if not promise] == []


def test_faults_are_what_breaks_promises() -> None:
    """The histories that find them break none without."""
    seeds = {(fault.kinds, f"check-{number}") for fault in planted.FAULTS if fault.kinds for number in range(20)}
    with multiprocessing.Pool(2, syscalls.install) as pool:
        assert [seed for seed, broken in pool.map(without_fault, sorted(seeds)) if broken] == []


def without_fault(drawn: tuple[tuple[str, ...], str]) -> tuple[str, str]:
    """Simulate a history of some kinds of events."""
    return f"{drawn[1]} {drawn[0]}", histories.simulate(histories.draw(drawn[1], drawn[0])).broken


def test_branches() -> None:
    """Nearly all of the watch is reached; what is not would be in the other tests."""
    with multiprocessing.Pool(1) as pool:
        missing = pool.apply(reached.branches, ("check", 100))
    assert sum(map(len, missing.values())) <= 12, missing


def test_replay() -> None:
    """A seed is all that a history depends on."""
    logs = []
    for order in "1", "2":
        environment = {
            **os.environ,
            "PYTHONHASHSEED": order,
            "PYTHONPATH": f"{support.TREE}/generator:{support.TREE}/tests",
        }
        command = [sys.executable, "-B", f"{support.TREE}/tests/simulation/simulate.py", "--whole", "--seed", "check-7"]
        logs.append(subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE).stdout)
    assert logs[0] == logs[1]
    assert logs[0].count(b"\n") > 100
