# SPDX-License-Identifier: MIT
"""The command line of wsl-binfmt: arguments, exit status, messages; what it says of a system is in test_status.py."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import pytest

import kernel
import support
from wsl_binfmt import command, interop, restore, table
from wsl_binfmt.diagnosis import gather, problems

Captured = pytest.CaptureFixture[str]


class Decision:
    """What the generator says of this system."""

    elsewhere = ""
    interop = True

    def not_a_distro(self) -> str:
        """Say why this is no distro."""
        return self.elsewhere

    def settings(self) -> list[bool]:
        """Say what /etc/wsl.conf says."""
        return [True, self.interop]


@pytest.fixture
def wsl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> kernel.Table:
    """A distro in which nothing is wrong; paths that are looked at are in tmp_path."""
    memory = kernel.Table(monkeypatch)
    memory.add(kernel.WSL)
    for name in "register", "status", "init":
        (tmp_path / name).touch(0o755)
    monkeypatch.setattr(table, "DIRECTORY", str(tmp_path))
    monkeypatch.setattr(interop, "INIT", str(tmp_path / "init"))
    monkeypatch.setattr(interop, "RULE", f":{{}}:M::MZ::{tmp_path}/init:FP")
    monkeypatch.setattr(gather, "load_generator", Decision)
    monkeypatch.setattr(Decision, "elsewhere", "")
    monkeypatch.setattr(Decision, "interop", True)
    monkeypatch.setattr(restore, "switch_on", lambda: False)
    memory.entries.clear()
    memory.add(interop.rule("WSLInterop"))
    return memory


@pytest.mark.parametrize(
    "args",
    [
        [""],
        ["x"],
        ["--hel"],
        ["status", "--js"],
        ["--fail-on=note"],
        ["Restore"],
        ["restore", "x"],
        ["restore", ""],
        ["explain"],
        ["explain", "x"],
        ["status", "--from", "/dev/null"],
        ["status", "--from", "/nowhere"],
        ["status", "--from", "/dev/null", "x"],
        ["report", "x", "y"],
        ["watch", "x"],
    ],
)
def test_wrong(wsl: kernel.Table, capfd: Captured, args: list[str]) -> None:
    """Wrong arguments: what is wrong on stderr, exit status 2, and nothing is done."""
    wsl.entries.clear()
    assert command.run(args) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1].startswith("wsl-binfmt")
    assert wsl.writes == []


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(capfd: Captured, option: str) -> None:
    """The help has every subcommand, and lines no wider than a terminal."""
    assert command.run([option]) == 0
    said = capfd.readouterr()
    assert said.err == ""
    for action in "status", "explain", "report", "restore":
        assert re.search(rf"^ +{action} ", said.out, re.MULTILINE)
    # What only units run is not for people.
    assert not re.search("watch|leave", said.out)
    assert max(map(len, said.out.splitlines())) <= 80


def test_version(capfd: Captured) -> None:
    """The version is put in by the installation, from the one place that has it."""
    assert command.run(["--version"]) == 0
    said = capfd.readouterr()
    assert (said.out, said.err) == ("wsl-binfmt @VERSION@\n", "")
    assert "s/@VERSION@/" in (support.TREE / "Makefile").read_text()


@pytest.mark.usefixtures("wsl")
def test_nothing_wrong(capfd: Captured) -> None:
    """It says what it found right."""
    right = "WSLInterop is as WSL registers it, and no other entry takes Windows programs: nothing to do\n"
    for args in ["restore"], ["restore", "--dry-run"]:
        assert command.run(args) == 0
        assert capfd.readouterr() == (right, "")


def test_restored(wsl: kernel.Table, capfd: Captured) -> None:
    """What was wrong is said, once."""
    wsl.entries.clear()
    assert command.run(["restore", "-n"]) == 0
    assert capfd.readouterr() == ("WSLInterop is missing: would be restored\n", "")
    assert wsl.names == []
    assert command.run(["restore"]) == 0
    assert capfd.readouterr() == ("WSLInterop is missing: restored\n", "")
    assert wsl.names == ["WSLInterop"]


def test_not_for_us(wsl: kernel.Table, capfd: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, where Windows programs are not to start."""
    monkeypatch.setattr(Decision, "elsewhere", "a container, lxc")
    wsl.entries.clear()
    assert command.run(["restore"]) == 0
    assert capfd.readouterr().out == "a container, lxc: nothing to do\n"
    monkeypatch.setattr(Decision, "elsewhere", "")
    monkeypatch.setattr(Decision, "interop", False)
    assert command.run(["restore"]) == 0
    assert capfd.readouterr().out == "/etc/wsl.conf switches Windows programs off: nothing to do\n"
    assert wsl.writes == []


def test_a_rival(wsl: kernel.Table, capfd: Captured) -> None:
    """It comes behind WSLInterop; a temporary entry that was left is removed, and an entry for APE stays in front."""
    wsl.add(b":APE:M::MZqFpD::/bin/true:")
    wsl.add(interop.rule(interop.TEMPORARY))
    wsl.add(b":wine:M::MZ::/usr/bin/wine:")
    assert command.run(["restore", "-n"]) == 0
    assert capfd.readouterr().out == "wine outranks WSLInterop: would be restored\n"
    assert command.run(["restore"]) == 0
    assert capfd.readouterr().out == "wine outranks WSLInterop: restored\n"
    assert wsl.names == ["APE", "WSLInterop", "wine"]


