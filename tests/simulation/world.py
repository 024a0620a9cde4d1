# SPDX-License-Identifier: MIT
"""The VM in memory: the kernel's binfmt_misc table, as fs/binfmt_misc.c keeps it, and the files of each distro."""

from __future__ import annotations

import errno
import itertools
import os
import string
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from scheduler import Process

WSL = b":WSLInterop:M::MZ::/init:FP"
APE = b":APE:M::MZqFpD::/usr/bin/ape:"
# How files begin that are ordinary Windows programs, and what their names end in.
PROGRAMS = [(start, extension) for start in (b"MZ\x90\0", b"MZP\0", b"MZx\0", b"MZ\0\0") for extension in (b"exe", b"")]
RULE_MAX = 1920
BUFFER = 256  # bytes of a file that the kernel matches


def error(number: int, path: str = "") -> OSError:
    """Make the exception that a system call raises."""
    return OSError(number, os.strerror(number), path)


class Entry:
    """An entry. It is kept as the fields of its rule; its text is made from them."""

    def __init__(self, rule: bytes) -> None:
        """Do as create_entry() does; raises OSError."""
        fields = rule[1:-1].split(rule[:1]) if rule.endswith(b"\n") else rule[1:].split(rule[:1])
        fields = fields if 11 <= len(rule) <= RULE_MAX else []
        if len(fields) != 7 or fields[1] not in (b"M", b"E"):
            raise error(errno.EINVAL)
        name, kind, offset, magic, mask, self.interpreter, flags = fields
        self.name = os.fsdecode(name)
        self.flags = bytes(flag for flag in b"POCF" if flag in flags or (flag in b"O" and b"C" in flags))
        self.extension = magic if kind == b"E" else None
        self.offset, self.magic, self.mask = 0, b"", b""
        if self.extension is None:
            if offset.strip(b"0123456789"):
                raise error(errno.EINVAL)
            self.offset, self.magic, self.mask = int(offset or b"0"), _unescape(magic), _unescape(mask)
        if (
            name in (b"", b".", b"..")
            or b"/" in name
            or b"\0" in name
            or not self.interpreter
            or flags.strip(b"POCF")
            or (kind == b"M" and not self.magic)
            or (self.mask and len(self.mask) != len(self.magic))
            or self.offset + len(self.magic) > BUFFER
            or (self.extension is not None and (not self.extension or b"/" in self.extension))
        ):
            raise error(errno.EINVAL)
        self.rule = rule
        self.enabled = True
        self.inode = 0
        self.by: Process | None = None  # the watch that has registered it; when, and when it had looked for that
        self.born = self.decided = 0.0

    def __str__(self) -> str:
        return self.name

    @property
    def text(self) -> bytes:
        """What its file says, entry_status()."""
        lines = [
            b"enabled" if self.enabled else b"disabled",
            b"interpreter " + self.interpreter,
            b"flags: " + self.flags,
        ]
        if self.extension is not None:
            lines.append(b"extension ." + self.extension)
        else:
            lines += [b"offset %d" % self.offset, b"magic " + self.magic.hex().encode()]
            lines += [b"mask " + self.mask.hex().encode()] if self.mask else []
        return b"\n".join(lines) + b"\n"

    @property
    def content(self) -> bytes:
        """What its text says besides whether it is enabled: entries of the same rule are equal in this."""
        return self.text.partition(b"\n")[2]

    def matches(self, start: bytes, extension: bytes) -> bool:
        """Whether the kernel gives a file to this entry, search_binfmt_handler()."""
        if not self.enabled:
            return False
        if self.extension is not None:
            return self.extension == extension
        there = start.ljust(BUFFER, b"\0")[self.offset : self.offset + len(self.magic)]
        mask = self.mask or b"\xff" * len(self.magic)
        return all((a ^ b) & bits == 0 for a, b, bits in zip(there, self.magic, mask))


def content_of(rule: bytes) -> bytes:
    """Tell the content of the entry that a rule makes; b"" if it is refused."""
    try:
        return Entry(rule).content
    except OSError:
        return b""


def _unescape(text: bytes) -> bytes:
    data = b""
    while text:
        if text.startswith(b"\\x"):
            digits = text[2:4]
            if len(digits) != 2 or not all(chr(digit) in string.hexdigits for digit in digits):
                raise error(errno.EINVAL)
            data, text = data + bytes([int(digits, 16)]), text[4:]
        else:
            data, text = data + text[:1], text[1:]
    return data


