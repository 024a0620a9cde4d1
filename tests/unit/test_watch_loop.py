# SPDX-License-Identifier: MIT
"""The watch: when it looks again, what it tells, and what it leaves alone. It waits for nothing here."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

import kernel
import support
from wsl_binfmt import formats, interop, notes, table, watch

if TYPE_CHECKING:
    from pathlib import Path

SERVICE = formats.SERVICES[0]
CLI = b":cli:M::MZ::/usr/bin/cli:"
WINE = b":wine:M::MZ::/usr/bin/wine:"
QEMU = b":qemu-arm:M::\x7fELF::/usr/bin/qemu-arm:F"


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> kernel.Table:
    """A table with WSLInterop, in a distro that wants the watch."""
    memory = kernel.Table(monkeypatch)
    memory.add(kernel.WSL)
    (tmp_path / "wanted").touch()
    monkeypatch.setattr(watch, "WANTED", str(tmp_path / "wanted"))
    monkeypatch.setattr("posix.access", lambda path, _mode: path == "/init" and (tmp_path / "wanted").exists())
    return memory


@pytest.fixture
def told() -> list[str]:
    """What people were told."""
    return []


@pytest.fixture
def watching(kept: kernel.Table, told: list[str]) -> watch.Watch:
    """A watch of that table, that has looked once."""
    made = watch.Watch(told.append)
    assert made._try_to_look() == 0
    assert kept.writes == []
    return made


def test_it_remembers(
    kept: kernel.Table, watching: watch.Watch, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which registration WSLInterop is, and whether it was disabled, for the next watch; written once."""
    inode = kept.get("WSLInterop").inode
    assert kept.notes["WSLInterop"] == b"%d enabled" % inode
    kept.get("WSLInterop").enabled = False
    watching._try_to_look()
    assert kept.notes["WSLInterop"] == b"%d disabled" % inode

    def fail(name: str, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)

    monkeypatch.setattr(notes, "write", fail)
    for again in watching, watch.Watch(told.append):
        assert again._try_to_look() == 0
    assert told == []


