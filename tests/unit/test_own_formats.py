# SPDX-License-Identifier: MIT
"""Which formats are this distro's, and which of them are lost, on a table in memory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Callable

import pytest

import kernel
from wsl_binfmt import formats, interop, notes, table
from wsl_binfmt.formats import QUIET, QUIET_MAX, Losses

if TYPE_CHECKING:
    from pathlib import Path

    Watched = tuple[kernel.Table, Losses, list[str]]

SERVICE, SUPPORT = formats.SERVICES
HELD = interop.STAND_IN + "1"
X, Y, Z = (b":%s:M::%s::/bin/true:" % (name * 1, name * 4) for name in (b"x", b"y", b"z"))
Rules = Callable[..., None]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> kernel.Table:
    """A table with WSLInterop."""
    memory = kernel.Table(monkeypatch)
    memory.add(kernel.WSL)
    return memory


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Rules:
    """Write a file of binfmt.d; there are no others."""
    directories = [str(tmp_path / name) for name in ("etc", "run", "usr")]
    monkeypatch.setattr(formats, "BINFMT_D", directories)
    monkeypatch.setattr(formats, "UPDATE_BINFMTS", str(tmp_path / "binfmts"))

    def write(*lines: bytes, path: str = "etc/x.conf") -> None:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"\n".join(lines))

    return write


def start(kept: kernel.Table, *registered: bytes, service: str = SERVICE) -> None:
    """Have a service start, as service-hook sees it: it registers these."""
    kept.list_as(f"{service}.before")
    for rule in registered:
        name = rule.split(b":")[1].decode()
        if name in kept.names:
            kept.drop(name)
        kept.add(rule)
    kept.list_as(f"{service}.after")


def test_rules(rules: Rules) -> None:
    """Names are read as systemd reads them, the rest of a rule does not matter."""
    rules(b"# x", b"; x", b"", b"  :a:M::aa::/x:  ", b",b,anything", b":bad", path="usr/a.conf")
    rules(b":a:M::other::/x:", b":c:", path="usr/b.conf")
    rules(b":hidden:", path="usr/c.conf")
    rules(b"", path="etc/c.conf")
    rules(b":no:", path="usr/d.conf.dpkg-new")
    # Of two of one name, that of the file whose name is last counts, wherever that is.
    rules(b":z:M::zz::/first:", path="usr/m.conf")
    rules(b":z:M::zz::/last:", path="etc/n.conf")
    rules(b":no:", path="usr/.e.conf")
    rules(b":WSLInterop:M::MZ::/bin/echo:", b":WSLInterop-held-by-1:M::MZ::/x:", b"\xfe\xff\xfe", path="run/f.conf")
    assert formats.rules(SERVICE) == {
        "a": b":a:M::other::/x:",
        "b": b",b,anything",
        "bad": b":bad",
        "c": b":c:",
        "z": b":z:M::zz::/last:",
        "\udcff": b"\xfe\xff\xfe",
    }


def test_blanks(rules: Rules) -> None:
    """Those of systemd's strstrip() are no part of a rule, and others are; make fuzz found that."""
    rules(b" \t:a:M::aa::/x: \t\r:b:M::bb::/x:\0:c:\x0b", b"\x0c:d:", b"\x0c#")
    assert formats.rules(SERVICE) == {
        "a": b":a:M::aa::/x:",
        "b": b":b:M::bb::/x:",
        "c": b":c:\x0b",
        ":d:": b"\x0c:d:",
        "#": b"\x0c#",
    }


@pytest.mark.usefixtures("rules")
@pytest.mark.parametrize("service", formats.SERVICES)
def test_no_rules(service: str) -> None:
    """Neither directory has to be there."""
    assert formats.rules(service) == {}


def test_files_that_are_none(rules: Rules, tmp_path: Path) -> None:
    """A directory, a link to nothing, a device without an end and a FIFO are no files."""
    rules(X)
    for name, target in ("a", "/dev/zero"), ("b", "nowhere"), ("c", "/dev/null"):
        (tmp_path / f"etc/{name}.conf").symlink_to(target)
    (tmp_path / "etc/d.conf").mkdir()
    os.mkfifo(tmp_path / "etc/e.conf")
    assert "x" in formats.rules(SERVICE)


