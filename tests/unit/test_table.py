# SPDX-License-Identifier: MIT
"""What entries of the table, and rules for it, say."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import kernel
from wsl_binfmt import interop, table
from wsl_binfmt.table import Entry

if TYPE_CHECKING:
    from pathlib import Path

FP = b"PF"


def entry(magic: bytes | None = b"MZ", offset: int = 0, mask: bytes | None = None, *, enabled: bool = True) -> Entry:
    """Make an entry whose interpreter does not matter."""
    return Entry(enabled=enabled, interpreter=b"/x", flags=b"", offset=offset, magic=magic, mask=mask)


@pytest.mark.parametrize(
    ("candidate", "start", "expected"),
    [
        (entry(), b"MZ", True),
        (entry(), b"MX", False),
        (entry(), b"XZ", False),
        (entry(enabled=False), b"MZ", True),  # when it is enabled
        (entry(b"MZ\x90\0"), b"MZ", True),  # the rest may follow
        (entry(b"MX\x90\0"), b"MZ", False),
        (entry(b"M"), b"MZ", True),
        (entry(b""), b"MZ", True),
        (entry(b"Z", 1), b"MZ", True),
        (entry(b"M", 1), b"MZ", False),
        (entry(b"PE\0\0", 128), b"MZ", True),
        (entry(b"\x7fELF"), b"MZ", False),
        (entry(b"\x7fELF", 2), b"MZ", True),
        (entry(b"mz", mask=b"\xdf\xdf"), b"MZ", True),
        (entry(b"mz", mask=b"\xff\xdf"), b"MZ", False),
        (entry(b"xy", mask=b"\0\0"), b"MZ", True),
        (entry(b"xZ", mask=b"\0\xff"), b"MZ", True),
        (entry(b"xX", mask=b"\0\xff"), b"MZ", False),
        (entry(None), b"MZ", False),  # goes by the name's extension
        (entry(), b"", True),
    ],
)
def test_may_match(candidate: Entry, start: bytes, expected: bool) -> None:
    """Whether an entry may take a file, from what the file begins with."""
    assert candidate.may_match(start) is expected


@given(st.binary(min_size=1, max_size=6), st.integers(0, 4), st.binary(min_size=6, max_size=6), st.binary(max_size=12))
def test_may_match_as_the_kernel(magic: bytes, offset: int, masks: bytes, file: bytes) -> None:
    """What the kernel gives to an entry, may_match() says of every beginning of the file."""
    mask = masks[: len(magic)]
    there = file[offset : offset + len(magic)].ljust(len(magic), b"\0")
    # Half of the examples match.
    magic = bytes(a if m & 1 else b for a, b, m in zip(magic, there, mask))
    matches = all((a ^ b) & m == 0 for a, b, m in zip(magic, there, mask))
    candidate = entry(magic, offset, mask)
    whole = file.ljust(offset + len(magic), b"\0")
    assert candidate.may_match(whole) == matches
    for length in range(len(whole)):
        assert candidate.may_match(whole[:length]) >= matches


WSL = b"enabled\ninterpreter /init\nflags: PF\noffset 0\nmagic 4d5a\n"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (b"", b"", True),
        (b"enabled", b"disabled", True),
        (b"4d5a\n", b"4d5a\nmask ffff\n", True),
        (b"PF", b"POCF", True),  # what a later WSL may set
        (b"PF", b"P", False),
        (b"PF", b"F", False),
        (b"/init", b"/bin/echo", False),
        (b"/init", b"/init ", False),
        (b"offset 0", b"offset 1", False),
        (b"4d5a", b"4d5a90", False),
        (b"4d5a", b"4d", False),
        (b"4d5a\n", b"4d5a\nmask fffe\n", False),
        (b"offset 0\nmagic 4d5a", b"extension .exe", False),
    ],
)
def test_is_as_registered(old: bytes, new: bytes, expected: bool) -> None:
    """What is as WSL registers it, and what differs in one thing."""
    assert interop.is_as_registered(table.parse(WSL.replace(old, new, 1))) is expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("WSLInterop", True),
        ("WSLInterop-temporary", True),
        ("WSLInterop-late", False),
        ("wslinterop", False),
        ("WSLInterop ", False),
        ("", False),
        ("qemu-aarch64", False),
    ],
)
def test_is_ours(name: str, expected: bool) -> None:
    """WSLInterop and the temporary entry; WSLInterop-late is WSL's own affair."""
    assert interop.is_ours(name) is expected


def test_rule_is_as_wsl() -> None:
    """What is registered is what WSL registers, and is recognised as that."""
    assert interop.rule("WSLInterop") == kernel.WSL
    assert table.parse(WSL).rule("WSLInterop") == kernel.WSL.replace(b":FP", b":PF").replace(b":M::", b":M:0:")


