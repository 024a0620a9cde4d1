# SPDX-License-Identifier: MIT
"""What the tests on a real systemd ask of it."""

from __future__ import annotations

import os
import struct
import time
from functools import partial
from typing import TYPE_CHECKING

import bed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def eventually(condition: Callable[[], object], seconds: float = 5) -> float:
    """Wait until `condition` holds; returns how long that took, in seconds of a real machine."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() < start + seconds * bed.SLOWNESS, "it did not come to hold"
        time.sleep(0.002)
    return (time.monotonic() - start) / bed.SLOWNESS


def briefly(launches: bed.Launches, changes: int = 1) -> bool:
    """Whether launches failed only until the watch got to run, after so many changes of the table.

    That takes less than a millisecond; if the machine is busy, 50 now and then.
    """
    return launches.lost <= (100 + 5 * changes) * bed.SLOWNESS


def inodes(vm: bed.Vm) -> dict[str, int]:
    """Inodes of the entries, by name."""
    with os.scandir(vm.table) as files:
        return {file.name: file.inode() for file in files if file.name not in ("register", "status")}


def first(vm: bed.Vm) -> str:
    """Name of the newest entry, which the kernel asks first."""
    return vm.names()[0]


def right(vm: bed.Vm) -> bool:
    """Whether WSLInterop is as WSL registers it, and the temporary entry is gone."""
    text = "enabled\ninterpreter /init\nflags: PF\noffset 0\nmagic 4d5a\n"
    return vm.entry("WSLInterop") == text and vm.entry("WSLInterop-temporary") is None


WATCH = "wsl-binfmt-watch.service"
STATE = f"systemctl is-active {WATCH}; systemctl list-jobs; journalctl --quiet --lines=30"


def knows_that_it_is_disabled(distro: bed.Distro) -> bool:
    """Whether the watch has saved that WSLInterop was disabled by hand."""
    return b"disabledT" in distro.path("/run/wsl-binfmt/state").read_bytes()


def quiet(distro: bed.Distro) -> bool:
    """Whether the distro has nothing left to do, and still watches."""
    return distro.systemctl("is-active", WATCH, check=False) == "active\n" and no_jobs(distro)


def all_quiet(distros: Iterable[bed.Distro], seconds: float = 20) -> None:
    """Wait until no distro has anything left to do."""
    for distro in distros:
        try:
            eventually(partial(quiet, distro), seconds)
        except AssertionError as e:
            raise AssertionError(distro.shell(STATE, check=False)) from e


def no_jobs(distro: bed.Distro) -> bool:
    """Whether systemd has nothing queued."""
    return "No jobs" in distro.systemctl("list-jobs")


def foreign_program(distro: bed.Distro, path: str = "/tmp/foreign") -> str:
    """Put a program for another processor there, aarch64, as far as binfmt_misc is concerned; returns `path`.

    The bed's emulator runs it: it exits with 42.
    """
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack("<HH", 2, bed.EM_AARCH64)  # elf(5)
    distro.path(path).write_bytes(header.ljust(128, b"\0"))
    distro.path(path).chmod(0o755)
    return path
