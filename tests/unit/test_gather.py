# SPDX-License-Identifier: MIT
"""Gathering: what is made of what the system says, and of what it does not say."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import support
from wsl_binfmt import command, rules, table
from wsl_binfmt.diagnosis import bounded, gather, gather_session, gather_systemd
from wsl_binfmt.diagnosis import machine as m

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_bounded() -> None:
    """What fails or takes longer is not known, and it is said why."""
    look = bounded.Looker()

    def fail(error: Exception) -> int:
        raise error

    assert look("right", lambda: 5, 0) == 5
    assert look("slow", lambda: time.sleep(0.2), None, 0.01) is None
    assert look("forbidden", lambda: fail(PermissionError(13, "x")), 0) == 0
    assert look("wrong", lambda: fail(ZeroDivisionError("x")), 0) == 0
    assert look.unknown == {
        "slow": "no answer within 0 seconds",
        "forbidden": m.MAY_NOT_LOOK,
        "wrong": "unexpected ZeroDivisionError, please report it: x",
    }


def test_states(tmp_path: Path) -> None:
    """Gone is not the same as not allowed to look."""
    (tmp_path / "loop").symlink_to("loop")
    assert bounded.state(str(tmp_path)) == m.THERE
    assert bounded.state(str(tmp_path / "x/y")) == m.GONE
    assert bounded.state(str(tmp_path / "loop")) == "Too many levels of symbolic links"
    assert bounded.state_of(PermissionError(1, "x")) == m.MAY_NOT_LOOK


def test_entries_that_change_meanwhile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An entry that is removed while the table is read is not there; one that never stands still is an error."""
    for name in "register", "status", "one", "two":
        (tmp_path / name).write_text("enabled\ninterpreter /init\nflags: PF\noffset 0\nmagic 4d5a\n")
    monkeypatch.setattr(table, "DIRECTORY", str(tmp_path))
    read = table.read

    def remove_two(name: str) -> table.Entry | None:
        found = read(name)
        if name == "two":
            os.unlink(tmp_path / name)
        return found

    monkeypatch.setattr(table, "read", remove_two)
    assert [(each.name, each.magic) for each in gather.read_entries()] == [("one", "4d5a")]
    numbers = iter(range(1000))
    monkeypatch.setattr(table, "entries", lambda: {"one": next(numbers)})
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    with pytest.raises(OSError, match="all the time"):
        gather.read_entries()


def test_temporary_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that goes is in use; one that stays was left behind."""
    monkeypatch.setattr(gather, "TEMPORARY_MAX", 0.05)
    entry = m.Entry("WSLInterop-temporary")
    monkeypatch.setattr(table, "entries", lambda: {"WSLInterop-temporary": 1})
    assert gather.left_behind([entry]) == ["WSLInterop-temporary"]
    numbers = iter(range(1000))
    monkeypatch.setattr(table, "entries", lambda: {"WSLInterop-temporary": next(numbers)})
    assert gather.left_behind([entry]) == []


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("", None),
        ("garbage", None),
        (
            "Id=a\nLoadState=loaded\nConditionResult=no\nBindPaths=x\nBindPaths=y=z\n\nId=b\nActiveState=active\n",
            {"a": m.Unit("loaded", condition=False, bind_paths="x\ny=z"), "b": m.Unit(active="active")},
        ),
    ],
)
def test_units(said: str, expected: object) -> None:
    """The properties of each unit; none if systemctl has said nothing that is understood."""
    assert gather_systemd.parse_units(said) == expected


def test_journal() -> None:
    """Repairs are told by their ID. Messages that are no text come as bytes; what is not understood is left out."""
    data = b"\x1b\xff\nx"
    said = (
        b"__REALTIME_TIMESTAMP=1000000\nMESSAGE=one\n_SYSTEMD_UNIT=a.service\n\n"
        b"__REALTIME_TIMESTAMP=2000000\nSYSLOG_IDENTIFIER=wsl-binfmt-generator\n_SYSTEMD_UNIT=init.scope\n"
        b"MESSAGE\n" + struct.pack("<Q", len(data)) + data + b"\n\n"
        b"MESSAGE=three\n\n"
        b"__REALTIME_TIMESTAMP=4000000\nMESSAGE=four\nMESSAGE_ID=" + command.REPAIR.encode() + b"\n"
    )
    assert gather_systemd.parse_journal(said) == [
        m.Message("a.service", "one", 1.0),
        m.Message("wsl-binfmt-generator", "\x1b\\xff\nx", 2.0),
        m.Message("", "four", 4.0, is_repair=True),
    ]


@given(st.binary())
def test_any_journal(said: bytes) -> None:
    """It ends, and does not fail."""
    assert isinstance(gather_systemd.parse_journal(said), list)


def read_conf(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> m.Conf:
    """Read a wsl.conf."""
    (tmp_path / "etc").mkdir(exist_ok=True)
    (tmp_path / "etc/wsl.conf").write_text(text)
    monkeypatch.setattr(gather, "GENERATOR", str(support.GENERATOR))
    module = gather.load_generator()
    module.ROOT = str(tmp_path)
    return gather.read_conf(module)


def test_what_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below a malformed line: all settings, with their sections, also behind the next malformed line."""
    text = "[boot]\na=1\nbad\nsystemd=true\n[user]\nbad\ndefault=me\n"
    conf = read_conf(text, tmp_path, monkeypatch)
    assert conf.settings == [m.Setting(2, "boot.a", "1")]
    assert conf.stopped_at == 3
    assert conf.ignored == [m.Setting(4, "boot.systemd", "true"), m.Setting(7, "user.default", "me")]
    assert conf.changed is not None


