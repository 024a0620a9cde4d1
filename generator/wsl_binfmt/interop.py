# SPDX-License-Identifier: MIT
"""WSLInterop, the entry by which WSL starts Windows programs: what is wrong with it, and the repair.

A repair is a list of writes, decided from one look at the table. While WSLInterop is replaced, a temporary entry with
the same rule is there, so that a Windows program that is started at any instant finds one of the two. All distros share
its name, and the watch that finds WSLInterop right removes it.
"""

import posix
import time

from wsl_binfmt import TYPE_CHECKING, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Callable, List, Tuple

    Write = Tuple[Callable[..., None], object]  # a function of `table`, and its argument
    # What follows from a look: writes, in order; what they mend, "" if that is not worth telling; and when to look
    # again although nothing changes, as time.monotonic(), 0 for never.
    Plan = Tuple[List[Write], str, float]

NAME = "WSLInterop"
TEMPORARY = NAME + "-temporary"
INIT = "/init"
NO_INIT = "/init cannot be run, it is what starts Windows programs; is this WSL?"
MISSING = f"{NAME} is missing"
# How files begin that linkers write: ordinary Windows programs.
HEADERS = b"MZ\x90\0", b"MZP\0", b"MZx\0", b"MZ\0\0"
# As WSL registers /init, src/linux/init/binfmt.h in its source. F has the kernel open /init at registration, for
# programs that have another root. P preserves argv[0].
RULE = ":{}:M::MZ::/init:FP"
# After a wipe, an entry that was disabled by hand is registered so that it matches no file, as the kernel registers
# every entry enabled: no file has an extension with a dot in it, load_misc_binary() in fs/binfmt_misc.c.
PLACEHOLDER_EXTENSION = b"disabled.by.hand"
PLACEHOLDER = b":WSLInterop:E::%b::/init:FP" % PLACEHOLDER_EXTENSION
# WSL's override, in a distro without this package, removes WSLInterop alone, and fails if it is back when the override
# registers it. An administrator's `echo 1` is seen by the watches of all distros before one registers it anew.
PATIENCE = 0.2  # seconds
TRIES = 4  # of a repair: programs that do not take the lock may disturb it


def rule(name: str) -> bytes:
    """Make the rule by which WSL registers /init, under `name`."""
    return RULE.format(name).encode()


def is_ours(name: str) -> bool:
    """Whether an entry's name is WSLInterop, or that of the temporary entry."""
    return name in (NAME, TEMPORARY)


def handles_windows(entry: table.Entry) -> bool:
    """Whether an entry gives every Windows program to /init."""
    is_mz = entry.magic == b"MZ" and entry.offset == 0 and entry.mask in (None, b"\xff\xff")
    return is_mz and entry.interpreter == INIT.encode()


def is_as_registered(entry: table.Entry) -> bool:
    """Whether an entry is what WSL registers. Flags that a later WSL may add are WSL's affair."""
    return handles_windows(entry) and set(entry.flags) >= set(b"FP")


def is_rival(entry: table.Entry) -> bool:
    """Whether an entry would take ordinary Windows programs before WSLInterop; one for /init with F and P is none."""
    if entry.interpreter == INIT.encode() and set(entry.flags) >= set(b"FP"):
        return False
    is_exe = entry.extension is not None and entry.extension.lower() == b"exe"
    return entry.enabled and (is_exe or any(map(entry.may_match, HEADERS)))


def is_specific(entry: table.Entry) -> bool:
    """Whether an entry is for some files that begin with MZ and are no ordinary Windows programs, as APE's is."""
    is_for_some = entry.may_match(b"MZ") if entry.extension is None else b"." not in entry.extension
    return not is_rival(entry) and is_for_some


