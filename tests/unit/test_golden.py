# SPDX-License-Identifier: MIT
"""Whole machines, one in each folder of tests/golden: what the generator reads there, and all that it writes.

A folder holds the files that are read, the generator's `environment`, and what
is to come of it: the tree `expected`, with a folder for each directory that
systemd gives to it, and `stderr`. One that is not there stands for a tree, or a
text, that is empty. `pytest --update-golden` writes both anew.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

import support

if TYPE_CHECKING:
    from pathlib import Path

MACHINES = sorted((support.TREE / "tests/golden").iterdir())
NOT_READ = {"environment", "expected", "stderr"}


def environment(machine: Path) -> dict[str, str]:
    """Variables of a machine's file `environment`, one NAME=VALUE in each line."""
    lines = (machine / "environment").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and line[0] != "#")


def set_expected(machine: Path, out: Path, stderr: str) -> None:
    """Write what came of a machine as what is to come of it."""
    shutil.rmtree(machine / "expected", ignore_errors=True)
    if any(out.iterdir()):
        shutil.copytree(out, machine / "expected", symlinks=True)
    (machine / "stderr").unlink(missing_ok=True)
    if stderr:
        (machine / "stderr").write_text(stderr)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_machine(machine: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Exactly the files that are expected, with exactly their content; nothing more, nowhere."""
    directories = [tmp_path / "out" / name for name in ("normal", "early", "late")]
    for directory in directories:
        directory.mkdir(parents=True)
    # What the machine expects is not there to be read.
    root = tmp_path / "root"
    shutil.copytree(machine, root, symlinks=True, ignore=lambda at, _: NOT_READ if at == str(machine) else set())
    before = support.tree(root)

    done = support.run(*directories, environment={"WSL_BINFMT_ROOT": str(root), **environment(machine)})

    assert (done.returncode, done.stdout) == (0, "")
    assert support.tree(root) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "root"]
    out = tmp_path / "out"
    for directory in directories:
        if not any(directory.iterdir()):  # git has no empty directories
            directory.rmdir()
    support.assert_modes(out)
    if request.config.getoption("update_golden"):
        set_expected(machine, out, done.stderr)
    expected = support.tree(machine / "expected")
    found = support.tree(out)
    assert sorted(found) == sorted(expected)
    assert found == expected
    stderr = machine / "stderr"
    assert done.stderr == (stderr.read_text() if stderr.exists() else "")


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_folder(machine: Path) -> None:
    """A folder is in order: numbered, with an environment, and its name says whether it is a distro."""
    number, _, name = machine.name.partition("-")
    assert number.isdigit()
    assert environment(machine)["PATH"]
    assert len([other for other in MACHINES if other.name.startswith(f"{number}-")]) == 1
    # A tree that was deleted by mistake, and one that an update added by mistake, are seen here.
    writes = name.startswith("wsl-") and name != "wsl-protect-off"
    assert (machine / "expected").is_dir() == writes
    written = support.tree(machine / "expected")
    assert "/" not in written.values(), "git has no empty directories"
    assert (f"normal/{support.GUARD}" in written) == writes


def test_all_machines() -> None:
    """None has been lost."""
    assert len(MACHINES) >= 20
