# SPDX-License-Identifier: MIT
"""What entries of the table, and rules for it, say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

import kernel
from wsl_binfmt import binfmt_d, interop, table
from wsl_binfmt.table import Entry

if TYPE_CHECKING:
    from pathlib import Path

FP = frozenset(b"FP")
WSL = b"enabled\ninterpreter /init\nflags: PF\noffset 0\nmagic 4d5a\n"


def entry(magic: bytes | None = b"MZ", offset: int = 0, mask: bytes | None = None, *, enabled: bool = True) -> Entry:
    """Make an entry whose interpreter does not matter."""
    return Entry(enabled, b"/x", frozenset(), offset, magic, mask)


@pytest.mark.parametrize(
    ("candidate", "start", "expected"),
    [
        (entry(), b"MZ", True),
        (entry(), b"MX", False),
        (entry(), b"XZ", False),
        (entry(enabled=False), b"MZ", False),
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
        (entry(None), b"MZ", True),  # goes by the name's extension
        (entry(None, enabled=False), b"MZ", False),
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
    candidate = Entry(True, b"/x", frozenset(), offset, magic, mask)
    whole = file.ljust(offset + len(magic), b"\0")
    assert candidate.may_match(whole) == matches
    for length in range(len(whole)):
        assert candidate.may_match(whole[:length]) >= matches


@pytest.mark.parametrize(
    ("candidate", "expected"),
    [
        (Entry(True, b"/init", FP, 0, b"MZ"), True),
        (Entry(False, b"/init", FP, 0, b"MZ"), True),
        (Entry(True, b"/init", FP, 0, b"MZ", b"\xff\xff"), True),
        (Entry(True, b"/init", frozenset(b"P"), 0, b"MZ"), False),
        (Entry(True, b"/init", frozenset(b"F"), 0, b"MZ"), False),
        (Entry(True, b"/init", frozenset(b"FPC"), 0, b"MZ"), False),
        (Entry(True, b"/init", frozenset(b"FPOC"), 0, b"MZ"), False),
        (Entry(True, b"/bin/echo", FP, 0, b"MZ"), False),
        (Entry(True, b"/init ", FP, 0, b"MZ"), False),
        (Entry(True, b"/init", FP, 1, b"MZ"), False),
        (Entry(True, b"/init", FP, 0, b"MZ\x90"), False),
        (Entry(True, b"/init", FP, 0, b"M"), False),
        (Entry(True, b"/init", FP, 0, b"MZ", b"\xff\xfe"), False),
        (Entry(True, b"/init", FP, 0, None), False),
    ],
)
def test_answers(candidate: Entry, expected: bool) -> None:
    """What is as WSL registers it, and what differs in one thing."""
    assert interop.answers(candidate) is expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("WSLInterop", True),
        (interop.stand_in(), True),
        ("WSLInterop-held-by-1", True),
        ("WSLInterop-late", False),
        ("wslinterop", False),
        ("WSLInterop ", False),
        ("", False),
        ("qemu-aarch64", False),
    ],
)
def test_is_ours(name: str, expected: bool) -> None:
    """WSL's entry and the stand-ins; WSLInterop-late is WSL's own affair."""
    assert interop.is_ours(name) is expected


def test_rule_is_as_wsl() -> None:
    """What is registered is what WSL registers, and is recognised as that."""
    assert interop.rule("WSLInterop") == kernel.WSL
    assert interop.answers(table.parse(binfmt_d.entry_text(interop.rule("WSLInterop"))))


def test_parse() -> None:
    """An entry's file, in each of its forms."""
    found = table.parse(WSL)
    assert (found.enabled, found.interpreter, found.flags) == (True, b"/init", FP)
    assert (found.offset, found.magic, found.mask) == (0, b"MZ", None)
    found = table.parse(WSL.replace(b"enabled", b"disabled") + b"mask ffdf\n")
    assert (found.enabled, found.mask) == (False, b"\xff\xdf")
    found = table.parse(b"enabled\ninterpreter /usr/bin/cli\nflags: \nextension .exe\n")
    assert (found.interpreter, found.flags, found.magic) == (b"/usr/bin/cli", frozenset(), None)


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
    ],
)
def test_not_understood(said: bytes) -> None:
    """A text that is not understood may match anything, and is nobody's."""
    found = table.parse(said)
    assert found.may_match(b"MZ")
    assert not interop.answers(found)