@given(
    lines=st.lists(st.sampled_from(["[boot]", "[x", "a=1", "bad", "#", "", 'b="', "c=\\", "[user] # x"]), max_size=12)
)
def test_any_conf(lines: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """It ends, and no line is both read and ignored."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        conf = read_conf("\n".join(lines), tmp_path_factory.mktemp("conf"), monkeypatch)
    assert not conf.stopped_at or all(each.line < conf.stopped_at for each in conf.settings)
    assert all(each.line > conf.stopped_at for each in conf.ignored)


def test_mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blanks in names are undone; the uppermost counts; a superblock may be read-only too; line ends are no lines."""
    lines = (
        "1 2 0:3 / /mnt/a\\040b rw,noexec shared:1 - 9p C:\\134 rw,aname=drvfs;path=C:\\134\n"
        "2 2 0:4 / /mnt/a\\040b rw - tmpfs x ro\n"
        "3 2 0:5 / /mnt/a\x0cb\u2028c\rd rw - fuse x rw\nx\n\n"
    )
    monkeypatch.setattr(gather, "read", lambda _path: lines)
    mounts = gather.read_mounts()
    top, device = gather.top_mount(mounts, "/mnt/a b")
    assert (top, device) == (m.Mount("/mnt/a b", "tmpfs", ["rw", "ro"]), 4)
    assert gather.top_mount(mounts, "/mnt") == (None, 0)
    assert mounts[-1][0].target == "/mnt/a\x0cb\u2028c\rd"


def test_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that /init takes is tried; if nothing listens there, the others, the newest first."""
    monkeypatch.setattr(gather_session, "SOCKETS", str(tmp_path))
    monkeypatch.setattr(gather_session, "_ancestors", lambda: iter([7, 1]))
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as dead:
        server.bind("2_interop")
        server.listen()
        os.utime("2_interop", (1, 1))
        dead.bind("9_interop")
        monkeypatch.delenv("WSL_INTEROP", raising=False)
        found = gather_session.read(m.Conf())
        assert (found.run_wsl, found.ancestors, found.wsl_interop_state) == (m.THERE, [7, 1], m.GONE)
        assert {each.pid: each.is_listening for each in found.sockets} == {2: True, 9: False}
        (tmp_path / "1_interop").symlink_to("2_interop")
        monkeypatch.setenv("WSL_INTEROP", f"{tmp_path}/9_interop")
        found = gather_session.read(m.Conf())
        assert [each.is_listening for each in found.sockets if each.pid == 9] == [False]
        assert any(each.is_listening for each in found.sockets)


def test_default_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is named in wsl.conf, or else uid 1000, or else root."""
    files = {
        "/etc/passwd": "root:x:0:0::/root:\none:x:1000:1000::/:\ntwo:x:1001:7::/:\nbad\n",
        "/etc/group": "g:x:9:two\nbad\n",
    }
    monkeypatch.setattr(gather_session, "read_file", files.get)
    assert gather_session.default_user(m.Conf()) == (1000, [1000])
    assert gather_session.default_user(m.Conf(settings=[m.Setting(1, "user.default", "two")])) == (1001, [7, 9])
    assert gather_session.default_user(m.Conf(m.MAY_NOT_LOOK)) == (None, [])
    files["/etc/passwd"] = "root:x:0:0::/root:\n"
    assert gather_session.default_user(m.Conf()) == (0, [])


MOUNTS = [m.Mount("/", "ext4", ["rw", "relatime"])]


def look_at(path: Path | str, *directories: Path | str) -> m.Program:
    """Look at a program."""
    return gather_session.read_program(str(path), m.Conf(), m.Session(path=list(map(str, directories))), MOUNTS)


def test_programs(tmp_path: Path) -> None:
    """What there is to know of a file."""
    path = tmp_path / "x.exe"
    path.write_bytes(b"MZ")
    path.chmod(0o644)
    found = look_at(path)
    assert (found.may_execute, found.start, found.size, found.kind) == (False, "4d5a", 2, "file")
    assert found.place.way[-1].mode == 0o100644
    assert found.place.mount == MOUNTS[0]
    assert look_at(tmp_path).kind == "directory"
    assert look_at(tmp_path / "none").place.state == m.GONE
    assert look_at("none", tmp_path).place.state == m.GONE
    path.chmod(0o755)
    assert look_at("x.exe", "/", tmp_path).place.path == str(path)


@pytest.mark.parametrize(
    ("text", "interpreter", "state"),
    [
        (b"#!/bin/sh -e\n", "/bin/sh", m.THERE),
        (b"#! /nowhere\r\n", "/nowhere\r", m.GONE),
        (b"#!\n", "", m.THERE),
    ],
)
def test_scripts(tmp_path: Path, text: bytes, interpreter: str, state: str) -> None:
    """What the first line names."""
    (tmp_path / "x").write_bytes(text)
    found = look_at(tmp_path / "x")
    assert (found.interpreter, found.interpreter_state) == (interpreter, state)


def test_loader() -> None:
    """What an ELF file names; this Python names what every program here does."""
    assert "ld-" in look_at(os.path.realpath("/usr/bin/env")).interpreter


@pytest.mark.parametrize(
    ("start", "header", "wrong"),
    [
        (b"MZ\x90\0", b"PE\0\0\x64\x86" + bytes(16) + b"\x22\0", ""),
        (b"MZ\x90\0", b"PE\0\0\x64\x86" + bytes(16) + b"\x22\x20", "is a DLL"),
        (b"MZ\x90\0", b"NE" + bytes(22), "has no PE header: it is for DOS, or for a Windows of 16 bits"),
        (b"MZqFpD", b"NE" + bytes(22), ""),
        (b"MZ\x90\0", b"PE\0\0", ""),  # not all of the header was read
    ],
)
def test_programs_of_windows(tmp_path: Path, start: bytes, header: bytes, wrong: str) -> None:
    """Whether Windows would start a file, as far as its headers tell."""
    (tmp_path / "x").write_bytes(start.ljust(60, b"\0") + (128).to_bytes(4, "little") + bytes(64) + header)
    assert look_at(tmp_path / "x").wrong_exe == wrong


def test_stub_loader(tmp_path: Path) -> None:
    """A loader that is a link into NixOS' package of that name runs no program."""
    stub, loader, program = tmp_path / "0a1-stub-ld-x86_64/ld", tmp_path / "ld.so", tmp_path / "x"
    stub.parent.mkdir()
    stub.write_text("#!/bin/sh\n")
    stub.chmod(0o755)
    name = os.fsencode(loader) + b"\0"
    header = struct.pack("<4sBB10xHHIQQQIHHH", b"\x7fELF", 2, 1, 2, 62, 1, 0, 64, 0, 0, 64, 56, 1)
    segment = struct.pack("<IIQQQQ", gather_session.PT_INTERP, 4, 120, 0, 0, len(name))
    program.write_bytes((header.ljust(64, b"\0") + segment).ljust(120, b"\0") + name)
    for target, is_stub in (stub, True), ("/bin/sh", False):
        loader.unlink(missing_ok=True)
        loader.symlink_to(target)
        found = look_at(program)
        assert (found.interpreter, found.interpreter_state) == (str(loader), m.THERE)
        assert found.has_stub_loader is is_stub


@given(st.binary(max_size=200))
def test_any_elf(tail: bytes) -> None:
    """What is malformed names nothing, or something, and does not fail."""
    assert isinstance(gather_session._loader(b"\x7fELF\x02\x01" + tail), str)


def test_on_windows(tmp_path: Path) -> None:
    """Drives are where automount.root says; Linux needs the whole name."""
    path = tmp_path / "c/Windows/explorer.exe"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"MZ")
    conf = m.Conf(settings=[m.Setting(1, "automount.root", str(tmp_path))])
    for name in "explorer.exe", "explorer":
        found = gather_session.read_program(name, conf, m.Session(), MOUNTS)
        assert (found.place.path, found.is_in_path) == (str(path), False)
    assert gather_session.find_on_windows("explor*", conf, []) is None