def test_parse() -> None:
    """An entry's file, in each of its forms."""
    found = table.parse(WSL)
    assert (found.enabled, found.interpreter, found.flags) == (True, b"/init", FP)
    assert (found.offset, found.magic, found.mask) == (0, b"MZ", None)
    found = table.parse(WSL.replace(b"enabled", b"disabled") + b"mask ffdf\n")
    assert (found.enabled, found.mask) == (False, b"\xff\xdf")
    found = table.parse(b"enabled\ninterpreter /usr/bin/cli\nflags: \nextension .exe\n")
    assert (found.interpreter, found.flags, found.magic, found.extension) == (b"/usr/bin/cli", b"", None, b"exe")


@pytest.mark.parametrize(
    ("name", "extension", "expected"),
    [("t", b"exe", b":t:E::exe::/x:"), ("\udcff:", b"a|b", b",\xff:,E,,a|b,,/x,")],
)
def test_rule_by_extension(name: str, extension: bytes, expected: bytes) -> None:
    """The delimiter is none of its texts', and a name may be any bytes."""
    assert Entry(enabled=True, interpreter=b"/x", flags=b"", extension=extension).rule(name) == expected


@pytest.mark.parametrize("extension", [b"a\nb c", b"a\rb c", b"x\nmagic 4d", b".", b" "])
def test_extension(extension: bytes) -> None:
    """It is whatever was registered, line ends included; make fuzz found what was cut there."""
    assert table.parse(b"enabled\ninterpreter /x\nflags: \nextension .%s\n" % extension).extension == extension


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"enabled",
        b"enabled\n",
        WSL[:-12],  # no magic
        WSL.replace(b"offset 0", b"offset x"),
        WSL.replace(b"offset 0", b"offset"),
        WSL.replace(b"offset 0\n", b""),
        WSL.replace(b"4d5a", b"4d5"),
        WSL.replace(b"4d5a", b"4d5\xff"),
        WSL.replace(b"flags: PF\n", b""),
        WSL + b"mask ff\n",
        WSL + b"mask\n",
        b"enabled\nbpf name\nbpf-interpreter 0 /init\nflags: \n",  # of kind B, Linux 7.3
    ],
)
def test_not_understood(said: bytes) -> None:
    """An entry whose text is not understood is no rival, and is left where it is."""
    found = table.parse(said)
    assert not interop.is_as_registered(found)
    assert not interop.is_rival(found)
    assert not interop.is_specific(found)


WORDS = [
    *(b"enabled", b"disabled", b"\n", b" ", b"interpreter ", b"/init", b"flags: ", b"PF", b"offset ", b"0", b"-1"),
    *(b"magic ", b"4d5a", b"mask ", b"ffff", b"extension .", b"\xff", b"\0", b"9" * 5000),
]
SAID = st.one_of(st.binary(max_size=100), st.lists(st.sampled_from(WORDS), max_size=20).map(b"".join))


@given(SAID, st.binary(max_size=4))
@example(b"", b"MZ")
def test_parse_anything(said: bytes, start: bytes) -> None:
    """Nothing raises, whatever a file of the table says."""
    found = table.parse(said)
    assert found.may_match(start) in (True, False)
    assert interop.is_as_registered(found) in (True, False)


INTERPRETERS = st.binary(min_size=1, max_size=20).filter(lambda path: 0 not in path)
MAGICS = st.binary(min_size=1, max_size=8)


@given(INTERPRETERS, st.sampled_from([b"", b"F", b"PF", b"OC"]), MAGICS, st.integers(0, 100), st.booleans())
@example(b"/a\nflags: PF\noffset 0\nmagic 00", b"F", b"MZ", 0, False)
def test_text_and_back(interpreter: bytes, flags: bytes, magic: bytes, offset: int, masked: bool) -> None:
    """What the kernel says of an entry tells what was registered, newlines in the interpreter's name included."""
    text = b"enabled\ninterpreter %s\nflags: %s\noffset %d\nmagic %s\n" % (
        interpreter, flags, offset, magic.hex().encode(),
    )  # fmt: skip
    found = table.parse(text + (b"mask %s\n" % magic.hex().encode() if masked else b""))
    assert (found.interpreter, found.flags, found.offset, found.magic) == (interpreter, flags, offset, magic)
    assert found.mask == (magic if masked else None)


