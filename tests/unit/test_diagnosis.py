# SPDX-License-Identifier: MIT
"""A diagnosis and its texts, where nothing real takes part: what a machine may say that is odd."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import support
from wsl_binfmt import cli, diagnosis, facts, formats, interop, launch, report, table

if TYPE_CHECKING:
    from pathlib import Path

PLAIN = report.Paint(symbols=False, colours=False)
WSL = table.Entry(enabled=True, interpreter=b"/init", flags=b"PF", magic=b"MZ")


def entry(name: str = "WSLInterop", registered: table.Entry = WSL) -> facts.Registered:
    """An entry that was registered in 2026."""
    return facts.Registered(name, registered, 1.79e9, 1)


def healthy(**changes: Any) -> facts.Facts:
    """Facts of a distro in which nothing is wrong, but for `changes`."""
    seen = object.__new__(facts.Facts)
    wanted = {f"{service}.d/50-wsl-binfmt.conf": "text\n" for service in formats.SERVICES}
    hooks = {"ExecStartPre": "hook starting", "ExecStartPost": "hook started", "ExecStopPost": "hook stopped"}
    unit = {"LoadState": "loaded", "ActiveState": "active", "ActiveEnterTimestampMonotonic": "1000000"}
    service = {
        **unit,
        **hooks,
        "BindPaths": f"/dev/null:{table.DIRECTORY}/status",
        "DropInPaths": "/x/50-wsl-binfmt.conf",
    }
    seen.__dict__.update(
        is_root=True,
        elsewhere="",
        release="6.6.87.2-microsoft-standard-WSL2",
        has_systemd=True,
        own_user_namespace=False,
        conf=facts.Conf(True, True, True, [], 0, []),
        wanted=wanted,
        written=dict(wanted),
        masked_by=None,
        stale=[],
        mounts=[],
        table_mount=facts.Mount("/", table.DIRECTORY, ["rw"], "binfmt_misc"),
        over_status=facts.Mount("/usr/lib/wsl-binfmt-generator/status", f"{table.DIRECTORY}/status", ["ro"], "ext4"),
        entries=[entry()],
        is_switched_on=True,
        units={name: dict(service if name in formats.SERVICES else unit) for name in facts.UNITS},
        messages=[],
    )
    seen.__dict__.update(changes)
    return seen


@pytest.fixture(autouse=True)
def session(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal in which nothing is wrong, on a machine without rules."""
    monkeypatch.delenv("WSL_INTEROP", raising=False)
    monkeypatch.setattr(formats, "BINFMT_D", ())


def ids(seen: facts.Facts) -> list[str]:
    """Ids of the problems that are found."""
    return [problem.id for problem in diagnosis.diagnose(seen).problems]


def test_healthy() -> None:
    """No problem, and each line says something."""
    found = diagnosis.diagnose(healthy())
    assert (found.works, found.problems, found.not_checked) == (True, [], [])
    text = report.as_text(healthy(), found, PLAIN)
    assert text.startswith("Windows programs start here.\n")
    assert text.endswith("No problem found.")
    assert "None" not in text
    assert cli.exit_status(found, "warning") == 0


def test_what_is_not_known_is_not_said_to_be_right() -> None:
    """Neither by text nor by JSON."""
    seen = healthy(is_switched_on=None, units=None, messages=None, is_root=False)
    found = diagnosis.diagnose(seen)
    text = report.as_text(seen, found, PLAIN)
    assert "as far as could be looked at" in text
    assert len(re.findall("^Not looked at: ", text, re.MULTILINE)) == 3
    answer = json.loads(report.as_json(seen, found))
    assert answer["protection"]["watch"] == {"active": None, "since": None, "repairs": None}
    assert set(answer["protection"]["drop_ins"].values()) == {None}
    assert len(answer["not_checked"]) == 3


def test_nothing_could_be_read() -> None:
    """Then it is not known whether Windows programs start."""
    found = diagnosis.diagnose(healthy(entries=None))
    assert found.works is None
    assert cli.exit_status(found, None) == 4


