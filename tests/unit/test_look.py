# SPDX-License-Identifier: MIT
"""The watch through its one entry: a look at a table, with a clock, makes writes and says when it looks again."""

from __future__ import annotations

import errno
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

import kernel
import world
from wsl_binfmt import command, interop, own, rules, table, watch

if TYPE_CHECKING:
    from pathlib import Path

WSL, APE = world.WSL, world.APE
WINE = b":wine:M::MZ::/usr/bin/wine:"
QEMU = b":qemu-arm:M::\\x7fELF\\x01:\\xff\\xff\\xff\\xff\\xff:/usr/bin/qemu-arm:F"
TEMPORARY = interop.rule(interop.TEMPORARY)
REPLACED = [
    ("register", TEMPORARY), ("WSLInterop", b"-1"), ("register", WSL), (interop.TEMPORARY, b"-1"),
]  # fmt: skip
PATIENCE, QUIET = interop.PATIENCE, own.QUIET


class Distro(kernel.Table):
    """A distro over a table, and its watch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
        """Begin with WSLInterop alone."""
        super().__init__(monkeypatch)
        self._directory = directory
        self.told: list[str] = []
        self.has_failed = False
        programs = {"/init", b"/init", b"/usr/bin/ape"}
        monkeypatch.setattr("posix.access", lambda path, _mode: path in programs)
        self.programs = programs
        monkeypatch.setattr(rules, "BINFMT_D", (str(directory),))
        monkeypatch.setattr(rules, "UPDATE_BINFMTS", str(directory / "none"))
        monkeypatch.setattr(own, "UNITS", str(directory))
        monkeypatch.setattr(own, "_has_failed", lambda _service: self.has_failed)
        self.add(WSL)
        self.start_watch()

    def start_watch(self) -> None:
        """Start a watch; one before has been killed."""
        self._watch = watch.Watch(lambda message, **_: self.told.append(message))

    def look(self, seconds: float = 0.0, **what: bool) -> tuple[list[tuple[str, bytes]], float]:
        """Look, some seconds later; returns the writes, and in how many seconds it looks again, 0 for never."""
        self.now += seconds
        self.writes.clear()
        due = self._watch.look(**what)
        return [*self.writes], round(due - self.now, 3) if due else 0.0

    def settle(self) -> None:
        """Look until nothing is due."""
        due = self._watch.look()
        while due:
            self.now = max(due, self.now)
            due = self._watch.look(changed=False)
        self.writes.clear()

    def rule(self, rule: bytes | None, *, starts: bool = True) -> None:
        """Have one rule in binfmt.d, or none; and the service started anew with it."""
        (self._directory / "a.conf").write_bytes(rule or b"")
        link = self._directory / f"invocation:{rules.SYSTEMD_BINFMT}"
        link.unlink(missing_ok=True)
        if starts:
            link.symlink_to(str(self.now))

    def rule_of_update_binfmts(self, name: str, text: bytes) -> None:
        """Have a rule of update-binfmts(8), and binfmt-support.service started."""
        (self._directory / "none").mkdir()
        (self._directory / "none" / name).write_bytes(text)
        (self._directory / f"invocation:{rules.BINFMT_SUPPORT}").symlink_to("1")

    def wins(self, start: bytes, extension: bytes = b"") -> str:
        """Tell which entry handles a file."""
        return str(self.handler(start, extension))


@pytest.fixture
def distro(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Distro:
    """A distro whose watch has looked."""
    made = Distro(monkeypatch, tmp_path)
    made.settle()
    return made


ORDINARY = sorted({start for start, _ in world.PROGRAMS})


@pytest.mark.parametrize(
    ("rule", "is_rival"),
    [
        (WINE, True),
        (b":x:M::MZ\\x90\\x00::/usr/bin/x:", True),
        (b":x:M::MZP::/usr/bin/x:", True),
        (b":x:M::M::/usr/bin/x:", True),
        (b":x:M:1:Z::/usr/bin/x:", True),
        (b":x:M::mz:\\xdf\\xdf:/usr/bin/x:", True),
        (b":x:M::xy:\\x00\\x00:/usr/bin/x:", True),
        (b":cli:M:128:PE\\x00\\x00::/usr/bin/cli:", True),
        (b":x:E::exe::/usr/bin/x:", True),
        (b":x:E::EXE::/usr/bin/x:", True),
        (b":x:M::MZ::/init:", True),  # neither F nor P
        (b":x:M::MZ::/init:P", True),
        (b":WSLInterop-late:M::MZ::/init:P", True),
        (b":x:M::MZ::/init:FP", False),
        (APE, False),
        (b":x:M::MZq::/usr/bin/x:", False),
        (b":x:M::\\x7fELF::/usr/bin/x:", False),
        (b":x:M:2:\\x7fELF::/usr/bin/x:", False),
        (b":x:M::mz:\\xff\\xdf:/usr/bin/x:", False),
        (b":x:E::com::/usr/bin/x:", False),
        (interop.PLACEHOLDER.replace(b"WSLInterop", b"x"), False),
    ],
)
def test_rivals(distro: Distro, rule: bytes, is_rival: bool) -> None:
    """What would take ordinary Windows programs is outranked, without a gap; what takes others stays in front."""
    distro.add(APE.replace(b"APE", b"before"))
    distro.settle()
    distro.add(rule)
    writes, due = distro.look()
    name = rule.split(b":")[1].decode()
    again = [("before", b"-1"), ("register", APE.replace(b"APE", b"before").replace(b":M::", b":M:0:"))]
    assert writes == ([*REPLACED[:3], *again, REPLACED[3]] if is_rival else [])
    assert due == (0.0 if is_rival else QUIET)
    assert all(distro.wins(start) == "WSLInterop" or not is_rival for start in ORDINARY)
    assert distro.wins(b"MZqFpD") in ("before", name)
    assert (distro.names.index("WSLInterop") < distro.names.index(name)) is is_rival
    distro.settle()
    assert distro.look(changed=False) == ([], 0.0)
    assert distro.told == ([f"{name} outranks WSLInterop: restored"] if is_rival else [])


class Bpf(world.Entry):
    """An entry of kind B, as Linux 7.3 has them."""

    text = b"enabled\nbpf x\nbpf-interpreter 1 /x\n"


def test_rival_that_takes_none(distro: Distro) -> None:
    """An entry that is disabled, or that is not understood as one of kind B, is no rival."""
    distro.add(WINE, enabled=False)
    distro.add(b":bpf:E::exe::/usr/bin/x:")
    distro.entries[0].__class__ = Bpf
    assert distro.look()[0] == []
    distro.entry("wine").enabled = True
    assert distro.look()[0] == REPLACED


def test_specific_and_disabled(distro: Distro) -> None:
    """An entry that was disabled while WSLInterop was registered anew is in front of it again when it is enabled."""
    distro.add(APE)
    distro.settle()
    distro.entry("APE").enabled = False
    distro.add(WINE)
    distro.settle()
    assert distro.names == ["WSLInterop", "wine", "APE"]
    distro.entry("APE").enabled = True
    distro.settle()
    assert distro.names == ["APE", "WSLInterop", "wine"]


def test_missing(distro: Distro) -> None:
    """It is registered at once after a wipe; where it is gone alone, an override has its time before."""
    distro.add(QEMU)
    distro.settle()
    distro.drop("WSLInterop")
    assert distro.look() == ([("register", TEMPORARY)], 0.0)
    assert distro.look(PATIENCE - 0.02)[1] == 0.02
    assert distro.look(0.021, changed=False)[0] == [("register", WSL), (interop.TEMPORARY, b"-1")]
    distro.settle()
    distro.write("status", b"-1")
    assert distro.look()[0] == [("register", WSL)]
    assert distro.told == ["WSLInterop is missing: restored"] * 2


def test_override(distro: Distro) -> None:
    """What it registers is replaced, as its flags are not WSL's; more flags are WSL's own affair."""
    distro.drop("WSLInterop")
    distro.look()
    distro.add(WSL.replace(b":FP", b":P"))
    writes, _ = distro.look()
    assert writes == REPLACED[1:]  # the temporary entry is there
    distro.drop("WSLInterop")
    distro.add(WSL.replace(b":FP", b":FPC"))
    assert distro.look()[0] == []


def test_a_service_that_replaces_each_entry(distro: Distro) -> None:
    """Its start is not taken for a wipe: it is about to register WSLInterop, and would fail if it were there."""
    distro.rule(QEMU)
    distro.add(QEMU)
    distro.settle()
    for has_looked in False, True:
        distro.look(1.1)
        distro.settle()
        distro.rule(QEMU)
        if has_looked:
            distro.look(changed=False)
        distro.drop("qemu-arm")
        distro.add(QEMU)
        distro.drop("WSLInterop")
        assert distro.look(0.9)[0] == [("register", TEMPORARY)]
        distro.add(WSL)
        assert distro.look()[0] == [(interop.TEMPORARY, b"-1")]
        distro.settle()
    distro.write("status", b"-1")
    assert distro.look(0.1)[0] == [("register", WSL)]
    distro.settle()
    # A start long ago is none.
    distro.write("status", b"-1")
    distro.add(QEMU)
    assert distro.look(1.1)[0] == [("register", WSL)]


def test_rival_while_waiting(distro: Distro) -> None:
    """A temporary entry that is outranked is not waited with, nor removed before WSLInterop is there."""
    distro.drop("WSLInterop")
    distro.look()
    distro.add(b":cli:M:128:PE\\x00\\x00::/usr/bin/cli:")
    assert distro.look()[0] == [("register", WSL), (interop.TEMPORARY, b"-1")]


def test_registered_during_a_look(distro: Distro, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of the table is older than WSLInterop then: a temporary entry behind a rival is of no use."""
    override = WSL.replace(b":FP", b":P")
    distro.drop("WSLInterop")
    distro.look()
    distro.add(override)
    lists = [table.entries()]
    distro.add(WINE)
    # While the watch takes the lock, WSL's override removes WSLInterop, and then registers it.
    distro.drop("WSLInterop")
    lists.append(table.entries())
    distro.add(override)
    monkeypatch.setattr(table, "entries", lambda: lists.pop(0))
    assert distro.look()[0] == [(interop.TEMPORARY, b"-1"), *REPLACED]


