# SPDX-License-Identifier: MIT
"""Repairing WSLInterop, on a table in memory: from every state, without a gap, and no more than that."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import kernel
from wsl_binfmt import interop, table
from wsl_binfmt.interop import HOLD_MAX, PATIENCE, Interop

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
RIGHT = b"enabled\ninterpreter /init\nflags: PF\noffset 0\nmagic 4d5a\n"


@pytest.fixture
def formats(monkeypatch: pytest.MonkeyPatch) -> kernel.Table:
    """An empty table."""
    return kernel.Table(monkeypatch)


def fault(known: Interop | None = None) -> str | None:
    """What is wrong with the table."""
    return (known or Interop()).look(table.entries()).fault


def repair(watch: Interop, *, wiped: bool) -> str | None:
    """Look, and repair what was found, as the watch does."""
    return watch.repair(watch.look(table.entries(), wiped=wiped))


def test_nothing_wrong(formats: kernel.Table) -> None:
    """Where nothing is wrong, nothing is written."""
    for rule in (WINE, QEMU, kernel.WSL, QEMU.replace(b"arm", b"ppc")):
        formats.add(rule)
    assert not Interop().look(table.entries()).needs_repair()
    assert Interop().repair() is None
    assert formats.writes == []


@pytest.mark.parametrize(
    ("entries", "wrong"),
    [
        ([], "WSLInterop is missing"),
        ([WINE], "WSLInterop is missing"),
        ([kernel.WSL], None),
        ([WINE, kernel.WSL], None),
        ([kernel.WSL, WINE], "wine outranks WSLInterop"),
        ([kernel.WSL, QEMU], None),
        ([kernel.WSL, WINE, QEMU, CLI], "cli outranks WSLInterop"),
        ([kernel.WSL, EXTENSION], "exe outranks WSLInterop"),
        ([kernel.WSL, b":late:M::MZ::/init:FP"], None),
        ([kernel.WSL, LATE], "WSLInterop-late outranks WSLInterop"),
        ([kernel.WSL, b":dos:M:1:Z::/usr/bin/dosbox:"], "dos outranks WSLInterop"),
        ([kernel.WSL, b":pe:M:128:PE::/usr/bin/pe:"], "pe outranks WSLInterop"),
        ([kernel.WSL.replace(b"FP", b"FPC")], None),  # what a later WSL may set
        *(([variant], "WSLInterop is not as WSL registers it") for variant in VARIANTS[1:]),
    ],
)
def test_fault(formats: kernel.Table, entries: list[bytes], wrong: str | None) -> None:
    """What is wrong with a table, the oldest entry first, is said, and put right."""
    for rule in entries:
        formats.add(rule)
    assert fault() == wrong
    assert Interop().repair() == wrong
    assert fault() is None
    if wrong:
        assert formats.formats[0].text == RIGHT
    assert not [name for name in formats.names if name.startswith(interop.STAND_IN)]


def test_disabled_rival(formats: kernel.Table) -> None:
    """An entry that is disabled takes nothing, until it is enabled."""
    formats.add(kernel.WSL)
    formats.add(WINE, enabled=False)
    known = Interop()
    assert known.repair() is None
    formats.get("wine").enabled = True
    assert known.repair() == "wine outranks WSLInterop"


@pytest.mark.parametrize("rule", VARIANTS)
def test_disabled_by_hand(formats: kernel.Table, rule: bytes) -> None:
    """`echo 0 > WSLInterop` is somebody's wish."""
    formats.add(rule, enabled=False)
    formats.add(WINE)
    assert Interop().repair() is None
    assert formats.writes == []


def test_disabled_and_lost(formats: kernel.Table) -> None:
    """It survives the entry: neither a wipe nor another registration is anybody's wish. `echo 1` is."""
    formats.add(kernel.WSL, enabled=False)
    known = Interop()
    known.repair()
    for lost in True, False:
        formats.drop("WSLInterop")
        if not lost:
            formats.add(kernel.WSL)
        known.repair()
        assert not formats.get("WSLInterop").enabled
    # For another process as well.
    interop.remember(known.inode, disabled=known.disabled)
    formats.formats.clear()
    inode, disabled = interop.recall()
    known = Interop(inode, disabled=disabled)
    known.repair()
    assert not formats.get("WSLInterop").enabled
    formats.get("WSLInterop").enabled = True
    known.repair()
    formats.formats.clear()
    known.repair()
    assert formats.get("WSLInterop").enabled