@pytest.mark.parametrize(
    ("rival", "works", "names"),
    [
        (table.Entry(enabled=True, interpreter=b"/w", flags=b"", magic=b"MZ"), False, True),
        (table.Entry(enabled=True, interpreter=b"/w", flags=b"", magic=b"MZ\x90"), False, True),
        (table.Entry(enabled=True, interpreter=b"/w", flags=b"", magic=b"MZ\x91"), True, True),  # other programs
        (table.Entry(enabled=True, interpreter=b"/w", flags=b"", extension=b"exe"), False, True),
        (table.Entry(enabled=True, interpreter=b"/w", flags=b"", extension=b"dll"), True, True),
        (table.Entry(enabled=False, interpreter=b"/w", flags=b"", magic=b"MZ"), True, False),
        (table.Entry(enabled=True, interpreter=b"/w", flags=b"", magic=b"\x7fELF"), True, False),
        (table.Entry(enabled=True, interpreter=b"/w", flags=b""), True, True),  # not understood
        (table.Entry(enabled=True, interpreter=b"/w", flags=b"", extension=b"jar"), True, True),
        (table.Entry(enabled=True, interpreter=b"/init", flags=b"PF", magic=b"MZ"), True, False),
    ],
)
def test_rivals(rival: table.Entry, works: bool, names: bool) -> None:
    """One that takes only some Windows programs is named, and others start."""
    found = diagnosis.diagnose(healthy(entries=[entry("rival", rival), entry()]))
    assert found.works is works
    assert ("shadowed" in [problem.id for problem in found.problems]) is names
    assert diagnosis.diagnose(healthy(entries=[entry(), entry("rival", rival)])).works


def test_a_program_is_what_it_begins_with() -> None:
    """Given a program, the kernel's choice for it counts."""
    rival = table.Entry(enabled=True, interpreter=b"/w", flags=b"", magic=b"MZ\x91")
    seen = healthy(entries=[entry("rival", rival), entry()])
    program = diagnosis.Program("/x", b"MZ\x91".ljust(128, b"\0"), "", [], None)
    found = diagnosis.diagnose(seen, program)
    assert (found.works, found.handler and found.handler.name, found.outranked) == (False, "rival", ["WSLInterop"])


def test_the_most_harmful_comes_first() -> None:
    """By severity, then in the order of the list."""
    changes = {
        "entries": [],
        "masked_by": "/etc/x",
        "conf": facts.Conf(True, True, True, [facts.Setting(1, "a.b", "")], 0, []),
    }
    assert ids(healthy(**changes)) == ["not-registered", "generator-masked", "config-unused"]


def test_ids_are_words() -> None:
    """Programs depend on them: they are what they are."""
    assert all(re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", name) for name in diagnosis.PROBLEMS)
    assert {severity for severity, _ in diagnosis.PROBLEMS.values()} == {"error", "warning", "note"}
    listed = report.list_problems().splitlines()
    assert [line.split()[0] for line in listed] == list(diagnosis.PROBLEMS)
    source = (support.TREE / "generator/wsl_binfmt/diagnosis.py").read_text()
    assert set(re.findall(r'_problem\(\s*"([a-z0-9-]+)"', source)) == set(diagnosis.PROBLEMS)


@given(st.text())
def test_safe(text: str) -> None:
    """Nothing reaches the terminal that it would obey, and nothing that is endless."""
    said = report.safe(text)
    assert all(character.isprintable() for character in said)
    assert len(said) < report.TEXT_MAX + 40


@given(st.text(), st.binary())
def test_hostile_names(name: str, interpreter: bytes) -> None:
    """Whatever an entry is called, the text is harmless and the JSON valid, in any locale."""
    registered = table.Entry(enabled=True, interpreter=interpreter, flags=b"\xff", magic=b"MZ")
    seen = healthy(entries=[entry(name, registered), entry()])
    found = diagnosis.diagnose(seen)
    text = report.as_text(seen, found, PLAIN, verbose=True)
    assert all(line.isprintable() for line in text.splitlines())
    assert json.loads(report.as_json(seen, found).encode("ascii"))


def test_a_huge_entry() -> None:
    """64 KiB are not all shown."""
    registered = table.Entry(enabled=True, interpreter=b"/" + b"x" * 65536, flags=b"", magic=b"MZ")
    seen = healthy(entries=[entry("big", registered), entry()])
    text = report.as_text(seen, diagnosis.diagnose(seen), PLAIN)
    assert max(map(len, text.splitlines())) < 2 * report.TEXT_MAX


def test_colours() -> None:
    """They are for terminals only, and apart from symbols."""
    seen = healthy(entries=[])
    found = diagnosis.diagnose(seen)
    assert "\033" not in report.as_text(seen, found, report.Paint(symbols=True, colours=False))
    text = report.as_text(seen, found, report.Paint(symbols=True, colours=True))
    assert "\033[31m✗ Windows programs do not start here.\033[0m" in text
    plain = report.as_text(seen, found, PLAIN)
    assert plain.isascii()
    assert "error: WSLInterop is missing. [not-registered]" in plain


def test_table_that_changes_meanwhile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An entry that is removed while the table is read is not there."""
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
    assert [each.name for each in facts.read_entries()] == ["one"]


def test_stand_ins_that_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that goes is in use; one that is there for more than a second was left."""
    listed = {interop.STAND_IN + "1": 1, interop.STAND_IN + "2": 2}
    monkeypatch.setattr(interop, "HOLD_MAX", 0.05)
    monkeypatch.setattr(table, "entries", lambda: {interop.STAND_IN + "1": 1, interop.STAND_IN + "2": 3})
    found = [entry(name)._replace(inode=inode) for name, inode in listed.items()]
    assert facts.stale_stand_ins(found) == [interop.STAND_IN + "1"]


def test_within() -> None:
    """What takes longer, or fails, is not known."""
    assert facts.within(1, lambda: 5) == 5
    assert facts.within(0.01, lambda: time.sleep(0.2)) is None

    def fail() -> int:
        raise PermissionError

    assert facts.within(1, fail) is None


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (None, None),
        ("", None),
        ("Id=a\nX=1\n\nId=b\nX=2=3\nX=4\n", {"a": {"Id": "a", "X": "1"}, "b": {"Id": "b", "X": "2=3\n4"}}),
        ("garbage", None),
    ],
)
def test_units(said: str | None, expected: object) -> None:
    """The properties of each unit; none if systemctl has said nothing that is understood."""
    assert facts.parse_units(said) == expected


