# SPDX-License-Identifier: MIT
"""`make check-kernels [SUITES=...]`: the heart of the system tests on the kernels of Debian's suites.

WSL ships Linux 5.15, 6.6 and 6.18; these are around them. Each kernel boots this
machine's own root in an emulator, without KVM, which makes it ten times slower.
A kernel is fetched once, into build/kernels/.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import bed

if TYPE_CHECKING:
    from pathlib import Path

SUITES = "bullseye", "bookworm", "trixie", "sid"
KERNELS = bed.TREE / "build/kernels"
VENV = bed.TREE / ".venv/bin"
PYTEST = [VENV / "python", "-B", "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rf", "-m", "kernel"]
# The generations differ in what systemd does, not in the kernel.
TESTS = ["-k", "none", "tests/system"]
SLOWNESS = 20
TIMEOUT = 1800  # seconds
# Nothing of this machine's apt is used, but the keys of the archive.
FETCH = r"""
set -e
mkdir -p "$1/lists/partial" "$1/cache/archives/partial"
cd "$1"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $2 main" >sources.list
set -- -q=2 -o Dir::Etc::sourcelist="$PWD/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$PWD/lists" \
        -o Dir::Cache="$PWD/cache" -o Acquire::Check-Valid-Until=false -o APT::Sandbox::User=root
apt-get "$@" update
depends() {
        apt-cache "$@" | sed -n 's/^ *Depends: \(linux-\(image\|binary\|modules\)-[0-9].*\)/\1/p'
}
image=$(depends "$@" depends linux-image-amd64 | head -n 1)
apt-get "$@" download "$image" $(depends "$@" depends "$image")
for package in *.deb; do dpkg-deb --extract "$package" root; done
rm -rf -- *.deb lists cache sources.list
[ -e root/lib ] || ln -s usr/lib root/lib
"""


def kernel(suite: str) -> Path:
    """The kernel of a suite, fetched if it is not there yet."""
    directory = KERNELS / suite
    if not (directory / "root/lib").exists():
        subprocess.run(["sh", "-c", FETCH, "sh", directory, suite], check=True)
    return next((directory / "root/boot").glob("vmlinuz-*"))


def check(suite: str) -> str:
    """Run the tests on the kernel of a suite; returns what is wrong, "" if nothing is."""
    image = kernel(suite)
    output = KERNELS / suite / "output"
    output.write_text("")
    pytest = " ".join(map(str, [*PYTEST, *TESTS]))
    script = KERNELS / suite / "script"
    script.write_text(f"""
for module in overlay binfmt_misc loop; do modprobe $module; done
mkdir -p /run/lock
cd {bed.TREE} && WSL_BINFMT_SLOWNESS={SLOWNESS} CI=true timeout {TIMEOUT} {pytest} >{output} 2>&1
echo "exit status $?" >>{output}
""")
    start = time.monotonic()
    options = f"--user root --disable-kvm --force-9p --memory 4G --cpus {os.cpu_count()} --rwdir={bed.TREE}"
    # The console is not for output: it takes a terminal.
    subprocess.run(
        [VENV / "vng", "-r", image, *options.split(), "--", f"sh {script}"],
        env={**os.environ, "PATH": f"{VENV}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        timeout=TIMEOUT + 300,
    )
    said = output.read_text()
    summary = re.findall(r"^=* ?(\d+ (?:passed|failed).*?)(?: in .*)?$", said, re.MULTILINE)
    version = image.name.partition("-")[2]
    took = f"{(time.monotonic() - start) / 60:.0f} min"
    print(f"| {suite} | {version} | {summary[-1] if summary else 'nothing'} | {took} |", flush=True)
    return "" if said.endswith("exit status 0\n") else said


def main() -> int:
    """Check the suites that are named, or all; returns the exit status."""
    reason = bed.unavailable()
    if reason:
        print(f"make check-kernels {reason}")
        return 1
    status = 0
    for suite in sys.argv[1:] or SUITES:
        wrong = check(suite)
        if wrong:
            print(wrong)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
