# SPDX-License-Identifier: MIT
"""Putting WSLInterop first, on a table in memory: from every state, without a gap, and no more than that."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import kernel
from wsl_binfmt import binfmt_d, interop, table

MINE = interop.stand_in()
THEIRS = "WSLInterop-held-by-1"
QEMU = b":qemu-arm:M::\x7fELF::/usr/bin/qemu-arm:F"
WINE = b":wine:M::MZ::/usr/bin/wine:"
CLI = b":cli:M::MZ::/usr/bin/cli:"
LATE = b":WSLInterop-late:M::MZ::/init:P"
EXTENSION = b":exe:E::exe::/usr/bin/exe:"
# How WSLInterop may have been left.
VARIANTS = [
    kernel.WSL,
    b":WSLInterop:M::MZ::/init:P",
    b":WSLInterop:M::MZ::/bin/echo:FP",
    b":WSLInterop:E::exe::/init:FP",
]
STAND_INS = [interop.rule(MINE), interop.rule(THEIRS)]


@pytest.fixture
def formats(monkeypatch: pytest.MonkeyPatch) -> kernel.Table:
    """An empty table."""
    return kernel.Table(monkeypatch)


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Write a file of binfmt.d; restore() and hold() see these, and no others."""
    root = tmp_path / "root"
    monkeypatch.setattr(binfmt_d, "ROOT", str(root))

    def write(*lines: bytes, path: str = "etc/binfmt.d/x.conf") -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"\n".join(lines) + b"\n")

    return write


def view(formats: kernel.Table) -> dict[str, list[bytes]]:
    """Lines of the files that systemd-binfmt is shown for /etc/binfmt.d; none if it is shown that itself."""
    files = {Path(note): text for note, text in formats.notes.items()}
    return {path.name: text.splitlines() for path, text in files.items() if path.parent.name == "binfmt.d"}


def test_nothing_wrong(formats: kernel.Table) -> None:
    """Where nothing is wrong, nothing is written."""
    for rule in (WINE, QEMU, kernel.WSL, QEMU.replace(b"arm", b"ppc")):
        formats.add(rule)
    assert interop.restore(interop.Sight()) == ""
    assert formats.writes == []


@pytest.mark.parametrize(
    ("entries", "wrong"),
    [
        ([], "WSLInterop is missing"),
        ([WINE], "WSLInterop is missing"),
        ([kernel.WSL], ""),
        ([WINE, kernel.WSL], ""),
        ([kernel.WSL, WINE], "wine outranks WSLInterop"),
        ([kernel.WSL, QEMU], ""),
        ([kernel.WSL, WINE, QEMU, CLI], "cli outranks WSLInterop"),
        ([kernel.WSL, EXTENSION], "exe outranks WSLInterop"),
        ([kernel.WSL, b":late:M::MZ::/init:FP"], ""),
        ([kernel.WSL, b":dos:M:1:Z::/usr/bin/dosbox:"], "dos outranks WSLInterop"),
        ([kernel.WSL, b":pe:M:128:PE::/usr/bin/pe:"], "pe outranks WSLInterop"),
        *(([variant], "WSLInterop is not as WSL registers it") for variant in VARIANTS[1:]),
    ],
)
def test_fault(formats: kernel.Table, entries: list[bytes], wrong: str) -> None:
    """What is wrong with a table, the oldest entry first, is said, and put right."""
    for rule in entries:
        formats.add(rule)
    assert interop.fault(table.names()) == wrong
    assert interop.restore(interop.Sight()) == wrong
    assert interop.fault(table.names()) == ""
    if wrong:
        assert formats.formats[0].text == b"enabled\ninterpreter /init\nflags: PF\noffset 0\nmagic 4d5a\n"


def test_disabled_rival(formats: kernel.Table) -> None:
    """An entry that is disabled takes nothing."""
    formats.add(kernel.WSL)
    formats.add(WINE, enabled=False)
    assert interop.restore(interop.Sight()) == ""


