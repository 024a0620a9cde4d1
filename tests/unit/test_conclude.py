# SPDX-License-Identifier: MIT
"""Concluding and telling, where a recorded machine would show no more: what is hostile, odd, or true of all."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import machines
from wsl_binfmt import table
from wsl_binfmt.diagnosis import about_settings, conclude, launch, problems, tell
from wsl_binfmt.diagnosis import machine as m

BASE = "healthy-wsl-2.6"
WSL = {"name": "WSLInterop", "interpreter": "/init", "flags": "PF", "magic": "4d5a"}


def healthy(**changes: Any) -> m.Machine:
    """A machine in which nothing is wrong, but for changes as a merge patch."""
    return machines.load(BASE, **changes)


def with_entries(*entries: dict[str, Any]) -> m.Machine:
    """A machine with these entries."""
    return healthy(table={"entries": list(entries)})


@pytest.mark.parametrize(
    ("rival", "works", "names"),
    [
        ({"magic": "4d5a"}, False, True),
        ({"magic": "4d5a90"}, False, True),
        ({"magic": "4d5a91"}, True, False),  # more specific, as APE's is
        ({"magic": "4d5affff", "mask": "ffff0000"}, False, True),
        ({"magic": "50450000", "offset": 128}, False, True),  # whatever begins with MZ may match
        ({"extension": "exe"}, False, True),
        ({"extension": "dll"}, True, False),
        ({"magic": "4d5a", "enabled": False}, True, False),
        ({"magic": "7f454c46"}, True, False),
        ({}, True, False),  # not understood
        ({"magic": "4d5a", "interpreter": "/init"}, False, False),  # lacks P
        ({"magic": "4d5a", "interpreter": "/init", "flags": "P"}, True, False),
    ],
)
def test_rivals(rival: dict[str, Any], works: bool, names: bool) -> None:
    """An entry that takes ordinary Windows programs, if it is newer."""
    entry = {"name": "rival", "interpreter": "/w", **rival}
    found = conclude.conclude(with_entries(entry, WSL))
    assert found.works is works
    assert ("shadowed" in found.ids) is names
    assert conclude.conclude(with_entries(WSL, entry)).works


def test_ids_are_words() -> None:
    """Programs depend on them."""
    assert all(re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", name) for name in conclude.CATALOGUE)
    listed = tell.list_problems().splitlines()
    assert [line.split()[0] for line in listed] == list(conclude.CATALOGUE)


@pytest.mark.parametrize("name", list(conclude.CATALOGUE))
def test_explanations(name: str) -> None:
    """Each says more than its meaning, in lines that fit a terminal."""
    each = conclude.CATALOGUE[name]
    assert each.meaning.endswith(".")
    assert each.explanation.endswith(".")
    assert len(each.explanation) > 60
    assert max(map(len, tell.explain(name).splitlines())) <= 100


def test_the_most_harmful_comes_first() -> None:
    """By severity, then in the order of the list."""
    machine = healthy(
        table={"entries": []},
        protection={"masked_by": {"path": "/etc/x"}},
        conf={"state": "there", "settings": [{"line": 1, "name": "boot.systmd", "value": ""}]},
    )
    assert conclude.conclude(machine).ids == ["not-registered", "generator-masked", "config-unused"]


def test_a_check_that_fails_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether that problem is there could not be told; so nothing is said to be right."""

    def fail(_machine: m.Machine) -> Any:
        raise ZeroDivisionError("x")

    broken = conclude.CATALOGUE["shadowed"]._replace(check=fail)
    monkeypatch.setitem(conclude.CATALOGUE, "shadowed", broken)
    found = conclude.conclude(healthy())
    assert found.works is None
    assert found.exit_status() == conclude.UNKNOWN
    assert found.not_checked == [
        "whether there is the problem shadowed: unexpected ZeroDivisionError, please report it: x"
    ]


