# SPDX-License-Identifier: MIT
"""The demo, as `make demo` runs it."""

from __future__ import annotations

import functools
import re
import subprocess

import pytest

import bed
import demo
import roots

pytestmark = pytest.mark.system

# Runs `make demo` in a root file system, which it may not change, with a copy of this tree. The lock of the test bed is
# the machine's.
IN_ROOT = r"""
mount --bind "$1" "$1"
mount -o remount,bind,ro "$1"
cd "$1"
mount -t proc proc proc
for directory in dev sys; do mount --rbind /$directory $directory; done
for directory in run tmp; do mount -t tmpfs tmpfs $directory; done
mkdir run/lock run/old tmp/tree
mount --bind /run/lock run/lock
tar -c -C "$2" --exclude='./.*' --exclude=./build --exclude=./dist . | tar -x -C tmp/tree
pivot_root . run/old
umount -l run/old
cd /tmp/tree
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin make --no-print-directory demo
"""


def check(said: str) -> None:
    """See that the demo showed what it is for, and that no other program said anything."""
    assert said.startswith("A WSL-like distro, booted with systemd ")
    before, _, after = said.partition("The same with wsl-binfmt-generator installed\n")
    assert before.count("/init /tmp/program.exe") == 1
    assert "Exec format error" in before
    assert "Exec format error" not in after
    assert after.count("/init /tmp/program.exe") == 2
    assert "repaired after" in after
    for path in bed.TREE.glob("tests/golden/07-*/expected/*/*/*"):
        *_, directory, folder, name = path.parts
        written = {"normal": "generator", "early": "generator.early"}[directory]
        assert re.search(rf"^{written}/{folder}/{re.escape(name)}( -> .+)?$", after, re.MULTILINE), path
    assert after.endswith(" s.\n")


def test_demo(capfd: pytest.CaptureFixture[str]) -> None:
    assert demo.main() == 0
    said, errors = capfd.readouterr()
    check(said)
    assert errors in ("", bed.WAITING)


def test_where_nothing_is_installed() -> None:
    """A newcomer has only what `make demo` installs."""
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", IN_ROOT, "sh", roots.make_newcomers(), bed.TREE],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    check(done.stdout)
    assert done.stderr in ("", bed.WAITING)


def test_a_demo_that_shows_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a rule in binfmt.d, the program starts without the package, too."""
    monkeypatch.setattr(bed.Distro, "__init__", functools.partialmethod(bed.Distro.__init__, emulators=0))
    with pytest.raises(SystemExit, match=r"^make demo failed: 'Exec format error' was expected there$"):
        demo.main()