@pytest.mark.parametrize("rule", VARIANTS)
def test_disabled_by_hand(formats: kernel.Table, rule: bytes) -> None:
    """`echo 0 > WSLInterop` is somebody's wish."""
    formats.add(rule, enabled=False)
    formats.add(WINE)
    assert interop.restore(interop.Sight()) == ""
    assert formats.writes == []


def test_disabled_and_lost(formats: kernel.Table) -> None:
    """It survives the entry: a wipe by another distro is nobody's wish. To enable it again is."""
    formats.add(kernel.WSL, enabled=False)
    interop.remember()
    formats.formats.clear()
    interop.hold(interop.Sight())
    assert interop.restore(interop.Sight()) == ""
    assert not formats.get("WSLInterop").enabled
    formats.get("WSLInterop").enabled = True
    interop.remember()
    formats.formats.clear()
    interop.restore(interop.Sight())
    assert formats.get("WSLInterop").enabled


@pytest.mark.parametrize("enabled", [True, False])
def test_by_hand_while_held(formats: kernel.Table, enabled: bool) -> None:
    """What somebody writes to WSLInterop counts for more than what stood in for it at first."""
    formats.add(kernel.WSL, enabled=not enabled)
    interop.hold(interop.Sight())
    formats.get("WSLInterop").enabled = enabled
    interop.restore(interop.Sight())
    assert formats.get("WSLInterop").enabled is enabled


def test_peer_holds(formats: kernel.Table) -> None:
    """While another distro holds its stand-in, it is the one to restore; one that was left there is removed."""
    formats.add(WINE)
    formats.add(interop.rule(THEIRS), age=interop.HOLD_MAX - 0.1)
    assert interop.restore(interop.Sight()) == ""
    assert [name for name, _ in formats.writes if name != MINE] == []
    formats.now += 0.2
    assert interop.restore(interop.Sight()) == "WSLInterop is missing"
    assert table.names() == ["WSLInterop", "wine"]


def test_peer_from_the_future(formats: kernel.Table) -> None:
    """A clock that was set back does not keep a stand-in for ever."""
    formats.add(interop.rule(THEIRS), age=-1000)
    assert interop.restore(interop.Sight()) == "WSLInterop is missing"
    assert table.names() == ["WSLInterop"]


@pytest.mark.usefixtures("rules")
@pytest.mark.parametrize("enabled", [True, False])
def test_hold(formats: kernel.Table, enabled: bool) -> None:
    """A wipe while held loses nothing: who is held stands in, and is gone with the next restore."""
    formats.add(kernel.WSL, enabled=enabled)
    interop.hold(interop.Sight(), take_over=True)
    assert table.names()[0] == MINE
    assert formats.get(MINE).enabled is enabled
    formats.formats.remove(formats.get("WSLInterop"))
    winner = formats.winner()
    assert (winner.interpreter if winner else b"") == (b"/init" if enabled else b"")
    formats.add(WINE)
    assert interop.restore(interop.Sight()) == "WSLInterop is missing"
    assert table.names() == ["WSLInterop", "wine"]
    assert formats.get("WSLInterop").enabled is enabled


def test_race(formats: kernel.Table) -> None:
    """Others know nothing of the lock: what they register meanwhile is taken into account."""
    formats.add(kernel.WSL)
    formats.add(WINE)
    others = [CLI, kernel.WSL]

    def race() -> None:
        if others and (others[0] != kernel.WSL or "WSLInterop" not in table.names()):
            formats.add(others.pop(0))

    formats.after = race
    interop.restore(interop.Sight())
    formats.after = lambda: None
    interop.restore(interop.Sight())
    assert interop.fault(table.names()) == ""
    assert sorted(table.names()) == ["WSLInterop", "cli", "wine"]


ENTRIES = st.lists(
    st.tuples(
        st.sampled_from([*VARIANTS, *STAND_INS, WINE, CLI, QEMU, LATE, EXTENSION]),
        st.sampled_from([True, True, True, False]),
        st.sampled_from([0.1, 100.0]),
    ),
    unique_by=lambda entry: entry[0].split(b":")[1],
    max_size=7,
)


def others(formats: kernel.Table) -> list[tuple[bytes, int]]:
    """Entries that are not ours, in their order."""
    return [(entry.text, entry.inode) for entry in formats.formats if not interop.is_ours(entry.name)]


