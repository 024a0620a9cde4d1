# SPDX-License-Identifier: MIT
"""The packages, built once of a copy of the tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

import bed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Clone = Callable[[Path], Path]
    Make = Callable[..., None]


@pytest.fixture(scope="session", autouse=True)
def _patience() -> None:
    """Give way to what boots in the test bed meanwhile, in another process of `make check`; see bed.Vm."""
    os.nice(10)


@pytest.fixture(scope="session")
def clone() -> Clone:
    """Copy what a clone would have to a new directory; returns that."""

    def do(target: Path) -> Path:
        ignored = shutil.ignore_patterns(".git", ".venv", ".hypothesis", ".*_cache", "__pycache__", "build", "dist")
        shutil.copytree(bed.TREE, target, symlinks=True, ignore=ignored)
        return target

    return do


@pytest.fixture(scope="session")
def make() -> Make:
    """Run make(1) in a tree: `make(tree, "deb")`; options are those of subprocess.run()."""

    def do(tree: Path, *args: str, **options: Any) -> None:
        command = ["make", "--silent", "-C", str(tree), *args]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options
        )
        assert done.returncode == 0, done.stdout

    return do


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory, clone: Clone, make: Make) -> Path:
    """A copy of the tree in which all packages have been built."""
    tree = clone(tmp_path_factory.mktemp("release") / "tree")
    make(tree, "deb", "rpm", "arch")
    return tree


# What the packages of version 0.2.0 are built of, as its tarball has tests as well: git archive d39fb7a CHANGELOG.md
# LICENSE Makefile README.md generator man packaging units | xz -9e. It is here since a release has no history.
PREVIOUS = bed.TREE / "tests/packages/0.2.0.tar.xz"


@pytest.fixture(scope="session")
def previous_release(tmp_path_factory: pytest.TempPathFactory, make: Make) -> Path:
    """As `release`, of version 0.2.0."""
    tree = tmp_path_factory.mktemp("previous")
    subprocess.run(["tar", "-x", "-C", tree, "-f", PREVIOUS], check=True)
    make(tree, "deb", "rpm", "arch")
    return tree


@pytest.fixture(scope="session")
def previous_deb(previous_release: Path) -> Path:
    """The Debian package of version 0.2.0."""
    (path,) = (previous_release / "dist").glob("*.deb")
    return path


@pytest.fixture(scope="session")
def next_release(tmp_path_factory: pytest.TempPathFactory, clone: Clone, make: Make) -> Path:
    """As `release`, of the next version."""
    tree = clone(tmp_path_factory.mktemp("next") / "tree")
    version = tree / "generator/wsl-binfmt-generator"
    version.write_text(re.sub("^VERSION = .*", 'VERSION = "99"', version.read_text(), flags=re.MULTILINE))
    changes = tree / "CHANGELOG.md"
    changes.write_text(changes.read_text().replace("\n## ", "\n## 99 (2036-01-01)\n\n- More.\n\n## ", 1))
    make(tree, "deb", "rpm", "arch")
    return tree


@pytest.fixture(scope="session")
def deb(release: Path) -> Path:
    """The Debian package."""
    (path,) = (release / "dist").glob("*.deb")
    return path


@pytest.fixture(scope="session")
def next_deb(next_release: Path) -> Path:
    """The Debian package of the next version."""
    (path,) = (next_release / "dist").glob("*.deb")
    return path


@pytest.fixture
def boot(boot: Callable[..., bed.Distro]) -> Callable[..., bed.Distro]:
    """Boot a distro without the package, as the fixture that this replaces."""

    def do(vm: bed.Vm, **options: Any) -> bed.Distro:
        distro = boot(vm, installed=False, **options)
        # Otherwise every installation takes the two seconds in which man-db reads all pages.
        distro.path("/var/lib/man-db/auto-update").unlink(missing_ok=True)
        return distro

    return do
