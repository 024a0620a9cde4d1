# SPDX-License-Identifier: MIT
"""Whatever call fails, and wherever a program is killed: see faults.py, of which this runs a part."""

from __future__ import annotations

import pytest

import faults

pytestmark = pytest.mark.system


class Report:
    """What was wrong."""

    def __init__(self) -> None:
        self.wrong: list[str] = []

    def __call__(self, program: str, fault: faults.Fault, wrong: str) -> None:
        """Take what faults.py tells."""
        if wrong:
            self.wrong.append(f"{program}, {fault.option}: {wrong}")


def test_generator() -> None:
    report = Report()
    assert faults.generator_faults(report) > 100
    assert report.wrong == []


@pytest.mark.parametrize("name", faults.COMMANDS)
def test_command(name: str) -> None:
    report = Report()
    assert faults.command_faults(name, report, every=31) > 5
    assert report.wrong == []