def test_journal() -> None:
    """Messages that are no text come as bytes; what is not understood is left out."""
    lines = [
        '{"MESSAGE": "one", "_SYSTEMD_UNIT": "a.service", "__REALTIME_TIMESTAMP": "1000000"}',
        '{"MESSAGE": [27, 255], "SYSLOG_IDENTIFIER": "b", "__REALTIME_TIMESTAMP": "2000000"}',
        '{"MESSAGE": null, "__REALTIME_TIMESTAMP": "1"}',
        '{"MESSAGE": "three"}',
        "[]",
        "{",
    ]
    assert facts.parse_journal("\n".join(lines), True) == [
        facts.Message("a.service", "one", 1.0),
        facts.Message("b", "\x1b\\xff", 2.0),
    ]
    assert facts.parse_journal("", True) == []
    assert facts.parse_journal("", False) is None
    assert facts.parse_journal(None, True) is None


def read_conf(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> facts.Conf:
    """Read a wsl.conf."""
    (tmp_path / "etc").mkdir(exist_ok=True)
    (tmp_path / "etc/wsl.conf").write_text(text)
    monkeypatch.setattr(facts, "GENERATOR", str(support.GENERATOR))
    module = facts.load_generator()
    module.ROOT = str(tmp_path)
    return facts.read_conf(module)


def test_what_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below a malformed line: all settings, with their sections, also behind the next malformed line."""
    text = "[boot]\na=1\nbad\nsystemd=true\n[user]\nbad\ndefault=me\n"
    conf = read_conf(text, tmp_path, monkeypatch)
    assert conf.settings == [facts.Setting(2, "boot.a", "1")]
    assert conf.stopped_at == 3
    assert conf.ignored == [facts.Setting(4, "boot.systemd", "true"), facts.Setting(7, "user.default", "me")]


@given(
    lines=st.lists(st.sampled_from(["[boot]", "[x", "a=1", "bad", "#", "", 'b="', "c=\\", "[user] # x"]), max_size=12)
)
def test_any_conf(lines: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """It ends, and no line is both read and ignored."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        conf = read_conf("\n".join(lines), tmp_path_factory.mktemp("conf"), monkeypatch)
    assert not conf.stopped_at or all(each.line < conf.stopped_at for each in conf.settings)
    assert all(each.line > conf.stopped_at for each in conf.ignored)


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("boot.systemd", "true", ""),
        ("boot.systemd", "TRUE", ""),
        ("boot.systemd", "1", ""),
        ("boot.systemd", "yes", "neither true nor false but 'yes'"),
        ("boot.command", "anything", ""),
        ("boot.protectbinfmts", "false", "boot.protectbinfmt may be meant"),
        ("interopt.enabled", "false", "interop.enabled may be meant"),
        ("wsl2.memory", "4GB", ".wslconfig"),
        (".systemd", "true", "boot.systemd may be meant"),
        ("quite.different", "", "WSL knows no quite.different"),
    ],
)
def test_settings_that_wsl_does_not_know(name: str, value: str, part: str) -> None:
    """With the likely one that is meant."""
    wrong = diagnosis._unused(facts.Setting(1, name, value))
    assert part in wrong
    assert bool(wrong) == bool(part)