@pytest.fixture
def own(kept: kernel.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distro with a format of its own, which is noted."""
    monkeypatch.setattr(formats, "rules", lambda service: {"qemu-arm": QEMU} if service == SERVICE else {})
    kept.add(QEMU)
    formats.note(SERVICE, {"qemu-arm": (kept.get("qemu-arm").inode, QEMU)})


@pytest.mark.usefixtures("own")
def test_killed_before_formats_are_back(kept: kernel.Table, told: list[str]) -> None:
    """The next watch brings them back: what it finds of WSLInterop is not yet remembered."""
    killed = watch.Watch(told.append)
    killed._try_to_look()
    kept.formats.clear()
    killed._try_to_look()
    assert kept.names == ["WSLInterop"]
    assert killed._try_to_look() > kept.now
    made = watch.Watch(told.append)
    kept.now = made._try_to_look()
    kept.now = made._try_to_look()
    assert made._try_to_look() == 0
    assert kept.names == ["qemu-arm", "WSLInterop"]
    assert kept.notes["WSLInterop"] == b"%d enabled" % kept.get("WSLInterop").inode


@pytest.mark.usefixtures("own")
def test_full_run(kept: kernel.Table, told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be noted keeps neither formats nor a repair waiting."""
    made = watch.Watch(told.append)
    made._try_to_look()

    def fail(name: str, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)

    monkeypatch.setattr(notes, "write", fail)
    kept.list_as(f"{SERVICE}.before")
    kept.list_as(f"{SERVICE}.after")
    kept.formats.clear()
    assert made._try_to_look() == kept.now
    due = made._try_to_look()
    assert due == kept.now + formats.QUIET
    kept.now = due
    assert made._try_to_look() >= due + 2
    assert kept.names == ["qemu-arm", "WSLInterop"]
    held = interop.rule(interop.STAND_IN + "1")
    kept.add(held)
    due = made._try_to_look()
    assert due == kept.now + interop.HOLD_MAX
    kept.now = due
    made._try_to_look()
    assert kept.names == ["qemu-arm", "WSLInterop"]


def test_a_repair_is_looked_at_again(kept: kernel.Table, watching: watch.Watch, told: list[str]) -> None:
    """At once, and told once."""
    kept.add(WINE)
    assert watching._try_to_look() == kept.now
    assert kept.names == ["WSLInterop", "wine"]
    assert watching._try_to_look() == 0
    assert told == ["wine outranks WSLInterop: restored"]


def test_wrong_from_the_first(
    kept: kernel.Table, told: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its first look may find something wrong, also during a reload, and may fail."""
    kept.add(WINE)
    (tmp_path / "wanted").unlink()
    assert watch.Watch(told.append)._try_to_look() < kept.now + 0.1
    (tmp_path / "wanted").touch()
    assert watch.Watch(told.append)._try_to_look() == kept.now
    assert told == ["wine outranks WSLInterop: restored"]

    def fail() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(table, "entries", fail)
    assert watch.Watch(told.append)._try_to_look() == kept.now + 2


@pytest.mark.parametrize(
    ("repairs", "failure", "is_up"),
    [
        (0, "", True),
        (1, "", False),
        (watch.IN_A_ROW_MAX, "", False),
        (watch.IN_A_ROW_MAX + 1, "", True),
        (1, "x", True),
    ],
)
def test_when_it_is_up(
    watching: watch.Watch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, repairs: int, failure: str, is_up: bool
) -> None:
    """When it finds nothing wrong, or cannot help it."""

    def look() -> float:
        watching._repairs_in_a_row, watching._failure = repairs, failure
        return 0.0

    monkeypatch.setattr(watching, "_try_to_look", look)
    assert ups(watching, monkeypatch, tmp_path) == is_up


def test_it_is_not_up_after_a_repair(
    kept: kernel.Table, told: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It looks again first."""
    kept.add(WINE)
    assert ups(watch.Watch(told.append), monkeypatch, tmp_path) == 0


def ups(watching: watch.Watch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> int:
    """Run it for one look; returns how often it has told systemd that it is up."""
    told_systemd: list[bool] = []
    monkeypatch.setattr(table, "DIRECTORY", str(tmp_path))
    monkeypatch.setattr("posix.sched_setscheduler", lambda *_: None)
    monkeypatch.setattr(watch, "_tell_systemd_that_it_is_up", lambda: told_systemd.append(True))
    monkeypatch.setattr(watching, "_wait", lambda _due: signal.SIGTERM)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        watching.run()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return len(told_systemd)


def test_somebody_undoes_each_repair(kept: kernel.Table, watching: watch.Watch) -> None:
    """The machine is not kept busy with it."""
    for number in range(watch.IN_A_ROW_MAX):
        kept.add(b":wine%d:M::MZ::/usr/bin/wine:" % number)
        assert watching._try_to_look() == kept.now
    kept.add(WINE)
    assert watching._try_to_look() == pytest.approx(kept.now + 0.1)
    assert watching._try_to_look() == 0
    kept.drop("WSLInterop")
    assert watching._try_to_look() == kept.now


def test_it_is_not_wanted(kept: kernel.Table, watching: watch.Watch, tmp_path: Path) -> None:
    """For a moment, that is because systemd reloads; for longer, it was switched off, and is asked for seldom."""
    kept.add(WINE)
    (tmp_path / "wanted").unlink()
    begun = kept.now
    assert watching._try_to_look() < begun + 0.1
    asked = 0
    while kept.now < begun + watch.WANTED_MAX + 5:
        kept.now = watching._try_to_look()
        asked += kept.now > begun + watch.WANTED_MAX + 0.1
        assert kept.writes == []
    assert asked <= 6
    (tmp_path / "wanted").touch()
    watching._try_to_look()
    assert kept.names[0] == "WSLInterop"
    # The next reload is one of its own, also without a look in between that finds nothing wrong.
    (tmp_path / "wanted").unlink()
    kept.add(WINE.replace(b"wine", b"mono"))
    assert watching._try_to_look() < kept.now + 0.1
    (tmp_path / "wanted").touch()
    watching._try_to_look()
    watching._try_to_look()
    (tmp_path / "wanted").unlink()
    kept.now += 100
    kept.add(WINE.replace(b"wine", b"cli"))
    assert watching._try_to_look() < kept.now + 0.1


def test_a_reload_while_others_repair(kept: kernel.Table, watching: watch.Watch, tmp_path: Path) -> None:
    """It is not taken for the beginning of the next one."""
    kept.add(WINE)
    (tmp_path / "wanted").unlink()
    watching._try_to_look()
    kept.drop("wine")
    watching._try_to_look()
    kept.now += 100
    kept.add(WINE)
    assert watching._try_to_look() < kept.now + 0.1


def test_its_own_repairs_do_not_end_the_wait(kept: kernel.Table, watching: watch.Watch) -> None:
    """Each one raises SIGIO, too; it is kept for later."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watch.SIGNALS)
    try:
        signal.raise_signal(signal.SIGIO)
        watching._repairs_in_a_row = watch.IN_A_ROW_MAX + 1
        assert watching._wait(kept.now + 0.01) == 0
        watching._repairs_in_a_row = 0
        assert watching._wait(kept.now + 0.01) == signal.SIGIO
        begun = time.perf_counter()
        assert watching._wait(kept.now - 1) == 0
        assert time.perf_counter() < begun + 0.5
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_no_init(kept: kernel.Table, watching: watch.Watch, told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said once, and nothing is touched."""
    monkeypatch.setattr("posix.access", lambda _path, _mode: False)
    kept.add(WINE)
    for _ in range(3):
        assert watching._try_to_look() == kept.now + watch.POLL
    assert told == [interop.NO_INIT]
    assert kept.writes == []


@pytest.mark.parametrize("failing", ["_write", "entries"])
def test_what_the_kernel_refuses(
    kept: kernel.Table, watching: watch.Watch, told: list[str], monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """It is said once, and tried again later and later."""
    kept.add(WINE)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), "/t/register")

    with monkeypatch.context() as context:
        context.setattr(table, failing, fail)
        delays = [watching._try_to_look() - kept.now for _ in range(10)]
    assert delays == [2, 4, 8, 16, 32, 64, 64, 64, 64, 64]
    assert told == ["cannot change /t/register: Cannot allocate memory"]
    watching._try_to_look()
    assert kept.names[0] == "WSLInterop"
    # After that, it is worth saying again.
    watching._try_to_look()
    kept.add(CLI)
    monkeypatch.setattr(table, failing, fail)
    assert watching._try_to_look() == kept.now + 2
    assert len(told) == 3


def test_a_note_that_cannot_be_written(
    kept: kernel.Table, watching: watch.Watch, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is to be done in the table comes first."""

    def fail(name: str, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)

    monkeypatch.setattr(notes, "write", fail)
    kept.add(WINE)
    watching._try_to_look()
    assert kept.names[0] == "WSLInterop"
    watching._try_to_look()
    assert told[-1] == "cannot change WSLInterop: No space left on device"


def test_the_table_switched_off(
    kept: kernel.Table, watching: watch.Watch, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said with what ends it, and not ended."""
    switched_on = False
    monkeypatch.setattr(table, "is_switched_on", lambda: switched_on)
    for _ in range(3):
        assert watching._try_to_look() == 0
    switched_on = True
    watching._try_to_look()
    assert told == [
        (
            "somebody has switched off the whole table (echo 0 >status), so that no Windows program starts: "
            "`sudo wsl-binfmt restore` switches it on"
        ),
        "the table is switched on again",
    ]
    assert kept.writes == []


def test_gone_alone(kept: kernel.Table, watching: watch.Watch) -> None:
    """A stand-in answers for the time that whoever removed WSLInterop may take to register it."""
    kept.add(QEMU)
    watching._try_to_look()
    kept.drop("WSLInterop")
    watching._try_to_look()
    assert kept.names == [interop.stand_in(), "qemu-arm"]
    due = watching._try_to_look()
    assert due == kept.now + interop.PATIENCE
    kept.now = due
    watching._try_to_look()
    assert kept.names == ["WSLInterop", "qemu-arm"]


def test_gone_alone_from_a_table_of_its_own(kept: kernel.Table, watching: watch.Watch) -> None:
    """Where WSLInterop was all that was there, whoever removed it may be about to register it as well."""
    kept.drop("WSLInterop")
    watching._try_to_look()
    assert "WSLInterop" not in kept.names
    assert kept.names
    kept.now += interop.PATIENCE + 0.001
    watching._try_to_look()
    watching._try_to_look()
    assert kept.names == ["WSLInterop"]


def test_a_wipe(kept: kernel.Table, watching: watch.Watch) -> None:
    """WSLInterop is back at once."""
    kept.add(QEMU)
    watching._try_to_look()
    kept.formats.clear()
    watching._try_to_look()
    assert kept.names == ["WSLInterop"]


@pytest.mark.parametrize("is_wanted", [True, False])
def test_formats_that_were_lost(kept: kernel.Table, watching: watch.Watch, tmp_path: Path, is_wanted: bool) -> None:
    """They are back a while after WSLInterop is, in a distro that wants the watch."""
    kept.add(QEMU)
    formats.note(formats.SERVICES[0], {"qemu-arm": (kept.get("qemu-arm").inode, QEMU)})
    watching._try_to_look()
    kept.formats.clear()
    watching._try_to_look()
    due = watching._try_to_look()
    assert kept.now < due <= kept.now + formats.QUIET_MAX
    assert kept.names == ["WSLInterop"]
    kept.now = due
    if not is_wanted:
        (tmp_path / "wanted").unlink()
    assert (watching._try_to_look() == due) is is_wanted
    assert kept.names == (["qemu-arm", "WSLInterop"] if is_wanted else ["WSLInterop"])


def test_formats_that_cannot_be_removed(
    watching: watch.Watch, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is said of each service, and keeps none from being tried."""

    def fail(_service: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(formats, "remove", fail)
    watching._leave()
    assert told == [f"cannot remove the formats of {service}: Input/output error" for service in formats.SERVICES]


@pytest.mark.parametrize("command", ["touch a", "echo >>x", "rm x", "chmod 600 register"])
def test_what_it_is_told_of(tmp_path: Path, command: str) -> None:
    """Of every change of the table: an entry is added, written to or removed; and more than once."""
    # A process of its own, as a signal for a process may go to any of its threads.
    program = f"""
import fcntl, os, signal, subprocess
from wsl_binfmt import watch
signal.pthread_sigmask(signal.SIG_BLOCK, watch.SIGNALS)
fcntl.fcntl(os.open(".", os.O_RDONLY), fcntl.F_NOTIFY, watch.CHANGES)
for _ in range(2):
    subprocess.run("touch register x; rm -f a", shell=True, check=True)
    while signal.sigtimedwait({{signal.SIGIO}}, 0):
        pass
    subprocess.run({command!r}, shell=True, check=True)
    print(signal.sigtimedwait({{signal.SIGIO}}, 1) is not None)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(support.GENERATOR.parent)},
    )
    assert done.stdout == "True\nTrue\n"


@pytest.mark.parametrize("refusal", [errno.EINVAL, 0])
def test_as_a_process(tmp_path: Path, refusal: int) -> None:
    """On a directory in place of the table: it is up, waits for changes, or polls, and does what signals ask for."""
    directory = tmp_path / "table"
    directory.mkdir()
    for name in "register", "WSLInterop":
        (directory / name).write_bytes(b"enabled\ninterpreter /init\nflags: PF\noffset 0\nmagic 4d5a\n")
    (directory / "status").write_text("enabled\n")
    # Not one that matches Windows programs.
    (tmp_path / "new").write_bytes(b"enabled\ninterpreter /x\nflags: \noffset 0\nmagic 7f454c46\n")
    program = f"""
import fcntl, posix, sys
from wsl_binfmt import formats, notes, table, watch
table.DIRECTORY = {str(directory)!r}
notes.DIRECTORY = {str(tmp_path / "notes")!r}
formats.remove = lambda service: print("remove", service, flush=True)
watch.POLL = 0.2
posix.sched_setscheduler = lambda pid, policy, param: print(
    "scheduler", pid, policy == posix.SCHED_RR, param.sched_priority, flush=True
)
if {refusal}:
    class Fcntl:
        F_NOTIFY = 1
        def fcntl(self, *_):
            raise OSError({refusal}, "Invalid argument")
    watch.fcntl = Fcntl()
original = watch.Watch._look
def look(self):
    print("look", flush=True)
    return original(self)
watch.Watch._look = look
watch.Watch(lambda message: print(message, file=sys.stderr)).run()
print("end")
"""
    # Of both kinds that sd_notify(3) knows.
    address = "\0" * (refusal == 0) + str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd, subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(support.GENERATOR.parent), "NOTIFY_SOCKET": address.replace("\0", "@")},
    ) as process:
        systemd.bind(address)
        systemd.settimeout(support.TIMEOUT)
        assert process.stdout
        try:
            assert process.stdout.readline() == "scheduler 0 True 1\n"
            assert process.stdout.readline() == "look\n"
            begun = time.monotonic()
            assert systemd.recv(100) == b"READY=1"
            if refusal:
                assert [process.stdout.readline() for _ in range(4)] == ["look\n"] * 4
                assert time.monotonic() > begun + 0.3
            else:
                time.sleep(0.5)
                os.link(tmp_path / "new", directory / "new")
                assert process.stdout.readline() == "look\n"
            process.send_signal(signal.SIGUSR1)
            lines: list[str] = []
            while len(lines) < 2 or "remove" not in lines[-2]:
                lines.append(process.stdout.readline())
        finally:
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=support.TIMEOUT)
    assert process.returncode == 0
    assert out.endswith("end\n")
    # Without a change, it has not looked.
    assert lines[-2:] == [f"remove {service}\n" for service in formats.SERVICES]
    assert refusal or len(lines) == 2
    told = "this kernel has no dnotify, CONFIG_DNOTIFY (Invalid argument): looking every second instead\n"
    assert err == (told if refusal else "")
