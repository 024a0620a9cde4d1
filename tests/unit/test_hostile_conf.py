# SPDX-License-Identifier: MIT
"""Whatever is in the place of /etc/wsl.conf: the right settings, one clear message, no hang."""

from __future__ import annotations

import os
import resource
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest
from pyfakefs import helpers

import support

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = "wsl-binfmt-generator: "
NO_FILE = "not a regular file of at most 128 MiB, ignoring"
MALFORMED = "not a [section], name=value or # comment, ignoring this and what follows, as WSL does"
PADDING = b"# " + b"padding " * 9 + b"\n"
MIB = 1 << 20


def assert_ignored(distro: support.Machine, message: str) -> None:
    """Assert that the file is ignored, with this message and no other."""
    done = distro.run()
    assert done.stderr == f"{NAME}/etc/wsl.conf: {message}\n"
    assert done.returncode == 0
    assert distro.output().keys() >= {support.GUARD, support.SUPPORT}


def assert_off(distro: support.Machine, stderr: str = "") -> None:
    """Assert that the file is read: it has protectBinfmt=false."""
    done = distro.run()
    assert done.stderr == stderr
    assert done.returncode == 0
    assert distro.output() == {}


def test_none(distro: support.Machine) -> None:
    """No file is how most distros come: nothing to say."""
    done = distro.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert support.GUARD in distro.output()


def test_no_etc(distro: support.Machine) -> None:
    """The same without the directory."""
    assert not (distro.root / "etc").exists()
    done = distro.run()
    assert (done.returncode, done.stderr) == (0, "")


def test_directory(distro: support.Machine) -> None:
    """A directory is not read."""
    distro.conf.mkdir()
    assert_ignored(distro, NO_FILE)


def test_dangling_link(distro: support.Machine) -> None:
    """A link to nothing is worth a message, unlike no file."""
    distro.conf.symlink_to("nowhere")
    assert_ignored(distro, "No such file or directory, ignoring")


def test_link_loop(distro: support.Machine) -> None:
    """Links that lead to each other are not followed for ever."""
    distro.conf.symlink_to("other.conf")
    distro.conf.with_name("other.conf").symlink_to("wsl.conf")
    assert_ignored(distro, "Too many levels of symbolic links, ignoring")


def test_link(distro: support.Machine) -> None:
    """A link to a file is as good as the file."""
    distro.write("mnt/wsl.conf", "[boot]\nprotectBinfmt=false\n")
    distro.conf.symlink_to("../mnt/wsl.conf")
    assert_off(distro)


def test_fifo(distro: support.Machine) -> None:
    """No process writes to the FIFO, and the generator does not wait for one."""
    os.mkfifo(distro.conf)
    assert_ignored(distro, NO_FILE)


