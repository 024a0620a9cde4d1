# SPDX-License-Identifier: MIT
"""Root file systems of Debian's suites."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

import bed

if TYPE_CHECKING:
    from pathlib import Path

# Of Debian's suites: the version of systemd in them. 252 is that of the machine around. Between 257 and 262 there is
# none in the archive, and none of Ubuntu, which has 255 and 259.
SUITES = {"bullseye": 247, "bookworm-backports": 254, "trixie": 257, "sid": 262}
PACKAGES = "systemd systemd-sysv python3-minimal dbus binfmt-support"
MIRROR = "http://deb.debian.org/debian"
# As debootstrap, and so WSL's images, have had it since buster; later suites do it themselves.
MERGED_USR = {"bullseye": ["--setup-hook=/usr/share/mmdebstrap/hooks/merged-usr/setup00.sh"]}


def make(suite: str, packages: str = PACKAGES) -> Path:
    """Make that of a suite, once on a machine; that of sid, which moves on, once a day."""
    path = bed.TREE / "build" / "roots" / (suite if packages == PACKAGES else f"{suite}-{packages}")
    path.parent.mkdir(parents=True, exist_ok=True)
    # `make check` runs tests in two processes.
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if suite == "sid" and path.exists() and path.stat().st_ctime < time.time() - 24 * 3600:
            shutil.rmtree(path)
        if not path.exists():
            unfinished = path.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            bootstrap(suite, unfinished, packages)
            unfinished.rename(path)
    return path


def bootstrap(suite: str, target: Path, packages: str) -> None:
    """Install a suite into a directory that is not there yet."""
    release, is_backport, _ = suite.partition("-backports")
    sources = [f"deb {MIRROR} {release} main"]
    if is_backport:
        names = f"{packages} libsystemd0 libsystemd-shared".split()
        packages = " ".join(f"{name}/{suite}" if "systemd" in name else name for name in names)
        sources.append(f"deb {MIRROR} {suite} main")
    # sid's and old suites' lists may be older than they say they may be.
    subprocess.run(
        ["mmdebstrap", "--variant=minbase", f"--include={packages.replace(' ', ',')}",
         '--aptopt=Acquire::Check-Valid-Until "false"', *MERGED_USR.get(suite, ()), release, target, *sources],
        check=True,
    )  # fmt: skip
