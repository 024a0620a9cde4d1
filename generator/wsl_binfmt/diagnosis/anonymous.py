# SPDX-License-Identifier: MIT
"""Taking the names of users, homes and hosts out of a machine, so that it can be shown in public."""

from __future__ import annotations

import os
import re
from typing import Any, Dict, List

from wsl_binfmt.diagnosis.bounded import read

# Names that identify no user, and words that are in paths and names of this package or of every system.
COMMON = frozenset(
    """root nobody user users wsl localhost ubuntu debian fedora arch admin default public all home mnt etc usr lib bin
    sbin run proc sys dev var tmp opt init systemd binfmt service windows system32 microsoft distro host
    generator watch guard support mount status override sysinit target wants early wslinterop late temporary
    boot interop automount network rw ro true false cmd exe""".split()  # noqa: SIM905 - a list would be a page
)
# Members whose texts are of the kernel, of systemd or of this package.
WORDS = frozenset(
    """package release elsewhere sbin_init systemd native state interpreter_state wsl_interop_state run_wsl kind load
    active flags magic mask start""".split()  # noqa: SIM905 - a list would be a page
)
PROGRAMS = "4d5a", "7f454c46"  # MZ and ELF: the beginning of any other file may be text
NAME_MIN = 2  # letters: a drive of Windows is called by one
UID_MIN, UID_MAX = 1000, 60000


def anonymous(plain: Any) -> Any:
    """Replace names of users, homes and hosts in the texts of a machine, as to_plain() gave it."""
    replacements = _replacements()
    return _walk(plain, replacements)


def _walk(value: Any, replacements: "Dict[re.Pattern[str], str]") -> Any:
    if isinstance(value, dict):
        return {name: _member(name, each, replacements) for name, each in value.items()}
    if isinstance(value, list):
        return [_walk(each, replacements) for each in value]
    if isinstance(value, str):
        for pattern, replacement in replacements.items():
            value = pattern.sub(replacement, value)
    return value


def _member(name: str, value: Any, replacements: "Dict[re.Pattern[str], str]") -> Any:
    if name == "start" and value and not value.startswith(PROGRAMS):
        text = os.fsdecode(bytes.fromhex(value))
        return os.fsencode(_walk(text, replacements)).hex()
    return value if name in WORDS else _walk(value, replacements)


def _replacements() -> "Dict[re.Pattern[str], str]":
    homes: List[str] = []
    users = [os.environ.get(name, "") for name in ("USER", "LOGNAME", "SUDO_USER")]
    for line in read("/etc/passwd").split("\n"):
        fields = line.split(":")
        if len(fields) > 5 and fields[2].isdigit() and UID_MIN <= int(fields[2]) < UID_MAX:
            users.append(fields[0])
            homes.append(fields[5])
    homes.append(os.environ.get("HOME", ""))
    hosts = [os.uname().nodename, read("/etc/hostname").strip(), os.environ.get("NAME", "")]
    hosts += [host.partition(".")[0] for host in hosts]
    distro = os.environ.get("WSL_DISTRO_NAME", "")
    # The longest home first, as one may be part of another.
    found: "Dict[re.Pattern[str], str]" = {}
    for home in sorted({home.rstrip("/") for home in homes}, key=len, reverse=True):
        if home.count("/") > 1 and "/Users/" not in home:  # not /root, nor what is on a drive of Windows
            found[re.compile(f"{re.escape(home)}(?![^/])")] = "/home/USER"
    # Homes of users that are not in /etc/passwd, such as those of Windows.
    found[re.compile(r"(?i)((?:/|\\)(?:home|Users)(?:/|\\))(?!USER\b)[^/\\:;\"]+")] = r"\1USER"
    # A network drive: path=UNC\SERVER\SHARE of its mount.
    found[re.compile(r"(?i)(path=UNC\\|\\\\(?!wsl))[^\\;]+\\[^\\;]+")] = r"\1SERVER\\SHARE"
    for names, replacement in (users, "USER"), (hosts, "HOST"), ([distro], "DISTRO"):
        for name in sorted(set(names), key=len, reverse=True):
            if len(name) >= NAME_MIN and not name.isdigit() and name.lower() not in COMMON:
                found[re.compile(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", re.IGNORECASE)] = replacement
    return found