def test_nothing_is_known() -> None:
    """An empty report gives an answer, too."""
    found = conclude.conclude(m.from_plain({"version": 1}))
    assert found.works is None
    assert found.exit_status() == conclude.UNKNOWN
    assert tell.as_text(m.Machine(), found, tell.Paint())


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ([], "the machine is"),
        ({"version": 2}, "of version 2"),
        ({"system": {"release": 5}}, "the machine.system.release is 5"),
        ({"table": {"entries": [{"name": "x"}, 7]}}, r"the machine.table.entries\[1\] is 7"),
        ({"surprise": 1}, "the machine has no surprise"),
        ({"protection": {"units": []}}, "the machine.protection.units is"),
        ({"system": {"has_systemd": 1}}, "the machine.system.has_systemd is 1"),
        ({"system": {"native": "x"}}, "hexadecimal"),
        ({"table": {"entries": [{"magic": "4d5"}]}}, "hexadecimal"),
        ({"program": {"start": "4d 5g"}}, "hexadecimal"),
        ({"system": {"native": "4d5"}, "program": {"start": "a"}}, "hexadecimal"),
        ({"table": {"entries": [{"magic": "4d5a", "mask": "ff"}]}}, "not of the same length"),
        ({"table": {"entries": [{"since": float("nan")}]}}, "since is nan"),
        ({"protection": {"watch": {"since": 1e18}}}, r"since is 1e\+18"),
        ({"system": {"started": 10**400}}, "started is 1000"),
        ({"session": {"uid": -(10**30)}}, "uid is -1000"),
        ({"launch": {"errno": 2**31}}, "errno is 2147483648"),
    ],
)
def test_what_is_no_report(plain: Any, message: str) -> None:
    """It is said what is wrong, and where."""
    with pytest.raises(ValueError, match=message):
        m.from_plain(plain)


@given(st.text())
def test_safe(text: str) -> None:
    """Nothing reaches the terminal that it would obey, and nothing that is endless."""
    said = tell.safe(text)
    assert all(character.isprintable() for character in said)
    assert len(said) < tell.TEXT_MAX + 40


@given(st.text(), st.text())
def test_hostile_names(name: str, interpreter: str) -> None:
    """Whatever an entry is called, the text is harmless and the JSON valid, in any locale."""
    entry = m.Entry(name, interpreter=interpreter, flags="\udcff", magic="4d5a")
    base = healthy()
    machine = base._replace(
        table=base.table._replace(entries=[entry, *(base.table.entries or [])]),
        protection=base.protection._replace(units={name: m.Unit(fragment=interpreter)}),
    )
    found = conclude.conclude(machine)
    assert all(line.isprintable() for line in tell.as_text(machine, found, tell.Paint(), verbose=True).splitlines())
    assert json.loads(json.dumps(tell.as_plain(machine, found)).encode("ascii"))


def test_a_hostile_state() -> None:
    """What the kernel said of a directory is not sent to the terminal as it is either."""
    machine = healthy(session={"wsl_interop": "", "run_wsl": "\033[2J"})
    assert "\033" not in tell.as_text(machine, conclude.conclude(machine), tell.Paint())


def test_a_huge_entry() -> None:
    """64 KiB are not all shown."""
    machine = with_entries({"name": "big", "interpreter": "/" + "x" * 65536, "magic": "4d5a"}, WSL)
    text = tell.as_text(machine, conclude.conclude(machine), tell.Paint())
    assert max(map(len, text.splitlines())) < 2 * tell.TEXT_MAX


def test_many_settings() -> None:
    """What is shown of a hostile file is little."""
    settings = [{"line": line, "name": "boot.systmd", "value": ""} for line in range(10_000)]
    found = conclude.conclude(healthy(conf={"state": "there", "settings": settings}))
    assert 0 < len(found.problems) <= problems.SHOWN_MAX


def test_colours() -> None:
    """They are for terminals only, and apart from symbols."""
    machine = with_entries()
    found = conclude.conclude(machine)
    assert "\033" not in tell.as_text(machine, found, tell.Paint(symbols=True))
    text = tell.as_text(machine, found, tell.Paint(symbols=True, colours=True))
    assert "\033[31m✗ Windows programs do not start here.\033[0m" in text
    plain = tell.as_text(machine, found, tell.Paint())
    assert plain.isascii()
    assert "error: WSLInterop is missing. [not-registered]" in plain


def test_fixes_can_be_pasted() -> None:
    """A name is quoted for the shell; what cannot be shown as it is gives no command."""

    def fix(name: str) -> str | None:
        (found,) = conclude.conclude(with_entries({**WSL, "name": name}, WSL)).problems
        return found.fix

    assert fix("x;$(touch y)") == f"echo -1 | sudo tee '{table.DIRECTORY}/x;$(touch y)'"
    assert fix("it's") == f"""echo -1 | sudo tee '{table.DIRECTORY}/it'"'"'s'"""
    for name in "x\033[2J", "x" * 450, "x\udcff":
        assert fix(name) is None