class Table:
    """The table: `entries` has the newest first. What is opened is an Entry, or "register" or "status"."""

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        """on_change: what dnotify does."""
        self.entries: list[Entry] = []
        self.enabled = True
        self.refuses = 0  # errno of each write, while it is not 0
        # Who holds flock(2) on `register`, by which file descriptor.
        self.lock: tuple[Process, int] | None = None
        self._on_change = on_change
        self._inodes = itertools.count(1001)

    def get(self, name: str) -> Entry | None:
        """Find an entry by its name."""
        return next((entry for entry in self.entries if entry.name == name), None)

    def open(self, name: str) -> Entry | str:
        """Open a file of the table; raises FileNotFoundError."""
        found = name if name in ("register", "status") else self.get(name)
        if found is None:
            raise error(errno.ENOENT, name)
        return found

    def read(self, file: Entry | str) -> bytes:
        """Read it."""
        if isinstance(file, Entry):
            return file.text
        if file == "register":
            raise error(errno.EINVAL, file)
        return b"enabled\n" if self.enabled else b"disabled\n"

    def write(self, file: Entry | str, data: bytes) -> None:
        """Write to it; raises OSError."""
        if self.refuses:
            raise error(self.refuses, str(file))
        if file == "register":
            entry = Entry(data)
            if entry.name in ("register", "status") or self.get(entry.name):
                raise error(errno.EEXIST, entry.name)
            entry.inode = next(self._inodes)
            self.entries.insert(0, entry)
        else:
            command = data[:-1] if data.endswith(b"\n") else data
            if command not in (b"0", b"1", b"-1"):
                raise error(errno.EINVAL)
            if isinstance(file, Entry):
                if command == b"-1":
                    self.entries = [entry for entry in self.entries if entry is not file]
                else:
                    file.enabled = command == b"1"
            elif command == b"-1":
                self.entries = []
            else:
                self.enabled = command == b"1"
        self._on_change()

    def handler(self, start: bytes, extension: bytes = b"") -> Entry | None:
        """Find the entry that the kernel gives a file to."""
        if not self.enabled:
            return None
        return next((entry for entry in self.entries if entry.matches(start, extension)), None)

    def handler_of_windows(self) -> str:
        """Tell which interpreter runs ordinary Windows programs; where they differ, the one that is not /init."""
        found = [self.handler(*program) for program in PROGRAMS]
        others = [entry.interpreter.decode() if entry else "nothing" for entry in found]
        return next((interpreter for interpreter in others if interpreter != "/init"), "/init")


PROTECTED, WITHOUT_INTEROP, WITHOUT = "protected", "protected, without interop", "without this package"


class Distro:
    """A distro: its files, its services and what of it is in the table's way."""

    def __init__(self, number: int, kind: str, generation: str) -> None:
        self.number = number
        self.name = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[number]
        # Whether the package is installed there, has a watch, as it has not where wsl.conf switches Windows programs
        # off; and which WSL it runs on.
        self.protected = kind != WITHOUT
        self.has_watch = kind == PROTECTED
        self.generation = generation
        self.pid_namespace = 4026530000 + number
        self.files: dict[str, bytes] = {}
        self.links: dict[str, str] = {}
        self.programs = {"/init", "/usr/bin/ape"}
        self.failed: set[str] = set()
        self.is_up = False
        self.is_shutting_down = False  # systemd stops its services
        self.is_shutdown = False  # its PID 1 is systemd-shutdown
        self.run_is_full = False
        self.no_init_since = 0.0
        self.ended_cleanly = False
        self.watches = 0  # how many were started
        self.booted = self.leaves = self.ended = 0.0
        self.started: dict[str, float] = {}  # when its services were, and when they were stopped
        self.stopped: dict[str, float] = {}
        # What the promises remember: what its rules have ever made, and how late its watch was in this round.
        self.contents: set[bytes] = set()
        self.lateness = 0.0
        self.first_looked = 0.0
        self.listed: set[int] = set()  # the inodes that its watch saw last, and when none was left of them
        self.saved: set[int] = set()
        self.wiped = 0.0
        self.seen: set[int] = set()
        self.known_off: bool | None = False  # whether its watch has saved that WSLInterop is disabled
        self.changed_rules = 0  # by which operation, in this round
        self.reread = False  # its service has read them after that

    @property
    def guards_status(self) -> bool:
        """Whether `status` cannot be written to in this distro."""
        return self.protected or self.generation == "3.0"

    def learn(self) -> None:
        """Remember which entries its rules make."""
        for rule in (rule for of_service in self.rules().values() for rule in of_service):
            self.contents.add(content_of(rule))

    def rules(self) -> dict[str, list[bytes]]:
        """Tell the rules of each of its services, in the order in which it registers them."""
        paths = [path for path in sorted(self.files) if path.startswith("/etc/binfmt.d/")]
        lines = [line.strip() for path in paths for line in self.files[path].split(b"\n")]
        imported = [
            rule_of_update_binfmts(path, self.files[path])
            for path in sorted(self.files)
            if path.startswith("/var/lib/binfmts/")
        ]
        return {
            "systemd-binfmt.service": [line for line in lines if line and line[:1] not in b"#;"],
            "binfmt-support.service": imported,
        }


def file_of_update_binfmts(rule: bytes) -> bytes:
    """Make the file that update-binfmts has of a rule."""
    _, kind, offset, magic, mask, interpreter, flags = rule[1:].split(rule[:1])
    options = [b"yes" if flag in flags else b"" for flag in (b"C", b"P", b"F")]
    fields = [b"package", {b"M": b"magic", b"E": b"extension"}[kind], offset or b"0", magic, mask, interpreter, b""]
    return b"".join(field + b"\n" for field in [*fields, *options])


def rule_of_update_binfmts(path: str, file: bytes) -> bytes:
    """Make the rule that update-binfmts registers of such a file."""
    _, kind, offset, magic, mask, interpreter, _, *options = file.split(b"\n")
    flags = b"".join(flag for flag, option in zip((b"C", b"P", b"F"), options) if option == b"yes")
    return b":".join([b"", os.path.basename(path).encode(), kind[:1].upper(), offset, magic, mask, interpreter, flags])
