# SPDX-License-Identifier: MIT
"""The answer for each recorded machine. A new folder below tests/machines is a new test."""

from __future__ import annotations

import re

import pytest

import machines
from wsl_binfmt.diagnosis import conclude
from wsl_binfmt.diagnosis import machine as m


@pytest.mark.parametrize("name", machines.NAMES)
def test_answer(name: str, request: pytest.FixtureRequest) -> None:
    """The whole text, and the exit status."""
    folder = machines.MACHINES / name
    said = machines.answer(machines.load(name))
    if request.config.getoption("--update-golden"):
        (folder / "expected").write_text(said)
    assert said == (folder / "expected").read_text()
    assert (folder / "description").read_text().strip()


def test_every_problem_has_a_machine() -> None:
    """Each problem is shown by a machine, so that its text has been read."""
    shown = set()
    for name in machines.NAMES:
        shown |= set(
            re.findall(
                r"^(?:error|warning|note): .* \[(.*)\]$",
                (machines.MACHINES / name / "expected").read_text(),
                re.MULTILINE,
            )
        )
    assert shown == set(conclude.CATALOGUE)


@pytest.mark.parametrize("name", machines.NAMES)
def test_what_does_not_start_has_a_reason(name: str) -> None:
    """Each "no" has an error or is switched off by choice, each "could not tell" says why; no "yes" has an error."""
    found = conclude.conclude(machines.load(name))
    severities = [problem.severity for problem in found.problems]
    if found.works is False:
        assert "error" in severities or "interop-off" in found.ids
    if found.works:
        assert "error" not in severities
    if found.works is None and not found.is_elsewhere:
        assert found.not_checked or found.launch or any(problem.works is None for problem in found.problems)
    if name.startswith("healthy-"):
        assert (found.works, found.problems, found.not_checked) == (True, [], [])


@pytest.mark.parametrize("name", machines.NAMES)
def test_it_is_written_as_it_was_read(name: str) -> None:
    """JSON, machine, JSON."""
    machine = machines.load(name)
    assert m.from_plain(m.to_plain(machine)) == machine
