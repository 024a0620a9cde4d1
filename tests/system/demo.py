# SPDX-License-Identifier: MIT
"""`make demo`: a Windows program in a WSL-like distro, without the generator and with it."""

from __future__ import annotations

import sys
import time

import bed

RESTART = "systemctl restart systemd-binfmt.service"
PRINT_OUTPUT = """
cd /run/systemd
for file in $(find generator ! -type d '(' -name '*wsl-binfmt*' -o -name '*status.mount' ')' | sort); do
    if [ -L "$file" ]; then echo "$file -> $(readlink "$file")"; else echo "$file"; sed 's/^./    &/' "$file"; fi
done
find generator.early -path '*binfmt*.d/*' -lname /dev/null -printf '%p -> %l\\n' | sort
"""


def show(distro: bed.Distro, then: str) -> None:
    """Start a Windows program before and after a restart of the service, and print what came of it.

    then: what is to be said after the restart; before, /init is to answer.
    """
    program = distro.windows_program("/tmp/program.exe")
    for command, expected in ("", f"/init {program}"), (RESTART, then):
        if command:
            print(f"  # {command}")
            distro.shell(command)
        answer = distro.answer(program).splitlines()[0]
        print(f"  $ {program} hello\n    {answer}")
        if expected not in answer:
            sys.exit(f"make demo failed: {expected!r} was expected there")


def main() -> int:
    """Show it; returns the exit status."""
    reason = bed.unavailable()
    if reason:
        print(f"make demo {reason}")
        return 1
    start = time.monotonic()
    with bed.Vm() as vm:
        with vm.distro(installed=False) as distro:
            print("A WSL-like distro, booted with", distro.systemctl("--version").splitlines()[0])
            if "WSLInterop" not in vm.names():
                # Its boot was enough to lose it.
                vm.register(bed.WSL_INTEROP)
            show(distro, "Exec format error")
        with vm.distro() as distro:
            print("\nThe same with wsl-binfmt-generator installed")
            show(distro, "/init /tmp/program.exe")
            print("\nA wipe of the table, as by a container")
            print("  # echo -1 >/proc/sys/fs/binfmt_misc/status")
            vm.write("status", "-1")
            lost = time.monotonic()
            while not distro.interop():
                if time.monotonic() > lost + 5 * bed.SLOWNESS:
                    sys.exit("make demo failed: that was not repaired")
            print(f"    repaired after {1000 * (time.monotonic() - lost):.0f} ms")
            print("\nWhat the generator wrote")
            print(distro.shell(PRINT_OUTPUT))
    print(f"All is cleaned up again. That took {time.monotonic() - start:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
