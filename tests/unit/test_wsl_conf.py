# SPDX-License-Identifier: MIT
"""/etc/wsl.conf is read as WSL reads it, whatever its bytes are."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import support

VECTORS = json.loads((support.TREE / "tests/data/wsl-conf-vectors.json").read_text())
MALFORMED = "not a [section], name=value or # comment, ignoring this and what follows, as WSL does"
BAD_BOOLEAN = "is neither true nor false, ignoring"
LETTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
DIGITS = b"0123456789"


class Setting(NamedTuple):
    """A key and its value, as WSL's parser passes them on."""

    line: int
    name: str
    value: bytes


class Reference:
    """WSL's parser, told by what it does at each character.

    It reads bytes: its C library is musl, whose "C" locale, the one it stays in,
    has one character for each byte. `settings` and `malformed`, the number of
    the line at which it gives up or 0, are the result.
    """

    END = -1

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.at = 0
        self.section = b""
        self.settings: list[Setting] = []
        self.malformed = 0
        while self.peek() != self.END and not self.malformed:
            self.item()

    def peek(self) -> int:
        """The next character."""
        return self.text[self.at] if self.at < len(self.text) else self.END

    def next_in(self, characters: bytes) -> bool:
        """Whether the next character is one of these; the end is none."""
        return self.peek() != self.END and self.peek() in characters

    def take_while(self, characters: bytes) -> bytes:
        """Read on for as long as there are such characters."""
        start = self.at
        while self.next_in(characters):
            self.at += 1
        return self.text[start : self.at]

    def item(self) -> None:
        """Read blanks, and one section, setting or comment."""
        self.take_while(b" \t\r\n")
        start = self.at
        if self.peek() == self.END:
            return
        if self.next_in(b"#"):
            self.comment()
            return
        fine = self.header() if self.next_in(b"[") else self.setting()
        if not fine:
            self.malformed = 1 + self.text[:start].count(b"\n")

    def comment(self) -> None:
        """Read a comment: a CR does not end it."""
        while self.peek() not in (ord("\n"), self.END):
            self.at += 1

    def name(self) -> bytes:
        """Read a name; b"" if there is none."""
        return self.take_while(LETTERS + DIGITS) if self.next_in(LETTERS) else b""

    def header(self) -> bool:
        """Read a [section]; whether it is one."""
        self.at += 1
        name = self.name()
        if not name or not self.next_in(b"]"):
            return False
        self.at += 1
        self.take_while(b" \t")
        self.section = name + b"."
        return self.peek() == self.END or self.next_in(b"\r\n#")

    def setting(self) -> bool:
        """Read a setting; whether it is one."""
        line = 1 + self.text[: self.at].count(b"\n")
        name = self.name()
        self.take_while(b" \t")
        if not name or not self.next_in(b"="):
            return False
        self.at += 1
        self.take_while(b" \t")
        value = self.value()
        if value is None:
            return False
        self.settings.append(Setting(line, (self.section + name).lower().decode(), value))
        return True

    def value(self) -> bytes | None:
        """Read a value, up to what ends it; None if it is malformed."""
        value = b""
        keep = 0
        quoted = False
        while self.peek() != self.END and not self.next_in(b"\r\n"):
            char = self.peek()
            if char == ord("#") and not quoted:
                break
            self.at += 1
            if char == ord('"'):
                quoted = not quoted
            elif char == ord("\\"):
                escaped = self.peek()
                self.at += 1
                if escaped == self.END or escaped not in b'\\"bnt\r\n':
                    return None
                if escaped in b'\\"':
                    value += bytes([escaped])
                elif escaped in b"bnt":
                    value += {"b": b"\b", "n": b"\n", "t": b"\t"}[chr(escaped)]
            else:
                value += bytes([char])
            if char not in b" \t":
                keep = len(value)
        # It goes on as a C string.
        return None if quoted else value[:keep].split(b"\0")[0]

    def effect(self) -> list[bool]:
        """What protectBinfmt and interop's enabled are then."""
        result = {"boot.protectbinfmt": True, "interop.enabled": True}
        for name in result:
            values = [setting.value for setting in self.settings if setting.name == name]
            if values and values[0].lower() in (b"0", b"false"):
                result[name] = False
        return list(result.values())


class Reader:
    """The generator, reading a /etc/wsl.conf that is on disk."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self.module = support.load_generator()
        self.module.ROOT = self._directory.name
        self.module.log = lambda _level, text: self.messages.append(text)
        self.messages: list[str] = []
        self.parsed: list[tuple[int, str, str]] = []
        self._parse = self.module.parse_wsl_conf
        self.module.parse_wsl_conf = self._record
        self.path = Path(self._directory.name, "etc/wsl.conf")
        self.path.parent.mkdir()

    def settings(self, text: bytes) -> list[bool]:
        """Settings that follow from a text; `messages` has what was logged, `parsed` what parse_wsl_conf() gave."""
        self.messages = []
        self.parsed = []
        self.path.write_bytes(text)
        result = self.module.settings()
        assert isinstance(result, list)
        return result

    def _record(self, text: str) -> list[tuple[int, str, str]]:
        self.parsed = [*self._parse(text)]
        return self.parsed


READER = Reader()

TOKENS = [
    *(b"[", b"]", b'"', b"\\", b"\r", b"\n", b"#", b"=", b" ", b"\t", b";", b":", b".", b"_", b"1", b"0"),
    *(
        b"\0",
        b"\xef\xbb\xbf",
        "é".encode(),
        "\u017f".encode(),
        b"\xff",
        b"\xe9",
        b"\x0b",
        b"\x0c",
        b"\x1c",
        "\u2028".encode(),
    ),
    *(b"boot", b"interop", b"protectBinfmt", b"enabled", b"true", b"FALSE", b"false", b"b", b"n", b"t", b"x"),
    *(
        b"[boot]\n",
        b"[Interop]\r\n",
        b"[boot] ",
        b"\nprotectBinfmt=",
        b"\nenabled = ",
        b"\\\n",
        b"\\\r\n",
        b"\r\n",
        b'"\n',
    ),
]
TEXTS = st.lists(st.sampled_from(TOKENS), max_size=40).map(b"".join)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: ascii(vector["text"])[:60])
def test_as_wsl(vector: dict[str, Any]) -> None:
    """Each text gives what WSL's own parser, compiled and run, gave for it."""
    assert READER.settings(vector["text"].encode()) == [vector["protectBinfmt"], vector["interopEnabled"]]
    complaints = [message for message in READER.messages if message.endswith(MALFORMED)]
    assert len(complaints) == (not vector["wholeFileParsed"])


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: ascii(vector["text"])[:60])
def test_reference_as_wsl(vector: dict[str, Any]) -> None:
    """The reference above is what it claims to be."""
    reference = Reference(vector["text"].encode())
    assert reference.effect() == [vector["protectBinfmt"], vector["interopEnabled"]]
    assert (not reference.malformed) == vector["wholeFileParsed"]


