# SPDX-License-Identifier: MIT
"""`make fuzz`: reads mutated files for SECONDS, guided by the branches that are taken.

Each target compares what this package reads with what a second reader does, which is written after the source of WSL,
the kernel or systemd. An input for which the two differ is printed as a literal, for a unit test.
"""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import atheris

import test_table
import test_wsl_conf
from wsl_binfmt import interop, rules, table

if TYPE_CHECKING:
    from collections.abc import Callable

BUILD = Path(__file__).parents[1] / "build/fuzz"
LENGTH_MAX = 2048  # bytes of an input; the kernel takes rules of 1,920
ENTRY = re.compile(
    rb"(?P<state>enabled|disabled)\ninterpreter (?P<interpreter>[^\0]+)\nflags: (?P<flags>P?O?C?F?)\n"
    rb"(?:extension \.(?P<extension>[^\0]+)|"
    rb"offset (?P<offset>0|[1-9][0-9]{0,2})\nmagic (?P<magic>(?:[0-9a-f]{2})+)(?:\nmask (?P<mask>(?:[0-9a-f]{2})+))?)\n"
)


def shown(data: bytes) -> bytes:
    """Make of any bytes what the kernel may say of an entry, entry_status() there; or take them as they are."""
    kinds, offset, rest = data[:1] or b"\0", data[1:2] or b"\0", data[2:]
    if kinds[0] & 8:
        return data[1:]
    interpreter, _, magic = rest.partition(b"\0")
    flags = bytes(flag for number, flag in enumerate(b"POCF", 4) if kinds[0] >> number & 1)
    lines = [b"disabled" if kinds[0] & 1 else b"enabled", b"interpreter " + interpreter, b"flags: " + flags]
    if kinds[0] & 2:
        return b"\n".join([*lines, b"extension ." + magic, b""])
    lines += [b"offset %d" % offset[0], b"magic " + magic.hex().encode()]
    if kinds[0] & 4:
        lines.append(b"mask " + magic[::-1].hex().encode())
    return b"\n".join([*lines, b""])


def as_registered(rule: bytes) -> bytes:
    """What the kernel says of an entry that was registered by a rule, create_entry() and entry_status() there."""
    _, kind, offset, magic, mask, interpreter, flags = rule[1:].split(rule[:1])
    lines = [b"enabled", b"interpreter " + interpreter, b"flags: " + flags]
    if kind == b"E":
        return b"\n".join([*lines, b"extension ." + magic, b""])
    lines += [b"offset " + offset, b"magic " + unescaped(magic).hex().encode()]
    if mask:
        lines.append(b"mask " + unescaped(mask).hex().encode())
    return b"\n".join([*lines, b""])


def unescaped(text: bytes) -> bytes:
    r"""Read \xHH, as string_unescape() of the kernel does."""
    return re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes.fromhex(match[1].decode()), text)


def entry(said: bytes) -> None:
    """Whatever the file of an entry says, its parts are found, and the rule made of them makes the same entry."""
    found = table.parse(said)
    assert interop.is_as_registered(found) <= interop.handles_windows(found) <= found.may_match(b"MZ")
    match = ENTRY.fullmatch(said)
    if not match or (match["mask"] and len(match["mask"]) != len(match["magic"])):
        return
    # A name of an extension or an interpreter can be such that there are two ways to read it.
    if said.count(b"\nflags: ") > 1:
        return
    assert found.enabled == (match["state"] == b"enabled")
    assert (found.interpreter, found.flags, found.extension) == (
        match["interpreter"],
        match["flags"],
        match["extension"],
    )
    if match["magic"]:
        assert found.offset == int(match["offset"])
        assert found.magic == bytes.fromhex(match["magic"].decode())
        assert found.mask == (bytes.fromhex(match["mask"].decode()) if match["mask"] else None)
    try:
        rule = found.rule("t")
    except ValueError:
        assert all(delimiter in said for delimiter in b":|,;!#~^")
        return
    assert as_registered(rule) == said.replace(b"disabled", b"enabled", 1 - found.enabled)


def binfmt_d(text: bytes) -> None:
    """Of a file of binfmt.d, the rules that systemd registers, read_line() and apply_file() in its source."""
    (BUILD / "binfmt.d/x.conf").write_bytes(text)
    expected = []
    for line in re.split(rb"[\n\r\0]", text):
        line = re.sub(rb"\A[ \t\n\r]+|[ \t\n\r]+\Z", b"", line)
        if line and line[0] not in b"#;":
            expected.append(line)
    assert [rule for _, _, rule in rules.rules_of_binfmt_d()] == expected
    # Each name has the rules that can be registered by it, in order.
    assert all(made == [each for each in made if each[1] in expected] for made in rules.read().values())


class Target(NamedTuple):
    """What is fuzzed."""

    check: Callable[[bytes], None]
    seeds: list[bytes]  # what is mutated at first
    modules: list[Any]  # or others that have functions, whose branches count
    make: Callable[[bytes], bytes] = bytes  # makes the input of the bytes that are mutated


TARGETS = {
    "wsl.conf": Target(
        test_wsl_conf.compare,
        [vector["text"].encode() for vector in test_wsl_conf.VECTORS],
        [test_wsl_conf.READER.module, test_wsl_conf.READER],
    ),
    "entry": Target(
        entry,
        [b"\x08" + test_table.WSL, b"\x90\0/init\0MZ", b"\x07\5/usr/bin/x\0exe", b"\xf4\x7f/x\0\x7fELF:|,;!#~^"],
        [table, table.Entry, interop],
        shown,
    ),
    "binfmt.d": Target(binfmt_d, [b"# x\n  ; y\r\n" + b"\n".join(test_table.RULES)], [rules]),
}


def main(target: str, seconds: str) -> None:
    """Fuzz a target; ends the process."""
    check, seeds, modules, make = TARGETS[target]
    corpus = BUILD / f"corpus/{target}"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    (BUILD / "binfmt.d").mkdir(exist_ok=True)
    rules.BINFMT_D = (str(BUILD / "binfmt.d"),)  # type: ignore[assignment] # as mypy counts them
    rules.UPDATE_BINFMTS = str(BUILD / "nothing")  # where binfmt-support is installed, it has rules of its own
    functions = [function for module in modules for function in vars(module).values()]
    for function in [*functions, check, make]:
        if isinstance(function, types.FunctionType):
            atheris.instrument_func(function)

    def checked(data: bytes) -> None:
        given = make(data)
        try:
            check(given)
        except BaseException:
            print(f"\n{target}: {given!r}\n", flush=True)
            raise

    print(f"{target}:", flush=True)
    options = f"-max_total_time={seconds}", f"-max_len={LENGTH_MAX}", f"-artifact_prefix={BUILD}/"
    atheris.Setup([sys.argv[0], *options, "-print_final_stats=1", str(corpus)], checked)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
