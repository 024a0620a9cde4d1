# SPDX-License-Identifier: MIT
"""Root file systems of Debian's suites, and that of a newcomer."""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
import time
import zlib
from typing import TYPE_CHECKING

import bed

if TYPE_CHECKING:
    from collections.abc import Callable
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
    name = suite if packages == PACKAGES else f"{suite}-{packages}"
    return cached(name, lambda target: bootstrap(suite, target, packages), 24 * 3600 if suite == "sid" else 0)


def make_newcomers() -> Path:
    """Make one of Debian 12 in which there is nothing but apt, make, and what `make demo` installs."""
    makefile = (bed.TREE / "Makefile").read_text()
    needs = re.findall("^(?:BED|NEEDS_demo) = .*$", makefile, re.MULTILINE)
    return cached(f"newcomer-{zlib.crc32(str(needs).encode()):08x}", bootstrap_newcomers)


def cached(name: str, bootstrap: Callable[[Path], None], age: int = 0) -> Path:
    """Make a root file system in build/roots, if it is not there yet, or is older than `age` in seconds."""
    path = bed.TREE / "build" / "roots" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    # `make check` runs tests in two processes.
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if age and path.exists() and path.stat().st_ctime < time.time() - age:
            shutil.rmtree(path)
        if not path.exists():
            unfinished = path.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            bootstrap(unfinished)
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


def bootstrap_newcomers(target: Path) -> None:
    """Install what a newcomer has into a directory that is not there yet; the rest is for the Makefile to install."""
    subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=apt", "--include=make",
         f"--customize-hook=copy-in {bed.TREE / 'Makefile'} /tmp",
         """--customize-hook=chroot "$1" make --no-print-directory --directory=/tmp deps 'NEEDED=$(NEEDS_demo)'""",
         "bookworm", target, f"deb {MIRROR} bookworm main"],
        check=True,
    )  # fmt: skip