@pytest.mark.parametrize("again", [False, True])
def test_disabled(distro: Distro, again: bool) -> None:
    """It stays so through a wipe, at every instant, also with another watch; `echo 1` ends that."""
    distro.add(QEMU)
    distro.entry("WSLInterop").enabled = False
    distro.settle()
    distro.add(WINE)
    assert distro.look()[0] == []
    distro.settle()
    if again:
        distro.start_watch()
    distro.write("status", b"-1")
    assert distro.look()[0] == [("register", interop.PLACEHOLDER), ("WSLInterop", b"0")]
    assert distro.wins(b"MZ\x90\0") == "None"
    distro.drop("WSLInterop")
    distro.add(WSL)
    assert distro.look()[0] == [("WSLInterop", b"0")]
    distro.drop("WSLInterop")
    assert distro.look()[0] == []
    assert distro.look(PATIENCE + 0.001)[0] == [("register", interop.PLACEHOLDER), ("WSLInterop", b"0")]
    distro.entry("WSLInterop").enabled = True
    assert distro.look()[0] == []
    assert distro.look(PATIENCE + 0.001)[0] == REPLACED[1:]
    assert distro.wins(b"MZ\x90\0") == "WSLInterop"


def test_disabled_during_a_repair(distro: Distro, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is decided already is not done."""
    distro.add(WINE)
    register = distro._write

    def disable_then(name: str, data: bytes, _inode: int = 0) -> None:
        register(name, data)
        distro.entry("WSLInterop").enabled = False

    monkeypatch.setattr("wsl_binfmt.table._write", disable_then)
    assert distro.look()[0] == [("register", TEMPORARY), (interop.TEMPORARY, b"-1")]
    assert not distro.entry("WSLInterop").enabled


def test_refused(distro: Distro) -> None:
    """It is told once, and tried again each second; a change is looked at before."""
    distro.add(WINE)
    distro.refuses = errno.EROFS
    assert distro.look()[1] == 1.0
    assert [distro.look(1.0, changed=False)[1] for _ in range(3)] == [1.0] * 3
    assert distro.told == ["cannot change register: Read-only file system"]
    distro.refuses = 0
    assert distro.look(8, changed=False)[0] == REPLACED


def test_no_init(distro: Distro) -> None:
    """Nothing is touched where /init cannot be run."""
    distro.programs.discard("/init")
    distro.drop("WSLInterop")
    assert distro.look() == ([], 1.0)
    assert distro.told == [interop.NO_INIT]
    distro.programs.add("/init")
    assert distro.look(1)[0] != []


def test_own_entries(distro: Distro) -> None:
    """They come back after a wipe when nothing has changed for a time; one that was removed by hand does not."""
    distro.rule(QEMU)
    distro.add(QEMU)
    distro.settle()
    distro.write("status", b"-1")
    distro.look()
    assert distro.look() == ([], QUIET)
    distro.add(b":x:M::x::/usr/bin/x:")
    assert distro.look(0.04) == ([], QUIET)
    assert distro.look(QUIET, changed=False)[0] == [("register", QEMU)]
    distro.settle()
    distro.drop("qemu-arm")
    distro.settle()
    assert distro.names == ["x", "WSLInterop"]


def test_which_of_several_rules_comes_back(distro: Distro) -> None:
    """That which had made the entry, if there still is such a rule; or else the last one, as systemd-binfmt has it."""
    other = QEMU.replace(b"/usr/bin/", b"/opt/")
    distro.rule(other + b"\n" + QEMU)
    for made, comes_back in (QEMU, QEMU), (other, other), (QEMU.replace(b"/usr/bin", b"/usr/local/bin"), None):
        distro.write("qemu-arm", b"-1") if "qemu-arm" in distro.names else None
        distro.add(made)
        distro.settle()
        distro.write("status", b"-1")
        distro.look()
        distro.look()
        expected = [("register", comes_back)] if comes_back else []
        assert distro.look(QUIET + 0.001, changed=False)[0] == expected
    distro.rule(QEMU)
    distro.add(QEMU)
    distro.settle()
    distro.write("status", b"-1")
    distro.look()
    distro.look()
    distro.rule(other + b"\n" + other.replace(b"/opt/", b"/opt/last/"))
    assert distro.look(QUIET + 0.001, changed=False)[0] == [("register", other.replace(b"/opt/", b"/opt/last/"))]


def test_run_detectors(distro: Distro) -> None:
    """What binfmt-support has registered in place of an interpreter comes back as it was."""
    rule = b":jar:M::PK\\x03\\x04::/usr/bin/jarwrapper:"
    with_detector = rule.replace(b"/usr/bin/jarwrapper", rules.RUN_DETECTORS)
    distro.rule_of_update_binfmts(
        "jar", b"jar\nmagic\n0\nPK\\x03\\x04\n\n/usr/bin/jarwrapper\n/usr/bin/jardetector\n\n\n\n"
    )
    distro.add(with_detector)
    distro.settle()
    distro.write("status", b"-1")
    distro.look()
    distro.look()
    writes = distro.look(QUIET + 0.001, changed=False)[0]
    assert [(name, table.parse_rule(data)[1].says()) for name, data in writes] == [
        ("register", table.parse_rule(with_detector)[1].says())
    ]


def test_stopped_service(distro: Distro) -> None:
    """Its entries go a second later, after a mark, unless it has failed or is started again."""
    distro.rule(QEMU)
    distro.add(QEMU)
    distro.add(b":other:M::other::/usr/bin/x:")
    distro.settle()
    distro.rule(QEMU, starts=False)
    assert distro.look(changed=False) == ([], 1.0)
    distro.rule(QEMU)
    assert distro.look(0.9, changed=False)[0] == []
    distro.rule(QEMU, starts=False)
    distro.look(changed=False)
    mark = f"{own.LEAVING}{os.stat('/proc/self/ns/pid').st_ino}"
    rule = own.LEAVING_RULE.format(mark).encode()
    removed = [(mark, b"-1"), ("register", rule), (mark, b"0"), ("qemu-arm", b"-1")]
    assert distro.look(1.0, changed=False)[0] == removed
    assert distro.names == [mark, "other", "WSLInterop"]
    assert not distro.entries[0].enabled
    distro.settle()
    assert distro.names == ["other", "WSLInterop"]


def test_another_distro_leaves(distro: Distro) -> None:
    """What goes within a second of its mark comes back; its mark is removed a second later."""
    distro.rule(QEMU)
    distro.add(QEMU)
    distro.settle()
    distro.add(own.LEAVING_RULE.format(own.LEAVING + "1").encode(), enabled=False)
    distro.look()
    distro.drop("qemu-arm")
    distro.settle()
    assert distro.names == ["qemu-arm", "WSLInterop"]


def test_rule_that_is_gone(distro: Distro) -> None:
    """Its entry goes at the next start or reload, if it still is as that rule had it."""
    distro.rule(QEMU)
    distro.add(QEMU)
    distro.settle()
    distro.rule(b"")
    distro.settle()
    assert distro.names == ["WSLInterop"]


def test_refused_at_a_stop(distro: Distro) -> None:
    """What the kernel refuses when a service starts without a rule, or has stopped, is tried again."""
    other = b":other:M::other::/usr/bin/x:"
    for rule in QEMU, other:
        distro.rule(QEMU + b"\n" + other)
        distro.add(rule)
        distro.settle()
    distro.rule(other)
    distro.refuses = errno.ENOMEM
    assert distro.look(changed=False)[1] == 1.0
    distro.refuses = 0
    distro.look(1.0, changed=False)
    distro.settle()
    assert distro.names == ["other", "WSLInterop"]
    distro.rule(other, starts=False)
    distro.look(changed=False)
    distro.refuses = errno.ENOMEM
    assert distro.look(1.0, changed=False)[1] == 1.0
    distro.refuses = 0
    distro.look(1.0, changed=False)
    distro.settle()
    assert distro.names == ["WSLInterop"]


def test_rule_that_changes_in_a_storm(distro: Distro) -> None:
    """Its entry comes back as the rule is now, although the table changes all the time."""
    distro.rule(QEMU)
    distro.add(QEMU)
    distro.settle()
    for number in range(13):
        distro.add(b":x%d:M::xx::/usr/bin/x:" % number)
        distro.look(0.04)
    distro.rule(QEMU + b"P")
    distro.add(b":y:M::yy::/usr/bin/x:")
    distro.look(0.04)
    distro.settle()
    assert distro.entry("qemu-arm").flags == b"PF"


def test_another_mark(distro: Distro, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mark that another distro has registered anew since the look stays for its second."""
    mark = own.LEAVING + "1"
    distro.add(own.LEAVING_RULE.format(mark).encode(), enabled=False)
    distro.look()
    seen = {entry.name: entry.inode for entry in distro.entries}
    distro.drop(mark)
    distro.add(own.LEAVING_RULE.format(mark).encode())
    monkeypatch.setattr("wsl_binfmt.table.entries", lambda: seen)
    distro.look(1.0, changed=False)
    assert mark in distro.names


def test_two_services_with_a_rule(distro: Distro, tmp_path: Path) -> None:
    """An entry stays while one is active. Without a watch, it goes with the first, as both may be about to stop."""
    (tmp_path / "none").mkdir()
    (tmp_path / "none/qemu-arm").write_bytes(world.file_of_update_binfmts(QEMU))
    support = tmp_path / f"invocation:{rules.BINFMT_SUPPORT}"
    support.symlink_to("1")
    distro.rule(QEMU)
    distro.add(QEMU)
    distro.settle()
    support.unlink()
    distro.settle()
    assert distro.names == ["qemu-arm", "WSLInterop"]
    without_watch = own.OwnEntries({}, print)
    without_watch.leave([rules.BINFMT_SUPPORT])
    assert distro.names == [without_watch.mark, "WSLInterop"]


def test_start_at_the_last_moment(distro: Distro, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that starts while systemd is asked whether it has failed keeps its entries."""
    distro.rule(QEMU)
    distro.add(QEMU)
    distro.settle()
    distro.rule(QEMU, starts=False)
    distro.look(changed=False)
    monkeypatch.setattr(own, "_has_failed", lambda _service: distro.rule(QEMU))
    distro.look(1.0, changed=False)
    distro.settle()
    assert distro.names == ["qemu-arm", "WSLInterop"]


def test_two_services_that_stop(distro: Distro, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a watch, two commands run at a time: one leaves the mark of the other for its time."""
    mark = own.OwnEntries({}, print).mark
    rule = own.LEAVING_RULE.format(mark).encode()
    distro.rule(QEMU)
    distro.add(QEMU)
    write = distro._write

    def register_mark_as_well(name: str, data: bytes, inode: int = 0) -> None:
        if data == rule:
            distro.add(rule)
        write(name, data, inode)

    def replace_mark(_seconds: float) -> None:
        distro.drop(mark)
        distro.add(rule)

    monkeypatch.setattr("wsl_binfmt.table._write", register_mark_as_well)
    monkeypatch.setattr(time, "sleep", replace_mark)
    assert command.run(["leave", rules.SYSTEMD_BINFMT]) == 0
    assert distro.names == [mark, "WSLInterop"]


def test_two_wipes(distro: Distro, monkeypatch: pytest.MonkeyPatch) -> None:
    """An own entry that is registered after a wipe, and wiped before it is read, comes back; a removed one does not."""
    distro.rule(QEMU)
    distro.add(QEMU)
    for control in "status", "qemu-arm":
        distro.settle()
        distro.write("status", b"-1")
        distro.look()
        distro.add(QEMU)

        def write_then_read(name: str, control: str = control) -> tuple[bytes, int]:
            if name == "qemu-arm":
                distro.write(control if control == "status" else distro.entry(control), b"-1")
            return distro._read(name)

        monkeypatch.setattr("wsl_binfmt.table._read", write_then_read)
        distro.look()
        monkeypatch.setattr("wsl_binfmt.table._read", distro._read)
        distro.settle()
        assert ("qemu-arm" in distro.names) == (control == "status")


def test_removed_during_a_repair(distro: Distro) -> None:
    """An own entry that is registered after a wipe, and removed while WSLInterop is repaired, stays removed."""
    distro.rule(QEMU)
    distro.add(QEMU)
    distro.settle()
    distro.write("status", b"-1")
    distro.look()
    distro.add(QEMU)
    distro.add(WINE)
    assert distro.look()[0] == REPLACED
    distro.drop("qemu-arm")
    distro.settle()
    assert distro.names == ["WSLInterop", "wine"]


def test_systemctl_that_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is waited for a second, although it has blocked SIGTERM, as the watch does."""
    (tmp_path / "systemctl").write_text("#!/bin/sh\nexec sleep 9\n")
    (tmp_path / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("posix.environ", os.environb)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    began = time.monotonic()
    assert not own._has_failed(rules.SYSTEMD_BINFMT)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    assert time.monotonic() < began + 5


def test_storm(distro: Distro) -> None:
    """A program that undoes each repair does not have the machine busy with it."""
    for _ in range(watch.IN_A_ROW_MAX):
        distro.add(WINE)
        assert distro.look()[1] == 0.0
        distro.drop("wine")
    distro.add(WINE)
    assert distro.look()[1] == 0.1