def test_note_start(kept: kernel.Table, rules: Rules) -> None:
    """Ours is what the start has registered, of a name in our rules."""
    rules(X, Y, Z)
    kept.add(Z)
    kept.add(Y)
    kept.list_as(f"{SERVICE}.before")
    kept.add(X)
    kept.add(b":hand:M::hand::/bin/true:")
    kept.drop("y")
    kept.add(Y)
    kept.list_as(f"{SERVICE}.after")
    assert formats.has_started(SERVICE)
    formats.note_start(SERVICE)
    assert formats.noted(SERVICE) == {name: (kept.get(name).inode, rule) for name, rule in (("x", X), ("y", Y))}
    assert not formats.has_started(SERVICE)
    # Noted once, it is not noted again.
    kept.formats.clear()
    formats.note_start(SERVICE)
    assert set(formats.noted(SERVICE)) == {"x", "y"}


def test_note_start_of_binfmt_support(kept: kernel.Table, rules: Rules) -> None:
    """Its files have no rules: the entry tells."""
    rules(b"", path="binfmts/x")
    rules(b"", path="binfmts/y")
    start(kept, X, b":y:E::exe::/bin/a:F", Z, service=SUPPORT)
    formats.note_start(SUPPORT)
    assert formats.noted(SUPPORT) == {
        "x": (kept.get("x").inode, b":x:M:0:xxxx::/bin/true:"),
        "y": (kept.get("y").inode, b":y:E::exe::/bin/a:F"),
    }


def test_a_rule_that_is_gone(kept: kernel.Table, rules: Rules) -> None:
    """Its entry is removed, unless another one is there now."""
    rules(X, Y, Z)
    start(kept, X, Y, Z)
    formats.note_start(SERVICE)
    kept.drop("y")
    kept.add(Y)
    rules(Z)
    start(kept, Z)
    formats.note_start(SERVICE)
    assert sorted(kept.names) == ["WSLInterop", "y", "z"]
    assert set(formats.noted(SERVICE)) == {"z"}


def test_a_start_that_failed(kept: kernel.Table, rules: Rules) -> None:
    """What it did not come to is kept; what is refused now is not."""
    rules(X, Y, Z)
    start(kept, X, Y, Z)
    formats.note_start(SERVICE)
    noted = formats.noted(SERVICE)
    kept.list_as(f"{SERVICE}.before")
    kept.drop("y")  # and refused
    kept.drop("z")
    kept.add(Z)
    formats.note_start(SERVICE)
    assert formats.noted(SERVICE) == noted, "it is not over"
    formats.note_start(SERVICE, failed=True)
    assert formats.noted(SERVICE) == {"x": noted["x"], "z": (kept.get("z").inode, Z)}


def test_a_list_that_is_being_made(kept: kernel.Table, rules: Rules) -> None:
    """It is not taken for a table without entries."""
    rules(X)
    start(kept, X)
    whole = kept.notes[f"{SERVICE}.after"]
    for length in range(len(whole)):
        kept.notes[f"{SERVICE}.after"] = whole[:length]
        formats.note_start(SERVICE)
        assert formats.noted(SERVICE) == {}
    kept.notes[f"{SERVICE}.after"] = whole
    formats.note_start(SERVICE)
    assert set(formats.noted(SERVICE)) == {"x"}


@pytest.mark.parametrize("before", [None, b"", b"  7 WSLInterop\n"])
def test_a_list_of_before_that_is_lost(kept: kernel.Table, rules: Rules, before: bytes | None) -> None:
    """A start that ended has registered what its rules name; it is noted, and not kept waiting for ever."""
    rules(X)
    kept.add(Y)
    start(kept, X)
    del kept.notes[f"{SERVICE}.before"]
    if before is not None:
        kept.notes[f"{SERVICE}.before"] = before
    formats.note_start(SERVICE)
    assert set(formats.noted(SERVICE)) == {"x"}
    assert not formats.has_started(SERVICE)


