# SPDX-License-Identifier: MIT
"""The demo, as `make demo` runs it."""

from __future__ import annotations

import subprocess

import pytest

import bed

pytestmark = pytest.mark.system


def test_demo() -> None:
    done = subprocess.run(
        ["/usr/bin/python3", "-B", bed.HERE / "demo.py"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    before, _, after = done.stdout.partition("The same with wsl-binfmt-generator installed\n")
    assert "Exec format error" in before
    assert "Exec format error" not in after
    assert after.count("/init /tmp/program.exe") == 2
    assert "repaired after" in after
    for path in bed.TREE.glob("tests/golden/07-*/expected/*/*"):
        assert f"./{path.parent.name}/{path.name}\n" in after
    assert after.endswith(" s.\n")
