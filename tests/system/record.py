# SPDX-License-Identifier: MIT
"""Records machines of tests/machines on the test bed. As root: python -B tests/system/record.py.

What differs from one run to the next, or is not as on WSL (times, numbers of
processes, the kernel's name, the session), is replaced by what is the same each
time. Review what has changed with `git diff`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import bed
from checks import eventually, quiet

MACHINES = Path(__file__).parents[1] / "machines"
# Each with its generation of WSL, and a release of its kernel.
RECORDED = {
    "healthy-wsl-2.0.9": ("2.0.9", "5.15.133.1-microsoft-standard-WSL2"),
    "healthy-wsl-2.6": ("2.6", "6.6.87.2-microsoft-standard-WSL2"),
    "healthy-wsl-3.0": ("3.0", "6.18.40-microsoft-standard-WSL2"),
}
START = 1790000000.0
SOCKETS = {"/run/WSL/1_interop": 1, "/run/WSL/312_interop": 312}
HOME = [("/", 0, 0o40755), ("/home", 0, 0o40755), ("/home/USER", 1000, 0o40750)]
# That of a terminal, of the user 1000.
SESSION = {
    "default_uid": 1000,
    "default_gids": [1000],
    "wsl_interop": "/run/WSL/312_interop",
    "wsl_interop_state": "there",
    "run_wsl": "there",
    "sockets": [
        {"path": path, "pid": pid, "is_listening": True, "made": START + pid / 10} for path, pid in SOCKETS.items()
    ],
    "ancestors": [320, 312, 1],
    "cwd": {
        "path": "/home/USER",
        "way": [{"path": path, "uid": user, "gid": user, "mode": mode} for path, user, mode in HOME],
        "mount": {"target": "/", "kind": "ext4", "options": ["rw", "relatime"]},
    },
    "path": ["/usr/local/bin", "/usr/bin", "/bin", "/mnt/c/Windows/System32", "/mnt/c/Windows"],
}


def record(name: str) -> Any:
    """Record a machine, as an object for JSON."""
    generation, release = RECORDED[name]
    with bed.Vm(generation) as vm, vm.distro() as distro:
        eventually(lambda: quiet(distro))
        said = distro.run("wsl-binfmt", "report", "-")
    return normal(json.loads(said.replace(bed.EMULATOR, "/usr/libexec/qemu-binfmt/aarch64-binfmt-P")), release)


def normal(machine: Any, release: str) -> Any:
    """Replace what is not the same each time."""
    machine.update(taken=START + 3600, session=SESSION)
    system = machine["system"]
    system.update(release=release, started=START, native=system["native"][:48])
    for age, entry in enumerate(machine["table"]["entries"]):
        entry["since"] = START + 1 - age
    machine["protection"]["watch"] = {"pid": 61, "since": START + 1}
    machine["protection"]["messages"] = []
    over = machine["table"]["over_status"]
    over.update(kind="ext4", options=["ro", "relatime"], root=over.get("root", "/").replace("/scratch", ""))
    return machine


if __name__ == "__main__":
    for name in sys.argv[1:] or RECORDED:
        (MACHINES / name / "machine.json").write_text(json.dumps(record(name), indent=1) + "\n")
