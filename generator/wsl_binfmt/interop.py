# SPDX-License-Identifier: MIT
"""WSL's entry in the table: whether it answers, and getting it to.

Every change here keeps a handler for Windows programs in place at every
instant: while WSLInterop is replaced, a stand-in by another name answers. A
stand-in is also what `hold` leaves for as long as a service may take WSLInterop
away. There is one for each distro, and it is gone within HOLD_MAX: whoever
finds it there for longer removes it, because whoever made it was killed.
"""

import posix
import time

from wsl_binfmt import binfmt_d, notes, table

NAME = "WSLInterop"
STAND_IN = NAME + "-held-by-"
WINDOWS = b"MZ"
# A note that is there while WSLInterop is disabled, for when it gets lost.
DISABLED = "disabled"
# A start of systemd-binfmt.service with all of qemu takes a twentieth of it.
HOLD_MAX = 1.0  # seconds
# Others who change the table know nothing of the lock: so often we try again.
RACES = 3
# Looks of a settle(): as many as one hold may take, and as many again.
SETTLE_MAX = 100


class Sight:
    """Whether WSLInterop has been another entry since this distro looked last."""

    __slots__ = ("inode", "replaced")

    def __init__(self, inode: int = 0) -> None:
        """inode: of WSLInterop at that time; 0 for a distro that has not looked."""
        self.inode = inode
        self.replaced = False

    def look(self) -> None:
        """Look before a change; a change by ourselves is for keep()."""
        self.replaced |= self.inode not in (0, table.inode(NAME))

    def keep(self) -> None:
        """Take the entry that is there for the one that was there."""
        self.inode = table.inode(NAME)


def rule(name: str) -> bytes:
    """Make the rule by which WSL registers /init, src/linux/init/binfmt.h in its source.

    F has the kernel open /init now, for programs that see another root later;
    P preserves argv[0].
    """
    return f":{name}:M::MZ::/init:FP".encode()


def is_ours(name: str) -> bool:
    """Whether an entry's name is WSL's, or that of a stand-in."""
    return name == NAME or name.startswith(STAND_IN)


def answers(entry: table.Entry) -> bool:
    """Whether an entry is what WSL registers, be it enabled or not."""
    return (
        entry.interpreter == b"/init"
        and entry.flags == frozenset(b"FP")
        and entry.magic == WINDOWS
        and entry.offset == 0
        and entry.mask in (None, b"\xff\xff")
    )


def stand_in() -> str:
    """Name this distro's stand-in: by its PID namespace, which no other has."""
    return STAND_IN + str(posix.stat("/proc/self/ns/pid").st_ino)


def handler(names: "list[str]") -> str:
    """Tell which entry gets Windows programs; "" if none does. names: as in table.names()."""
    for name in names:
        entry = table.read(name)
        if entry and entry.may_match(WINDOWS):
            return name
    return ""


def fault(names: "list[str]") -> str:
    """Say why WSL does not answer; "" if it does, or was disabled by hand.

    names: as in table.names().
    """
    interop = table.read(NAME)
    if interop is None:
        return "WSLInterop is missing"
    if not interop.enabled:
        return ""
    if not answers(interop):
        return "WSLInterop is not as WSL registers it"
    first = handler([name for name in names if not name.startswith(STAND_IN)])
    entry = table.read(first) if first else None
    return f"{first} outranks WSLInterop" if entry and not answers(entry) else ""


def restore(sight: Sight) -> str:
    """Make WSL answer, and remove what stands in for it.

    While another distro holds its own stand-in, that distro will do the rest.
    Returns what was wrong; "" if nothing. Raises OSError.
    """
    with table.Lock():
        return _restore(sight)


def hold(sight: Sight, take_over: bool = False, remove: bool = False) -> str:
    """Make WSL answer whatever becomes of WSLInterop, until restore() or HOLD_MAX.

    remove: whether to remove it, for somebody who is going to register it.
    take_over: whether to do so with rules of binfmt.d, as binfmt_d.take_over().
    The stand-in is disabled if WSLInterop is, which is how restore() knows that
    an administrator did so. Returns and raises as restore() does.
    """
    with table.Lock():
        wrong = _restore(sight)
        enabled = _enabled(table.names())

        def go_first() -> None:
            table.remove(stand_in())
            table.register(rule(stand_in()))
            if not enabled:
                table.disable(stand_in())

        go_first()
        if remove:
            table.remove(NAME)
        if take_over:
            binfmt_d.take_over(is_ours, WINDOWS, go_first)
        return wrong


def settle(sight: Sight) -> str:
    """Restore when nobody holds a stand-in, and go on until a look finds nothing wrong.

    Returns what was wrong first. Raises OSError.
    """
    first = ""
    for _ in range(SETTLE_MAX):
        with table.Lock():
            held = any(_is_held(name) for name in table.names() if name.startswith(STAND_IN))
            wrong = "" if held else _restore(sight)
        first = first or wrong
        if held:
            time.sleep(HOLD_MAX / 50)
        elif not wrong:
            break
    return first


def remember() -> None:
    """Note whether WSLInterop is disabled, for when it gets lost; raises OSError."""
    entry = table.read(NAME)
    noted = notes.read(DISABLED) is not None
    if entry and entry.enabled and noted:
        notes.forget(DISABLED)
    elif entry and not entry.enabled and not noted:
        notes.write(DISABLED, b"")


def _restore(sight: Sight) -> str:
    sight.look()
    try:
        for _ in range(RACES):
            try:
                return _restore_once()
            except (FileExistsError, FileNotFoundError):
                continue
        return _restore_once()
    finally:
        sight.keep()


def _restore_once() -> str:
    names = table.names()
    enabled = _enabled(names)
    mine = stand_in()
    stand_ins = [name for name in names if name.startswith(STAND_IN)]
    if any(_is_held(name) for name in stand_ins if name != mine):
        table.remove(mine)
        return ""
    wrong = fault(names)
    if wrong and NAME in names and handler(names) not in stand_ins:
        # One that is outranked may still be the one that answers, for some programs.
        spare = mine
        while spare in names:
            spare += "+"
        table.register(rule(spare))
        stand_ins.append(spare)
    if wrong:
        table.remove(NAME)
        table.register(rule(NAME))
    interop = table.read(NAME)
    if interop and interop.enabled and not enabled:
        table.disable(NAME)
    for name in stand_ins:
        table.remove(name)
    return wrong


def _enabled(names: "list[str]") -> bool:
    """Whether WSLInterop is meant to be enabled: nobody disabled it by hand."""
    entries = [(name, table.read(name)) for name in names if is_ours(name)]
    states = [(name, entry.enabled) for name, entry in entries if entry]
    if not states:
        return notes.read(DISABLED) is None
    name, enabled = states[-1]
    # The oldest is what stand-ins were made like; if it is another now, that was by hand.
    return enabled if name == NAME else all(enabled for _, enabled in states)


def _is_held(name: str) -> bool:
    """Whether the distro that made a stand-in is still at it."""
    try:
        return 0 <= time.time() - table.registered(name) < HOLD_MAX
    except FileNotFoundError:
        return False
