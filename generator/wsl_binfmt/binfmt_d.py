# SPDX-License-Identifier: MIT
"""Rules of binfmt.d(5) that could take Windows programs from WSL.

systemd-binfmt registers each rule anew at every start. One that matches Windows
programs would have them until WSLInterop is put first again, and one called
WSLInterop would replace it. So those are not for systemd-binfmt: they are
registered here, when they are not in force already, and it is shown a
/etc/binfmt.d (by the drop-in, in its own mount namespace) without them.
"""

import posix

from wsl_binfmt import notes, table

TYPE_CHECKING = False  # in place of that of `typing`, whose import takes long
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UNIT = "systemd-binfmt.service"
# In the order in which one hides a file of the same name in another; as PID 1
# sees them, because the drop-in's mounts hold for us as well.
ROOT = "/proc/1/root"
DIRECTORIES = "/etc/binfmt.d", "/run/binfmt.d", "/usr/local/lib/binfmt.d", "/usr/lib/binfmt.d", "/lib/binfmt.d"
# Of the directory of notes: what systemd-binfmt is shown for the first of them, if it is there.
VIEW = "binfmt.d"
FILE_MAX = 1 << 20  # bytes


def take_over(is_ours: "Callable[[str], bool]", start: bytes, go_first: "Callable[[], None]") -> None:
    """Register the rules that may match a file that begins with `start`, if need be.

    is_ours: whether a name is one that no rule may have; such a rule is dropped.
    go_first: is called as soon as a rule is registered, to outrank it.
    systemd-binfmt sees all but these rules from its next start on. A rule that
    the kernel refuses is left to it, for its error message. Raises OSError.
    """
    files = _read()
    # Of rules for one name, the last one counts.
    last = {_name(rule): (file, index) for file, (_, text) in files.items() for index, rule in _rules(text)}
    view = {}
    changed = False
    for file, (directory, text) in files.items():
        lines = _lines(text)
        for index, rule in _rules(text):
            name, shown = _name(rule), entry_text(rule)
            if not shown or not table.parse(shown).may_match(start):
                continue
            if is_ours(name) or last[name] != (file, index) or _in_force(name, shown) or _register(rule, go_first):
                # Keeps the numbers of the other lines, for messages.
                lines[index] = b""
                changed = True
        if lines != _lines(text) or directory == DIRECTORIES[0]:
            view[file] = b"\n".join(lines) + b"\n"
    _show(view if changed else {})


def names() -> "set[str]":
    """Names of the entries that the rules make."""
    return {_name(rule) for _, text in _read().values() for _, rule in _rules(text)}


def entry_text(rule: bytes) -> bytes:
    """Say what the kernel will say of the entry that a rule makes; b"" if it is malformed.

    Kernel: create_entry() and entry_status() in fs/binfmt_misc.c.
    """
    fields = rule[1:].split(rule[:1], 6)
    if len(fields) != 7 or fields[1] not in (b"M", b"E"):
        return b""
    _, kind, offset, magic, mask, interpreter, flags = fields
    if b"C" in flags:
        flags += b"O"
    shown = bytes(flag for flag in b"POCF" if flag in flags)
    text = b"enabled\ninterpreter " + interpreter + b"\nflags: " + shown + b"\n"
    if kind == b"E":
        return text + b"extension ." + magic + b"\n"
    try:
        text += b"offset %d" % int(offset or b"0")
    except ValueError:
        return b""
    text += b"\nmagic " + unescape(magic).hex().encode() + b"\n"
    return text + b"mask " + unescape(mask).hex().encode() + b"\n" if mask else text


def unescape(text: bytes) -> bytes:
    r"""Replace each \xHH, as string_unescape() does in the kernel."""
    first, *rest = text.split(b"\\")
    done = first
    while rest:
        part = rest.pop(0)
        try:
            done += bytes([int(part[1:3], 16)]) + part[3:] if part[:1] == b"x" else b"\\" + part
        except ValueError:
            done += b"\\" + part
        if not part and rest:
            # Two in a row: the second one begins nothing.
            done += b"\\" + rest.pop(0)
    return done


def _lines(text: bytes) -> "list[bytes]":
    """Split a text where read_line() in systemd does."""
    return text.replace(b"\0", b"\n").splitlines()


def _rules(text: bytes) -> "Iterator[tuple[int, bytes]]":
    """The rules of a file that name an entry, each with the index of its line."""
    for index, line in enumerate(_lines(text)):
        rule = line.strip()
        if rule and rule[:1] not in (b"#", b";") and table.is_name(_name(rule)):
            yield index, rule


def _name(rule: bytes) -> str:
    return rule[1:].split(rule[:1], 1)[0].decode(errors="surrogateescape")


def _in_force(name: str, shown: bytes) -> bool:
    """Whether the table has an entry, and the program that F had opened is still that."""
    if table.text(name) != shown:
        return False
    entry = table.parse(shown)
    try:
        return ord("F") not in entry.flags or posix.stat(entry.interpreter).st_ctime < table.registered(name)
    except OSError:
        return False


def _register(rule: bytes, go_first: "Callable[[], None]") -> bool:
    """Register a rule anew; returns whether the kernel took it."""
    try:
        table.remove(_name(rule))
        table.register(rule)
    except OSError:
        return False
    go_first()
    return True


def _read() -> "dict[str, tuple[str, bytes]]":
    """Read the files that count: directory and text, by name, in systemd's order.

    One that cannot be read is left to systemd-binfmt, for its error message.
    """
    files: "dict[str, tuple[str, bytes]]" = {}
    for directory in DIRECTORIES:
        for name in listdir(ROOT + directory):
            if name.endswith(".conf") and name[0] != "." and name not in files:
                text = read(f"{ROOT}{directory}/{name}")
                if text is not None:
                    files[name] = directory, text
    return dict(sorted(files.items()))


def _show(files: "dict[str, bytes]") -> None:
    """Have systemd-binfmt see these files for /etc/binfmt.d; that itself, if there are none."""
    unfinished = f"{VIEW}.new"
    notes.forget(unfinished)
    notes.forget(VIEW)
    try:
        for name, text in files.items():
            notes.write(f"{unfinished}/{name}", text)
    except OSError:
        # A view that lacks rules would be worse than none.
        notes.forget(unfinished)
        raise
    if files:
        notes.rename(unfinished, VIEW)


def read(path: str) -> "bytes | None":
    """Read a file, the first FILE_MAX bytes of it; None if it cannot be read."""
    try:
        # Neither waits for a FIFO nor reads a device to its end.
        with open(posix.open(path, posix.O_NONBLOCK), "rb") as file:
            return file.read(FILE_MAX) or b""
    except OSError:
        return None


def listdir(directory: str) -> "list[str]":
    """List the names in a directory, sorted; none if it cannot be read."""
    try:
        return sorted(posix.listdir(directory))
    except OSError:
        return []