def test_disabled_and_replaced_during_a_look(formats: kernel.Table) -> None:
    """What was listed and what is read are two registrations then; nobody has enabled the first."""
    formats.add(kernel.WSL, enabled=False)
    known = Interop()
    known.look(table.entries())

    def replace() -> None:
        formats.before_read = lambda: None
        formats.drop("WSLInterop")
        formats.add(kernel.WSL)

    formats.before_read = replace
    known.look(table.entries())
    known.repair()
    assert not formats.get("WSLInterop").enabled


@pytest.mark.parametrize("note", [b"", b"1", b"x disabled", b"1 maybe", b"0\0", b"\xff \xff", b"-1 disabled"])
def test_recall_anything(formats: kernel.Table, note: bytes) -> None:
    """A note that is not understood, as of another version, is none."""
    formats.notes["WSLInterop"] = note
    assert interop.recall() == (0, False)


@pytest.mark.parametrize("rewritten", [False, True])
@pytest.mark.parametrize("enabled", [True, False])
def test_hold(formats: kernel.Table, enabled: bool, rewritten: bool) -> None:
    """A service that holds a stand-in is left to remove and register WSLInterop; who disabled it is remembered."""
    formats.add(kernel.WSL, enabled=enabled)
    watch = Interop()
    watch.look(table.entries())
    formats.add(interop.rule(THEIRS), enabled=enabled)
    assert not watch.look(table.entries()).needs_repair()
    formats.drop("WSLInterop")
    finding = watch.look(table.entries(), wiped=False)
    assert finding.needs_repair() is False or not enabled
    assert finding.held_until > formats.now
    if rewritten:
        formats.add(b":WSLInterop:M::MZ::/init:P")
        if not enabled:
            repair(watch, wiped=False)
            assert not formats.get("WSLInterop").enabled
    for known in watch, Interop(release=[THEIRS]):
        if known is not watch:
            known.repair()
            assert formats.names == ["WSLInterop"]
            assert formats.get("WSLInterop").enabled is enabled
            assert not known.look(table.entries()).needs_repair()


def test_rival_while_held(formats: kernel.Table) -> None:
    """It is outranked by another stand-in, as WSLInterop is the holder's."""
    formats.add(kernel.WSL)
    formats.add(interop.rule(THEIRS))
    formats.add(WINE)
    inode = formats.get("WSLInterop").inode
    watch = Interop()
    watch.repair()
    assert formats.names == [MINE, "wine", THEIRS, "WSLInterop"]
    assert formats.get("WSLInterop").inode == inode
    assert not watch.look(table.entries()).needs_repair()
    formats.add(CLI)
    watch.repair()
    assert formats.names[:2] == [f"{MINE}+", "cli"]
    formats.add(CLI.replace(b"cli", b"pe"))
    watch.repair()
    assert formats.names[:2] == [MINE, "pe"]
    formats.drop("pe")
    formats.drop(THEIRS)
    assert watch.repair() == "cli outranks WSLInterop"
    assert formats.names == ["WSLInterop", "cli", "wine"]


def test_left_by_somebody_who_was_killed(formats: kernel.Table) -> None:
    """A stand-in counts for HOLD_MAX since it was seen first, whatever the clock does."""
    formats.add(interop.rule(THEIRS))
    formats.add(WINE)
    watch = Interop()
    finding = watch.look(table.entries())
    assert finding.held_until == formats.now + HOLD_MAX
    formats.now += HOLD_MAX
    assert watch.repair() == "WSLInterop is missing"
    assert formats.names == ["WSLInterop", "wine"]


def test_two_release_at_once(formats: kernel.Table) -> None:
    """Neither waits for the other's stand-in to go first."""
    formats.add(kernel.WSL)
    names = ["WSLInterop-held-by-1", "WSLInterop-held-by-2"]
    for name in names:
        formats.add(interop.rule(name))
    for name in names:
        assert Interop(release=[name]).repair() is None
    assert formats.names == ["WSLInterop"]


@pytest.mark.parametrize(
    "newer",
    [
        [interop.rule(THEIRS)],
        # Our watch has one there already, as the one that is to be released was outranked.
        [interop.rule(THEIRS), CLI, interop.rule(MINE)],
        # Our watch's is outranked.
        [interop.rule(MINE), CLI, interop.rule(THEIRS)],
    ],
)
def test_released_while_another_is_held(formats: kernel.Table, newer: list[bytes]) -> None:
    """What answers then is one that our watch knows: nobody has to wait until it has been there for HOLD_MAX."""
    of_another = interop.STAND_IN + "2"
    for rule in [kernel.WSL, interop.rule(of_another), WINE, *newer]:
        formats.add(rule)
    watch = Interop()
    watch.look(table.entries())
    assert Interop(release=[THEIRS]).repair() is None
    assert THEIRS not in formats.names
    assert formats.names[0].startswith(MINE)
    assert "".join(formats.names).count(MINE) == 1
    formats.drop(of_another)
    assert watch.repair()
    assert formats.names[0] == "WSLInterop"
    assert MINE not in "".join(formats.names)


