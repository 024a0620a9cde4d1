# SPDX-License-Identifier: MIT
"""The kernel's binfmt_misc table: what its entries say, and changing them.

Kernel: Documentation/admin-guide/binfmt-misc.rst and fs/binfmt_misc.c.
"""

# Importing `os` takes long.
import fcntl
import posix
import time

DIRECTORY = "/proc/sys/fs/binfmt_misc"
CONTROLS = "register", "status"  # everything else in the directory is an entry
PAGE_MAX = 1 << 16  # bytes: the file of an entry is one page at most
LOCK_MAX = 0.5  # seconds; a process holds the lock for less than a millisecond, unless it is stopped


class Entry:
    """What a rule registers: which files it matches, and what runs them."""

    enabled = True
    interpreter = flags = b""
    offset = 0  # of the magic in the file, in bytes
    magic: "bytes | None" = None
    mask: "bytes | None" = None  # as long as the magic; None if all bits count
    extension: "bytes | None" = None  # with neither magic nor extension, nothing is known of the files
    inode = 0  # as of entries()

    def __init__(self, **fields: "bool | bytes | int | None") -> None:
        """Set fields."""
        self.__dict__.update(fields)

    def may_match(self, start: bytes) -> bool:
        """Whether the magic of an entry like this matches a file that begins with `start` and may go on in any way."""
        if self.magic is None:
            return False
        for at, byte in enumerate(start, -self.offset):
            if 0 <= at < len(self.magic) and (self.magic[at] ^ byte) & (self.mask[at] if self.mask else 0xFF):
                return False
        return True

    def says(self) -> "tuple[object, ...]":
        """Tell what a rule says of an entry: two entries that are equal in this were made by the same rule."""
        flags = self.flags + b"O" if b"C" in self.flags else self.flags  # as the kernel takes it
        mask = self.mask if self.mask and self.mask.strip(b"\xff") else None
        return self.interpreter, frozenset(flags), self.offset, self.magic, mask, self.extension

    def rule(self, name: str) -> bytes:
        """Make the rule that registers this entry under `name`; raises ValueError if none can."""
        encoded = name.encode(errors="surrogateescape")
        # The first byte of a rule is its delimiter, and may be any that its texts do not have.
        texts = encoded + self.interpreter + (self.extension or b"")
        delimiter = b":|,;!#~^".translate(None, texts)[:1]
        if not delimiter or (self.extension, self.magic) == (None, None):
            raise ValueError(f"no rule can register {name!r}")
        if self.extension is not None:
            kind = [b"E", b"", self.extension, b""]
        else:
            kind = [b"M", b"%d" % self.offset, *(_escape(bits or b"", delimiter) for bits in (self.magic, self.mask))]
        return delimiter + delimiter.join([encoded, *kind, self.interpreter, self.flags])


def parse(text: bytes) -> Entry:
    """Parse the text of an entry's file, entry_status() in the kernel. An interpreter's path may have newlines in it.

    A text that is not understood, as of kind B (Linux 7.3), gives neither magic nor extension.
    """
    state, _, rest = text.partition(b"\ninterpreter ")
    interpreter, flags_found, rest = rest.rpartition(b"\nflags: ")
    flags, _, rest = rest.partition(b"\n")
    entry = Entry(enabled=state != b"disabled", interpreter=interpreter, flags=flags)
    if rest.startswith(b"extension ."):
        # As registered: that may have line ends in it as well.
        entry.extension = rest[len(b"extension .") : -1]
        return entry
    try:
        fields = dict(line.split(b" ", 1) for line in rest.splitlines())
        offset, magic = int(fields[b"offset"]), bytes.fromhex(fields[b"magic"].decode())
        mask = bytes.fromhex(fields[b"mask"].decode()) if b"mask" in fields else None
    except (KeyError, ValueError):
        return entry
    # A name of an extension may have anything in it, also what looks like these lines.
    if flags_found and (not flags or flags.isalpha()) and (mask is None or len(mask) == len(magic)):
        entry.offset, entry.magic, entry.mask = offset, magic, mask
    return entry