def test_socket(distro: support.Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What not even root can open."""
    monkeypatch.chdir(distro.conf.parent)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("wsl.conf")
        assert_ignored(distro, "No such device or address, ignoring")


@pytest.mark.parametrize("device", ["zero", "null", "full", "tty"])
def test_device(distro: support.Machine, device: str) -> None:
    """A device is not read: /dev/zero has no end, a terminal waits."""
    distro.conf.symlink_to(f"/dev/{device}")
    done = distro.run()
    assert done.stderr.startswith(f"{NAME}/etc/wsl.conf: ")
    assert done.stderr.count("\n") == 1
    assert done.returncode == 0
    assert support.GUARD in distro.output()


def test_read_error(distro: support.Machine) -> None:
    """A file that opens and cannot be read, as on a broken disk."""
    distro.conf.symlink_to("/proc/self/mem")
    assert_ignored(distro, "Input/output error, ignoring")


@pytest.fixture
def not_root() -> Iterator[None]:
    """Be a user who may not read all, as far as files in memory are concerned."""
    helpers.set_uid(1000)
    helpers.set_gid(1000)
    yield
    helpers.reset_ids()


@pytest.mark.usefixtures("not_root")
def test_unreadable(generator: Any) -> None:
    """A file that may not be read; root may read all, so the files are in memory."""
    files = support.give_fake_files(generator)
    files.create_file("/etc/wsl.conf", contents="[boot]\nprotectBinfmt=false\n", apply_umask=True)
    files.chmod("/etc/wsl.conf", 0o200)
    messages = []
    generator.log = lambda _level, text: messages.append(text)
    assert generator.settings() == [True, True]
    assert messages == ["/etc/wsl.conf: Permission denied, ignoring"]
    files.chmod("/etc/wsl.conf", 0o400)
    assert generator.settings() == [False, True]
    assert len(messages) == 1


def test_not_utf8(distro: support.Machine) -> None:
    """Settings count beside a byte that is no UTF-8, as for WSL, which reads bytes."""
    distro.conf.write_bytes(b"[user]\ndefault=j\xfcrgen\n[boot]\nprotectBinfmt=false\n")
    assert_off(distro)


def test_utf16(distro: support.Machine) -> None:
    """What Notepad once saved as Unicode is malformed from its first byte on."""
    distro.conf.write_bytes("[boot]\r\nprotectBinfmt=false\r\n".encode("utf-16"))
    done = distro.run()
    assert done.stderr == f"{NAME}/etc/wsl.conf:1: {MALFORMED}\n"
    assert support.GUARD in distro.output()


def test_nul(distro: support.Machine) -> None:
    """A file of NULs, as a crash leaves it."""
    distro.conf.write_bytes(bytes(4096))
    done = distro.run()
    assert done.stderr == f"{NAME}/etc/wsl.conf:1: {MALFORMED}\n"
    assert support.GUARD in distro.output()


def test_nul_in_comment(distro: support.Machine) -> None:
    """A NUL in a comment is none of ours."""
    distro.conf.write_bytes(b"#\0\n[boot]\nprotectBinfmt=false\n")
    assert_off(distro)


def test_100_mb(distro: support.Machine) -> None:
    """A setting behind 100 MB of comments is read."""
    with distro.conf.open("wb") as file:
        file.write(PADDING * (100 * MIB // len(PADDING)))
        file.write(b"[boot]\nprotectBinfmt=false\n")
    assert_off(distro)


def test_100_mb_line(distro: support.Machine) -> None:
    """The same in one line, with a hole."""
    with distro.conf.open("wb") as file:
        file.write(b"#")
        file.truncate(100 * MIB)
        file.seek(0, os.SEEK_END)
        file.write(b"\n[boot]\nprotectBinfmt=false\n")
    assert_off(distro)


def test_too_large(distro: support.Machine) -> None:
    """More than the generator has memory for is ignored whole."""
    with distro.conf.open("wb") as file:
        file.write(b"[boot]\nprotectBinfmt=false\n")
        file.truncate(128 * MIB + 1)
    assert_ignored(distro, NO_FILE)


def test_many_settings(distro: support.Machine) -> None:
    """They take no memory of their own."""
    distro.conf.write_bytes(b"[boot]\nprotectBinfmt=false\n" + b"a=1\n" * (MIB // 2))
    limit = 60 * MIB
    done = distro.run(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
    assert (done.returncode, done.stderr) == (0, "")
    assert distro.output() == {}


@pytest.mark.parametrize("text", [b"\0", b"y", b"bad\n# a\nx=yyyyyyyy", b"x=y", b"x=\0"])
def test_a_first_line_of_a_megabyte(distro: support.Machine, text: bytes) -> None:
    """It takes no time that a boot has not, in a process that has done nothing before."""
    distro.conf.write_bytes(text + text[-1:] * MIB)
    assert distro.run().returncode == 0
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    distro.run()
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - usage.ru_utime < 2


def test_short_reads(generator: Any, distro: support.Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system may give less than it was asked for."""
    distro.conf.write_text("[boot]\nprotectBinfmt=false\n")
    generator.ROOT = str(distro.root)
    read = os.read
    monkeypatch.setattr(generator.posix, "read", lambda fd, size: read(fd, min(size, 7)))
    assert generator.settings() == [False, True]


def test_file_is_left_alone(distro: support.Machine) -> None:
    """It is read, and that is all."""
    distro.conf.write_text("[boot]\nsystemd=true\n")
    distro.conf.chmod(0o400)
    before = distro.conf.stat()
    distro.run()
    after = distro.conf.stat()
    assert (before.st_mode, before.st_mtime_ns, before.st_ino) == (after.st_mode, after.st_mtime_ns, after.st_ino)
    assert support.tree(distro.root).keys() == {"etc/wsl.conf", "proc/sys/kernel/osrelease"}


def seconds_to_read(generator: Any, distro: support.Machine, text: bytes) -> float:
    """How long the generator takes to read a file."""
    generator.ROOT = str(distro.root)
    distro.conf.write_bytes(text)
    before = time.process_time()
    generator.settings()
    return time.process_time() - before


@pytest.mark.parametrize("piece", [b"a=1\r", b"a=1\n", b"x", b"\\\n", b'"', b"\r", b"#\r", b"\xc3\xa9"])
def test_time_is_linear(generator: Any, distro: support.Machine, piece: bytes) -> None:
    """Eight times as much takes eight times as long, also where it is one line or one value, or ends in CR."""
    few, many = (
        min(seconds_to_read(generator, distro, b"x=" + piece * count) for _ in range(3)) for count in (1 << 12, 1 << 15)
    )
    assert many < 24 * few + 0.01


class CountingPosix:
    """`posix`, with a file for /dev/kmsg, that counts what it opens."""

    def __init__(self, kmsg: Path, comm: Path) -> None:
        self._kmsg, self._comm = kmsg, comm
        self.open_kmsg: set[int] = set()

    def open(self, path: str, flags: int) -> int:
        """Open /dev/kmsg, or what tells of our parent: one of the processes that systemd starts generators in."""
        if path != "/dev/kmsg":
            assert path == f"/proc/{os.getppid()}/comm"
            return os.open(self._comm, flags)
        fd = os.open(self._kmsg, flags | os.O_APPEND)
        self.open_kmsg.add(fd)
        return fd

    def close(self, fd: int) -> None:
        """Close it."""
        self.open_kmsg.discard(fd)
        os.close(fd)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


@pytest.fixture
def kmsg(generator: Any, tmp_path: Path) -> CountingPosix:
    """The generator as systemd runs it, with a file for the kernel log."""
    (tmp_path / "kmsg").touch()
    (tmp_path / "comm").write_text("(sd-executor)\n")
    counting = CountingPosix(tmp_path / "kmsg", tmp_path / "comm")
    generator.posix = counting
    return counting


def test_kernel_log(generator: Any, kmsg: CountingPosix, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Started by systemd, what is wrong is a line of the kernel log, with its priority."""
    generator.log(generator.LOG_WARNING, "/etc/wsl.conf:2: é \n\udcff")
    generator.log(generator.LOG_ERR, "no")
    pid = os.getpid()
    assert (tmp_path / "kmsg").read_text() == (
        f"<28>wsl-binfmt-generator[{pid}]: /etc/wsl.conf:2: \\xe9 \\n\\udcff\n<27>wsl-binfmt-generator[{pid}]: no\n"
    )
    assert capfd.readouterr() == ("", "")
    for fd in kmsg.open_kmsg:
        os.close(fd)


def test_kernel_log_is_closed(generator: Any, kmsg: CountingPosix) -> None:
    """However much is wrong with wsl.conf, file descriptors do not run out."""
    for _ in range(10):
        generator.log(generator.LOG_WARNING, "wrong")
    left = len(kmsg.open_kmsg)
    for fd in kmsg.open_kmsg:
        os.close(fd)
    assert left <= 1


def test_few_warnings(distro: support.Machine) -> None:
    """A file in another encoding does not flood the kernel log."""
    distro.conf.write_bytes(b"# \xe9\n" * 100)
    assert distro.run().stderr.count("\n") <= 10