def test_gone_alone(formats: kernel.Table) -> None:
    """Whoever removed WSLInterop alone has time to register it: a stand-in answers meanwhile."""
    formats.add(QEMU)
    formats.add(kernel.WSL)
    watch = Interop()
    watch.look(table.entries(), wiped=False)
    formats.drop("WSLInterop")
    # It is said once, when WSLInterop is back.
    assert repair(watch, wiped=False) is None
    assert formats.names == [MINE, "qemu-arm"]
    finding = watch.look(table.entries(), wiped=False)
    assert not finding.needs_repair()
    assert finding.held_until == formats.now + PATIENCE
    formats.now += PATIENCE
    assert repair(watch, wiped=False) == "WSLInterop is missing"
    assert formats.names == ["WSLInterop", "qemu-arm"]
    # Registered without F, as WSL's override does.
    watch.look(table.entries(), wiped=False)
    formats.drop("WSLInterop")
    repair(watch, wiped=False)
    formats.add(b":WSLInterop:M::MZ::/init:P")
    assert repair(watch, wiped=False) == "WSLInterop is not as WSL registers it"
    assert formats.formats[0].text == RIGHT
    assert formats.names == ["WSLInterop", "qemu-arm"]


def test_race(formats: kernel.Table) -> None:
    """Others know nothing of the lock: what they register meanwhile is taken into account."""
    formats.add(kernel.WSL)
    formats.add(WINE)
    others = [CLI, kernel.WSL]

    def race() -> None:
        if others and (others[0] != kernel.WSL or "WSLInterop" not in formats.names):
            formats.add(others.pop(0))

    formats.after = race
    known = Interop()
    known.repair()
    formats.after = lambda: None
    known.repair()
    assert fault() is None
    assert sorted(formats.names) == ["WSLInterop", "cli", "wine"]


def test_nothing_more_than_a_registration(formats: kernel.Table) -> None:
    """Where nothing answers, a stand-in would be of no use."""
    Interop().repair()
    assert formats.writes == [("register", kernel.WSL)]


def test_missing_when_it_was_looked_at(formats: kernel.Table) -> None:
    """Another distro's watch has registered it since: that is right, and answers all the time."""
    known = Interop()
    finding = known.look(table.entries())
    formats.add(kernel.WSL)
    theirs = formats.get("WSLInterop").inode
    known.repair(finding)
    assert formats.get("WSLInterop").inode == theirs


def test_two_services_at_once(formats: kernel.Table) -> None:
    """Nothing is left of their stand-ins, nor of ours, also if nobody looks again."""
    held = [interop.STAND_IN + "1", interop.STAND_IN + "2"]
    formats.add(kernel.WSL)
    for name in held:
        formats.add(interop.rule(name))
    formats.add(CLI)
    for name in held:
        Interop(release=[name]).repair()
    assert formats.names == ["WSLInterop", "cli"]


def test_it_was_never_there(formats: kernel.Table) -> None:
    """Nobody has removed what a first look does not find, and it has no inode."""
    formats.add(QEMU)
    for wiped in True, False:
        known = Interop()
        assert known.look(table.entries(), wiped=wiped).held_until == 0
        assert known.inode == 0


def test_looked_at_without_its_past(formats: kernel.Table) -> None:
    """Who does not say what was there before is not told that somebody has removed WSLInterop alone."""
    formats.add(kernel.WSL)
    known = Interop()
    known.look(table.entries())
    formats.drop("WSLInterop")
    assert known.look(table.entries()).held_until == 0


def test_enabled_anew(formats: kernel.Table) -> None:
    """Another registration of a disabled WSLInterop is to be disabled."""
    formats.add(kernel.WSL, enabled=False)
    known = Interop()
    known.look(table.entries())
    formats.drop("WSLInterop")
    formats.add(kernel.WSL)
    finding = known.look(table.entries())
    assert finding.needs_repair()
    known.repair(finding)
    assert not formats.get("WSLInterop").enabled
    assert not known.look(table.entries()).needs_repair()


def test_enabled_anew_for_another_process(formats: kernel.Table) -> None:
    """It knows from the note that what it finds is another registration than the one that was disabled."""
    formats.add(kernel.WSL)
    inode = formats.get("WSLInterop").inode
    interop.remember(inode - 1, disabled=True)
    before, disabled = interop.recall()
    assert (before, disabled) == (inode - 1, True)
    Interop(before, disabled=disabled).repair()
    assert not formats.get("WSLInterop").enabled
    interop.remember(inode, disabled=False)
    assert interop.recall() == (inode, False)