def parse_rule(rule: bytes) -> "tuple[str, Entry]":
    """Parse a rule, create_entry() in the kernel; returns the name and what is registered. Raises ValueError."""
    name, kind, offset, magic, mask, interpreter, flags = rule[1:].split(rule[:1])
    entry = Entry(enabled=True, interpreter=interpreter, flags=flags.rstrip(b"\n"))
    if kind == b"E":
        entry.extension = magic
    else:
        entry.offset, entry.magic, entry.mask = int(offset or b"0"), _unescape(magic), _unescape(mask) or None
        if entry.mask and len(entry.mask) != len(entry.magic):
            raise ValueError("magic and mask are not of the same length")
    return name.decode(errors="surrogateescape"), entry


def _unescape(text: bytes) -> bytes:
    r"""Read the bytes of a magic or mask: \xH and \xHH are one byte each."""
    data, *escaped = text.split(b"\\x")
    for rest in escaped:
        digits = len(rest[:2]) - len(rest[:2].lstrip(b"0123456789abcdefABCDEF"))
        data += bytes([int(rest[:digits], 16)]) + rest[digits:] if digits else b"\\x" + rest
    return data


def _escape(data: bytes, delimiter: bytes) -> bytes:
    r"""Write the bytes of a magic or mask as a rule has them: \xHH for those that would end or mean something."""
    return b"".join(b"\\x%02x" % byte if byte in b"\0\\" + delimiter else b"%c" % byte for byte in data)


def entries() -> "dict[str, int]":
    """List the entries with their inodes, the newest first: the order in which the kernel asks them.

    Each registration has another inode, until the 32-bit counter of the kernel's get_next_ino() wraps.
    """
    return {entry.name: entry.inode() for entry in posix.scandir(DIRECTORY) if entry.name not in CONTROLS}


def read(name: str) -> "Entry | None":
    """Read an entry; None if there is none."""
    try:
        text, inode = _read(name)
    except FileNotFoundError:
        return None
    entry = parse(text)
    entry.inode = inode
    return entry


def is_switched_on() -> bool:
    """Whether the table's `status` says that the kernel asks the entries at all; raises OSError."""
    return _read("status")[0] != b"disabled\n"


def _read(name: str) -> "tuple[bytes, int]":
    """Read the text of a file and its inode, both of one registration."""
    fd = posix.open(f"{DIRECTORY}/{name}", posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        return posix.read(fd, PAGE_MAX), posix.fstat(fd).st_ino
    finally:
        posix.close(fd)


def register(rule: bytes) -> None:
    """Add an entry, as the newest; raises FileExistsError if its name is taken."""
    _write("register", rule)


def remove(name: str, inode: int = 0) -> None:
    """Remove an entry, if there is one; with an inode, only that registration of the name."""
    try:
        _write(name, b"-1", inode)
    except FileNotFoundError:
        pass


def disable(name: str) -> None:
    """Keep an entry, and have the kernel pass over it; raises FileNotFoundError."""
    _write(name, b"0")


def _write(name: str, data: bytes, inode: int = 0) -> None:
    fd = posix.open(f"{DIRECTORY}/{name}", posix.O_WRONLY | posix.O_CLOEXEC)
    try:
        if inode in (0, posix.fstat(fd).st_ino):
            posix.write(fd, data)
    finally:
        posix.close(fd)


class Lock:
    """flock(2) on `register`, which is one inode for all distros, and which only root can open.

    A process that is stopped must not keep the others from their work: after LOCK_MAX they go on without the lock.
    """

    def __enter__(self) -> bool:
        """Take the lock; returns whether it was free."""
        self._fd = posix.open(f"{DIRECTORY}/register", posix.O_RDONLY | posix.O_CLOEXEC)
        end = time.monotonic() + LOCK_MAX
        was_free = True
        while time.monotonic() < end:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:  # it is held, or the kernel has no memory
                was_free = False
                time.sleep(0.001)
        return was_free

    def __exit__(self, *_: object) -> None:
        """Release the lock."""
        posix.close(self._fd)
