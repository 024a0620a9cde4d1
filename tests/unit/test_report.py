# SPDX-License-Identifier: MIT
"""A report of this machine: it has no names of anybody, and gives the same answer when it is read."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

import machines
import support
from wsl_binfmt import command
from wsl_binfmt.diagnosis import anonymous, conclude, gather
from wsl_binfmt.diagnosis import machine as m

if TYPE_CHECKING:
    from pathlib import Path

USERS = """\
root:x:0:0::/root:
alice:x:1000:1000:Alice Liddell:/home/alice:
bin:x:1001:1001::/data/people/bob:
dinah:x:1002:1002::/mnt/c/Users/Alice L:
"""


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with users and a name."""
    monkeypatch.setattr(anonymous, "read", {"/etc/passwd": USERS, "/etc/hostname": "liddell-pc.example\n"}.get)
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "liddell-pc", "6.6", "1", "x86_64")))
    for name, value in {"USER": "alice", "HOME": "/home/alice", "WSL_DISTRO_NAME": "Wonderland"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/alice/x.exe", "/home/USER/x.exe"),
        ("/home/carol/x.exe", "/home/USER/x.exe"),
        ("/mnt/c/Users/Alice Liddell/AppData", "/mnt/c/Users/USER/AppData"),
        ("C:\\Users\\Liddell\\x", "C:\\Users\\USER\\x"),
        ("aname=drvfs;path=UNC\\fs01.corp\\secret plans;uid=1000", "aname=drvfs;path=UNC\\SERVER\\SHARE;uid=1000"),
        (r"\\fs01\tools\x.exe", r"\\SERVER\SHARE\x.exe"),
        (r"\\wsl.localhost\Debian\x.exe", r"\\wsl.localhost\Debian\x.exe"),
        ("/data/people/bob/bin", "/home/USER/bin"),
        ("/mnt/c/Users/Alice L/bin", "/mnt/c/Users/USER/bin"),
        ("alice started it on liddell-pc", "USER started it on HOST"),
        ("liddell-pc.example", "HOST"),
        ("the distro Wonderland", "the distro DISTRO"),
        ("/usr/bin/true", "/usr/bin/true"),
        ("malice", "malice"),
        ("/root/.cache", "/root/.cache"),
    ],
)
def test_names(text: str, expected: str) -> None:
    """Of users, homes, hosts and the distro; nothing else is changed."""
    assert anonymous.anonymous({"a": [text, 5, None], "alice": 1}) == {"a": [expected, 5, None], "alice": 1}


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (b"#!/home/alice/bin/python\n", b"#!/home/USER/bin/python\n"),
        (b"MZ alice", b"MZ alice"),
        (b"\x7fELF alice", b"\x7fELF alice"),
        (b"\xff alice", b"\xff USER"),
    ],
)
def test_names_in_a_script(start: bytes, expected: bytes) -> None:
    """The beginning of a file is text in hexadecimal digits, unless it is a program."""
    assert anonymous.anonymous({"start": start.hex()}) == {"start": expected.hex()}


@pytest.mark.parametrize(
    "name", ["active", "masked", "there", "gone", "4d5a", "PF", "ro", "boot", "generator", "late", "c", "1000"]
)
def test_a_name_that_is_a_word(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The answer is the same without the name of a user that the kernel, systemd or this package has as well."""
    passwd = f"{name}:x:1000:1000::/home/{name}:\n"
    monkeypatch.setattr(anonymous, "read", {"/etc/passwd": passwd, "/etc/hostname": f"{name}\n"}.get)
    for known in "wine", "table-read-only", "config-misspelt", "table-not-mounted", "masked-watch", "fmask":
        plain = machines.plain(known)
        found = conclude.conclude(m.from_plain(anonymous.anonymous(plain)))
        assert found.ids == conclude.conclude(m.from_plain(plain)).ids


@pytest.fixture
def this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tree's own generator; the command is not installed."""
    monkeypatch.setattr(gather, "GENERATOR", str(support.GENERATOR))


def run(capfd: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    """Run the command; returns its exit status and what it said."""
    status = command.run(list(args))
    return status, capfd.readouterr().out


@pytest.mark.usefixtures("this_machine")
def test_a_report(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """It is written once, says what it has, and gives the answer that this machine gives."""
    path = str(tmp_path / "report.json")
    status, said = run(capfd, "report", path)
    assert status == 0
    assert path in said
    assert "Names of users" in said
    assert run(capfd, "report", path)[0] == 1
    assert run(capfd, "status", "--from", path) == run(capfd)
    machine = m.from_plain(json.loads((tmp_path / "report.json").read_text()))
    assert machine.system.native.startswith("7f454c46")
    assert json.loads(run(capfd, "report", "-")[1])["version"] == m.VERSION


@pytest.mark.usefixtures("this_machine")
def test_a_report_of_another_machine(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """It is answered for anywhere, as text and as JSON; with its program."""
    path = tmp_path / "machine.json"
    for name in "wine", "arm64-skipped", "launch-accept4":
        path.write_text(json.dumps(machines.plain(name)))
        expected = (machines.MACHINES / name / "expected").read_text()
        status, said = run(capfd, "status", "--from", str(path))
        assert said.split(" since ")[0] == expected.split(" since ")[0]
        assert f"[exit status {status}]" in expected
        answer: Any = json.loads(run(capfd, "status", "--json", "--from", str(path))[1])
        assert answer["version"] == 1
        assert answer["works"] is False
        assert all(each["id"] in expected for each in answer["problems"])


@pytest.mark.usefixtures("this_machine")
def test_a_report_that_cannot_be_printed(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is longer than what Python holds back, and is not what changes the table."""
    with contextlib.suppress(OSError), open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert command.run(["report", "-"]) == 1
    assert capfd.readouterr().err == "wsl-binfmt: cannot write to standard output: No space left on device\n"


def test_a_report_from_windows(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """An editor of Windows has put a byte order mark before it."""
    (tmp_path / "x").write_text(json.dumps(machines.plain("wine")), encoding="utf-8-sig")
    assert run(capfd, "status", "--from", str(tmp_path / "x"))[0] == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 9}', '{"x": 1}', "[" * 100_000, '"\\ud800"'])
def test_what_is_no_report(capfd: pytest.CaptureFixture[str], tmp_path: Path, text: str) -> None:
    """One line, and exit status 2."""
    (tmp_path / "x").write_text(text)
    assert command.run(["status", "--from", str(tmp_path / "x")]) == 2
    said = capfd.readouterr().err
    assert said.startswith("wsl-binfmt: ")
    assert said.count("\n") == 1
