# SPDX-License-Identifier: MIT
"""The watch: when it looks again, what it tells, and what it leaves alone. It waits for nothing here."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

import kernel
import support
from wsl_binfmt import interop, notes, table, watch

if TYPE_CHECKING:
    from pathlib import Path

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


def test_it_remembers(kept: kernel.Table, watching: watch.Watch) -> None:
    """Which registration WSLInterop is, and whether it was disabled, for the next watch; written once."""
    inode = kept.get("WSLInterop").inode
    assert kept.notes["WSLInterop"] == b"%d enabled" % inode
    kept.get("WSLInterop").enabled = False
    watching._try_to_look()
    assert kept.notes["WSLInterop"] == b"%d disabled" % inode


def test_a_repair_is_looked_at_again(kept: kernel.Table, watching: watch.Watch, told: list[str]) -> None:
    """At once, and told once."""
    kept.add(WINE)
    assert watching._try_to_look() == kept.now
    assert kept.names == ["WSLInterop", "wine"]
    assert watching._try_to_look() == 0
    assert told == ["wine outranks WSLInterop: restored"]


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
    asked = 0
    while kept.now < begun + watch.WANTED_MAX + 5:
        kept.now = watching._try_to_look()
        asked += kept.now > begun + watch.WANTED_MAX + 0.1
        assert kept.writes == []
    assert asked <= 6
    (tmp_path / "wanted").touch()
    watching._try_to_look()
    assert kept.names[0] == "WSLInterop"
    # The next reload is one of its own.
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
        os.kill(os.getpid(), signal.SIGIO)
        watching._repairs_in_a_row = watch.IN_A_ROW_MAX + 1
        assert watching._wait(kept.now + 0.01) == 0
        watching._repairs_in_a_row = 0
        assert watching._wait(kept.now + 0.01) == signal.SIGIO
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
    with monkeypatch.context() as context:

        def fail(*_: object) -> None:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), "/t/register")

        context.setattr(table, failing, fail)
        delays = [watching._try_to_look() - kept.now for _ in range(10)]
    assert delays == [2, 4, 8, 16, 32, 64, 64, 64, 64, 64]
    assert told == ["cannot change /t/register: Cannot allocate memory"]
    watching._try_to_look()
    assert kept.names[0] == "WSLInterop"


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
    assert len(told) == 2
    assert "`sudo wsl-binfmt restore` switches it on" in told[0]
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


@pytest.mark.parametrize("refusal", [errno.EINVAL, 0])
def test_it_ends_with_sigterm(tmp_path: Path, refusal: int) -> None:
    """As a process, on a directory in place of the table: it waits for changes, or polls, and ends."""
    for name in "register", "WSLInterop":
        (tmp_path / name).write_bytes(b"enabled\ninterpreter /init\nflags: PF\noffset 0\nmagic 4d5a\n")
    (tmp_path / "status").write_text("enabled\n")
    program = f"""
import fcntl, sys
from wsl_binfmt import notes, table, watch
table.DIRECTORY = notes.DIRECTORY = {str(tmp_path)!r}
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
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(support.GENERATOR.parent)},
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "look\n"
        begun = time.monotonic()
        if not refusal:
            time.sleep(0.1)
            (tmp_path / "new").write_text("")
        assert process.stdout.readline() == "look\n"
        assert (time.monotonic() - begun > watch.POLL / 2) is bool(refusal)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=support.TIMEOUT)
    assert process.returncode == 0
    assert out.endswith("end\n")
    assert ("this kernel has no dnotify" in err) is bool(refusal)
    assert fcntl.DN_MULTISHOT
