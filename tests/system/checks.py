# SPDX-License-Identifier: MIT
"""What the tests on a real systemd ask of it."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import bed


def eventually(condition: Callable[[], object], seconds: float = 5) -> float:
    """Wait until `condition` holds; returns how long that took, in seconds."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() < start + seconds, "it did not come to hold"
        time.sleep(0.002)
    return time.monotonic() - start


def first(vm: bed.Vm) -> str:
    """Name of the newest entry, which the kernel asks first."""
    return vm.names()[0]


def right(vm: bed.Vm) -> bool:
    """Whether WSLInterop is as WSL registers it, and nothing stands in for it."""
    return vm.entry("WSLInterop") == ("enabled\ninterpreter /init\nflags: PF\noffset 0\nmagic 4d5a\n") and not [
        name for name in vm.names() if name.startswith("WSLInterop-held-by-")
    ]


def quiet(distro: bed.Distro) -> bool:
    """Whether the distro has nothing left to do, and still watches."""
    return (
        "No jobs" in distro.systemctl("list-jobs")
        and "ActiveState=inactive" in distro.systemctl("show", "--property=ActiveState", "wsl-binfmt-restore.service")
        and distro.systemctl("show", "--property=SubState", "wsl-binfmt-restore.path").strip() == "SubState=waiting"
    )


def all_quiet(distros: Iterable[bed.Distro], seconds: float = 20) -> None:
    """Wait until no distro has anything left to do."""
    for distro in distros:
        eventually(partial(quiet, distro), seconds)


def no_jobs(distro: bed.Distro) -> bool:
    """Whether systemd has nothing queued."""
    return "No jobs" in distro.systemctl("list-jobs")