def test_remove(kept: kernel.Table, rules: Rules) -> None:
    """A stop removes what is ours, and was not registered anew by others; half of a start included."""
    rules(X, Y, Z)
    start(kept, X, Y)
    formats.note_start(SERVICE)
    kept.drop("y")
    kept.add(Y)
    kept.list_as(f"{SERVICE}.before")
    kept.add(Z)
    formats.remove(SERVICE)
    assert sorted(kept.names) == ["WSLInterop", "y"]
    assert kept.notes == {}
    formats.remove(SERVICE)


@pytest.mark.parametrize("note", [b"", b"1", b"a\0b\0c", b"x\0", b"0\0x\0001", b"\xff\0001\0r"])
def test_notes_that_are_not_understood(kept: kernel.Table, note: bytes) -> None:
    """A note of another version is read as far as it goes."""
    kept.notes[f"{SERVICE}.formats"] = note
    assert isinstance(formats.noted(SERVICE), dict)
    formats.remove(SERVICE)
    assert kept.names == ["WSLInterop"]


@pytest.mark.parametrize("name", ["a b", "a\nb", "\udcff", "x" * 255])
@pytest.mark.usefixtures("kept")
def test_any_name(name: str) -> None:
    """Names of entries are bytes but for NUL and the slash."""
    formats.note(SERVICE, {name: (7, b":r\n:")})
    assert formats.noted(SERVICE) == {name: (7, b":r\n:")}


@pytest.fixture
def watched(kept: kernel.Table, rules: Rules) -> Watched:
    """A distro with x and y, which are noted, its watch, and what that tells."""
    rules(X, Y)
    start(kept, X, Y)
    formats.note_start(SERVICE)
    told: list[str] = []
    losses = Losses(told.append)
    losses.look(table.entries())
    return kept, losses, told


def bring_back(kept: kernel.Table, losses: Losses) -> None:
    """Look, wait until it is time, and bring back."""
    losses.look(table.entries())
    if losses.due():
        kept.now = losses.due()
        losses.bring_back()
    losses.look(table.entries())
    assert not losses.due()


def wipe_and_bring_back(kept: kernel.Table) -> None:
    """Have a watch that has just begun see a wipe, and bring back what was lost."""
    losses = Losses(lambda _message: None)
    losses.look(table.entries())
    kept.formats.clear()
    kept.add(kernel.WSL)
    bring_back(kept, losses)


def test_a_wipe(watched: Watched) -> None:
    """All that was there is gone: ours comes back, and is ours again."""
    kept, losses, told = watched
    for _ in range(2):
        kept.formats.clear()
        kept.add(kernel.WSL)
        bring_back(kept, losses)
        assert sorted(kept.names) == ["WSLInterop", "x", "y"]
    assert told == [f"formats of {SERVICE} were lost: registered x, y again"] * 2
    formats.remove(SERVICE)
    assert kept.names == ["WSLInterop"]


def test_a_wipe_before_a_start_is_noted(kept: kernel.Table, rules: Rules) -> None:
    """What a start registered is lost although no look has seen it."""
    rules(X)
    losses = formats.Losses(lambda _message: None)
    losses.look(table.entries())
    start(kept, X)
    kept.formats.clear()
    kept.add(kernel.WSL)
    losses.look(table.entries())
    formats.note_start(SERVICE)
    losses.look_after_note(table.entries())
    assert losses.due()
    losses.bring_back()
    assert kept.names == ["x", "WSLInterop"]
    losses.look(table.entries())
    # What is removed by hand from now on stays removed.
    kept.drop("x")
    losses.look(table.entries())
    assert not losses.due()


def test_in_the_order_of_registration(kept: kernel.Table, rules: Rules) -> None:
    """Of two that match the same file, the same one wins again."""
    rules(Y, X)
    start(kept, Y, X)
    formats.note_start(SERVICE)
    wipe_and_bring_back(kept)
    assert kept.names == ["x", "y", "WSLInterop"]


