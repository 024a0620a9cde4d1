# SPDX-License-Identifier: MIT
"""What a diagnosis is about: any Windows program, or the file that was asked about; and what handles it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Iterator, List, NamedTuple, Optional

from wsl_binfmt.diagnosis.problems import PROGRAM, START_MAX, handles_windows, matches

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
# Pairs of which a kernel for the first runs programs for the second as well.
ALSO = (62, 3), (183, 40), (21, 20), (43, 2)


class Subject(NamedTuple):
    """What a diagnosis is about."""

    name: str  # how to call it in a sentence
    kind: str
    handler: Optional[m.Entry]  # the entry that handles it
    outranked: List[m.Entry]  # entries that would, were the handler not there
    processor: str = ""  # that an ELF file is for
    is_native: bool = False  # whether the kernel itself runs it

    @property
    def is_for_windows(self) -> bool:
        """Whether what is wrong with WSLInterop or the session concerns it."""
        return self.kind in (WINDOWS, UNKNOWN) and (self.handler is None or self.kind == UNKNOWN or self.goes_to_init)

    @property
    def goes_to_init(self) -> bool:
        """Whether /init handles it, or something that has taken it from /init."""
        return self.handler is None or handles_windows(self.handler) or self.is_ordinary

    is_ordinary: bool = False


def of(machine: m.Machine) -> Subject:
    """Tell what a diagnosis of a machine is about."""
    program = machine.program
    start, path = PROGRAM, "program.exe"
    if program:
        path = program.place.path or program.asked
        start = bytes.fromhex(program.start or "").ljust(START_MAX, b"\0")[:START_MAX]
    matching = list(_matching(machine, start, path))
    if program and not program.start and not (program.start == "" and program.size == 0):
        # How it begins is not known: its name alone says something.
        is_exe = path.lower().endswith(".exe")
        if is_exe:
            matching = list(_matching(machine, PROGRAM, path))
        kind = UNKNOWN if program.start is None else EMPTY
        return Subject(
            program.asked, kind if not is_exe else WINDOWS, *_first(matching if is_exe else []), "", False, True
        )
    handler, outranked = _first(matching)
    if program is None:
        return Subject("Windows programs", WINDOWS, handler, outranked, is_ordinary=True)
    if not program.start:
        return Subject(program.asked, EMPTY, handler, outranked)
    if start.startswith(b"MZ"):
        is_ordinary = start[:4] in (b"MZ\x90\0", b"MZP\0", b"MZx\0", b"MZ\0\0")
        return Subject(program.asked, WINDOWS, handler, outranked, is_ordinary=is_ordinary)
    if start.startswith(b"\x7fELF"):
        processor, is_native = _processor(start, bytes.fromhex(machine.system.native))
        return Subject(program.asked, ELF, handler, outranked, processor, is_native and handler is None)
    if start.startswith(b"#!"):
        return Subject(program.asked, SCRIPT, handler, outranked)
    return Subject(program.asked, OTHER, handler, outranked)


def _matching(machine: m.Machine, start: bytes, path: str) -> Iterator[m.Entry]:
    for entry in machine.table.entries or []:
        if entry.enabled and matches(entry.kernel(), start, path):
            yield entry


def _first(matching: List[m.Entry]) -> "tuple[Optional[m.Entry], List[m.Entry]]":
    return (matching[0] if matching else None), matching[1:]


def _processor(start: bytes, native: bytes) -> "tuple[str, bool]":
    """Tell for which processor an ELF file is, and whether that is this one."""

    def number(header: bytes) -> int:
        return int.from_bytes(header[18:20], "big" if header[5:6] == b"\2" else "little")

    mine, theirs = number(native), number(start)
    is_same = start[4:6] == native[4:6] and mine == theirs
    return PROCESSORS.get(theirs, f"number {theirs}"), is_same or (mine, theirs) in ALSO