def test_where_nothing_can_be_changed() -> None:
    """A command that would do nothing is not given."""
    found = conclude.conclude(healthy(table={"entries": [], "mount": {"options": ["ro"]}}))
    assert [(each.id, each.fix) for each in found.problems] == [("not-registered", None), ("table-read-only", None)]


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("boot.systemd", "true", ""),
        ("boot.systemd", "TRUE", ""),
        ("boot.systemd", "1", ""),
        ("boot.systemd", "yes", "neither true nor false but 'yes'"),
        ("boot.command", "anything", ""),
        ("boot.protectbinfmts", "false", "boot.protectbinfmt may be meant"),
        ("boot.protcetbinfmt", "false", "boot.protectbinfmt may be meant"),
        ("interopt.enabled", "false", "interop.enabled may be meant"),
        ("wsl2.memory", "4GB", ".wslconfig"),
        (".systemd", "true", "boot.systemd may be meant"),
        # These may be of a later WSL.
        ("quite.different", "", ""),
        ("boot.initcommand", "", ""),
        ("gpu.memory", "", ""),
        ("x" * 10_000, "", ""),
    ],
)
def test_settings_that_wsl_does_not_know(name: str, value: str, part: str) -> None:
    """Only what looks like a known one misspelt is named."""
    wrong, _ = about_settings.unused(m.Setting(1, name, value))
    assert part in wrong
    assert bool(wrong) == bool(part)


@pytest.mark.parametrize(
    ("said", "part"),
    [
        ("<3>WSL (12 - Relay) ERROR: UtilAcceptVsock:271: accept4 failed 110", "did not call back"),
        ("<3>WSL (12) ERROR: UtilConnectUnix:530: connect failed 111", "Nothing listens"),
        ("<3>init: (12) ERROR: UtilConnectToInteropServer:307: connect failed 2", "Nothing listens"),
        ("<3>WSL (12) ERROR: UtilBindVsockAnyPort:307: socket failed 1", "hv_sock"),
        (
            "<3>WSL (12 - ) ERROR: filesystem error: cannot get current path: No such file or directory",
            "current directory",
        ),
        ("<3>WSL (12) ERROR: CreateProcessEntryCommon:334: getpwuid(0) failed 2", "/etc/passwd"),
        ("<3>WSL (12 - Relay) ERROR: CreateProcessCommon:640: execvpe(/bin/zsh) failed 2", "shell in /etc/passwd"),
        ("<3>WSL (12) ERROR: CreateProcessParseCommon:711: Failed to translate C:\\x", "Windows path"),
        ("<3>WSL (12) ERROR: SomethingNew:1: failed 7", "errno(3)"),
        ("/mnt/c/x.exe: Invalid argument", "default user"),
        ("/mnt/c/x.exe: Permission denied", "AppLocker"),
        ("/mnt/c/x.exe: No such device", "gives that as the reason"),
        ("/mnt/c/x.exe: I/O error", "could not read it"),
        ("x.exe: Out of memory", "gives that as the reason"),
    ],
)
def test_messages(said: str, part: str) -> None:
    """All forms, old and new, are recorded and explained; what the program itself says is neither."""
    assert launch._may_be_of_init("/mnt/c/x.exe", f"{said}\r")
    assert part in launch.explain("/mnt/c/x.exe", said)


@pytest.mark.parametrize("said", ["", "ERROR: x", "<3>WSL ERROR: x", "/mnt/c/y.exe: Invalid argument", "x.exe: done"])
def test_what_a_program_says_itself(said: str) -> None:
    """Is not taken for a message of /init's, and not recorded."""
    assert not launch._may_be_of_init("/mnt/c/x.exe", said)


ON_DRIVE: dict[str, object] = {"path": "/mnt/c", "mount": {"target": "/mnt/c", "kind": "9p"}}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"session": {"cwd": ON_DRIVE}}, True),
        ({"session": {"cwd": ON_DRIVE}, "program": {"place": ON_DRIVE}}, False),
        ({"session": {"cwd": ON_DRIVE}, "program": None}, False),
        ({"program": None}, True),
        ({"launch": {"program": "./app.exe", "status": 0}}, False),
        ({"conf": {"changed": 1999999999.0}}, False),
    ],
)
def test_no_file_server(changes: dict[str, object], expected: bool) -> None:
    """It concerns the program and the current directory, where they are in the Linux file system."""
    found = conclude.conclude(machines.load("no-file-server", **changes))
    assert ("no-file-server" in found.ids) is expected