def test_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process, not a unit's name; not one of a container's."""
    files = {
        "/proc/7/cmdline": "/usr/bin/python3\0-BIS\0/usr/bin/wsl-binfmt\0watch\0",
        "/proc/7/cgroup": "0::/system.slice/docker-1.scope\n",
        "/proc/8/cmdline": "vi\0/usr/bin/wsl-binfmt\0",
    }
    monkeypatch.setattr(os, "listdir", lambda _path: ["7", "8", "self"])
    monkeypatch.setattr(gather_systemd, "read_file", lambda path: files.get(path, ""))
    assert gather_systemd.find_watch()[0] is None
    files["/proc/7/cgroup"] = "0::/system.slice/wsl-binfmt-watch.service\n"
    found, is_known = gather_systemd.find_watch()
    assert is_known
    assert found
    assert found.pid == 7


def test_rules_of_update_binfmts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are told by their files."""
    (tmp_path / "cli").write_text("mono\nmagic\n0\nMZ\n\n/usr/bin/cli\n\n\n\n\n")
    monkeypatch.setattr(rules, "UPDATE_BINFMTS", str(tmp_path))
    monkeypatch.setattr(rules, "BINFMT_D", ())
    (rule,) = gather_systemd.read_rules()
    entry = rule.entry()
    assert (rule.path, rule.package) == (f"{tmp_path}/cli", "mono")
    assert entry
    assert (entry.magic, entry.interpreter) == (b"MZ", b"/usr/bin/cli")


