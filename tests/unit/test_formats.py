# SPDX-License-Identifier: MIT
"""Which formats are taken for lost, on a table in memory."""

from __future__ import annotations

import pytest

import kernel
from wsl_binfmt import formats, interop, notes, table

UNIT = "systemd-binfmt.service"
A, B = b":a:M::aa::/bin/a:", b":b:M::bb::/bin/b:"


@pytest.fixture
def wsl(monkeypatch: pytest.MonkeyPatch) -> kernel.Table:
    """A table with the formats of a service, which have been noted, and WSLInterop, which has been seen."""
    found = kernel.Table(monkeypatch)
    monkeypatch.setattr(formats, "SOURCES", {UNIT: lambda: {"a", "b"}})
    for rule in kernel.WSL, A, B:
        found.add(rule)
    formats.note(UNIT)
    formats.saw(table.inode("WSLInterop"))
    return found


def replaced() -> bool:
    """Whether WSLInterop is another one than the one that was seen."""
    sight = interop.Sight(formats.seen())
    sight.look()
    return sight.replaced


def wipe(wsl: kernel.Table, *rules: bytes) -> None:
    """Remove all, and register some."""
    wsl.formats.clear()
    for rule in rules:
        wsl.add(rule)


def test_nothing_lost(wsl: kernel.Table) -> None:
    """What is there is not lost, nor is what was removed one by one."""
    assert not replaced()
    wsl.formats.remove(wsl.get("a"))
    wsl.formats.remove(wsl.get("b"))
    assert not replaced()
    assert formats.lost(replaced()) == []


@pytest.mark.parametrize(("left", "lost"), [((), [UNIT]), ((A,), [UNIT]), ((A, B), [])])
def test_wiped(wsl: kernel.Table, left: tuple[bytes, ...], lost: list[str]) -> None:
    """After a wipe all that is missing is lost; what another distro has registered since is not missing.

    Two distros with other rules of one name would otherwise answer each other for ever.
    """
    wipe(wsl, kernel.WSL, *left)
    assert replaced()
    assert formats.lost(wiped=True) == lost


def test_wsl_alone_was_replaced(wsl: kernel.Table) -> None:
    """That WSLInterop is another one tells no wipe, while the formats are the same."""
    wsl.formats.remove(wsl.get("WSLInterop"))
    wsl.formats.remove(wsl.get("a"))
    wsl.add(kernel.WSL)
    assert replaced()
    assert formats.lost(wiped=True) == []


def test_stopped(wsl: kernel.Table) -> None:
    """A service that was stopped has lost nothing."""
    notes.forget(UNIT)
    wipe(wsl, kernel.WSL)
    assert formats.lost(wiped=True) == []


def test_lost_again(wsl: kernel.Table) -> None:
    """What was lost while the service registered it counts as lost, but not for ever."""
    for _ in range(formats.TRIES_MAX):
        wipe(wsl, kernel.WSL, A)
        formats.note(UNIT)
        assert formats.lost(wiped=False) == [UNIT]
    formats.note(UNIT)
    assert formats.lost(wiped=False) == []


def test_found_again(wsl: kernel.Table) -> None:
    """One that came back ends the tries."""
    wipe(wsl, kernel.WSL)
    formats.note(UNIT)
    assert formats.lost(wiped=False) == [UNIT]
    wipe(wsl, kernel.WSL, A, B)
    formats.note(UNIT)
    assert formats.lost(wiped=False) == []


def test_never_seen(wsl: kernel.Table) -> None:
    """Before the first look, nothing is known of a wipe; nor is after a note that somebody else wrote."""
    wipe(wsl)
    for note in None, b"", b"x", b"\xff\0", b"1\0a":
        wsl.notes.pop("WSLInterop")
        if note is not None:
            wsl.notes["WSLInterop"] = note
        assert replaced() is (note == b"1\0a")
        wsl.notes["WSLInterop"] = b"0"


@pytest.mark.parametrize("active", [True, False])
def test_boot(wsl: kernel.Table, monkeypatch: pytest.MonkeyPatch, active: bool) -> None:
    """The first look notes the formats of a service that has been started, if that has not been done."""
    monkeypatch.setattr(formats, "_systemctl", lambda *args: active and args[0] == "is-active")
    wsl.notes.clear()
    wsl.formats.remove(wsl.get("a"))
    formats.note_boot()
    assert (UNIT in wsl.notes) is active
    # It was registered, and has been lost before it was noted.
    assert formats.lost(wiped=False) == ([UNIT] if active else [])
    formats.saw(table.inode("WSLInterop"))
    notes.forget(UNIT)
    formats.note_boot()
    assert UNIT not in wsl.notes