class Interop:
    """What a process knows of WSLInterop, from one look at the table to the next."""

    def __init__(self, inode: int = 0, *, disabled: bool = False) -> None:
        """Begin with what an earlier process knew: WSLInterop's inode, or 0, and whether it was disabled by hand."""
        self.inode = inode
        self.disabled = disabled
        self._was_there = False
        self._until = 0.0  # a repair waits until then, as WSLInterop is gone alone or was enabled by hand
        # Inodes of the entries behind WSLInterop. A specific entry that is not among them belongs in front.
        self._behind: "set[int] | None" = None
        # Inodes of the entries that match no file that begins with MZ: what an entry matches never changes.
        self._others: "set[int]" = set()

    def look(self, entries: "dict[str, int]", now: float, *, wiped: bool = True) -> "Plan":
        """Decide what is to be done. wiped: whether all entries are gone that were there before."""
        wsl = table.read(NAME)
        if wiped or bool(wsl) != self._was_there:
            self._until = 0.0 if wiped or wsl else now + PATIENCE
        self._was_there = bool(wsl)
        if wsl and self._learn_whether_disabled(wsl):
            self._until = time.monotonic() + PATIENCE
        due = self._until if now < self._until else 0.0
        clear: "list[Write]" = [(table.remove, TEMPORARY)] if TEMPORARY in entries else []
        if self.disabled and wsl:
            return clear + [(table.disable, NAME)] * wsl.enabled, "", 0.0
        if self.disabled:
            # A temporary entry is left alone: the watch of another distro that registers one knows of an `echo 1`.
            return ([], "", due) if due else ([(table.register, PLACEHOLDER), (table.disable, NAME)], MISSING, 0.0)
        if wsl and due:
            return clear, "", due
        rivals, specific, misplaced = self._neighbours(entries)
        # Whether a temporary entry is in front of all that it has to be: of rivals, unless WSLInterop is behind them.
        is_behind = wsl is not None and entries.get(NAME) == wsl.inode
        outranking = {*(() if is_behind else rivals), TEMPORARY}
        first = (name for name in entries if name in outranking or entries[name] in (self._behind or ()))
        is_first = bool(clear) and next(first) == TEMPORARY
        if wsl is None and due and (is_first or not clear):
            return [] if is_first else _register(TEMPORARY, specific), "", due
        if wsl is None:
            return [*_register(NAME, specific), *clear], MISSING, 0.0
        if is_as_registered(wsl) and not rivals:
            return [*clear, *_again(misplaced)], "", 0.0
        fault = f"{rivals[0]} outranks {NAME}" if rivals else f"{NAME} is not as WSL registers it"
        replace: "list[Write]" = [(_remove_enabled, NAME), *_register(NAME, specific), (table.remove, TEMPORARY)]
        if wsl.extension == PLACEHOLDER_EXTENSION:
            return replace, f"{NAME} was enabled by hand", 0.0
        # An earlier repair may have been interrupted.
        return ([] if is_first else [*clear, (table.register, rule(TEMPORARY))]) + replace, fault, 0.0

    def repair(self, plan: "Plan" = ([], "", 0.0), *, wiped: bool = True) -> "Plan":
        """Do what a look found, or what another one finds; returns what has been done. Raises OSError."""
        with table.Lock() as was_free:
            for tries_left in reversed(range(TRIES)):
                # The watch of another distro may have done the same since. A correct entry must not be replaced.
                if plan[1] != MISSING or not was_free:
                    plan = self.look(table.entries(), time.monotonic(), wiped=wiped)
                try:
                    for write, argument in plan[0]:
                        write(argument)
                    break
                except (FileExistsError, FileNotFoundError):
                    if not tries_left:
                        raise
                    was_free = False
            if self.disabled:
                # From here on, a write of 1 is an administrator's, unless another program has registered it anew.
                wsl = table.read(NAME)
                if wsl and (not wsl.enabled or wsl.extension == PLACEHOLDER_EXTENSION):
                    self.inode = wsl.inode
        return plan

    def _learn_whether_disabled(self, wsl: table.Entry) -> bool:
        """Tell `echo 0 >WSLInterop` from a registration, which always enables it; returns whether it was `echo 1`."""
        was_disabled = self.disabled
        if not self.inode or wsl.inode == self.inode or not wsl.enabled:
            self.disabled = not wsl.enabled
        # An enabled entry that is to be disabled is not remembered.
        if not (wsl.enabled and self.disabled):
            self.inode = wsl.inode
        return was_disabled and not self.disabled

    def _neighbours(self, entries: "dict[str, int]") -> "tuple[list[str], list[str], list[str]]":
        """List the rivals, the newest first, the specific entries, the oldest first, and those that are misplaced.

        A specific entry belongs in front of WSLInterop, and is misplaced behind it.
        """
        inodes = [*entries.values()]
        behind = set(inodes[inodes.index(entries[NAME]) + 1 :] if NAME in entries else ())
        if self._behind is None:
            self._behind = behind
        self._others.intersection_update(inodes)
        rivals: "list[str]" = []
        specific: "list[str]" = []
        for name, inode in entries.items():
            if inode in self._others or inode in self._behind or is_ours(name):
                continue
            entry = table.read(name)
            if entry and is_rival(entry):
                rivals.append(name)
            elif entry and is_specific(entry):
                specific.insert(0, name)
            elif entry and entry.extension is None and not entry.may_match(b"MZ"):
                self._others.add(inode)
        misplaced = [name for name in specific if entries[name] in behind]
        if NAME in entries:
            self._behind = behind.difference(entries[name] for name in misplaced)
            rivals = [name for name in rivals if entries[name] not in behind]
        return rivals, specific, misplaced


def _register(name: str, specific: "Iterable[str]") -> "list[Write]":
    """Register WSLInterop or the temporary entry, and anew the specific entries that are to stay in front of it."""
    return [(table.register, rule(name)), *_again(specific)]


def _again(names: "Iterable[str]") -> "Iterator[Write]":
    """Register entries anew, as far as that can be done from here."""
    for name in names:
        entry = table.read(name)
        # The kernel registers every entry enabled, so that a disabled one is not registered until it is enabled.
        if entry and entry.enabled and posix.access(entry.interpreter, posix.X_OK):
            try:
                again = entry.rule(name)
            except ValueError:
                continue
            yield table.remove, name
            yield table.register, again


def _remove_enabled(name: str) -> None:
    """Remove an entry, unless an administrator has disabled it since the look; raises FileNotFoundError then."""
    entry = table.read(name)
    if entry and not entry.enabled:
        raise FileNotFoundError(name)
    table.remove(name)