def test_mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blanks in names are undone; the uppermost counts; a superblock may be read-only too."""
    lines = (
        "1 2 0:3 / /mnt/a\\040b rw,noexec shared:1 - 9p C:\\134 rw,aname=drvfs;path=C:\\134\n"
        "2 2 0:3 / /mnt/a\\040b rw - tmpfs x ro\n"
    )
    monkeypatch.setattr(facts, "read", lambda _path: lines)
    mounts = facts.read_mounts()
    top = facts.top_mount(mounts, "/mnt/a b")
    assert top
    assert (top.kind, "ro" in top.options) == ("tmpfs", True)
    assert facts.top_mount(mounts, "/mnt") is None


def test_files_of_programs(tmp_path: Path) -> None:
    """Why one cannot be executed."""
    path = tmp_path / "x.exe"
    path.write_bytes(b"MZ")
    mounts = [facts.Mount("/", "/", ["rw", "relatime"], "ext4")]
    path.chmod(0o644)
    program = launch.read(str(path), mounts)
    assert program
    assert "may not be executed" in program.fault
    assert program.fix == f"chmod +x -- {path}"
    assert program.evidence == [f"{path} has the mode -rw-r--r--", "/ is mounted with rw,relatime"]
    path.chmod(0o755)
    program = launch.read(str(path), mounts)
    assert program
    assert (program.fault, program.evidence, program.start) == ("", [], b"MZ".ljust(256, b"\0"))
    program = launch.read(str(tmp_path), mounts)
    assert program
    assert "is not a file" in program.fault
    assert launch.read(str(tmp_path / "none"), mounts) is None


def test_what_a_launch_says(tmp_path: Path) -> None:
    """By what the kernel and /init say."""
    script = tmp_path / "script"
    script.write_text(
        "#!/bin/sh\nprintf '\\033[1m<3>WSL (7) ERROR: UtilConnectUnix:530: connect failed 111\\n'; exit 1\n"
    )
    script.chmod(0o755)
    launched = launch.launch(str(script), [])
    assert (launched.started, launched.layer) == (False, "windows")
    assert "connect failed 111" in launched.detail
    script.write_text("#!/bin/sh\nexit 3\n")
    assert launch.launch(str(script), []) == launch.Launch(str(script), True, "", "it ended with the exit status 3")
    script.write_text("#!/nowhere\n")
    assert launch.launch(str(script), []).layer == "interpreter"
    script.chmod(0o644)
    assert launch.launch(str(script), []).layer == "file"


def test_a_launch_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ended, and nobody knows."""
    monkeypatch.setattr(launch, "START_MAX", 0.1)
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\nexec sleep 100\n")
    script.chmod(0o755)
    assert launch.launch(str(script), []).started is None


def test_nothing_of_this_runs_at_boot() -> None:
    """What units run loads none of it."""
    program = "import sys; from wsl_binfmt import command, watch; print(*sys.modules)"
    done = support.run(
        "-c", program, environment={"PYTHONPATH": str(support.GENERATOR.parent)}, command=[support.COMMAND[0], "-S"]
    )
    assert done.stderr == ""
    loaded = set(done.stdout.split())
    assert "wsl_binfmt.watch" in loaded
    assert not {f"wsl_binfmt.{name}" for name in ("cli", "diagnosis", "facts", "launch", "report")} & loaded
    assert not {"argparse", "json", "subprocess"} & loaded


LATE = entry("WSLInterop-late")
DISABLED = table.Entry(enabled=False, interpreter=b"/init", flags=b"PF", magic=b"MZ")
RIVAL = table.Entry(enabled=True, interpreter=b"/w", flags=b"", magic=b"MZ")