def test_disabled_since_the_look(formats: kernel.Table) -> None:
    """What the repair registers is then disabled as well."""
    formats.add(kernel.WSL)
    formats.add(WINE)
    known = Interop()
    finding = known.look(table.entries())
    formats.get("WSLInterop").enabled = False
    known.repair(finding)
    assert not formats.get("WSLInterop").enabled


@pytest.mark.parametrize("is_free", [True, False])
def test_repaired_by_others(formats: kernel.Table, monkeypatch: pytest.MonkeyPatch, is_free: bool) -> None:
    """What was found is looked at again if somebody had the lock, and only then."""
    formats.add(kernel.WSL)
    formats.add(WINE)
    known = Interop()
    finding = known.look(table.entries())

    def enter(_lock: object) -> bool:
        formats.drop("wine")
        return is_free

    monkeypatch.setattr(table.Lock, "__enter__", enter)
    assert known.repair(finding) == ("wine outranks WSLInterop" if is_free else None)
    assert bool(formats.writes) is is_free


def test_registered_by_others(formats: kernel.Table) -> None:
    """Theirs is as good, and is left alone."""
    formats.add(kernel.WSL)
    formats.add(WINE)
    theirs: list[int] = []

    def race() -> None:
        if "WSLInterop" not in formats.names and not theirs:
            formats.add(kernel.WSL)
            theirs.append(formats.get("WSLInterop").inode)

    formats.after = race
    assert Interop().repair() is None
    assert theirs == [formats.get("WSLInterop").inode]
    assert formats.names == ["WSLInterop", "wine"]


def test_race_for_ever(formats: kernel.Table) -> None:
    """Somebody who always comes first is given way to, with an error."""
    formats.add(kernel.WSL)
    formats.add(WINE)

    def race() -> None:
        if "WSLInterop" not in formats.names:
            formats.add(VARIANTS[2])

    formats.after = race
    with pytest.raises(FileExistsError):
        Interop().repair()


def test_ten_thousand_formats_are_read_once(formats: kernel.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an entry matches never changes."""
    formats.add(kernel.WSL)
    for number in range(100):
        formats.add(b":f%d:M::f%d::/bin/true:" % (number, number))
    known = Interop()
    known.look(table.entries())
    read: list[str] = []
    original = table.registration

    def registration(name: str) -> tuple[bytes, int] | None:
        read.append(name)
        return original(name)

    monkeypatch.setattr(table, "registration", registration)
    known.look(table.entries())
    assert set(read) == {"WSLInterop"}


ENTRIES = st.lists(
    st.tuples(
        st.sampled_from([*VARIANTS, interop.rule(MINE), interop.rule(THEIRS), WINE, CLI, QEMU, LATE, EXTENSION]),
        st.sampled_from([True, True, True, False]),
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
def test_any_table(entries: list[tuple[bytes, bool]], expired: bool) -> None:
    """From any table: WSL answers then, did at every instant if it did before, and nothing else has changed."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        formats = kernel.Table(monkeypatch)
        for rule, enabled in entries:
            formats.add(rule, enabled=enabled)
        known = Interop()
        known.look(table.entries())
        if expired:
            formats.now += HOLD_MAX
        before = others(formats)
        ours = [entry for entry in formats.formats if interop.is_ours(entry.name)]
        wanted = ours[-1].enabled if ours else True
        held = THEIRS in formats.names and not expired
        left_alone = "WSLInterop" in formats.names and not formats.get("WSLInterop").enabled
        if answers(formats) and wanted and not any(entry.text.startswith(b"dis") for entry in ours):
            event("answers before")

            def check() -> None:
                assert answers(formats), f"a gap after {formats.writes}"

            formats.after = check

        known.repair()
        formats.after = lambda: None
        assert others(formats) == before
        if held:
            event("a peer holds")
            assert {name for name, data in formats.writes if data == b"-1"} <= {MINE, f"{MINE}+"}
            # One of the stand-ins may have been made while WSLInterop was disabled.
            assert answers(formats) or not wanted or left_alone or not formats.get(THEIRS).enabled
        else:
            assert [name for name in formats.names if name.startswith(interop.STAND_IN)] == []
            assert formats.get("WSLInterop").enabled is (wanted and not left_alone)
            if formats.get("WSLInterop").enabled:
                assert fault() is None
                assert answers(formats)
        # Nothing but what is wrong is ever rewritten.
        formats.writes.clear()
        assert not known.look(table.entries()).needs_repair()
        known.repair()
        assert formats.writes == []
