# SPDX-License-Identifier: MIT
"""`make check-kernels [SUITES=...]`: the heart of the system tests on the kernels of Debian's suites.

WSL ships Linux 5.15, 6.6 and 6.18; these are around them. Each kernel runs in an
emulator, without KVM, which makes it ten times slower. Its clock jumps by an
hour, both ways, every other second. The root file system of the tests is on a
disk: 9p, by which the emulator shows this machine's own, takes three seconds to
start Python. Kernels and root are made once, in build/kernels/.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import tomllib

import bed

if TYPE_CHECKING:
    from pathlib import Path

SUITES = "bullseye", "bookworm", "trixie", "sid"
KERNELS = bed.TREE / "build/kernels"
VENV = bed.TREE / ".venv/bin"
# The generations differ in what systemd does, not in the kernel.
PYTEST = "python3 -B -m pytest -p no:cacheprovider -v -rf -m kernel -k none tests/system"
SLOWNESS = 20
TIMEOUT = 1800  # seconds
ROOT = KERNELS / "root.ext4"
ROOT_SUITE = "bookworm"
ROOT_PYTHON = "3.11"
PACKAGES = "systemd systemd-sysv dbus binfmt-support python3 make gcc libc6-dev util-linux e2fsprogs procps"
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
# Where the images of sid are; the emulator wants them in /boot.
for image in root/usr/lib/modules/*/vmlinuz; do
        [ -e "$image" ] || break
        version=${image%/*}
        install -D "$image" "root/boot/vmlinuz-${version##*/}"
done
"""
# What is run once a kernel is up. The disks are those of check(), in their order. Not chroot: nsenter(1), in the test
# bed, goes to the root of the mounts.
SCRIPT = r"""
exec >{output} 2>&1
for module in virtio_blk ext4 overlay binfmt_misc loop; do modprobe $module; done
mkdir /run/root
mount -o ro /dev/vda /run/root
cd /run/root
for directory in dev proc sys; do mount --rbind /$directory $directory; done
for directory in run tmp; do mount -t tmpfs tmpfs $directory; done
mkdir -p run/lock run/old tmp/tree
tar -x -C tmp/tree </dev/vdb
# WSL's clock jumps when Windows has slept, and is set right later.
while sleep 2; do
        date --set="+1 hour"
        sleep 2
        date --set="-1 hour"
done >/dev/null &
unshare --mount sh -ec '
        pivot_root . run/old
        umount -l run/old
        cd /tmp/tree
        CI=true WSL_BINFMT_SLOWNESS={slowness} timeout {timeout} {pytest}
'
echo "exit status $?"
"""


def kernel(suite: str) -> Path:
    """The kernel of a suite, fetched if it is not there yet."""
    directory = KERNELS / suite
    if not directory.exists():
        unfinished = directory.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        subprocess.run(["sh", "-c", FETCH, "sh", unfinished, suite], check=True)
        unfinished.rename(directory)
    return next((directory / "root/boot").glob("vmlinuz-*"))


def make_root() -> None:
    """Make the root file system of the tests, if it is not there yet."""
    if ROOT.exists():
        return
    KERNELS.mkdir(parents=True, exist_ok=True)
    requirements = tomllib.loads((bed.TREE / "pyproject.toml").read_text())["project"]["optional-dependencies"]["tests"]
    modules = KERNELS / "modules"
    options = f"--quiet --python-version={ROOT_PYTHON} --only-binary=:all: --upgrade --target={modules}"
    subprocess.run([VENV / "pip", "install", *options.split(), *requirements], check=True)
    directory = KERNELS / "root"
    # Of a run that was ended.
    shutil.rmtree(directory, ignore_errors=True)
    unfinished = ROOT.with_suffix(".unfinished")
    subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES.replace(' ', ',')}",
         f"--customize-hook=cp -r {modules}/. $1/usr/local/lib/python{ROOT_PYTHON}/dist-packages",
         ROOT_SUITE, directory],
        check=True,
    )  # fmt: skip
    unfinished.unlink(missing_ok=True)
    subprocess.run(["truncate", "--size=2G", unfinished], check=True)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", directory, unfinished], check=True)
    shutil.rmtree(directory)
    unfinished.rename(ROOT)


def check(suite: str) -> str:
    """Run the tests on the kernel of a suite; returns what is wrong, "" if nothing is."""
    image = kernel(suite)
    directory = KERNELS / suite
    output = directory / "output"
    output.write_text("")
    tree = directory / "tree.tar"
    subprocess.run(
        ["tar", "-c", "-f", tree, "-C", bed.TREE, "--exclude=./.*", "--exclude=./build", "--exclude=./dist", "."],
        check=True,
    )
    script = directory / "script"
    script.write_text(SCRIPT.format(timeout=TIMEOUT, slowness=SLOWNESS, pytest=PYTEST, output=output))
    start = time.monotonic()
    disks = (f"-drive file={file},format=raw,if=virtio,readonly=on" for file in (ROOT, tree))
    options = f"--user root --disable-kvm --force-9p --memory 4G --cpus {os.cpu_count()} --rwdir={directory}"
    # The console is not for output: it takes a terminal.
    subprocess.run(
        [VENV / "vng", "-r", image, *options.split(), f"--qemu-opts={' '.join(disks)}", "--", f"sh {script}"],
        env={**os.environ, "PATH": f"{VENV}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        # It opens its channels anew, and would empty a file.
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
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
    make_root()
    status = 0
    for suite in sys.argv[1:] or SUITES:
        wrong = check(suite)
        if wrong:
            print(wrong)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