RULES = [
    b":t:M::MZ::/bin/true:",
    b":t:M::MZ::/bin/true:FP",
    b":t:M::MZ::/bin/true:PF\n",
    b":t:M:0:MZ:\\xff\\xff:/bin/true:P",
    b":t:M:4:\\x4d\\x5a\\x00:\\xff\\xff\\xfe:/bin/true:O",
    b":t:M::MZ::/bin/true:C",
    b":t:M::MZ::/bin/true:CO",
    b":t:M::MZ::/bin/true:FOCP",
    b":t:E::exe::/bin/true:",
    b":t:E::exe::/bin/true:P",
    b":t:E:0:Exe:\\xff:/bin/true:",
    b",t,M,,MZ,,/bin/true,",
    b"xtxMxx\\M\\Z xx/bin/truex",
    b":t:M:: M Z ::/bin/true:",
    b":t:M::\\x4D\\x5A::/bin/true:",
    b":t:M::\xff\xfe::/bin/true:",
    b":t:M::M\nZ::/bin/true:",
    b":t:M::MZ::/bin/a b\tc:",
    b":t:M::MZ::/bin/a\nflags: P:",
    b":t:M:1:MZ::relative:",
    b":t:M:120:MZ::/bin/true:",
    b":t:M:127:MZ::/bin/true:",
    b":t:M:-1:MZ::/bin/true:",
    b":t:M:x:MZ::/bin/true:",
    b":t:M::MZ:\\xff:/bin/true:",
    b":t:M::::/bin/true:",
    b":t:M::MZ:::",
    b":t:M::MZ::/bin/true",
    b":t:M::MZ::/bin/true:X",
    b":t:M::MZ::/bin/true:P:",
    b":t:X::MZ::/bin/true:",
    b":t:M::\\xg0::/bin/true:",
    b":t:M::\\x4::/bin/true:",
    b":t/u:M::MZ::/bin/true:",
    b"::M::MZ::/bin/true:",
    b":t",
]


def ask_kernel(rules: list[bytes], directory: Path) -> dict[bytes, bytes]:
    """What the kernel says of each rule that it takes; skips where it cannot be asked."""
    answers = kernel.ask(rules, str(directory))
    if isinstance(answers, str):
        pytest.skip(answers)
    return {rule: said for rule, said in zip(rules, answers) if said is not None}


def test_rule_for_the_kernel(tmp_path: Path) -> None:
    """Of what the kernel says of an entry, a rule is made by which the kernel says the same."""
    taken = ask_kernel(RULES, tmp_path)
    assert len(taken) >= 20
    again = {table.parse(said).rule("t"): said for said in taken.values()}
    assert ask_kernel(list(again), tmp_path) == again


def test_rule_of_any_bytes(tmp_path: Path) -> None:
    """Every byte may be in a magic; a rule is not longer than the kernel takes, 1,920 bytes."""
    for start in 0, 128:
        magic = b"".join(b"\\x%02x" % byte for byte in range(start, start + 120))
        rule = b":t:M::%s:%s:/bin/true:F" % (magic, magic)
        (said,) = ask_kernel([rule], tmp_path).values()
        again = table.parse(said).rule("t")
        assert len(again) < len(rule)
        assert ask_kernel([again], tmp_path) == {again: said}


@pytest.mark.parametrize("name", [":|,;!#~^", "x"])
def test_no_rule(name: str) -> None:
    """A name with all delimiters, and an entry that is not understood, have no rule."""
    unknown = Entry(enabled=True, interpreter=b"/x", flags=b"")
    with pytest.raises(ValueError, match=r"^no rule.*[^X]$"):
        (unknown if name == "x" else table.parse(WSL)).rule(name)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in place of the table, with an entry."""
    for name in "register", "status", "x":
        (tmp_path / name).write_bytes(WSL)
    monkeypatch.setattr(table, "DIRECTORY", str(tmp_path))
    return tmp_path


def test_reading(directory: Path) -> None:
    """Entries are all but the two files that are none, and are read whole."""
    assert table.entries() == {"x": (directory / "x").stat().st_ino}
    text = b"enabled\ninterpreter /%s\nflags: \nextension .x\n" % (b"e" * 4053)
    (directory / "x").write_bytes(text)
    entry = table.read("x")
    assert entry is not None
    assert (len(text), entry.interpreter, entry.inode) == (4096, b"/" + b"e" * 4053, table.entries()["x"])
    assert table.read("y") is None
    for status in b"enabled\n", b"disabled\n":
        (directory / "status").write_bytes(status)
        assert table.is_switched_on() is (status == b"enabled\n")


def test_writing(directory: Path) -> None:
    """What is written where; nothing is made that is not there."""
    (directory / "x").write_bytes(b"")
    table.disable("x")
    table.register(b":a:")
    assert (directory / "x").read_bytes() == b"0"
    assert (directory / "register").read_bytes() == b":a:" + WSL[3:]
    table.remove("x")
    assert (directory / "x").read_bytes() == b"-1"
    table.remove("y")
    with pytest.raises(FileNotFoundError):
        table.disable("y")


@pytest.mark.usefixtures("directory")
def test_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process at a time has the lock, and learns whether it had to wait. No process waits for ever."""
    begun = time.monotonic()
    with table.Lock() as was_free:
        assert was_free is True
        monkeypatch.setattr(table, "LOCK_MAX", 0.05)
        with table.Lock() as was_free:
            assert was_free is False
    waited = time.monotonic() - begun
    assert waited >= 0.05
    holder = table.Lock()
    holder.__enter__()
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        holder.__exit__()

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(table, "LOCK_MAX", 5)
    with table.Lock() as was_free:
        assert was_free is False
    assert slept == [0.001]
    with table.Lock() as was_free:
        assert was_free is True
    assert time.monotonic() - begun < waited + 2
