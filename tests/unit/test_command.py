# SPDX-License-Identifier: MIT
"""The command line of wsl-binfmt: arguments, exit status, messages."""

from __future__ import annotations

import errno
import os
import posix
import re
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

import kernel
import support
from wsl_binfmt import binfmt_d, command, interop, table

BY_SYSTEMD = {b"INVOCATION_ID": b"0" * 32}
BY_HAND: dict[bytes, bytes] = {}
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def wsl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> kernel.Table:
    """A distro in which nothing is wrong; paths that are looked at are in tmp_path."""
    formats = kernel.Table(monkeypatch)
    formats.add(kernel.WSL)
    for name in "register", "status", "init", "decision":
        (tmp_path / name).touch(0o755)
    monkeypatch.setattr(table, "DIRECTORY", str(tmp_path))
    monkeypatch.setattr(command, "INIT", str(tmp_path / "init"))
    monkeypatch.setattr(command, "DECISION", str(tmp_path / "decision"))
    return formats


@pytest.mark.parametrize(
    "args",
    [
        [],
        [""],
        ["x"],
        ["-v"],
        ["--hel"],
        ["Restore"],
        ["restore", "x"],
        ["restore", ""],
        ["hold", "hold"],
        ["--help", "restore"],
    ],
)
@pytest.mark.parametrize("environ", [BY_HAND, BY_SYSTEMD])
def test_wrong(wsl: kernel.Table, capfd: Captured, args: list[str], environ: dict[bytes, bytes]) -> None:
    """Wrong arguments: usage on stderr, exit status 2, and nothing is done."""
    wsl.formats.clear()
    assert command.run(args, environ) == 2
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", command.USAGE + "\n")
    assert wsl.writes == []


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(capfd: Captured, option: str) -> None:
    """The help has the usage, every subcommand, and lines no wider than a terminal."""
    assert command.run([option], BY_HAND) == 0
    said = capfd.readouterr()
    assert said.err == ""
    assert said.out.startswith(command.USAGE + "\n\n")
    for action in command.ACTIONS:
        assert re.search(rf"^  {action} ", said.out, re.MULTILINE)
        assert action in command.USAGE
    assert max(map(len, said.out.splitlines())) <= 80


def test_version(capfd: Captured) -> None:
    """The version is put in by the installation, from the one place that has it."""
    assert command.run(["--version"], BY_HAND) == 0
    said = capfd.readouterr()
    assert (said.out, said.err) == ("wsl-binfmt @VERSION@\n", "")
    assert "s/@VERSION@/" in (support.TREE / "Makefile").read_text()


@pytest.mark.parametrize("environ", [BY_HAND, BY_SYSTEMD])
@pytest.mark.usefixtures("wsl")
def test_nothing_wrong(capfd: Captured, environ: dict[bytes, bytes]) -> None:
    """Nothing wrong, nothing said."""
    assert command.run(["restore"], environ) == 0
    assert capfd.readouterr() == ("", "")


def test_restored(wsl: kernel.Table, capfd: Captured) -> None:
    """What was wrong is said, once."""
    wsl.formats.clear()
    assert command.run(["restore"], BY_SYSTEMD) == 0
    assert capfd.readouterr() == ("", "wsl-binfmt: WSLInterop is missing: restored\n")
    assert table.names() == ["WSLInterop"]


def test_not_for_us(wsl: kernel.Table, capfd: Captured, tmp_path: Path) -> None:
    """By hand, in a distro that is not to be protected; systemd is not asked, it has decided."""
    (tmp_path / "decision").unlink()
    wsl.formats.clear()
    assert command.run(["restore"], BY_HAND) == 0
    said = capfd.readouterr()
    assert said.err == "wsl-binfmt: not a WSL distro, or switched off in /etc/wsl.conf: nothing to do\n"
    assert wsl.writes == []
    assert command.run(["restore"], BY_SYSTEMD) == 0
    assert wsl.writes


def test_not_mounted(wsl: kernel.Table, capfd: Captured, tmp_path: Path) -> None:
    """Without a table there is nothing to do."""
    (tmp_path / "register").unlink()
    wsl.formats.clear()
    assert command.run(["restore"], BY_SYSTEMD) == 0
    assert capfd.readouterr().err == f"wsl-binfmt: {tmp_path} is not mounted: nothing to do\n"
    assert wsl.writes == []


def test_read_only(wsl: kernel.Table, capfd: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor with one that is read-only, as WSL 3 is reported to have it."""

    class ReadOnly:
        f_flag = os.ST_RDONLY

    monkeypatch.setattr(posix, "statvfs", lambda _path: ReadOnly())
    wsl.formats.clear()
    assert command.run(["restore"], BY_SYSTEMD) == 0
    assert capfd.readouterr().err == f"wsl-binfmt: {tmp_path} is read-only: nothing to do\n"
    assert wsl.writes == []


def test_no_init(wsl: kernel.Table, capfd: Captured, tmp_path: Path) -> None:
    """Without /init, there is nothing to register, and Windows programs do not start."""
    (tmp_path / "init").unlink()
    wsl.formats.clear()
    assert command.run(["restore"], BY_SYSTEMD) == 1
    assert f"{tmp_path}/init cannot be run" in capfd.readouterr().err
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

    def fail(_sight: interop.Sight) -> NoReturn:
        raise error

    monkeypatch.setattr(interop, "restore", fail)
    assert command.run(["restore"], BY_SYSTEMD) == 1
    said = capfd.readouterr()
    assert said.out == ""
    assert message in said.err
    assert said.err.startswith("wsl-binfmt: ")
    assert said.err.count("\n") == 1


def test_hold(wsl: kernel.Table, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`hold` leaves the stand-in, `restore` removes it."""
    monkeypatch.setattr(binfmt_d, "ROOT", str(tmp_path / "none"))
    assert command.run(["hold"], BY_SYSTEMD) == 0
    assert table.names() == [interop.stand_in(), "WSLInterop"]
    assert command.run(["restore"], BY_SYSTEMD) == 0
    assert table.names() == ["WSLInterop"]
    assert wsl.get("WSLInterop").enabled


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
        ("", [], 2),
        ("", ["restore"], 0),  # by hand, where the generator decided nothing
        (">/dev/full", ["--help"], 1),
        (">/dev/full", [], 2),
        ("2>&-", ["--version"], 0),
        (">&-", ["restore"], 0),
        (">&-", [], 2),
        ("2>&-", [], 2),
        ("2>/dev/full", [], 2),
        ("2>/dev/full", ["restore"], 0),
    ],
)
@pytest.mark.skipif(Path(command.DECISION).exists(), reason="this machine is a WSL distro, that is protected")
def test_process(redirection: str, args: list[str], status: int) -> None:
    """Exit status, and never a traceback; channels that are closed or full change neither."""
    done = run(redirection, *args)
    assert "Traceback" not in done.stderr
    assert "unexpected" not in done.stderr
    assert done.returncode == status
    if args == []:
        assert done.stdout == ""