def test_what_was_left(wsl: kernel.Table, capfd: Captured) -> None:
    """A temporary entry, and no watch."""
    wsl.add(interop.rule(interop.TEMPORARY))
    assert command.run(["restore", "-n"]) == 0
    assert command.run(["restore"]) == 0
    assert capfd.readouterr().out == (
        "a temporary entry was left behind: would be removed\na temporary entry was left behind: removed\n"
    )
    assert wsl.names == ["WSLInterop"]


def test_disabled(wsl: kernel.Table, capfd: Captured) -> None:
    """By hand, which is respected, also after a wipe."""
    wsl.entry("WSLInterop").enabled = False
    assert command.run(["restore"]) == 0
    assert "stays so: echo 1" in capfd.readouterr().out
    assert wsl.writes == []
    wsl.state = {"inode": 1, "disabled": True}
    wsl.entries.clear()
    assert command.run(["restore"]) == 0
    assert [entry.enabled for entry in wsl.entries] == [False]


def test_one_who_does_not_stop(wsl: kernel.Table, capfd: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program that undoes each repair is left alone after a while."""
    ticks = iter(range(10_000))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(ticks)))
    monkeypatch.setattr(time, "sleep", lambda _seconds: wsl.entries.clear())
    wsl.entries.clear()
    assert command.run(["restore"]) == 1
    assert "all the time" in capfd.readouterr().err


def test_switched_on(capfd: Captured, wsl: kernel.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole table; that is said."""
    monkeypatch.setattr(restore, "switch_on", lambda: True)
    assert command.run(["restore"]) == 0
    assert capfd.readouterr().out == "the whole table was switched off (echo 0 >status): switched on\n"
    assert wsl.writes == []


def test_not_mounted(wsl: kernel.Table, capfd: Captured, tmp_path: Path) -> None:
    """Without a table there is nothing to do."""
    (tmp_path / "register").unlink()
    wsl.entries.clear()
    assert command.run(["restore"]) == 0
    assert capfd.readouterr().out == f"{tmp_path} is not mounted: nothing to do\n"
    assert wsl.writes == []


def test_read_only(wsl: kernel.Table, capfd: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor with one that is read-only, as WSL 3 is reported to have it."""

    class ReadOnly:
        f_flag = os.ST_RDONLY

    monkeypatch.setattr(os, "statvfs", lambda _path: ReadOnly())
    wsl.entries.clear()
    assert command.run(["restore"]) == 0
    assert capfd.readouterr().out == f"{tmp_path} is read-only: nothing to do\n"
    assert wsl.writes == []


def test_no_init(wsl: kernel.Table, capfd: Captured, tmp_path: Path) -> None:
    """Without /init, there is nothing to register, and Windows programs do not start."""
    (tmp_path / "init").unlink()
    wsl.entries.clear()
    assert command.run(["restore"]) == 1
    assert "/init cannot be run" in capfd.readouterr().err
    assert wsl.writes == []


@pytest.mark.usefixtures("wsl")
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/t/register"), "run this as root"),
        (PermissionError(errno.EPERM, "Operation not permitted"), "run this as root"),
        (OSError(errno.EINVAL, "Invalid argument", "/t/register"), "/t/register: Invalid argument"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "Cannot allocate memory"),
    ],
)
def test_fails(capfd: Captured, monkeypatch: pytest.MonkeyPatch, error: OSError, message: str) -> None:
    """What fails is one line, and exit status 1."""

    def fail() -> NoReturn:
        raise error

    monkeypatch.setattr(table, "entries", fail)
    assert command.run(["restore"]) == 1
    said = capfd.readouterr()
    assert said.out == ""
    assert message in said.err
    assert said.err.startswith("wsl-binfmt: ")
    assert said.err.count("\n") == 1


def run(redirection: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a process, with a shell's redirection."""
    program = "from wsl_binfmt.command import main; main()"
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-B", "-c", program, *args],
        check=False,
        capture_output=True,
        text=True,
        timeout=support.TIMEOUT,
        env={"PYTHONPATH": str(support.GENERATOR.parent)},
    )


@pytest.mark.parametrize(
    ("redirection", "args", "status"),
    [
        ("", ["--version"], 0),
        ("", ["x"], 2),
        ("", [], 4),  # not installed
        ("", ["restore"], 4),
        (">/dev/full", ["--help"], 1),
        (">/dev/full", ["x"], 2),
        (">/dev/full", ["--list"], 1),
        ("", ["explain", "shadowed"], 0),
        ("", ["report", "-"], 4),
        ("2>&-", ["--version"], 0),
        (">&-", ["restore"], 4),
        (">&-", ["x"], 2),
        ("2>&-", ["x"], 2),
        ("2>/dev/full", ["x"], 2),
        ("2>/dev/full", ["restore"], 4),
    ],
)
@pytest.mark.skipif(Path(problems.GENERATOR).exists(), reason="it is installed on this machine")
def test_process(redirection: str, args: list[str], status: int) -> None:
    """Exit status, and never a traceback; channels that are closed or full change neither."""
    done = run(redirection, *args)
    assert "Traceback" not in done.stderr
    assert "unexpected" not in done.stderr
    assert done.returncode == status
    if args == ["x"]:
        assert done.stdout == ""