WORDS = [
    *(b"enabled", b"disabled", b"\n", b" ", b"interpreter ", b"/init", b"flags: ", b"PF", b"offset ", b"0", b"-1"),
    *(b"magic ", b"4d5a", b"mask ", b"ffff", b"extension .", b"\xff", b"\0", b"9" * 5000),
]
RULE_WORDS = [*WORDS, b":", b"\\x", b"M", b"E"]
SAID = st.one_of(st.binary(max_size=100), st.lists(st.sampled_from(WORDS), max_size=20).map(b"".join))


@given(SAID, st.binary(max_size=4))
@example(b"", b"MZ")
def test_parse_anything(said: bytes, start: bytes) -> None:
    """Nothing raises, whatever a file of the table says."""
    found = table.parse(said)
    assert found.may_match(start) in (True, False)
    assert interop.answers(found) in (True, False)


INTERPRETERS = st.binary(min_size=1, max_size=20).filter(lambda path: not set(path) & {0, 1})


@given(INTERPRETERS, st.sets(st.sampled_from(b"POCF")), st.binary(min_size=1, max_size=8), st.integers(0, 100))
@example(b"/a\nflags: PF\noffset 0\nmagic 00", {ord("F")}, b"MZ", 0)
def test_text_and_back(interpreter: bytes, flags: set[int], magic: bytes, offset: int) -> None:
    """What the kernel says of an entry tells what was registered, newlines in the interpreter's name included."""
    assume(b"\1" not in magic)
    rule = b"\1x\1M\1%d\1%s\1\1%s\1%s" % (offset, magic.replace(b"\\", b"\\x5c"), interpreter, bytes(flags))
    found = table.parse(binfmt_d.entry_text(rule))
    assert (found.enabled, found.interpreter, found.magic, found.offset) == (True, interpreter, magic, offset)
    assert found.flags == flags | ({ord("O")} if ord("C") in flags else set())


@given(st.one_of(st.binary(min_size=1, max_size=60), st.lists(st.sampled_from(RULE_WORDS)).map(b"".join)))
@example(b":a:M::\\xg0::/x:")
@example(b":a:M::\\x::/x:")
@example(b"\\a\\M\\\\x4d\\\\/x\\")
def test_rule_anything(rule: bytes) -> None:
    """Nothing raises, whatever a line of binfmt.d holds, and what is made of it is understood."""
    assume(rule)  # no line is empty when it comes here
    said = binfmt_d.entry_text(rule)
    if said:
        assert said.startswith(b"enabled\ninterpreter ")
        table.parse(said).may_match(b"MZ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", b""),
        (b"MZ", b"MZ"),
        (b"\\x4d\\x5A", b"MZ"),
        (b"\\x00\\xff", b"\0\xff"),
        (b"a\\x4dZ\\n", b"aMZ\\n"),
        (b"\\x4", b"\x04"),
        (b"\\xzz", b"\\xzz"),
        (b"\\x", b"\\x"),
        (b"\\X4d", b"\\X4d"),
    ],
)
def test_unescape(text: bytes, expected: bytes) -> None:
    r"""Each \xHH is a byte; what is malformed raises nothing, as the kernel refuses it anyway."""
    assert binfmt_d.unescape(text) == expected


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


def test_as_the_kernel(tmp_path: Path) -> None:
    """Of each rule that the kernel takes, entry_text() says what the kernel says."""
    taken = ask_kernel(RULES, tmp_path)
    assert len(taken) >= 20
    assert {rule: binfmt_d.entry_text(rule.strip()) for rule in taken} == taken


def test_as_the_kernel_when_spelled_otherwise(tmp_path: Path) -> None:
    """A number in another spelling costs one more registration, and decides nothing else."""
    for rule, said in ask_kernel([b":t:M:00:MZ::/bin/true:", b":t:M:+3:MZ::/bin/true:"], tmp_path).items():
        ours, theirs = table.parse(binfmt_d.entry_text(rule)), table.parse(said)
        assert (ours.offset, ours.magic, ours.flags) == (theirs.offset, theirs.magic, theirs.flags)


def test_as_the_kernel_behind_a_backslash(tmp_path: Path) -> None:
    r"""In \\x4d, the second backslash begins nothing."""
    rule = b":t:M::\\\\x4d::/bin/true:"
    taken = ask_kernel([rule], tmp_path)
    assert {rule: binfmt_d.entry_text(rule)} == taken