def test_nothing_of_this_runs_at_boot() -> None:
    """What units run loads none of it."""
    program = "import sys; from wsl_binfmt import command, watch; print(*sys.modules)"
    done = support.run(
        "-c", program, environment={"PYTHONPATH": str(support.GENERATOR.parent)}, command=[support.COMMAND[0], "-S"]
    )
    assert done.stderr == ""
    loaded = set(done.stdout.split())
    assert "wsl_binfmt.watch" in loaded
    assert not [name for name in loaded if name.startswith(("wsl_binfmt.cli", "wsl_binfmt.diagnosis"))]
    assert not {"argparse", "json", "subprocess"} & loaded


@pytest.mark.parametrize(
    ("target", "expected"), [("store/lib/systemd/system/x.service", "{}"), ("/dev/null", "/etc/x"), (None, "/etc/x")]
)
def test_fragment(monkeypatch: pytest.MonkeyPatch, target: str | None, expected: str) -> None:
    """A package's unit is a link in /etc on NixOS; a masked unit and an administrator's are in /etc."""
    monkeypatch.setattr(os.path, "realpath", lambda path: target or path)
    (unit,) = (gather_systemd.parse_units("Id=x.service\nFragmentPath=/etc/x\n") or {}).values()
    assert unit.fragment == expected.format(target)


@pytest.mark.parametrize(
    ("number", "seccomp", "expected"), [(1, 0, True), (97, 2, True), (97, 0, False), (24, 2, False)]
)
def test_sandbox(monkeypatch: pytest.MonkeyPatch, number: int, seccomp: int, expected: bool) -> None:
    """A filter of system calls refuses a family of sockets by either error; a kernel without it only by one."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(gather_session, "read_file", lambda _path: f"Name:\tx\nSeccomp:\t{seccomp}\n")
    monkeypatch.setattr(socket, "socket", refuse)
    assert gather_session._sandbox() == (f"socket(AF_VSOCK): {os.strerror(number)}" if expected else "")


def test_link_that_only_windows_understands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Such as one to a network share. realpath() raises its error up to Python 3.12."""
    link = tmp_path / "nas"
    link.symlink_to("share")

    (tmp_path / "home").symlink_to(tmp_path)
    realpath, stat = os.path.realpath, os.stat

    def unless_below(call: Callable[[str], object]) -> Callable[[str], object]:
        def do(path: str, *_: object, **__: object) -> object:
            if "/nas" in path:
                raise OSError(errno.EIO, os.strerror(errno.EIO), path)
            return call(path)

        return do

    with monkeypatch.context() as patch:
        patch.setattr(os.path, "realpath", unless_below(realpath))
        patch.setattr(os, "stat", unless_below(stat))
        found = gather_session.place(f"{tmp_path}/home/nas/tool.exe", [])
    assert (found.state, found.way[-1].path, found.ends_in_link) == ("Input/output error", str(tmp_path), True)