def compare(text: bytes) -> None:
    """Assert that the generator and the reference agree on a text, in all they say."""
    reference = Reference(text)
    effect = READER.settings(text)
    found = READER.parsed
    settings_found = [(name, value.encode("utf-8", "surrogateescape")) for _, name, value in found if name]
    assert settings_found == [(setting.name, setting.value) for setting in reference.settings]
    assert [line for line, name, _ in found if name] == [setting.line for setting in reference.settings]
    # Nothing of what follows a malformed line is read.
    assert found[len(settings_found) :] == [(reference.malformed, "", MALFORMED)] * bool(reference.malformed)
    assert effect == reference.effect()


@given(TEXTS)
@settings(max_examples=2000)
@example(b'[boot]\nprotectBinfmt="fal\\\nse" # x\r[interop]\renabled=0')
@example(b"[boot]\nprotectBinfmt=false\\\r\nenabled=0")
@example(b"[boot]\nprotectBinfmt=false\0true")
@example(b"[boot]\nprotectBinfmt=false\\")
@example(b"[boot] protectBinfmt=false")
@example(b"[boot]protectBinfmt=false")
@example(b'a=x\\\\x\\"x\\bx\\nx\\tx')
@example(b"Xa=1")
@example(b"aX =1")
@example(b"a= X1X")
@example(b'a="1"X')
@example(b'a="X1"')
@example(b"[boot]X\nprotectBinfmt=0")
@example(b"#\r[boot]\rprotectBinfmt=0\n[boot]#\nprotectBinfmt=0#")
def test_differential(text: bytes) -> None:
    """The generator reads any text as the reference does."""
    compare(text)


@pytest.mark.parametrize("text", [b"[boot]\nprotectBinfmt=false \0\n", b"[interop]\nenabled=0\t\0x\n"])
def test_nul_after_blank(text: bytes) -> None:
    """A blank before a NUL is part of the value, as it is for WSL: that is no boolean."""
    compare(text)


@given(st.binary(max_size=200))
def test_any_bytes(text: bytes) -> None:
    """No bytes make it raise, and all that it says of them fits a line of a log."""
    result = READER.settings(text)
    assert [type(value) for value in result] == [bool, bool]
    for message in READER.messages:
        assert message.startswith("/etc/wsl.conf:")
        assert message.isascii()
        assert message.isprintable()


@given(TEXTS)
@settings(max_examples=100)
def test_what_is_written(text: bytes) -> None:
    """Whatever wsl.conf holds, what is written depends on two settings, and is a proper unit file."""
    protect, interop = READER.settings(text)
    normal, early = READER.module.output(interop)
    assert support.GUARD in normal
    assert ("Wants=wsl-binfmt-boot.service\n" in "".join(normal.values())) == interop
    for path, written in {**normal, **early}.items():
        if not written.startswith("/"):
            assert path.endswith(".conf")
            support.parse_unit(written)
    READER.module.CONTAINER = "wsl"
    with tempfile.TemporaryDirectory() as directory:
        assert READER.module.main([directory]) == 0
        assert bool(os.listdir(directory)) == protect


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        (b"", []),
        (b"[boot]\nprotectBinfmt=1\n[interop]\nenabled=TRUE\n", []),
        (b"[boot]\nprotectBinfmt=no\n", [f"2: boot.protectbinfmt {BAD_BOOLEAN}"]),
        (b"[boot]\nprotectBinfmt=no\nprotectBinfmt=maybe\n", [f"2: boot.protectbinfmt {BAD_BOOLEAN}"]),
        (b"\n\n[interop]\n\nenabled=\n", [f"5: interop.enabled {BAD_BOOLEAN}"]),
        (b"[boot]\ncommand=caf\xe9\n", []),
        ("[boot]\ncommand=café 🐧\n".encode(), []),
        (b"[boot]\n[inter op]\n\xff", [f"2: {MALFORMED}"]),
        (b"\xff\xfe[\0b\0o\0o\0t\0]\0\n\0", [f"1: {MALFORMED}"]),
        (b"[network]\nhostname=x\nunknown=y\n", []),
    ],
)
def test_messages(text: bytes, messages: list[str]) -> None:
    """What is wrong is said once, with its line; what is not for us is not said."""
    READER.settings(text)
    assert READER.messages == [f"/etc/wsl.conf:{message}" for message in messages]