def test_in_the_order_of_the_table(kept: kernel.Table, rules: Rules) -> None:
    """Inodes do not tell the order: each CPU has numbers of its own, get_next_ino() in the kernel."""
    rules(X, Y)
    start(kept, X)
    formats.note_start(SERVICE)
    kept.list_as(f"{SERVICE}.before")
    for name, rule, inode in ("y", Y, 3000), ("x", X, 2000):
        if name in kept.names:
            kept.drop(name)
        kept.add(rule)
        kept.get(name).inode = inode
    kept.list_as(f"{SERVICE}.after")
    formats.note_start(SERVICE)
    wipe_and_bring_back(kept)
    assert kept.names == ["x", "y", "WSLInterop"]


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("service", formats.SERVICES)
def test_a_wipe_during_a_start(kept: kernel.Table, rules: Rules, tmp_path: Path, service: str, again: bool) -> None:
    """What it registered is lost before it has ended. What binfmt-support registered first, nobody knows then."""
    rules(X, Y)
    (tmp_path / "binfmts").mkdir()
    for name in "x", "y":
        (tmp_path / "binfmts" / name).touch()
    if again:
        start(kept, X, Y, service=service)
        formats.note_start(service)
    losses = Losses(lambda _message: None)
    losses.look(table.entries())
    kept.list_as(f"{service}.before")
    kept.add(interop.rule(HELD))
    losses.look(table.entries())
    kept.formats.clear()
    kept.add(kernel.WSL)
    losses.look(table.entries())
    kept.list_as(f"{service}.after")
    formats.note_start(service)
    losses.look_after_note(table.entries())
    bring_back(kept, losses)
    assert sorted(kept.names) == (["WSLInterop", "x", "y"] if again or service == SERVICE else ["WSLInterop"])


def test_a_start_that_replaces_all(kept: kernel.Table, rules: Rules) -> None:
    """It is not taken for a wipe: a rule that the kernel refuses is not tried again."""
    rules(X, b":bad:")
    for name in HELD, interop.STAND_IN + "2":
        kept.list_as(f"{SERVICE}.before")
        kept.formats.clear()
        kept.add(interop.rule(name))
        kept.add(X)
        kept.list_as(f"{SERVICE}.after")
        formats.note_start(SERVICE)
        assert list(formats.noted(SERVICE)) == ["x"]


@pytest.mark.parametrize("one_is_first", [True, False])
def test_two_distros_at_once(
    kept: kernel.Table, rules: Rules, monkeypatch: pytest.MonkeyPatch, one_is_first: bool
) -> None:
    """Both services start, and either registers x: what is the other's is not removed with one's own."""
    rules(X)
    notes_of: list[dict[str, bytes]] = [{}, {}]

    def in_distro(number: int) -> None:
        kept.notes = notes_of[number]
        monkeypatch.setattr(notes, "read", kept.notes.get)
        monkeypatch.setattr(notes, "write", kept.notes.__setitem__)
        monkeypatch.setattr(notes, "forget", lambda name: kept.notes.pop(name, None))
        monkeypatch.setattr(formats, "_invocation", lambda _service: f"invocation{number}")

    def list_as(number: int, note: str) -> None:
        in_distro(number)
        kept.list_as(f"{SERVICE}.{note}")

    for number in range(2):
        list_as(number, "before")
        kept.add(interop.rule(f"{interop.STAND_IN}invocation{number}"))
    kept.add(X)
    kept.drop("x")
    kept.add(X)
    for number in (0, 1) if one_is_first else (1, 0):
        list_as(number, "after")
        kept.drop(f"{interop.STAND_IN}invocation{number}")
        formats.note_start(SERVICE)
    for number in range(2):
        in_distro(number)
        bring_back(kept, Losses(lambda _message: None))
    assert kept.names == ["x", "WSLInterop"]
    in_distro(0)
    formats.remove(SERVICE)
    assert kept.names == ["x", "WSLInterop"]
    in_distro(1)
    formats.remove(SERVICE)
    assert kept.names == ["WSLInterop"]


