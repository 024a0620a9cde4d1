# SPDX-License-Identifier: MIT
"""`make shell`: a WSL-like distro with this package, booted, to play in."""

from __future__ import annotations

import subprocess
import sys

import bed


def main() -> int:
    """Run a shell in a distro; returns its exit status."""
    reason = bed.unavailable()
    if reason:
        print(f"make shell {reason}")
        return 1
    with bed.Vm("".join(sys.argv[1:2]) or "none") as vm, vm.distro() as distro:
        print(
            f"A distro of WSL {vm.generation!r}, one of {', '.join(bed.GENERATIONS)}. Try: wsl-binfmt; /tmp/program.exe"
        )
        distro.windows_program()
        return subprocess.run(distro.command("bash", "-l")).returncode


if __name__ == "__main__":
    sys.exit(main())
