# SPDX-License-Identifier: MIT
"""The kernel's binfmt_misc table: what its entries say, and changing them.

Kernel: Documentation/admin-guide/binfmt-misc.rst and fs/binfmt_misc.c.
"""

# `os` would cost as much as all else that is done here.
import fcntl
import posix
import time

DIRECTORY = "/proc/sys/fs/binfmt_misc"
# All else in the directory is an entry.
CONTROLS = frozenset(("register", "status"))
NAME_MAX = 255  # bytes, <linux/limits.h>
PAGE_MAX = 1 << 16  # bytes: an entry's file is a page at most
# Every change under the lock takes well under a millisecond.
LOCK_PATIENCE = 1.0  # seconds


class Entry:
    """A registered format, as far as it decides who runs a program."""

    __slots__ = ("enabled", "flags", "interpreter", "magic", "mask", "offset")

    def __init__(
        self,
        enabled: bool,
        interpreter: bytes,
        flags: "frozenset[int]",
        offset: int = 0,
        magic: "bytes | None" = None,
        mask: "bytes | None" = None,
    ) -> None:
        """Describe an entry; one without `magic` goes by a file name's extension.

        interpreter: its path. flags: the letters, as bytes. offset: of the
        magic, in bytes. mask: as long as the magic; None for all bits.
        """
        self.enabled = enabled
        self.interpreter = interpreter
        self.flags = flags
        self.offset = offset
        self.magic = magic
        self.mask = mask

    def may_match(self, start: bytes) -> bool:
        """Whether this may take a file that begins with `start`."""
        if not self.enabled or self.magic is None:
            return self.enabled
        for at, byte in enumerate(start, -self.offset):
            if 0 <= at < len(self.magic) and (self.magic[at] ^ byte) & (self.mask[at] if self.mask else 0xFF):
                return False
        return True


def parse(said: bytes) -> Entry:
    """Parse what an entry's file says, bm_entry_read() in the kernel.

    A text that is not understood gives an enabled entry without a magic: one
    that may match anything, and is nobody's. An interpreter may hold newlines.
    """
    state, _, rest = said.partition(b"\ninterpreter ")
    interpreter, flags_found, rest = rest.rpartition(b"\nflags: ")
    flags, _, rest = rest.partition(b"\n")
    enabled = state != b"disabled"
    try:
        fields = dict(line.split(b" ") for line in rest.splitlines())
        magic = bytes.fromhex(fields[b"magic"].decode())
        mask = bytes.fromhex(fields[b"mask"].decode()) if b"mask" in fields else None
        if flags_found and (mask is None or len(mask) == len(magic)):
            return Entry(enabled, interpreter, frozenset(flags), int(fields[b"offset"]), magic, mask)
    except (KeyError, ValueError):
        pass
    return Entry(enabled, interpreter, frozenset(flags))


def names() -> "list[str]":
    """List the entries, the newest first: the order in which the kernel asks them.

    The directory lists them so, and unlike their times no clock can upset that.
    """
    return [name for name in posix.listdir(DIRECTORY) if name not in CONTROLS]


def is_name(name: str) -> bool:
    """Whether an entry may have this name, create_entry() in the kernel."""
    if name in CONTROLS or name in ("", ".", "..") or "/" in name or "\0" in name:
        return False
    return len(name.encode(errors="surrogateescape")) <= NAME_MAX


def text(name: str) -> "bytes | None":
    """Read what an entry's file says; None if there is none."""
    try:
        fd = posix.open(f"{DIRECTORY}/{name}", posix.O_RDONLY | posix.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return posix.read(fd, PAGE_MAX)
    finally:
        posix.close(fd)


def read(name: str) -> "Entry | None":
    """Read an entry; None if there is none."""
    said = text(name)
    return None if said is None else parse(said)


def inode(name: str) -> int:
    """Tell the inode of an entry, which another registration does not have; 0 if there is none."""
    try:
        return posix.stat(f"{DIRECTORY}/{name}").st_ino
    except FileNotFoundError:
        return 0


def registered(name: str) -> float:
    """Tell when an entry was registered, in seconds as time.time(); raises FileNotFoundError."""
    return posix.stat(f"{DIRECTORY}/{name}").st_mtime


def register(rule: bytes) -> None:
    """Add an entry, as the newest; raises FileExistsError if its name is taken."""
    _write("register", rule)


def remove(name: str) -> None:
    """Remove an entry, if there is one."""
    try:
        _write(name, b"-1")
    except FileNotFoundError:
        pass


def disable(name: str) -> None:
    """Keep an entry, and have the kernel pass over it."""
    _write(name, b"0")


def _write(name: str, data: bytes) -> None:
    fd = posix.open(f"{DIRECTORY}/{name}", posix.O_WRONLY | posix.O_CLOEXEC)
    try:
        posix.write(fd, data)
    finally:
        posix.close(fd)


class Lock:
    """While held, nobody else who takes it changes the table, in any distro.

    flock(2) on the directory: it is one inode for the whole VM. Anybody may
    take it, and must not keep us from our work: after LOCK_PATIENCE we go on.
    """

    def __enter__(self) -> None:
        """Take the lock."""
        self._fd = posix.open(DIRECTORY, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
        end = time.monotonic() + LOCK_PATIENCE
        while time.monotonic() < end:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(0.002)

    def __exit__(self, *_: object) -> None:
        """Give it back."""
        posix.close(self._fd)
