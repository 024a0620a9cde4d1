# SPDX-License-Identifier: MIT
"""Each system call may fail, and each may be the last: a part of faults.py, and more."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import pytest

import faults
from bed import SLOWNESS, TABLE, WSL_INTEROP
from checks import briefly, eventually, quiet, right

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bed import Distro, Vm

    Boot = Callable[..., Distro]

pytestmark = pytest.mark.system

WATCH = "wsl-binfmt-watch.service"
OURS = {"/etc/binfmt.d/x.conf": ":x:M::xx::/bin/true:\n"}


class Report:
    """What was wrong."""

    def __init__(self) -> None:
        self.wrong: list[str] = []

    def __call__(self, program: str, fault: faults.Fault, wrong: str) -> None:
        """Take what faults.py tells."""
        if wrong:
            self.wrong.append(f"{program}, {fault.option}: {wrong}")


def test_generator() -> None:
    report = Report()
    assert faults.generator_faults(report) > 100
    assert report.wrong == []


@pytest.mark.parametrize("name", faults.COMMANDS)
def test_command(name: str) -> None:
    report = Report()
    assert faults.command_faults(name, report, every=31) > 3
    assert report.wrong == []


@pytest.mark.parametrize(
    ("fault", "options"), [("full", "size=4k"), ("out of inodes", "nr_inodes=1"), ("read-only", "ro,size=4k")]
)
def test_a_state_file_that_cannot_be_written(vm: Vm, boot: Boot, fault: str, options: str) -> None:
    """Windows programs start, and nothing fails. The file is written as soon as that is possible."""
    distro = boot(vm, files=OURS, start_limit=False)
    eventually(lambda: quiet(distro))
    in_watch(distro, f"mount -t tmpfs -o {options} tmpfs /run/wsl-binfmt")
    if fault == "full":
        in_watch(distro, "cat /dev/zero >/run/wsl-binfmt/zero || true")
    with distro.launching() as launches:
        for _ in range(3):
            distro.systemctl("restart", "systemd-binfmt.service")
        assert launches.failed == 0
        vm.write("status", "-1")
        eventually(lambda: right(vm))
    assert briefly(launches)
    assert distro.interop()
    assert distro.wait_until_up() == "running"
    assert "cannot change /run/wsl-binfmt/state: " in distro.journal(WATCH)
    in_watch(distro, "umount /run/wsl-binfmt")
    distro.systemctl("restart", "systemd-binfmt.service")
    eventually(lambda: quiet(distro) and "x" in vm.names())
    distro.systemctl("stop", "systemd-binfmt.service")
    eventually(lambda: "x" not in vm.names(), 2)
    assert right(vm)


def in_watch(distro: Distro, script: str) -> None:
    """Run a shell script where the watch sees what is mounted."""
    distro.run("nsenter", f"--target={main_pid(distro)}", "--mount", "sh", "-ec", script)


def main_pid(distro: Distro) -> str:
    """The PID of the watch, as the distro sees it."""
    return distro.run("systemctl", "show", "--property=MainPID", "--value", WATCH).strip()


@contextlib.contextmanager
def standing(distro: Distro) -> Iterator[None]:
    """Keep the watch from running, as a machine that is too busy does."""
    eventually(lambda: quiet(distro))
    distro.run("kill", "-STOP", main_pid(distro))
    yield
    distro.run("kill", "-CONT", main_pid(distro))


def test_the_watch_is_stopped_and_continued(vm: Vm, boot: Boot) -> None:
    """The services need no watch, and what happened meanwhile is repaired as soon as it goes on."""
    distro = boot(vm, files=OURS, start_limit=False)
    with standing(distro):
        with distro.launching() as launches:
            distro.systemctl("restart", "systemd-binfmt.service")
        assert launches.failed == 0
        vm.write("status", "-1")
        assert not distro.interop()
    eventually(lambda: right(vm) and distro.interop() and "x" in vm.names())
    assert distro.wait_until_up() == "running"
    # Stopped while it has the lock, or waits for it, it delays no other program for long.
    distro.run("kill", "-STOP", main_pid(distro))
    begun = time.monotonic()
    distro.run("flock", "--no-fork", f"{TABLE}/register", "wsl-binfmt", "restore")
    assert time.monotonic() - begun < 5 * SLOWNESS
    assert right(vm)


def test_the_watch_is_out_of_memory(vm: Vm, boot: Boot) -> None:
    """It ends, if it must, and the next watch knows what it knew."""
    distro = boot(vm, files=OURS)
    eventually(lambda: quiet(distro))
    distro.run("prlimit", f"--pid={main_pid(distro)}", "--as=1")
    for number in range(300):
        vm.write("register", f":burst{number}:M::burst{number}::/bin/true:")
    vm.write("status", "-1")
    eventually(lambda: right(vm) and distro.interop() and "x" in vm.names())
    assert distro.wait_until_up() == "running"
    assert "Traceback" not in distro.journal(WATCH)


def test_a_reload_while_the_watch_is_late(few_vm: Vm, boot: Boot) -> None:
    """It leaves a missing WSLInterop to the watch, which knows whether an administrator has disabled it."""
    distro = boot(few_vm)
    with standing(distro):
        few_vm.write("WSLInterop", "-1")
        distro.systemctl("start", "wsl-binfmt-boot.service")
        assert few_vm.entry("WSLInterop") is None
    eventually(lambda: right(few_vm))
    distro.systemctl("stop", WATCH)
    few_vm.write("WSLInterop", "-1")
    distro.systemctl("start", "wsl-binfmt-boot.service")
    assert right(few_vm)


def test_the_watch_is_late(vm: Vm, boot: Boot) -> None:
    """A start that has replaced each entry before the watch looks is no wipe, and may go on to register WSLInterop."""
    distro = boot(vm)
    with standing(distro):
        distro.systemctl("restart", "systemd-binfmt.service")
        vm.write("WSLInterop", "-1")
    eventually(lambda: vm.entry("WSLInterop-temporary"))
    vm.register(WSL_INTEROP)
    eventually(lambda: right(vm))


def test_systemctl_hangs(vm: Vm, boot: Boot) -> None:
    """The watch asks it whether a service that has stopped has failed, and waits a second at most for the answer."""
    distro = boot(vm, files=OURS, start_limit=False)
    eventually(lambda: quiet(distro))
    distro.shell("printf '#!/bin/sh\nsleep 60\n' >/run/hangs; chmod 755 /run/hangs")
    in_watch(distro, "mount --bind /run/hangs /usr/bin/systemctl")
    with distro.launching() as launches:
        distro.systemctl("restart", "systemd-binfmt.service")
        assert "x" in vm.names()
        distro.systemctl("stop", "systemd-binfmt.service")
        eventually(lambda: "x" not in vm.names(), 3)
        vm.write("register", ":wine:M::MZ::/bin/true:")
        eventually(lambda: vm.names()[0] == "WSLInterop", 2)
    assert briefly(launches)
    assert right(vm)
    assert distro.wait_until_up() == "running"