def test_the_other_service_of_this_distro(
    kept: kernel.Table, rules: Rules, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What it holds while it starts as well raises no doubt about whose the formats are."""
    rules(X)
    monkeypatch.setattr(formats, "INVOCATIONS", f"{tmp_path}/")
    (tmp_path / SUPPORT).symlink_to("7a")
    kept.add(interop.rule(interop.STAND_IN + "7a"))
    # Of two watches.
    kept.add(interop.rule(interop.stand_in() + "+"))
    kept.add(interop.rule(interop.STAND_IN + "1"))
    start(kept, X)
    formats.note_start(SERVICE)
    assert formats.noted(SERVICE)["x"][0] == kept.get("x").inode
    kept.add(interop.rule(interop.STAND_IN + "8a"))
    start(kept, X)
    formats.note_start(SERVICE)
    assert formats.noted(SERVICE)["x"][0] == 0


def test_a_wipe_while_they_are_brought_back(watched: Watched) -> None:
    """Somebody has registered another entry since: that they are gone is noticed all the same."""
    kept, losses, _ = watched
    kept.formats.clear()
    losses.look(table.entries())
    kept.now = losses.due()

    def wipe() -> None:
        if {"x", "y"} <= set(kept.names):
            kept.formats.clear()
            kept.add(kernel.WSL)

    kept.after = wipe
    losses.bring_back()
    kept.after = lambda: None
    bring_back(kept, losses)
    assert sorted(kept.names) == ["WSLInterop", "x", "y"]


def test_a_wipe_right_after_one(watched: Watched) -> None:
    """Also before the next look."""
    kept, losses, _ = watched
    kept.formats.clear()
    losses.look(table.entries())
    kept.now = losses.due()
    losses.bring_back()
    kept.formats.clear()
    kept.add(kernel.WSL)
    bring_back(kept, losses)
    assert sorted(kept.names) == ["WSLInterop", "x", "y"]


def test_removed_by_hand(watched: Watched) -> None:
    """What is gone alone stays so, also after a wipe."""
    kept, losses, told = watched
    kept.drop("x")
    bring_back(kept, losses)
    kept.formats.clear()
    bring_back(kept, losses)
    assert kept.names == ["y"]
    assert len(told) == 1


def test_a_peer_takes_it_along(watched: Watched) -> None:
    """It had registered the same name, and ended: ours comes back."""
    kept, losses, _ = watched
    kept.drop("x")
    kept.add(X.replace(b"true", b"false"))
    bring_back(kept, losses)
    assert b"false" in kept.get("x").text
    kept.drop("x")
    bring_back(kept, losses)
    assert b"true" in kept.get("x").text


def test_others_come_first(watched: Watched) -> None:
    """A name that is there again is not registered, and is not ours."""
    kept, losses, _ = watched
    kept.formats.clear()
    losses.look(table.entries())
    kept.add(X)
    theirs = kept.get("x").inode
    bring_back(kept, losses)
    assert kept.get("x").inode == theirs
    formats.remove(SERVICE)
    assert kept.names == ["x"]


def test_refused(watched: Watched) -> None:
    """What the kernel refuses by now is said, and given up."""
    kept, losses, told = watched
    kept.refused.add(X)
    kept.formats.clear()
    bring_back(kept, losses)
    assert told[0] == "cannot register x again: Invalid argument"
    assert set(formats.noted(SERVICE)) == {"y"}


def test_quiet(watched: Watched) -> None:
    """It waits until nothing changes, but not for ever."""
    kept, losses, _ = watched
    kept.formats.clear()
    losses.look(table.entries())
    begun = kept.now
    assert losses.due() == begun + QUIET
    number = 0
    while losses.due() != begun + QUIET_MAX:
        assert kept.now < begun + QUIET_MAX
        kept.now += QUIET / 2
        number += 1
        kept.add(b":n%d:M::n::/bin/true:" % number)
        losses.look(table.entries())
    assert losses.due() == begun + QUIET_MAX


@pytest.mark.parametrize("wiped", [True, False])
def test_a_new_watch(watched: Watched, wiped: bool) -> None:
    """It knows from the notes what was there; the one that was killed has told nobody."""
    kept, _, told = watched
    kept.notes["WSLInterop"] = b"%d enabled" % kept.get("WSLInterop").inode
    if wiped:
        kept.formats.clear()
        kept.add(kernel.WSL)
    else:
        kept.drop("x")
        kept.drop("y")
    losses = Losses(told.append)
    bring_back(kept, losses)
    assert ("x" in kept.names) is wiped