@pytest.mark.parametrize(
    ("entries", "works", "problems"),
    [
        ([LATE], True, ["not-registered"]),
        ([entry("WSLInterop-late", DISABLED)], False, ["not-registered"]),
        ([entry("wine", RIVAL), LATE], False, ["not-registered", "shadowed"]),
        ([entry("wine", RIVAL)], False, ["not-registered"]),
        ([LATE, entry("wine", RIVAL), entry()], True, ["second-name"]),
        ([entry("WSLInterop", DISABLED)], False, ["disabled-by-hand"]),
        ([entry("WSLInterop", DISABLED), LATE], True, ["disabled-by-hand", "second-name"]),
        ([], False, ["not-registered"]),
    ],
)
def test_no_answer_without_a_reason(entries: list[facts.Registered], works: bool, problems: list[str]) -> None:
    """What does not work has a problem, and the entry that alone works is not to be removed."""
    found = diagnosis.diagnose(healthy(entries=entries))
    assert found.works is works
    assert [problem.id for problem in found.problems] == problems
    if len(entries) == 1:
        assert not any("echo -1" in (problem.fix or "") for problem in found.problems)


def test_fixes_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is quoted for the shell; what cannot be shown as it is gives no command."""
    second = entry("x;$(touch y)")
    (problem,) = diagnosis.diagnose(healthy(entries=[second, entry()])).problems
    assert problem.fix == f"echo -1 | sudo tee '{table.DIRECTORY}/x;$(touch y)'"
    for name in "x\033[2J", "x" * 250, "x\udcff":
        (problem,) = diagnosis.diagnose(healthy(entries=[entry(name), entry()])).problems
        assert problem.fix is None
    monkeypatch.setattr(formats, "BINFMT_D", (str(tmp_path),))
    (tmp_path / "a b;$(id).conf").write_text(":WSLInterop:M::MZ::/x:\n")
    (problem,) = diagnosis.diagnose(healthy()).problems
    assert problem.fix == "sudo ln -s /dev/null '/etc/binfmt.d/a b;$(id).conf'"


def test_where_nothing_can_be_changed() -> None:
    """A command that would do nothing is not given."""
    mount = facts.Mount("/", table.DIRECTORY, ["ro"], "binfmt_misc")
    found = diagnosis.diagnose(healthy(entries=[], table_mount=mount))
    assert [(problem.id, problem.fix) for problem in found.problems] == [
        ("not-registered", None),
        ("table-read-only", None),
    ]


def test_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As WSL chooses one: the one that is named, unless that is gone; and it has to answer."""
    monkeypatch.setattr(diagnosis, "INTEROP_SOCKETS", str(tmp_path))
    monkeypatch.setattr(diagnosis, "_ancestors", lambda: iter([7, 1]))
    monkeypatch.chdir(tmp_path)
    (not_checked,) = diagnosis.diagnose(healthy()).not_checked
    assert "socket" in not_checked
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as dead:
        server.bind("2_interop")
        server.listen()
        (tmp_path / "1_interop").symlink_to("2_interop")
        assert diagnosis.diagnose(healthy()).problems == []
        monkeypatch.setenv("WSL_INTEROP", f"{tmp_path}/1_interop")
        assert diagnosis.diagnose(healthy()).problems == []
        monkeypatch.setenv("WSL_INTEROP", f"{tmp_path}/9_interop")
        (problem,) = diagnosis.diagnose(healthy()).problems
        assert (problem.id, problem.severity) == ("interop-socket-dead", "warning")
        assert problem.fix == f"export WSL_INTEROP={tmp_path}/1_interop"
        dead.bind("9_interop")
        found = diagnosis.diagnose(healthy())
        assert (found.works, [problem.severity for problem in found.problems]) == (False, ["error"])


def test_a_table_that_never_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list and texts that do not belong together are not taken for an answer."""
    numbers = iter(range(1000))
    monkeypatch.setattr(table, "entries", lambda: {"x": next(numbers)})
    monkeypatch.setattr(table, "read", lambda _name: WSL)
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    assert facts.within(1, facts.read_entries) is None


def test_a_huge_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is shown of it is little."""
    conf = read_conf("bad\n" + "a=1\n" * 200_000, tmp_path, monkeypatch)
    assert len(conf.ignored) == facts.SHOWN_MAX
    conf = read_conf(f"{'a' * 100_000}=1\n" + "a=1\n" * 10_000, tmp_path, monkeypatch)
    found = diagnosis.diagnose(healthy(conf=conf))
    assert 0 < len(found.problems) <= facts.SHOWN_MAX


def test_odd_lines_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Line ends that the kernel does not escape, and lines that are not understood."""
    lines = "1 2 0:3 / /mnt/a\x0cb\u2028c\rd rw - fuse x rw\nx\n\n"
    monkeypatch.setattr(facts, "read", lambda _path: lines)
    assert [mount.target for mount in facts.read_mounts()] == ["/mnt/a\x0cb\u2028c\rd"]
