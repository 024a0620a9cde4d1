# SPDX-License-Identifier: MIT
"""What a diagnosis is about: Windows programs, or the program that the user named; and what handles it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Iterator, List, NamedTuple, Optional

from wsl_binfmt import interop
from wsl_binfmt.diagnosis.about_session import is_of_windows
from wsl_binfmt.diagnosis.problems import PROGRAM, START_MAX, handles_windows, is_rival, matches

if TYPE_CHECKING:
    from wsl_binfmt.diagnosis import machine as m

WINDOWS, ELF, SCRIPT, OTHER, EMPTY, UNKNOWN = "windows", "elf", "script", "other", "empty", "unknown"
# Processors by their numbers, elf(5) and <linux/elf-em.h>; by the names that emulators have for them.
PROCESSORS = {
    2: "sparc",
    3: "i386",
    4: "m68k",
    8: "mips",
    15: "hppa",
    20: "ppc",
    21: "ppc64",
    22: "s390x",
    40: "arm",
    42: "sh4",
    43: "sparc64",
    62: "x86_64",
    94: "xtensa",
    183: "aarch64",
    243: "riscv",
    247: "bpf",
    258: "loongarch64",
    0x9026: "alpha",
}
# Types of ELF files that the kernel does not execute, in either byte order: ET_REL, such as *.o, and ET_CORE.
NO_PROGRAMS = b"\1\0", b"\0\1", b"\4\0", b"\0\4"
# Pairs of which a kernel for the first runs programs for the second as well.
ALSO = (62, 3), (183, 40), (21, 20), (43, 2)


class Subject(NamedTuple):
    """What a diagnosis is about."""

    name: str  # how to call it in a sentence
    kind: str
    handler: Optional[m.Entry] = None  # the entry that handles it
    outranked: List[m.Entry] = []  # entries that match it as well, and are older
    is_ordinary: bool = False  # whether it begins as Windows programs of ordinary linkers do
    processor: str = ""  # that an ELF file is for
    is_native: bool = False  # whether the kernel itself runs it
    starts_windows: Optional[bool] = False  # whether it is a script that starts a Windows program; None: it names one

    @property
    def needs_table(self) -> bool:
        """Whether the kernel runs it by the table."""
        return self.handler is not None or not (self.is_native or self.kind == SCRIPT)

    @property
    def is_for_windows(self) -> bool:
        """Whether a problem of WSLInterop or the session concerns it. If a specific entry handles it, none does."""
        is_of_table = self.kind == WINDOWS and not (self.is_taken_by_specific and not self.is_ordinary)
        return self.kind == UNKNOWN or is_of_table or self.starts_windows is not False

    @property
    def is_taken_by_specific(self) -> bool:
        """Whether an entry handles it that takes no ordinary Windows programs, such as APE's."""
        return self.handler is not None and not handles_windows(self.handler) and not is_rival(self.handler)


def of(machine: m.Machine) -> Subject:
    """Tell what a diagnosis of a machine is about."""
    program = machine.program
    if program is None:
        return Subject("Windows programs", WINDOWS, *_handlers(machine, PROGRAM, "program.exe"), is_ordinary=True)
    path = program.place.path or program.asked
    if program.start is None:
        # Only its name is known, not how it begins.
        if not path.lower().endswith(".exe"):
            return Subject(program.asked, UNKNOWN)
        return Subject(program.asked, WINDOWS, *_handlers(machine, PROGRAM, path), is_ordinary=True)
    start = bytes.fromhex(program.start).ljust(START_MAX, b"\0")[:START_MAX]
    about = Subject(program.asked, _kind(bytes.fromhex(program.start)), *_handlers(machine, start, path))
    if about.kind == WINDOWS:
        return about._replace(is_ordinary=start.startswith(interop.HEADERS))
    if about.kind == ELF:
        if start[16:18] in NO_PROGRAMS:
            return about._replace(kind=OTHER)
        processor, is_native = _processor(start, bytes.fromhex(machine.system.native))
        return about._replace(processor=processor, is_native=is_native and about.handler is None)
    if about.kind == SCRIPT:
        return about._replace(starts_windows=_starts_windows(program))
    return about


def _starts_windows(program: m.Program) -> Optional[bool]:
    """Whether a script starts a Windows program, as `code` does; None if it only names one."""
    if program.interpreter.lower().endswith(".exe"):
        return True
    return program.names_exe and (is_of_windows(program.place) or None)


def _kind(start: bytes) -> str:
    kinds = {b"MZ": WINDOWS, b"\x7fELF": ELF, b"#!": SCRIPT}
    return next((kind for magic, kind in kinds.items() if start.startswith(magic)), OTHER if start else EMPTY)


def _handlers(machine: m.Machine, start: bytes, path: str) -> "tuple[Optional[m.Entry], List[m.Entry]]":
    """Tell which entry handles a file, and which ones it outranks."""
    matching = list(_matching(machine, start, path))
    return (matching[0] if matching else None), matching[1:]


def _matching(machine: m.Machine, start: bytes, path: str) -> Iterator[m.Entry]:
    for entry in machine.table.entries or []:
        if entry.enabled and matches(entry.kernel(), start, path):
            yield entry


def _processor(start: bytes, native: bytes) -> "tuple[str, bool]":
    """Tell for which processor an ELF file is, and whether that is this one."""

    def number(header: bytes) -> int:
        return int.from_bytes(header[18:20], "big" if header[5:6] == b"\2" else "little")

    mine, theirs = number(native), number(start)
    is_same = start[4:6] == native[4:6] and mine == theirs
    return PROCESSORS.get(theirs, f"number {theirs}"), is_same or (mine, theirs) in ALSO
