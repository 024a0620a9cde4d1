# SPDX-License-Identifier: MIT
"""The generator as a module and as a process, and a reader of unit files that forgives nothing."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pyfakefs import fake_file, fake_filesystem, fake_open, fake_os

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TREE = Path(__file__).parents[2]
GENERATOR = TREE / "generator/wsl-binfmt-generator"
# As its first line has it, with the Python that is being tested.
COMMAND = sys.executable, "-IS", str(GENERATOR)
TIMEOUT = 20  # seconds: what takes longer hangs
WSL_RELEASE = "6.6.87.2-microsoft-standard-WSL2\n"

GUARD = "systemd-binfmt.service.d/50-wsl-binfmt.conf"
SUPPORT = "binfmt-support.service.d/50-wsl-binfmt.conf"


def load_generator() -> Any:
    """Load the generator as a module that is not run, with no arguments."""
    loader = importlib.machinery.SourceFileLoader("wsl_binfmt_generator", str(GENERATOR))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    before = sys.argv
    sys.argv = [str(GENERATOR)]
    try:
        loader.exec_module(module)
    finally:
        sys.argv = before
    return module


def give_fake_files(module: Any, **options: Any) -> fake_filesystem.FakeFilesystem:
    """Have a module see a file system in memory, for `posix` and open().

    options: of FakeFilesystem. Its root is always the same: give paths from /.
    """
    files = fake_filesystem.FakeFilesystem(**options)
    module.posix = fake_os.FakeOsModule(files)
    module.open = fake_open.FakeFileOpen(files)
    return files


def fake_text(files: fake_filesystem.FakeFilesystem, path: str) -> str:
    """Read a file of a file system in memory."""
    found = files.get_object(path)
    assert isinstance(found, fake_file.FakeFile)
    return found.contents or ""


class Machine:
    """What the generator reads of a machine, below a directory, and a place for its output."""

    def __init__(self, directory: Path, release: str = WSL_RELEASE, **environment: str) -> None:
        """Make one. release: of the kernel. environment: of the generator."""
        self.root = directory / "root"
        self.out = directory / "out"
        self.environment = environment
        self.out.mkdir()
        self.write("proc/sys/kernel/osrelease", release)

    @property
    def conf(self) -> Path:
        """Path of its /etc/wsl.conf, in a directory that is there."""
        path = self.root / "etc/wsl.conf"
        path.parent.mkdir(exist_ok=True)
        return path

    def write(self, path: str, text: str = "") -> None:
        """Write a file of the machine."""
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def run(self, *args: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the generator; by default with the normal output directory only."""
        return run(
            *(args or [self.out]), environment={"WSL_BINFMT_ROOT": str(self.root), **self.environment}, **options
        )

    def output(self) -> dict[str, str]:
        """What was written, as tree()."""
        return tree(self.out)


def run(
    *args: str | Path,
    environment: Mapping[str, str],
    command: Sequence[str] = COMMAND,
    stdout: int | IO[str] = subprocess.PIPE,
    stderr: int | IO[str] = subprocess.PIPE,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """Run the generator as a process, in no other environment than the one given."""
    return subprocess.run(
        [*command, *map(str, args)],
        check=False,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=TIMEOUT,
        **options,
    )


def tree(directory: Path) -> dict[str, str]:
    """All that is below a directory, by path: text, "-> TARGET" of a link, "/" for an empty directory."""
    result = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            result[name] = f"-> {os.readlink(path)}"
        elif not path.is_dir():
            result[name] = path.read_bytes().decode(errors="surrogateescape")
        elif not any(path.iterdir()):
            result[name] = "/"
    return result


def assert_modes(directory: Path) -> None:
    """Assert that all may read, and root alone may write, what is below a directory."""
    for path in directory.rglob("*"):
        mode = path.lstat().st_mode
        if not stat.S_ISLNK(mode):
            expected = 0o755 if stat.S_ISDIR(mode) else 0o644
            assert stat.S_IMODE(mode) == expected, f"{path} has mode {stat.S_IMODE(mode):o}"


def parse_unit(text: str) -> dict[str, list[tuple[str, str]]]:
    """Parse a unit file or drop-in of ours; fails for all that systemd.syntax(7) merely tolerates, too."""
    assert text.endswith("\n")
    assert text.isascii()
    sections: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for line in text.splitlines():
        assert line == line.strip()
        assert len(line) < 2048
        assert not line.endswith("\\")
        if line.startswith("["):
            match = re.fullmatch(r"\[(Unit|Service|Install|Mount|Path|Timer)\]", line)
            assert match, line
            name = match[1]
            assert name not in sections, f"[{name}] twice"
            sections[name] = []
        elif line and line[0] not in "#;":
            match = re.fullmatch(r"([A-Z][A-Za-z]+)=(\S.*)?", line)
            assert match, line
            assert name, f"{line} is in no section"
            sections[name].append((match[1], match[2] or ""))
    assert all(sections.values()), "an empty section"
    return sections