def answers(formats: kernel.Table) -> bool:
    """Whether a Windows program, started now, is WSL's."""
    winner = formats.winner()
    return winner is not None and winner.interpreter == b"/init"


@given(ENTRIES, st.booleans())
@settings(max_examples=1500, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_table(entries: list[tuple[bytes, bool, float]], hold: bool) -> None:
    """From any table: WSL answers then, did at every instant if it did before, and nothing else has changed."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        formats = kernel.Table(monkeypatch)
        monkeypatch.setattr(binfmt_d, "ROOT", "/nonexistent")
        for rule, enabled, age in entries:
            formats.add(rule, enabled=enabled, age=age)
        before = others(formats)
        ours = [entry for entry in formats.formats if interop.is_ours(entry.name)]
        states = [entry.enabled for entry in ours]
        wanted = states[-1] if ours and ours[-1].name == "WSLInterop" else all(states)
        peer = any(entry.name == THEIRS and formats.now - entry.registered < interop.HOLD_MAX for entry in ours)
        found = [formats.get("WSLInterop")] if "WSLInterop" in table.names() else []
        left_alone = found and not found[0].enabled
        if answers(formats) and wanted and not peer:
            event("answers before")

            def check() -> None:
                assert answers(formats), f"a gap after {formats.writes}"

            formats.after = check

        said = interop.restore(interop.Sight())
        formats.after = lambda: None
        assert others(formats) == before
        if peer:
            event("a peer holds")
            assert said == ""
            assert {name for name, _ in formats.writes} <= {MINE}
            return
        assert [name for name in table.names() if name.startswith(interop.STAND_IN)] == []
        interop_now = formats.get("WSLInterop")
        assert interop_now.enabled is wanted
        if not left_alone:
            assert interop.answers(table.parse(interop_now.text)) or not wanted
        if wanted:
            assert interop.fault(table.names()) == ""
            assert answers(formats)
        # Nothing but what is wrong is ever rewritten.
        formats.writes.clear()
        assert interop.restore(interop.Sight()) == ""
        assert formats.writes == []
        if hold:
            interop.hold(interop.Sight(), take_over=True)
            assert table.names()[0] == MINE
            assert formats.get(MINE).enabled is wanted
            assert interop.restore(interop.Sight()) == ""
            assert others(formats) == before
            assert formats.get("WSLInterop").inode == interop_now.inode


def test_stand_in_is_outranked(formats: kernel.Table) -> None:
    """As when binfmt-support registers wine, and then WSL's override.conf an entry without F: no gap here either."""
    formats.add(interop.rule(MINE), age=0.1)
    formats.add(WINE)
    formats.add(b":WSLInterop:M::MZ::/init:P")
    gaps = []
    formats.after = lambda: gaps.append(not answers(formats))
    assert interop.restore(interop.Sight()) == "WSLInterop is not as WSL registers it"
    assert not any(gaps)


# binfmt.d


def test_no_rules(formats: kernel.Table, rules: Callable[..., None]) -> None:
    """Without a rule that could matter, systemd-binfmt sees what is there."""
    formats.add(kernel.WSL)
    rules(QEMU, b"# comment", b"", path="usr/lib/binfmt.d/qemu.conf")
    interop.hold(interop.Sight(), take_over=True)
    assert view(formats) == {}
    assert sorted(table.names()) == ["WSLInterop", MINE]


def test_rival_rule(formats: kernel.Table, rules: Callable[..., None]) -> None:
    """A rule for Windows programs is registered behind WSL, and systemd-binfmt sees the other lines, as numbered."""
    formats.add(kernel.WSL)
    rules(b"# wine", WINE, QEMU)
    interop.hold(interop.Sight(), take_over=True)
    assert view(formats) == {"x.conf": [b"# wine", b"", QEMU]}
    assert table.names()[0] == MINE
    assert formats.get("wine").text == binfmt_d.entry_text(WINE)
    inode = formats.get("wine").inode
    interop.restore(interop.Sight())
    interop.hold(interop.Sight(), take_over=True)
    assert formats.get("wine").inode == inode, "registered again, although it is in force"


@pytest.mark.parametrize("path", ["usr/lib/binfmt.d/x.conf", "run/binfmt.d/x.conf", "etc/binfmt.d/x.conf"])
def test_rule_of_our_name(formats: kernel.Table, rules: Callable[..., None], path: str) -> None:
    """A rule by the name of WSLInterop is nobody's business: it is dropped, and years of blog advice with it."""
    formats.add(kernel.WSL)
    rules(b":WSLInterop:M::MZ::/bin/echo:PF", QEMU, path=path)
    interop.hold(interop.Sight(), take_over=True)
    assert view(formats) == {"x.conf": [b"", QEMU]}
    assert formats.get("WSLInterop").interpreter == b"/init"


def test_refused_rule(formats: kernel.Table, rules: Callable[..., None]) -> None:
    """A rule that the kernel refuses is left to systemd-binfmt, which says so."""
    formats.add(kernel.WSL)
    formats.refused.add(CLI)
    rules(CLI, WINE)
    interop.hold(interop.Sight(), take_over=True)
    assert view(formats) == {"x.conf": [CLI, b""]}


def test_hidden_file(formats: kernel.Table, rules: Callable[..., None]) -> None:
    """A file in /etc hides the one of the same name in /usr, and what is not called .conf is none."""
    formats.add(kernel.WSL)
    rules(b"", path="etc/binfmt.d/wine.conf")
    rules(WINE, path="usr/lib/binfmt.d/wine.conf")
    rules(WINE, path="usr/lib/binfmt.d/wine.conf.dpkg-new")
    interop.hold(interop.Sight(), take_over=True)
    assert view(formats) == {}
    assert "wine" not in table.names()


def test_unreadable_file(formats: kernel.Table, rules: Callable[..., None], tmp_path: Path) -> None:
    """One that cannot be read is left to systemd-binfmt, which says so: it is not shown as an empty one."""
    formats.add(kernel.WSL)
    rules(WINE)
    (tmp_path / "root/etc/binfmt.d/y.conf").symlink_to("nowhere")
    (tmp_path / "root/etc/binfmt.d/z.conf").mkdir()
    interop.hold(interop.Sight(), take_over=True)
    assert view(formats) == {"x.conf": [b""]}


def test_view_is_renewed(formats: kernel.Table, rules: Callable[..., None]) -> None:
    """What was shown before does not stay when the rule is gone."""
    formats.add(kernel.WSL)
    rules(WINE)
    interop.hold(interop.Sight(), take_over=True)
    assert view(formats)
    rules(QEMU)
    interop.hold(interop.Sight(), take_over=True)
    assert view(formats) == {}


BAD_NAMES = [b"status", b"register", b".", b"..", b"../status", b"a/b", b"", b"../../sys/x", b"a\0b", b"x" * 256]


def test_rules_of_one_name(formats: kernel.Table, rules: Callable[..., None]) -> None:
    """The last one counts, in the order of the files' names; files that are hidden do not."""
    formats.add(kernel.WSL)
    last = b":wine:M::MZ::/usr/bin/last:"
    rules(last, path="usr/lib/binfmt.d/z.conf")
    rules(WINE, WINE, path="etc/binfmt.d/a.conf")
    rules(CLI, path="etc/binfmt.d/.z.conf")
    interop.hold(interop.Sight(), take_over=True)
    assert formats.get("wine").text == binfmt_d.entry_text(last)
    assert "cli" not in table.names()
    assert view(formats) == {"a.conf": [b"", b""], "z.conf": [b""]}


@pytest.mark.parametrize("name", BAD_NAMES)
def test_rule_by_a_bad_name(formats: kernel.Table, rules: Callable[..., None], name: bytes) -> None:
    """A rule by a name that is no entry's, which systemd-binfmt refuses, has us write to no other file."""
    formats.add(QEMU)
    formats.add(kernel.WSL)
    rules(b":" + name + b":M::MZ::/usr/bin/wine:")
    interop.hold(interop.Sight(), take_over=True)
    assert "qemu-arm" in table.names()
    assert {written for written, data in formats.writes if data == b"-1"} <= {MINE, "WSLInterop"}
